"""What :class:`CuBLAS` asks of cuBLAS, against a stand-in that does in NumPy what cuBLAS documents.

The stand-in reads column-major matrices from the addresses, shapes and leading dimensions that it is given.
"""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from mlp_xp.kernels.cuda.cublas import CuBLAS

Array = np.ndarray[Any, Any]

# cudaDataType_t and cublasComputeType_t, as library_types.h and cublas_api.h have them
DTYPES: dict[int, np.dtype[Any]] = {0: np.dtype(np.float32), 1: np.dtype(np.float64), 2: np.dtype(np.float16)}
COMPUTE_32F, COMPUTE_64F, COMPUTE_32F_FAST_16BF, COMPUTE_32F_FAST_TF32 = 68, 70, 75, 77


class DeviceArray:
    """A NumPy array with the attributes of CuPy's that matter here."""

    def __init__(self, host: Array) -> None:
        self.host = host
        self.shape, self.strides, self.dtype = host.shape, host.strides, host.dtype
        self.itemsize, self.nbytes = host.itemsize, host.nbytes
        self.data = self

    @property
    def ptr(self) -> int:
        return self.host.ctypes.data

    @property
    def T(self) -> DeviceArray:
        return DeviceArray(self.host.T)

    def __getitem__(self, key: Any) -> DeviceArray:
        return DeviceArray(self.host[key])


