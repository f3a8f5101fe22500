"""Rows that stay in a file, or wherever an object of the user's reads them from.

Only blocks of them are ever in memory, and what becomes of a block is what becomes of an array: the same checks, the
same numbers, the same bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from itertools import pairwise
from typing import Any, TypeGuard, TypeVar

import numpy as np

from ..devices import Array, Device, NumpyDevice, is_foreign
from .checks import INDICATOR, NOT_PIXELS, check_finite, check_shape, is_indicator
from .source import Digest, InMemory, Rows

__all__ = ["StoredRows", "ahead", "come_in_blocks", "is_stored", "shuffled_chunks"]

BLOCK = 1024  # rows that are read together
WINDOW = 8 * BLOCK  # rows of a mini-batch epoch that are shuffled together, and at hand together

_T = TypeVar("_T")
_Vector = np.ndarray[Any, Any]


def is_stored(X: Any) -> bool:
    """Return whether `X` is a memory map, or no array of a known library but an object whose rows can be sliced."""
    if isinstance(X, np.ndarray):
        return isinstance(X, np.memmap)
    shape = getattr(X, "shape", None)
    is_table = isinstance(shape, tuple) and len(shape) > 1 and hasattr(X, "dtype") and hasattr(X, "__getitem__")
    return is_table and not hasattr(X, "toarray") and not is_foreign(X)


class StoredRows:
    """Rows of a memory map, or of an object with ``shape`` (n, d), ``dtype`` and ``X[i:j]``, such as HDF5's and Zarr's.

    Parameters
    ----------
    source : np.memmap or object
    width : int
        The columns that it must have.
    dtype : str
        The model's.
    pixels : bool, optional
        As for :func:`mlp_xp.rows.checks.as_features`.

    Attributes
    ----------
    in_place : array (n, d) or None
        All rows, if they can be used where they lie: in a map in C order of bytes or of the model's dtype.

    Raises
    ------
    ValueError
        As for :func:`mlp_xp.rows.checks.as_features`, and if a block has another shape or dtype than `source` has.
        Numbers are looked at block by block, bytes until one is above 1.
    """

    home: Device | None = None

    def __init__(self, source: Any, width: int, dtype: str, pixels: bool | None = None) -> None:
        given = np.dtype(source.dtype)
        if given.kind not in "biuf":
            raise ValueError(f"X must hold real numbers, got dtype {given}")
        check_shape(source.shape, width)
        self._source, self._given, self._first = source, given, 0
        self.shape: tuple[int, int] = (int(source.shape[0]), width)
        self.pixels = given == np.uint8
        self.dtype = given if self.pixels else np.dtype(dtype)
        readable = isinstance(source, np.memmap) and source.flags.c_contiguous and source.flags.aligned
        self.in_place: _Vector | None = np.asarray(source) if readable and given == self.dtype else None
        self._check(given, pixels)

    def _check(self, given: np.dtype[Any], pixels: bool | None) -> None:
        cuts = [(i, min(i + BLOCK, self.shape[0])) for i in range(0, self.shape[0], BLOCK)]
        blocks = (self._read(*cut) for cut in cuts)
        if self.pixels:
            if not pixels and is_indicator(blocks, np):
                warnings.warn(INDICATOR, stacklevel=5)
            return
        whole, largest = given.kind != "f", 0
        for block in blocks:
            check_finite(self._converted(block), block, np)
            largest = max(largest, block.max()) if pixels and whole else 0
        if largest > 1:
            warnings.warn(NOT_PIXELS.format(given), stacklevel=5)

    def _read(self, start: int, stop: int) -> _Vector:
        start, stop = start + self._first, stop + self._first
        block = np.asarray(self._source[start:stop])
        if block.shape != (stop - start, self.shape[1]):
            raise ValueError(
                f"rows {start} to {stop} of X came with the shape {block.shape}, and X announces {self.shape}: is the "
                "file cut short, or written to?"
            )
        if block.dtype.newbyteorder("=") != self._given.newbyteorder("="):
            raise ValueError(
                f"rows {start} to {stop} of X came as {block.dtype}, and X announces {self._given}; its slices must "
                "have the dtype that it announces"
            )
        return block

    def _converted(self, block: _Vector) -> _Vector:
        with np.errstate(over="ignore"):  # what the dtype cannot hold becomes infinite, and is found
            return np.ascontiguousarray(block, self.dtype)

    def block(self, start: int, stop: int) -> Array:
        stop = min(stop, self.shape[0])
        return self._converted(self._read(start, stop)) if self.in_place is None else self.in_place[start:stop]

    def take(self, index: Array, out: Array | None = None) -> Array:
        if self.in_place is not None:
            return self.in_place.take(index, axis=0, out=out, mode="clip")
        X = np.empty((len(index), self.shape[1]), self.dtype) if out is None else out
        order = np.argsort(index, kind="stable")
        for places in np.split(order, 1 + np.flatnonzero(np.diff(index[order] // BLOCK))):
            first, last = index[places[0]], index[places[-1]]
            X[places] = self.block(int(first), int(last) + 1)[index[places] - first]
        return X

    def to(self, device: Device) -> StoredRows | InMemory:
        """Return the rows themselves on the CPU; any other device takes them into its memory, all of them."""
        if isinstance(device, NumpyDevice):
            return self
        return InMemory(device.assemble(self.in_blocks(0, WINDOW), self.shape, self.dtype.name), device)

    def part(self, start: int, stop: int) -> StoredRows:
        part = copy(self)
        part.shape, part._first = (stop - start, self.shape[1]), self._first + start
        part.in_place = None if self.in_place is None else self.in_place[start:stop]
        return part

    def in_blocks(self, first: int, size: int) -> Iterator[_Vector]:
        """Yield the rows from `first` on, so many at a time; a thread reads ahead."""
        return ahead(self.block(i, i + size) for i in range(first, self.shape[0], size))

    def fingerprint(self, digest: Digest) -> str:
        for i in range(0, self.shape[0], BLOCK):
            block = self.block(i, i + BLOCK)
            digest.update(np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("<")).data)
        return f"{self.dtype} {self.shape}"

    def in_order(self, order: _Vector, first: int, batch_size: int) -> Iterator[_Vector]:
        """Yield the rows from `first` on of an order (n,), whole batches of them at a time; a thread reads ahead.

        Parameters
        ----------
        order : array (n,)
            Best one of :func:`shuffled_chunks`: each block is read once.
        first : int
            A multiple of the batch size.
        batch_size : int
        """
        cuts = [first, *range((first // WINDOW + 1) * WINDOW, len(order), WINDOW), len(order)]
        held = np.empty((0, self.shape[1]), self.dtype)
        windows = (self.take(order[start:stop]) for start, stop in pairwise(cuts))
        for stop, window in zip(cuts[1:], ahead(windows), strict=True):
            held = np.concatenate([held, window])
            whole = len(held) if stop == len(order) else len(held) // batch_size * batch_size
            if whole:
                yield held[:whole]
            held = held[whole:].copy()


def come_in_blocks(rows: Rows) -> TypeGuard[StoredRows]:
    """Return whether rows are read block by block, in an order of their own in mini-batches."""
    return isinstance(rows, StoredRows) and rows.in_place is None


def shuffled_chunks(seed: int, epoch: int, n: int) -> _Vector:
    """Return an order of n rows in an epoch of mini-batches that can be read from a file in blocks.

    The blocks are shuffled, and then the rows of each window of blocks that follow one another; a last block that is
    shorter stays in the last window.
    """
    rng = np.random.default_rng([seed, epoch])
    order = np.arange(n, dtype=np.int32 if n < 2**31 else np.int64)
    whole = n // BLOCK * BLOCK
    order[:whole] = order[:whole].reshape(-1, BLOCK)[rng.permutation(n // BLOCK)].reshape(-1)
    for i in range(0, n, WINDOW):
        rng.shuffle(order[i : i + WINDOW])
    return order


def ahead(items: Iterable[_T]) -> Iterator[_T]:
    """Yield the items; while one is in use, a thread makes the next."""
    iterator, over = iter(items), object()
    with ThreadPoolExecutor(1, "mlp_xp") as pool:
        coming = pool.submit(next, iterator, over)
        while (item := coming.result()) is not over:
            coming = pool.submit(next, iterator, over)
            yield item  # type: ignore[misc]
            del item
