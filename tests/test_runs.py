"""The folder of a run: found out before training what cannot be saved, never another's files, never a traceback."""

from __future__ import annotations

import datetime
import errno
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import mlp_xp as mx
from mlp_xp.files.tensors import load, save
from mlp_xp.runs.folder import RunFolder
from mlp_xp.runs.record import FILE, read, size
from mlp_xp.snapshot import check_snapshot

pytestmark = pytest.mark.usefixtures("single_updates")


@pytest.fixture
def data(rng):
    X = rng.standard_normal((60, 4))
    return X, (X @ [1, -2, 0.5, 1] > 0).astype(int)


def network(**settings):
    return mx.MLP([4, 6, 2], **settings)


def at(epoch, action):
    """Return a callback that does something after this epoch."""
    return lambda state: action() if state.epoch == epoch else None


# What cannot be saved.


class Keeping:
    """A callback with a record of somebody's own."""

    def __init__(self, record):
        self.record = record

    def __call__(self, state):
        pass

    def dump(self):
        return self.record

    def restore(self, record, model):
        self.record = record


UNSAVABLE = {
    "a path": {"config": {"data": Path("x.csv")}},
    "a date": {"config": {"when": datetime.date(2024, 1, 1)}},
    "a NumPy number": {"config": {"n": np.int64(3)}},
    "a NumPy float": {"config": {"a": np.float32(1)}},
    "NaN": {"config": {"a": np.nan}},
    "deep": {"config": {"a": [[[1]]]}},
    "large": {"config": {"a": "x" * 2**18}},
    "nearly too large": {"config": {"a": "x" * (2**18 - 2200)}},
    "many callbacks": {"callbacks": [mx.EarlyStopping(patience=k + 1) for k in range(3000)]},
    "callbacks whose parameters come later": {
        "callbacks": [mx.EarlyStopping(patience=k + 1, monitor="val_loss") for k in range(1450)]
    },
    "a flag of NumPy": {"optimizer": mx.SGD(0.1, momentum=0.9, nesterov=np.True_)},
    "a callback's object": {"callbacks": [Keeping({"a": object()})]},
    "a callback's NaN": {"callbacks": [Keeping({"a": np.array([np.nan])})]},
    "a callback's name": {"callbacks": [Keeping({"a b": np.zeros(1)})]},
}


@pytest.mark.parametrize("kind", UNSAVABLE)
def test_what_cannot_be_saved_is_refused_before_training(kind, data, tmp_path):
    settings, epochs = dict(UNSAVABLE[kind]), []
    checkpoint = mx.Checkpoint(tmp_path / "run", config=settings.pop("config", None))
    callbacks = [lambda state: epochs.append(state.epoch), *settings.pop("callbacks", [])]
    model = network()
    before = model.theta.copy()
    with pytest.raises(mx.CheckpointError, match=r"this run could not be saved in .*run: ") as caught:
        mx.fit(model, *data, validation=data, callbacks=callbacks, checkpoint=checkpoint, **settings)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000
    assert epochs == []
    assert_array_equal(model.theta, before)
    assert os.listdir(tmp_path / "run") == [".lock"]


def test_too_many_layers_are_refused_before_training(tmp_path):
    model = mx.MLP([1] * 60_000, "identity", "identity")
    with pytest.raises(mx.CheckpointError, match="could not be saved"):
        mx.fit(model, [[1.0]], [1.0], epochs=1, checkpoint=mx.Checkpoint(tmp_path))


