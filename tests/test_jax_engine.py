"""What XLA compiles trains as the plain engine does, whatever is done at once, and is compiled once."""

from __future__ import annotations

import importlib
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import array_api_compat as compat
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import mlp_xp as mx
from mlp_xp.engines import Done, Setup, choose_plan, make_engine
from mlp_xp.kernels.functions import ACTIVATIONS, Activation
from mlp_xp.objective import Objective
from mlp_xp.optim import Optimizer

pytestmark = pytest.mark.needs("jax")

OPTIMIZERS = {
    "sgd": mx.SGD(lr=0.1, l2=0.01, lr_bias=0.03),
    "nesterov": mx.SGD(lr=mx.StepDecay(0.1, every=1), momentum=0.9, nesterov=True),
    "adam": mx.Adam(lr=0.02, l2=0.01, lr_bias=0.01),
    "adamw": mx.AdamW(lr=mx.CosineDecay(0.01, epochs=3), weight_decay=0.1),
}


def program_module():
    """Return the module, which takes JAX to import."""
    return importlib.import_module("mlp_xp.engines.jax_program")


@pytest.fixture(params=["one vector", "layer by layer"])
def parts(request, monkeypatch):
    """Have small networks updated in either way."""
    if request.param == "layer by layer":
        monkeypatch.setattr("mlp_xp.engines.jax_program._SMALL", 0)
    program_module()._shared_program.cache_clear()
    yield request.param
    program_module()._shared_program.cache_clear()


def setup(model, X, y, optimizer=None, batch_size=None):
    rows, optimizer = model.open(X), optimizer or mx.SGD()
    plan = choose_plan(rows, model, optimizer, "auto", None, batch_size)
    objective = Objective(model.objective.output, optimizer.l2)
    return Setup(model, objective, optimizer, rows, model.targets(y, rows.shape[0]), batch_size, plan, 1)


def trained(engine, model, optimizer, epochs=3):
    """Train by an engine; return the parameters, the losses, the gradient and the optimizer's state."""
    losses, theta, optimizer = (
        [],
        model.theta,
        engine.optimizer if hasattr(engine, "optimizer") else engine._setup.optimizer,
    )
    with engine:
        for epoch in range(1, epochs + 1):
            engine.begin(theta, epoch, optimizer.rate(epoch), Done())
            done = engine.advance(None)
            theta = engine.theta()
            losses.append(float(done.loss_sum))
    host = model.device.to_host
    state = {name: value if isinstance(value, int) else host(value) for name, value in engine.state().items()}
    return host(theta), losses, host(engine.gradient()), state


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("batch_size", [None, 64])
def test_what_is_compiled_trains_as_the_plain_engine_does(batch_size, optimizer, parts, monkeypatch, rng):
    for name, value in {"_CACHED": 0, "_LEAST_ROWS": 64}.items():  # 150 rows: two shards and a rest
        monkeypatch.setattr(f"mlp_xp.engines.jax_program.{name}", value)
    X, y = rng.integers(0, 256, (150, 6), dtype=np.uint8), rng.integers(0, 3, 150)
    results = []
    for device, kind in (("jax", "JaxEngine"), ("strict", "HostEngine")):
        model = mx.MLP([6, 9, 5, 3], ("tanh", "relu"), dtype="float64", device=device)
        engine = make_engine(setup(model, X, y, OPTIMIZERS[optimizer], batch_size))
        assert type(engine).__name__ == kind
        results.append(trained(engine, model, OPTIMIZERS[optimizer]))
    (theta, losses, gradient, state), (wanted, wanted_losses, wanted_gradient, wanted_state) = results
    assert_allclose(theta, wanted, rtol=1e-11, atol=1e-13)
    assert_allclose(losses, wanted_losses, rtol=1e-12)
    assert_allclose(gradient, wanted_gradient, rtol=1e-9, atol=1e-13)
    assert state.keys() == wanted_state.keys()
    for name, value in state.items():
        assert_allclose(value, wanted_state[name], rtol=1e-9, atol=1e-13)
        assert isinstance(value, int) == isinstance(wanted_state[name], int)


