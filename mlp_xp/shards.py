"""The plan: how rows and columns are cut and stored. The executors: where shards run, and who adds them up.

A shard is a block of rows. A gradient over many rows is the sum of the gradients over its shards, in a fixed order, so
that neither the number of threads nor their timing shows in the result.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController

from .arrays import Array
from .kernels.numpy_ import NumpyKernels
from .mlp import MLP
from .model import grad_sum
from .params import GradSum
from .validation import check_choice, check_count

__all__ = ["PLANS", "Plan", "SerialExecutor", "Shard", "ThreadExecutor", "make_executor", "make_plan"]

PLANS = ("auto", "dense", "zero", "ragged")
_SAMPLE = 8192  # rows from which the order of the columns is decided
_GROUPS = 16  # shards are added up in so many groups; more would cost memory, fewer keep threads waiting


class Shard(NamedTuple):
    """A block of rows: X (m, k) with k at most n_0 columns, the missing ones all zero, and their targets y."""

    X: Array
    y: Array


@dataclass(frozen=True)
class Plan:
    """How the rows and columns of a data set are stored; the sums over them stay what they were.

    Attributes
    ----------
    kind : {"dense", "zero", "ragged"}
        ``dense``: as given. ``zero``: columns that are zero in all rows come last and are left out. ``ragged``: columns
        that few rows use come last, and each shard of rows with similar needs is stored up to the last one it uses.
    reason : str
        Why this kind was chosen, in words.
    columns : array (d,), optional
        The order of the columns; None where they stay as they are.
    extents : array (n,), optional
        How many columns of that order each row needs.
    mean_columns : float
        Columns that take part in the products, averaged over rows.
    """

    kind: str
    reason: str
    mean_columns: float
    columns: np.ndarray[Any, Any] | None = None
    extents: np.ndarray[Any, Any] | None = None

    def inward(self, theta: Array, model: MLP) -> Array:
        """Return a copy of a vector of parameters (P,) with the first layer's inputs in the order of the plan."""
        return self._reorder(theta, model, self.columns)

    def outward(self, theta: Array, model: MLP) -> Array:
        """Return a copy of a vector of parameters (P,) in the order of the data: the inverse of :meth:`inward`."""
        return self._reorder(theta, model, None if self.columns is None else np.argsort(self.columns))

    def _reorder(self, theta: Array, model: MLP, columns: np.ndarray[Any, Any] | None) -> Array:
        xp = model.device.xp
        if columns is None:
            return xp.asarray(theta, copy=True)
        block, (d, h) = model.layout.blocks[0], model.sizes[:2]
        rows = model.device.asarray(np.concatenate([[0], 1 + columns]))
        first = xp.take(xp.reshape(theta[block], (1 + d, h)), rows, axis=0)
        return xp.concat([xp.reshape(first, (-1,)), theta[block.stop :]])


def make_plan(
    X: Array, model: MLP, kind: str = "auto", epochs: int | None = None, batch_size: int | None = None
) -> Plan:
    """Look at the data once and choose how to store it.

    Parameters
    ----------
    X : array (n, d)
    model : MLP
    kind : {"auto", "dense", "zero", "ragged"}
        ``"auto"`` takes the ragged plan where it leaves out enough products by zero to be repaid within `epochs`.
    epochs : int, optional
        How often the data will be passed over; None for often.
    batch_size : int, optional
        Rows that meet at random in a mini-batch; None for shards of sorted rows.

    Raises
    ------
    ValueError
        If the kind is unknown, or needs the data on the host and they are elsewhere.
    """
    check_choice("plan", kind, PLANS)
    d = X.shape[1]
    if kind == "dense":
        return Plan("dense", "asked for", d)
    if not isinstance(X, np.ndarray) or model.device.library != "cpu":
        if kind == "auto":
            return Plan("dense", f"device {model.device.name!r} takes the data as they are", d)
        raise ValueError(f"plan {kind!r} needs data and model on device 'cpu'; use plan='auto' or 'dense'")
    if kind == "auto" and epochs is not None and epochs < 8:
        return Plan("dense", f"{epochs} epochs do not repay the sorting", d)
    if kind == "zero":
        used = X.any(axis=0)
        columns = np.argsort(~used, kind="stable")
        return Plan("zero", "asked for", int(used.sum()), columns, np.full(len(X), int(used.sum())))
    sample = X[:: max(1, X.shape[0] // _SAMPLE)]
    columns = _column_order(sample)
    if kind == "auto":
        expected = _mean_extent(
            np.sort(_extents(sample, columns))[::-1], max(1, model.device.shard_rows * len(sample) // len(X))
        )
        if expected > 0.85 * d:
            return Plan("dense", f"rows need {expected:.0f} of {d} columns in the mean, too many to sort for", d)
    extents = _extents(X, columns)
    mean = _mean_extent(np.sort(extents)[::-1], model.device.shard_rows)
    reason = "asked for" if kind == "ragged" else f"rows need {mean:.0f} of {d} columns in the mean"
    return Plan("ragged", reason, mean, columns, extents)


def _column_order(X: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Order the columns so that short prefixes hold whole rows: each time the one that fewest rows use goes last."""
    used = X != 0
    by_column = np.asfortranarray(used)
    users = used.sum(axis=0)
    open_rows = np.ones(len(X), dtype=bool)
    order = np.empty(X.shape[1], dtype=np.intp)
    for position in range(X.shape[1] - 1, -1, -1):
        column = order[position] = users.argmin()
        closed = np.flatnonzero(by_column[:, column] & open_rows)
        open_rows[closed] = False
        users -= used[closed].sum(axis=0)
        users[column] = len(X) + 1 << 1  # placed: never the fewest again
    return order


def _extents(X: np.ndarray[Any, Any], columns: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return for each row (n,) how many columns of this order reach its last one that is not zero."""
    extents = np.empty(len(X), dtype=np.intp)
    for i in range(0, len(X), 4096):
        used = X[i : i + 4096].take(columns[::-1], axis=1) != 0
        extents[i : i + 4096] = np.where(used.any(axis=1), X.shape[1] - used.argmax(axis=1), 0)
    return extents


def _mean_extent(descending: np.ndarray[Any, Any], rows: int) -> float:
    """Return the mean over rows of the widest extent in their shard."""
    widest = descending[::rows]
    counts = np.diff(np.append(np.arange(0, len(descending), rows), len(descending)))
    return float((widest * counts).sum() / len(descending))


class SerialExecutor:
    """Adds up shards one after another, for any array library, with that library's own threads.

    Parameters
    ----------
    model : MLP
    """

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
        self.blas = ThreadpoolController().select(user_api="blas")
        self.kernels = NumpyKernels(model.dtype, threads if self.groups == 1 else None)
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="mlp_xp")

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

        groups = range(self.groups)
        losses = [add_up(0)] if self.groups == 1 else list(self.pool.map(add_up, groups))
        grad = self.sums[0]
        for other in self.sums[1:]:
            grad += other
        return GradSum(sum(losses[1:], losses[0]), sum(len(shard.X) for shard in shards), grad)

    def close(self) -> None:
        """Stop the threads."""
        self.pool.shutdown()


def make_executor(model: MLP, threads: int | None, shards: int) -> SerialExecutor | ThreadExecutor:
    """Return the executor for up to so many shards at once; where `threads` is None it has one per core."""
    count = available_cores() if threads is None else check_count("threads", threads)
    return ThreadExecutor(model, count, shards) if model.device.library == "cpu" else SerialExecutor(model)


def available_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
