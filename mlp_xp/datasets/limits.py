"""How much a file may cost: decided from its headers, before anything is unpacked or allocated."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["ANY_SIZE", "CHUNK", "MAX_BYTES", "MAX_FILE", "Limits", "available_memory"]

MAX_BYTES = 4 << 30  # of samples and labels, together
MAX_FILE = 64 << 30
ANY_SIZE = 1 << 62  # for files whose header says how much is read of them
CHUNK = 1 << 20
FREE_RATIO = 32 << 20  # bytes that may be packed as tightly as they can be
MAX_RATIO = 200  # MNIST has 5; a file of zeros has 1000


class Limits:
    """What one source may hold: rows of a known width, and no more bytes than memory has room for.

    The budget is half of the memory that is available, because splitting or converting the data needs as much again.

    Parameters
    ----------
    width
        Numbers that a sample must have; any number by default.
    """

    def __init__(self, width: int | None = None) -> None:
        self.width = width
        self.most = self.left = min(MAX_BYTES, available_memory() // 2)

    def admit(self, shape: tuple[int, ...], dtype: np.dtype[Any], samples: bool, packed: int | None = None) -> int:
        """Return the bytes of an array that a header announces, and charge the budget with what it will take.

        Parameters
        ----------
        shape, dtype
            Of the array; of samples, the first size is the number of rows.
        samples
            Whether it holds samples, whose width is checked.
        packed
            The bytes that it is packed into.

        Raises
        ------
        ValueError
            If samples have another width, the budget is exceeded, or so few packed bytes announce a great many.
        """
        size = math.prod(shape) * dtype.itemsize
        if samples:
            self.check_width(shape)
        if packed is not None and size > max(FREE_RATIO, MAX_RATIO * packed):
            raise ValueError(
                f"{packed} packed bytes announce {size}; more than {MAX_RATIO} times as many are not unpacked: "
                "save the data without compression"
            )
        converted = math.prod(shape) * 4 if dtype.kind != "f" and dtype != np.uint8 else 0  # whole numbers to float32
        self.charge(max(size, converted))
        return size

    def check_width(self, shape: tuple[int, ...]) -> None:
        """Raise a ValueError if samples of this shape are not as wide as they must be."""
        width = math.prod(shape[1:])
        if self.width not in (None, width):
            raise ValueError(f"samples of {width} numbers (shape {shape}), but the model takes {self.width}")

    def charge(self, size: int) -> None:
        """Take `size` bytes from the budget, or raise a ValueError."""
        self.left -= size
        if self.left < 0:
            raise ValueError(
                f"the header announces {size} bytes of data; the limit is {self.most}, 4 GiB or half of the memory "
                "that is available"
            )


def available_memory() -> int:
    """Return the bytes of memory that this process may still take, as far as the system tells."""
    known = [1 << 62]
    with suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError, StopIteration), open("/proc/meminfo", encoding="ascii") as file:
        known.append(1024 * int(next(line for line in file if line.startswith("MemAvailable:")).split()[1]))
    with suppress(OSError, ValueError):  # a container's share; "max" is no number
        known.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(known)
