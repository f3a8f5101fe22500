"""A run that was stopped anywhere and resumed is the run that was not stopped, bit for bit."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import mlp_xp as mx
from mlp_xp.files.tensors import load, save
from mlp_xp.runs.folder import RunFolder
from mlp_xp.runs.record import FILE, read, write

OPTIMIZERS = {
    "sgd": lambda lr: mx.SGD(lr, l2=0.01),
    "momentum": lambda lr: mx.SGD(lr, momentum=0.9, lr_bias=0.2),
    "nesterov": lambda lr: mx.SGD(lr, momentum=0.9, nesterov=True),
    "adam": lambda lr: mx.Adam(lr, l2=0.01, lr_bias=0.05),
    "adamw": lambda lr: mx.AdamW(lr, weight_decay=0.1),
}
SCHEDULES = {
    "constant": 0.1,
    "step": mx.StepDecay(0.1, every=2),
    "exponential": mx.ExponentialDecay(0.1, factor=0.8),
    "cosine": mx.CosineDecay(0.1, epochs=5),
    "warm-up": mx.WarmUp(0.1, epochs=2, after=mx.CosineDecay(0.1, epochs=3)),
}
pytestmark = pytest.mark.usefixtures("single_updates")

STOPS = {"full batch": (None, 3), "epoch's end": (8, 6), "mid-epoch": (8, 8)}  # batch size; updates before the stop
EPOCHS = 5


@pytest.fixture
def data(rng):
    X = rng.integers(0, 256, (24, 6), dtype=np.uint8) * (rng.random((24, 6)) < 0.4).astype(np.uint8)
    X[:, 3] = 0
    return X, rng.integers(0, 3, 24)


def network(**settings):
    return mx.MLP([6, 4, 3], "tanh", dtype="float32", **settings)


class Stopped(mx.Checkpoint):
    """A checkpoint of a run that gets a signal after so many updates."""

    def __init__(self, folder, updates, number=signal.SIGTERM, **settings):
        super().__init__(folder, **settings)
        self.updates, self.number = updates, number

    def is_due(self):  # asked once for each update
        self.updates -= 1
        if self.updates == 0:
            signal.raise_signal(self.number)
        return super().is_due()


def stop_and_resume(folder, data, updates, network=network, **settings):
    """Train, stopped once after so many updates; return the history, or None where there were not so many."""
    settings = {"epochs": EPOCHS, **settings}
    try:
        mx.fit(network(), *data, checkpoint=Stopped(folder, updates), **settings)
    except mx.Interrupted:
        return mx.fit(network(), *data, checkpoint=mx.Checkpoint(folder, resume=True), **settings)
    return None


def content(folder):
    """Return all that a checkpoint holds, arrays as bytes, times left out."""
    run, history, callbacks, *rest = read(Path(folder, FILE))
    records = [vars(run) | {"optimizer": None, "seconds": None}, run.optimizer, history | {"seconds": None}, *callbacks]
    return *({name: np.asarray(value).tobytes() for name, value in record.items()} for record in records), *rest


def assert_same_run(folder, other):
    assert content(folder) == content(other)


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize(
    "plan", ["dense", "zero", "ragged", pytest.param("sparse", marks=pytest.mark.needs("compiled"))]
)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_stopped_and_resumed_equals_straight(optimizer, schedule, plan, stop, data, tmp_path):
    batch_size, updates = STOPS[stop]
    settings = {
        "optimizer": OPTIMIZERS[optimizer](SCHEDULES[schedule]),
        "batch_size": batch_size,
        "plan": plan,
        "validation": (data[0][:9], data[1][:9]),
        "tol": 0.0,
    }
    straight = network()
    history = mx.fit(straight, *data, epochs=EPOCHS, checkpoint=mx.Checkpoint(tmp_path / "straight"), **settings)
    resumed = stop_and_resume(tmp_path / "resumed", data, updates, **settings)
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")
    for name in ("epoch", "loss", "val_loss", "val_accuracy", "lr"):
        assert getattr(resumed, name) == getattr(history, name)
    assert len(resumed.seconds) == EPOCHS


@pytest.mark.usefixtures("cpu_engine")
def test_stopped_after_any_update_and_also_twice(data, tmp_path):
    settings = {"optimizer": mx.Adam(0.05), "batch_size": 5, "epochs": 3}
    straight = network()
    history = mx.fit(straight, *data, checkpoint=mx.Checkpoint(tmp_path / "straight"), **settings)
    for updates in itertools.count(1):
        folder = tmp_path / str(updates)
        resumed = stop_and_resume(folder, data, updates, **settings)
        if resumed is None:
            break
        assert_same_run(tmp_path / "straight", folder)
        assert resumed.loss == history.loss
    assert updates == 15  # 3 epochs of 5 updates: the last one ends the run
    with pytest.raises(mx.Interrupted):
        mx.fit(network(), *data, checkpoint=Stopped(tmp_path / "twice", 2), **settings)
    with pytest.raises(mx.Interrupted):
        mx.fit(network(), *data, checkpoint=Stopped(tmp_path / "twice", 1, resume=True), **settings)
    assert read(tmp_path / "twice" / FILE).snapshot.update == 3
    mx.fit(network(), *data, checkpoint=mx.Checkpoint(tmp_path / "twice", resume=True), **settings)
    assert_same_run(tmp_path / "straight", tmp_path / "twice")


@pytest.mark.parametrize("device", ["cpu", "strict", "torch", "jax", "cuda"])
def test_epochs_go_on_from_a_snapshot_on_every_device(device, data, monkeypatch):
    monkeypatch.setattr("mlp_xp.engines.cuda.engine._MOST_STEPS", 1)  # a GPU is asked after so many updates
    if device == "jax":
        monkeypatch.setattr("mlp_xp.engines.jax_._PIECE", 0)
    model, settings = network(device=device), {"optimizer": mx.Adam(0.05), "batch_size": 8, "epochs": 3}
    straight = [state.snapshot() for state in mx.epochs(network(device=device), *data, **settings)]
    calls = iter([False, True])
    paused = next(mx.epochs(model, *data, pause=lambda: next(calls), **settings))
    assert (paused.whole, paused.updates, paused.rows) == (False, 2, 16)
    start = paused.snapshot()
    other = network(device=device)
    resumed = [state.snapshot() for state in mx.epochs(other, *data, start=start, **settings)]
    for one, two in zip(straight, resumed, strict=True):
        assert one.theta.tobytes() == two.theta.tobytes()
        np.testing.assert_equal(one.optimizer, two.optimizer)


@pytest.mark.usefixtures("cpu_engine")
def test_a_pause_changes_nothing(data, monkeypatch):
    monkeypatch.setattr("mlp_xp.engines.compiled._UNASKED", 1)  # an epoch at once, where nobody asks
    trained = []
    for pause in (None, lambda: True):
        states = mx.epochs(network(), *data, batch_size=8, epochs=2, optimizer=mx.Adam(0.05), pause=pause)
        states = list(states)
        assert [state.whole for state in states] == ([True] * 2 if pause is None else [False, False, True] * 2)
        trained.append((states[-1].model.theta.tobytes(), [float(s.loss_sum) for s in states if s.whole]))
    assert trained[0] == trained[1]


def test_nothing_that_happens_afterwards_changes_a_snapshot(data):
    model, twin, optimizer = network(), network(), mx.Adam()
    states = mx.epochs(model, *data, optimizer=optimizer, plan="ragged")
    snapshot = next(states).snapshot()
    then = {"theta": snapshot.theta.copy(), **{name: np.copy(value) for name, value in snapshot.optimizer.items()}}
    for going_on in (states, mx.epochs(twin, *data, optimizer=optimizer, start=snapshot)):
        for changed in (model, twin):
            changed.theta += 1  # in place
        next(going_on)
    for name, value in {"theta": snapshot.theta, **snapshot.optimizer}.items():
        assert_array_equal(value, then[name])


def test_a_start_that_does_not_fit_is_refused(data):
    states = list(mx.epochs(network(), *data, epochs=2, batch_size=8, pause=lambda: True))
    with pytest.raises(ValueError, match=r"theta of shape \(43,\), and the model has 63 parameters; use the same"):
        mx.epochs(mx.MLP([6, 6, 3]), *data, start=states[-1].snapshot())
    for batch_size in (None, 7, 9, 100):
        with pytest.raises(ValueError, match=r"start is after update 1 with 8 rows, and .* has no such place"):
            mx.epochs(network(), *data, start=states[0].snapshot(), batch_size=batch_size)
    with pytest.raises(ValueError, match="start is after update 2 with 16 rows, and an epoch of 16 rows"):
        mx.epochs(network(), *(part[:16] for part in data), start=states[1].snapshot(), batch_size=8)
    for state in states[3:]:  # in the middle of the second epoch and at its end
        with pytest.raises(ValueError, match="epochs must be at least 2, where this run is already, got 1"):
            mx.epochs(network(), *data, epochs=1, batch_size=8, start=state.snapshot())


def test_best_parameters_survive(data, rng, tmp_path):
    noise = rng.integers(0, 256, (40, 6), dtype=np.uint8), rng.integers(0, 3, 40)
    settings = {"optimizer": mx.Adam(0.05), "validation": noise, "tol": 0.0, "patience": 4, "epochs": 200}
    straight, resumed = network(), network()
    history = mx.fit(straight, *data, checkpoint=mx.Checkpoint(tmp_path / "straight"), **settings)
    best = int(np.argmin(history.val_loss)) + 1
    assert best < len(history) < 200
    with pytest.raises(mx.Interrupted):  # after the best epoch, before the end
        mx.fit(network(), *data, checkpoint=Stopped(tmp_path / "run", best + 1), **settings)
    assert read(tmp_path / "run" / FILE).callbacks[0]["best_epoch"] == best
    for _ in range(2):  # the second time there is nothing left to do
        again = mx.fit(resumed, *data, checkpoint=mx.Checkpoint(tmp_path / "run", resume=True), **settings)
        assert again.val_loss == history.val_loss
        assert_array_equal(resumed.theta, straight.theta)
        resumed = network()
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def test_a_finished_run_goes_on_with_more_epochs(data, tmp_path):
    straight, resumed = network(), network()
    mx.fit(straight, *data, epochs=7, batch_size=8)
    mx.fit(network(), *data, epochs=4, batch_size=8, checkpoint=mx.Checkpoint(tmp_path, every=3))
    history = mx.fit(resumed, *data, epochs=7, batch_size=8, checkpoint=mx.Checkpoint(tmp_path, resume=True))
    assert history.epoch == [1, 2, 3, 4, 5, 6, 7]
    assert_array_equal(resumed.theta, straight.theta)
    with pytest.raises(ValueError, match="epochs must be at least 7, where this run is already, got 6"):
        mx.fit(network(), *data, epochs=6, batch_size=8, checkpoint=mx.Checkpoint(tmp_path, resume=True))


def test_a_plan_that_is_asked_for_is_taken_whatever_the_start_had(data):
    for before, now in (("ragged", "dense"), ("dense", "zero")):
        start = next(mx.epochs(network(), *data, plan=before)).snapshot()
        assert start.plan == before
        assert next(mx.epochs(network(), *data, plan=now, start=start)).plan.kind == now
        assert next(mx.epochs(network(), *data, start=start)).plan.kind == before


@pytest.mark.usefixtures("numpy_engine")
def test_the_plan_that_was_chosen_is_kept(rng, tmp_path):
    X, y = 255 * rng.integers(0, 2, (3000, 30), dtype=np.uint8), rng.integers(0, 2, 3000)
    X[:, 4:] = 0
    for first, last, kind in ((7, 9, "dense"), (9, 12, "ragged")):  # fewer than eight epochs do not repay the sorting
        folder, model = tmp_path / kind, mx.MLP([30, 3, 2])
        mx.fit(model, X, y, epochs=first, checkpoint=mx.Checkpoint(folder))
        mx.fit(model, X, y, epochs=last, checkpoint=mx.Checkpoint(folder, resume=True))
        assert read(folder / FILE).snapshot.plan == kind
        straight = mx.MLP([30, 3, 2])
        mx.fit(straight, X, y, epochs=last, plan=kind)
        assert_array_equal(model.theta, straight.theta)


@pytest.mark.parametrize(
    "devices",
    [
        pytest.param(("cpu", "torch"), marks=pytest.mark.needs("torch")),
        ("strict", "cpu"),
        pytest.param(("jax", "torch"), marks=pytest.mark.needs("jax", "torch")),
        pytest.param(("cpu", "jax"), marks=pytest.mark.needs("jax")),
        pytest.param(("cpu", "cuda"), marks=pytest.mark.gpu),
        pytest.param(("cuda", "cpu"), marks=pytest.mark.gpu),
    ],
)
def test_saved_on_one_device_resumed_on_another(devices, data, tmp_path, monkeypatch):
    monkeypatch.setattr("mlp_xp.engines.cuda.engine._MOST_STEPS", 1)
    if "jax" in devices:
        monkeypatch.setattr("mlp_xp.engines.jax_._PIECE", 0)
    settings = {"optimizer": mx.Adam(0.05), "batch_size": 8}
    straight = network()
    mx.fit(straight, *data, epochs=4, **settings)
    with pytest.raises(mx.Interrupted):
        mx.fit(network(device=devices[0]), *data, epochs=4, checkpoint=Stopped(tmp_path, 8), **settings)
    model = network(device=devices[1])
    history = mx.fit(model, *data, epochs=4, checkpoint=mx.Checkpoint(tmp_path, resume=True), **settings)
    assert len(history) == 4
    np.testing.assert_allclose(model.device.to_host(model.theta), straight.theta, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("plan", ["dense", "ragged"])
@pytest.mark.parametrize("batch_size", [None, 8])
def test_a_run_moves_to_a_gpu_and_back(batch_size, plan, data, tmp_path, monkeypatch):
    """Its shards are of other sizes everywhere, and its parameters are in the order of the data in every file."""
    settings = {"optimizer": mx.Adam(0.05, l2=0.01), "batch_size": batch_size, "plan": plan, "validation": data}
    straight = network64()
    history = mx.fit(straight, *data, epochs=6, **settings)
    for epochs, device, shard_rows in ((2, "cpu", 1024), (3, "cuda", 65_536), (5, "cuda", 5), (6, "cpu", 7)):
        model = network64(device=device)
        monkeypatch.setattr(type(model.device), "shard_rows", shard_rows)
        checkpoint = mx.Checkpoint(tmp_path, resume=epochs > 2)
        moved = mx.fit(model, *data, epochs=epochs, checkpoint=checkpoint, **settings)
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(getattr(moved, name), getattr(history, name), rtol=1e-12)
    np.testing.assert_allclose(model.theta, straight.theta, rtol=1e-9, atol=1e-12)


def network64(**settings):
    return mx.MLP([6, 4, 3], "tanh", dtype="float64", **settings)


@pytest.mark.gpu
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize(
    ("optimizer", "plan"), [(name, "dense") for name in OPTIMIZERS] + [("adam", "zero"), ("nesterov", "ragged")]
)
def test_stopped_and_resumed_equals_straight_on_a_gpu(optimizer, plan, stop, data, tmp_path, monkeypatch):
    monkeypatch.setattr("mlp_xp.engines.cuda.engine._MOST_STEPS", 1)
    batch_size, updates = STOPS[stop]
    rates = mx.WarmUp(0.1, epochs=2, after=mx.CosineDecay(0.1, epochs=3))
    settings = {"optimizer": OPTIMIZERS[optimizer](rates), "batch_size": batch_size, "plan": plan}
    settings |= {"validation": (data[0][:9], data[1][:9]), "tol": 0.0}

    def on_gpu():
        return network(device="cuda")

    history = mx.fit(on_gpu(), *data, epochs=EPOCHS, checkpoint=mx.Checkpoint(tmp_path / "straight"), **settings)
    resumed = stop_and_resume(tmp_path / "resumed", data, updates, on_gpu, **settings)
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")
    for name in ("epoch", "loss", "val_loss", "val_accuracy", "lr"):
        assert getattr(resumed, name) == getattr(history, name)


@pytest.mark.gpu
def test_the_fingerprint_of_data_is_the_same_on_a_gpu(data, tmp_path):
    X, y = data
    there = network(device="cuda").device.asarray
    mx.fit(network(), X, y, epochs=2, checkpoint=mx.Checkpoint(tmp_path))
    for epochs, form in ((3, there(X)), (4, there(X.T.copy()).T), (5, there(np.tile(X, 2))[:, :6])):
        moved = mx.Checkpoint(tmp_path, resume=True)
        assert len(mx.fit(network(device="cuda"), form, there(y), epochs=epochs, checkpoint=moved)) == epochs
    with pytest.raises(ValueError, match=r"\(data: uint8 \(24, 6\) and int32 \(24,\) with sha256 \w{64}, now "):
        mx.fit(network(device="cuda"), there(X[::-1]), y, epochs=6, checkpoint=mx.Checkpoint(tmp_path, resume=True))


# What is refused.


CHANGES = {
    "optimizer.lr: 0.1, now 0.2": {"optimizer": mx.SGD(0.2)},
    "optimizer: SGD, now Adam; optimizer.lr: 0.1, now 0.001": {"optimizer": mx.Adam()},
    "optimizer.lr: 0.1, now CosineDecay": {"optimizer": mx.SGD(mx.CosineDecay(0.1))},
    "batch_size: 8, now None": {"batch_size": None},
    "plan: auto, now ragged": {"plan": "ragged"},
    "callbacks: [], now [EarlyStopping(tol=0.0, patience=10, monitor='loss')]": {"tol": 0.0},
    "validation: None, now uint8 (24, 6) and int32 (24,)": {"validation": True},
    "model.seed: 0, now 1": {"model": {"seed": 1}},
    "model.sizes: [6, 4, 3], now [6, 5, 3]; model.output: softmax, now softmax_of_sigmoid": {
        "model": {"sizes": [6, 5, 3], "output": "softmax_of_sigmoid"}
    },
}


@pytest.mark.parametrize("words", CHANGES)
def test_every_difference_is_listed(words, data, tmp_path):
    settings = {"optimizer": mx.SGD(0.1), "batch_size": 8, "epochs": 3}
    mx.fit(network(), *data, checkpoint=mx.Checkpoint(tmp_path), **settings)
    before = (tmp_path / FILE).read_bytes()
    changes = dict(CHANGES[words])
    model = mx.MLP(**{"sizes": [6, 4, 3], "activation": "tanh", **changes.pop("model", {})})
    if "validation" in changes:
        changes["validation"] = data
    theta = model.theta.copy()
    with pytest.raises(ValueError, match="cannot be resumed with other settings") as caught:
        mx.fit(model, *data, checkpoint=mx.Checkpoint(tmp_path, resume=True), **settings | changes)
    assert words in str(caught.value).replace('"', "")
    assert_array_equal(model.theta, theta)
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("hashed_at_once", [65_536, 7])
def test_other_data_are_refused(hashed_at_once, data, tmp_path, monkeypatch):
    X, y = data
    mx.fit(network(), X, y, epochs=2, checkpoint=mx.Checkpoint(tmp_path))
    monkeypatch.setattr("mlp_xp.rows.source._HASHED_AT_ONCE", hashed_at_once)
    one_pixel, one_label = X.copy(), y.copy()
    one_pixel[20, 5] ^= 1
    one_label[3] = (one_label[3] + 1) % 3
    for other in ((one_pixel, y), (X, one_label), (X[::-1], y[::-1]), (X.astype(np.float32), y)):
        with pytest.raises(ValueError, match=r"\(data: uint8 \(24, 6\) and int32 \(24,\) with sha256 \w{64}, now "):
            mx.fit(network(), *other, epochs=4, checkpoint=mx.Checkpoint(tmp_path, resume=True))
    same = np.asfortranarray(X), y.astype(np.uint8)  # another form, the same numbers
    assert len(mx.fit(network(), *same, epochs=4, checkpoint=mx.Checkpoint(tmp_path, resume=True))) == 4


def test_nothing_is_resumed_or_overwritten_by_mistake(data, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match=r"there is no .*run/checkpoint\.safetensors to resume from"):
        mx.fit(network(), *data, checkpoint=mx.Checkpoint(folder, resume=True))
    assert not folder.exists()
    mx.fit(network(), *data, epochs=1, checkpoint=mx.Checkpoint(folder))
    before = (folder / FILE).read_bytes()
    with pytest.raises(ValueError, match="is of an earlier run; resume it, remove it, or choose another folder"):
        mx.fit(network(), *data, epochs=1, checkpoint=mx.Checkpoint(folder))
    assert (folder / FILE).read_bytes() == before


@pytest.mark.parametrize("every", [0, -1, 1.5, "s", "0s", "1m", "-3s", "", True, "1e3s"])
def test_intervals_are_epochs_or_seconds(every, tmp_path):
    with pytest.raises(ValueError, match="so many epochs, as in 5, or seconds, as in 30s; got"):
        mx.Checkpoint(tmp_path, every=every)


# A file that is whole, and untrue.


def spoil(path, change):
    arrays, metadata = load(path)
    change(arrays, metadata)
    save(path, arrays, metadata)


SPOILT = {
    "of version 3, and this mlp_xp reads 1 to 2; update mlp_xp": lambda a, m: m.update(version=3),
    "of version True, and this": lambda a, m: m.update(version=True),
    "is not the checkpoint of a run": lambda a, m: m.update(kind="model"),
    "does not describe a run": lambda a, m: m["state"].pop("run"),
    "does not describe a run: TypeError": lambda a, m: m["state"]["run"].update(more=1),
    "does not describe a run: KeyError": lambda a, m: a.update({"more.theta": a["run.theta"]}),
    "does not describe a run: AttributeError": lambda a, m: m.update(state=[]),
    "cannot have; theta is short": lambda a, m: a.update({"run.theta": a["run.theta"][:-1]}),
    "cannot have; another dtype": lambda a, m: a.update({"optimizer.mean": a["optimizer.mean"].astype("f8")}),
    "cannot have; a number for an array": lambda a, m: m["state"]["optimizer"].update(
        mean=len(a.pop("optimizer.mean"))
    ),
    "cannot have; negative": lambda a, m: m["state"]["run"].update(update=-1),
    "cannot have; text": lambda a, m: m["state"]["run"].update(seconds="long"),
    "cannot have; true": lambda a, m: m["state"]["run"].update(epoch=True),
    "cannot have; a short history": lambda a, m: a.update({"history.loss": a["history.loss"][:1]}),
    "cannot have; a column too many": lambda a, m: a.update({"history.validation": a["history.loss"]}),
    "cannot have; an optimizer without squares": lambda a, m: a.pop("optimizer.square"),
    "cannot have; no best": lambda a, m: m["state"]["callback.0"].pop("best"),
    "cannot have; no callback": lambda a, m: (m["state"].pop("callback.0"), a.pop("callback.0.theta", None)),
}


@pytest.mark.parametrize("words", SPOILT)
def test_a_sealed_file_with_untrue_content_is_refused(words, data, tmp_path):
    settings = {"optimizer": mx.Adam(0.1), "epochs": 2, "tol": 0.0}
    mx.fit(network(), *data, checkpoint=mx.Checkpoint(tmp_path), **settings)
    spoil(tmp_path / FILE, SPOILT[words])
    model = network()
    theta = model.theta.copy()
    with pytest.raises(mx.CheckpointError, match=words.partition(";")[0]):
        mx.fit(model, *data, checkpoint=mx.Checkpoint(tmp_path, resume=True), **settings)
    assert_array_equal(model.theta, theta)


# The first version, for ever.

GOLDEN = Path(__file__).parent / "golden" / "run_v1.safetensors"
# Written once, by version 1: the run below, stopped by a signal after 7 updates.


def golden_run(checkpoint):
    X = (np.arange(40, dtype=np.uint8) ** 2 % 251).reshape(10, 4)
    y = np.arange(10) % 3
    model = mx.MLP([4, 3, 3], "tanh", seed=5)
    optimizer = mx.AdamW(mx.WarmUp(0.1, epochs=2, after=mx.CosineDecay(0.1, epochs=4)), l2=0.01, lr_bias=0.05)
    settings = {"epochs": 6, "optimizer": optimizer, "batch_size": 3, "validation": (X[:4], y[:4]), "tol": 0.0}
    return mx.fit(model, X, y, checkpoint=checkpoint, plan="zero", **settings)


def test_golden_run_of_version_1_resumes_for_ever(tmp_path):
    (tmp_path / FILE).write_bytes(GOLDEN.read_bytes())
    saved = read(tmp_path / FILE)
    assert (saved.snapshot.epoch, saved.snapshot.update, saved.snapshot.rows) == (1, 3, 9)
    assert saved.config == {"by": "hand"}
    history = golden_run(mx.Checkpoint(tmp_path, resume=True))
    assert history.epoch == [1, 2, 3, 4, 5, 6]
    straight = golden_run(mx.Checkpoint(tmp_path / "straight"))
    np.testing.assert_allclose(history.loss, straight.loss, rtol=1e-5)  # not bit for bit: it is from another machine


GOLDEN_2 = Path(__file__).parent / "golden" / "run_v2.safetensors"
# Written once, by version 2: the same run, saved under versions that nobody has.


def test_golden_run_of_version_2_resumes_for_ever(tmp_path):
    (tmp_path / FILE).write_bytes(GOLDEN_2.read_bytes())
    words = r"saved under other versions \(mlp_xp 0.0.1, now .*; numpy 0.0.2, now .*; blas none 0.0.3, now .*\)"
    with pytest.warns(UserWarning, match=words) as caught:
        history = golden_run(mx.Checkpoint(tmp_path, resume=True))
    assert [warning.filename for warning in caught] == [__file__]  # where fit was called
    straight = golden_run(mx.Checkpoint(tmp_path / "straight"))
    np.testing.assert_allclose(history.loss, straight.loss, rtol=1e-5)
    assert list(history.columns()) == list(straight.columns())
    first, _ = read(tmp_path / FILE).versions
    assert first["mlp_xp"] == "0.0.1"  # the evidence is kept


def test_what_is_read_is_what_was_written(tmp_path):
    write(tmp_path / FILE, read(GOLDEN_2))
    assert (tmp_path / FILE).read_bytes() == GOLDEN_2.read_bytes()


def test_versions_1_and_2_say_the_same(tmp_path):
    one, two = read(GOLDEN), read(GOLDEN_2)
    assert one.settings == two.settings
    assert list(one.history) == list(two.history) != []
    assert one.history["order"] == two.history["order"] == ["val_loss", "val_accuracy"]
    assert [set(record) for record in one.callbacks] == [set(record) for record in two.callbacks]


# A process that dies.

KILLED = """
import os, random, signal, sys, time
import numpy as np
import mlp_xp as mx
from mlp_xp.engines import compiled
from mlp_xp.runs.record import FILE, read

