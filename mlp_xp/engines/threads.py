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
from ..model import backward, forward
from ..params import GradSum, Parameters
from ..rows.background import add_background, remove_background
from ..rows.batches import Batches, FullBatch, RaggedMiniBatches, Shard, shards_by_need
from .base import Setup
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
        self._sums = [np.zeros(self.layout.size, self.model.dtype) for _ in range(self.groups)]
        workers = min(setup.threads, self.groups)
        self._pool = ThreadPoolExecutor(workers, "mlp_xp", limit_this_thread) if workers > 1 else None
        plain = self.optimizer.plain and not self.objective.penalizes and not self._weighted
        self._steps_backward = self.groups == 1 and plain
        self._views_of: tuple[Any, Parameters] = (None, Parameters([], []))
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

    def _update(self, shards: Sequence[Shard], last: bool) -> tuple[Any, int]:
        if not self._steps_backward or last:  # the last update of an epoch keeps its gradient, to be looked at
            return super()._update(shards, last)
        return self._step_backward(shards[0])

    def _step_backward(self, shard: Shard) -> tuple[Any, int]:
        """Do theta -= lr g for the mean loss over a shard; return the sum of its losses, and its rows.

        The backward pass adds gradients to what it is given. Given the parameters themselves, and an error at the
        output that is scaled by -lr / n, it takes the step on its way: no gradient is stored, none is read again.
        """
        start = perf_counter()
        k, params, (X, y) = self.kernels, self._views(self._theta), shard
        A = forward(self.network, k, params, X)
        losses, dA = self.network.objective.losses(k, A[-1], y)
        dA *= -self._lr / X.shape[0]
        backward(self.network, k, params, A, dA, into=params)
        k.product_threads = self._pace.threads_after(perf_counter() - start)
        return k.sum(losses), X.shape[0]

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
        params = self.layout.split(theta)

        def add_up(group: int) -> GradSum:
            own = self._sums[group]
            own.fill(0)
            return GradSum(*self._add_to(self.layout.split(own), params, shards[group :: self.groups]), own)

        run = map if self._pool is None else self._pool.map
        total = self.reducer.reduce(run(add_up, range(self.groups)))
        if self._background is not None:
            add_background(total.grad, self.layout, self._background)
        if self.groups == 1:
            self.kernels.product_threads = self._pace.threads_after(perf_counter() - start)
        return total


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