def test_the_first_save_is_no_larger_than_what_was_tried(data, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr("mlp_xp.runs.folder.size", lambda record: tried.append(size(record)) or tried[-1])
    settings = {"validation": data, "tol": 0.0, "optimizer": mx.Adam()}
    mx.fit(network(), *data, epochs=3, checkpoint=mx.Checkpoint(tmp_path), **settings)
    assert tried[0] > (tmp_path / FILE).stat().st_size


@pytest.mark.parametrize("resume", [False, True])
def test_there_must_be_room_for_two_checkpoints_and_the_model(resume, data, tmp_path, monkeypatch):
    settings = {"validation": data, "tol": 0.0, "optimizer": mx.Adam()}
    mx.fit(network(), *data, epochs=2, checkpoint=mx.Checkpoint(tmp_path / "run"), **settings)
    network().save(tmp_path / "model")
    needed = 2 * (tmp_path / "run" / FILE).stat().st_size + (tmp_path / "model").stat().st_size // 2
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=needed))
    folder, epochs = tmp_path / ("run" if resume else "other"), []
    with pytest.raises(OSError, match="bytes are needed") as caught:
        mx.fit(
            network(), *data, epochs=4, callbacks=[lambda state: epochs.append(state.epoch)],
            checkpoint=mx.Checkpoint(folder, resume=resume), **settings,
        )  # fmt: skip
    assert caught.value.errno == errno.ENOSPC
    assert epochs == []


# Whose folder it is.


def remove(folder):
    shutil.rmtree(folder)


def move(folder):
    folder.rename(folder.with_name("moved"))


def replace(folder):
    move(folder)
    folder.mkdir()
    (folder / ".lock").touch()


def remove_the_lock(folder):
    (folder / ".lock").unlink()


@pytest.mark.parametrize("loss", [remove, move, replace, remove_the_lock])
def test_nothing_is_written_into_a_folder_that_is_not_the_one_locked(loss, data, tmp_path):
    folder, content = tmp_path / "run", []

    def lose():
        loss(folder)
        content.extend(sorted(tmp_path.rglob("*")))

    with pytest.raises(FileNotFoundError, match="moved or removed while training"):
        mx.fit(network(), *data, epochs=5, callbacks=[at(3, lose)], checkpoint=mx.Checkpoint(folder, every=1))
    assert sorted(tmp_path.rglob("*")) == content


def test_a_second_run_in_the_place_of_a_removed_one_is_left_alone(data, tmp_path):
    folder = tmp_path / "run"

    def take_the_place():
        remove(folder)
        mx.fit(network(seed=1), *data, epochs=2, checkpoint=mx.Checkpoint(folder))

    with pytest.raises(FileNotFoundError, match="moved or removed"):
        mx.fit(network(), *data, epochs=5, callbacks=[at(3, take_the_place)], checkpoint=mx.Checkpoint(folder, every=1))
    assert read(folder / FILE).settings["model.seed"] == 1


@pytest.mark.parametrize("kind", ["finish", "note"])
def test_the_last_files_go_into_the_locked_folder_too(kind, data, tmp_path):
    model = network()
    with RunFolder(tmp_path / "run") as run:
        history = mx.fit(model, *data, epochs=2, checkpoint=mx.Checkpoint(run))
        replace(run.path)
        with pytest.raises(FileNotFoundError, match="moved or removed"):
            run.finish(model, history) if kind == "finish" else run.note({}, {})
    assert os.listdir(run.path) == [".lock"]


def test_a_borrowed_folder_stays_locked_until_its_block_ends(data, tmp_path):
    with RunFolder(tmp_path) as run:
        mx.fit(network(), *data, epochs=2, checkpoint=mx.Checkpoint(run))
        with pytest.raises(BlockingIOError, match="in use by process"):
            mx.fit(network(), *data, epochs=3, checkpoint=mx.Checkpoint(tmp_path, resume=True))
    assert len(mx.fit(network(), *data, epochs=3, checkpoint=mx.Checkpoint(tmp_path, resume=True))) == 3


