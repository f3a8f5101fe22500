"""Matrix products on the GPU that a CUDA graph can capture.

CuPy refuses to call cuBLAS while a stream is captured (cupy/cupy#6290), although cuBLAS can be captured if it needs no
memory of its own. :class:`CuBLAS` therefore has a handle, a stream, and a workspace of its own. They also make results
repeatable: cuBLAS promises the same bits in every run to a handle that works on one stream with its own workspace.

Arrays are CuPy's, in row-major order. cuBLAS counts in column-major order, where a row-major matrix is its transpose:
it is asked for C' = B' A'.
"""

from __future__ import annotations

import importlib
import logging
import weakref
from ctypes import addressof, c_double, c_float
from functools import cache
from typing import Any

__all__ = ["CuBLAS", "load_cublas"]

_log = logging.getLogger(__name__)

_N, _T = 0, 1  # cublasOperation_t
_DEFAULT_ALGORITHM = -1  # cublasGemmAlgo_t
_TYPES = {"float16": 2, "bfloat16": 14, "float32": 0, "float64": 1}  # cudaDataType_t
_COMPUTE = {"fp32": 68, "tf32": 77, "bf16": 75, "fp64": 70}  # cublasComputeType_t

_idle: dict[tuple[Any, int], list[int]] = {}  # by library and device, handles that nothing uses any more


class CuBLAS:
    """Matrix products on one stream.

    A handle is handed on when nothing uses it any more. To destroy it would wait for the device, and break what any
    thread captures there.

    Products of float32, float16 or bfloat16 are summed in float32, those of float64 in float64.

    Parameters
    ----------
    stream : int
        Address of the CUDA stream.
    workspace : array
        Device memory on a 256-byte boundary; 32 MiB is what cuBLAS recommends for the largest GPUs.
    precision : {"fp32", "tf32", "bf16"}
        What products of float32 may be rounded to before they are multiplied, for the speed of the tensor cores:
        nothing, 10 bits of mantissa or 7.
    library : optional
        What to call instead of ``nvmath.bindings.cublas``.
    """

    def __init__(self, stream: int, workspace: Any, *, precision: str = "fp32", library: Any = None) -> None:
        if library is None:
            library = importlib.import_module("nvmath.bindings.cublas")
        self._library = library
        self._workspace = workspace  # keeps the memory alive
        self._precision = precision
        self._scalars: dict[tuple[float, bool], c_float | c_double] = {}
        idle = _idle.setdefault((library, workspace.device.id), [])
        self._handle = idle.pop() if idle else library.create()
        weakref.finalize(self, idle.append, self._handle)
        library.set_stream(self._handle, stream)  # takes the workspace away, so it comes first
        library.set_workspace(self._handle, workspace.data.ptr, workspace.nbytes)

    def gemm(self, A: Any, B: Any, C: Any, alpha: float = 1.0, beta: float = 0.0) -> None:
        """(m, k) @ (k, n) -> (m, n): C = alpha A B + beta C, in place.

        Parameters
        ----------
        A, B : array (m, k) and (k, n)
            Of one dtype, rows or columns contiguous: transposed and cut-out views are fine.
        C : array (m, n)
            Rows contiguous; of the dtype of `A`, or float32 if that is float16 or bfloat16. With `beta` 0 it is not
            read.

        Raises
        ------
        ValueError
            If shapes, dtypes or strides are not of this kind.
        """
        (m, k), n = A.shape, B.shape[1]
        if B.shape[0] != k or C.shape != (m, n):
            raise ValueError(f"shapes {A.shape} @ {B.shape} -> {C.shape} do not fit; give (m, k) @ (k, n) -> (m, n)")
        compute = self._compute(A, B, C)
        if k == 0:
            _scale(C, beta)
        if 0 in (m, k, n):  # without elements, strides mean nothing to cuBLAS
            return
        (op_a, lda), (op_b, ldb), ldc = _operand(A, "A"), _operand(B, "B"), _rows(C, "C")
        self._library.gemm_ex(
            self._handle, op_b, op_a, n, m, k, self._scalar(alpha, C),
            B.data.ptr, _type(B), ldb, A.data.ptr, _type(A), lda, self._scalar(beta, C),
            C.data.ptr, _type(C), ldc, compute, _DEFAULT_ALGORITHM,
        )  # fmt: skip

    def _compute(self, A: Any, B: Any, C: Any) -> int:
        """Return the precision of the sums, having checked that cuBLAS has such a product."""
        a, b, c = A.dtype.name, B.dtype.name, C.dtype.name
        if a != b or a not in _TYPES or c not in (a, "float64" if a == "float64" else "float32"):
            raise ValueError(
                f"there is no product of {a} and {b} into {c}; both operands have one of {', '.join(_TYPES)}, and the "
                "result has the same, or float32 for the 16-bit ones"
            )
        return _COMPUTE[{"float32": self._precision, "float64": "fp64"}.get(a, "fp32")]

    def _scalar(self, value: float, C: Any) -> int:
        """Return the address of a scalar in the precision of the sums, which lives as long as this object."""
        double = C.dtype.name == "float64"
        if (value, double) not in self._scalars:
            self._scalars[value, double] = c_double(value) if double else c_float(value)
        return addressof(self._scalars[value, double])


def _type(X: Any) -> int:
    return _TYPES[X.dtype.name]


def _scale(C: Any, beta: float) -> None:
    """C = beta C, in place. With `beta` 0 it is not read."""
    if beta == 0:
        C.fill(0)
    elif beta != 1:
        C *= beta


def _operand(X: Any, name: str) -> tuple[int, int]:
    """Return cuBLAS's operation, N for contiguous rows and T for contiguous columns, and the leading dimension."""
    (m, n), (rows, columns) = X.shape, (stride // X.itemsize for stride in X.strides)
    rows = max(rows, n) if m == 1 else rows  # the stride of a single row or column means nothing
    columns = max(columns, m) if n == 1 else columns
    if (columns == 1 or n == 1) and rows >= n:
        return _N, rows
    if (rows == 1 or m == 1) and columns >= m:
        return _T, columns
    raise ValueError(
        f"{name} {X.shape} has strides {X.strides}: neither rows nor columns are contiguous; copy it first"
    )


def _rows(X: Any, name: str) -> int:
    """Return the leading dimension of a matrix that must have contiguous rows."""
    operation, leading = _operand(X, name)
    if operation != _N:
        raise ValueError(f"{name} {X.shape} has strides {X.strides}: its rows must be contiguous; copy it first")
    return leading


@cache
def load_cublas() -> Any:
    """Return nvmath's cuBLAS, or None if it cannot be used."""
    try:
        library = importlib.import_module("nvmath.bindings.cublas")
        library.destroy(library.create())
    except ImportError:
        return None
    except Exception as error:  # nvmath's own, for a cuBLAS that it does not find or that does not start
        _log.warning("nvmath-python finds no cuBLAS, so CuPy multiplies: %s: %s", type(error).__name__, error)
        return None
    return library
