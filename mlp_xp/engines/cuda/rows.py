"""Where the rows of a data set are while a GPU trains on them, and how some of them become a shard.

There are three classes with one interface: for all rows at once, for mini-batches, and, in ``streamed.py``, for data
that do not fit on the device.

    begin(order, updates)   begin an epoch, without so many updates
    shards(rows)            yield (X, y) for the next update of the epoch, of so many rows
    end()                   forget the epoch
    samples()               yield a shard of each size that there will be, to find out what memory they take
    captures                whether an update always launches the same work, so that a CUDA graph can stand for it
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...devices import Array, Device
from ...kernels.cuda.operations import CudaKernels
from ...kernels.staircase import Blocks
from ...rows.source import Rows
from ..base import Setup
from .gather import Picked, Room, Shard, cut, entry, gather

__all__ = ["MiniBatch", "WholeBatch"]

_BOUNDARY = 32  # bytes: of four numbers, of whatever type
_UNIT = 16  # columns that widths are multiples of, so that rows of any dtype begin on a boundary


class WholeBatch:
    """All rows for each update, on the device, sorted and cut as the plan says.

    Parameters
    ----------
    kernels : CudaKernels
    setup : Setup
    shard_rows : int
    """

    captures = True

    def __init__(self, kernels: CudaKernels, setup: Setup, shard_rows: int) -> None:
        self._kernels, self._device, self._plan = kernels, setup.model.device, setup.plan
        self._entry = entry(kernels)
        self._room: list[Array] = []
        rows, y, extents = setup.rows, setup.targets.y, setup.plan.extents
        order = np.arange(rows.shape[0]) if extents is None else np.argsort(-extents, kind="stable")
        self._stored = []
        for i in range(0, len(order), shard_rows):
            index = order[i : i + shard_rows]
            self._stored.append((self._in_blocks(rows, index), self._device.asarray(y[index])))
        if len(self._stored) == 1:  # then the numbers can stay, and the bytes can go
            self._stored = [(list(self._convert(blocks)), y) for blocks, y in self._stored]

    def begin(self, order: np.ndarray[Any, Any] | None, updates: int) -> None:
        """Begin an epoch: nothing changes."""

    def shards(self, rows: int) -> Iterator[Shard]:
        """Yield all shards."""
        for blocks, y in self._stored:
            yield Blocks(tuple(self._convert(blocks))), y

    def end(self) -> None:
        """There is nothing to forget."""

    def samples(self) -> Iterator[Shard]:
        """Yield all shards."""
        return self.shards(0)

    def _in_blocks(self, rows: Rows, index: np.ndarray[Any, Any]) -> list[Array]:
        """Return a shard in blocks of rows."""
        if self._plan.columns is None:
            return [_on_boundary(self._device.asarray(rows.block(index[0], index[-1] + 1)))]
        columns, extents = self._plan.order
        blocks, size = [], len(index) if self._plan.kind == "zero" else self._device.block_rows
        for part in (index[i : i + size] for i in range(0, len(index), size)):
            width = _width(extents[part], len(columns))
            blocks.append(_take(rows, part, columns[:width], self._device))
        return blocks

    def _convert(self, blocks: Sequence[Array]) -> Iterator[Array]:
        """Yield the blocks as the first product takes them; the first shard's are the largest."""
        xp = self._kernels.xp
        for i, X in enumerate(blocks):
            if X.dtype == self._entry:
                yield X
                continue
            if i == len(self._room):
                self._room.append(xp.empty(X.size, dtype=self._entry))
            A = xp.reshape(self._room[i][: X.size], X.shape)
            gather(self._kernels, (X, None), (A, None), Picked())
            yield A


class MiniBatch:
    """Rows for each update in the order of an epoch, gathered on the device.

    Parameters
    ----------
    kernels, setup
        As for :class:`WholeBatch`; of the plan only the columns that no row needs are left out.
    sizes : sequence of int
        Rows of each update of an epoch, the same number but for the last.
    shard_rows : int
    step : array of int32 (2,)
        On the device; the second is the number of updates in this epoch, so far.
    """

    captures = True

    def __init__(self, kernels: CudaKernels, setup: Setup, sizes: Sequence[int], shard_rows: int, step: Array) -> None:
        self._kernels, self._sizes, self._shard_rows, self._step = kernels, sizes, shard_rows, step
        rows, y, device = setup.rows, setup.targets.y, setup.model.device
        if setup.plan.columns is None:
            X = rows.to(device).block(0, rows.shape[0])
        else:
            columns, extents = setup.plan.order
            X = _take(rows, np.arange(rows.shape[0]), columns[: _width(extents, rows.shape[1])], device)
        self._X, self._y = _on_boundary(X), device.asarray(y)
        self._order = kernels.xp.zeros(sum(sizes), dtype=kernels.xp.int32)
        self._room = Room(kernels, X.shape[1], y, min(sizes[0], shard_rows))

    def begin(self, order: np.ndarray[Any, Any] | None, updates: int) -> None:
        """Begin an epoch with this order of the rows (n,); what `step` says of the updates is true."""
        self._order.set(np.ascontiguousarray(order, np.int32))

    def shards(self, rows: int) -> Iterator[Shard]:
        """Gather and yield the shards of the next update."""
        offset = 0
        for size in cut(rows, self._shard_rows):
            A, targets = self._room.take(size)
            picked = Picked(self._order, self._step, self._sizes[0], offset)
            gather(self._kernels, (self._X, self._y), (A, targets), picked)
            yield A, targets
            offset += size

    def end(self) -> None:
        """There is nothing to forget."""

    def samples(self) -> Iterator[Shard]:
        """Yield a shard of each size, with whatever is in it."""
        return self._room.samples(self._sizes, self._shard_rows)


def _width(extents: np.ndarray[Any, Any], columns: int) -> int:
    """Return how many columns to store for rows that need so many."""
    return min(columns, max(_UNIT, -(-int(extents.max()) // _UNIT) * _UNIT))


def _take(rows: Rows, index: np.ndarray[Any, Any], columns: np.ndarray[Any, Any], device: Device) -> Array:
    """Return the rows of this index, and these columns of them, on the device."""
    if rows.home is None:
        return device.asarray(rows.take(index).take(columns, axis=1))
    return device.xp.take(rows.take(device.asarray(index)), device.asarray(columns), axis=1)


def _on_boundary(X: Array) -> Array:
    """Return X, or a copy of it, in C order on a boundary that ``gather`` can read from."""
    return X if X.flags.c_contiguous and X.data.ptr % _BOUNDARY == 0 else X.copy()