class Library:
    """Column-major products on addresses, and a list of the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def create(self) -> int:
        return 7

    def destroy(self, handle: int) -> None:
        self.calls.append(("destroy", handle))

    def set_stream(self, handle: int, stream: int) -> None:
        self.calls.append(("set_stream", handle, stream))

    def set_workspace(self, handle: int, address: int, size: int) -> None:
        self.calls.append(("set_workspace", handle, address, size))

    def gemm_ex(self, handle: int, op_a: int, op_b: int, m: int, n: int, k: int, *rest: int) -> None:
        alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, compute, algorithm = rest
        self.calls.append(("gemm_ex", handle, compute, algorithm))
        A = _matrix(a, a_type, (m, k) if op_a == 0 else (k, m), lda)
        B = _matrix(b, b_type, (k, n) if op_b == 0 else (n, k), ldb)
        C = _matrix(c, c_type, (m, n), ldc)
        scalar = ctypes.c_double if compute == COMPUTE_64F else ctypes.c_float
        factor, keep = scalar.from_address(alpha).value, scalar.from_address(beta).value
        precision = np.float64 if compute == COMPUTE_64F else np.float32
        product = (A if op_a == 0 else A.T).astype(precision) @ (B if op_b == 0 else B.T).astype(precision)
        C[...] = factor * product + (keep * C if keep else 0)


def _matrix(address: int, code: int, shape: tuple[int, int], leading: int) -> Array:
    """Return the column-major matrix at an address as a NumPy view."""
    rows, columns = shape
    assert leading >= rows
    dtype = DTYPES[code]
    memory: Any = (ctypes.c_char * ((leading * (columns - 1) + rows) * dtype.itemsize)).from_address(address)
    return np.lib.stride_tricks.as_strided(
        np.frombuffer(memory, dtype), shape, (dtype.itemsize, leading * dtype.itemsize)
    )


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def library() -> Library:
    return Library()


@pytest.fixture
def blas(library: Library) -> CuBLAS:
    return CuBLAS(5, DeviceArray(np.empty(64, np.uint8)), library=library)


def matrix(rng: np.random.Generator, shape: tuple[int, int], dtype: Any, layout: str) -> Array:
    """Return a random matrix: its rows contiguous ("rows"), its columns ("columns"), or cut out of a wider one."""
    rows, columns = shape
    if "columns" in layout:
        return matrix(rng, (columns, rows), dtype, layout.replace("columns", "rows")).T
    padding = 3 if "cut" in layout else 0
    return rng.standard_normal((rows, columns + padding)).astype(dtype)[:, :columns]


LAYOUTS = ["rows", "columns", "rows cut", "columns cut"]


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("c_layout", ["rows", "rows cut"])
@pytest.mark.parametrize("b_layout", LAYOUTS)
@pytest.mark.parametrize("a_layout", LAYOUTS)
@pytest.mark.parametrize("dtypes", [("f4", "f4"), ("f8", "f8"), ("f2", "f2"), ("f2", "f4")], ids="-".join)
def test_gemm(dtypes: tuple[str, str], a_layout: str, b_layout: str, c_layout: str, beta: float, blas: CuBLAS) -> None:
    rng = np.random.default_rng(0)
    A, B = matrix(rng, (20, 30), dtypes[0], a_layout), matrix(rng, (30, 7), dtypes[0], b_layout)
    C = matrix(rng, (20, 7), dtypes[1], c_layout)
    want = 0.5 * A.astype(np.float64) @ B + beta * C
    if not beta:
        C[...] = np.nan  # must not be read
    blas.gemm(DeviceArray(A), DeviceArray(B), DeviceArray(C), alpha=0.5, beta=beta)
    np.testing.assert_allclose(C, want, atol={"f8": 1e-13, "f4": 1e-5, "f2": 2e-2}[dtypes[1]])


@pytest.mark.parametrize("shapes", [(1, 30, 7), (20, 1, 7), (20, 30, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_gemm_of_vectors(shapes: tuple[int, int, int], layout: str, blas: CuBLAS, rng: np.random.Generator) -> None:
    m, k, n = shapes
    A, B, C = (matrix(rng, s, "f4", layout) for s in ((m, k), (k, n), (m, n)))
    C = np.ascontiguousarray(C)
    blas.gemm(DeviceArray(A), DeviceArray(B), DeviceArray(C))
    np.testing.assert_allclose(C, A @ B, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "precision", "compute"),
    [
        ("f4", "fp32", COMPUTE_32F),
        ("f4", "tf32", COMPUTE_32F_FAST_TF32),
        ("f4", "bf16", COMPUTE_32F_FAST_16BF),
        ("f2", "tf32", COMPUTE_32F),
        ("f8", "tf32", COMPUTE_64F),
    ],
)
def test_precision_of_the_products(dtype: str, precision: str, compute: int, library: Library) -> None:
    blas = CuBLAS(5, DeviceArray(np.empty(64, np.uint8)), precision=precision, library=library)
    A, B, C = (DeviceArray(np.ones((4, 4), dtype)) for _ in range(3))
    blas.gemm(A, B, C)
    assert library.calls[-1] == ("gemm_ex", 7, compute, -1)


def test_sets_the_stream_before_the_workspace_which_it_would_reset(library: Library) -> None:
    workspace = DeviceArray(np.empty(64, np.uint8))
    blas = CuBLAS(5, workspace, library=library)
    assert library.calls == [("set_stream", 7, 5), ("set_workspace", 7, workspace.ptr, 64)]
    del blas
    gc.collect()
    assert library.calls[-1] == ("destroy", 7)


def test_scalars_outlive_the_call(blas: CuBLAS, library: Library) -> None:
    """A CUDA graph may read them later: equal scalars are one object, which is never written again."""
    addresses = {blas._scalar(value, DeviceArray(np.empty(1, "f4"))) for value in (0.0, 0.25, 0.0, 0.25)}
    assert sorted(ctypes.c_float.from_address(a).value for a in addresses) == [0.0, 0.25]


@pytest.mark.parametrize(
    ("A", "B", "C", "message"),
    [
        (np.ones((2, 3)), np.ones((4, 5)), np.ones((2, 5)), "do not fit"),
        (np.ones((2, 3)), np.ones((3, 5)), np.ones((5, 2)).T, "rows must be contiguous"),
        (np.ones((4, 6))[::2, ::2], np.ones((3, 5)), np.ones((2, 5)), "neither rows nor columns"),
        (np.ones((2, 3)), np.ones((3, 5), "f4"), np.ones((2, 5)), "no product of float64 and float32"),
        (np.ones((2, 3), "f4"), np.ones((3, 5), "f4"), np.ones((2, 5)), "into float64"),
        (np.ones((2, 3), "i4"), np.ones((3, 5), "i4"), np.ones((2, 5), "i4"), "no product of int32"),
    ],
)
def test_refuses_what_cublas_cannot_do(A: Array, B: Array, C: Array, message: str, blas: CuBLAS) -> None:
    with pytest.raises(ValueError, match=message):
        blas.gemm(DeviceArray(A), DeviceArray(B), DeviceArray(C))


def test_importing_needs_no_cuda() -> None:
    code = (
        "import sys, mlp_xp.kernels.cuda.cublas, mlp_xp.kernels.cuda.sources\n"
        "print([m for m in ('cupy', 'nvmath', 'cuda') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[]"
