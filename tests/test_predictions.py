"""Predictions by the compiled library are the text's, for rows of any kind, with the same bits on any threads."""

from __future__ import annotations

import copy
import ctypes
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from threadpoolctl import threadpool_limits

import mlp_xp as mx
from mlp_xp.devices.blas_threads import at_most
from mlp_xp.inference.compiled import Predictor
from mlp_xp.kernels.cpu import compiled

pytestmark = pytest.mark.skipif(compiled.library() is None, reason="needs the compiled library")

SIZES = [(784, 196, 10), (5, 1, 1), (3, 2), (1, 1, 1, 1), (30, 70, 40, 3), (130, 16, 17, 1), (2000, 3)]
ROUNDING = {"float32": 2e-6, "float64": 4e-15}  # of what is added up, per layer


def draw_model(rng, sizes, dtype="float64"):
    names = rng.choice(["relu", "leaky_relu", "tanh", "sigmoid", "identity"], len(sizes) - 2)
    output = rng.choice(["identity", "sigmoid_mse"])
    model = mx.MLP(sizes, list(map(str, names)), str(output), dtype=dtype, seed=int(rng.integers(1000)))
    model.biases = [rng.standard_normal(b.shape) for b in model.biases]
    return model


def draw_rows(rng, n, d, dtype):
    """Return rows of which any share is zero, as bytes or as numbers."""
    X = np.where(rng.random((n, d)) < rng.random(), rng.random((n, d)), 0)
    return (255 * X).astype(np.uint8) if rng.random() < 0.5 else X.astype(dtype)


def by_the_text(model, X):
    """Return the outputs in float64, and how much is added up for them: products and biases by size."""
    A = X / 255 if X.dtype == np.uint8 else X.astype(np.float64)
    terms = 0.0
    for W, b, g in zip(model.weights, model.biases, model.network.g[1:], strict=True):
        W, b = W.astype(np.float64), b.astype(np.float64)
        terms = terms * np.abs(W).sum(axis=1).max() + (np.abs(A) @ np.abs(W).T + np.abs(b)).max()
        A = mx.kernels.ACTIVATIONS[g].value(np, A @ W.T + b)
    return A, max(1.0, terms)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_outputs_are_the_texts(sizes, dtype, rng):
    model = draw_model(rng, sizes, dtype)
    assert isinstance(model._predictor, Predictor)
    for n in (1, 2, 47, 95, 96, 97, 300, int(rng.integers(1, 2000))):
        X = draw_rows(rng, n, sizes[0], dtype)
        right, terms = by_the_text(model, X)
        got = model.outputs(X)
        assert got.dtype == dtype
        assert np.max(np.abs(got - right)) <= ROUNDING[dtype] * terms, (n, X.dtype)


def test_mnist_has_the_numbers_of_numpy(monkeypatch):
    X = mx.datasets.mnist()[1].X
    model = mx.MLP([784, 196, 10], seed=3)
    got, loss = model.outputs(X), model.evaluate(X, np.arange(len(X)) % 10)
    monkeypatch.setattr(Predictor, "of", classmethod(lambda cls, *arguments: None))
    plain = copy.deepcopy(model)
    assert plain._predictor is None
    np.testing.assert_allclose(got, plain.outputs(X), atol=5e-6)
    assert loss == pytest.approx(plain.evaluate(X, np.arange(len(X)) % 10), rel=1e-6)


@pytest.mark.parametrize("sizes", [(784, 196, 10), (20, 64, 64, 1)], ids=str)
def test_the_number_of_threads_leaves_the_bits(sizes, rng):
    model = draw_model(rng, sizes, "float32")
    for n in (1, 100, 1000, 9000):
        X = draw_rows(rng, n, sizes[0], "float32")
        outputs = []
        for threads in (1, 2, 3):
            with at_most(threads):
                outputs.append(model.outputs(X))
        assert_array_equal(outputs[1], outputs[0])
        assert_array_equal(outputs[2], outputs[0])


def test_a_row_is_not_for_blas_whose_threads_are_left_alone(monkeypatch, rng):
    calls = []
    gemm = ctypes.CFUNCTYPE(None)(lambda: calls.append(1))  # it need not look at what it is given
    address = ctypes.cast(gemm, ctypes.c_void_p).value
    monkeypatch.setattr("mlp_xp.inference.compiled.gemm_address", lambda dtype: (address, False))
    model, X = mx.MLP([3000, 2100, 5]), rng.random((40, 3000), dtype=np.float32)
    model.outputs(X[:1])
    assert not calls
    model.outputs(X)
    assert calls


