"""The batches of an epoch: for each update, the shards whose gradients are added up for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..devices import Array, Device
from ..dropout import Samples
from ..kernels.staircase import Cuts, Ragged
from .plan import Plan
from .source import Rows
from .stored import StoredRows, come_in_blocks
from .weights import Weighted

__all__ = [
    "Batches",
    "FullBatch",
    "MiniBatches",
    "RaggedMiniBatches",
    "Shard",
    "StoredShard",
    "shards_as_stored",
    "shards_by_need",
    "shuffled_rows",
]

_GATHERED = 2**14  # numbers, at most, of batches that are gathered together: small ones would cost a call each


class Shard(NamedTuple):
    """A block of rows: X (m, k) with k at most n_0 columns, the missing ones all zero, and their targets y.

    Attributes
    ----------
    X, y : array
    samples : Samples
        Which rows of the data they are, on the host.
    """

    X: Array
    y: Array | Weighted
    samples: Samples

    @property
    def rows(self) -> int:
        """How many there are."""
        return int(self.X.shape[0])


class StoredShard:
    """A shard of rows in a file: as if it were a :class:`Shard`, but they are read whenever it is taken apart.

    Parameters
    ----------
    source : StoredRows
    start, stop : int
    y : array (stop - start, ...), or Weighted
    device : Device
        Where the rows are taken to.
    """

    def __init__(self, source: StoredRows, start: int, stop: int, y: Array | Weighted, device: Device) -> None:
        self._source, self._start, self._stop, self.y, self._device = source, start, stop, y, device
        self.rows, self.samples = stop - start, range(start, stop)

    def __iter__(self) -> Iterator[Any]:
        yield self._device.asarray(self._source.block(self._start, self._stop))
        yield self.y
        yield self.samples


def shuffled_rows(seed: int, epoch: int, n: int) -> np.ndarray[Any, Any]:
    """Return the order of n rows in an epoch of mini-batches: the same on every device."""
    return np.random.default_rng([seed, epoch]).permutation(n)


class FullBatch:
    """All rows for one update: the same shards in every epoch.

    Parameters
    ----------
    shards : list of Shard
    """

    updates = 1

    def __init__(self, shards: list[Shard]) -> None:
        self.shards = shards

    def __call__(self, epoch: int) -> Iterator[list[Shard]]:
        """Yield the shards of the epoch's only update."""
        yield self.shards


def shards_as_stored(rows: Rows, y: Array | Weighted, shard_rows: int, device: Device) -> list[Shard]:
    """Cut rows and their targets (n, ...) into shards of so many rows: views, if the library has views.

    Rows in a file are read, and taken to the device, whenever a shard of them is used.
    """
    n = rows.shape[0]
    cuts = [(i, min(i + shard_rows, n)) for i in range(0, n, shard_rows)]
    if isinstance(rows, StoredRows):
        return [StoredShard(rows, i, j, y[i:j, ...], device) for i, j in cuts]  # type: ignore[misc]
    return [Shard(rows.block(i, j), y[i:j, ...], range(i, j)) for i, j in cuts]


def shards_by_need(rows: Rows, y: Array | Weighted, plan: Plan, shard_rows: int) -> list[Shard]:
    """Copy rows of the host, and their targets (n, ...), to shards of rows that need about as many columns.

    Each is as wide as its neediest row; the plan must have columns.
    """
    columns, extents = plan.order
    widest_first = np.argsort(-extents, kind="stable")
    shards = []
    for i in range(0, len(widest_first), shard_rows):
        index = widest_first[i : i + shard_rows]
        stored = columns[: max(1, int(extents[index].max()))]
        X = rows.take(index).take(stored, axis=1)
        if plan.background is not None:
            X -= plan.background[stored]
        shards.append(Shard(X, y[index], index))
    return shards


