"""Matrix products on CUDA at each precision, of whole matrices and of blocks."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ...devices import Array
from ..generic import GenericKernels
from ..staircase import Blocks, blocks_of
from .cublas import CuBLAS, load_cublas
from .sources import SWEEP, Kernel, function_of, grid_for

__all__ = ["CudaProducts"]

_WORKSPACE = 32 * 2**20  # bytes: what cuBLAS recommends for the largest GPUs


class _Handles(threading.local):
    """One thread's handles of cuBLAS, by where each works."""

    def __init__(self) -> None:
        self.by_place: dict[tuple[int, int], CuBLAS] = {}


class CudaProducts(GenericKernels):
    """Launches of kernels, and matrix products by cuBLAS, that operations on CuPy arrays are made of.

    Parameters
    ----------
    xp : module
        ``array_api_compat.cupy``.
    dtype : str
        ``"float32"`` or ``"float64"``.
    precision : str, optional
        How float32 is multiplied, a key of :data:`mlp_xp.devices.PRECISIONS`; None as exactly as the dtype has it.
        With ``"fp16x2"`` the products with byte images go through two float16 halves of the other factor, see
        ``common.cuh``; all other products are float32's.

    Raises
    ------
    ValueError
        If nvmath-python, by which alone cuBLAS can be asked for anything but all digits, cannot be used.
    """

    def __init__(self, xp: Any, dtype: str, precision: str | None = None) -> None:
        super().__init__(xp, dtype)
        self._real = {"float32": "float", "float64": "double"}[dtype]
        self.precision = precision or {"float32": "fp32", "float64": "fp64"}[dtype]
        self._handles = _Handles()
        self._library = load_cublas()
        if self._library is None and self.precision not in ("fp32", "fp64"):
            raise ValueError(
                f"precision {self.precision!r} needs nvmath-python and its cuBLAS, which are not available here; "
                "pip install nvmath-python, or use 'fp32'"
            )

    def _place(self) -> tuple[int, int]:
        """Return the current device and stream. The default stream has the address 0 on every device."""
        return self.xp.cuda.Device().id, self.xp.cuda.get_current_stream().ptr

    def _empty(self, *shape: int, dtype: Any = None) -> Array:
        """Return an array, of this dtype if not told otherwise, for the time of one pass."""
        return self.xp.empty(shape, dtype=dtype or self.dtype)

    def launch(self, kernel: Kernel, grid: int, *arguments: Any) -> None:
        """Start a kernel on so many blocks, compiled for this dtype.

        Arguments have the very types of the kernel's parameters: CuPy passes a Python int as 64 bits, whatever the
        kernel expects. None is a null pointer.
        """
        device = self.xp.cuda.Device().id if kernel.shared else 0
        function_of(self.xp, kernel, self._real, device)((grid,), kernel.block, arguments, shared_mem=kernel.shared)

    def _as(self, X: Array, dtype: Any) -> Array:
        """Return `X` itself if it has this dtype and C order, else a copy that has."""
        return X if X.dtype == dtype and X.flags.c_contiguous else self.xp.ascontiguousarray(X, dtype=dtype)

    def _times(self, A: Array | Blocks, W: Array) -> Array:
        """(n, d) @ (h, d).T -> (n, h), W without the columns that A lacks; A divided by 255 if it is float16."""
        W = W[:, : A.shape[1]].T
        Z = self._empty(A.shape[0], W.shape[1])
        if A.dtype == self.xp.float16:
            self._join(self._products(A, self._halves(W)), Z, False)
        else:
            self._multiply_blocks(A, W, Z)
        return Z

    def _products(self, A: Array | Blocks, halves: Array) -> Array:
        """(n, d) @ (d, 2 h) -> (n, 2 h): float16 whole pixels by both halves of a matrix, for :meth:`_join`."""
        products = self._empty(A.shape[0], halves.shape[1])
        self._multiply_blocks(A, halves, products)
        return products

    def _transposed_products(self, A: Array | Blocks, halves: Array) -> Array:
        """(n, d).T @ (n, 2 h) -> (d, 2 h), likewise."""
        products = self._empty(A.shape[1], halves.shape[1])
        self._multiply_transposed(A, halves, products, False)
        return products

    def _multiply_blocks(self, A: Array | Blocks, B: Array, into: Array) -> None:
        """(n, d) @ (d, h) -> (n, h), written to `into`."""
        for rows, block in blocks_of(A):
            self._multiply(block, B[: block.shape[1]], into[rows])

    def _multiply_transposed(self, A: Array | Blocks, B: Array, into: Array, add: bool) -> None:
        """(n, d).T @ (n, h) -> (d, h), written or added to `into`."""
        for rows, block in blocks_of(A):
            self._multiply(block.T, B[rows], into[: block.shape[1]], add)
            add = True

    def _multiply(self, A: Array, B: Array, into: Array, add: bool = False) -> None:
        """(m, k) @ (k, n) -> (m, n), written or added to `into`, by cuBLAS where a graph can capture it."""
        if self._library is not None:
            handles, place = self._handles.by_place, self._place()
            if place not in handles:
                precision = self.precision if self.precision in ("tf32", "bf16") else "fp32"
                workspace = self.xp.empty(_WORKSPACE, dtype=self.xp.uint8)
                handles[place] = CuBLAS(place[1], workspace, precision=precision, library=self._library)
            handles[place].gemm(A, B, into, beta=float(add))
        elif add:
            into += A @ B
        else:
            self.xp.matmul(A, B, out=into)

    def _halves(self, X: Array) -> Array:
        """(n, h) -> float16 (n, 2 h): its high halves, then its low ones."""
        X, (rows, columns) = self._as(X, self.dtype), X.shape
        halves = self._empty(rows, 2 * columns, dtype=self.xp.float16)
        grid = grid_for(rows, 1, SWEEP[1])
        self.launch(Kernel("halves", "split_matrix"), grid, X, halves, np.int32(rows), np.int32(columns))
        return halves

    def _join(self, products: Array, into: Array, add: bool) -> None:
        """(n, 2 h) -> (n, h): products of whole pixels with both halves, to those of X / 255 with the sum of these."""
        rows, columns = into.shape
        self.launch(
            Kernel("halves", "join_products"), grid_for(rows, 1, SWEEP[1]),
            products, into, np.int32(rows), np.int32(columns), np.int32(add),
        )  # fmt: skip
