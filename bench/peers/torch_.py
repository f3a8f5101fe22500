"""PyTorch: eager as everybody writes it, and compiled as its experts do; CUDA graphs on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.contender import TOLERANCE, Contender, UnavailableError
from bench.problem import Parameters, Problem, scaled

_MODULES = {"sigmoid": torch.nn.Sigmoid, "tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}
_FUNCTIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}


def make(problem: Problem, device: str, threads: int, *, compiled: str = "", precision: str = "float32") -> Contender:
    """Return PyTorch's training loop; `compiled` is "" (eager), "forward" or "step"."""
    if device != "cpu" and not torch.cuda.is_available():
        raise UnavailableError("not installed: a PyTorch with CUDA, and a GPU")
    if precision == "tf32" and device == "cpu":
        raise UnavailableError("not supported: TF32 is a mode of NVIDIA's tensor cores")
    torch.set_num_threads(threads)
    if compiled != "step":
        return CompiledForward(problem, device) if compiled else Eager(problem, device)
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
        self.set_precision()
        for _ in range(epochs):
            self.epoch += 1
            self.run_epoch()
        if self.device != "cpu":
            torch.cuda.synchronize()

    def set_precision(self) -> None:
        """Set the mode of the products, which is the process's: another contender may have changed it."""
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")

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
        criterion = torch.nn.CrossEntropyLoss()
        self.loss: Callable[[Any, Any], Any] = lambda X, y: criterion(self.network(X), y)
        self.optimizer = torch.optim.SGD(self.flat, lr=problem.learning_rate, fused=True)

    def step(self, rows: Any) -> None:
        X, y = (self.X, self.y) if rows is None else (self.X[rows], self.y[rows])
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(X, y).backward()
        self.optimizer.step()


def _compiled(function: Callable[..., Any], mode: str | None = None) -> Any:
    """Return the function compiled for static shapes, once for each batch size that this process trains with."""
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(function, fullgraph=True, dynamic=False, mode=mode)


class CompiledForward(Eager):
    """The usual advice: compile the model with its loss; autograd compiles the backward, gather and update stay eager.

    On the CPU ahead of the compiled step in some full batches, behind it in mini-batches.
    """

    settings = "torch.compile of network and loss, the rest as in torch"

    def __init__(self, problem: Problem, device: str) -> None:
        super().__init__(problem, device)
        self.loss = _compiled(self.loss)

    def compile(self) -> None:
        self.set_precision()
        first, *_, last = self.batches(1) * 2
        for rows in (first, last):
            X, y = (self.X, self.y) if rows is None else (self.X[rows], self.y[rows])
            self.loss(X, y).backward()


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

        self.compiled = _compiled(step, self.mode)

    def compile(self) -> None:
        copies = [part.clone() for part in self.flat]
        first, *_, last = self.batches(1) * 2
        for rows in (first, last):
            self.compiled(copies, self.X, self.y, rows)

    def step(self, rows: Any) -> None:
        self.compiled(self.flat, self.X, self.y, rows)


class Captured(Compiled):
    """The compiled step with tuned kernels, a whole epoch of it captured in one CUDA graph and replayed."""

    settings = "torch.compile(mode=max-autotune-no-cudagraphs) of the whole step, each epoch one CUDA graph replay"
    mode = "max-autotune-no-cudagraphs"

    def __init__(self, problem: Problem, device: str, precision: str) -> None:
        super().__init__(problem, device)
        self.precision, self.tolerance = precision, TOLERANCE[precision]
        self.settings = f"{self.settings}, {precision} products"
        self.order = torch.arange(len(self.X), device=device)
        self.graph = torch.cuda.CUDAGraph()

    def compile(self) -> None:
        self.set_precision()
        start = [part.clone() for part in self.flat]
        size = self.problem.batch_size
        steps = [None] if size is None else list(torch.split(self.order, size))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for rows in [steps[0], steps[-1]] * 3:  # compiles and tunes both shapes before the capture
                self.step(rows)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # other libraries have threads here, too
            for rows in steps:
                self.step(rows)
        for part, first in zip(self.flat, start, strict=True):
            part.copy_(first)
        torch.cuda.synchronize()

    def run_epoch(self) -> None:
        if self.problem.batch_size is not None:
            self.order.copy_(torch.from_numpy(self.problem.order(self.epoch)))
        self.graph.replay()
