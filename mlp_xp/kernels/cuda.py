"""The operations for CUDA: products by cuBLAS, and one kernel for all that happens between two of them."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array
from .cuda_source import source
from .generic import GenericKernels

__all__ = ["CudaKernels", "Pending"]

_THREADS = 256  # of a block: the kernels are written for it
_ALIGNMENT = 16  # bytes of the widest load
# (rows that are worth a block, the most blocks): 8 blocks fill a multiprocessor and the largest GPUs have some 132;
# where a single block adds up what the others leave behind, fewer of them are faster
_SWEEP = 8, 8 * 132
_SUM = 32, 2 * 132


class Pending(NamedTuple):
    """A product (n, h) that :meth:`CudaKernels.activate` has yet to add its bias (h,) to."""

    product: Array
    bias: Array


class _Kept(threading.local):
    """What one thread keeps from call to call, on whatever stream it works: a thread works on one at a time.

    Attributes
    ----------
    ticket : array (1,)
        The counter by which the blocks of ``activation_gradient`` find out which is last: 0 between launches.
    dZ, db : array (n, h) and (h,)
        The last result of :meth:`CudaKernels.activation_gradient` and its column sums.
    """

    ticket: Array = None
    dZ: Array = None
    db: Array = None


class CudaKernels(GenericKernels):
    """Operations on CuPy arrays by the kernels of ``activation.cu`` and ``softmax_cross_entropy.cu``.

    A hidden layer is passed over once on the way forward, for its bias and activation, and once on the way back, for
    its slope and the sum over rows: :meth:`affine` leaves the bias to :meth:`activate`, and
    :meth:`activation_gradient` keeps the sum for the :meth:`bias_gradient` of the same array. All sums have a fixed
    order, so every run on a GPU has the same bits. New arrays cost next to nothing, as CuPy's memory pool hands out
    those of the pass before: there are no buffers here.

    The kernels of ``activation.cu`` take matrices of this dtype, in C order and on a 16-byte boundary, which is what
    the operations make; for any other the generic operation is used, as it is for the losses without a softmax.

    Parameters
    ----------
    xp : module
        ``array_api_compat.cupy``.
    dtype : str
        ``"float32"`` or ``"float64"``.
    """

    def __init__(self, xp: Any, dtype: str) -> None:
        super().__init__(xp, dtype)
        self._real = {"float32": "float", "float64": "double"}[dtype]
        self._kept = _Kept()

    def features(self, X: Array) -> Array:
        if X.dtype == self.xp.uint8:
            return self.xp.multiply(X, 1 / 255, dtype=self.dtype)  # one pass: it converts each byte that it reads
        return X

    def affine(self, A: Array, W: Array, b: Array) -> Pending:
        return Pending(A @ W[:, : A.shape[1]].T, b)

    def activate(self, name: str, Z: Array | Pending) -> Array:
        Z, b = Z if isinstance(Z, Pending) else (Z, None)
        if not self._takes(Z):
            return super().activate(name, Z if b is None else Z + b)
        if b is not None:
            b = self.xp.ascontiguousarray(b, dtype=self.dtype)
        rows, units = Z.shape
        self._launch("activation", "bias_activation", name, _grid(rows, *_SWEEP), Z, b, np.int32(rows), np.int32(units))
        return Z

    def activation_gradient(self, name: str, dA: Array, A: Array) -> Array:
        if not self._takes(dA, A):
            return super().activation_gradient(name, dA, A)
        kept, (rows, units) = self._kept, dA.shape
        if kept.ticket is None:
            kept.ticket = self.xp.zeros(1, dtype=self.xp.uint32)
        grid = _grid(rows, *_SUM)
        partial = self.xp.empty((grid, units), dtype=self.dtype)
        kept.dZ, kept.db = dA, self.xp.empty(units, dtype=self.dtype)
        self._launch(
            "activation", "activation_gradient", name, grid,
            dA, A, partial, kept.db, kept.ticket, np.int32(rows), np.int32(units), np.int32(False),
        )  # fmt: skip
        return dA

    def weight_gradient(self, dZ: Array, A: Array, into: Array) -> Array:
        block = into.T[: A.shape[1]]  # the parameters are stored transposed: C order
        block += A.T @ dZ
        return into

    def bias_gradient(self, dZ: Array, into: Array) -> Array:
        kept = self._kept
        if dZ is not kept.dZ:
            return super().bias_gradient(dZ, into)
        into += kept.db
        kept.dZ = kept.db = None
        return into

    def softmax_cross_entropy(self, A: Array, y: Array) -> tuple[Array, Array]:
        rows, classes = A.shape
        dA = A.astype(self.dtype, order="C")  # a copy: the slope of the last layer is taken from A
        y = self.xp.ascontiguousarray(y, dtype=self.xp.int32)
        grid = _grid(rows, *_SWEEP)
        losses, totals = self.xp.empty(rows, dtype=self.dtype), self.xp.empty((grid, 2), dtype=self.dtype)
        self._launch(
            "softmax_cross_entropy", "softmax_cross_entropy", "identity", grid,
            dA, y, losses, totals, np.int32(rows), np.int32(classes),
        )  # fmt: skip
        return losses, dA

    def _takes(self, *matrices: Array) -> bool:
        """Return whether the kernels of ``activation.cu`` can work on these."""
        return all(
            X.dtype == self.dtype and X.flags.c_contiguous and self._address(X) % _ALIGNMENT == 0 for X in matrices
        )

    def _address(self, X: Array) -> int:
        return int(X.data.ptr)

    def _launch(self, name: str, kernel: str, activation: str, grid: int, *arguments: Any) -> None:
        """Start a kernel of ``name.cu`` on so many blocks, compiled for this dtype and activation.

        Arguments have the very types of the kernel's parameters: CuPy passes a Python int as 64 bits, whatever the
        kernel expects. None is a null pointer.
        """
        _function(self.xp, name, kernel, self._real, activation)((grid,), (_THREADS,), arguments)


def _grid(rows: int, rows_per_block: int, most: int) -> int:
    return max(1, min(most, -(-rows // rows_per_block)))


@cache
def _function(xp: Any, name: str, kernel: str, real: str, activation: str) -> Any:
    """Return CuPy's kernel, which it compiles, or finds on disk, at the first launch on each device."""
    options = ("-std=c++17", f"-DREAL={real}", f"-DACTIVATION={activation}")
    return xp.RawKernel(source(name), kernel, options)
