"""The model: gradients against central differences, and what it predicts, stores and hands out."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import mlp_xp as mx
from mlp_xp.devices import numpy_
from mlp_xp.files import tensors
from mlp_xp.metrics import r_squared
from mlp_xp.params import INITIALIZERS, Layout

try:  # here, as it changes the environment when it is imported
    from sklearn import metrics
except ImportError:
    metrics = None

needs_sklearn = pytest.mark.skipif(metrics is None, reason="scikit-learn is not installed")
PAIRS = [(activation, output) for activation in mx.ACTIVATIONS for output in mx.OUTPUTS]


@pytest.mark.parametrize(("activation", "output"), PAIRS)
def test_gradient_agrees_with_central_differences(
    activation, output, rng, targets, off_kinks, numerical_gradient, flat
):
    model = mx.MLP([3, 4, 5, 3], activation, output, init="lecun_normal", dtype="float64", seed=3)
    model.biases = [rng.uniform(-0.5, 0.5, b.shape) for b in model.biases]
    X, y = off_kinks(model, rng.standard_normal((7, 3)), targets(output, 7, 3))
    got, wanted = flat(model, model.loss_and_gradient(X, y)[1]), numerical_gradient(model, X, y)
    assert np.abs(wanted).max() > 1e-3
    assert_allclose(got, wanted, rtol=0, atol=1e-7 * np.abs(wanted).max())


def test_mixed_activations_agree_with_central_differences(rng, off_kinks, numerical_gradient, flat):
    model = mx.MLP([2, 3, 4, 2], ["relu", "tanh"], dtype="float64", seed=1)
    assert model.activation == ("relu", "tanh")
    X, y = off_kinks(model, rng.standard_normal((5, 2)), rng.integers(0, 2, 5))
    wanted = numerical_gradient(model, X, y)
    assert_allclose(flat(model, model.loss_and_gradient(X, y)[1]), wanted, rtol=0, atol=1e-7 * np.abs(wanted).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("output", mx.OUTPUTS)
def test_stable_for_huge_logits(output, dtype):
    model = mx.MLP([2, 2], output=output, dtype=dtype)
    model.weights = [np.eye(2)]
    X = np.array([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4], [0, 0]])
    y = np.array([1, 1, 0, 0]) if mx.OUTPUTS[output].task == "classes" else np.eye(2)[[1, 1, 0, 0]]
    with np.errstate(all="raise", under="ignore"):  # exp(-1e4) = 0 is the right limit
        loss, gradient = model.loss_and_gradient(X, y)
        model.evaluate(X, y)
        history = mx.fit(model, X, y, epochs=1, optimizer=mx.SGD(lr=1e-9))
    assert np.isfinite(gradient.weights[0]).all()
    assert_allclose(history.loss[0], loss, rtol=1e-6)
    expected = {
        "softmax": (2e4 + 2 * np.log(2)) / 4,
        "sigmoid": (2e4 + 1e4 + 2 * np.log(2)) / 4,
        "perceptron": (2e4 + 1e4) / 4,
    }
    if output in expected:
        assert_allclose(loss, expected[output], rtol=1e-6)


def test_deltas_are_each_rows_own(rng):
    model = mx.MLP([3, 4, 2], dtype="float64")
    X, y = rng.standard_normal((6, 3)), rng.integers(0, 2, 6)
    _, gradient = model.loss_and_gradient(X, y)
    for delta, db in zip(gradient.deltas, gradient.biases, strict=True):
        assert_allclose(delta.mean(axis=0), db, rtol=1e-12, atol=1e-14)
    _, alone = model.loss_and_gradient(X[2:3], y[2:3])
    assert_allclose(gradient.deltas[0][2], alone.deltas[0][0], rtol=1e-12, atol=1e-14)


def test_pixels_count_as_fractions_of_255(rng):
    model = mx.MLP([5, 3, 2], dtype="float64")
    X, y = rng.integers(0, 256, (9, 5), dtype=np.uint8), rng.integers(0, 2, 9)
    assert_allclose(model.loss_and_gradient(X, y)[0], model.loss_and_gradient(X / 255, y)[0], rtol=1e-14)
    assert_allclose(model.outputs(X), model.outputs(X / 255), rtol=1e-13, atol=1e-14)


def test_one_hot_rows_are_labels(rng):
    model, X, y = mx.MLP([5, 3, 4]), rng.random((9, 5)), rng.integers(0, 4, 9)
    (a, da), (b, db) = model.loss_and_gradient(X, y), model.loss_and_gradient(X, np.eye(4)[y])
    assert a == b
    assert_array_equal(da.weights[0], db.weights[0])
    assert model.score(X, y) == model.score(X, np.eye(4)[y])


def test_one_unit_takes_a_column_or_a_vector(rng):
    model, X, y = mx.MLP([5, 1], output="sigmoid"), rng.random((9, 5)), rng.integers(0, 2, 9)
    assert model.loss_and_gradient(X, y)[0] == model.loss_and_gradient(X, y[:, None])[0]
    assert model.predict(X).shape == (9,)
    assert model.score(X, y) == model.score(X, y[:, None]) == np.mean(model.predict(X) == y)


def test_memory_layout_of_the_input_does_not_matter(rng):
    base, y = rng.random((2000, 12)), rng.integers(0, 3, 2000)
    for X in (base[:, ::2], base[::-1, :6], base[:, :6], np.asfortranarray(base[:, :6]), base.T[:6].T[:, ::-1]):
        thetas = []
        for same in (X, X.copy(order="C")):
            model = mx.MLP([6, 4, 3], dtype="float64")
            mx.fit(model, same, y, epochs=2)
            thetas.append(model.theta)
        assert_array_equal(thetas[0], thetas[1])


@pytest.mark.parametrize("output", mx.OUTPUTS)
def test_predictions(output, rng, targets):
    model, X, y = mx.MLP([4, 6, 3], output=output), rng.random((2500, 4)), targets(output, 2500, 3)
    A = model.forward(X).A[-1]
    assert_allclose(model.outputs(X), A, rtol=1e-5, atol=1e-6)  # more rows than are predicted at a time
    task = mx.OUTPUTS[output].task
    if task == "values":
        assert_allclose(model.predict(X), A, rtol=1e-5, atol=1e-6)
        residual, total = ((y - A) ** 2).sum(axis=0), ((y - y.mean(axis=0)) ** 2).sum(axis=0)
        assert_allclose(model.score(X, y), np.mean(1 - residual / total), rtol=1e-5)
    if task == "labels":
        assert_array_equal(model.predict(X), A > 0)
    if not mx.OUTPUTS[output].probability:
        with pytest.raises(ValueError, match=f"{output!r} makes no probabilities; use predict"):
            model.predict_proba(X)
        return
    p = model.predict_proba(X)
    assert p.shape == (2500, 3)
    if task == "classes":
        assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
        assert_array_equal(model.predict(X), p.argmax(axis=1))
        assert_allclose(model.score(X, y), np.mean(p.argmax(axis=1) == y))
    else:
        assert_array_equal(model.predict(X), p > 0.5)
        assert_allclose(model.score(X, y), np.mean(((p > 0.5) == y).all(axis=1)))


def test_loss_of_evaluate_is_that_of_the_gradient(rng, targets):
    X = rng.random((50, 4))
    for output in mx.OUTPUTS:
        model, y = mx.MLP([4, 6, 3], output=output, dtype="float64"), targets(output, 50, 3)
        assert_allclose(model.evaluate(X, y)[0], model.loss_and_gradient(X, y)[0], rtol=1e-12)


def test_weights_are_copies_both_ways():
    model = mx.MLP([3, 4, 2])
    W = model.weights
    W[0][:] = 7
    assert not (model.weights[0] == 7).any()
    model.weights = W
    W[0][:] = 8
    assert (model.weights[0] == 7).all()
    b = [np.arange(4.0), np.ones(2)]
    model.biases = b
    assert_array_equal(model.biases[0], b[0])
    assert (model.weights[0] == 7).all()
    assert model.theta.dtype == np.float32


def test_layout_splits_into_views_and_joins_back():
    layout = Layout([3, 4, 2])
    theta = np.arange(layout.size)
    params = layout.split(theta)
    assert [W.shape for W in params.W[1:]] == [(4, 3), (2, 4)]
    assert [b.shape for b in params.b[1:]] == [(4,), (2,)]
    assert_array_equal(layout.join(params), theta)
    assert all(np.shares_memory(part, theta) for part in params.W[1:] + params.b[1:])
    assert_array_equal(np.flatnonzero(layout.is_bias()), [0, 1, 2, 3, 16, 17])


def test_seed_decides_the_first_weights():
    def first(seed):
        return mx.MLP([5, 4, 2], seed=seed).theta

    assert_array_equal(first(1), first(1))
    assert (first(1) != first(2)).any()


STD = {
    "normal": 0.01,
    "lecun_normal": 300**-0.5,
    "xavier_normal": (2 / 500) ** 0.5,
    "xavier_uniform": (2 / 500) ** 0.5,
    "he_normal": (2 / 300) ** 0.5,
    "he_uniform": (2 / 300) ** 0.5,
    "zeros": 0,
}


@pytest.mark.parametrize("init", INITIALIZERS)
def test_initializers(init):
    model = mx.MLP([300, 200, 2], init=init)
    W = model.weights[0]
    assert_allclose(W.std(), STD[init], rtol=0.02)
    assert abs(W.mean()) <= 0.02 * STD[init]
    assert not any(b.any() for b in model.biases)
    if init.endswith("uniform"):
        assert 1.7 * STD[init] < np.abs(W).max() <= 3**0.5 * STD[init] * (1 + 1e-6)


@pytest.mark.parametrize(
    ("activation", "init"),
    [
        ("relu", "he_normal"),
        (["tanh", "leaky_relu"], "he_normal"),
        (["sigmoid", "tanh"], "xavier_normal"),
        ("identity", "xavier_normal"),
    ],
)
def test_the_first_weights_fit_the_activation_unless_a_law_is_given(activation, init):
    fitting, given, other = (mx.MLP([6, 5, 4, 2], activation, init=each) for each in (None, init, "normal"))
    assert (fitting.init, other.init) == (init, "normal")
    assert_array_equal(fitting.theta, given.theta)
    assert (other.theta != given.theta).any()


def test_save_and_load(tmp_path, rng):
    model = mx.MLP([3, 4, 2], ["tanh"], "sigmoid", dtype="float64", seed=5)
    model.biases = [rng.random(b.shape) for b in model.biases]
    model.save(tmp_path / "model.safetensors")
    again = mx.MLP.load(tmp_path / "model.safetensors")
    assert again.config == model.config
    assert_array_equal(again.theta, model.theta)
    assert mx.MLP.load(tmp_path / "model.safetensors", device="strict").device.name == "strict"


def test_repr_says_what_it_is():
    assert repr(mx.MLP([3, 4, 2])) == (
        "MLP([3, 4, 2], activation=('relu',), output='softmax', dtype='float32', device='cpu'): 26 parameters"
    )
    assert repr(mx.MLP([784, 196, 10])).endswith(": 155,830 parameters")


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype("float32")])
def test_dtype_by_any_name(dtype):
    assert mx.MLP([2, 2], dtype=dtype).dtype == "float32"


# ----------------------------------------------------------------------------------------------------------------------
# Predictions have the same bits for any number of threads

OUTPUTS = """
import hashlib, sys
import numpy as np
import mlp_xp as mx
rng = np.random.default_rng(0)
digest = hashlib.sha256()
for sizes in ([784, 196, 10], [30, 200, 150, 4], [5, 3]):
    for n in (1, 300, 1500):
        X, y = rng.random((n, sizes[0])), rng.integers(0, sizes[-1], n)
        model = mx.MLP(sizes, "tanh", dtype=sys.argv[1], seed=1)
        loss, gradient = model.loss_and_gradient(X, y)
        digest.update(model.outputs(X).tobytes() + repr((model.evaluate(X, y), float(loss))).encode())
        digest.update(b"".join(np.ascontiguousarray(dW).tobytes() for dW in gradient.weights))
