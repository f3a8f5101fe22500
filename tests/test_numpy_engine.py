"""What NumPy's engine saves: arrays, calls and views that a textbook makes anew in every update; never a digit."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import mlp_xp as mx
from mlp_xp.engines.threads import ThreadEngine
from mlp_xp.kernels.cpu import numpy_, updates
from mlp_xp.kernels.cpu.updates import AdamUpdate, DescentUpdate
from mlp_xp.params import Layout
from mlp_xp.rows.batches import MiniBatches, shuffled_rows
from mlp_xp.rows.source import InMemory

OPTIMIZERS = {
    "sgd": mx.SGD(0.1),
    "momentum": mx.SGD(0.1, momentum=0.9),
    "nesterov": mx.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": mx.Adam(0.01),
    "adam with other constants": mx.Adam(0.01, beta1=0.0, beta2=0.5, epsilon=0.1),
    "adamw": mx.AdamW(0.01, weight_decay=0.1),
}


def in_place(optimizer, size, dtype):
    """Return the optimizer's update in place, called as its own: f(theta, grad, state, rate)."""
    if isinstance(optimizer, mx.Adam):
        constants = optimizer.beta1, optimizer.beta2, optimizer.epsilon, optimizer.weight_decay
        adam = AdamUpdate(size, dtype, *constants)

        def update(theta, grad, state, rate):
            state["updates"] += 1
            adam(theta, grad, state["mean"], state["square"], state["updates"], rate)

        return update
    descent = DescentUpdate(size, dtype, optimizer.momentum, optimizer.nesterov)
    return lambda theta, grad, state, rate: descent(theta, grad, state.get("velocity"), rate)


def gradients(seed, scale, steps, size, dtype):
    """Yield gradients of any size, some entries zero, others a million times larger than their neighbors."""
    rng = np.random.default_rng(seed)
    sizes = scale * rng.choice([0, 1e-6, 1, 1e3], (steps, size), p=[0.2, 0.2, 0.5, 0.1])
    yield from (sizes * rng.standard_normal((steps, size))).astype(dtype)


@given(
    name=st.sampled_from(sorted(OPTIMIZERS)),
    dtype=st.sampled_from(["float32", "float64"]),
    size=st.integers(1, 200),
    scale=st.sampled_from([1e-30, 1e-15, 1e-8, 1e-3, 1.0, 1e4, 1e15]),
    seed=st.integers(0, 2**32 - 1),
    own_rates=st.booleans(),
)
def test_updates_in_place_are_the_optimizers_own_up_to_a_few_units_in_the_last_place(
    name, dtype, size, scale, seed, own_rates
):
    optimizer, rng = OPTIMIZERS[name], np.random.default_rng(seed)
    rate = rng.uniform(0.001, 0.1, size).astype(dtype) if own_rates else 0.03
    theta = rng.standard_normal(size).astype(dtype)
    ours, theirs = theta.copy(), theta.copy()
    our_state, their_state = optimizer.init(theta), optimizer.init(theta)
    update, moved = in_place(optimizer, size, dtype), np.abs(theta)
    for grad in gradients(seed, scale, 5, size, dtype):
        before, given = theirs.copy(), grad.copy()
        update(ours, grad, our_state, rate)
        theirs, their_state = optimizer.update(theirs, grad.copy(), their_state, rate)
        assert_array_equal(grad, given)
        moved += np.abs(theirs - before) + np.abs(theirs)
        assert (np.abs(ours - theirs) <= 8 * np.finfo(dtype).eps * moved).all()
    assert our_state.keys() == their_state.keys()
    for key, value in their_state.items():
        largest = np.maximum(np.abs(value), np.finfo(dtype).smallest_normal)
        assert (np.abs(our_state[key] - value) <= 8 * np.finfo(dtype).eps * largest).all(), key


