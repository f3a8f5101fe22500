"""Data that do not fit on the device: they stay on the host and visit it in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, cycle
from typing import Any

import numpy as np

from ...kernels.cuda.operations import CudaKernels
from ...rows.source import Rows
from ...rows.stored import BLOCK, come_in_blocks
from ..base import Setup
from .gather import Picked, Room, Shard, cut, gather

__all__ = ["Streamed"]


class Streamed:
    """Rows that stay on the host, or in a file, and visit the device in chunks, the next while one is worked on.

    There are two places for a chunk, each on the device and in pinned memory of the host. Copies have a stream of their
    own; events keep them from overwriting what is still read, and the host from overwriting what is still copied.

    Parameters
    ----------
    kernels, setup
        As for :class:`WholeBatch`, the rows on the host.
    sizes, shard_rows
        As for :class:`MiniBatch`.
    """

    captures = False

    def __init__(self, kernels: CudaKernels, setup: Setup, sizes: Sequence[int], shard_rows: int) -> None:
        self._kernels, self._rows, self._y = kernels, setup.rows, setup.targets.y
        self._sizes, self._shard_rows = sizes, shard_rows
        self._copies = kernels.xp.cuda.Stream(non_blocking=True)
        n, d = self._rows.shape
        self._most = min(shard_rows, n)
        self._room = Room(kernels, d, self._y, min(sizes[0], shard_rows))
        self._places = [_Place(kernels.xp, self._rows, self._y, self._most) for _ in range(2)]
        self._flow: Iterator[Shard] = iter(())
        self._following: _Following | None = None

    def begin(self, order: np.ndarray[Any, Any] | None, updates: int) -> None:
        """Begin an epoch with this order of the rows (n,), None for that of the data, after so many updates."""
        rows, first = self._rows, sum(self._sizes[:updates])
        if come_in_blocks(rows):
            self._following = _Following(
                rows.in_blocks(first, BLOCK) if order is None else rows.in_order(order, first, 1)
            )
        self._flow = self._all(order, updates)

    def shards(self, rows: int) -> Iterator[Shard]:
        """Yield the shards of the next update, as they arrive."""
        for _ in cut(rows, self._shard_rows):
            yield next(self._flow)

    def end(self) -> None:
        """Forget the epoch: its iterator knows this object, which would keep the memory until a garbage collection."""
        self._flow, self._following = iter(()), None

    def samples(self) -> Iterator[Shard]:
        """Yield a shard of each size, with whatever is in it."""
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
                gather(self._kernels, (place.X, place.y), (A, targets), Picked(offset=offset))
                yield A, targets
                offset += size

    def _chunks(self, updates: int) -> Iterator[tuple[int, list[int]]]:
        """Yield, after so many updates, where each chunk begins, and its shards: as many as there is room for."""
        first, chunk = sum(self._sizes[:updates]), list[int]()
        for size in chain.from_iterable(cut(rows, self._shard_rows) for rows in self._sizes[updates:]):
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
        if self._following is not None:
            self._following.fill(place.pinned_X[:rows])
        elif order is None:
            place.pinned_X[:rows] = self._rows.block(first, first + rows)
        else:
            self._rows.take(order[first : first + rows], out=place.pinned_X[:rows])
        if order is None:
            place.pinned_y[:rows] = self._y[first : first + rows]
        else:
            # mode="raise" would copy
            self._y.take(order[first : first + rows], axis=0, out=place.pinned_y[:rows], mode="clip")
        worked_on = self._kernels.xp.cuda.get_current_stream().record()
        with self._copies:
            self._copies.wait_event(worked_on)
            place.X[:rows, :].set(place.pinned_X[:rows])
            place.y[:rows, ...].set(place.pinned_y[:rows])
            place.copied = self._copies.record()
        return place, chunk


class _Following:
    """Rows that come from a file in the order of the epoch, in blocks of whatever size."""

    def __init__(self, blocks: Iterator[np.ndarray[Any, Any]]) -> None:
        self._blocks, self._left = blocks, np.empty((0, 0))

    def fill(self, out: np.ndarray[Any, Any]) -> None:
        """Fill an array with the rows that are next."""
        while len(out):
            if not len(self._left):
                self._left = next(self._blocks)
            part = self._left[: len(out)]
            out[: len(part)] = part
            out, self._left = out[len(part) :], self._left[len(part) :]


class _Place:
    """Room for a chunk of rows, in pinned memory of the host and on the device, and the event after the last copy."""

    copied: Any = None

    def __init__(self, xp: Any, source: Rows, y: np.ndarray[Any, Any], rows: int) -> None:
        self.pinned_X, self.pinned_y = (_pinned(xp, (rows, *data.shape[1:]), data.dtype) for data in (source, y))
        self.X, self.y = (xp.empty(pinned.shape, dtype=pinned.dtype) for pinned in (self.pinned_X, self.pinned_y))


def _pinned(xp: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Return an array in memory of the host that the device can copy from by itself."""
    count = int(np.prod(shape))
    memory = xp.cuda.alloc_pinned_memory(max(1, count * dtype.itemsize))
    return np.frombuffer(memory, dtype, count).reshape(shape)
