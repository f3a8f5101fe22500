"""The executors: where shards run, and who adds them up.

A shard is a block of rows. A gradient over many rows is the sum of the gradients over its shards, in a fixed order, so
that neither the number of threads nor their timing shows in the result.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np

from ..checks import check_count
from ..devices import Array
from ..kernels.cpu.blas import blas_threads
from ..kernels.cpu.numpy_ import NumpyKernels
from ..mlp import MLP
from ..model import backward, forward, grad_sum
from ..params import GradSum
from ..rows.batches import Shard
from ..rows.plan import Plan

__all__ = ["BackgroundExecutor", "Executor", "SerialExecutor", "Shard", "ThreadExecutor", "make_executor"]

_GROUPS = 16  # shards are added up in so many groups; more would cost memory, fewer keep threads waiting
_PAUSE = 4.0, 256.0  # updates on one thread, at least and at most, after threads had to wait for a core


class SerialExecutor:
    """Adds up shards one after another, for any array library, with that library's own threads.

    Parameters
    ----------
    model : MLP
    """

    descends = False

    def __init__(self, model: MLP) -> None:
        self.model = model

    def __enter__(self) -> None:
        """Begin an epoch."""

    def __exit__(self, *error: object) -> None:
        """End an epoch."""

    def grad_sum(self, theta: Array, shards: Sequence[Shard]) -> GradSum:
        """Return the sums over all rows of the shards at the parameters `theta` (P,)."""
        model, xp = self.model, self.model.device.xp
        params = model.layout.split(theta, xp)
        into = model.layout.split(model.device.zeros((model.layout.size,), model.dtype), xp)
        loss = 0
        for X, y in shards:
            part, _ = grad_sum(model.network, model.kernels, params, X, y, into)
            loss = part + loss
        return GradSum(loss, sum(shard.X.shape[0] for shard in shards), model.layout.join(into, xp))

    def close(self) -> None:
        """Nothing to give back."""


class ThreadExecutor:
    """Runs shards on threads, each with one BLAS thread of its own; for NumPy, which lets go of the interpreter lock.

    Shards are dealt into fixed groups, a group adds up its own in order, and the groups are added in order. A thread
    that is free takes the next group, so a slow core delays nobody, and the result has the same bits for any number
    of threads. With a single shard, a mini-batch, the threads share its products instead.

    Parameters
    ----------
    model : MLP
    threads : int
    shards : int
        The most shards that :meth:`grad_sum` will be given.
    """

    def __init__(self, model: MLP, threads: int, shards: int) -> None:
        self.model = model
        self.groups = min(_GROUPS, shards)
        self.sums = [np.zeros(model.layout.size, model.dtype) for _ in range(self.groups)]
        self.blas = blas_threads()
        self.pace = _Pace(min(threads, available_cores()))
        self.kernels = NumpyKernels(model.dtype, self.pace.threads if self.groups == 1 else None)
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="mlp_xp")
        self.stepped: tuple[Any, Any] = (None, None)
        self.descends = self.groups == 1

    def __enter__(self) -> None:
        """Begin an epoch: BLAS keeps to one thread for each of ours."""
        self.limit = self.blas.limit(limits=1)

    def __exit__(self, *error: object) -> None:
        """End an epoch: BLAS gets back the threads it had."""
        self.limit.restore_original_limits()

    def grad_sum(self, theta: Array, shards: Sequence[Shard]) -> GradSum:
        """Return the sums over all rows of the shards; `grad` is this executor's until its next call."""
        params = self.model.layout.split(theta)

        def add_up(group: int) -> Array:
            self.sums[group].fill(0)
            into = self.model.layout.split(self.sums[group])
            loss = self.sums[group].dtype.type(0)
            for X, y in shards[group :: self.groups]:
                loss += grad_sum(self.model.network, self.kernels, params, X, y, into)[0]
            return loss

        if self.groups == 1:
            start = perf_counter()
            losses = [add_up(0)]
            self.kernels.product_threads = self.pace.threads_after(perf_counter() - start)
        else:
            losses = list(self.pool.map(add_up, range(self.groups)))
        grad = self.sums[0]
        for other in self.sums[1:]:
            grad += other
        return GradSum(sum(losses[1:], losses[0]), sum(shard.X.shape[0] for shard in shards), grad)

    def descend(self, theta: Array, shard: Shard, rate: float) -> tuple[Array, int]:
        """Do theta -= rate grad for the mean loss over a shard; return the sum of its losses, and its rows.

        The backward pass adds gradients to what it is given. Given the parameters themselves, and an error at the
        output that is scaled by -rate / n, it takes the step on its way: no gradient is stored, none is read again.
        """
        start = perf_counter()
        if theta is not self.stepped[0]:
            self.stepped = theta, self.model.layout.split(theta)
        net, k, params, (X, y) = self.model.network, self.kernels, self.stepped[1], shard
        A = forward(net, k, params, X)
        losses, dA = k.loss(net.loss, A[-1], y)
        dA *= -rate / len(y)
        backward(net, k, params, A, dA, into=params)
        k.product_threads = self.pace.threads_after(perf_counter() - start)
        return k.sum(losses), len(y)

    def close(self) -> None:
        """Stop the threads."""
        self.pool.shutdown()


