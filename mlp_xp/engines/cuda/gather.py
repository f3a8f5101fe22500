"""Rows gathered into a shard on the device, and the room that shards are gathered into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ...devices import Array
from ...kernels.cuda.operations import CudaKernels
from ...kernels.cuda.sources import Kernel, grid_for
from ...kernels.staircase import Blocks

__all__ = ["Picked", "Room", "Shard", "cut", "entry", "gather"]

_MOST_BLOCKS = 4096  # of a launch that copies rows

Shard: TypeAlias = tuple[Array | Blocks, Array]


class Picked(NamedTuple):
    """Which rows ``gather`` takes: see ``batch.cu``."""

    order: Array | None = None
    step: Array | None = None
    batch_size: int = 0
    offset: int = 0


def gather(k: CudaKernels, data: tuple[Array, Array | None], room: tuple[Array, Array | None], which: Picked) -> None:
    """Launch ``gather`` of ``batch.cu``: fill the room with rows of X, converted, and their targets, if any."""
    (X, y), (A, targets) = data, room
    rows, columns = A.shape
    macros = (
        ("INPUT", "byte" if X.dtype == k.xp.uint8 else "REAL"),
        ("ENTRY", "half_bits" if A.dtype == k.xp.float16 else "REAL"),
        ("TARGET", "int" if y is not None and y.dtype == k.xp.int32 else "REAL"),
    )
    width = 0 if targets is None else targets.size // rows
    k.launch(
        Kernel("batch", "gather", macros), grid_for(rows, 1, _MOST_BLOCKS),
        X, y, which.order, which.step, A, targets,
        *map(np.int32, (which.batch_size, which.offset, rows, columns, width)),
    )  # fmt: skip


class Room:
    """Room for one shard, which every shard is gathered into: numbers as the first product takes them, and targets."""

    def __init__(self, kernels: CudaKernels, columns: int, y: np.ndarray[Any, Any], rows: int) -> None:
        xp = kernels.xp
        self._A = xp.zeros((rows, columns), dtype=entry(kernels))
        self._targets = xp.zeros((rows, *y.shape[1:]), dtype=y.dtype)

    def take(self, rows: int) -> Shard:
        """Return the room for so many rows, as it was left."""
        return self._A[:rows, :], self._targets[:rows, ...]

    def samples(self, sizes: Sequence[int], shard_rows: int) -> Iterator[Shard]:
        """Yield the room for each size of a shard."""
        for size in sorted({size for rows in sizes for size in cut(rows, shard_rows)}):
            yield self.take(size)


def cut(rows: int, most: int) -> list[int]:
    """Return the sizes of the shards that so many rows are cut into."""
    return [min(most, rows - i) for i in range(0, rows, most)]


def entry(kernels: CudaKernels) -> Any:
    """Return the dtype that the first product takes."""
    return kernels.xp.float16 if kernels.precision == "fp16x2" else kernels.dtype
