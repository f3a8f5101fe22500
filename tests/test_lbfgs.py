"""L-BFGS: its line search and its direction by their definitions, and trainings by it like any other's."""

from __future__ import annotations

import json
import math
import tracemalloc
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize, rosen, rosen_der

import mlp_xp as mx
from mlp_xp.cli.train import enough_epochs, main
from mlp_xp.devices import TorchDevice
from mlp_xp.engines.lbfgs import LbfgsEngine
from mlp_xp.estimators.lbfgs import LossAndGradient
from mlp_xp.objective import Objective
from mlp_xp.optim.lbfgs import Pair, Point, _between, _direction, _Trial, strong_wolfe


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 20))
    return X, (X @ rng.standard_normal((20, 4)) + rng.standard_normal((300, 4))).argmax(axis=1)


def dot(x, y):
    return float(x @ y)


def answered(generator, answer):
    """Return what a generator returns, and what it asked, if it is answered by this function."""
    asked = []
    try:
        asked.append(next(generator))
        while True:
            asked.append(generator.send(answer(asked[-1])))
    except StopIteration as end:
        return end.value, asked


# ----------------------------------------------------------------------------------------------------------------------
# The parts


@given(
    seed=st.integers(0, 10**6),
    first=st.sampled_from([1e-6, 0.03, 1.0, 40.0, 1e7]),
    scale=st.sampled_from([1e-100, 1e-6, 1.0, 1e100]),
    edge=st.sampled_from([math.inf, 3.0]),
    beyond=st.sampled_from([(math.nan, math.nan), (math.inf, math.inf), (-1e200, math.nan), (-1e200, -math.inf)]),
)
def test_a_step_that_is_found_fulfills_the_strong_wolfe_conditions(seed, first, scale, edge, beyond):
    """On a parabola with waves, which beyond an edge has no values."""
    bend, height, width, phase = np.random.default_rng(seed).uniform([0.1, 0, 0.5, 0], [10, 1, 5, 6]).tolist()

    def curve(t):
        if t > edge:
            return beyond
        loss = bend * t * (t / 2 - 1) + height * bend / width * (math.sin(width * t + phase) - math.sin(phase))
        slope = bend * (t - 1) + height * bend * math.cos(width * t + phase)
        return scale * loss, scale * slope

    loss, slope = curve(0.0)
    if slope >= 0:
        return
    found, asked = answered(strong_wolfe(loss, slope, first, 60), curve)
    assert found
    assert curve(asked[-1])[0] <= loss + 1e-4 * asked[-1] * slope
    assert abs(curve(asked[-1])[1]) <= -0.9 * slope


def test_the_best_of_too_few_steps_is_taken_if_it_is_better():
    line = [(-1.0, -1.0), (-4.0, -1.0), (-16.0, -1.0)]  # falls for ever: no step has a flatter slope
    found, asked = answered(strong_wolfe(0.0, -1.0, 1.0, 3), lambda t: (-t, -1.0))
    assert (found, asked) == (True, [1.0, 4.0, 16.0])
    values = {1.0: line[0], 4.0: (math.nan, math.nan)}
    found, asked = answered(strong_wolfe(0.0, -1.0, 1.0, 2), lambda t: values[t])
    assert (found, asked) == (True, [1.0, 4.0, 1.0])  # the one that counts comes last
    found, asked = answered(strong_wolfe(0.0, -1.0, 1.0, 7), lambda t: (1.0, 1.0))
    assert not found
    assert len(asked) == 7


@pytest.mark.parametrize("slope", [0.0, 1.0, math.nan])
def test_a_search_that_cannot_get_lower_asks_nothing(slope):
    assert answered(strong_wolfe(1.0, slope, 1.0, 20, unseen=1e-16), None) == (False, [])


@pytest.mark.parametrize("first", [1e-9, 1e-3, 1.0, 50.0])
def test_slopes_decide_where_the_loss_shows_nothing(first):
    found, asked = answered(strong_wolfe(1e16, -1.0, first, 20, unseen=10.0), lambda t: (1e16 + 2.0, t - 1.0))
    assert found
    assert 0.1 <= asked[-1] <= 1.9
    found, _ = answered(strong_wolfe(1e16, -1.0, first, 20, unseen=10.0), lambda t: (1e16 + 20.0, t - 1.0))
    assert not found  # that much is seen


def test_a_search_without_end_or_gain_finds_nothing():
    found, asked = answered(strong_wolfe(1e16, -1.0, 1e-9, 5, unseen=10.0), lambda t: (1e16, -1.0))
    assert not found
    assert len(asked) == 5