@pytest.mark.parametrize("own_rates", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_size_of_blocks_changes_no_bits(name, own_rates, rng, monkeypatch):
    found, rate = [], rng.random(1000).astype("f4") if own_rates else 0.1
    grads, theta = rng.standard_normal((3, 1000)).astype("f4"), rng.standard_normal(1000).astype("f4")
    for block in (1, 64, 999, 1000, 4096):
        monkeypatch.setattr(updates, "_BLOCK", block)
        own, state, update = theta.copy(), OPTIMIZERS[name].init(theta), in_place(OPTIMIZERS[name], 1000, "float32")
        for grad in grads:
            update(own, grad, state, rate)
        found.append((own, state))
    for own, state in found[1:]:
        assert_array_equal(own, found[0][0])
        for key, value in state.items():
            assert_array_equal(value, found[0][1][key])


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_makes_no_vector(name):
    size = 10 * updates._BLOCK
    theta, grad = np.ones(size, np.float32), np.ones(size, np.float32)
    state = OPTIMIZERS[name].init(theta)
    tracemalloc.start()
    try:
        in_place(OPTIMIZERS[name], size, "float32")(theta, grad, state, 0.1)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * 4 * updates._BLOCK  # it keeps one block
    finally:
        tracemalloc.stop()


def trained(sizes=(6, 5, 3), rows=40, epochs=2, **settings):
    """Return the state after some epochs by NumPy's engine."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((rows, sizes[0])), rng.integers(0, sizes[-1], rows)
    *_, state = mx.epochs(mx.MLP(list(sizes)), X, y, epochs=epochs, **settings)
    assert type(state.engine) is ThreadEngine
    return state


@pytest.mark.usefixtures("numpy_engine")
@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_known_rules_update_in_place_and_others_by_themselves(name, batch_size):
    calls, kind, constants = [], type(OPTIMIZERS[name]), {"momentum": 0.9} if name == "momentum" else {}
    rule = kind.update

    def update(self, *arguments):
        calls.append(self)
        return rule(self, *arguments)

    settings = {"batch_size": batch_size, "epochs": 3}
    own = trained(optimizer=type("Own", (kind,), {"update": update})(0.01, **constants), **settings)
    assert len(calls) == 3 * own.engine.updates
    assert own.engine._in_place is None
    known = trained(optimizer=kind(0.01, **constants), **settings)
    assert known.engine._in_place is not None
    np.testing.assert_allclose(known.model.theta, own.model.theta, rtol=1e-4, atol=1e-7)


@pytest.mark.usefixtures("numpy_engine")
@pytest.mark.parametrize(("rows", "batch_size"), [(40, None), (40, 8), (2500, None)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_views_of_parameters_are_cut_once_for_a_training(name, rows, batch_size, monkeypatch):
    split, counts = Layout.split, []

    def counting(self, *arguments):
        counts[-1] += 1
        return split(self, *arguments)

    monkeypatch.setattr(Layout, "split", counting)
    for epochs in (1, 4):
        counts.append(0)
        state = trained(rows=rows, epochs=epochs, batch_size=batch_size, optimizer=OPTIMIZERS[name])
    assert counts[0] == counts[1] <= 3 + state.engine.groups  # of the first values, as well


@pytest.mark.usefixtures("numpy_engine")
@pytest.mark.parametrize(("sizes", "tiled"), [((20, 64, 64, 3), False), ((300, 256, 3), True)])
def test_only_large_products_are_cut_into_tiles(sizes, tiled, monkeypatch):
    calls, add_tiles = [], numpy_.add_tiles

    def counting(*arguments):
        calls.append(1)
        add_tiles(*arguments)

    monkeypatch.setattr(numpy_, "add_tiles", counting)
    trained(sizes, rows=128, epochs=1, batch_size=64, plan="dense")
    assert bool(calls) == tiled


class Counting(InMemory):
    """Rows that count how often they are gathered."""

    gathered = 0

    def take(self, index, out=None):
        self.gathered += 1
        return super().take(index, out)


@pytest.mark.parametrize("n", [1, 31, 32, 33, 1000, 4097])
@pytest.mark.parametrize("d", [1, 20, 600])
def test_small_batches_are_gathered_together_and_stay_the_same(n, d):
    X = np.arange(n * d, dtype=np.float32).reshape(n, d)
    rows, y = Counting(X), np.arange(n)
    batches = MiniBatches(rows, y, mx.devices.get_device("cpu"), lambda epoch: shuffled_rows(3, epoch, n), 32)
    order, shards = shuffled_rows(3, 1, n), list(batches(1))
    assert len(shards) == batches.updates
    for i, (shard,) in enumerate(shards):
        index = order[32 * i : 32 * (i + 1)]
        assert_array_equal(shard.X, X[index])
        assert_array_equal(shard.y, index)
        assert max(shard.X.base.size, shard.X.size) <= max(2**14, 32 * d)
    assert rows.gathered <= 1 + max(n * d / 2**13, n / 32)
    assert d > 20 or rows.gathered <= 1 + n * d / 2**13


@pytest.mark.skipif(not hasattr(np, "astype"), reason="before 2.1 NumPy needs array-api-compat to follow the standard")
@pytest.mark.parametrize("compiled", ["", "0"])
def test_no_part_of_numpy_is_imported_that_training_does_not_use(compiled):
    """array_api_compat.numpy imports all of them, f2py with its regular expressions, in a tenth of a second."""
    code = (
        "import sys, numpy as np, mlp_xp as mx; X, y = np.eye(3), [0, 1, 0]; model = mx.MLP([3, 2])\n"
        "for optimizer in (mx.SGD(l2=0.1, momentum=0.5), mx.Adam()):\n"
        "    mx.fit(model, X, y, epochs=2, batch_size=2, optimizer=optimizer, validation=(X, y))\n"
        "model.predict_proba(X), model.loss_and_gradient(X, y)\n"
        "sys.exit(' '.join({'array_api_compat.numpy', 'numpy.f2py', 'numpy.testing'} & set(sys.modules)) or 0)"
    )
    environment = os.environ | ({"MLP_XP_COMPILED": compiled} if compiled else {})
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