compiled._PIECE = 0  # saves after single updates

class Reporting(mx.Checkpoint):
    def begin(self, start):
        super().begin(start)
        os.write(begun, b"!")

def train(folder, **settings):
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (400, 20), dtype=np.uint8), rng.integers(0, 3, 400)
    mx.fit(
        mx.MLP([20, 16, 3]), X, y, epochs=60, batch_size=7, optimizer=mx.Adam(0.01), threads=1,
        validation=(X, y), tol=0.0, patience=60, checkpoint=mx.Checkpoint(folder, **settings),
    )

folder, random = sys.argv[1], random.Random(0)
path = os.path.join(folder, FILE)
reader, writer = os.pipe()

def tell_of_each_save(most, replace=os.replace):
    saves = 0
    def replace_and_tell(source, target):
        nonlocal saves
        replace(source, target)
        if os.path.basename(target) == FILE:
            os.write(writer, b"!")
            saves += 1
        if saves == most:
            signal.pause()  # however late the kill comes, the training has not ended
    os.replace = replace_and_tell

moved = updates = 0
for _ in range(50):
    saves = random.randrange(1, 5)
    victim = os.fork()
    if not victim:
        tell_of_each_save(saves + 5)
        train(folder, every="0.0001s", resume=os.path.exists(path))
        os._exit(1)
    for _ in range(saves):
        assert os.read(reader, 1) == b"!"
    time.sleep(random.uniform(0, 0.01))
    os.kill(victim, signal.SIGKILL)
    assert os.waitpid(victim, 0)[1] == signal.SIGKILL
    os.set_blocking(reader, False)
    try:
        os.read(reader, 1000)  # of the saves that nobody waited for
    except BlockingIOError:
        pass
    os.set_blocking(reader, True)
    snapshot = read(path).snapshot
    before, updates = updates, 58 * snapshot.epoch + snapshot.update
    moved += updates >= before + saves
