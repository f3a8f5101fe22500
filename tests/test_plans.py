"""A plan leaves products by zero out. It may cost rounding, never digits, whatever the data hold."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import mlp_xp as mx
from mlp_xp.engines import Done, Setup, choose_plan, make_engine
from mlp_xp.kernels.cpu.compiled import library
from mlp_xp.rows.background import usual_values
from mlp_xp.rows.plan import PLANS, make_plan
from mlp_xp.rows.source import InMemory

CPU = mx.devices.get_device("cpu")
FILLS = (-1.0, -99.0, -999.0, -9999.0, 1e5, 1e6, 1e7, 1e9, -1e12, 1e20)


def gradient(X, y, plan, dtype, weights):
    """Return the mean gradient (P,) of a small network by a plan, in float64, in the order of the data."""
    model = mx.MLP([X.shape[1], 6, 2], "tanh", dtype=dtype)
    model.weights = weights
    rows = model.open(X)
    optimizer, before = mx.SGD(lr=1), model.theta
    chosen = choose_plan(rows, model, optimizer, plan, None, None)
    setup = Setup(model, model.objective, optimizer, rows, model.targets(y, len(X)), None, chosen, 1)
    with make_engine(setup) as engine:
        engine.begin(before, 1, 1.0, Done())
        engine.advance(None)
        return np.asarray(chosen.outward(engine.gradient(), model), np.float64)


@st.composite
def hostile_columns(draw):
    """Draw float32 data (n, d): columns of any scale and offset, some of them mostly a fill value of any size."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, columns = 1500, []
    for _ in range(draw(st.integers(2, 8))):
        x = rng.standard_normal(n) * draw(st.sampled_from([1e-3, 1.0, 100.0])) + draw(st.sampled_from([0.0, 0.5, 30.0]))
        x[rng.random(n) < draw(st.sampled_from([0.0, 0.3, 0.9]))] = draw(st.sampled_from([0.0, *FILLS]))
        columns.append(x)
    return np.stack(columns, axis=1).astype(np.float32), rng.integers(0, 2, n), rng


@settings(max_examples=60, deadline=None)
@given(drawn=hostile_columns(), plan=st.sampled_from([plan for plan in PLANS if plan != "sparse" or library()]))
def test_no_plan_costs_digits(drawn, plan):
    X, y, rng = drawn
    scale = 1 / np.maximum(1, np.abs(X).max(axis=0))  # weights that keep tanh out of saturation
    weights = [0.3 * rng.standard_normal((6, X.shape[1])) * scale, rng.standard_normal((2, 6))]
    weights = [W.astype(np.float32) for W in weights]  # the same network in both dtypes
    want = gradient(X, y, "dense", "float64", weights)

    def error(by):
        return np.abs(gradient(X, y, by, "float32", weights) - want).max() / np.abs(want).max()

    assert error(plan) <= max(10 * error("dense"), 1e-6)


@pytest.mark.parametrize("fill", [*FILLS, 1e30, -3e38])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_fill_value_is_no_background(fill, share):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((4000, 5)).astype(np.float32)
    X[rng.random(4000) < share] = fill
    usual = usual_values(X)
    assert_array_equal(usual, np.full(5, fill, np.float32) if abs(fill) <= 10 else np.zeros(5))


@pytest.mark.parametrize("codes", [(-9999, -9998), (1e9, 8e8), (-1e4, 1e6)])
def test_a_second_fill_value_does_not_make_the_first_a_background(codes):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((4000, 5)).astype(np.float32)
    share = rng.random(X.shape)
    X[share < 0.42], X[share > 0.62] = codes
    assert not usual_values(X).any()


@pytest.mark.parametrize("n", [4096, 8192, 20_000, 40_000])
@pytest.mark.parametrize("every", [2, 4])
def test_a_fill_value_in_every_other_row_is_no_background(n, every):
    """A sample at regular distances may see these rows alone, and take the column for a constant one."""
    X = np.random.default_rng(0).standard_normal((n, 5)).astype(np.float32)
    X[::every] = -9999
    assert make_plan(InMemory(X), CPU, "ragged").background is None


def test_training_with_missing_values_does_not_depend_on_the_plan():
    rng = np.random.default_rng(2024)  # how well this trains depends on the data
    X = rng.standard_normal((4000, 20)).astype(np.float32)
    y = (X[:, 0] + X[:, 1] > 0).astype(int)
    gone = rng.random(4000) < 0.3
    X[gone], y[gone] = 1e9, 0
    scores = []
    for plan in ("dense", "auto"):
        model = mx.MLP([20, 30, 2], seed=1)
        mx.fit(model, X, y, epochs=60, optimizer=mx.Adam(lr=0.03), plan=plan)
        scores.append(model.score(X, y))
    assert scores[0] == scores[1] > 0.8


def test_a_sample_decides_as_all_rows_would(rng, monkeypatch):
    """Shards of the sample are as small a part of it as shards are of the data."""
    rows = InMemory((np.arange(40) < rng.integers(1, 41, (5000, 1))).astype(np.uint8))
    whole = make_plan(rows, CPU)
    monkeypatch.setattr("mlp_xp.rows.plan._SAMPLE", 500)
    sampled = make_plan(rows, CPU)
    assert sampled.kind == whole.kind == "ragged"
    assert sampled.mean_columns == whole.mean_columns < 30


def test_looking_at_dense_data_takes_time_in_proportion_to_them(rng):
    """20,000 columns took 2.7 s for the answer "dense"."""
    took = []
    for d in (1000, 20_000):
        rows = InMemory(np.ones((200, d), np.uint8))
        start = time.process_time()
        assert make_plan(rows, CPU).kind == "dense"
        took.append(time.process_time() - start)
    assert took[1] < 100 * took[0] + 0.1


def test_plans_and_snapshots_can_be_compared():
    plans = [make_plan(InMemory(np.eye(40, dtype=np.uint8)), CPU, "ragged") for _ in range(2)]
    assert plans[0] == plans[0]
    assert plans[0] != plans[1]
    model = mx.MLP([2, 2])
    snapshots = [next(mx.epochs(model, [[0, 1], [1, 0]], [0, 1])).snapshot() for _ in range(2)]
    assert snapshots[0] != snapshots[1]
