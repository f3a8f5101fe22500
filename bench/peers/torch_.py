"""PyTorch: eager as everybody writes it, and compiled as its experts do; CUDA graphs on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.contender import TOLERANCE, Contender, UnavailableError
from bench.problem import BETA1, BETA2, EPSILON, MOMENTUM, Parameters, Problem, scaled

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


def _criterion(output: str) -> Callable[[Any, Any], Any]:
    """Return the mean loss of outputs Z (m, k)."""
    if output == "softmax":
        return torch.nn.functional.cross_entropy
    return lambda Z, y: ((Z - y) ** 2).sum() / (2 * len(Z))


class _Torch(Contender):
    """Data on the device once, as floats and int64 labels; float32 products unless told otherwise.

    Attributes
    ----------
    flat : list
        Weights and biases in turn.
    kept : list
        What the optimizer keeps: of Adam, the means, the mean squares, and the number of updates.
    """

    precision = "float32"

    def __init__(self, problem: Problem, device: str) -> None:
        super().__init__(problem)
        self.device = device
        self.tolerance = TOLERANCE[problem.dtype]
        self.X = torch.from_numpy(scaled(problem.X, problem.dtype)).to(device)
        y = problem.y.astype(np.int64) if problem.output == "softmax" else problem.y
        self.y = torch.from_numpy(y).to(device)
        self.flat = [torch.from_numpy(part.copy()).to(device) for layer in problem.initial for part in layer]
        count = [torch.zeros((), device=device)] * (problem.optimizer == "adam")
        vectors = {"sgd": 0, "momentum": 1, "adam": 2}[problem.optimizer]
        self.kept = [torch.zeros_like(part) for _ in range(vectors) for part in self.flat] + count

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
    """nn.Sequential, the loss, and the kernels of SGD(fused=True) and Adam(fused=True).

    The kernels are called directly: the optimizers' own ``step`` adds up to 90 µs of hooks and checks to an update,
    which is more than the update takes. Plain SGD is one addition over the list of all parameters, which is faster yet.
    """

    settings = "eager, data on the device, torch.autograd.grad, the fused optimizer's kernel called directly"

    def __init__(self, problem: Problem, device: str) -> None:
        super().__init__(problem, device)
        layers: list[torch.nn.Module] = []
        for W, b in zip(self.flat[::2], self.flat[1::2], strict=True):
            linear = torch.nn.Linear(W.shape[1], W.shape[0], device=device)
            linear.weight, linear.bias = torch.nn.Parameter(W), torch.nn.Parameter(b)
            layers += [linear, _MODULES[problem.activation]()]
        network, criterion = torch.nn.Sequential(*layers[:-1]), _criterion(problem.output)
        self.leaves = list(network.parameters())  # they share the memory of self.flat
        self.loss: Callable[[Any, Any], Any] = lambda X, y: criterion(network(X), y)

    def step(self, rows: Any) -> None:
        X, y = (self.X, self.y) if rows is None else (self.X[rows], self.y[rows])
        self.update(list(torch.autograd.grad(self.loss(X, y), self.leaves)))

    @torch.no_grad()
    def update(self, gradient: list[Any]) -> None:
        """Update the parameters in place."""
        flat, rate = self.flat, self.problem.learning_rate
        match self.problem.optimizer:
            case "sgd":
                torch._foreach_add_(flat, gradient, alpha=-rate)
            case "momentum":
                torch._fused_sgd_(
                    flat, gradient, self.kept, weight_decay=0.0, momentum=MOMENTUM, lr=rate, dampening=0.0,
                    nesterov=False, maximize=False, is_first_step=False,
                )  # fmt: skip
            case "adam":
                count, size = self.kept[-1], len(flat)
                count.add_(1)
                torch._fused_adam_(
                    flat, gradient, self.kept[:size], self.kept[size:-1], [], [count] * size, lr=rate, beta1=BETA1,
                    beta2=BETA2, weight_decay=0.0, eps=EPSILON, amsgrad=False, maximize=False,
                )  # fmt: skip


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
            torch.autograd.grad(self.loss(X, y), self.leaves)


class Compiled(_Torch):
    """Gather, forward, backward and update in one compiled function: its guards are checked once a step."""

    settings = "torch.compile of the whole step (gather, forward, backward, update), fullgraph, static shapes"
    mode: str | None = None

    def __init__(self, problem: Problem, device: str) -> None:
        super().__init__(problem, device)
        activation, criterion = _FUNCTIONS[problem.activation], _criterion(problem.output)

        def loss_of(flat: list[Any], X: Any, y: Any) -> Any:
            for W, b in zip(flat[:-2:2], flat[1:-2:2], strict=True):
                X = activation(torch.nn.functional.linear(X, W, b))
            return criterion(torch.nn.functional.linear(X, *flat[-2:]), y)

        def step(flat: list[Any], kept: list[Any], X: Any, y: Any, rows: Any) -> Any:
            if rows is not None:
                X, y = X[rows], y[rows]
            gradient, loss = torch.func.grad_and_value(loss_of)(flat, X, y)
            _update(problem.optimizer, problem.learning_rate, flat, gradient, kept)
            return loss

        self.compiled = _compiled(step, self.mode)

    def compile(self) -> None:
        flat, kept = ([part.clone() for part in parts] for parts in (self.flat, self.kept))
        first, *_, last = self.batches(1) * 2
        for rows in (first, last):
            self.compiled(flat, kept, self.X, self.y, rows)

    def step(self, rows: Any) -> None:
        self.compiled(self.flat, self.kept, self.X, self.y, rows)


def _update(optimizer: str, rate: float, flat: list[Any], gradient: Any, kept: list[Any]) -> None:
    """Update in place, operation by operation: the compiler makes one loop over each parameter of it."""
    size = len(flat)
    match optimizer:
        case "sgd":
            for part, slope in zip(flat, gradient, strict=True):
                part.sub_(slope, alpha=rate)
        case "momentum":
            for part, slope, velocity in zip(flat, gradient, kept, strict=True):
                velocity.mul_(MOMENTUM).add_(slope)
                part.sub_(velocity, alpha=rate)
        case "adam":
            kept[-1].add_(1)
            t = kept[-1].to(flat[0].dtype)
            # 1 - beta**t loses digits in float32 for small t
            of_mean, of_square = -torch.expm1(t * math.log(BETA1)), -torch.expm1(t * math.log(BETA2))
            for part, slope, mean, square in zip(flat, gradient, kept[:size], kept[size:-1], strict=True):
                mean.mul_(BETA1).add_(slope, alpha=1 - BETA1)
                square.mul_(BETA2).addcmul_(slope, slope, value=1 - BETA2)
                part.sub_(rate / of_mean * mean / ((square / of_square).sqrt() + EPSILON))


class Captured(Compiled):
    """The compiled step with tuned kernels, a whole epoch of it captured in one CUDA graph and replayed."""

    settings = "torch.compile(mode=max-autotune-no-cudagraphs) of the whole step, each epoch one CUDA graph replay"
    mode = "max-autotune-no-cudagraphs"

    def __init__(self, problem: Problem, device: str, precision: str) -> None:
        super().__init__(problem, device)
        self.precision = precision
        if precision != "float32":
            self.tolerance = TOLERANCE[precision]
        self.settings = f"{self.settings}, {precision} products"
        self.order = torch.arange(len(self.X), device=device)
        self.graph = torch.cuda.CUDAGraph()

    def compile(self) -> None:
        self.set_precision()
        state = [*self.flat, *self.kept]
        start = [part.clone() for part in state]
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
        for part, first in zip(state, start, strict=True):
            part.copy_(first)
        torch.cuda.synchronize()

    def run_epoch(self) -> None:
        if self.problem.batch_size is not None:
            self.order.copy_(torch.from_numpy(self.problem.order(self.epoch)))
        self.graph.replay()
