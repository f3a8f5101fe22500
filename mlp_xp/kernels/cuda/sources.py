"""The CUDA sources, and what it takes to launch them. Imports nothing of CUDA."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "RANGE",
    "SWEEP",
    "THREADS",
    "FusedHead",
    "Kernel",
    "activations",
    "chip",
    "function_of",
    "fused_head",
    "grid_for",
    "kernels_of",
    "source",
]

THREADS = 256  # of a block, unless a kernel says otherwise
SWEEP = 8, 8 * 132
"""(rows that are worth a block, most blocks): 8 blocks fill a multiprocessor, and the largest GPUs have about 132."""
_BLOCKS_OF_HEAD = 2  # that a multiprocessor holds at a time

RANGE = np.dtype(
    [("end", np.int64), ("gradient", np.uint64), ("stride", np.int64), ("shards", np.int32), ("is_bias", np.int32)]
)
"""The struct ``Range`` of ``optimizers.cu``; `gradient` holds an address on the device."""

_FOLDER = Path(__file__).parent


def source(name: str) -> str:
    """Return the text of ``name.cu`` with the shared header included.

    It is one text because CuPy's cache knows a kernel by its text, and would not notice that the header changed.
    """
    common = (_FOLDER / "common.cuh").read_text(encoding="utf-8")
    return (_FOLDER / f"{name}.cu").read_text(encoding="utf-8").replace('#include "common.cuh"', common)


@cache
def activations() -> frozenset[str]:
    """Return the names of the activations that the kernels know: the structs of their namespace in the header."""
    text = (_FOLDER / "common.cuh").read_text(encoding="utf-8")
    inside = text[text.index("namespace activation {") : text.index("}  // namespace activation")]
    return frozenset(re.findall(r"^struct (\w+)", inside, re.MULTILINE))


@cache
def kernels_of(name: str) -> frozenset[str]:
    """Return the names of the kernels of ``name.cu``."""
    return frozenset(re.findall(r'extern "C" __global__ void __launch_bounds__\([^)]*\)\s+(\w+)\(', source(name)))


class Kernel(NamedTuple):
    """One kernel of ``source.cu``, as it is compiled and launched; the launcher defines ``REAL``.

    Attributes
    ----------
    source, name : str
    macros : tuple of (name, value)
    block : tuple of int
        Threads of a block, along x and y.
    shared : int
        Bytes of dynamic shared memory of a block.
    """

    source: str
    name: str
    macros: tuple[tuple[str, str | int], ...] = ()
    block: tuple[int, ...] = (THREADS,)
    shared: int = 0


@dataclass(frozen=True)
class FusedHead:
    """One specialization of ``fused_head.cu``.

    Attributes
    ----------
    hidden, classes : int
        Units of the hidden layer and of the output layer.
    tile : int
        Rows in shared memory at a time.
    halves : bool
        Whether Z1 arrives as products with both halves of W1, and dZ1 leaves as its halves, see ``common.cuh``.
    """

    hidden: int
    classes: int
    tile: int
    halves: bool = False

    @property
    def macros(self) -> dict[str, int]:
        """Macros to compile with, besides ``ACTIVATION``."""
        return {"HIDDEN": self.hidden, "CLASSES": self.classes, "TILE": self.tile, "HALVES": int(self.halves)}

    @property
    def threads(self) -> int:
        """Threads per block."""
        return max(self.tile, -(-self.hidden // 32) * 32)

    @property
    def shared_bytes(self) -> int:
        """Bytes of dynamic shared memory per block: the size of its struct ``Shared``."""
        stride = self.hidden + 4 * (self.hidden % 8 == 0)
        padded = -(-self.classes // 4) * 4
        weights = self.hidden * (padded + 1)
        per_row = stride + padded + self.threads // 32 * self.classes + self.classes + 1
        return -(-4 * (weights + self.tile * per_row) // 16) * 16

    @property
    def gradients(self) -> int:
        """Numbers that each block leaves in `gradients`: db1, db2, and dW2.T, one after another."""
        return self.hidden + self.classes + self.hidden * self.classes

    def kernel(self, activation: str) -> Kernel:
        """Return the kernel for an activation of the hidden layer."""
        macros: tuple[tuple[str, str | int], ...] = (("ACTIVATION", activation), *self.macros.items())
        return Kernel("fused_head", "fused_head", macros, (self.threads,), self.shared_bytes)


def fused_head(
    hidden: int, classes: int, shared_limit: int, halves: bool = False, few_rows: bool = False
) -> FusedHead | None:
    """Return the specialization for these widths, or None if the separate kernels have to do.

    Parameters
    ----------
    hidden, classes : int
        It takes a multiple of 4 up to 256 hidden units and 2 to 16 classes.
    shared_limit : int
        Bytes of shared memory that a block may use on the device, when it asks for them.
    halves : bool
        As for :class:`FusedHead`.
    few_rows : bool
        Whether smaller tiles would occupy more of the GPU.
    """
    if hidden % 4 or not 4 <= hidden <= 256 or not 2 <= classes <= 16:
        return None
    for tile in (32,) if few_rows else (64, 32):
        head = FusedHead(hidden, classes, tile, halves)
        if head.shared_bytes <= shared_limit:
            return head
    return None


def grid_for(rows: int, rows_per_block: int, most: int) -> int:
    """Return how many blocks to start for so many rows."""
    return max(1, min(most, -(-rows // rows_per_block)))


@cache
def function_of(xp: Any, kernel: Kernel, real: str, device: int) -> Any:
    """Return CuPy's kernel, which it compiles, or finds on disk, at the first launch on each device."""
    options = ("-std=c++17", f"-DREAL={real}", *(f"-D{macro}={value}" for macro, value in kernel.macros))
    function = xp.RawKernel(source(kernel.source), kernel.name, options)
    if kernel.shared:  # more than 48 KiB have to be asked for, on each device
        function.max_dynamic_shared_size_bytes = kernel.shared
    return function


@cache
def chip(xp: Any, device: int) -> tuple[int, int]:
    """Return how many blocks of a head fill a GPU, and the bytes of shared memory that one may have."""
    attributes = xp.cuda.Device(device).attributes
    return _BLOCKS_OF_HEAD * attributes["MultiProcessorCount"], attributes["MaxSharedMemoryPerBlockOptin"]
