"""What :class:`CuBLAS` asks of cuBLAS, and the products that come of it, against NumPy."""

from __future__ import annotations

import ctypes
import gc
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mlp_xp.kernels.cuda.cublas import CuBLAS

pytestmark = pytest.mark.gpu

Array = np.ndarray[Any, Any]

# cublasComputeType_t, as cublas_api.h has it
COMPUTE_32F, COMPUTE_64F, COMPUTE_32F_FAST_16BF, COMPUTE_32F_FAST_TF32 = 68, 70, 75, 77


class Spy:
    """nvmath's cuBLAS, and a list of the calls."""

    def __init__(self) -> None:
        self.library = importlib.import_module("nvmath.bindings.cublas")
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.calls.append((name, *arguments))
            return getattr(self.library, name)(*arguments)

        return call

    @property
    def products(self) -> int:
        """How many products cuBLAS was asked for."""
        return [name for name, *_ in self.calls].count("gemm_ex")


@pytest.fixture
def cp() -> Any:
    return importlib.import_module("cupy")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def library() -> Spy:
    return Spy()


@pytest.fixture
def blas(cp: Any, library: Spy) -> CuBLAS:
    return make_blas(cp, library)


def make_blas(cp: Any, library: Spy, precision: str = "fp32") -> CuBLAS:
    workspace = cp.empty(2**20, np.uint8)
    return CuBLAS(cp.cuda.get_current_stream().ptr, workspace, precision=precision, library=library)


def matrix(cp: Any, rng: np.random.Generator, shape: tuple[int, int], dtype: Any, layout: str) -> Any:
    """Return a random matrix: its rows contiguous ("rows"), its columns ("columns"), or cut out of a wider one."""
    rows, columns = shape
    if "columns" in layout:
        return matrix(cp, rng, (columns, rows), dtype, layout.replace("columns", "rows")).T
    padding = 3 if "cut" in layout else 0
    return cp.asarray(rng.standard_normal((rows, columns + padding)).astype(dtype))[:, :columns]


LAYOUTS = ["rows", "columns", "rows cut", "columns cut"]


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("c_layout", ["rows", "rows cut"])
@pytest.mark.parametrize("b_layout", LAYOUTS)
@pytest.mark.parametrize("a_layout", LAYOUTS)
@pytest.mark.parametrize("dtypes", [("f4", "f4"), ("f8", "f8"), ("f2", "f4")], ids="-".join)
def test_gemm(
    dtypes: tuple[str, str], a_layout: str, b_layout: str, c_layout: str, beta: float, cp: Any, blas: CuBLAS, rng: Any
) -> None:
    A, B = matrix(cp, rng, (20, 30), dtypes[0], a_layout), matrix(cp, rng, (30, 7), dtypes[0], b_layout)
    C = matrix(cp, rng, (20, 7), dtypes[1], c_layout)
    behind = None if C.base is None else C.base[:, 7:].get()
    want = 0.5 * A.get().astype(np.float64) @ B.get() + beta * C.get()
    if not beta:
        C[...] = np.nan  # must not be read
    blas.gemm(A, B, C, alpha=0.5, beta=beta)
    np.testing.assert_allclose(C.get(), want, atol={"f8": 1e-13, "f4": 1e-5}[dtypes[1]])
    if behind is not None:
        np.testing.assert_array_equal(C.base[:, 7:].get(), behind)


