"""Rows that stay in a file train on a GPU with the bits of rows in memory, also if they do not fit on it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import mlp_xp as mx
from mlp_xp.devices import CupyDevice
from mlp_xp.rows.stored import shuffled_chunks

pytestmark = pytest.mark.gpu

BLOCK, WINDOW, N, D = 64, 512, 612, 12
SETTINGS = {"optimizer": mx.SGD(lr=0.1, momentum=0.5), "epochs": 2, "plan": "dense"}


class Source:
    """Rows by slices, and a count of those that were read."""

    def __init__(self, X):
        self.X, self.shape, self.dtype, self.read, self.longest = X, X.shape, X.dtype, 0, 0

    def __getitem__(self, rows):
        self.read += rows.stop - rows.start
        self.longest = max(self.longest, rows.stop - rows.start)
        return self.X[rows].copy()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(CupyDevice, "shard_rows", 150)
    monkeypatch.setattr("mlp_xp.rows.stored.BLOCK", BLOCK)
    monkeypatch.setattr("mlp_xp.rows.stored.WINDOW", WINDOW)
    monkeypatch.setattr("mlp_xp.engines.cuda.streamed.BLOCK", BLOCK)


@pytest.fixture
def no_room(monkeypatch):
    """Let no rows of a file fit on the device."""
    monkeypatch.setattr("mlp_xp.engines.cuda.memory._has_room", lambda device, rows: False)


def draw(dtype, rng):
    X = rng.integers(0, 256, (N, D)).astype(np.uint8)
    return X if dtype == "uint8" else (X / 256).astype(dtype), rng.integers(0, 3, N)


def in_chunks(epoch):
    return shuffled_chunks(1, epoch, N)


def trained(X, y, **settings):
    model = mx.MLP([D, 9, 3], activation="tanh", device="cuda", seed=1)
    for state in mx.epochs(model, X, y, **(SETTINGS | settings)):
        last = state
    return model.device.to_host(model.theta), float(last.loss), last.plan.reason


def in_memory(X, y, batch_size):
    order = {"order": in_chunks} if batch_size else {}
    return trained(X, y, batch_size=batch_size, **order)


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
@pytest.mark.parametrize("batch_size", [None, 7, 200])
def test_rows_that_fit_are_read_once(rng, dtype, batch_size):
    X, y = draw(dtype, rng)
    source = Source(X)
    found, expected = trained(source, y, batch_size=batch_size), in_memory(X, y, batch_size)
    assert_array_equal(found[0], expected[0])
    assert found[1:] == expected[1:]
    assert source.read <= 2 * N
    assert source.longest <= WINDOW


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
@pytest.mark.parametrize("batch_size", [None, 7, 200])
def test_rows_that_do_not_fit_are_streamed_with_the_same_bits(rng, dtype, batch_size):
    X, y = draw(dtype, rng)
    source = Source(X)
    found, expected = trained(source, y, batch_size=batch_size), in_memory(X, y, batch_size)
    assert "from the host" in found[2]
    assert_array_equal(found[0], expected[0])
    assert found[1] == expected[1]
    assert source.longest <= BLOCK
    assert source.read <= 3 * N  # once to check them, once in each epoch
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mlp_xp")]


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize("batch_size", [None, 7])
def test_a_map_is_streamed_in_place(rng, tmp_path, batch_size):
    X, y = draw("uint8", rng)
    np.save(tmp_path / "X.npy", X)
    found = trained(np.load(tmp_path / "X.npy", mmap_mode="r"), y, batch_size=batch_size)
    assert "from the host" in found[2]
    assert_array_equal(found[0], trained(X, y, batch_size=batch_size)[0])


@pytest.mark.usefixtures("no_room")
def test_a_streamed_run_goes_on_in_the_middle_of_an_epoch(rng, monkeypatch):
    monkeypatch.setattr("mlp_xp.engines.cuda.engine._MOST_STEPS", 4)
    X, y = draw("uint8", rng)
    settings = {"batch_size": 7, **SETTINGS}
    model = mx.MLP([D, 9, 3], activation="tanh", device="cuda", seed=1)
    states = mx.epochs(model, Source(X), y, pause=lambda: True, **settings)
    snapshot = next(state for state in states if state.updates >= 80).snapshot()
    states.close()
    for _ in mx.epochs(model, Source(X), y, start=snapshot, **settings):
        pass
    assert_array_equal(model.device.to_host(model.theta), trained(Source(X), y, batch_size=7)[0])


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize("batch_size", [None, 100])
def test_a_file_that_fails_in_an_epoch_leaves_the_last_parameters(rng, batch_size):
    X, y = draw("uint8", rng)
    model, source, kept = mx.MLP([D, 9, 3], device="cuda", seed=1), Source(X), []

    def lose(state):
        source.X = X[:WINDOW]
        kept.append(model.device.to_host(model.theta).copy())

    with pytest.raises(ValueError, match="is the file cut short, or written to"):
        mx.fit(model, source, y, batch_size=batch_size, callbacks=[lose])
    assert_array_equal([model.device.to_host(model.theta)], kept)


def test_room_is_what_is_free_and_what_the_pool_may_take(rng):
    from mlp_xp.engines.cuda.memory import _has_room

    model = mx.MLP([D, 3], device="cuda")
    rows, pool = model.open(Source(draw("float64", rng)[0])), model.device.xp.get_default_memory_pool()
    assert _has_room(model.device, rows)
    limit = pool.get_limit()
    pool.set_limit(size=pool.used_bytes() + N * D * 4)
    try:
        assert not _has_room(model.device, rows)
    finally:
        pool.set_limit(size=limit)