def test_a_search_ends_where_no_number_is_between():
    found, asked = answered(strong_wolfe(0.0, -1.0, 1.0, 200), lambda t: (-t, -1.0) if t <= 1.1 else (math.inf,) * 2)
    assert found
    assert 1.1 - 1e-15 <= asked[-1] <= 1.1
    assert len(asked) < 80


def test_the_cubic_between_two_trials():
    cubic = [_Trial(t, t**3 - 3 * t, 3 * t * t - 3) for t in (-0.5, 2.0)]  # smallest at 1
    for low, high in (cubic, cubic[::-1]):
        assert _between(low, high) == pytest.approx(1.0)
    assert _between(_Trial(0.0, 0.0, -1.0), _Trial(1.0, -1.0, -1.0)) == 0.5  # a line
    assert _between(_Trial(0.0, 0.0, -1e-3), _Trial(1.0, 1e3, 2e3)) == 0.1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_iteration_that_cannot_begin():
    theta, inf = np.ones(2), math.inf
    for gradient in ([inf, 0.0], [math.nan, 1.0], [1e200, 0.0]):  # whose square is no float
        (end, over), asked = answered(mx.LBFGS().iterate(Point(theta, 1.0, np.array(gradient)), [], dot), None)
        assert over
        assert not asked
        assert not np.isfinite(end.theta).all()
    start = Point(theta, 1.0, np.full(2, 1e-200))
    assert answered(mx.LBFGS(tol=0).iterate(start, [], dot), None) == ((start, True), [])
    pairs = [Pair(np.full(2, 1e200), np.full(2, 1e200), 1.0, 1e200)]
    answer = Point(theta, 0.9, np.zeros(2))
    (end, _), asked = answered(mx.LBFGS().iterate(Point(theta, 1.0, np.ones(2)), pairs, dot), lambda theta: answer)
    assert end is answer
    assert_allclose(asked, [theta - 0.5**0.5])  # the first step of all


@pytest.mark.parametrize("count", [0, 1, 4])
def test_the_direction_is_that_of_the_matrix(count, rng):
    """NW eq. 7.19: H becomes V' H V + rho s s', which is written out here."""
    steps, A = rng.standard_normal((count, 6)), rng.standard_normal((6, 6))
    pairs = [Pair.of(s, (A @ A.T + np.eye(6)) @ s, dot) for s in steps]
    H = np.eye(6) * (pairs[-1].s @ pairs[-1].y / (pairs[-1].y @ pairs[-1].y) if pairs else 1)
    for s, y, *_ in pairs:
        V = np.eye(6) - np.outer(y, s) / (s @ y)
        H = V.T @ H @ V + np.outer(s, s) / (s @ y)
    gradient = rng.standard_normal(6)
    given = gradient.copy()
    assert_allclose(_direction(gradient, pairs, dot), -H @ gradient, rtol=1e-9, atol=1e-11)
    assert_array_equal(gradient, given)


def test_a_pair_without_curvature_is_none():
    s = np.ones(3)
    for y in (np.zeros(3), -s, np.array([1.0, -1.0, 0.0])):
        assert Pair.of(s, y, dot) is None
    assert Pair.of(0 * s, 0 * s, dot) is None
    assert Pair.of(s, 2 * s, dot)[2:] == (6.0, 0.5)


@pytest.mark.parametrize(
    ("function", "gradient"),
    [
        (rosen, rosen_der),
        (lambda x: float(np.cosh(x - 1).sum()), lambda x: np.sinh(x - 1)),
        (lambda x: float(np.sum((x - 1) ** 4)), lambda x: 4 * (x - 1) ** 3),
    ],
)
def test_iterations_find_a_minimum_in_no_more_evaluations_than_scipys(function, gradient):
    theirs = minimize(function, np.full(6, -1.2), jac=gradient, method="L-BFGS-B", options={"gtol": 1e-6, "ftol": 0})
    optimizer, pairs, evaluations, over = mx.LBFGS(tol=1e-6), [], 1, False
    at = Point(np.full(6, -1.2), function(np.full(6, -1.2)), gradient(np.full(6, -1.2)))
    while not over:
        before = at.loss
        (at, over), asked = answered(
            optimizer.iterate(at, pairs, dot), lambda theta: Point(theta, function(theta), gradient(theta))
        )
        assert at.loss < before
        assert len(pairs) <= 10
        evaluations += len(asked)
    assert np.abs(at.gradient).max() <= 1e-6
    assert_allclose(at.theta, np.ones(6), atol=0.02)
    assert evaluations <= 1.5 * theirs.nfev + 5


