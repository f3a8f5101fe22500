"""Samples of a large file stay in it: what is used of them is read, by the system or block by block."""

from __future__ import annotations

import io
import math
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAPPED", "Span", "bounds", "in_file", "map_rest", "stays_in_file"]

MAPPED = 1 << 28  # bytes: less is read, so that its rows can be shuffled
_DTYPES = (np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.float64))  # native: others are converted


class Span:
    """Rows that follow one another in an object with ``shape`` (n, ...), ``dtype`` and ``X[i:j]``; each is flattened.

    A slice of it is a span, too. Nothing is read before ``np.asarray`` makes an array of it.
    """

    def __init__(self, source: Any, start: int = 0, stop: int | None = None) -> None:
        self._source, self._start = source, start
        self._stop = int(source.shape[0]) if stop is None else stop
        self.shape = (self._stop - start, math.prod(map(int, source.shape[1:])))
        self.dtype = np.dtype(source.dtype)
        self.ndim, self.size = 2, math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Span:
        start, stop = bounds(rows, len(self))
        return Span(self._source, self._start + start, self._start + max(start, stop))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        block = np.asarray(self._source[self._start : self._stop], dtype)
        return block.reshape(len(block), self.shape[1])


def bounds(rows: Any, count: int) -> tuple[int, int]:
    """Return where a slice of rows that follow one another begins and ends, of `count` rows.

    Raises
    ------
    TypeError
        If it is no slice.
    ValueError
        If it leaves out rows, or turns them around.
    """
    if not isinstance(rows, slice):
        raise TypeError(f"rows in files come by slices, X[i:j]; got X[{rows!r}]: read X[:] for an array of all rows")
    start, stop, step = rows.indices(count)
    if step != 1:
        raise ValueError(f"rows in files come one after another, X[i:j]; got a step of {step}")
    return start, stop


def in_file(X: Any) -> bool:
    """Return whether samples have stayed in their file."""
    return isinstance(X, np.memmap | Span)


def stays_in_file(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Return whether samples of this shape are large, and can be used as they are."""
    return dtype in _DTYPES and math.prod(shape) * dtype.itemsize > MAPPED


def map_rest(file: io.BufferedReader, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the rest of a file as a read-only map of this shape, in C order.

    Raises
    ------
    ValueError
        If it is shorter or longer.
    """
    start, size = file.tell(), math.prod(shape) * dtype.itemsize
    held = os.fstat(file.fileno()).st_size - start
    if held != size:
        raise ValueError(f"the header announces {size} bytes of data, and {held} follow")
    return np.memmap(file, dtype, "r", start, shape)
