"""The operations of :class:`CudaKernels`, against the generic ones on NumPy in float64."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import mlp_xp as mx
from mlp_xp.devices import get_device
from mlp_xp.kernels import GenericKernels
from mlp_xp.kernels.cuda.operations import CudaKernels
from mlp_xp.kernels.cuda.sources import FusedHead, Kernel, activations, chip, function_of, kernels_of
from mlp_xp.kernels.staircase import Blocks

from .comparisons import CASES, Backend, Pass, check_case, make_pass
from .launching import Gpu

pytestmark = pytest.mark.gpu

each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
each_activation = pytest.mark.parametrize("activation", sorted(activations()))  # that the kernels know

Array = np.ndarray[Any, Any]


class Recorder(CudaKernels):
    """Notes what it launches, and may be told what GPU there is.

    Attributes
    ----------
    launched : list of tuple
        The name of each kernel, and the activation that it was compiled for.
    """

    def __init__(self, dtype: str, precision: str | None = None, chip: tuple[int, int] | None = None) -> None:
        super().__init__(get_device("cuda").xp, dtype, precision)
        self.chip = chip
        self.launched: list[tuple[Any, ...]] = []

    def _chip(self) -> tuple[int, int]:
        return self.chip or super()._chip()

    def launch(self, kernel: Kernel, grid: int, *arguments: Any) -> None:
        super().launch(kernel, grid, *arguments)
        self.launched.append((kernel.name, *(value for name, value in kernel.macros if name == "ACTIVATION")))


class Problem(Backend):
    """Kernels on the GPU."""

    kernels: Recorder


def backend(dtype: str, **options: Any) -> Problem:
    return Problem(Recorder(dtype, **options), get_device("cuda"))


@pytest.fixture
def gpu(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    monkeypatch.setattr("mlp_xp.kernels.cuda.products._WORKSPACE", 2**20)  # new for each test: less to allocate
    gpu = Gpu(pytestconfig.getoption("emulated_cuda"))
    with gpu.apart():
        yield gpu


@pytest.fixture
def fixed_rng() -> np.random.Generator:
    """Draw the same numbers in every run, none of which is within a float's rounding of the ReLUs' kink."""
    return np.random.default_rng(0)


# ----------------------------------------------------------------------------------------------------------------------
# The same numbers


# single numbers; rows of whole packs, on more blocks than one; rows of odd length; no rows
@pytest.mark.parametrize("shape", [(1, 1, 2), (70, 9, 12), (70, 12, 5), (0, 3, 4)], ids=str)
@each_dtype
@pytest.mark.parametrize("name", CASES)
def test_operation_equals_the_generic_one(name: str, dtype: str, shape: tuple[int, int, int], gpu: Gpu, rng) -> None:
    check_case(backend(dtype), name, rng, shape)


@pytest.mark.parametrize("shape", [(70, 9, 12), (0, 3, 4)], ids=str)
@each_dtype
@pytest.mark.parametrize("name", ["affine, tanh", "weight_gradient", "input_gradient", "bias_gradient alone"])
def test_cupy_multiplies_without_nvmath(
    name: str, dtype: str, shape: tuple[int, int, int], gpu: Gpu, rng, monkeypatch
) -> None:
    monkeypatch.setattr("mlp_xp.kernels.cuda.products.load_cublas", lambda: None)
    fast = backend(dtype)
    check_case(fast, name, rng, shape)
    assert not fast.kernels._handles.by_place


@each_dtype
@pytest.mark.parametrize("output", mx.OUTPUTS)
@each_activation
def test_pass_equals_the_generic_one(
    activation: str, output: str, dtype: str, gpu: Gpu, fixed_rng: Any, targets
) -> None:
    fast = backend(dtype)
    make_pass(fixed_rng, [9, 12, 5, 3], activation, output, 70, targets).check(fast)
    last = "sigmoid" if output in ("softmax_of_sigmoid", "sigmoid_mse") else "identity"
    layers = [activation, activation, last]
    launched = [x for x in fast.kernels.launched if len(x) == 2]
    one_shard = [("bias_activation", g) for g in layers] + [("activation_gradient", g) for g in layers[::-1]]
    assert launched == 2 * one_shard  # nothing took the generic way


@each_activation
def test_every_run_has_the_same_bits(activation: str, gpu: Gpu, rng, targets) -> None:
    problem = make_pass(rng, [9, 12, 5, 3], activation, "softmax", 200, targets)
    gpu.in_every_order(lambda: problem.run(backend("float32")))


@pytest.mark.parametrize("precision", ["fp32", "fp16x2"])
def test_products_with_blocks_are_those_with_the_matrix(precision: str, gpu: Gpu, rng) -> None:
    X = rng.integers(0, 256, (70, 20)).astype(np.uint8)
    X[10:, 12:] = X[50:, 5:] = 0
    W, b, dZ = rng.standard_normal((6, 23)), rng.standard_normal(6), rng.standard_normal((70, 6))
    fast = backend("float32", precision=precision)
    kernels = fast.kernels
    A = kernels.features(gpu.put(X))
    blocks = Blocks(tuple(gpu.cp.ascontiguousarray(A[rows, :d]) for rows, d in CUTS))
    want_Z = X / 255 @ W.astype(np.float32).astype(float)[:, :20].T + b.astype(np.float32)
    want_dW = np.ones((6, 23))
    want_dW[:, :20] += dZ.astype(np.float32).astype(float).T @ (X / 255)
    for features in (A, blocks):
        Z = kernels.activate("identity", kernels.affine(features, *map(fast.put, (W, b))))
        fast.assert_close(Z, want_Z)
        into = fast.put(np.ones((23, 6))).T
        kernels.weight_gradient(fast.put(dZ), features, into)
        fast.assert_close(into, want_dW)


CUTS = [(slice(0, 10), 20), (slice(10, 50), 12), (slice(50, 70), 5)]  # rows of a block, and its width


# ----------------------------------------------------------------------------------------------------------------------
# One kernel for the text


def run_head(problem: Pass, fast: Problem) -> list[Any] | None:
    """Return the sum of losses () and of gradients (P,) over two shards, by the kernel alone; None if it declines."""
    xp, layout = fast.device.xp, problem.model.layout
    params, into = (layout.split(fast.put(vector), xp) for vector in (problem.theta, np.zeros_like(problem.theta)))
    X, y, loss = fast.put(problem.X), fast.put(problem.y), 0
    for rows in (slice(0, len(X) // 3), slice(len(X) // 3, len(X))):
        part = fast.kernels.grad_sum(problem.model.network, params, X[rows], y[rows], into)
        if part is None:
            return None
        loss = loss + part
    return [loss, layout.join(into, xp)]


def check_head(gpu: Gpu, problem: Pass, fast: Problem) -> None:
    """Assert that the head has the numbers of the generic kernels, in every order."""
    host = problem._replace(theta=problem.theta.astype(np.float32).astype(float))
    want = host.run(Backend(GenericKernels(np, "float64"), get_device("cpu")))
    for got, w in zip(gpu.in_every_order(lambda: run_head(problem, fast)), want, strict=True):
        fast.assert_close(gpu.put(got), np.asarray(w))


HEADS = [FusedHead(h, k, tile) for h, k, tile in [(4, 2, 32), (196, 10, 64), (196, 10, 32)]]


@pytest.mark.parametrize(
    ("activation", "head"),
    [("sigmoid", head) for head in HEADS] + [(g, FusedHead(36, 3, 64)) for g in sorted(activations())],
    ids=str,
)
def test_head_equals_the_text(activation: str, head: FusedHead, gpu: Gpu, fixed_rng: Any, targets) -> None:
    problem = make_pass(fixed_rng, [9, head.hidden, head.classes], activation, "softmax", 150, targets)
    shared = FusedHead(head.hidden, head.classes, 64).shared_bytes - (head.tile == 32)
    fast = backend("float32", chip=(3, shared))
    check_head(gpu, problem, fast)
    assert set(fast.kernels.launched) == {("fused_head", activation), ("add_shards",)}


@pytest.mark.parametrize("rows", [100, 33])
def test_head_with_halves_equals_the_text(rows: int, gpu: Gpu, fixed_rng: Any, targets) -> None:
    problem = make_pass(fixed_rng, [9, 36, 3], "tanh", "softmax", rows, targets)
    fast = backend("float32", precision="fp16x2")
    check_head(gpu, problem, fast)
    names = {name for name, *_ in fast.kernels.launched}
    assert names == {"fused_head", "split_matrix", "join_products", "add_shards"}


def test_text_with_halves_equals_the_generic_one(gpu: Gpu, fixed_rng: Any, targets) -> None:
    problem = make_pass(fixed_rng, [9, 10, 5, 3], "tanh", "softmax", 70, targets)
    problem.check(backend("float32", precision="fp16x2"))


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
def test_head_leaves_other_networks_to_the_text(
    sizes: list[int], output: str, dtype: str, shared: int, gpu: Gpu, rng, targets
) -> None:
    fast = backend(dtype, chip=(3, shared))
    assert run_head(make_pass(rng, sizes, "tanh", output, 20, targets), fast) is None
    assert not fast.kernels.launched


# ----------------------------------------------------------------------------------------------------------------------
# What one call leaves to the next


def assert_column_sums(kernels: CudaKernels, dZ: Any, want: Array) -> None:
    """Assert that the bias gradient of an array is this, added to ones."""
    got = kernels.bias_gradient(dZ, kernels.xp.ones(dZ.shape[1], dtype=kernels.dtype))
    np.testing.assert_allclose(got.get(), 1 + want, rtol=1e-12, atol=1e-12)


def test_sum_is_kept_for_its_own_array_only(gpu: Gpu, rng) -> None:
    kernels = Recorder("float64")
    dA, A, other = gpu.put(*rng.standard_normal((3, 70, 12)))
    dZ = kernels.activation_gradient("tanh", dA, A)
    for array in (other, dZ, dZ):  # an unknown one, the one that was kept, and that one again
        assert_column_sums(kernels, array, array.get().sum(axis=0))


def test_threads_keep_their_own_sums(gpu: Gpu, rng) -> None:
    kernels = Recorder("float64")
    dA, A, other = gpu.put(*rng.standard_normal((3, 70, 12)))
    dZ = kernels.activation_gradient("tanh", dA, A)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(kernels.activation_gradient, "tanh", other, A).result()
    want = dZ.get().sum(axis=0)
    dZ.fill(np.nan)  # nobody adds it up a second time
    assert_column_sums(kernels, dZ, want)


def test_streams_have_tickets_of_their_own(gpu: Gpu, rng) -> None:
    """Blocks of launches on two streams may run at the same time: which is last of its own must not depend on it."""
    kernels = Recorder("float64")
    dA, A = gpu.put(*rng.standard_normal((2, 70, 12)))
    for stream in (gpu.cp.cuda.Stream(non_blocking=True) for _ in range(2)):
        gpu.cp.cuda.get_current_stream().synchronize()
        with stream:
            dZ = kernels.activation_gradient("tanh", dA.copy(), A)
            assert_column_sums(kernels, dZ, dZ.get().sum(axis=0))
    assert len({ticket.data.ptr for ticket in kernels._kept.tickets.values()}) == 2


def test_memory_is_given_back_after_a_pass(gpu: Gpu, rng) -> None:
    kernels, pool = Recorder("float64"), gpu.cp.cuda.MemoryPool()
    A, dA = gpu.put(*rng.standard_normal((2, 70, 12)))
    kernels.activation_gradient("tanh", dA.copy(), A)  # makes the ticket
    with gpu.cp.cuda.using_allocator(pool.malloc):
        dZ = kernels.activation_gradient("tanh", dA.copy(), A)
        into = kernels.bias_gradient(dZ, gpu.cp.zeros(12))
        del dZ, into
        losses, dA = kernels.loss("half_squared_error", A, A)
        total = kernels.sum(losses)
        del losses, dA, total
    assert pool.used_bytes() == 0


def test_sum_of_losses_is_kept_for_its_own_array_only(gpu: Gpu, rng) -> None:
    kernels = Recorder("float64")
    A, Y = gpu.put(*rng.standard_normal((2, 70, 3)))
    losses, _ = kernels.loss("half_squared_error", A, Y)
    want = losses.get().sum()
    for array in (losses + 1, losses, losses):
        assert float(kernels.sum(array)) == pytest.approx(float(array.get().sum()), rel=1e-12)
    kept, _ = kernels.loss("half_squared_error", A, Y)
    kept.fill(np.nan)  # nobody adds it up a second time
    assert float(kernels.sum(kept)) == pytest.approx(want, rel=1e-12)


# ----------------------------------------------------------------------------------------------------------------------
# What the kernels do not take

SPOILED = {
    "columns first": lambda cp, X: cp.ascontiguousarray(X.T).T,
    "gaps": lambda cp, X: cp.repeat(X, 2, axis=1)[:, ::2],
    "off the boundary": lambda cp, X: cp.concatenate([cp.zeros(1, X.dtype), X.ravel()])[1:].reshape(X.shape),
    "another dtype": lambda cp, X: X.astype(cp.float32),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_what_the_kernels_do_not_take_goes_the_generic_way(spoil, gpu: Gpu, rng) -> None:
    kernels, generic = Recorder("float64"), GenericKernels(np, "float64")
    Z, dA, A = (spoil(gpu.cp, gpu.put(x)) for x in rng.standard_normal((3, 70, 12)))
    b = gpu.put(rng.standard_normal(12))
    close = 1e-5 if Z.dtype == np.float32 else 1e-12

    def check(got: Any, want: Array) -> None:
        np.testing.assert_allclose(got.get(), want, rtol=0, atol=close * max(1, np.abs(want).max()))

    check(kernels.activate("tanh", Z), generic.activate("tanh", Z.get()))
    pending = kernels.affine(Z.astype(float), gpu.cp.eye(12), b)._replace(product=Z)
    check(kernels.activate("tanh", pending), generic.activate("tanh", (Z + b).get()))
    want = generic.activation_gradient("tanh", dA.get(), A.get())
    dZ = kernels.activation_gradient("tanh", dA, A)
    check(dZ, want)
    assert not kernels.launched
    check(kernels.bias_gradient(dZ, b.copy()), want.sum(axis=0) + b.get())


@pytest.mark.parametrize("which", [(True, False), (False, True), (True, True)], ids=["dA", "A", "both"])
def test_one_matrix_that_a_kernel_does_not_take_is_enough(which: tuple[bool, bool], gpu: Gpu, rng) -> None:
    kernels, off = Recorder("float32"), SPOILED["off the boundary"]
    dA, A = (
        off(gpu.cp, gpu.put(x)) if spoiled else gpu.put(x)
        for x, spoiled in zip(rng.uniform(0.1, 0.9, (2, 7, 8)).astype(np.float32), which, strict=True)
    )
    want = (dA * A * (1 - A)).get()
    np.testing.assert_allclose(kernels.activation_gradient("sigmoid", dA, A).get(), want, rtol=1e-5)
    assert not kernels.launched


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
@pytest.mark.parametrize("name", ["softmax_cross_entropy", *sorted(kernels_of("losses"))])
def test_losses_take_any_matrix(name: str, spoil, gpu: Gpu, rng) -> None:
    kernels = Recorder("float64")
    A = rng.standard_normal((70, 3)).astype(np.float32).astype(float)
    labels = rng.integers(0, 3, 70)
    Y = labels if name == "softmax_cross_entropy" else np.eye(3)[labels]
    y = gpu.put(labels.astype(np.int64)) if name == "softmax_cross_entropy" else spoil(gpu.cp, gpu.put(Y))
    losses, dA = kernels.loss(name, spoil(gpu.cp, gpu.put(A)), y)
    want, slope = GenericKernels(np, "float64").loss(name, A, Y)
    np.testing.assert_allclose(losses.get(), want, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dA.get(), slope, rtol=1e-12, atol=1e-12)
    assert kernels.launched == [(name,)]


# ----------------------------------------------------------------------------------------------------------------------
# Around it


def test_kernels_are_made_once(gpu: Gpu) -> None:
    kernel = Kernel("activation", "bias_activation", (("ACTIVATION", "tanh"),))
    function = function_of(gpu.cp, kernel, "float", 0)
    assert function_of(gpu.cp, kernel._replace(), "float", 0) is function
    assert function_of(gpu.cp, kernel, "double", 0) is not function
    assert function.options == ("-std=c++17", "-DREAL=float", "-DACTIVATION=tanh")
    assert "#include" not in function.code  # CuPy's cache knows a kernel by its text


def test_kernels_ask_for_the_shared_memory_that_they_need(gpu: Gpu) -> None:
    kernel = FusedHead(256, 16, 64).kernel("tanh")
    assert kernel.shared > 48 * 1024  # what a block gets unasked
    assert function_of(gpu.cp, kernel, "float", 0).max_dynamic_shared_size_bytes == kernel.shared


def test_the_chip_is_the_devices(gpu: Gpu) -> None:
    attributes = gpu.cp.cuda.Device().attributes
    blocks, shared = chip(gpu.cp, gpu.cp.cuda.Device().id)
    assert blocks == 2 * attributes["MultiProcessorCount"]
    assert attributes["MaxSharedMemoryPerBlock"] <= shared == attributes["MaxSharedMemoryPerBlockOptin"]
