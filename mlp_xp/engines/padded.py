"""Parameters in the form that the compiled library works on."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels.cpu.compiled import ROW_BYTES, padded
from ..mlp import MLP

__all__ = ["Padded"]

_Vector = np.ndarray[Any, Any]


class Padded:
    """Where the parameters are if each row of a layer's block begins at a multiple of 64 bytes.

    Parameters
    ----------
    model : MLP
    """

    def __init__(self, model: MLP) -> None:
        self.dtype, self.own = np.dtype(model.dtype), model.layout.blocks
        shapes = [(1 + d, padded(h, self.dtype)) for d, h in zip(model.sizes, model.sizes[1:], strict=False)]
        ends = np.cumsum([rows * columns for rows, columns in shapes])
        starts = [0, *ends[:-1]]
        self.blocks = list(zip(map(slice, starts, ends), shapes, model.sizes[1:], strict=True))
        self.size = int(ends[-1])

    def zeros(self) -> _Vector:
        """Return a vector in this form, on a boundary."""
        memory = np.zeros(self.size + 2 * ROW_BYTES // self.dtype.itemsize, self.dtype)
        first = -memory.ctypes.data % ROW_BYTES // self.dtype.itemsize
        return memory[first : first + self.size]

    def put(self, vector: _Vector, into: _Vector) -> None:
        """Copy a vector (P,) into one of this form."""
        for own, (block, (rows, columns), units) in zip(self.own, self.blocks, strict=True):
            into[block].reshape(rows, columns)[:, :units] = vector[own].reshape(rows, units)

    def take(self, vector: _Vector) -> _Vector:
        """Return a vector of this form as a new one (P,)."""
        return np.concatenate(
            [vector[block].reshape(shape)[:, :units].reshape(-1) for block, shape, units in self.blocks]
        )