# ----------------------------------------------------------------------------------------------------------------------
# Trainings


def counted(model, data, **settings):
    """Train; return the history, and the evaluations that it took."""
    with mock.patch.object(LbfgsEngine, "_point", autospec=True, side_effect=LbfgsEngine._point) as evaluated:
        return mx.fit(model, *data, **settings), evaluated.call_count


def by_scipy(model, data, l2, **options):
    """Return what SciPy's L-BFGS-B makes of the same loss, from the same start."""
    with LossAndGradient(model, *data, Objective(model.objective.output, l2=l2)) as function:
        options = {"ftol": 0, "maxfun": 10**5, **options}
        return minimize(function, model.theta.copy(), jac=True, method="L-BFGS-B", options=options)


def test_a_convex_problem_has_scipys_minimum(data):
    model = mx.MLP([20, 4], dtype="float64", seed=1)
    theirs = by_scipy(model, data, 1e-3, gtol=1e-8, maxiter=1000)
    history, evaluations = counted(model, data, epochs=1000, optimizer=mx.LBFGS(tol=1e-8, l2=1e-3))
    assert_allclose(history.loss[-1], theirs.fun, rtol=1e-10)
    assert_allclose(model.theta, theirs.x, atol=1e-5)
    assert evaluations <= 1.5 * theirs.nfev
    assert len(history) < 1000


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_network_gets_as_far_as_by_scipy(activation, data):
    model = mx.MLP([20, 16, 4], activation, dtype="float64", seed=2)
    theirs = by_scipy(model, data, 1e-4, gtol=0, maxiter=50)
    history, evaluations = counted(model, data, epochs=51, optimizer=mx.LBFGS(tol=0, l2=1e-4))
    assert history.loss[50] <= 1.05 * theirs.fun
    assert evaluations <= 1.5 * theirs.nfev
    assert history.loss == sorted(history.loss, reverse=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("device", ["strict", "torch", "jax", "cuda"])
def test_every_device_goes_the_same_way(device, dtype, data):
    losses = []
    for name in ("cpu", device):
        model = mx.MLP([20, 6, 4], "tanh", dtype=dtype, device=name, seed=1)
        history = mx.fit(model, *data, epochs=8, optimizer=mx.LBFGS(l2=0.01))
        losses.append(history.loss)
    assert_allclose(*losses, rtol=1e-4 if dtype == "float32" else 1e-9)


@pytest.mark.parametrize("plan", ["zero", "ragged", pytest.param("sparse", marks=pytest.mark.needs("compiled"))])
def test_every_plan_goes_the_same_way(plan, rng):
    X, y = np.tril(rng.integers(0, 256, (80, 30), dtype=np.uint8))[:, ::-1].copy(), rng.integers(0, 3, 80)
    X[:, 7] = 0
    losses, gradients = [], []
    for kind in ("dense", plan):
        model = mx.MLP([30, 5, 3], dtype="float64", seed=1)
        for state in mx.epochs(model, X, y, epochs=8, optimizer=mx.LBFGS(l2=0.01), plan=kind):
            losses.append(float(state.loss))
        assert state.plan.kind == kind
        gradients.append(state.plan.outward(state.gradient, model))
    assert_allclose(losses[:8], losses[8:], rtol=1e-9)
    assert_allclose(*gradients, rtol=1e-5, atol=1e-9)


@pytest.mark.usefixtures("cpu_engine")
def test_weights_count_as_rows_and_threads_do_not(data, rng):
    X, y = data
    weights = rng.integers(1, 4, len(X))
    runs = []
    for rows, how in ((np.arange(len(X)), {"weights": weights}), (np.repeat(np.arange(len(X)), weights), {})):
        for threads in (1, 2):
            model = mx.MLP([20, 6, 4], dtype="float64", seed=1)
            optimizer = mx.LBFGS(l2=0.01)
            states = mx.epochs(model, X[rows], y[rows], epochs=6, optimizer=optimizer, threads=threads, **how)
            runs.append([float(state.loss) for state in states])
    assert runs[0] == runs[1]
    assert runs[2] == runs[3]
    assert_allclose(runs[0], runs[2], rtol=1e-9)


@pytest.mark.usefixtures("cpu_engine")
def test_the_state_is_that_of_the_iteration(data):
    """Loss and gradient are those at which it began; there is one update, on all rows."""
    model = mx.MLP([20, 6, 4], dtype="float64", seed=1)
    theta = model.theta
    for state in mx.epochs(model, *data, epochs=4, optimizer=mx.LBFGS()):
        model.theta, theta = theta, model.theta
        loss, gradient = model.loss_and_gradient(*data)
        model.theta = theta
        assert_allclose(float(state.loss), float(loss), rtol=1e-12)
        parts = [part.ravel() for part in (*gradient.weights, *gradient.biases)]
        assert_allclose(float(state.gradient_norm), np.linalg.norm(np.concatenate(parts)), rtol=1e-9)
        assert (state.updates, state.rows, state.lr) == (1, len(data[0]), 1.0)
        assert set(state.optimizer_state) == {"over", *(f"{name}{i}" for name in "sy" for i in range(10))}
    assert np.any(state.optimizer_state["s2"])
    assert not np.any(state.optimizer_state["s4"])


# ----------------------------------------------------------------------------------------------------------------------
# The end


def test_it_ends_within_the_tolerance(data):
    model = mx.MLP([20, 4], dtype="float64")
    states = list(mx.epochs(model, *data, optimizer=mx.LBFGS(tol=1e-3)))  # without a number of epochs
    assert [state.done.final for state in states] == [False] * (len(states) - 1) + [True]
    _, gradient = model.loss_and_gradient(*data)
    assert max(np.abs(part).max() for part in (*gradient.weights, *gradient.biases)) <= 1e-3
    assert float(np.abs(states[-1].gradient).max()) > 1e-3  # where the last iteration began


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_ends_where_rounding_hides_what_is_left(dtype, data):
    model = mx.MLP([20, 4], dtype=dtype)
    history, evaluations = counted(model, data, epochs=2000, optimizer=mx.LBFGS(tol=0, l2=0.01))
    assert len(history) < 300
    assert evaluations < 400
    _, gradient = model.loss_and_gradient(*data)
    slope = np.concatenate([(g + 0.01 * W).ravel() for g, W in zip(gradient.weights, model.weights, strict=True)])
    assert np.abs(slope).max() < (1e-3 if dtype == "float32" else 1e-7)


@pytest.mark.parametrize("scale", [1e8, 1e12, 1e15])
@pytest.mark.parametrize(("layers", "activation"), [([3, 1], "relu"), ([3, 5, 1], "relu"), ([3, 5, 1], "tanh")])
def test_large_targets_hide_the_first_steps_and_are_learned(layers, activation, scale):
    """The first steps lower the loss, of up to 1e31 in float32, by less than its last digit."""
    X = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32)
    y = scale * (X @ [1, 2, 3])
    model = mx.MLP(layers, activation, output="identity", seed=0)
    history = mx.fit(model, X, y, epochs=300, optimizer=mx.LBFGS())
    assert model.score(X, y) > 0.7  # units of tanh saturate
    assert history.loss == sorted(history.loss, reverse=True)


