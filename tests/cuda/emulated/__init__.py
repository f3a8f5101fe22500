"""CUDA played by the CPU, so that the real CuPy runs on a machine without a GPU. See docs/emulated-cuda.md.

For Linux on x86-64, with g++.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from .loader import install, library

__all__ = ["Counts", "counts", "errors", "install", "settings"]


class Counts(NamedTuple):
    """What has happened so far; the order is that of `Count` in emulator.h.

    Attributes
    ----------
    launches : int
        Launches of kernels, those within captures included.
    graphs : int
        Launches of graphs.
    copies, products : int
    allocations : int
        Of memory of a device, by CUDA: CuPy's pool asks for less.
    captures, captured : int
        Captures that ended well, and operations in captures.
    compilations, waits : int
    """

    launches: int
    graphs: int
    copies: int
    products: int
    allocations: int
    captures: int
    captured: int
    compilations: int
    waits: int

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(a - b for a, b in zip(self, other, strict=True)))


SETTINGS = "devices", "memory", "pages", "order", "failing_allocation", "failing_capture"  # as in emulator.h


def counts() -> Counts:
    """Return what has been counted so far."""
    return Counts(*(ctypes.c_long * len(Counts._fields)).in_dll(library(), "emulated_counts"))


@contextmanager
def settings(**changes: int) -> Iterator[None]:
    """Change how CUDA behaves, for a time.

    Parameters
    ----------
    devices : int
        How many there are; 2 if not set.
    memory : int
        Bytes that each device has. CuPy's pool asks for memory only if it has none left.
    pages : bool
        Whether a new allocation ends at a page that nobody may touch.
    order : int
        0 for blocks and threads in their order, -1 in the reverse one, or the seed of a permutation.
    failing_allocation, failing_capture : int
        The number, counted from 1, of the allocation, or of the operation in a capture, that is refused from now on.
    """
    values = (ctypes.c_long * len(SETTINGS)).in_dll(library(), "emulated_settings")
    before = list(values)
    for name, value in changes.items():
        values[SETTINGS.index(name)] = value
    try:
        yield
    finally:
        values[:] = before


def errors() -> str:
    """Return what the programs that ran did wrong since the last call, a line for each, and begin anew."""
    room = ctypes.create_string_buffer(100_000)
    library().emulated_errors(room, len(room))
    return room.value.decode()