print(digest.hexdigest())
"""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_predictions_have_the_same_bits_for_any_number_of_blas_threads(dtype):
    digests = set()
    for threads in ("1", "2", "3"):
        environment = os.environ | {"OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", OUTPUTS, dtype], capture_output=True, text=True, check=True, env=environment
        )
        digests.add(done.stdout)
    assert len(digests) == 1


def test_predictions_have_the_same_bits_for_any_number_of_threads(monkeypatch, rng):
    X, y, found = rng.random((5000, 20)), rng.integers(0, 3, 5000), []
    monkeypatch.setattr(numpy_, "_WORTH_THREADS", 0)
    for threads in (1, 2, 5):
        monkeypatch.setattr(numpy_, "default_threads", lambda threads=threads: threads)
        model = mx.MLP([20, 100, 3], "tanh")
        found.append((model.outputs(X).tobytes(), model.evaluate(X, y)))
    assert found[0] == found[1] == found[2]


# ----------------------------------------------------------------------------------------------------------------------
# R^2 is scikit-learn's


def values(rng, offset, scales, dtype="float32", n=4000):
    y = (offset + rng.standard_normal((n, len(scales))) * scales).astype(dtype)
    return y, (y + rng.standard_normal(y.shape) * np.asarray(scales) / 3).astype(dtype)


@needs_sklearn
@pytest.mark.parametrize("offset", [0.0, 1000.0, -1e5])
@pytest.mark.parametrize("scales", [[1.0], [1.0, 100.0], [0.05, 3.0, 20.0]])
def test_r_squared_is_scikit_learns_also_with_offsets(offset, scales, rng):
    for dtype in ("float32", "float64"):
        y, p = values(rng, offset, scales, dtype)
        assert_allclose(r_squared(y, p), metrics.r2_score(y.astype(float), p.astype(float)), rtol=1e-10)


@needs_sklearn
def test_r_squared_of_constant_targets_is_scikit_learns():
    y = np.stack([np.full(50, 0.1), np.arange(50.0)], axis=1).astype(np.float32)
    for p in (y, y + np.float32([1, 0]), y * np.float32([1, 0]), np.zeros_like(y)):
        assert_allclose(r_squared(y, p), metrics.r2_score(y.astype(float), p.astype(float)), rtol=1e-12)
        for column in (0, 1):
            wanted = metrics.r2_score(y[:, column].astype(float), p[:, column].astype(float))
            assert_allclose(r_squared(y[:, column], p[:, column]), wanted, rtol=1e-12)
    assert r_squared(y[:1], y[:1]) == 1
    assert r_squared(y[:1], y[:1] + 1) == 0


def test_the_score_of_a_constant_prediction_at_the_mean_is_zero(rng):
    Y = (1000 + rng.normal(0, 0.05, (10**6, 2))).astype(np.float32)
    model = mx.MLP([1, 2], output="identity", init="zeros")
    model.biases = [Y.astype(float).mean(axis=0)]
    assert abs(model.score(np.zeros((10**6, 1)), Y)) < 1e-5


def test_the_score_does_not_depend_on_the_units_of_an_output(rng):
    model = mx.MLP([2, 2], output="identity", dtype="float64", init="zeros")
    model.weights = [np.array([[1.0, 0], [0, 0]])]
    Y = np.stack([rng.normal(0, 100, 2000), rng.normal(0, 1, 2000)], axis=1)
    Y[:, 1] -= Y[:, 1].mean()
    assert_allclose(model.score(Y, Y), 0.5, rtol=1e-12)  # one output is right, the other always at its mean


# ----------------------------------------------------------------------------------------------------------------------
# Copies

DEVICES = ["cpu", "torch", "jax", "cuda", "strict"]
COPIES = {"deepcopy": copy.deepcopy, "copy": copy.copy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("device", DEVICES)
def test_a_copy_is_a_model_of_its_own(device, way, dtype, rng):
    X, y = rng.random((50, 4)), rng.integers(0, 3, 50)
    model = mx.MLP([4, 5, 3], ["tanh"], dtype=dtype, device=device, seed=3)
    model.biases = [b + 0.1 for b in model.biases]
    model.pixels, model.remark = False, ["mine"]
    before, theta = model.outputs(X), model.device.to_host(model.theta).copy()
    twin = COPIES[way](model)
    assert type(twin) is mx.MLP
    assert (twin.config, twin.device, twin.precision, twin.pixels) == (
        model.config,
        model.device,
        model.precision,
        False,
    )
    assert twin.remark == ["mine"]
    assert_array_equal(twin.outputs(X), before)
    if device == "cpu":
        mx.fit(twin, X, y, epochs=2)
        assert (twin.theta != theta).any()
        assert_array_equal(model.theta, theta)
        mx.fit(model, X, y, epochs=2)
        assert_array_equal(model.theta, twin.theta)
    twin.weights = [W * 0 for W in model.weights]
    assert any(W.any() for W in model.weights)


PROCESSES = """
import joblib, numpy as np
import mlp_xp as mx
rng = np.random.default_rng(0)
X, y = rng.random((60, 4)), rng.integers(0, 3, 60)
models = [mx.MLP([4, 5, 3], seed=seed) for seed in (1, 2)]
run = joblib.Parallel(n_jobs=2, prefer="processes")
losses = [history.loss for history in run(joblib.delayed(mx.fit)(model, X, y, epochs=3) for model in models)]
outputs = run(joblib.delayed(mx.MLP.outputs)(model, X) for model in models)
for model, loss, found in zip(models, losses, outputs, strict=True):
    assert (model.outputs(X) == found).all()
    assert mx.fit(model, X, y, epochs=3).loss == loss
