"""The batches of an epoch: for each update, the shards whose gradients are added up for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .arrays import Array, Device
from .shards import Plan, Shard

__all__ = ["FullBatch", "MiniBatches", "make_batches"]


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
            self.shards.append(Shard(X[index].take(plan.columns[:width], axis=1), y[index]))

    def __call__(self, epoch: int) -> Iterator[list[Shard]]:
        """Yield the shards of the epoch's only update."""
        yield self.shards


class MiniBatches:
    """Rows in an order that depends on (seed, epoch) alone, so many for each update.

    Parameters
    ----------
    X : array (n, d)
    y : array (n, ...)
    plan : Plan
    device : Device
    seed : int
    batch_size : int
    """

    def __init__(self, X: Array, y: Array, plan: Plan, device: Device, seed: int, batch_size: int) -> None:
        self.X, self.y, self.xp = X, y, device.xp
        self.device, self.seed, self.batch_size = device, seed, batch_size
        self.extents = plan.extents
        if plan.columns is not None and plan.extents is not None:
            self.X = X.take(plan.columns[: plan.extents.max()], axis=1)

    def __call__(self, epoch: int) -> Iterator[list[Shard]]:
        """Yield one shard for each update of the epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.X.shape[0])
        for i in range(0, len(order), self.batch_size):
            yield [self._gather(order[i : i + self.batch_size])]

    def _gather(self, rows: np.ndarray[Any, Any]) -> Shard:
        index = self.device.asarray(rows)
        X, y = self.xp.take(self.X, index, axis=0), self.xp.take(self.y, index, axis=0)
        return Shard(X if self.extents is None else X[:, : self.extents[rows].max()], y)


def make_batches(
    X: Array, y: Array, plan: Plan, device: Device, seed: int, batch_size: int | None
) -> FullBatch | MiniBatches:
    """Return the batches of the epochs: all rows at once where `batch_size` is None."""
    if batch_size is None:
        return FullBatch(X, y, plan, device.shard_rows)
    return MiniBatches(X, y, plan, device, seed, batch_size)