def test_an_end_that_was_not_asked_for_is_told(data, caplog):
    mx.fit(mx.MLP([20, 4]), *data, epochs=500, optimizer=mx.LBFGS(tol=1e-2))
    mx.fit(mx.MLP([20, 4]), *data, epochs=2, optimizer=mx.LBFGS(tol=0))
    assert not caplog.messages
    mx.fit(mx.MLP([20, 4]), *data, epochs=500, optimizer=mx.LBFGS(tol=0, l2=0.01))
    (message,) = caplog.messages
    assert message.startswith("L-BFGS ended before the gradient was within tol: its largest component is ")
    assert "tol is 0, and no step was found that makes the loss of " in message
    assert message.endswith("in float32, rounding may hide what is left to gain")


def test_where_there_is_nothing_to_do_it_ends_at_once():
    model = mx.MLP([2, 3], init="zeros")
    history = mx.fit(model, [[0.0, 0.0]] * 3, [0, 1, 2], optimizer=mx.LBFGS())
    assert len(history) == 1
    assert not np.any(model.theta)


def test_a_run_that_is_over_stays_so(data, tmp_path):
    settings = {"epochs": 500, "optimizer": mx.LBFGS(tol=1e-2)}
    first = mx.fit(mx.MLP([20, 4]), *data, checkpoint=mx.Checkpoint(tmp_path), **settings)
    model = mx.MLP([20, 4])
    again = mx.fit(model, *data, checkpoint=mx.Checkpoint(tmp_path, resume=True), **settings)
    assert again.loss == first.loss
    assert len(again) < 500
    *_, last = mx.epochs(mx.MLP([20, 4]), *data, **settings)
    assert list(mx.epochs(model, *data, start=last.snapshot(), **settings)) == []
    assert_array_equal(model.theta, last.model.theta)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_start_without_a_loss_is_a_divergence(value, data):
    model = mx.MLP([20, 6, 4], "identity", dtype="float32")
    model.weights = [1e30 * W for W in model.weights]
    with np.errstate(all="ignore"), pytest.raises(mx.DivergenceError, match="epoch 1, update 1"):
        mx.fit(model, *data, optimizer=mx.LBFGS())


