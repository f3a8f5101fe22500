"""Samples of a large file stay in it: they are mapped, and the system reads what is used."""

from __future__ import annotations

import io
import math
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAPPED", "map_rest", "stays_in_file"]

MAPPED = 1 << 28  # bytes: less is read, so that its rows can be shuffled
_DTYPES = (np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.float64))  # native: others are converted


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