print(moved, updates)
train(folder, resume=True)
train(folder + ".straight")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_50_kills_of_a_process_that_trains_and_saves(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    moved, updates = map(int, done.stdout.split())
    assert moved == 50  # all of them trained and saved,
    assert updates > 58  # and the run went through several epochs
    assert_same_run(tmp_path / "run", tmp_path / "run.straight")
    assert sorted(os.listdir(tmp_path / "run")) == [".lock", FILE]


# What it costs.


def test_saving_takes_less_than_a_hundredth_of_the_default_interval(tmp_path):
    model, seconds = mx.MLP([784, 196, 10]), []
    X, y = np.zeros((20, 784), np.uint8), np.arange(20) % 10
    settings = {"optimizer": mx.Adam(), "tol": 0.0, "validation": (X, y)}
    mx.fit(model, X, y, epochs=1, checkpoint=mx.Checkpoint(tmp_path), **settings)
    saved = read(tmp_path / FILE)
    for _ in range(5):
        began = time.perf_counter()
        write(tmp_path / FILE, saved)
        seconds.append(time.perf_counter() - began)
    assert (tmp_path / FILE).stat().st_size > 4 * 4 * 155_830  # parameters, two moments, the best
    assert sorted(seconds)[2] < 0.3  # about 0.015 where there is a disk of our days


class Clock:
    """Time that passes when it is told to, and with each save."""

    def __init__(self, monkeypatch, saves):
        self.now, self.saved, saves = 0.0, [], iter(saves)
        monkeypatch.setattr("mlp_xp.runs.checkpoint.monotonic", lambda: self.now)

        def save(folder, record):
            self.saved.append(self.now)
            self.now += next(saves)

        monkeypatch.setattr(RunFolder, "save", save)
        monkeypatch.setattr(RunFolder, "begin", lambda folder, record: None)


def test_default_interval_grows_with_what_saving_takes_up_to_five_minutes(data, tmp_path, monkeypatch):
    clock = Clock(monkeypatch, itertools.chain([0.1, 2, 2, 2], itertools.repeat(10)))

    def pass_a_second(state):
        clock.now += 1

    mx.fit(network(), *data, epochs=1900, callbacks=[pass_a_second], checkpoint=mx.Checkpoint(tmp_path))
    pauses = np.diff(clock.saved[:-1])
    wanted = [30.1, 32, 202, 202, 210, 310, 310]  # one slow save is not yet a slow disk; 1 % of the time; five minutes
    np.testing.assert_allclose(pauses[: len(wanted)], wanted, atol=1.01)
    assert max(pauses) < 312


def test_where_epochs_are_counted_time_does_not_count(data, tmp_path, monkeypatch):
    clock = Clock(monkeypatch, itertools.repeat(10))

    def pass_a_day(state):
        clock.now += 86_400

    checkpoint = mx.Checkpoint(tmp_path, every=5)
    mx.fit(network(), *data, epochs=12, batch_size=8, callbacks=[pass_a_day], checkpoint=checkpoint)
    np.testing.assert_array_equal(clock.saved, [5 * 86_400, 10 * 86_400 + 10, 12 * 86_400 + 20])


def test_one_save_that_stalls_does_not_put_the_next_off(data, tmp_path, monkeypatch):
    clock = Clock(monkeypatch, [0.1, 3600, 0.1, 0.1, 0.1])

    def pass_a_second(state):
        clock.now += 1

    mx.fit(network(), *data, epochs=120, callbacks=[pass_a_second], checkpoint=mx.Checkpoint(tmp_path))
    np.testing.assert_allclose(np.diff(clock.saved)[:3], [30.1, 3630, 30.1], atol=1.01)