# ----------------------------------------------------------------------------------------------------------------------
# As with any optimizer


class Asked:
    """Answers True at one question, and counts them."""

    def __init__(self, yes):
        self.yes, self.count = yes, 0

    def __call__(self):
        self.count += 1
        return self.count == self.yes


@pytest.mark.usefixtures("cpu_engine", "single_updates")
@pytest.mark.parametrize("plan", ["dense", "ragged", "auto"])
def test_stopped_at_any_question_and_resumed_equals_straight(plan, rng, monkeypatch):
    """In the middle of a search, and of the gradient of all rows, too: these take more than one piece of work."""
    monkeypatch.setattr("mlp_xp.optim.lbfgs._CURVATURE", 0.1)  # for which searches take longer
    X = np.tile(np.tril(rng.integers(0, 256, (60, 12), dtype=np.uint8))[:, ::-1], (150, 1))
    data, optimizer = (X, rng.integers(0, 3, len(X))), mx.LBFGS(history=3, l2=0.01)

    def epochs(start=None, pause=None):
        model = mx.MLP([12, 5, 3], seed=1)
        how = {"epochs": 7, "optimizer": optimizer, "plan": plan, "start": start, "pause": pause}
        return mx.epochs(model, *data, **how)

    asked = Asked(0)
    straight = [state.snapshot() for state in epochs(pause=asked)]
    assert asked.count >= 10
    for question in range(1, asked.count + 1):
        kept = []
        for state in epochs(pause=Asked(question)):
            kept.append(state.snapshot())
            if not state.whole:
                assert state.rows == 0
                break
        kept[-1:] = [state.snapshot() for state in epochs(start=kept[-1])]
        assert len(kept) == len(straight)
        for one, other in zip(kept, straight, strict=True):
            assert (one.epoch, one.update) == (other.epoch, other.update)
            assert_array_equal(one.theta, other.theta)
            for name, value in other.optimizer.items():
                assert_array_equal(one.optimizer[name], value)


def test_a_pause_does_not_change_the_run(data):
    thetas = []
    for pause in (None, lambda: True):
        model = mx.MLP([20, 6, 4], seed=1)
        whole = [s for s in mx.epochs(model, *data, epochs=5, optimizer=mx.LBFGS(), pause=pause) if s.whole]
        assert len(whole) == 5
        thetas.append(model.theta)
    assert_array_equal(*thetas)


def test_what_is_assigned_in_between_is_taken_up(data):
    model = mx.MLP([20, 4], dtype="float64")
    for state in mx.epochs(model, *data, epochs=6, optimizer=mx.LBFGS()):
        if state.epoch == 3:
            model.theta = np.zeros_like(model.theta)
        if state.epoch == 4:
            assert float(state.loss) == pytest.approx(math.log(4), rel=1e-12)
            snapshot = state.snapshot()
    other = mx.MLP([20, 4], dtype="float64")
    assert len(list(mx.epochs(other, *data, epochs=6, optimizer=mx.LBFGS(), start=snapshot))) == 2
    assert_array_equal(other.theta, model.theta)


def test_callbacks_validation_and_early_stopping(data):
    X, y = data
    model, seen = mx.MLP([20, 16, 4], seed=1), []
    history = mx.fit(
        model, X[:150], y[:150], epochs=200, optimizer=mx.LBFGS(tol=0), validation=(X[150:], y[150:]),
        callbacks=[lambda state: seen.append(state.epoch)], tol=0.0, patience=3,
    )  # fmt: skip
    assert seen == history.epoch
    assert len(history) == int(np.argmin(history.val_loss)) + 4 < 200
    assert model.evaluate(X[150:], y[150:])[0] == pytest.approx(min(history.val_loss), rel=1e-5)