def test_a_relative_path_keeps_its_meaning(data, tmp_path, monkeypatch):
    (tmp_path / "other" / "run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    checkpoint = mx.Checkpoint("run", every=1)
    mx.fit(network(), *data, epochs=3, callbacks=[at(1, lambda: os.chdir("other"))], checkpoint=checkpoint)
    assert read(tmp_path / "run" / FILE).snapshot.epoch == 3
    assert os.listdir(tmp_path / "other" / "run") == []


def test_a_tilde_is_the_home_folder(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    mx.fit(network(), *data, epochs=1, checkpoint=mx.Checkpoint("~/run"))
    assert (tmp_path / "run" / FILE).is_file()


# Links.


def everything(folder, model, data, resume):
    """Do all that is done with a run folder."""
    with RunFolder(folder) as run:
        history = mx.fit(model, *data, epochs=3 if resume else 2, checkpoint=mx.Checkpoint(run, resume=resume))
        run.note({"labels": ["no", "yes"]}, {"python": "3.14"})
        run.finish(model, history)
        run.plots_folder().mkdir(exist_ok=True)
    return history


@pytest.mark.parametrize(
    "name", [FILE, "model.safetensors", "history.csv", "config.json", "env.json", ".lock", "plots"]
)
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_in_a_run_folder_is_not_followed(name, dangling, data, tmp_path):
    folder, victim = tmp_path / "run", tmp_path / "victim"
    everything(folder, network(), data, resume=False)
    if name == "plots":
        (folder / name).rmdir()
        victim.mkdir()
        (victim / "loss.png").write_bytes(b"precious")
    else:
        (folder / name).rename(victim)
    if dangling:
        victim.rename(tmp_path / "gone")
    before = victim.lstat() if not dangling else None
    (folder / name).symlink_to(victim)
    with pytest.raises((OSError, ValueError), match=r"link|no .* to resume from"):
        everything(folder, network(), data, resume=True)
    assert (victim.lstat() == before) if before else not os.path.lexists(victim)


def test_a_link_in_the_folder_of_the_pictures_is_not_followed(data, tmp_path):
    run = RunFolder(tmp_path)
    run.plots.mkdir()
    (run.plots / "loss.png").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=r"a link, but a run folder must hold its own files.*loss\.png"):
        run.plots_folder()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_links_are_not_read_either(name, data, tmp_path):
    everything(tmp_path / "run", network(), data, resume=False)
    (tmp_path / "run" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="a link, but a run folder must hold its own files"):
        RunFolder.load(tmp_path / "run")


def test_the_folder_itself_may_be_a_link(data, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    everything(tmp_path / "run", network(), data, resume=False)
    assert len(everything(tmp_path / "run", network(), data, resume=True)) == 3
    assert RunFolder.load(tmp_path / "run").labels == ["no", "yes"]


# What a run leaves.


def test_a_finished_run_is_loaded_with_its_names(data, tmp_path):
    model = network()
    everything(tmp_path, model, data, resume=False)
    assert sorted(os.listdir(tmp_path)) == sorted(
        [".lock", FILE, "config.json", "env.json", "history.csv", "model.safetensors", "plots"]
    )
    run = RunFolder.load(tmp_path)
    assert_array_equal(run.model.theta, model.theta)
    assert (run.labels, run.config) == (["no", "yes"], {"labels": ["no", "yes"]})
    alone = RunFolder.load(tmp_path / "model.safetensors")
    assert_array_equal(alone.model.theta, model.theta)
    assert (alone.labels, alone.config) == (["0", "1"], {})


def test_a_run_that_is_not_finished_says_so(data, tmp_path):
    mx.fit(network(), *data, epochs=1, checkpoint=mx.Checkpoint(tmp_path))
    with pytest.raises(
        ValueError, match=r"this run is not finished, it has no model\.safetensors yet; resume it first"
    ):
        RunFolder.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a JSON file of a run"),
        (b"\xff", "is not a JSON file of a run"),
        (b"[" * 100_000, "is not a JSON file of a run"),
        (b"[1]", "is not a JSON object"),
        (b"{}", "'labels' must be a list of printable names"),
        (b'{"labels": "ab"}', "'labels' must be a list of printable names"),
        (b'{"labels": ["a", "\\u001b[31m"]}', "'labels' must be a list of printable names"),
        (b'{"labels": ["a", 5]}', "'labels' must be a list of printable names"),
        (b'{"labels": ["a", "b", "c"]}', "there are 3 'labels', but the model has 2 classes"),
        (b" " * 2**21, "bytes"),
    ],
)
def test_a_configuration_that_is_none_is_refused(content, message, data, tmp_path):
    everything(tmp_path, network(), data, resume=False)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        RunFolder.load(tmp_path)
    assert "config.json" in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_fifo_does_not_hang_the_reader(name, data, tmp_path):
    everything(tmp_path, network(), data, resume=False)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises((OSError, ValueError), match=name.replace(".", r"\.")):
        RunFolder.load(tmp_path)