"""


def test_processes_of_joblib_take_models_and_give_them_back():
    pytest.importorskip("joblib")
    subprocess.run([sys.executable, "-c", PROCESSES], check=True)  # joblib keeps its processes and pipes


# ----------------------------------------------------------------------------------------------------------------------
# What is decided about pixels travels with the model


@pytest.mark.parametrize("pixels", [None, True, False])
def test_what_bytes_count_as_is_saved(pixels, tmp_path):
    model = mx.MLP([3, 2])
    model.pixels = pixels
    model.save(tmp_path / "model.safetensors")
    assert mx.MLP.load(tmp_path / "model.safetensors").pixels is pixels


@pytest.mark.parametrize("pixels", [1, "yes", [True]])
def test_anything_else_about_pixels_is_refused(pixels, tmp_path):
    mx.MLP([3, 2]).save(tmp_path / "model.safetensors")
    arrays, metadata = tensors.load(tmp_path / "model.safetensors")
    tensors.save(tmp_path / "model.safetensors", arrays, {**metadata, "pixels": pixels})
    with pytest.raises(ValueError, match=r"not loaded: pixels is .*, and must be true, false or absent"):
        mx.MLP.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": [1, 1]}, r"sizes \[1, 1\] and dtype 'float32', but has weights \[\(16384, 16384\)\] of float32"),
        ({"dtype": "float64"}, "dtype 'float64', but has weights"),
        ({"sizes": [16384, 4, 16384]}, "does not describe a model"),
        ({"sizes": 7}, "does not describe a model"),
    ],
)
def test_a_file_that_contradicts_itself_costs_its_header(change, message, tmp_path):
    """It is sparse: a few bytes on the disk that claim a gigabyte."""
    model = {"sizes": [16384, 16384], "activation": [], "output": "softmax", "init": "zeros", "dtype": "float32"}
    own = {"format": "1", "sha256": "0" * 64, "mlp_xp": json.dumps({"kind": "model", "model": {**model, **change}})}
    weight = {"dtype": "F32", "shape": [16384, 16384], "data_offsets": [0, 2**30]}
    bias = {"dtype": "F32", "shape": [16384], "data_offsets": [2**30, 2**30 + 2**16]}
    header = {"__metadata__": own, "layers.0.weight": weight, "layers.0.bias": bias}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + 2**30 + 2**16)
    start = time.process_time()
    with pytest.raises(ValueError, match=message):
        mx.MLP.load(tmp_path / "model.safetensors")
    assert time.process_time() - start < 0.2
