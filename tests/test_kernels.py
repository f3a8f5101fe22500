"""NumPy's kernels compute what the generic ones say, in their own buffers, on any number of threads."""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from threadpoolctl import threadpool_limits

import mlp_xp as mx
from mlp_xp.kernels import GenericKernels, Kernels
from mlp_xp.kernels.cpu import blas, numpy_
from mlp_xp.kernels.cpu.numpy_ import NumpyKernels
from mlp_xp.kernels.functions import softmax
from mlp_xp.model import grad_sum
from mlp_xp.rows.batches import shards_as_stored
from mlp_xp.rows.source import InMemory

SHAPES = [(1, 1, 2), (1, 5, 3), (7, 1, 2), (5, 3, 4), (63, 17, 129), (1024, 300, 196)]
KERNELS = [("numpy", None), ("numpy, 1 thread", 1), ("numpy, 3 threads", 3)]


@pytest.fixture(autouse=True)
def one_blas_thread():
    """What the kernels leave to their callers."""
    with threadpool_limits(1, "blas"):
        yield


def pair(product_threads):
    return GenericKernels(np, "float64"), NumpyKernels("float64", product_threads)


def assert_close(got, wanted):
    assert got.dtype == wanted.dtype == np.float64
    assert_allclose(got, wanted, rtol=1e-12, atol=1e-12 * max(1, np.abs(wanted).max(initial=0)))


def parameters(rng, d, h):
    """Return W (h, d) and b (h,) as views of one block, as the layout has them."""
    block = rng.standard_normal((1 + d, h))
    return block[1:].T, block[0]


HOSTILE = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.7e308, -1.7e308, 5e-324, -5e-324, 1.0, -1.0]


@pytest.mark.parametrize("kernels", [GenericKernels(np, "float64"), NumpyKernels("float64")], ids=["generic", "numpy"])
def test_relu_of_any_number(kernels):
    """Slope 1 at zeros of both signs, as the lecture has it at zero; nothing but NaN becomes NaN."""
    Z = np.array([HOSTILE])
    kernels.features(Z)
    A = kernels.activate("relu", Z.copy())
    assert_array_equal(A, np.maximum(Z, 0))
    slopes = kernels.activation_gradient("relu", np.ones_like(Z), A)
    assert_array_equal(slopes[Z == Z], (Z >= 0)[Z == Z])


@pytest.mark.parametrize("product_threads", [threads for _, threads in KERNELS], ids=[name for name, _ in KERNELS])
class TestNumpyAgainstGeneric:
    @pytest.mark.parametrize(("n", "d", "h"), SHAPES)
    def test_products(self, product_threads, n, d, h, rng):
        generic, fast = pair(product_threads)
        W, b = parameters(rng, d, h)
        for k in sorted({d, (d + 1) // 2, 1}):  # a ragged shard stops short of d columns
            A, dZ = rng.standard_normal((n, k)), rng.standard_normal((n, h))
            W0, b0, A0, dZ0 = W.copy(), b.copy(), A.copy(), dZ.copy()
            fast.features(A)
            assert_close(fast.affine(A, W, b), generic.affine(A, W, b))
            into, intob = parameters(rng, d, h)
            wanted, wantedb = generic.weight_gradient(dZ, A, into), generic.bias_gradient(dZ, intob)
            assert_close(fast.weight_gradient(dZ, A, into), wanted)
            assert_close(fast.bias_gradient(dZ, intob), wantedb)
            assert_close(fast.input_gradient(dZ, W), generic.input_gradient(dZ, W))
            for array, before in ((W, W0), (b, b0), (A, A0), (dZ, dZ0)):
                assert_array_equal(array, before)

    @pytest.mark.parametrize("name", mx.ACTIVATIONS)
    @pytest.mark.parametrize(("n", "h"), [(1, 1), (5, 3), (130, 17)])
    def test_activations(self, product_threads, name, n, h, rng):
        generic, fast = pair(product_threads)
        Z, dA = 3 * rng.standard_normal((n, h)), rng.standard_normal((n, h))
        Z.flat[:1] = 0
        A = generic.activate(name, Z)
        fast.features(Z)
        got = fast.activate(name, Z.copy())
        assert_close(got, A)
        assert_close(fast.activation_gradient(name, dA.copy(), got), generic.activation_gradient(name, dA, A))

    @pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 2), (7, 3), (600, 10)])
    def test_losses(self, product_threads, n, k, rng):
        generic, fast = pair(product_threads)
        A = 5 * rng.standard_normal((n, k))
        targets = {
            "classes": rng.integers(0, k, n).astype(np.int32),
            "labels": rng.integers(0, 2, (n, k)).astype(np.float64),
            "values": rng.standard_normal((n, k)),
        }
        for loss, y in {output.loss: targets[output.task] for output in mx.OUTPUTS.values()}.items():
            fast.features(A)
            losses, dA = fast.loss(loss, A.copy(), y)
            wanted, wanted_dA = generic.loss(loss, A, y)
            assert losses.shape == (n,)
            assert dA.shape == (n, k)
            assert_close(losses, wanted)
            assert_close(dA, wanted_dA)
            assert_close(fast.sum(losses), generic.sum(wanted))

    def test_features(self, product_threads, rng):
        generic, fast = pair(product_threads)
        pixels, X = rng.integers(0, 256, (5, 4), dtype=np.uint8), rng.standard_normal((5, 4))
        assert_close(fast.features(pixels), generic.features(pixels))
        assert fast.features(X) is X