def test_at_most_the_threads_that_are_allowed_work(monkeypatch, rng):
    seen = []
    make = mx.inference.compiled._Replay
    monkeypatch.setattr(
        "mlp_xp.inference.compiled._Replay",
        lambda predictor, pixels, threads, rows: seen.append(threads) or make(predictor, pixels, threads, rows),
    )
    X = rng.random((3000, 784), dtype=np.float32)
    with threadpool_limits(1):
        mx.MLP([784, 196, 10]).outputs(X)
    with at_most(1):
        mx.MLP([784, 196, 10]).outputs(X)
    mx.MLP([784, 196, 10]).outputs(X[:3])
    assert seen == [1, 1, 1]


def test_blocks_come_one_after_another(monkeypatch, rng):
    """Rows of an array, of a map, of a file that is read: the same bits, and blocks of no more rows than are good."""
    model = draw_model(rng, (7, 5, 3))
    monkeypatch.setattr(model._predictor, "block_rows", 100)
    X, y = rng.standard_normal((1050, 7)), rng.standard_normal((1050, 3))
    blocks = []
    call = Predictor.__call__
    monkeypatch.setattr(Predictor, "__call__", lambda self, theta, X: blocks.append(len(X)) or call(self, theta, X))
    whole = np.concatenate([model.outputs(X[i : i + 100]) for i in range(0, 1050, 100)])
    blocks.clear()
    assert_array_equal(model.outputs(X), whole)
    assert blocks == [100] * 10 + [50]

    class Table:
        shape, dtype = X.shape, X.dtype

        def __getitem__(self, rows):
            return X[rows].copy()

    assert_array_equal(model.outputs(Table()), whole)
    assert model.evaluate(Table(), y) == model.evaluate(X, y)
    assert model.evaluate(X, y)[0] == pytest.approx(np.mean(np.sum((whole - y) ** 2, axis=1) / 2), rel=1e-12)


def test_rows_may_lie_anyhow(rng, tmp_path):
    model = draw_model(rng, (6, 9, 2))
    X = rng.standard_normal((200, 6))
    np.save(tmp_path / "X.npy", X)
    frozen = X.copy()
    frozen.flags.writeable = False
    wide = np.repeat(X, 2, axis=1)
    ways = [
        np.asfortranarray(X),
        X[::-1][::-1],
        wide[:, ::2],
        frozen,
        np.load(tmp_path / "X.npy", mmap_mode="r"),
        X.tolist(),
    ]
    for rows in ways:
        assert_array_equal(model.outputs(rows), model.outputs(X))
        assert_array_equal(model.outputs(rows[:1]), model.outputs(X[:1]))


@pytest.mark.parametrize("n", [1, 60])
def test_parameters_count_as_they_are_now(n, rng):
    """They are looked at in each call: one may assign them, write into them, and freeze them."""
    model, X = draw_model(rng, (4, 3)), rng.standard_normal((n, 4))
    before, theta = model.outputs(X), model.theta.copy()
    model.theta[:3] += 1  # the biases
    assert not np.array_equal(model.outputs(X), before)
    model.theta[:3] -= 1
    np.testing.assert_allclose(model.outputs(X), before, atol=1e-14)
    frozen = np.zeros(model.layout.size)
    frozen.flags.writeable = False
    model.theta = frozen
    assert np.ptp(model.outputs(X)) == 0
    apart = np.repeat(theta, 2)[::2]  # of these, each call has a copy of its own
    for _ in range(20):
        model.theta = theta.copy()  # where the one before may have been
        assert_array_equal(model.outputs(X), before)
        model.theta = apart
        assert_array_equal(model.outputs(X), before)
        apart[:3] += 1
        assert not np.array_equal(model.outputs(X), before)
        apart[:] = theta


def test_a_row_that_is_predicted_within_another_leaves_it_alone(rng):
    """As a handler of a signal may, at any moment."""
    model, (one, other) = draw_model(rng, (40, 30, 2)), rng.standard_normal((2, 1, 40))
    rights, before = (model.outputs(one), model.outputs(other)), sys.gettrace()
    last, lines, within = 0, 0, [None]

    def trace(frame, event, argument):
        nonlocal lines
        lines += event == "line"
        if lines == last and not within:
            within.append(None)
            within[0] = model.outputs(other)
        return trace

    while within:  # until so many lines are not run
        last, lines, within = last + 1, 0, []
        sys.settrace(trace)
        try:
            got = model.outputs(one)
        finally:
            sys.settrace(before)
        assert_array_equal(got, rights[0])
        assert not within or np.array_equal(within[0], rights[1])
    assert last > 30