def test_a_name_that_is_not_utf_8_can_be_noted(tmp_path):
    name = os.fsdecode(b"d\xe4t")
    run = RunFolder(tmp_path)
    with run:
        run.note({"out": name, "labels": ["über"]}, {})
    assert json.loads(run.config.read_bytes()) == {"out": name, "labels": ["über"]}
    assert "über" in run.config.read_text(encoding="utf-8")


def test_each_environment_of_a_run_is_kept(tmp_path):
    for numpy in ("2.0", "2.0", "2.1", "2.2"):
        with RunFolder(tmp_path) as run:
            run.note({}, {"numpy": numpy})
    assert json.loads(run.environment.read_text()) == {"numpy": "2.2", "before": [{"numpy": "2.0"}, {"numpy": "2.1"}]}
    run.environment.write_text("damaged")
    with run:
        run.note({}, {"numpy": "2.3"})
    assert json.loads(run.environment.read_text()) == {"numpy": "2.3"}


@pytest.mark.parametrize("names", [(), (".lock",), ("env.json",), ("env.json", "config.json"), (".mlp_xp-1.tmp",)])
def test_what_a_killed_run_leaves_is_no_run(names, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    RunFolder(tmp_path).check_unused()
    RunFolder(tmp_path / "new").check_unused()


@pytest.mark.parametrize("name", [FILE, "config.json", "notes.txt"])
def test_a_folder_with_anything_else_is_in_use(name, tmp_path):
    (tmp_path / name).touch()
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=r"has a run already|already there and not empty|is not a folder"):
            RunFolder(path).check_unused()


# Where a training can go on from.


def snapshots(data, **settings):
    """Return the snapshots of two epochs of three batches: 2 in the middle of each epoch, 1 at its end."""
    states = mx.epochs(network(), *data, epochs=2, batch_size=20, pause=lambda: True, **settings)
    return [state.snapshot() for state in states]


def test_every_snapshot_of_a_run_is_a_place_to_go_on_from(data):
    for optimizer in (mx.SGD(), mx.SGD(momentum=0.9), mx.Adam(), mx.AdamW()):
        for start in snapshots(data, optimizer=optimizer):
            check_snapshot(start, network(), optimizer, 60, 20)


@pytest.mark.parametrize(
    ("model", "optimizer", "batch_size", "message"),
    [
        ({"dtype": "float64"}, mx.Adam(), 20, "theta of float32, and the model computes in float64; use the same"),
        ({"sizes": [4, 7, 2]}, mx.Adam(), 20, r"theta of shape \(44,\), and the model has 51 parameters; use the same"),
        ({}, mx.SGD(), 20, "optimizer that keeps mean, square, updates, and SGD keeps nothing; use the same"),
        ({}, mx.SGD(momentum=0.9), 20, "keeps mean, square, updates, and SGD keeps velocity; use the same"),
        (
            {},
            mx.Adam(),
            None,
            "after update 1 with 20 rows, and an epoch of 60 rows in batches of 60 has no such place",
        ),
        ({}, mx.Adam(), 15, "after update 1 with 20 rows, and an epoch of 60 rows in batches of 15 has no such place"),
    ],
)
def test_a_start_of_another_training_is_refused(model, optimizer, batch_size, message, data):
    start = snapshots(data, optimizer=mx.Adam())[0]
    with pytest.raises(ValueError, match=message):
        check_snapshot(start, mx.MLP(**{"sizes": [4, 6, 2], **model}), optimizer, 60, batch_size)
    other = snapshots(data, optimizer=mx.SGD())[0]
    with pytest.raises(ValueError, match="optimizer that keeps nothing, and Adam keeps mean, square, updates"):
        check_snapshot(other, network(), mx.Adam(), 60, 20)


