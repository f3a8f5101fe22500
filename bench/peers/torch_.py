"""PyTorch: eager as everybody writes it, and compiled as its experts do; CUDA graphs on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.contender import Contender, UnavailableError
from bench.problem import Parameters, Problem, scaled

_MODULES = {"sigmoid": torch.nn.Sigmoid, "tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}
_FUNCTIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}


def make(
    problem: Problem, device: str, threads: int, *, compiled: bool = False, precision: str = "float32"
) -> Contender:
    """Return PyTorch's training loop, eager or compiled."""
    if device != "cpu" and not torch.cuda.is_available():
        raise UnavailableError("not installed: a PyTorch with CUDA, and a GPU")
    if precision == "tf32" and device == "cpu":
        raise UnavailableError("not supported: TF32 is a mode of NVIDIA's tensor cores")
    torch.set_num_threads(threads)
    if not compiled:
        return Eager(problem, device)
    return Compiled(problem, device) if device == "cpu" else Captured(problem, device, precision)


class _Torch(Contender):
    """Data on the device once, as float32 images and int64 labels; float32 products unless told otherwise."""

    precision = "float32"

    def __init__(self, problem: Problem, device: str) -> None:
        super().__init__(problem)
        self.device = device
        self.X = torch.from_numpy(scaled(problem.X)).to(device)
        self.y = torch.from_numpy(problem.y.astype(np.int64)).to(device)
        self.flat = [torch.from_numpy(part.copy()).to(device) for layer in problem.initial for part in layer]

    def batches(self, epoch: int) -> list[Any]:
        """Rows of each step as index tensors; the order travels to the device once an epoch."""
        if self.problem.batch_size is None:
            return [None]
        order = torch.from_numpy(self.problem.order(epoch)).to(self.device)
        return list(torch.split(order, self.problem.batch_size))

    def run(self, epochs: int) -> None:
        # the mode is the process's: other contenders may have changed it since the last round
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        for _ in range(epochs):
            self.epoch += 1
            self.run_epoch()
        if self.device != "cpu":
            torch.cuda.synchronize()

    def run_epoch(self) -> None:
        """Take the steps of epoch ``self.epoch``."""
        for rows in self.batches(self.epoch):
            self.step(rows)

    step: Callable[[Any], Any]

    def parameters(self) -> Parameters:
        host = [part.detach().cpu().numpy().copy() for part in self.flat]
        return list(zip(host[::2], host[1::2], strict=True))


class Eager(_Torch):
    """nn.Sequential, CrossEntropyLoss and the fused SGD."""

    settings = "eager, float32 images on the device, SGD(fused=True), gradients set to None"

    def __init__(self, problem: Problem, device: str) -> None:
        super().__init__(problem, device)
        layers: list[torch.nn.Module] = []
        for W, b in zip(self.flat[::2], self.flat[1::2], strict=True):
            linear = torch.nn.Linear(W.shape[1], W.shape[0], device=device)
            linear.weight, linear.bias = torch.nn.Parameter(W), torch.nn.Parameter(b)
            layers += [linear, _MODULES[problem.activation]()]
        self.network = torch.nn.Sequential(*layers[:-1])
        self.flat = list(self.network.parameters())
        self.criterion = torch.nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.flat, lr=problem.learning_rate, fused=True)

    def step(self, rows: Any) -> None:
        X, y = (self.X, self.y) if rows is None else (self.X[rows], self.y[rows])
        self.optimizer.zero_grad(set_to_none=True)
        self.criterion(self.network(X), y).backward()
        self.optimizer.step()


class Compiled(_Torch):
    """Gather, forward, backward and update in one compiled function: its guards are checked once a step."""

    settings = "torch.compile of the whole step (gather, forward, backward, update), fullgraph, static shapes"
    mode: str | None = None

    def __init__(self, problem: Problem, device: str) -> None:
        super().__init__(problem, device)
        activation, rate = _FUNCTIONS[problem.activation], problem.learning_rate

        def loss_of(flat: list[Any], X: Any, y: Any) -> Any:
            for W, b in zip(flat[:-2:2], flat[1:-2:2], strict=True):
                X = activation(torch.nn.functional.linear(X, W, b))
            return torch.nn.functional.cross_entropy(torch.nn.functional.linear(X, *flat[-2:]), y)

        def step(flat: list[Any], X: Any, y: Any, rows: Any) -> Any:
            if rows is not None:
                X, y = X[rows], y[rows]
            gradients, loss = torch.func.grad_and_value(loss_of)(flat, X, y)
            for part, gradient in zip(flat, gradients, strict=True):
                part.sub_(gradient, alpha=rate)
            return loss

        self.compiled = torch.compile(step, fullgraph=True, dynamic=False, mode=self.mode)

    def step(self, rows: Any) -> None:
        self.compiled(self.flat, self.X, self.y, rows)


class Captured(Compiled):
    """The compiled step with tuned kernels, a whole epoch of it captured in one CUDA graph and replayed."""

    settings = "torch.compile(mode=max-autotune-no-cudagraphs) of the whole step, each epoch one CUDA graph replay"
    mode = "max-autotune-no-cudagraphs"

    def __init__(self, problem: Problem, device: str, precision: str) -> None:
        super().__init__(problem, device)
        self.precision = precision
        self.settings = f"{self.settings}, {precision} products"
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        start = [part.clone() for part in self.flat]
        self.order = torch.arange(len(self.X), device=device)
        size = problem.batch_size
        steps = [None] if size is None else list(torch.split(self.order, size))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for rows in [*steps[:1], *steps[-1:]] * 3:  # compiles and tunes both shapes before the capture
                self.step(rows)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for rows in steps:
                self.step(rows)
        for part, first in zip(self.flat, start, strict=True):
            part.copy_(first)

    def run_epoch(self) -> None:
        if self.problem.batch_size is not None:
            self.order.copy_(torch.from_numpy(self.problem.order(self.epoch)))
        self.graph.replay()