def test_outputs_of_a_row_are_the_callers(rng):
    model, X = draw_model(rng, (40, 30, 2)), rng.standard_normal((2, 40))
    first = model.outputs(X[:1])
    kept = first.copy()
    model.outputs(X[1:])
    assert_array_equal(first, kept)


def test_copies_and_pickles_predict(rng):
    model, X = draw_model(rng, (40, 30, 2)), rng.standard_normal((200, 40))
    outputs = model.outputs(X)
    for other in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        assert_array_equal(other.outputs(X), outputs)


def test_threads_predict_at_once(rng):
    model = draw_model(rng, (50, 80, 4))
    rows = [draw_rows(rng, int(rng.integers(1, 600)), 50, "float64") for _ in range(40)]
    wanted = [model.outputs(X) for X in rows]
    with ThreadPoolExecutor(4) as pool:
        for got, right in zip(pool.map(model.outputs, rows * 5), wanted * 5, strict=True):
            assert_array_equal(got, right)


def test_no_memory_is_an_error(monkeypatch, rng):
    model = draw_model(rng, (50, 80, 4))
    library = model._predictor.library
    monkeypatch.setattr(
        type(library), "function", lambda self, name, dtype: (lambda *arguments: None) if name == "new" else None
    )
    with pytest.raises(MemoryError, match="no memory for predictions of 64 rows by 1 thread"):
        model.outputs(rng.standard_normal((10, 50)))


def test_what_the_library_does_not_know_is_computed_by_numpy(monkeypatch, rng):
    X = rng.standard_normal((100, 5))
    for setting in ("compiled.library", "gemm_address"):
        with monkeypatch.context() as changed:
            changed.setattr(
                f"mlp_xp.inference.compiled.{'compiled.' * (setting == 'library')}{setting}", lambda *a: None
            )
            model = draw_model(rng, (5, 6, 2))
            assert model._predictor is None
            right, terms = by_the_text(model, X)
            assert np.max(np.abs(model.outputs(X) - right)) <= ROUNDING["float64"] * terms


def test_hostile_numbers_come_out_as_in_numpy(monkeypatch):
    """Sums that overflow, and numbers that are next to nothing."""
    for scale, dtype in product((1e-30, 1e30), ("float32", "float64")):
        model = mx.MLP([20, 10, 3], "relu", "identity", dtype=dtype)
        X = np.full((100, 20), scale, dtype)
        with np.errstate(over="ignore"):
            right = np.maximum(X @ model.weights[0].T, 0) @ model.weights[1].T
        np.testing.assert_allclose(model.outputs(X), right, rtol=1e-5, atol=1e-37)


AT_EXIT = """
import atexit, sys, threading
import numpy as np
import mlp_xp as mx

model, X = mx.MLP([784, 196, 10]), np.random.default_rng(0).random((300, 784), dtype=np.float32)
states = mx.epochs(model, X, np.zeros(300, int), batch_size=50)
others = mx.epochs(mx.MLP([784, 196, 10]), X, np.zeros(300, int), batch_size=50)

def predict_forever():
    while True:
        model.outputs(X)

atexit.register(lambda: print(model.outputs(X).shape, next(states).epoch))
model.outputs(X), next(states)
threading.Thread(target=predict_forever, daemon=True).start()
threading.Thread(target=list, args=(others,), daemon=True).start()
"""


def test_predictions_and_updates_may_go_on_until_the_process_ends():
    environment = {**os.environ, "MALLOC_PERTURB_": "165"}  # glibc overwrites what is freed
    for _ in range(3):
        command = [sys.executable, "-c", AT_EXIT]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
        assert (done.returncode, done.stdout) == (0, "(300, 10) 2\n"), done.stderr


def test_only_small_buffers_are_kept(rng):
    model = draw_model(rng, (784, 196, 10), "float32")
    model.outputs(draw_rows(rng, 5000, 784, "float32"))
    assert not model._predictor._own.replays
    for n in (1, 1, 30, 40):
        model.outputs(rng.random((n, 784), dtype=np.float32))
    own = model._predictor._own
    (row,), (few,) = own.rows.values(), own.replays.values()
    assert row.bytes < 5000
    assert few.bytes <= 2**20
    model = mx.MLP([2**18, 1], output="identity")
    model.outputs(np.ones((1, 2**18), np.float32))
    assert not model._predictor._own.rows
