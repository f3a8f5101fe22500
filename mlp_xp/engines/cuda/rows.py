"""Where the rows of a data set are while a GPU trains on them, and how some of them become a shard.

Three classes with one interface, for all rows at once, for mini-batches, and for more data than the device holds:

    begin(order, updates)   begin an epoch, without so many updates
    shards(rows)            yield (X, y) for the next update of the epoch, of so many rows
    samples()               yield a shard of each size that there will be, to find out what memory they take
    captures                whether an update always launches the same work, so that a CUDA graph can stand for it
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, cycle
from typing import Any, TypeAlias

import numpy as np

from ...devices import Array, Device
from ...kernels.cuda.operations import CudaKernels
from ...kernels.cuda.sources import Kernel, grid_for
from ...kernels.staircase import Blocks
from ...rows.plan import Plan

__all__ = ["MiniBatch", "Rows", "Streamed", "WholeBatch"]

_MOST_BLOCKS = 4096  # of a launch that copies rows
_BOUNDARY = 32  # bytes: of four numbers, of whatever type
_UNIT = 16  # columns that widths are multiples of, so that rows of any dtype begin on a boundary

Shard: TypeAlias = tuple[Array | Blocks, Array]


class WholeBatch:
    """All rows for each update, on the device, as a plan has them sorted and cut.

    Parameters
    ----------
    kernels : CudaKernels
    device : Device
    X : array (n, d)
        On the host or the device.
    y : array (n, ...)
        On the host.
    plan : Plan
    shard_rows : int
    """

    captures = True

    def __init__(self, kernels: CudaKernels, device: Device, X: Array, y: Array, plan: Plan, shard_rows: int) -> None:
        self._kernels, self._device, self._plan = kernels, device, plan
        self._entry = _entry(kernels)
        self._room: list[Array] = []
        order = np.arange(X.shape[0]) if plan.extents is None else np.argsort(-plan.extents, kind="stable")
        self._stored = []
        for i in range(0, len(order), shard_rows):
            rows = order[i : i + shard_rows]
            self._stored.append((self._cut(X, rows), device.asarray(y[rows])))
        if len(self._stored) == 1:  # then the numbers can stay, and the bytes can go
            self._stored = [(list(self._convert(blocks)), y) for blocks, y in self._stored]

    def begin(self, order: None, updates: int) -> None:
        """Begin an epoch: nothing changes."""

    def shards(self, rows: int) -> Iterator[Shard]:
        """Yield all shards."""
        for blocks, y in self._stored:
            yield Blocks(tuple(self._convert(blocks))), y

    def samples(self) -> Iterator[Shard]:
        """Yield all shards."""
        return self.shards(0)

    def _cut(self, X: Array, rows: np.ndarray[Any, Any]) -> list[Array]:
        """Return a shard in blocks of rows."""
        columns, extents = self._plan.columns, self._plan.extents
        if columns is None or extents is None:
            return [_on_boundary(self._device.asarray(X[rows[0] : rows[-1] + 1, :]))]
        blocks, size = [], len(rows) if self._plan.kind == "zero" else self._device.block_rows
        for part in (rows[i : i + size] for i in range(0, len(rows), size)):
            width = _width(extents[part], len(columns))
            blocks.append(_take(X, part, columns[:width], self._device))
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
            _gather(self._kernels, X, A)
            yield A


class MiniBatch:
    """Rows for each update in the order of an epoch, gathered on the device.

    Parameters
    ----------
    kernels, device, X, y, plan
        As for :class:`WholeBatch`; of the plan only the columns that no row needs are left out.
    sizes : sequence of int
        Rows of each update of an epoch.
    shard_rows : int
    step : array of int32 (2,)
        On the device; the second is the number of updates in this epoch, so far.
    """

    captures = True

    def __init__(
        self, kernels: CudaKernels, device: Device, X: Array, y: Array, plan: Plan, sizes: Sequence[int],
        shard_rows: int, step: Array,
    ) -> None:  # fmt: skip
        self._kernels, self._sizes, self._shard_rows, self._step = kernels, sizes, shard_rows, step
        if plan.columns is not None and plan.extents is not None:
            width = _width(plan.extents, X.shape[1])
            X = _take(X, np.arange(X.shape[0]), plan.columns[:width], device)
        self._X, self._y = _on_boundary(device.asarray(X)), device.asarray(y)
        self._order = kernels.xp.zeros(X.shape[0], dtype=kernels.xp.int32)
        self._room = _Room(kernels, X.shape[1], y, min(sizes[0], shard_rows))

    def begin(self, order: np.ndarray[Any, Any], updates: int) -> None:
        """Begin an epoch with this order of the rows (n,); what `step` says of the updates is true."""
        self._order.set(np.ascontiguousarray(order, np.int32))

    def shards(self, rows: int) -> Iterator[Shard]:
        """Gather and yield the shards of the next update."""
        offset = 0
        for size in _cut(rows, self._shard_rows):
            A, targets = self._room.take(size)
            _gather(self._kernels, self._X, A, self._y, targets, self._order, self._step, self._sizes[0], offset)
            yield A, targets
            offset += size

    def samples(self) -> Iterator[Shard]:
        """Yield a shard of each size, of whatever there is."""
        return self._room.samples(self._sizes, self._shard_rows)


class Streamed:
    """Rows that stay in the host's memory and visit the device in chunks, the next while one is worked on.

    There are two places for a chunk, each on the device and in pinned memory of the host. Copies have a stream of their
    own; events keep them from overwriting what is still read, and the host from overwriting what is still copied.

    Parameters
    ----------
    kernels
        As for :class:`WholeBatch`.
    X, y : array (n, d) and (n, ...)
        On the host.
    sizes, shard_rows
        As for :class:`MiniBatch`.
    """

    captures = False

    def __init__(self, kernels: CudaKernels, X: Array, y: Array, sizes: Sequence[int], shard_rows: int) -> None:
        self._kernels, self._X, self._y, self._sizes, self._shard_rows = kernels, X, y, sizes, shard_rows
        self._copies = kernels.xp.cuda.Stream(non_blocking=True)
        self._most = min(shard_rows, X.shape[0])
        self._room = _Room(kernels, X.shape[1], y, min(sizes[0], shard_rows))
        self._places = [_Place(kernels.xp, X, y, self._most) for _ in range(2)]
        self._flow: Iterator[Shard] = iter(())

    def begin(self, order: np.ndarray[Any, Any] | None, updates: int) -> None:
        """Begin an epoch with this order of the rows (n,), None for that of the data, after so many updates."""
        self._flow = self._all(order, updates)

    def shards(self, rows: int) -> Iterator[Shard]:
        """Yield the shards of the next update, as they arrive."""
        for _ in _cut(rows, self._shard_rows):
            yield next(self._flow)

    def samples(self) -> Iterator[Shard]:
        """Yield a shard of each size, of whatever there is."""
        return self._room.samples(self._sizes, self._shard_rows)

    def _all(self, order: np.ndarray[Any, Any] | None, updates: int) -> Iterator[Shard]:
        """Yield the shards of an epoch after so many updates; the next chunk sets out before one is worked on."""
        pairs = zip(cycle(self._places), self._chunks(updates), strict=False)
        loaded = (self._load(place, first, chunk, order) for place, (first, chunk) in pairs)
        coming = next(loaded, None)
        while coming is not None:
            (place, chunk), coming = coming, next(loaded, None)
            self._kernels.xp.cuda.get_current_stream().wait_event(place.copied)
            offset = 0
            for size in chunk:
                A, targets = self._room.take(size)
                _gather(self._kernels, place.X, A, place.y, targets, offset=offset)
                yield A, targets
                offset += size

    def _chunks(self, updates: int) -> Iterator[tuple[int, list[int]]]:
        """Yield, after so many updates, where each chunk begins, and its shards: as many as there is room for."""
        first, chunk = sum(self._sizes[:updates]), list[int]()
        for size in chain.from_iterable(_cut(rows, self._shard_rows) for rows in self._sizes[updates:]):
            if sum(chunk) + size > self._most:
                yield first, chunk
                first, chunk = first + sum(chunk), []
            chunk.append(size)
        yield first, chunk

    def _load(
        self, place: _Place, first: int, chunk: list[int], order: np.ndarray[Any, Any] | None
    ) -> tuple[_Place, list[int]]:
        """Have a chunk copied to a place on the device, when what is there has been worked on."""
        rows = sum(chunk)
        if place.copied is not None:
            place.copied.synchronize()
        for data, pinned in ((self._X, place.pinned_X), (self._y, place.pinned_y)):
            if order is None:
                pinned[:rows] = data[first : first + rows]
            else:
                data.take(order[first : first + rows], axis=0, out=pinned[:rows], mode="clip")  # "raise" would copy
        worked_on = self._kernels.xp.cuda.get_current_stream().record()
        with self._copies:
            self._copies.wait_event(worked_on)
            place.X[:rows, :].set(place.pinned_X[:rows])
            place.y[:rows, ...].set(place.pinned_y[:rows])
            place.copied = self._copies.record()
        return place, chunk


Rows: TypeAlias = WholeBatch | MiniBatch | Streamed


class _Place:
    """Room for a chunk of rows, in pinned memory of the host and on the device, and the event after the last copy."""

    copied: Any = None

    def __init__(self, xp: Any, X: np.ndarray[Any, Any], y: np.ndarray[Any, Any], rows: int) -> None:
        self.pinned_X, self.pinned_y = (_pinned(xp, (rows, *array.shape[1:]), array.dtype) for array in (X, y))
        self.X, self.y = (xp.empty(pinned.shape, dtype=pinned.dtype) for pinned in (self.pinned_X, self.pinned_y))


class _Room:
    """Room for one shard, which every shard is gathered into: numbers as the first product takes them, and targets."""

    def __init__(self, kernels: CudaKernels, columns: int, y: np.ndarray[Any, Any], rows: int) -> None:
        xp = kernels.xp
        self._A = xp.zeros((rows, columns), dtype=_entry(kernels))
        self._targets = xp.zeros((rows, *y.shape[1:]), dtype=y.dtype)

    def take(self, rows: int) -> Shard:
        """Return the room for so many rows, as it was left."""
        return self._A[:rows, :], self._targets[:rows, ...]

    def samples(self, sizes: Sequence[int], shard_rows: int) -> Iterator[Shard]:
        """Yield the room for each size of a shard."""
        for size in sorted({size for rows in sizes for size in _cut(rows, shard_rows)}):
            yield self.take(size)


def _gather(
    k: CudaKernels, X: Array, A: Array, y: Array | None = None, targets: Array | None = None,
    order: Array | None = None, step: Array | None = None, batch_size: int = 0, offset: int = 0,
) -> None:  # fmt: skip
    """Launch ``gather`` of ``batch.cu``: fill A with rows of X, converted, and `targets` with those of y, if any."""
    rows, columns = A.shape
    macros = (
        ("INPUT", "byte" if X.dtype == k.xp.uint8 else "REAL"),
        ("ENTRY", "half_bits" if A.dtype == k.xp.float16 else "REAL"),
        ("TARGET", "int" if y is not None and y.dtype == k.xp.int32 else "REAL"),
    )
    width = 0 if targets is None else targets.size // rows
    k.launch(
        Kernel("batch", "gather", macros), grid_for(rows, 1, _MOST_BLOCKS),
        X, y, order, step, A, targets, *map(np.int32, (batch_size, offset, rows, columns, width)),
    )  # fmt: skip


def _cut(rows: int, most: int) -> list[int]:
    """Cut so many rows into shards."""
    return [min(most, rows - i) for i in range(0, rows, most)]


def _entry(kernels: CudaKernels) -> Any:
    """Return the dtype that the first product takes."""
    return kernels.xp.float16 if kernels.precision == "fp16x2" else kernels.dtype


def _width(extents: np.ndarray[Any, Any], columns: int) -> int:
    """Return how many columns to store for rows that need so many."""
    return min(columns, max(_UNIT, -(-int(extents.max()) // _UNIT) * _UNIT))


def _take(X: Array, rows: np.ndarray[Any, Any], columns: np.ndarray[Any, Any], device: Device) -> Array:
    """Return these rows and columns of X, which is on the host or the device, on the device."""
    if type(X) is np.ndarray:
        return device.asarray(X[rows].take(columns, axis=1))
    return device.xp.take(device.xp.take(X, device.asarray(rows), axis=0), device.asarray(columns), axis=1)


def _on_boundary(X: Array) -> Array:
    """Return X, or a copy of it, in C order on a boundary that ``gather`` can read from."""
    return X if X.flags.c_contiguous and X.data.ptr % _BOUNDARY == 0 else X.copy()


def _pinned(xp: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Return an array in memory of the host that the device can copy from by itself."""
    count = int(np.prod(shape))
    memory = xp.cuda.alloc_pinned_memory(max(1, count * dtype.itemsize))
    return np.frombuffer(memory, dtype, count).reshape(shape)