@pytest.mark.parametrize(
    "state",
    [
        {"s0": np.full(84, 1e300), "y0": np.full(84, 1e300)},
        {"s0": np.full(84, 1e-300), "y0": np.full(84, 1e300)},
        {"s1": np.ones(84), "y1": -np.ones(84)},
        {"s1": np.ones(84), "y1": np.full(84, 1e-14)},
        {"s1": np.ones(84), "y1": np.full(84, 1e-30)},
        {"over": 7},
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_state_that_a_file_may_hold_leads_astray(state, data):
    """Its pairs are used or not; the loss falls all the same."""
    *_, last = mx.epochs(mx.MLP([20, 4], dtype="float64"), *data, epochs=2, optimizer=mx.LBFGS(history=2))
    snapshot = last.snapshot()
    snapshot.optimizer.update(state)
    model = mx.MLP([20, 4], dtype="float64")
    losses = [
        float(state.loss) for state in mx.epochs(model, *data, epochs=8, optimizer=mx.LBFGS(history=2), start=snapshot)
    ]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == (0 if "over" in state else 6)


def test_mini_batches_are_refused_before_anything_is_written(data, tmp_path):
    message = "LBFGS takes all rows at once, got batch_size 32; leave it out"
    model = mx.MLP([20, 4])
    with pytest.raises(ValueError, match=message):
        mx.epochs(model, *data, optimizer=mx.LBFGS(), batch_size=32)
    checkpoint = mx.Checkpoint(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        mx.fit(model, *data, optimizer=mx.LBFGS(), batch_size=32, checkpoint=checkpoint)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"history": 0}, "LBFGS: history must be a whole number of at least 1, got 0"),
        ({"max_evaluations": 2.5}, "LBFGS: max_evaluations must be a whole number of at least 1, got 2.5"),
        ({"tol": -1}, "LBFGS: tol must be a finite number of at least 0, got -1"),
        ({"l2": math.nan}, "LBFGS: l2 must be a finite number of at least 0, got nan"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        mx.LBFGS(**settings)


def test_it_has_no_learning_rate():
    for arguments, settings in (((0.1,), {}), ((), {"lr": 0.1}), ((), {"lr_bias": 0.1})):
        with pytest.raises(TypeError):
            mx.LBFGS(*arguments, **settings)


def test_the_memory_that_it_takes_is_estimated(rng):
    X, y, optimizer = rng.standard_normal((600, 80)).astype(np.float32), rng.integers(0, 10, 600), mx.LBFGS(tol=0)
    model = mx.MLP([80, 1000, 10], seed=1)
    tracemalloc.start()
    mx.fit(model, X, y, epochs=13, optimizer=optimizer, threads=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < mx.estimate_memory(model, X, optimizer=optimizer, threads=2) < 2 * peak


@pytest.mark.needs("torch")
def test_where_there_is_no_float64_products_are_in_float32():
    torch = mx.devices.get_device("torch")
    metal = TorchDevice("torch:mps", torch.xp, SimpleNamespace(type="mps"))
    assert (torch.widest, metal.widest) == ("float64", "float32")
    x = torch.asarray(np.arange(4, dtype=np.float32))
    assert metal.dot(x, x) == 14.0


@pytest.mark.parametrize("device", ["cpu", "strict", "torch", "jax", "cuda"])
def test_scalar_products_have_the_digits_of_float64(device, rng):
    x = rng.standard_normal(10_000).astype(np.float32)
    y = np.concatenate([x[:5000], -x[:5000]]) * 3
    x[5000:] = x[:5000]
    x[0] += np.float32(1e-3)
    products = [float(a) * float(b) for a, b in zip(x, y, strict=True)]
    there = mx.devices.get_device(device)
    with there.active():
        got = there.dot(there.asarray(x), there.asarray(y))
    assert abs(got - math.fsum(products)) < 1e-14 * math.fsum(map(abs, products))


def test_the_command_takes_all_rows_and_enough_epochs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mlp_xp.cli.train._draw", lambda *arguments: None)
    arguments = [
        "--data",
        "moons",
        "--hidden",
        "8",
        "--optimizer",
        "lbfgs",
        "--l2",
        "1e-3",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*arguments, "--dry-run"]) == 0
    assert "MB of memory" in capsys.readouterr().out
    assert main([*arguments, "--quiet"]) == 0
    table = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert float(table["test"][1]) >= 0.97
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["batch_size"], config["epochs"]) == (0, enough_epochs(config["samples"], "lbfgs"))
    assert main([*arguments[:-1], str(tmp_path / "other"), "--batch-size", "32"]) == 2
    assert "LBFGS takes all rows at once, got batch_size 32" in capsys.readouterr().err