@pytest.mark.parametrize("shapes", [(1, 30, 7), (20, 1, 7), (20, 30, 1), (1, 1, 7), (1, 30, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("layout", ["rows", "columns", "new axis"])
def test_gemm_of_vectors(shapes: tuple[int, int, int], layout: str, cp: Any, blas: CuBLAS, rng: Any) -> None:
    m, k, n = shapes
    A, B = vector(cp, rng, (m, k), layout), vector(cp, rng, (k, n), layout)
    C = vector(cp, rng, (m, n), "rows" if layout == "columns" else layout)
    blas.gemm(A, B, C)
    np.testing.assert_allclose(C.get(), A.get() @ B.get(), atol=1e-5)


def vector(cp: Any, rng: np.random.Generator, shape: tuple[int, int], layout: str) -> Any:
    """Return a random matrix; one row or column is, for a "new axis", a vector's, and has a stride of 0."""
    if layout != "new axis" or 1 not in shape:
        return matrix(cp, rng, shape, "f4", layout.replace("new axis", "rows"))
    numbers = cp.asarray(rng.standard_normal(max(shape)).astype("f4"))
    return numbers[None, :] if shape[0] == 1 else numbers[:, None]


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("shapes", [(0, 3, 4), (2, 3, 0), (0, 3, 0), (0, 0, 4), (0, 0, 0)], ids=str)
def test_a_product_without_elements_is_nothing_to_do(
    shapes: tuple[int, int, int], layout: str, cp: Any, blas: CuBLAS, library: Spy, rng: Any
) -> None:
    m, k, n = shapes
    C = cp.empty((m, n))
    blas.gemm(matrix(cp, rng, (m, k), "f8", layout), matrix(cp, rng, (k, n), "f8", layout), C)
    assert library.products == 0


@pytest.mark.parametrize(("beta", "want"), [(0.0, 0.0), (1.0, 3.0), (0.5, 1.5)])
@pytest.mark.parametrize("a_layout", ["rows", "columns"])
@pytest.mark.parametrize("b_layout", ["rows", "columns"])
@pytest.mark.parametrize("padding", [0, 2])
def test_a_sum_over_nothing_is_zero(
    padding: int, b_layout: str, a_layout: str, beta: float, want: float, cp: Any, blas: CuBLAS, library: Spy, rng: Any
) -> None:
    memory = cp.full((5, 4 + padding), 3.0)
    C = memory[:, :4]
    if not beta:
        C[...] = np.nan  # must not be read
    blas.gemm(matrix(cp, rng, (5, 0), "f8", a_layout), matrix(cp, rng, (0, 4), "f8", b_layout), C, beta=beta)
    np.testing.assert_array_equal(C.get(), np.full((5, 4), want))
    np.testing.assert_array_equal(memory[:, 4:].get(), np.full((5, padding), 3.0))
    assert library.products == 0


@pytest.mark.parametrize(
    ("dtypes", "precision", "compute"),
    [
        (("f4", "f4"), "fp32", COMPUTE_32F),
        (("f4", "f4"), "tf32", COMPUTE_32F_FAST_TF32),
        (("f4", "f4"), "bf16", COMPUTE_32F_FAST_16BF),
        (("f2", "f4"), "tf32", COMPUTE_32F),
        (("f8", "f8"), "tf32", COMPUTE_64F),
    ],
)
def test_precision_of_the_products(
    dtypes: tuple[str, str], precision: str, compute: int, cp: Any, library: Spy
) -> None:
    blas = make_blas(cp, library, precision)
    A, B, C = (cp.ones((4, 4), dtype) for dtype in (dtypes[0], *dtypes))
    blas.gemm(A, B, C)
    name, *_, used, algorithm = library.calls[-1]
    assert (name, used, algorithm) == ("gemm_ex", compute, -1)
    np.testing.assert_array_equal(C.get(), np.full((4, 4), 4.0))


def test_a_handle_gets_its_stream_first_which_resets_the_workspace_and_serves_again(cp: Any, library: Spy) -> None:
    workspace = cp.empty(2**20, np.uint8)
    stream = cp.cuda.Stream(non_blocking=True)
    blas = CuBLAS(stream.ptr, workspace, library=library)
    (created,), (_, handle, *_), _ = library.calls
    assert created == "create"
    assert library.calls[1:] == [
        ("set_stream", handle, stream.ptr),
        ("set_workspace", handle, workspace.data.ptr, workspace.nbytes),
    ]
    del blas
    gc.collect()
    again = CuBLAS(0, workspace, library=library)
    assert library.calls[3:] == [
        ("set_stream", handle, 0),
        ("set_workspace", handle, workspace.data.ptr, workspace.nbytes),
    ]
    assert make_blas(cp, library)._handle != again._handle


def test_scalars_outlive_the_call(cp: Any, blas: CuBLAS) -> None:
    """A CUDA graph may read them later: equal scalars are one object, which is never written again."""
    addresses = {blas._scalar(value, cp.empty(1, "f4")) for value in (0.0, 0.25, 0.0, 0.25)}
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
        (np.ones((0, 3)), np.ones((3, 5), "f4"), np.ones((0, 5)), "no product of float64 and float32"),
    ],
)
def test_refuses_what_cublas_cannot_do(A: Array, B: Array, C: Array, message: str, cp: Any, blas: CuBLAS) -> None:
    with pytest.raises(ValueError, match=message):
        blas.gemm(*(_on_device(cp, X) for X in (A, B, C)))


def _on_device(cp: Any, X: Array) -> Any:
    """Return a view of device memory with the shape and the strides of a view of the host's."""
    if X.base is None:
        return cp.asarray(X)
    return cp.lib.stride_tricks.as_strided(cp.ones(X.base.shape, X.dtype), X.shape, X.strides)
