"""The optimizers' updates on a GPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...devices import Array
from ...kernels.cuda.operations import CudaKernels
from ...kernels.cuda.sources import THREADS, Kernel, grid_for
from ...optim import SGD, Adam, OptimizerState
from ..base import Setup

__all__ = ["FusedUpdate", "Ranges", "RuleUpdate", "make_update"]


class Ranges(NamedTuple):
    """Where the sums are that an update begins with.

    Attributes
    ----------
    table : array of bytes
        A table of :data:`~mlp_xp.kernels.cuda.sources.RANGE`.
    shards : int
        The most parts that a range of gradients is in.
    rows : int
        Rows that they are sums over.
    """

    table: Array
    shards: int
    rows: int


class FusedUpdate:
    """The update of SGD, Adam or AdamW as one launch, equal to its :meth:`Optimizer.update` up to rounding.

    It adds up the shards' gradients on its way. Learning rates and the number of the step are read from the device's
    memory, so a CUDA graph can replay it. It is bound by memory: each of its vectors is read and written once.

    Parameters
    ----------
    kernels : CudaKernels
    setup : Setup
    theta : array (P,)
        The parameters, updated in place.
    step : array of int32
        Its first entry is the number of updates before this one.

    Attributes
    ----------
    gradient : array (P,)
        That of the last update's mean loss, with the penalty's.
    state : dict
        The optimizer's, see :meth:`Optimizer.init`; `step` counts the updates in place of a number in it.
    """

    captures = True

    def __init__(self, kernels: CudaKernels, setup: Setup, theta: Array, step: Array) -> None:
        self.kernels, self.optimizer, self.objective = kernels, setup.optimizer, setup.objective
        self.theta, self.step = theta, step
        xp = kernels.xp
        self.state: OptimizerState = self.optimizer.init(theta)
        self.gradient = xp.zeros(theta.shape, dtype=kernels.dtype)
        self._rates = xp.zeros(2, dtype=kernels.dtype)
        self._lr: float | None = None

    def begin(self, epoch: int, lr: float) -> None:
        """Set the learning rate of an epoch."""
        if lr != self._lr:
            own = self.optimizer.lr_bias
            bias = lr if own is None else lr * own / self.optimizer.base_lr
            self._rates.set(np.asarray([lr, bias], self.kernels.dtype))
            self._lr = lr

    def state_after(self, updates: int) -> OptimizerState:
        """Return the state after so many updates."""
        return {**self.state, "updates": updates} if "updates" in self.state else self.state

    def __call__(self, ranges: Ranges) -> None:
        """Update with the mean of the gradients that the ranges sum up."""
        optimizer, real = self.optimizer, self.kernels.dtype
        if isinstance(optimizer, Adam):
            own = (optimizer.weight_decay, 1 - optimizer.beta1, 1 - optimizer.beta2, optimizer.epsilon)
            mean, square = self.state["mean"], self.state["square"]
            self._launch("adam", ranges, (mean, square), (self.step,), tuple(map(real, own)))
        elif isinstance(optimizer, SGD):
            momentum, nesterov = real(optimizer.momentum), np.int32(optimizer.nesterov)
            self._launch("sgd", ranges, (self.state.get("velocity"),), (), (momentum, nesterov))

    def _launch(self, name: str, ranges: Ranges, state: Any, step: Any, own: Any) -> None:
        real, size = self.kernels.dtype, self.theta.size
        block = (32, THREADS // 32) if ranges.shards > THREADS // 32 else (THREADS, 1)
        self.kernels.launch(
            Kernel("optimizers", name, block=block), grid_for(size, block[0], size),
            self.theta, *state, self.gradient, ranges.table, self._rates, *step,
            np.int32(size), real(1 / ranges.rows), real(self.objective.l2_of(ranges.rows)), *own,
        )  # fmt: skip


class RuleUpdate(FusedUpdate):
    """The update of any optimizer, by its own rule on the device's arrays: slower, and not for a CUDA graph.

    The gradient is put together by a step of plain gradient descent whose learning rate is zero.

    Parameters
    ----------
    kernels, setup, theta, step
        As for :class:`FusedUpdate`.
    """

    captures = False

    def __init__(self, kernels: CudaKernels, setup: Setup, theta: Array, step: Array) -> None:
        super().__init__(kernels, setup, theta, step)
        model = setup.model
        self._is_bias = model.device.asarray(model.layout.is_bias().astype(model.dtype))

    def begin(self, epoch: int, lr: float) -> None:
        """Set the learning rates of an epoch."""
        self._rule_rates = self.optimizer.rates(epoch, self._is_bias)

    def state_after(self, updates: int) -> OptimizerState:
        """Return the state, whatever the rule counts in it."""
        return self.state

    def __call__(self, ranges: Ranges) -> None:
        """Update with the mean of the gradients that the ranges sum up."""
        zero = self.kernels.dtype(0)
        self._launch("sgd", ranges, (None,), (), (zero, np.int32(False)))
        theta, self.state = self.optimizer.update(self.theta, self.gradient, self.state, self._rule_rates)
        if theta is not self.theta:
            self.theta[...] = theta


def make_update(kernels: CudaKernels, setup: Setup, theta: Array, step: Array) -> FusedUpdate:
    """Return the update of an optimizer: fused, if its rule is one that the kernels know."""
    known = type(setup.optimizer).update in (SGD.update, Adam.update)
    return (FusedUpdate if known else RuleUpdate)(kernels, setup, theta, step)
