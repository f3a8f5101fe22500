"""The batches of an epoch: for each update, the shards whose gradients are added up for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..devices import Array, Device
from ..kernels.staircase import Cuts, Ragged
from .plan import Plan

__all__ = ["FullBatch", "MiniBatches", "Shard", "make_batches", "shuffled_rows"]


class Shard(NamedTuple):
    """A block of rows: X (m, k) with k at most n_0 columns, the missing ones all zero, and their targets y."""

    X: Array
    y: Array


def shuffled_rows(seed: int, epoch: int, n: int) -> np.ndarray[Any, Any]:
    """Return the order of n rows in an epoch of mini-batches: the same on every device."""
    return np.random.default_rng([seed, epoch]).permutation(n)


class FullBatch:
    """All rows for one update, cut into the shards of a plan: views of the data where it is dense, sorted copies else.

    Parameters
    ----------
    X : array (n, d)
    y : array (n, ...)
    plan : Plan
    rows : int
        Rows of a shard.
    """

    def __init__(self, X: Array, y: Array, plan: Plan, rows: int) -> None:
        self.updates = 1
        n = X.shape[0]
        starts = range(0, n, rows)
        if plan.columns is None or plan.extents is None:
            self.shards = [Shard(X[i : min(i + rows, n), :], y[i : min(i + rows, n), ...]) for i in starts]
            return
        widest_first = np.argsort(-plan.extents, kind="stable")
        self.shards = []
        for i in starts:
            index = widest_first[i : i + rows]
            width = max(1, int(plan.extents[index].max()))
            columns = plan.columns[:width]
            rows_of_X = X[index].take(columns, axis=1)
            if plan.background is not None:
                rows_of_X -= plan.background[columns]
            self.shards.append(Shard(rows_of_X, y[index]))

    def __call__(self, epoch: int) -> Iterator[list[Shard]]:
        """Yield the shards of the epoch's only update."""
        yield self.shards


class MiniBatches:
    """Rows in an order that depends on (seed, epoch) alone, so many for each update.

    Parameters
    ----------
    X : array (n, d)
    y : array (n, ...)
    device : Device
    seed : int
    batch_size : int
    """

    def __init__(self, X: Array, y: Array, device: Device, seed: int, batch_size: int) -> None:
        self.X, self.y, self.xp = X, y, device.xp
        self.device, self.seed, self.batch_size = device, seed, batch_size
        self.updates = -(-X.shape[0] // batch_size)

    def __call__(self, epoch: int) -> Iterator[list[Shard]]:
        """Yield one shard for each update of the epoch."""
        order = self.device.asarray(shuffled_rows(self.seed, epoch, self.X.shape[0]))
        y = self.xp.take(self.y, order, axis=0)
        n = order.shape[0]
        for i in range(0, n, self.batch_size):
            rows = slice(i, min(i + self.batch_size, n))
            yield [Shard(self.xp.take(self.X, order[rows], axis=0), y[rows, ...])]


class RaggedMiniBatches(MiniBatches):
    """The same batches, with the columns in a plan's order, and in each batch the rows that need most of them first.

    A batch is gathered into one buffer, and so lasts until the next.

    Parameters
    ----------
    X, y, device, seed, batch_size
        As for :class:`MiniBatches`.
    columns, extents : array (d,), array (n,)
        As in :class:`mlp_xp.rows.plan.Plan`.
    """

    def __init__(
        self, X: Array, y: Array, columns: Array, extents: Array, device: Device, seed: int, batch_size: int
    ) -> None:
        width = min(X.shape[1], _round_up(extents.max(), 16))
        super().__init__(X.take(columns[:width], axis=1), y, device, seed, batch_size)
        self.extents = extents.astype(np.int32)
        self.buffer = np.empty((batch_size, width), X.dtype)
        self.cuts = {n: Cuts.of(extents, n) for n in {batch_size, len(X) % batch_size} - {0}}

    def __call__(self, epoch: int) -> Iterator[list[Shard]]:
        """Yield one shard for each update of the epoch."""
        order = shuffled_rows(self.seed, epoch, len(self.X))
        whole = len(order) // self.batch_size * self.batch_size
        yield from self._batches(order[:whole].reshape(-1, self.batch_size))
        if whole < len(order):
            yield from self._batches(order[None, whole:])

    def _batches(self, rows: np.ndarray[Any, Any]) -> Iterator[list[Shard]]:
        """Yield one shard for each row of `rows` (count, n), which are numbers of rows."""
        n = rows.shape[1]
        cuts = self.cuts[n]
        widest_first = np.argsort(-self.extents[rows], axis=1, kind="stable")
        rows = np.take_along_axis(rows, widest_first, axis=1)
        extents, y = self.extents[rows], self.y[rows]
        widths = np.minimum(_round_up(extents[:, cuts.rows[:-1]], 16), self.X.shape[1])
        heights = np.stack([np.count_nonzero(extents > column, axis=1) for column in cuts.columns], axis=1)
        heights = np.minimum(_round_up(np.maximum(heights, 1), 8), n)
        for i, (width, height) in enumerate(zip(widths.tolist(), heights.tolist(), strict=True)):
            values = self.X.take(rows[i], axis=0, out=self.buffer[:n], mode="clip")
            yield [Shard(Ragged(values[:, : width[0]], cuts, width, height), y[i])]


def _round_up(values: Any, unit: int) -> Any:
    return -(-values // unit) * unit


def make_batches(
    X: Array, y: Array, plan: Plan, device: Device, seed: int, batch_size: int | None
) -> FullBatch | MiniBatches:
    """Return the batches of the epochs: all rows at once where `batch_size` is None."""
    if batch_size is None:
        return FullBatch(X, y, plan, device.shard_rows)
    if plan.columns is None or plan.extents is None:
        return MiniBatches(X, y, device, seed, batch_size)
    return RaggedMiniBatches(X, y, plan.columns, plan.extents, device, seed, batch_size)