def test_softmax_is_the_same_for_shifted_logits(rng):
    X = rng.standard_normal((5, 4))
    assert_close(softmax(np, X + 1e4), softmax(np, X))
    assert_allclose(softmax(np, X).sum(axis=1), 1)


@pytest.mark.parametrize("kernels", [GenericKernels(np, "float32"), NumpyKernels("float32")], ids=["generic", "numpy"])
def test_extreme_inputs(kernels):
    Z = np.array([[-1e4, 0.0, 1e4]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        for name in mx.ACTIVATIONS:
            kernels.features(Z)
            A = kernels.activate(name, Z.copy())
            assert np.isfinite(kernels.activation_gradient(name, np.ones_like(Z), A)).all()
        losses, dA = kernels.loss("softmax_cross_entropy", Z.copy(), np.array([0], np.int32))
        assert_allclose(losses, [2e4])
        assert_allclose(dA, [[-1, 0, 1]], atol=1e-30)
        losses, dA = kernels.loss("sigmoid_cross_entropy", Z.copy(), np.array([[1, 0, 0]], np.float32))
        assert_allclose(losses, [2e4 + np.log(2)], rtol=1e-6)
        assert_allclose(dA, [[-1, 0.5, 1]], atol=1e-30)
        losses, dA = kernels.loss("perceptron_criterion", Z.copy(), np.array([[1, 0, 0]], np.float32))
        assert_array_equal(losses, [2e4])
        assert_array_equal(dA, [[-1, 1, 1]])  # on the line is wrong


def add_in_tiles(A, B, C):
    tiles = blas.column_tiles(*C.shape)
    blas.add_tiles(A, B, C, tiles, [A.shape[1]] * len(tiles), threads=2)


def test_plain_numpy_takes_the_place_of_an_unknown_blas(monkeypatch, rng):
    monkeypatch.setattr(blas, "_numpy_blas", lambda: None)
    A, B, C = rng.random((300, 200)), rng.random((200, 150)), rng.random((300, 150))
    wanted = C + A @ B
    for add in (blas.add_matmul, add_in_tiles):
        result = C.copy()
        add(A, B, result)
        assert_allclose(result, wanted, rtol=1e-12)


def operations(cls):
    return {name: f for name, f in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("module", "name", "more"),
    [
        ("generic", "GenericKernels", set()),
        ("cpu.numpy_", "NumpyKernels", set()),
        ("cuda.operations", "CudaKernels", {"grad_sum", "launch"}),
        pytest.param("torch_", "TorchKernels", set(), marks=pytest.mark.needs("torch")),
    ],
)
def test_every_kernel_class_has_the_signatures_of_the_protocol(module, name, more):
    cls = getattr(importlib.import_module(f"mlp_xp.kernels.{module}"), name)
    wanted, got = operations(Kernels), operations(cls)
    assert set(got) == set(wanted) | more
    for operation, function in wanted.items():
        assert list(inspect.signature(got[operation]).parameters) == list(inspect.signature(function).parameters)


@pytest.mark.thread_unsafe(reason="tracemalloc counts for the whole process")
@pytest.mark.parametrize("batch_size", [None, 512])
def test_no_allocation_grows_in_steady_state(batch_size, rng):
    X, y = rng.integers(0, 256, (4096, 64), dtype=np.uint8), rng.integers(0, 10, 4096)
    model = mx.MLP([64, 128, 10])
    states = mx.epochs(model, X, y, batch_size=batch_size, threads=1, plan="dense")
    tracemalloc.start()
    try:
        for _ in range(60):  # until NumPy's own stock of small blocks is filled
            next(states)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(10):
            next(states)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        states.close()
    assert after - before < 10_000
    # theta and its gradient are 39 kB each; the hidden activations of a shard or batch would be 262 kB and more
    assert peak - before < 200_000


def test_one_kernels_object_serves_many_threads(rng):
    model = mx.MLP([20, 30, 5], "tanh", dtype="float64")
    kernels, params = NumpyKernels("float64"), model.layout.split(model.theta)
    sizes = [3, 500, 17, 1024, 64, 900, 1, 333]
    data = [(rng.standard_normal((n, 20)), rng.integers(0, 5, n).astype(np.int32)) for n in sizes]

    def gradient(X, y, kernels):
        into = model.layout.split(np.zeros(model.layout.size))
        loss, _ = grad_sum(model.network, kernels, params, X, y, into)
        return loss, model.layout.join(into)

    wanted = [gradient(X, y, GenericKernels(np, "float64")) for X, y in data]
    start = threading.Barrier(len(data))

    def work(i):
        start.wait()
        return [gradient(*data[(i + j) % len(data)], kernels) for j in range(20)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(len(data)) as pool:
            results = list(pool.map(work, range(len(data))))
    finally:
        sys.setswitchinterval(interval)
    for i, result in enumerate(results):
        for j, (loss, theta) in enumerate(result):
            assert_allclose(loss, wanted[(i + j) % len(data)][0], rtol=1e-12)
            assert_allclose(theta, wanted[(i + j) % len(data)][1], rtol=1e-9, atol=1e-10)


def test_buffers_are_only_scratch(rng):
    """Two passes over different shards of one kernels object leave no trace of each other."""
    model = mx.MLP([6, 5, 3], "relu", dtype="float64")
    params, kernels = model.layout.split(model.theta), NumpyKernels("float64")
    X, y = rng.standard_normal((2000, 6)), rng.integers(0, 3, 2000).astype(np.int32)
    for X_shard, y_shard, _ in shards_as_stored(InMemory(X), y, 1024, model.device) * 2:
        thetas = []
        for k in (kernels, GenericKernels(np, "float64")):
            into = model.layout.split(np.zeros(model.layout.size))
            grad_sum(model.network, k, params, X_shard, y_shard, into)
            thetas.append(model.layout.join(into))
        assert_allclose(thetas[0], thetas[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("batch_size", [128, 300])
def test_ragged_products_are_given_little_more_than_what_is_under_the_staircase(batch_size, rng, monkeypatch):
    """Both ways: rows as far as they need columns, and columns as far as they need rows."""
    rows, d, h = 1000, 256, 64
    extents = rng.integers(1, d + 1, rows)
    X = np.where(np.arange(d) < extents[:, None], rng.integers(1, 256, (rows, d)), 0).astype(np.uint8)
    given = {"forward": 0, "backward": 0}
    add_tiles = numpy_.add_tiles

    def count(A, B, C, tiles, inner, threads):
        multiplications = sum(tile.size() * length for tile, length in zip(tiles, inner, strict=True))
        given["forward" if A.flags.c_contiguous else "backward"] += multiplications
        add_tiles(A, B, C, tiles, inner, threads)

    monkeypatch.setattr(numpy_, "add_tiles", count)
    model = mx.MLP([d, h, 3])
    next(mx.epochs(model, X, rng.integers(0, 3, rows), batch_size=batch_size, plan="ragged", threads=1))
    needed = h * int(extents.sum())
    for multiplications in given.values():
        assert needed <= multiplications < 1.5 * needed  # twice as many without the staircase


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 8, 1), (100, 100, 200), (101, 100, 200), (128, 784, 196), (7, 300, 500)]
)
@pytest.mark.parametrize("c_order", [True, False])
def test_products_that_add_at_every_size(shape, c_order, rng):
    # OpenBLAS before its PR #5980 crashes in batches of products of at most 100^3 multiplications
    m, k, n = shape
    A, B = rng.standard_normal((m, k)), rng.standard_normal((k, n))
    for product in (blas.add_matmul, add_in_tiles):
        C = np.asarray(np.ones((m, n)), order="C" if c_order else "F")
        product(A, B, C)
        assert_allclose(C, 1 + A @ B, rtol=1e-12, atol=1e-12)