@pytest.mark.parametrize("output", mx.OUTPUTS)
def test_every_function_is_compiled_to_what_it_is(output, rng, targets):
    X, y = rng.standard_normal((40, 6)), targets(output, 40, 3)
    X[0] = 0  # on the kink of a ReLU
    activations = ["relu", *mx.ACTIVATIONS]
    thetas = []
    for device in ("jax", "strict"):
        sizes = [6, *range(9, 9 - len(activations), -1), 3]
        model = mx.MLP(sizes, activations, output, dtype="float64", device=device)
        thetas.append(trained(make_engine(setup(model, X, y)), model, mx.SGD(), 1)[0])
    assert_allclose(thetas[0], thetas[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_however_many_updates_are_done_at_once_the_bits_are_the_same(optimizer, parts, monkeypatch, rng):
    X, y = rng.random((230, 6)).astype("f4"), rng.integers(0, 3, 230)
    runs = []
    for seconds in (0, 1e9):
        monkeypatch.setattr("mlp_xp.engines.jax_._PIECE", seconds)
        model, asked = mx.MLP([6, 9, 3], device="jax"), []
        states = mx.epochs(
            model, X, y, batch_size=10, epochs=2, optimizer=OPTIMIZERS[optimizer],
            pause=lambda asked=asked: asked.append(1),
        )  # fmt: skip
        runs.append(([float(state.loss_sum) for state in states], np.asarray(model.theta).tobytes(), len(asked)))
    assert runs[0][:2] == runs[1][:2]
    assert runs[0][2] == 2 * 22
    assert runs[1][2] < 2 * 22


def test_a_schedule_is_not_compiled_again_and_neither_is_another_training(parts, caplog, rng):
    X, y = rng.random((50, 6)), rng.integers(0, 3, 50)
    with importlib.import_module("jax").log_compiles():
        for lr in (0.1, mx.CosineDecay(0.2, epochs=4)):
            for seed in (0, 1):
                mx.fit(mx.MLP([6, 4, 3], device="jax", seed=seed), X, y, epochs=4, batch_size=20, optimizer=mx.Adam(lr))
    assert caplog.text.count("Finished XLA compilation of jit(_run)") == 2  # for whole batches, and for the last


def test_another_formula_under_the_same_name_is_compiled_anew(monkeypatch, rng):
    X, y = rng.random((20, 3)), rng.integers(0, 2, 20)
    found = []
    for factor in (1, 2):
        own = Activation("own", lambda xp, Z, f=factor: f * Z, lambda xp, dA, A, f=factor: f * dA, "own")
        monkeypatch.setitem(ACTIVATIONS, "own", own)
        models = [mx.MLP([3, 4, 2], "own", dtype="float64", device=device) for device in ("jax", "strict")]
        found.append([mx.fit(model, X, y, epochs=2).loss for model in models])
    for ours, wanted in found:
        assert_allclose(ours, wanted, rtol=1e-12)
    assert found[0][1] != found[1][1]


@dataclass(frozen=True)
class Looking(Optimizer):
    """An optimizer that looks at its numbers, which a compiler cannot."""

    def init(self, theta):
        return {"largest": 0.0}

    def update(self, theta, grad, state, rate):
        xp = compat.array_namespace(theta)
        largest = max(state["largest"], float(xp.max(xp.abs(grad))))
        return theta - rate * grad / largest, {"largest": largest}


@dataclass(frozen=True)
class Norm(Optimizer):
    """Steps of one length, which take the vector as a whole."""

    def init(self, theta):
        return {}

    def update(self, theta, grad, state, rate):
        xp = compat.array_namespace(theta)
        return theta - rate * grad / xp.sqrt(xp.sum(grad * grad)), state


@pytest.mark.parametrize(("optimizer", "engine"), [(Looking(0.1), "HostEngine"), (Norm(0.1), "JaxEngine")])
def test_an_optimizer_of_your_own_is_compiled_if_it_can_be(optimizer, engine, parts, caplog, rng):
    X, y = rng.random((50, 6)), rng.integers(0, 3, 50)
    models = [mx.MLP([6, 4, 3], dtype="float64", device=device) for device in ("jax", "strict")]
    with caplog.at_level(logging.INFO, "mlp_xp"):
        states, _ = (list(mx.epochs(m, X, y, epochs=2, batch_size=20, optimizer=optimizer)) for m in models)
    assert type(states[0].engine).__name__ == engine
    assert_allclose(np.asarray(models[0].theta), models[1].device.to_host(models[1].theta), rtol=1e-10, atol=1e-14)
    assert ("JAX computes operation by operation, not compiled: it cannot be traced: " in caplog.text) == (
        engine == "HostEngine"
    )


def test_adams_first_steps_have_all_digits_of_float32(parts, rng):
    X, y = rng.random((50, 6)), rng.integers(0, 3, 50)
    moved = []
    for dtype in ("float32", "float64"):
        model = mx.MLP([6, 4, 3], dtype=dtype, device="jax", init="zeros")
        state = next(mx.epochs(model, X, y, optimizer=mx.Adam(lr=0.01)))
        assert type(state.engine).__name__ == "JaxEngine"
        moved.append(np.asarray(model.theta, np.float64))
    assert_allclose(moved[0], moved[1], rtol=1e-6, atol=1e-12)


def test_the_loss_of_an_epoch_of_many_updates_keeps_its_digits():
    X, y = np.zeros((20_000, 1), np.uint8), np.zeros(20_000)
    model = mx.MLP([1, 1], output="sigmoid", init="zeros", device="jax")
    state = next(mx.epochs(model, X, y, batch_size=1, optimizer=mx.SGD(lr=1e-30)))
    assert type(state.engine).__name__ == "JaxEngine"
    assert abs(float(state.loss_sum) / 20_000 / math.log(2) - 1) < 1e-7


def test_what_was_handed_out_stays(parts, rng):
    X, y = rng.random((50, 6)), rng.integers(0, 3, 50)
    model = mx.MLP([6, 4, 3], device="jax")
    first = model.theta
    states = mx.epochs(model, X, y, batch_size=20, epochs=3, optimizer=mx.Adam())
    kept = []
    for state in states:
        arrays = [first, model.theta, state.gradient, *state.optimizer_state.values()]
        kept.append((arrays, [np.array(array) for array in arrays]))
    for arrays, then in kept:  # the engine has given its own arrays away since
        for array, value in zip(arrays, then, strict=True):
            assert_array_equal(array, value)


def test_what_is_assigned_between_epochs_is_taken_up(rng):
    X, y = rng.random((50, 6)), rng.integers(0, 3, 50)
    thetas = []
    for device in ("jax", "strict"):
        model = mx.MLP([6, 4, 3], dtype="float64", device=device)
        for _ in mx.epochs(model, X, y, batch_size=20, epochs=3):
            model.biases = [b + 0.5 for b in model.biases]
        thetas.append(model.device.to_host(model.theta))
    assert_allclose(thetas[0], thetas[1], rtol=1e-12, atol=1e-14)


def test_trainings_on_threads_at_once(rng):
    X, y = rng.random((300, 6)), rng.integers(0, 3, 300)

    def train(seed):
        model = mx.MLP([6, 4, 3], device="jax", seed=seed)
        mx.fit(model, X, y, epochs=5, batch_size=20, optimizer=mx.Adam(), validation=(X, y))
        return np.asarray(model.theta)

    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(train, range(4)))
    for seed, theta in enumerate(at_once):
        assert_array_equal(theta, train(seed))


def test_jax_is_left_with_the_numbers_that_it_had(rng):
    jax = importlib.import_module("jax")
    wide = jax.config.jax_enable_x64
    for state in mx.epochs(mx.MLP([3, 2], device="jax"), rng.random((20, 3)), rng.integers(0, 2, 20), epochs=2):
        assert jax.config.jax_enable_x64 == wide
        assert state.model.theta.dtype == "float32"
        assert jax.numpy.asarray(1.0).dtype == ("float64" if wide else "float32")


def test_products_have_all_digits_on_a_gpu_too(rng):
    """There JAX would round factors to 10 bits if it were not told."""
    jax = importlib.import_module("jax")
    model = mx.MLP([3, 4, 2], device="jax")
    made = setup(model, rng.random((20, 3)), rng.integers(0, 2, 20), batch_size=10)
    with model.device.active():
        program = program_module().program_of(made)
        theta = program.split(model.theta)
        text = str(
            jax.make_jaxpr(lambda theta: program._grad_sum(
                program.params_of(theta), jax.numpy.ones((5, 3)), jax.numpy.zeros(5, "int32"), program.params_of(theta)
            ))(theta)
        )  # fmt: skip
    products = text.count("dot_general[")
    assert products == 5  # two forward, three backward
    assert text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == products


@pytest.mark.parametrize(
    ("sizes", "rows"), [((4, 3, 2), 8192), ((20, 64, 64, 2), 6990), ((784, 196, 10), 1059), ((784, 10_000, 10), 1024)]
)
def test_small_networks_have_more_rows_in_a_shard(sizes, rows, rng):
    model = mx.MLP(list(sizes), device="jax")
    program = program_module().program_of(setup(model, rng.random((2, sizes[0])), np.zeros(2, int)))
    assert program.shard_rows == rows


def test_a_large_full_batch_keeps_the_digits_of_float32(rng):
    X = (3 + rng.random((200_000, 3))).astype(np.float32)
    y = X.sum(axis=1, keepdims=True)
    gradients = []
    for device, dtype in (("jax", "float32"), ("cpu", "float64")):
        model = mx.MLP([3, 8, 1], "tanh", "identity", dtype=dtype, device=device, seed=0)
        state = next(mx.epochs(model, X.astype(dtype), y.astype(dtype), optimizer=mx.SGD(lr=1e-3)))
        gradients.append(np.asarray(state.gradient, np.float64))
    assert_allclose(gradients[0], gradients[1], rtol=0, atol=1e-6 * np.abs(gradients[1]).max())