HOSTILE = [10**400, -(10**400), 2**60, 2**53, -1, 0, 1, 7, 0.5, -0.5, 1e308, 1e-308, True, None, "1", [], [1], {}]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Return the file of a run that was stopped in the middle of its second epoch, and how to resume it."""
    rng = np.random.default_rng(2024)
    X = rng.standard_normal((60, 4))
    data = X, (X[:, 0] > 0).astype(int)
    folder = tmp_path_factory.mktemp("hostile")
    settings = {"optimizer": mx.Adam(), "validation": data, "tol": 0.0, "patience": 3, "batch_size": 20}

    def resume(path):
        model = network()
        return model, lambda: mx.fit(model, *data, epochs=3, checkpoint=mx.Checkpoint(path, resume=True), **settings)

    class Stopped(mx.Checkpoint):
        asked = 0

        def is_due(self):
            self.asked += 1
            if self.asked == 5:
                signal.raise_signal(signal.SIGTERM)
            return super().is_due()

    with pytest.raises(mx.Interrupted), mock.patch("mlp_xp.engines.compiled._PIECE", 0):
        mx.fit(network(), *data, epochs=3, checkpoint=Stopped(folder, config={"n": 1}), **settings)
    return load(folder / FILE), resume


def numbers(value, path=()):
    """Yield the path of every number in nested records."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from numbers(inner, (*path, key))
    if isinstance(value, int | float):
        yield path


def test_the_numbers_of_a_file_are_all_found(stopped):
    (_, metadata), _ = stopped
    run = [("state", "run", name) for name in ("epoch", "update", "rows", "loss_sum", "seconds")]
    stop = [("state", "callback.0", name) for name in ("best", "best_epoch", "waited")]
    assert {*run, *stop, ("state", "optimizer", "updates"), ("config", "n"), ("version",)} <= {*numbers(metadata)}


def refusal(go_on):
    """Return what a refused training says, and None if it went to its end; any other exception is an error."""
    try:
        assert len(go_on()) in (2, 3)  # it may have waited long enough
    except mx.CheckpointError as error:
        return str(error)
    except ValueError as error:
        assert "cannot be resumed with other settings" in str(error)  # noqa: PT017  # it is the kind that counts
        return str(error)
    except mx.DivergenceError:
        return None
    return None


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.filterwarnings("ignore:.*saved under other versions")
@pytest.mark.parametrize("value", [*HOSTILE, "keep"], ids=lambda value: str(value)[:12])
def test_any_number_in_a_sealed_file_resumes_or_is_one_line(value, stopped, tmp_path):
    (arrays, metadata), resume = stopped
    for place in numbers(metadata):
        changed = json.loads(json.dumps(metadata))
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        if value != "keep":
            inner[place[-1]] = value
        folder = tmp_path / "-".join(map(str, place))
        folder.mkdir()
        save(folder / FILE, arrays, changed)
        model, go_on = resume(folder)
        before = model.theta.copy()
        problem = refusal(go_on)
        if value == "keep":
            assert problem is None
        if problem is not None:
            assert 0 < len(problem) < 1500, place
            assert "\n" not in problem, place
            assert (model.theta == before).all(), (place, problem)


