"""The operations for NumPy, as fast as NumPy gets.

What is not a matrix product is bound by memory, not by arithmetic, and new arrays cost the most: the operating system
zeroes each page on its first use. So buffers are used again, passes over them are saved, and reductions run along the
long axis.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ..functions import LEAK
from ..generic import GenericKernels
from ..staircase import Ragged
from .blas import add_matmul, add_tiles, column_tiles, is_small, row_tiles

__all__ = ["NumpyKernels"]

_NARROW = 64  # products with fewer columns are too small to share among threads

_Array = np.ndarray[Any, Any]


class _Buffers(threading.local):
    """Scratch arrays of one thread, handed out in the order of the calls and taken back all at once.

    A pass over a shard makes the same requests as the previous pass, so only the first one allocates memory.
    """

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.memory: list[_Array] = []
        self.views: dict[tuple[int, int, int], _Array] = {}
        self.used = 0

    def rewind(self) -> None:
        self.used = 0

    def take(self, rows: int, columns: int) -> _Array:
        """Return an uninitialized C-contiguous array (rows, columns)."""
        key = self.used, rows, columns
        self.used += 1
        view = self.views.get(key)
        return self._make(*key) if view is None else view

    def _make(self, index: int, rows: int, columns: int) -> _Array:
        if index == len(self.memory):
            self.memory.append(np.empty(0, self.dtype))
        if self.memory[index].size < rows * columns:
            self.memory[index] = np.empty(rows * columns, self.dtype)
            self.views = {key: view for key, view in self.views.items() if key[0] != index}
        view = self.memory[index][: rows * columns].reshape(rows, columns)
        self.views[index, rows, columns] = view
        return view


class NumpyKernels(GenericKernels):
    """Operations on NumPy arrays that write into buffers of the calling thread.

    Parameters
    ----------
    dtype : str
        ``"float32"`` or ``"float64"``.
    product_threads : int, optional
        Threads that share each large product, for callers that run one batch at a time. None for callers that run
        shards on threads of their own.
    """

    def __init__(self, dtype: str, product_threads: int | None = None) -> None:
        super().__init__(np, dtype)
        self._tiled, self.product_threads = product_threads is not None, product_threads or 1
        self._buffers = _Buffers(self.dtype)
        self._ones = np.ones(0, self.dtype)
        self._lowest = np.finfo(self.dtype).min

    def features(self, X: Any) -> Any:
        self._buffers.rewind()
        if isinstance(X, Ragged):
            return X._replace(values=self._scaled(X.values))
        return self._scaled(X)

    def _scaled(self, X: _Array) -> _Array:
        if X.dtype != np.uint8:
            return X
        A = self._buffers.take(*X.shape)
        np.multiply(X, self.dtype(1 / 255), out=A)
        return A

    def affine(self, A: Any, W: _Array, b: _Array) -> _Array:
        Z, B = self._buffers.take(A.shape[0], W.shape[0]), W.T[: A.shape[1]]
        if isinstance(A, Ragged):
            Z[:] = b
            add_tiles(A.values, B, Z, row_tiles(A.cuts.rows, Z.shape[1]), A.widths, self.product_threads)
        elif is_small(A, B):
            A.dot(B, out=Z)
            Z += b
        else:
            Z[:] = b
            self._add_matmul(A, B, Z)
        return Z

    def _add_matmul(self, A: _Array, B: _Array, C: _Array) -> None:
        if not self._tiled or C.shape[1] < _NARROW or is_small(A, B):
            add_matmul(A, B, C)
        else:
            tiles = column_tiles(*C.shape)
            add_tiles(A, B, C, tiles, [A.shape[1]] * len(tiles), self.product_threads)

    def activate(self, name: str, Z: _Array) -> Any:
        match name:
            case "sigmoid":
                np.negative(Z, out=Z)
                with np.errstate(over="ignore"):  # exp(-z) = inf gives the right limit, 1 / inf = 0
                    np.exp(Z, out=Z)
                Z += self.dtype(1)
                np.divide(self.dtype(1), Z, out=Z)  # faster than reciprocal
                return Z
            case "tanh":
                return np.tanh(Z, out=Z)
            case "relu":
                Z += self.dtype(0)  # -0.0 + 0 = 0.0
                np.maximum(Z, self._lowest, out=Z)  # -inf times 0 would be NaN
                return np.multiply(Z, Z >= 0, out=Z)
            case "leaky_relu":
                return np.maximum(Z, LEAK * Z, out=Z)
            case _:
                return super().activate(name, Z)

    def dropout(self, A: Any, D: _Array | None) -> Any:
        return A if D is None else np.multiply(A, D, out=self._buffers.take(*A.shape))

    def activation_gradient(self, name: str, dA: _Array, A: _Array) -> Any:
        match name:
            case "sigmoid":
                slope = np.subtract(self.dtype(1), A, out=self._buffers.take(*A.shape))
                dA *= slope
                dA *= A
            case "tanh":
                slope = np.multiply(A, A, out=self._buffers.take(*A.shape))
                dA *= np.subtract(self.dtype(1), slope, out=slope)
            case "relu":
                dA *= ~np.signbit(A)
            case "leaky_relu":
                np.multiply(dA, self.dtype(LEAK), out=dA, where=A < 0)
            case _:
                return super().activation_gradient(name, dA, A)
        return dA

    def weight_gradient(self, dZ: _Array, A: Any, into: _Array) -> _Array:
        dW = into.T[: A.shape[1]]
        if isinstance(A, Ragged):
            tiles = row_tiles((*A.cuts.columns, A.shape[1]), dW.shape[1])
            add_tiles(A.values.T, dZ, dW, tiles, A.heights, self.product_threads)
        else:
            self._add_matmul(A.T, dZ, dW)
        return into

    def bias_gradient(self, dZ: _Array, into: _Array) -> _Array:
        ones = self._ones  # a name of our own: other threads may put a shorter one there
        if ones.size < dZ.shape[0]:
            ones = self._ones = np.ones(dZ.shape[0], self.dtype)
        into += ones[: dZ.shape[0]] @ dZ  # BLAS: three times as fast as sum(axis=0), which adds row by row
        return into

    def input_gradient(self, dZ: _Array, W: _Array) -> _Array:
        dA = self._buffers.take(dZ.shape[0], W.shape[1])
        if dZ.shape[1] < _NARROW or is_small(dZ, W):
            return dZ.dot(W, out=dA)
        dA.fill(0)  # the product adds to it
        self._add_matmul(dZ, W, dA)
        return dA

    def sum(self, losses: _Array) -> Any:
        return np.add.reduce(losses)

    def loss(self, name: str, A: _Array, y: _Array) -> tuple[_Array, _Array]:
        match name:
            case "softmax_cross_entropy":
                return self._softmax_cross_entropy(A, y)
            case "sigmoid_cross_entropy":
                softplus = (np.abs(A) + A) / 2 + np.log1p(np.exp(-np.abs(A)))
                losses = np.sum(softplus - A * y, axis=1)
                return losses, self.activate("sigmoid", A) - y
            case _:
                return super().loss(name, A, y)

    def _softmax_cross_entropy(self, A: _Array, y: _Array) -> tuple[_Array, _Array]:
        n, k = A.shape
        # Classes by rows: along an axis of ten, NumPy's maxima and sums take a call of the inner loop for each row.
        Z = self._buffers.take(k, n)
        np.copyto(Z, A.T)
        Z -= np.maximum.reduce(Z, axis=0)
        entries = Z.reshape(-1)
        right = y.astype(np.intp) * n + np.arange(n)
        losses = entries.take(right)
        np.exp(Z, out=Z)
        total = np.add.reduce(Z, axis=0)
        np.subtract(np.log(total), losses, out=losses)
        Z *= np.reciprocal(total)
        entries[right] -= self.dtype(1)
        return losses, Z.T
