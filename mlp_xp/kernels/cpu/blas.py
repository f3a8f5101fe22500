"""Matrix products that add to their result, C += A B, in NumPy's own BLAS, with the same bits for any thread count.

NumPy's ``matmul`` can only overwrite: a sum of products over shards would need a second pass over the gradient for each
shard, and an affine layer a second pass for its bias. BLAS does both inside the product (beta = 1), so this module
calls, through ctypes, the very library that NumPy has loaded.

A threaded BLAS splits a product where it suits the number of threads, and rounds differently along the cuts. Here the
cuts depend on the shape alone: a large product becomes a batch of column tiles, one BLAS thread per tile
(``cblas_?gemm_batch``). Everything else is left to a single thread. Callers set BLAS to one thread.

If NumPy's BLAS does not export these functions under a name known here (Accelerate, MKL, a BLAS of the system), NumPy's
operators take their place: the same values up to rounding, a little slower.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ...devices.blas_threads import Library, blas_libraries

__all__ = ["Tile", "add_matmul", "add_tiles", "column_tiles", "gemm_address", "is_small", "row_tiles"]

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
_SMALL = 10**6  # multiplications: with fewer per tile, OpenBLAS before its PR #5980 crashes in a batch
_SECOND_PASS = 2**15  # entries of C: with fewer, a second pass over them costs less than a call through ctypes
_MOST_SHAPES = 1024  # whose arguments are kept: some kB each, and a training uses a hundred of them

_Matrix = np.ndarray[Any, Any]
_Real = {"f": ctypes.c_float, "d": ctypes.c_double}


class Tile(NamedTuple):
    """Rows `top` to `bottom` and columns `left` to `right` of a product."""

    top: int
    bottom: int
    left: int
    right: int

    def size(self) -> int:
        """Return the number of entries."""
        return (self.bottom - self.top) * (self.right - self.left)


def add_matmul(A: _Matrix, B: _Matrix, C: _Matrix) -> None:
    """(m, k) @ (k, n) added to (m, n) in place.

    All three share one dtype, float32 or float64; A and B have a unit stride. Fast if C has one along its rows.
    """
    blas = C.size > _SECOND_PASS and _numpy_blas()
    gemm = blas and blas.function("gemm", C.dtype.char)
    if not gemm or C.strides[1] != C.itemsize:
        C += A.dot(B)  # sooner begun than A @ B
    elif A.shape[1]:
        (m, k), n = A.shape, B.shape[1]
        trans_a, lda = _operand(A)
        trans_b, ldb = _operand(B)
        gemm(
            _ROW_MAJOR, trans_a, trans_b, m, n, k, 1.0,
            A.ctypes.data, lda, B.ctypes.data, ldb, 1.0, C.ctypes.data, max(C.strides[0] // C.itemsize, n),
        )  # fmt: skip


def add_tiles(A: _Matrix, B: _Matrix, C: _Matrix, tiles: tuple[Tile, ...], inner: Sequence[int], threads: int) -> None:
    """Add tiles of (m, k) @ (k, n) to (m, n) in place, on this many threads. Layouts as for :func:`add_matmul`.

    Each tile takes the first `inner` of the k columns of A and rows of B, as the rest would add zero. If tiles are too
    small, there are fewer of them.
    """
    blas = _numpy_blas()
    gemm_batch = blas and blas.function("gemm_batch", C.dtype.char)
    if not _are_large(tiles, inner):
        tiles = column_tiles(*C.shape)
        inner = [max(inner)] * len(tiles)
    if len(tiles) == 1 or not gemm_batch or C.strides[1] != C.itemsize or not _are_large(tiles, inner):
        k = max(inner)
        add_matmul(A[:, :k], B[:k], C)
        return
    key = C.dtype.char, tiles, A.strides, B.strides, C.strides
    batch = _batches.known.get(key)
    if batch is None:
        if len(_batches.known) == _MOST_SHAPES:
            _batches.known.clear()
        batch = _batches.known[key] = _Batch(A, B, C, tiles, blas.integer)
    arguments = batch.arguments(A, B, C, inner)
    blas.set_threads(threads)
    gemm_batch(*arguments)
    blas.set_threads(1)


def is_small(A: _Matrix, B: _Matrix) -> bool:
    """Return whether no tile of (m, k) @ (k, n) could be large enough, so that NumPy may just as well multiply."""
    return bool(A.shape[0] * A.shape[1] * B.shape[1] <= _SMALL)


def _are_large(tiles: tuple[Tile, ...], inner: Sequence[int]) -> bool:
    return all(k * tile.size() > _SMALL for k, tile in zip(inner, tiles, strict=True))


@lru_cache(_MOST_SHAPES)
def column_tiles(m: int, n: int) -> tuple[Tile, ...]:
    """Split a product (m, n) into tiles of about equally many columns, at multiples of 16."""
    count = -(-n // _TILE)
    cuts = [n * i // count // 16 * 16 for i in range(count)] + [n]
    return tuple(Tile(0, m, left, right) for left, right in pairwise(cuts))


@lru_cache(_MOST_SHAPES)
def row_tiles(cuts: tuple[int, ...], n: int) -> tuple[Tile, ...]:
    """Split a product (cuts[-1], n) at the cuts into tiles of all columns."""
    return tuple(Tile(top, bottom, 0, n) for top, bottom in pairwise(cuts))


def _operand(X: _Matrix) -> tuple[int, int]:
    """Return BLAS's transposition flag and leading dimension of a matrix with a unit stride."""
    rows, columns = (stride // X.itemsize for stride in X.strides)
    if columns == 1 or X.shape[1] == 1:
        return _NO_TRANS, max(rows, X.shape[1])
    return _TRANS, max(columns, X.shape[0])


class _Batch:
    """The arguments of one batched product, made once for a shape. Addresses and inner lengths change in each call."""

    def __init__(self, A: _Matrix, B: _Matrix, C: _Matrix, tiles: tuple[Tile, ...], integer: Any) -> None:
        count = len(tiles)
        self.offsets = [
            (tile.top * A.strides[0], tile.left * B.strides[1], tile.top * C.strides[0] + tile.left * C.strides[1])
            for tile in tiles
        ]
        self.A, self.B, self.C = ((ctypes.c_void_p * count)() for _ in range(3))
        self.inner = (integer * count)()
        trans_a, lda = _operand(A)
        trans_b, ldb = _operand(B)

        def same(kind: Any, value: float) -> Any:
            return (kind * count)(*[value] * count)

        one = same(_Real[C.dtype.char], 1)
        flags = same(ctypes.c_int, trans_a), same(ctypes.c_int, trans_b)
        rows = (integer * count)(*[tile.bottom - tile.top for tile in tiles])
        columns = (integer * count)(*[tile.right - tile.left for tile in tiles])
        self.fixed = (
            _ROW_MAJOR, *flags, rows, columns, self.inner, one,
            self.A, same(integer, lda), self.B, same(integer, ldb), one,
            self.C, same(integer, max(C.strides[0] // C.itemsize, C.shape[1])), integer(count), same(integer, 1),
        )  # fmt: skip

    def arguments(self, A: _Matrix, B: _Matrix, C: _Matrix, inner: Sequence[int]) -> tuple[Any, ...]:
        a, b, c = A.ctypes.data, B.ctypes.data, C.ctypes.data
        for i, (offset_a, offset_b, offset_c) in enumerate(self.offsets):
            self.A[i], self.B[i], self.C[i] = a + offset_a, b + offset_b, c + offset_c
        self.inner[:] = inner
        return self.fixed


class _Batches(threading.local):
    def __init__(self) -> None:
        self.known: dict[Any, _Batch] = {}


_batches = _Batches()


class _Blas:
    """The C interface of a BLAS library that NumPy has loaded."""

    def __init__(self, library: Library) -> None:
        self.library, self.set_threads = library.controller.dynlib, library.set
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
    """Return the :class:`_Blas` that NumPy has loaded, or None if that is not an OpenBLAS of its own."""
    for library in blas_libraries():
        if library.controller.internal_api == "openblas" and "numpy" in library.controller.filepath:
            return _Blas(library)
    return None


def gemm_address(dtype: Any) -> tuple[int, bool] | None:
    """Return where ``cblas_?gemm`` of NumPy's BLAS is, and whether its integers have 64 bits; None if nobody knows."""
    blas = _numpy_blas()
    gemm = blas and blas.function("gemm", np.dtype(dtype).char)
    if not gemm:
        return None
    address = ctypes.cast(gemm, ctypes.c_void_p).value
    assert address is not None
    return address, blas.integer is ctypes.c_int64