@pytest.mark.parametrize("value", [10**400, 2**53, -1, 1.0, True, "1", None], ids=lambda value: str(value)[:12])
@pytest.mark.parametrize("name", ["epoch", "update", "rows"])
def test_a_count_that_is_none_is_refused(name, value, stopped, tmp_path):
    (arrays, metadata), resume = stopped
    changed = json.loads(json.dumps(metadata))
    changed["state"]["run"][name] = value
    save(tmp_path / FILE, arrays, changed)
    with pytest.raises(mx.CheckpointError, match=f"cannot have: start has {name} .*; it must be a whole number"):
        resume(tmp_path)[1]()


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("run", {"loss_sum": 10**400}, "loss_sum .*; it must be a finite number"),
        ("run", {"seconds": 10**400}, "seconds .*; it must be a finite number"),
        ("run", {"seconds": -1.0}, "a loss or a duration that nothing"),
        ("run", {"update": 0, "rows": 0}, "a loss or a duration that nothing"),
        ("run", {"update": 3, "rows": 60}, "an epoch of 60 rows in batches of 20 has no such place"),
        ("run", {"rows": 39}, "an epoch of 60 rows in batches of 20 has no such place"),
        ("run", {"epoch": 2}, "its history has 1 epochs, and the run 2"),
        ("run", {"plan": "auto"}, "the plan auto"),
        ("run", {"plan": 5}, "the plan 5"),
        ("optimizer", {"updates": 10**400}, "which the state of Adam cannot have"),
        ("optimizer", {"updates": 1.0}, "which the state of Adam cannot have"),
        ("optimizer", {"updates": True}, "which the state of Adam cannot have"),
        ("optimizer", {"more": 1}, "keeps mean, more, square, updates|keeps .*more"),
    ],
)
def test_a_place_that_no_run_has_is_refused(part, change, message, stopped, tmp_path):
    (arrays, metadata), resume = stopped
    changed = json.loads(json.dumps(metadata))
    changed["state"][part].update(change)
    save(tmp_path / FILE, arrays, changed)
    with pytest.raises(mx.CheckpointError, match=message):
        resume(tmp_path)[1]()


def test_a_version_1_regression_gets_its_score_s_name(data, tmp_path):
    X, _ = data
    model = mx.MLP([4, 3, 1], output="identity")
    settings = {"validation": (X, X[:, :1]), "tol": 0.0}
    straight = mx.fit(model, X, X[:, :1], epochs=2, checkpoint=mx.Checkpoint(tmp_path), **settings)
    arrays, metadata = load(tmp_path / FILE)
    arrays["history.val_accuracy"] = arrays.pop("history.val_r2")
    metadata["state"]["history"].pop("order")
    metadata["version"] = 1
    metadata["settings"]["early_stopping"] = metadata["settings"].pop("callbacks")
    arrays["stopping.0.theta"] = arrays.pop("callback.0.theta")
    metadata["state"]["stopping.0"] = metadata["state"].pop("callback.0")
    del metadata["versions"]
    save(tmp_path / FILE, arrays, metadata)
    model = mx.MLP([4, 3, 1], output="identity")
    history = mx.fit(model, X, X[:, :1], epochs=3, checkpoint=mx.Checkpoint(tmp_path, resume=True), **settings)
    assert history.val_r2[:2] == straight.val_r2
    assert list(history.columns()) == list(straight.columns())
    assert history.val_accuracy == []


# What is refused leaves the model as it was.


@pytest.mark.parametrize("wrong", [{"epochs": 1}, {"threads": 0}, {"tol": 0.1}, {"batch_size": 7}, {"full": True}])
def test_a_resume_that_is_refused_leaves_the_model(wrong, data, tmp_path, monkeypatch):
    settings = {"validation": data, "tol": 0.0, "epochs": 2}
    mx.fit(network(), *data, checkpoint=mx.Checkpoint(tmp_path), **settings)
    settings = {**settings, **wrong}
    if settings.pop("full", False):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    model = network(seed=0)
    before = model.theta.copy()
    with pytest.raises((ValueError, OSError), match=r"epochs must|threads|other settings|bytes are needed"):
        mx.fit(model, *data, checkpoint=mx.Checkpoint(tmp_path, resume=True), **settings)
    assert_array_equal(model.theta, before)
