"""The class that launches the CUDA kernels, with NumPy for CuPy and the CPU's shim for a GPU."""

from __future__ import annotations

import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
import pytest

import mlp_xp as mx
from mlp_xp.devices import CupyDevice, Device, NumpyDevice, get_device
from mlp_xp.engines.host import HostEngine
from mlp_xp.kernels import ACTIVATIONS, LOSSES, GenericKernels
from mlp_xp.kernels.cuda.operations import CudaKernels
from mlp_xp.kernels.cuda.sources import FusedHead, Kernel, activations, kernels_of, source
from mlp_xp.rows.batches import shards_as_stored
from mlp_xp.rows.source import InMemory

from .comparisons import CASES, Backend, Pass, check_case, make_pass
from .kernel_build import CpuModule, check_arguments, cpu_module

on_linux = pytest.mark.needs("g++")
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
each_activation = pytest.mark.parametrize("activation", sorted(activations()))  # that the kernels know

Array = np.ndarray[Any, Any]


BARRIER = "__syncthreads();"
launched_module = cpu_module  # a test puts another in its place


class ShimKernels(CudaKernels):
    """Launches on the CPU what it is asked to launch, if its arguments have the types of the C signature."""

    def __init__(self, dtype: str, reverse: bool = False, chip: tuple[int, int] = (3, 0)) -> None:
        super().__init__(xp, dtype)
        self.reverse, self.chip, self.launched = reverse, chip, []
        self._library = None

    def _place(self) -> tuple[int, int]:
        return 0, 0

    def _address(self, X: Array) -> int:
        return X.ctypes.data

    def _chip(self) -> tuple[int, int]:
        return self.chip

    def launch(self, kernel: Kernel, grid: int, *arguments: Any) -> None:
        module = launched_module(kernel.source, REAL=self._real, **dict(kernel.macros))
        check_arguments(module.parameters[kernel.name], arguments)
        assert type(grid) is int
        columns, lanes = (*kernel.block, 1)[:2]
        module.launch(kernel.name, grid, (columns, lanes), *arguments, shared=kernel.shared, reverse=self.reverse)
        self.launched.append((kernel.name, *(value for name, value in kernel.macros if name == "ACTIVATION")))


def backend(dtype: str, reverse: bool = False) -> Backend:
    return Backend(ShimKernels(dtype, reverse), get_device("cpu"))


# ----------------------------------------------------------------------------------------------------------------------
# The same numbers


# single numbers; rows of whole packs, on more blocks than one; rows of odd length; no rows
@pytest.mark.parametrize("shape", [(1, 1, 2), (70, 9, 12), (70, 12, 5), (0, 3, 4)], ids=str)
@each_dtype
@pytest.mark.parametrize("name", CASES)
@on_linux
def test_operation_equals_the_generic_one(name: str, dtype: str, shape: tuple[int, int, int], rng) -> None:
    check_case(backend(dtype), name, rng, shape)


@each_dtype
@pytest.mark.parametrize("output", mx.OUTPUTS)
@each_activation
@on_linux
def test_pass_equals_the_generic_one(activation: str, output: str, dtype: str, rng, targets) -> None:
    fast = backend(dtype)
    make_pass(rng, [9, 12, 5, 3], activation, output, 70, targets).check(fast)
    last = "sigmoid" if output in ("softmax_of_sigmoid", "sigmoid_mse") else "identity"
    layers = [activation, activation, last]
    launched = [x for x in fast.kernels.launched if len(x) == 2]
    one_shard = [("bias_activation", g) for g in layers] + [("activation_gradient", g) for g in layers[::-1]]
    assert launched == 2 * one_shard  # nothing took the generic way


