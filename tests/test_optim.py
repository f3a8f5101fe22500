"""Optimizers follow their formulas, solve a quadratic, and refuse what makes no sense."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import mlp_xp as mx
from mlp_xp.optim import OPTIMIZERS, SCHEDULES

QUADRATIC = {
    "sgd": mx.SGD(lr=0.1),
    "momentum": mx.SGD(lr=0.02, momentum=0.9),
    "nesterov": mx.SGD(lr=0.02, momentum=0.9, nesterov=True),
    "adam": mx.Adam(lr=mx.CosineDecay(0.1, epochs=400)),
    "adamw": mx.AdamW(lr=mx.CosineDecay(0.1, epochs=400), weight_decay=1e-8),
}


def run(optimizer, theta, gradient, steps):
    """Return the parameters after each of so many updates, each update an epoch."""
    state, path = optimizer.init(theta), []
    for epoch in range(1, steps + 1):
        theta, state = optimizer.update(theta, gradient(theta), state, optimizer.rate(epoch))
        path.append(theta.copy())
    return path


@pytest.mark.parametrize("name", QUADRATIC)
def test_solves_a_quadratic(name, rng):
    target, curvature = rng.standard_normal(5), np.linspace(1, 10, 5)
    theta = run(QUADRATIC[name], np.zeros(5), lambda theta: curvature * (theta - target), 400)[-1]
    assert_allclose(theta, target, atol=1e-4)


def sgd(g, s, t, lr, momentum, nesterov):
    s["v"] = momentum * s.get("v", 0) + g
    return lr * (g + momentum * s["v"] if nesterov else s["v"])


def adam(g, s, t, lr, beta1, beta2, epsilon):
    s["m"] = beta1 * s.get("m", 0) + (1 - beta1) * g
    s["v"] = beta2 * s.get("v", 0) + (1 - beta2) * g**2
    return lr * (s["m"] / (1 - beta1**t)) / (np.sqrt(s["v"] / (1 - beta2**t)) + epsilon)


FORMULAS = {
    "sgd": (mx.SGD(lr=0.3), lambda g, theta, s, t: sgd(g, s, t, 0.3, 0, False)),
    "momentum": (mx.SGD(lr=0.3, momentum=0.8), lambda g, theta, s, t: sgd(g, s, t, 0.3, 0.8, False)),
    "nesterov": (mx.SGD(0.3, momentum=0.8, nesterov=True), lambda g, theta, s, t: sgd(g, s, t, 0.3, 0.8, True)),
    "adam": (
        mx.Adam(lr=0.2, beta1=0.7, beta2=0.9, epsilon=1e-3),
        lambda g, theta, s, t: adam(g, s, t, 0.2, 0.7, 0.9, 1e-3),
    ),
    "adamw": (
        mx.AdamW(lr=0.2, weight_decay=0.1),
        lambda g, theta, s, t: adam(g, s, t, 0.2, 0.9, 0.999, 1e-8) + 0.2 * 0.1 * theta,
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_five_steps_follow_the_formula(name, rng):
    optimizer, formula = FORMULAS[name]
    start, grads = rng.standard_normal(6), rng.standard_normal((5, 6))
    wanted, theta, s = [], start.copy(), {}
    for t, g in enumerate(grads, 1):
        theta = theta - formula(g, theta, s, t)
        wanted.append(theta)
    feed, given = iter(grads), grads.copy()
    assert_allclose(run(optimizer, start.copy(), lambda theta: next(feed), 5), wanted, rtol=1e-13, atol=1e-15)
    assert_array_equal(grads, given)  # an update never writes to the gradient


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        (mx.Schedule(0.5), [0.5] * 6),
        (mx.StepDecay(0.8, every=2, factor=0.5), [0.8, 0.8, 0.4, 0.4, 0.2, 0.2]),
        (mx.ExponentialDecay(0.8, factor=0.5), [0.8, 0.4, 0.2, 0.1, 0.05, 0.025]),
        (mx.CosineDecay(0.8, epochs=4), [0.8 * (1 + math.cos(math.pi * t / 4)) / 2 for t in (0, 1, 2, 3, 4, 4)]),
        (mx.WarmUp(0.4, epochs=4), [0.1, 0.2, 0.3, 0.4, 0.4, 0.4]),
        (mx.WarmUp(0.4, epochs=2, after=mx.ExponentialDecay(0.4, factor=0.5)), [0.2, 0.4, 0.4, 0.2, 0.1, 0.05]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_schedules(schedule, wanted):
    assert_allclose([schedule(epoch) for epoch in range(1, 7)], wanted, rtol=1e-12, atol=1e-15)
    assert_allclose([mx.SGD(lr=schedule).rate(epoch) for epoch in range(1, 7)], wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's own words about the overflow
@pytest.mark.parametrize("schedule", [mx.ExponentialDecay(1e-300, factor=10.0), mx.StepDecay(1e-300, 1, factor=10.0)])
def test_a_rate_beyond_all_floats_is_a_divergence(schedule, rng):
    X, y = rng.standard_normal((8, 3)), rng.integers(0, 2, 8)
    assert schedule(400) == math.inf
    with pytest.raises(mx.DivergenceError):
        mx.fit(mx.MLP([3, 2]), X, y, epochs=700, optimizer=mx.SGD(lr=schedule))


def test_training_follows_the_schedule(rng):
    X, y = rng.standard_normal((8, 3)), rng.integers(0, 2, 8)
    model = mx.MLP([3, 2], dtype="float64")
    theta = model.theta
    for state in mx.epochs(model, X, y, optimizer=mx.SGD(lr=mx.StepDecay(0.8, every=1)), epochs=3):
        assert state.lr == 0.8 / 2 ** (state.epoch - 1)
        assert_allclose(theta - model.theta, state.lr * state.gradient, rtol=1e-10, atol=1e-15)
        theta = model.theta


def one_step(optimizer, rng):
    """Return W, b, their gradient and the loss, all without a penalty; and after an epoch W, b and the loss it saw."""
    X, y = rng.standard_normal((8, 3)), rng.integers(0, 2, 8)
    model = mx.MLP([3, 4, 2], dtype="float64")
    model.biases = [np.ones(4), np.ones(2)]
    weights, biases = model.weights, model.biases
    loss, gradient = model.loss_and_gradient(X, y)
    history = mx.fit(model, X, y, epochs=1, optimizer=optimizer)
    return weights, biases, gradient, loss, model.weights, model.biases, history.loss[0]


def test_l2_shrinks_weights_and_not_biases(rng):
    W, b, gradient, loss, W_after, b_after, loss_seen = one_step(mx.SGD(lr=0.5, l2=0.1), rng)
    for l in range(2):
        assert_allclose(W_after[l], W[l] - 0.5 * (gradient.weights[l] + 0.1 * W[l]), rtol=1e-12, atol=1e-14)
        assert_allclose(b_after[l], b[l] - 0.5 * gradient.biases[l], rtol=1e-12, atol=1e-14)
    assert_allclose(loss_seen, loss + 0.05 * sum(np.sum(w * w) for w in W), rtol=1e-12)


def test_lr_bias_follows_the_schedule(rng):
    optimizer = mx.SGD(lr=mx.WarmUp(0.4, epochs=4), lr_bias=0.2)
    W, b, gradient, _, W_after, b_after, _ = one_step(optimizer, rng)
    for l in range(2):
        assert_allclose(W_after[l], W[l] - 0.1 * gradient.weights[l], rtol=1e-12, atol=1e-14)
        assert_allclose(b_after[l], b[l] - 0.05 * gradient.biases[l], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda value=value: mx.SGD(lr=value), "SGD: lr must be a finite number") for value in (0, -1, "0.1")),
        *((lambda value=value: mx.Adam(lr=value), "Adam: lr must") for value in (math.nan, math.inf, None, True)),
        (lambda: mx.SGD(lr_bias=0), "SGD: lr_bias must be a finite number above 0, got 0"),
        (lambda: mx.SGD(l2=-0.1), "SGD: l2 must be a finite number of at least 0, got -0.1"),
        (lambda: mx.SGD(momentum=1), r"SGD: momentum must lie in \[0, 1\), got 1"),
        (lambda: mx.SGD(momentum=-0.1), "SGD: momentum must lie in"),
        (lambda: mx.SGD(nesterov=True), "nesterov needs a momentum above 0"),
        (lambda: mx.Adam(beta1=1.0), "Adam: beta1 must lie in"),
        (lambda: mx.Adam(beta2=-0.5), "Adam: beta2 must lie in"),
        (lambda: mx.Adam(epsilon=0), "Adam: epsilon must be a finite number above 0"),
        (lambda: mx.AdamW(weight_decay=-1), "AdamW: weight_decay must be a finite number of at least 0, got -1"),
        (lambda: mx.Schedule(0), "Schedule: lr must be a finite number above 0"),
        (lambda: mx.StepDecay(0.1, every=0), "StepDecay: every must be a finite number above 0"),
        (lambda: mx.StepDecay(0.1, factor=-1), "StepDecay: factor must be a finite number above 0"),
        (lambda: mx.ExponentialDecay(0.1, factor=math.nan), "ExponentialDecay: factor must"),
        (lambda: mx.CosineDecay(0.1, epochs=0), "CosineDecay: epochs must be a finite number above 0"),
        (lambda: mx.WarmUp(0.1, epochs=-1), "WarmUp: epochs must be a finite number above 0"),
        (lambda: mx.WarmUp(0.1, after=0.1), "WarmUp: after must be a schedule or None, got 0.1"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_tables_name_every_class():
    assert set(OPTIMIZERS.values()) == {mx.SGD, mx.Adam, mx.AdamW, mx.LBFGS}
    assert set(SCHEDULES.values()) == {mx.Schedule, mx.StepDecay, mx.ExponentialDecay, mx.CosineDecay, mx.WarmUp}