class MiniBatches:
    """Rows in an order of their own in each epoch, so many for each update.

    Parameters
    ----------
    rows : Rows
        Where the device computes, or in a file.
    y : array (n, ...), or Weighted
    device : Device
    order : callable
        ``order(epoch)`` is the order of the rows (n,), an array of the host.
    batch_size : int
    """

    def __init__(
        self, rows: Rows, y: Array | Weighted, device: Device, order: Callable[[int], Array], batch_size: int
    ) -> None:
        self._rows, self._y, self._device, self._order, self._batch_size = rows, y, device, order, batch_size
        self.updates = -(-rows.shape[0] // batch_size)
        self._together = batch_size * max(1, _GATHERED // (batch_size * rows.shape[1]))

    def __call__(self, epoch: int) -> Iterator[list[Shard]]:
        """Yield one shard for each update of the epoch."""
        xp, first = self._device.xp, 0
        order = self._order(epoch)
        index = self._device.asarray(order)
        y = self._y.take(index, xp) if isinstance(self._y, Weighted) else xp.take(self._y, index, axis=0)
        for X in map(self._device.asarray, self._in_order(index if self._rows.home else order)):
            for i in range(0, X.shape[0], self._batch_size):
                stop = min(i + self._batch_size, X.shape[0])
                place = slice(first + i, first + stop)
                yield [Shard(X[i:stop, :], y[place, ...], order[place])]
            first += X.shape[0]

    def _in_order(self, order: Array) -> Iterator[Array]:
        """Return the rows in this order, whole batches of them at a time."""
        if come_in_blocks(self._rows):
            return self._rows.in_order(order, 0, self._batch_size)
        n, together = self._rows.shape[0], self._together
        return (self._rows.take(order[i : min(i + together, n)]) for i in range(0, n, together))


class RaggedMiniBatches:
    """The same batches, with the columns in a plan's order, and in each batch the rows that need most of them first.

    A batch is gathered into one buffer, and so lasts until the next.

    Parameters
    ----------
    rows, y, order, batch_size
        As for :class:`MiniBatches`, on the host.
    plan : Plan
        One that has columns.
    """

    def __init__(
        self, rows: Rows, y: Array | Weighted, plan: Plan, order: Callable[[int], Array], batch_size: int
    ) -> None:
        (n, d), (columns, extents) = rows.shape, plan.order
        width = min(d, _round_up(extents.max(), 16))
        self._X = rows.block(0, n).take(columns[:width], axis=1)
        self._y, self._order, self._batch_size = y, order, batch_size
        self.updates = -(-n // batch_size)
        self._extents = extents.astype(np.int32)
        self._buffer = np.empty((batch_size, width), rows.dtype)
        self._cuts = {size: Cuts.of(extents, size) for size in {batch_size, n % batch_size} - {0}}

    def __call__(self, epoch: int) -> Iterator[list[Shard]]:
        """Yield one shard for each update of the epoch."""
        order = self._order(epoch)
        whole = len(order) // self._batch_size * self._batch_size
        yield from self._batches(order[:whole].reshape(-1, self._batch_size))
        if whole < len(order):
            yield from self._batches(order[None, whole:])

    def _batches(self, index: np.ndarray[Any, Any]) -> Iterator[list[Shard]]:
        """Yield one shard for each row of `index` (count, n), which are numbers of rows."""
        n = index.shape[1]
        cuts = self._cuts[n]
        widest_first = np.argsort(-self._extents[index], axis=1, kind="stable")
        index = np.take_along_axis(index, widest_first, axis=1)
        extents, y = self._extents[index], self._y[index]
        widths = np.minimum(_round_up(extents[:, cuts.rows[:-1]], 16), self._X.shape[1])
        heights = np.stack([np.count_nonzero(extents > column, axis=1) for column in cuts.columns], axis=1)
        heights = np.minimum(_round_up(np.maximum(heights, 1), 8), n)
        for i, (width, height) in enumerate(zip(widths.tolist(), heights.tolist(), strict=True)):
            values = self._X.take(index[i], axis=0, out=self._buffer[:n], mode="clip")
            yield [Shard(Ragged(values[:, : width[0]], cuts, width, height), y[i], index[i])]


Batches: TypeAlias = FullBatch | MiniBatches | RaggedMiniBatches


def _round_up(values: Any, unit: int) -> Any:
    return -(-values // unit) * unit