@each_activation
@on_linux
def test_order_of_threads_and_blocks_does_not_show(activation: str, rng, targets) -> None:
    problem = make_pass(rng, [9, 12, 5, 3], activation, "softmax", 200, targets)
    ascending, descending = problem.run(backend("float32")), problem.run(backend("float32", reverse=True))
    for a, b in zip(ascending, descending, strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("batch_size", [None, 48])
@each_dtype
@on_linux
def test_training_equals_numpys(dtype: str, batch_size: int | None, rng, monkeypatch) -> None:
    X, y = rng.integers(0, 256, (200, 20)).astype(np.uint8), rng.integers(0, 3, 200)
    want, got = (mx.MLP([20, 12, 3], dtype=dtype, seed=1) for _ in range(2))
    arguments: dict[str, Any] = {"epochs": 5, "optimizer": mx.SGD(lr=0.5), "batch_size": batch_size, "plan": "dense"}
    expected = mx.fit(want, X, y, **arguments)
    monkeypatch.setattr("mlp_xp.loop.make_engine", HostEngine)
    got.kernels = ShimKernels(dtype)
    history = mx.fit(got, X, y, **arguments)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(history.loss, expected.loss, rtol=tolerance)
    np.testing.assert_allclose(got.theta, want.theta, rtol=0, atol=tolerance)
    assert got.theta.dtype == dtype
    assert got.kernels.launched


def test_the_first_activations_and_losses_have_kernels() -> None:
    assert {"sigmoid", "tanh", "relu", "leaky_relu", "identity"} <= activations() <= set(ACTIVATIONS)
    assert (
        {"sigmoid_cross_entropy", "half_squared_error", "perceptron_criterion"} <= kernels_of("losses") <= set(LOSSES)
    )


# ----------------------------------------------------------------------------------------------------------------------
# One kernel for the text


def run_head(problem: Pass, kernels: ShimKernels) -> list[Array] | None:
    """Return the sum of losses () and of gradients (P,) over two shards, by the kernel alone; None if it declines."""
    layout, fast = problem.model.layout, Backend(kernels, get_device("cpu"))
    params, into = (layout.split(fast.put(vector)) for vector in (problem.theta, np.zeros_like(problem.theta)))
    X, y, loss = fast.put(problem.X), fast.put(problem.y), np.float32(0)
    for rows in (slice(0, len(X) // 3), slice(len(X) // 3, len(X))):
        part = kernels.grad_sum(problem.model.network, params, X[rows], y[rows], into)
        if part is None:
            return None
        loss += part
    return [loss, layout.join(into)]


HEADS = [FusedHead(h, k, tile) for h, k, tile in [(4, 2, 32), (196, 10, 64), (196, 10, 32), (256, 16, 64), (36, 3, 64)]]


@pytest.mark.parametrize("head", HEADS, ids=str)
@each_activation
@on_linux
def test_head_equals_the_text(activation: str, head: FusedHead, rng, targets) -> None:
    problem = make_pass(rng, [9, head.hidden, head.classes], activation, "softmax", 200, targets)
    host = problem._replace(theta=problem.theta.astype(np.float32).astype(float))
    want = host.run(Backend(GenericKernels(np, "float64"), get_device("cpu")))
    shared = FusedHead(head.hidden, head.classes, 64).shared_bytes - (head.tile == 32)
    results = []
    for reverse in (False, True):
        kernels = ShimKernels("float32", reverse, chip=(3, shared))
        results.append(run_head(problem, kernels))
        for got, w in zip(results[-1], want, strict=True):
            Backend(kernels, get_device("cpu")).assert_close(got, np.asarray(w))
        assert kernels.launched == 2 * [("fused_head", activation), *3 * [("add_shards",)]]
    for ascending, descending in zip(*results, strict=True):
        assert ascending.tobytes() == descending.tobytes()


@pytest.mark.parametrize("k", range(source("fused_head").count(BARRIER)))
@on_linux
def test_head_needs_its_barriers(k: int, rng, targets, monkeypatch) -> None:
    """Without any one of its barriers the kernel would fail the test above."""
    pieces = source("fused_head").split(BARRIER)
    text = BARRIER.join(pieces[: k + 1]) + BARRIER.join(pieces[k + 1 :])
    problem = make_pass(rng, [9, 36, 3], "sigmoid", "softmax", 200, targets)
    want = run_head(problem, ShimKernels("float32", chip=(1, 2**18)))

    def module(name: str, **macros: Any) -> CpuModule:
        return CpuModule(text, macros) if name == "fused_head" else cpu_module(name, **macros)

    monkeypatch.setattr(f"{__name__}.launched_module", module)
    for reverse in (False, True):
        got = run_head(problem, ShimKernels("float32", reverse, chip=(1, 2**18)))
        if any(g.tobytes() != w.tobytes() for g, w in zip(got, want, strict=True)):
            return
    pytest.fail("nobody would notice")


@pytest.mark.parametrize(
    ("sizes", "output", "dtype", "shared"),
    [
        ([9, 3], "softmax", "float32", 2**18),
        ([9, 12, 12, 3], "softmax", "float32", 2**18),
        ([9, 10, 3], "softmax", "float32", 2**18),
        ([9, 12, 3], "sigmoid", "float32", 2**18),
        ([9, 12, 3], "softmax_of_sigmoid", "float32", 2**18),
        ([9, 12, 3], "softmax", "float64", 2**18),
        ([9, 12, 3], "softmax", "float32", 2**10),
    ],
)
@on_linux
def test_head_leaves_other_networks_to_the_text(
    sizes: list[int], output: str, dtype: str, shared: int, rng, targets
) -> None:
    kernels = ShimKernels(dtype, chip=(3, shared))
    assert run_head(make_pass(rng, sizes, "tanh", output, 20, targets), kernels) is None
    assert not kernels.launched


# ----------------------------------------------------------------------------------------------------------------------
# What one call leaves to the next


@on_linux
def test_sum_is_kept_for_its_own_array_only(rng) -> None:
    kernels, generic = ShimKernels("float64"), GenericKernels(np, "float64")
    dA, A, other = rng.standard_normal((3, 70, 12))
    dZ = kernels.activation_gradient("tanh", dA, A)
    for array in (other, dZ, dZ):  # an unknown one, the one that was kept, and that one again
        want = generic.bias_gradient(array, np.ones(12))
        np.testing.assert_allclose(kernels.bias_gradient(array, np.ones(12)), want, rtol=1e-12, atol=1e-12)


@on_linux
def test_threads_keep_their_own_sums(rng) -> None:
    kernels = ShimKernels("float64")
    dA, A, other = rng.standard_normal((3, 70, 12))
    dZ = kernels.activation_gradient("tanh", dA, A)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(kernels.activation_gradient, "tanh", other, A).result()
    want = dZ.sum(axis=0)
    dZ[:] = np.nan  # nobody adds it up a second time
    np.testing.assert_allclose(kernels.bias_gradient(dZ, np.zeros(12)), want, rtol=1e-12, atol=1e-12)


@on_linux
def test_memory_is_given_back_after_a_pass(rng) -> None:
    kernels = ShimKernels("float64")
    dZ = kernels.activation_gradient("tanh", *rng.standard_normal((2, 70, 12)).copy())
    alive = weakref.ref(dZ)
    kernels.bias_gradient(dZ, np.zeros(12))
    del dZ
    assert alive() is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda X: np.asfortranarray(X),
        lambda X: np.repeat(X, 2, axis=1)[:, ::2],
        lambda X: np.concatenate([[0.0], X.ravel()])[1:].reshape(X.shape),
        lambda X: X.astype(np.float32),
    ],
    ids=["columns first", "gaps", "off the boundary", "another dtype"],
)
@on_linux
def test_what_the_kernels_do_not_take_goes_the_generic_way(spoil, rng) -> None:
    kernels, generic = ShimKernels("float64"), GenericKernels(np, "float64")
    Z, dA = (spoil(rng.standard_normal((70, 12))) for _ in range(2))
    b, A = rng.standard_normal(12), np.tanh(Z)
    got, want = kernels.activate("tanh", Z), generic.activate("tanh", Z)
    np.testing.assert_array_equal(got, want)
    product = kernels.affine(Z, np.eye(12), b)._replace(product=Z)
    np.testing.assert_array_equal(kernels.activate("tanh", product), generic.activate("tanh", Z + b))
    dZ, want = kernels.activation_gradient("tanh", dA, A), generic.activation_gradient("tanh", dA, A)
    np.testing.assert_array_equal(dZ, want)
    assert not kernels.launched
    want = generic.bias_gradient(want, b)
    atol = 70 * np.abs(dZ).max() * np.finfo(dA.dtype).eps  # of a sum whose terms may cancel
    np.testing.assert_allclose(kernels.bias_gradient(dZ, b), want, rtol=0, atol=atol)


# ----------------------------------------------------------------------------------------------------------------------
# Around it


@pytest.mark.parametrize(("device", "shards"), [(NumpyDevice("cpu", np), 59), (CupyDevice("cuda", np), 1)])
def test_full_batch_of_mnist_is_one_shard_on_a_gpu(device: Device, shards: int) -> None:
    X, y = np.zeros((60_000, 1)), np.zeros(60_000)
    cut = shards_as_stored(InMemory(X), y, device.shard_rows)
    assert len(cut) == shards
    assert sum(len(shard.X) for shard in cut) == 60_000


def test_import_needs_no_cupy() -> None:
    code = "import sys, mlp_xp.kernels.cuda.operations; sys.exit('cupy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_kernels_are_made_once_and_launched_by_cupy() -> None:
    made, launched = [], []

    class CuPy:
        float32, float64 = np.float32, np.float64

        @staticmethod
        def RawKernel(code: str, name: str, options: tuple[str, ...]) -> Any:
            assert f" {name}(" in code
            assert "#include" not in code
            made.append((name, options))
            return lambda *launch, shared_mem: launched.append((name, *launch))

    kernel = Kernel("activation", "bias_activation", (("ACTIVATION", "tanh"),))
    for dtype in ("float32", "float32", "float64"):
        CudaKernels(CuPy, dtype).launch(kernel, 3, None, np.int32(5))
    options = ["-std=c++17", "-DREAL=float", "-DACTIVATION=tanh"], ["-std=c++17", "-DREAL=double", "-DACTIVATION=tanh"]
    assert made == [("bias_activation", tuple(o)) for o in options]
    assert launched == 3 * [("bias_activation", (3,), (256,), (None, 5))]
