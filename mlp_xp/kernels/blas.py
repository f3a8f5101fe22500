"""Matrix products that add to their result, C += A B, in NumPy's own BLAS; the same bits for any number of threads.

NumPy's ``matmul`` can only overwrite: a sum of products over shards would need a second pass over the gradient for each
shard, and an affine layer a second pass for its bias. BLAS does both inside the product (beta = 1), so this module
calls, through ctypes, the very library that NumPy has loaded.

A threaded BLAS cuts a product where it suits the number of threads, and rounds differently along the cuts. Here the
cuts depend on the shape alone: a large product goes as a batch of column tiles, one BLAS thread to a tile
(``cblas_?gemm_batch``); all else is left to a single thread. Callers set BLAS to one thread.

Where NumPy's BLAS does not export these functions under a name known here, NumPy's operators take their place: the
same values up to rounding, a little slower.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

__all__ = ["add_matmul", "add_matmul_tiled"]

_SYMBOLS: tuple[
    tuple[str, Any], ...
] = (  # (name, integer type): OpenBLAS as NumPy ships it, OpenBLAS with 64-bit integers, everyone else
    ("scipy_cblas_{}{}64_", ctypes.c_int64),
    ("cblas_{}{}64_", ctypes.c_int64),
    ("scipy_cblas_{}{}", ctypes.c_int32),
    ("cblas_{}{}", ctypes.c_int32),
)
_ROW_MAJOR, _NO_TRANS, _TRANS = 101, 111, 112
_TILE = 128  # columns of a tile, at most
_SMALL = 10**6  # no batch up to so many multiplications a tile: there OpenBLAS before its PR #5980 jumps nowhere

_Matrix = np.ndarray[Any, Any]
_Real = {"f": ctypes.c_float, "d": ctypes.c_double}


def add_matmul(A: _Matrix, B: _Matrix, C: _Matrix) -> None:
    """(m, k) @ (k, n) added to (m, n) in place.

    All three share one dtype, float32 or float64; A and B have a unit stride. Fast if C has one along its rows.
    """
    blas = _numpy_blas()
    gemm = blas and blas.function("gemm", C.dtype.char)
    if not gemm or C.strides[1] != C.itemsize:
        C += A @ B
    elif C.size and A.shape[1]:
        (m, k), n = A.shape, B.shape[1]
        trans_a, lda = _operand(A)
        trans_b, ldb = _operand(B)
        gemm(
            _ROW_MAJOR, trans_a, trans_b, m, n, k, 1.0,
            A.ctypes.data, lda, B.ctypes.data, ldb, 1.0, C.ctypes.data, max(C.strides[0] // C.itemsize, n),
        )  # fmt: skip


def add_matmul_tiled(A: _Matrix, B: _Matrix, C: _Matrix, threads: int) -> None:
    """(m, k) @ (k, n) added to (m, n) in place, like :func:`add_matmul`, its tiles on so many threads."""
    blas = _numpy_blas()
    gemm_batch = blas and blas.function("gemm_batch", C.dtype.char)
    tile = C.shape[0] * A.shape[1] * _cuts(C.shape[1])[1]
    if not gemm_batch or C.strides[1] != C.itemsize or tile <= _SMALL:
        add_matmul(A, B, C)
        return
    key = C.dtype.char, A.shape, B.shape[1], A.strides, B.strides, C.strides
    batch = _batches.known.get(key)
    if batch is None:
        batch = _batches.known[key] = _Batch(A, B, C, blas.integer)
    arguments = batch.arguments(A, B, C)
    blas.set_threads(threads)
    gemm_batch(*arguments)
    blas.set_threads(1)


def _operand(X: _Matrix) -> tuple[int, int]:
    """Return BLAS's transposition flag and leading dimension of a matrix with a unit stride."""
    rows, columns = (stride // X.itemsize for stride in X.strides)
    if columns == 1 or X.shape[1] == 1:
        return _NO_TRANS, max(rows, X.shape[1])
    return _TRANS, max(columns, X.shape[0])


@cache
def _cuts(n: int) -> list[int]:
    """Return where to cut n columns into equal tiles, at most _TILE wide, at multiples of 16."""
    count = -(-n // _TILE)
    return [n * i // count // 16 * 16 for i in range(count)] + [n]


class _Batch:
    """The arguments of one batched product, made once for a shape; only the addresses change from call to call."""

    def __init__(self, A: _Matrix, B: _Matrix, C: _Matrix, integer: Any) -> None:
        cuts = _cuts(C.shape[1])
        count = len(cuts) - 1
        self.offsets_b = [cut * B.strides[1] for cut in cuts[:-1]]
        self.offsets_c = [cut * C.itemsize for cut in cuts[:-1]]
        self.A, self.B, self.C = ((ctypes.c_void_p * count)() for _ in range(3))
        trans_a, lda = _operand(A)
        trans_b, ldb = _operand(B)

        def same(kind: Any, value: float) -> Any:
            return (kind * count)(*[value] * count)

        one = same(_Real[C.dtype.char], 1)
        flags = same(ctypes.c_int, trans_a), same(ctypes.c_int, trans_b)
        widths = (integer * count)(*[right - left for left, right in pairwise(cuts)])
        self.fixed = (
            _ROW_MAJOR, *flags, same(integer, C.shape[0]), widths, same(integer, A.shape[1]), one,
            self.A, same(integer, lda), self.B, same(integer, ldb), one,
            self.C, same(integer, max(C.strides[0] // C.itemsize, C.shape[1])), integer(count), same(integer, 1),
        )  # fmt: skip

    def arguments(self, A: _Matrix, B: _Matrix, C: _Matrix) -> tuple[Any, ...]:
        a, b, c = A.ctypes.data, B.ctypes.data, C.ctypes.data
        for i, (offset_b, offset_c) in enumerate(zip(self.offsets_b, self.offsets_c, strict=True)):
            self.A[i], self.B[i], self.C[i] = a, b + offset_b, c + offset_c
        return self.fixed


class _Batches(threading.local):
    def __init__(self) -> None:
        self.known: dict[Any, _Batch] = {}


_batches = _Batches()


class _Blas:
    """C BLAS in a library that threadpoolctl found loaded."""

    def __init__(self, library: Any) -> None:
        self.library, self.set_threads = library.dynlib, library.set_num_threads
        self.found: dict[tuple[str, str], Any] = {}
        known = (pair for pair in _SYMBOLS if hasattr(self.library, pair[0].format("s", "gemm")))
        self.name: str
        self.integer: Any
        self.name, self.integer = next(known, ("", None))

    def function(self, routine: str, char: str) -> Any:
        """Return C BLAS's `routine` for a dtype, or None if the library has none."""
        if (routine, char) not in self.found:
            self.found[routine, char] = self._look_up(routine, char)
        return self.found[routine, char]

    def _look_up(self, routine: str, char: str) -> Any:
        if not self.name:
            return None
        function = getattr(self.library, self.name.format({"f": "s", "d": "d"}[char], routine), None)
        if function is not None:
            function.restype = None
            if routine == "gemm":
                flag, integer, pointer, real = ctypes.c_int, self.integer, ctypes.c_void_p, _Real[char]
                function.argtypes = [flag, flag, flag, integer, integer, integer, real]
                function.argtypes += [pointer, integer, pointer, integer, real, pointer, integer]
        return function


@cache
def _numpy_blas() -> Any:
    """Return the :class:`_Blas` that NumPy has loaded, or None where it is not an OpenBLAS of its own."""
    for library in ThreadpoolController().lib_controllers:
        if library.internal_api == "openblas" and "numpy" in library.filepath:
            return _Blas(library)
    return None