class _Pace:
    """How many threads the products of a mini-batch share: all, or for a while one, after they waited for a core.

    Threads of one product end together. Where another program holds a core, all wait for the one that shares it, some
    ten times as long as the product takes; a single thread then loses little. The while doubles each time that they
    have to wait again, and shrinks as they do not. The result has the same bits.
    """

    def __init__(self, threads: int) -> None:
        self.threads, self.best, self.alone, self.pause = threads, math.inf, 0, _PAUSE[0]

    def threads_after(self, seconds: float) -> int:
        """Return the number for the next update, when the last one took so long."""
        self.best = min(self.best, seconds)
        shortest, longest = _PAUSE
        if self.alone:
            self.alone -= 1
        elif seconds > 3 * self.best:
            self.alone, self.pause = int(self.pause), min(2 * self.pause, longest)
        else:
            self.pause = max(0.97 * self.pause, shortest)
        return 1 if self.alone else self.threads


class BackgroundExecutor:
    """Adds up shards of X - background as if they were shards of X.

    W X + b is W (X - background) + (b + W background), and dZᵀ X is dZᵀ (X - background) + db backgroundᵀ.

    Parameters
    ----------
    executor : ThreadExecutor
    background : array (d,)
        In the plan's order of the columns.
    """

    descends = False

    def __init__(self, executor: ThreadExecutor, background: np.ndarray[Any, Any]) -> None:
        self.executor, self.background, self.layout = executor, background, executor.model.layout

    def __enter__(self) -> None:
        """Begin an epoch."""
        self.executor.__enter__()

    def __exit__(self, *error: object) -> None:
        """End an epoch."""
        self.executor.__exit__(*error)

    def grad_sum(self, theta: Array, shards: Sequence[Shard]) -> GradSum:
        """Return the sums over all rows; `grad` is the inner executor's until its next call."""
        theta = theta.copy()
        params = self.layout.split(theta)
        params.b[1][:] += params.W[1] @ self.background
        total = self.executor.grad_sum(theta, shards)
        dW, db = self.layout.split(total.grad)
        dW[1][:] += np.outer(db[1], self.background)
        return total

    def close(self) -> None:
        """Stop the threads."""
        self.executor.close()


Executor: TypeAlias = SerialExecutor | ThreadExecutor | BackgroundExecutor


def make_executor(model: MLP, plan: Plan, threads: int | None, shards: int) -> Executor:
    """Return the executor for up to so many shards at once; where `threads` is None it has one per core."""
    count = available_cores() if threads is None else check_count("threads", threads)
    if model.device.library != "cpu":
        return SerialExecutor(model)
    executor = ThreadExecutor(model, count, shards)
    if plan.background is None or plan.columns is None:
        return executor
    return BackgroundExecutor(executor, plan.background[plan.columns])


def available_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
