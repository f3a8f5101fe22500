"""The engine for NumPy: shards on threads, each with one BLAS thread of its own.

NumPy lets go of the interpreter lock in its loops, and BLAS does in its products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

import numpy as np

from ..devices.blas_threads import limit_this_thread
from ..kernels.cpu.numpy_ import NumpyKernels
from ..kernels.cpu.updates import AdamUpdate, DescentUpdate
from ..optim import SGD, Adam, Optimizer
from ..params import GradSum, Parameters
from ..rows.background import add_background, remove_background
from ..rows.batches import Batches, FullBatch, RaggedMiniBatches, Shard, shards_by_need
from .base import Done, Setup
from .host import HostEngine

__all__ = ["ThreadEngine"]

_PAUSE = 4.0, 256.0  # updates on one thread, at least and at most, after threads had to wait for a core

_Vector = np.ndarray[Any, Any]


class ThreadEngine(HostEngine):
    """Runs groups of shards on threads; for a mini-batch, a single shard, the threads share its products instead.

    A thread that is free takes the next group, so a slow core delays nobody, and the result has the same bits for any
    number of threads. One thread is the caller's own.

    Parameters
    ----------
    setup : Setup
    """

    kernels: NumpyKernels

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._own = np.empty(self.layout.size, self.model.dtype)
        self._sums = {group: np.zeros(self.layout.size, self.model.dtype) for group in self.reducer.own}
        self._parts = {group: self.layout.split(own) for group, own in self._sums.items()}
        workers = min(setup.threads, len(self._sums))
        self._pool = ThreadPoolExecutor(workers, "mlp_xp", limit_this_thread) if workers > 1 else None
        plain = self.optimizer.plain and not self.objective.penalizes and not self._weighted
        self._steps_backward = self.groups == 1 and plain
        self._views_of: tuple[Any, Parameters] = (None, Parameters([], []))
        self._in_place = _in_place(self.optimizer, self.layout.size, self.model.dtype)
        columns, background = self.plan.columns, self.plan.background
        self._background = None if columns is None or background is None else background[columns]

    def _make_batches(self, setup: Setup) -> Batches:
        plan, y = setup.plan, setup.targets.on(self.device)
        if plan.columns is None:
            return super()._make_batches(setup)
        if setup.batch_size is None:
            return FullBatch(shards_by_need(setup.rows, y, plan, self.device.shard_rows))
        return RaggedMiniBatches(setup.rows, y, plan, setup.row_order, setup.batch_size)

    def _make_kernels(self, setup: Setup) -> NumpyKernels:
        self._pace = Pace(setup.threads)
        return NumpyKernels(self.model.dtype, self._pace.threads if self.groups == 1 else None)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self._pool is not None:
            self._pool.shutdown()

    def begin(self, theta: _Vector, epoch: int, lr: float, done: Done) -> None:
        super().begin(theta, epoch, lr, done)
        np.copyto(self._own, self._theta)  # which stays where it is, and so do views of it
        self._theta = self._own

    def _update(self, shards: Sequence[Shard], last: bool) -> tuple[Any, int]:
        if not self._steps_backward or last:  # the last update of an epoch keeps its gradient, to be looked at
            return super()._update(shards, last)
        # the backward pass takes the step on its way: no gradient is stored, none is read again
        rows = shards[0].rows
        return self._pass(shards[0], -self._lr / rows, self._views(self._theta)), rows

    def _mean_gradient(self, shards: Sequence[Shard], count: Any) -> tuple[Any, int, _Vector]:
        if self.groups > 1 or self._background is not None:
            return super()._mean_gradient(shards, count)
        (shard,), gradient = shards, self._sums[0]
        gradient.fill(0)
        return self._pass(shard, 1 / count, self._parts[0]), shard.rows, gradient

    def _pass(self, shard: Shard, scale: float, into: Parameters) -> Any:
        """Return the sum () of a shard's losses; `scale` times its gradient is added to `into`."""
        start = perf_counter()
        loss = self._grad_sum_of(shard, into, self._views(self._theta), scale)
        self.kernels.product_threads = self._pace.threads_after(perf_counter() - start)
        return loss

    def _descend(self, gradient: _Vector) -> None:
        state = self._state
        match self._in_place:
            case AdamUpdate():
                state["updates"] += 1
                self._in_place(self._theta, gradient, state["mean"], state["square"], state["updates"], self._rates)
            case DescentUpdate():
                self._in_place(self._theta, gradient, state.get("velocity"), self._rates)
            case None:
                super()._descend(gradient)

    def _views(self, theta: _Vector) -> Parameters:
        """Return the weights and biases of parameters that are the same array in most updates."""
        if theta is not self._views_of[0]:
            self._views_of = theta, self.layout.split(theta)
        return self._views_of[1]

    def _grad_sum(self, theta: _Vector, shards: Sequence[Shard]) -> GradSum:
        """Return the sums over the rows; `grad` is this engine's until the next call."""
        start = perf_counter()
        if self._background is not None:
            theta = remove_background(theta, self.layout, self._background)
        params = self._views(theta)

        def add_up(group: int) -> GradSum:
            own = self._sums[group]
            own.fill(0)
            return GradSum(*self._add_to(self._parts[group], params, shards[group :: self.groups]), own)

        run = map if self._pool is None else self._pool.map
        total = self.reducer.reduce(run(add_up, self.reducer.own))
        if self._background is not None:
            add_background(total.grad, self.layout, self._background)
        if self.groups == 1:
            self.kernels.product_threads = self._pace.threads_after(perf_counter() - start)
        return total


def _in_place(optimizer: Optimizer, size: int, dtype: str) -> AdamUpdate | DescentUpdate | None:
    """Return the update of an optimizer that writes into the parameters and the state, if its rule is known."""
    rule = type(optimizer).update
    if isinstance(optimizer, Adam) and rule is Adam.update:
        betas = optimizer.beta1, optimizer.beta2
        return AdamUpdate(size, dtype, *betas, optimizer.epsilon, optimizer.weight_decay)
    if isinstance(optimizer, SGD) and rule is SGD.update:
        return DescentUpdate(size, dtype, optimizer.momentum, optimizer.nesterov)
    return None


class Pace:
    """How many threads the products of a mini-batch share: all, or for a while one, after they waited for a core.

    The threads of a product end together. If another program holds a core, all wait for the one that shares it, some
    ten times as long as the product takes; a single thread then loses little. The while doubles each time that they
    have to wait again, and shrinks as they do not. The result has the same bits.
    """

    def __init__(self, threads: int) -> None:
        self.threads, self.best, self.alone, self.pause = threads, math.inf, 0, _PAUSE[0]

    def threads_after(self, seconds: float) -> int:
        """Return the number for the next update, given how long the last one took."""
        self.best = min(self.best, seconds)
        shortest, longest = _PAUSE
        if self.alone:
            self.alone -= 1
        elif seconds > 3 * self.best:
            self.alone, self.pause = int(self.pause), min(2 * self.pause, longest)
        else:
            self.pause = max(0.97 * self.pause, shortest)
        return 1 if self.alone else self.threads
