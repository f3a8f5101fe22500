"""What a run does when it is told to stop, when the disk is full, when a worker fails, when the loss is no number."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from threadpoolctl import threadpool_info

import mlp_xp as mx
from mlp_xp.kernels.cpu.compiled import library
from mlp_xp.runs.record import FILE, read
from mlp_xp.runs.signals import StopSignals


@pytest.fixture
def data(rng):
    X = rng.standard_normal((60, 4))
    return X, (X @ [1, -2, 0.5, 1] > 0).astype(int)


def network():
    return mx.MLP([4, 6, 2])


def raising(number, at, times=1):
    """Return a callback that gets a signal in this epoch."""

    def callback(state):
        if state.epoch == at:
            for _ in range(times):
                signal.raise_signal(number)

    return callback


# Signals.

STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_is_noted_saved_and_reported(number, data, tmp_path):
    handlers = [signal.getsignal(each) for each in STOPPING]
    model, epochs = network(), []
    callbacks = [raising(number, 3), lambda state: epochs.append(state.epoch)]
    with pytest.raises(
        mx.Interrupted, match=rf"stopped by {number.name} in epoch 3 after update 4; .* in {tmp_path}"
    ) as e:
        mx.fit(model, *data, batch_size=17, epochs=9, callbacks=callbacks, checkpoint=mx.Checkpoint(tmp_path))
    assert (e.value.signal, e.value.folder) == (number, str(tmp_path))
    assert epochs == [1, 2, 3]  # those behind it still hear of the epoch
    assert read(tmp_path / FILE).snapshot.epoch == 3
    assert_array_equal(read(tmp_path / FILE).snapshot.theta, model.theta)
    assert [signal.getsignal(each) for each in STOPPING] == handlers


@pytest.mark.skipif(os.name != "posix", reason="starts a shell that ignores signals")
def test_these_tests_also_pass_in_the_background():
    """`nohup python -m pytest &` begins with SIGHUP, and mostly with SIGINT, ignored."""
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}", "-k", "is_noted_saved"]
    ignoring = ["sh", "-c", 'trap "" INT HUP TERM; exec "$@"', "sh", *pytest_]
    done = subprocess.run(ignoring, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_interrupted_survives_a_process_pool(tmp_path):
    error = mx.Interrupted(signal.SIGTERM, str(tmp_path), "in epoch 3; all up to here is saved in")
    twin = pickle.loads(pickle.dumps(error))
    assert (str(twin), twin.signal, twin.folder) == (str(error), error.signal, error.folder)
    assert str(error) == f"stopped by SIGTERM in epoch 3; all up to here is saved in {tmp_path}"


@pytest.mark.parametrize("batch_size", [None, 17])
@pytest.mark.parametrize("in_callback", [False, True])
def test_an_interrupt_without_a_checkpoint_stops_between_two_updates(batch_size, in_callback, data):
    # In the middle of a wait for threads CPython can make a RuntimeError of it, "cannot release un-acquired lock".
    model, thetas, frames = network(), [], []

    def note(state):
        thetas.append(state.model.theta.copy())
        if state.epoch == 2 and in_callback:
            signal.raise_signal(signal.SIGINT)
            frames.append("the callback goes on")

    class Interrupting(mx.SGD):
        def update(self, *given):
            if len(thetas) == 2 and not frames and not in_callback:
                signal.raise_signal(signal.SIGINT)
                frames.append("the update goes on")
            return super().update(*given)

    with pytest.raises(KeyboardInterrupt) as caught:
        mx.fit(
            model, *data, epochs=9, batch_size=batch_size, callbacks=[note], optimizer=Interrupting(0.1, momentum=0.9)
        )
    assert type(caught.value) is KeyboardInterrupt
    assert len(frames) == 1
    assert_array_equal(model.theta, thetas[-1])  # those of the last whole epoch
    assert len(thetas) == (2 if in_callback or batch_size else 3)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_without_a_checkpoint_leaves_at_once(data):
    with pytest.raises(KeyboardInterrupt):
        mx.fit(network(), *data, callbacks=[raising(signal.SIGINT, 1, times=2), lambda state: 1 / 0])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_signals_end_a_process_without_a_checkpoint_as_ever(data):
    handlers = []
    mx.fit(network(), *data, epochs=1, callbacks=[lambda state: handlers.append(signal.getsignal(signal.SIGTERM))])
    assert handlers == [signal.SIG_DFL]


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_is_not_lost_if_a_callback_fails_after_it(number, data, tmp_path):
    callbacks = [raising(number, 3), lambda state: 1 / 0 if state.epoch == 3 else None]
    with pytest.raises(
        mx.Interrupted, match=rf"stopped by {number.name} after the last save, which is in {tmp_path}"
    ) as caught:
        mx.fit(network(), *data, epochs=9, callbacks=callbacks, checkpoint=mx.Checkpoint(tmp_path, every=1))
    assert isinstance(caught.value.__context__, ZeroDivisionError)
    assert read(tmp_path / FILE).snapshot.epoch == 2
    assert [signal.getsignal(each) for each in STOPPING if each != signal.SIGINT] == [signal.SIG_DFL] * (
        len(STOPPING) - 1
    )


def test_an_interrupt_is_not_lost_if_a_callback_fails_after_it(data):
    with pytest.raises(KeyboardInterrupt) as caught:
        mx.fit(network(), *data, callbacks=[raising(signal.SIGINT, 3), lambda s: 1 / 0 if s.epoch == 3 else None])
    assert isinstance(caught.value.__context__, ZeroDivisionError)


class Closing:
    """Gets a signal while it is closed, when nobody asks for signals any more."""

    def __call__(self, state):
        pass

    def close(self):
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_comes_at_the_very_end_is_not_lost(data, tmp_path):
    with pytest.raises(mx.Interrupted, match="SIGTERM after the last save, which is in"):
        mx.fit(network(), *data, epochs=2, callbacks=[Closing()], checkpoint=mx.Checkpoint(tmp_path))
    assert read(tmp_path / FILE).snapshot.epoch == 2
    with open(tmp_path / ".lock", "r+b") as file:  # and the folder is released
        assert mx.files.locks.try_lock(file.fileno())


class Foreign(BaseException):
    """What a handler of the caller raises."""


def test_handlers_are_put_back_if_they_cannot_all_be_set(monkeypatch):
    setting = signal.signal

    def fail(number, handler):
        if number == signal.SIGTERM and handler != signal.SIG_DFL:
            raise Foreign
        return setting(number, handler)

    monkeypatch.setattr(signal, "signal", fail)
    with pytest.raises(Foreign), StopSignals(("SIGINT", "SIGTERM"), KeyboardInterrupt):
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_does_not_keep_handlers_from_their_places(monkeypatch):
    setting, signals = signal.signal, StopSignals(("SIGINT", "SIGTERM"), KeyboardInterrupt)

    def interrupted(number, handler):
        if handler == signal.SIG_DFL:
            signal.raise_signal(signal.SIGINT)
        return setting(number, handler)

    with pytest.raises(KeyboardInterrupt), signals:  # noqa: PT012  # both in the block that ends with it
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(signal, "signal", interrupted)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


ELSEWHERE = """
import signal
for name in dir(signal):
    if name.startswith("SIG") and name not in ("SIGINT", "SIGTERM", "SIG_DFL", "SIG_IGN", *{more}):
        delattr(signal, name)
import tempfile
import mlp_xp as mx
def press(state):
    if state.epoch == 2:
        signal.raise_signal(signal.{number})
try:
    mx.fit(mx.MLP([2, 4, 2]), *mx.datasets.xor(), epochs=9, callbacks=[press],
           checkpoint=mx.Checkpoint(tempfile.mkdtemp()))
except mx.Interrupted as error:
    print(error.signal == signal.{number}, signal.getsignal(signal.{number}) == {default})
"""


@pytest.mark.parametrize(
    ("more", "number", "default"),
    [((), "SIGINT", "signal.default_int_handler"), ((), "SIGTERM", "signal.SIG_DFL"), (("SIGUSR1",), "SIGTERM", 0)],
)
def test_systems_that_know_few_signals_train_as_well(more, number, default, tmp_path):
    source = ELSEWHERE.format(more=more, number=number, default=default)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True True\n", "")


def test_a_second_interrupt_leaves_at_once_and_the_checkpoint_stays(data, tmp_path, monkeypatch):
    mx.fit(network(), *data, epochs=2, checkpoint=mx.Checkpoint(tmp_path))
    before, fsync, calls = (tmp_path / FILE).read_bytes(), os.fsync, []

    def interrupt(descriptor):
        calls.append(descriptor)
        signal.raise_signal(signal.SIGINT)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", interrupt)  # the second one comes in the middle of saving
    with pytest.raises(KeyboardInterrupt) as caught:
        mx.fit(
            network(), *data, epochs=9, callbacks=[raising(signal.SIGINT, 4)],
            checkpoint=mx.Checkpoint(tmp_path, resume=True),
        )  # fmt: skip
    assert type(caught.value) is KeyboardInterrupt
    assert len(calls) == 1
    assert (tmp_path / FILE).read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == [".lock", FILE]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_are_put_back_whatever_happens(data, tmp_path):
    with pytest.raises(ZeroDivisionError):
        mx.fit(network(), *data, callbacks=[lambda state: 1 / 0], checkpoint=mx.Checkpoint(tmp_path))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_caller_stays_in_force(data, tmp_path):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        history = mx.fit(
            network(), *data, epochs=3, callbacks=[raising(signal.SIGTERM, 2)], checkpoint=mx.Checkpoint(tmp_path)
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert len(history) == 3


def test_threads_train_side_by_side_without_handlers(data, tmp_path):
    thetas, handlers = {}, []

    def train(name):
        model = network()
        mx.fit(
            model, *data, epochs=20, batch_size=17, checkpoint=mx.Checkpoint(tmp_path / name, every=7),
            callbacks=[lambda state: handlers.append(signal.getsignal(signal.SIGTERM))],
        )  # fmt: skip
        thetas[name] = model.theta

    threads = [threading.Thread(target=train, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    straight = network()
    mx.fit(straight, *data, epochs=20, batch_size=17)
    assert sorted(thetas) == list("abcd")
    for theta in thetas.values():
        assert_array_equal(theta, straight.theta)
    assert set(handlers) == {signal.SIG_DFL}


# The folder.


def test_a_folder_in_use_is_refused_before_training(data, tmp_path):
    epochs = []

    def second(state):
        for resume in (False, True):
            with pytest.raises(BlockingIOError, match=f"in use by process {os.getpid()} on"):
                mx.fit(
                    network(), *data, callbacks=[lambda state: epochs.append(state.epoch)],
                    checkpoint=mx.Checkpoint(tmp_path, resume=resume),
                )  # fmt: skip

    mx.fit(network(), *data, epochs=3, callbacks=[lambda s: second(s) if s.epoch == 2 else None],
           checkpoint=mx.Checkpoint(tmp_path, every=1))  # fmt: skip
    assert epochs == []


def test_a_folder_that_cannot_be_written_is_found_out_before_training(data, tmp_path, monkeypatch):
    epochs = []
    settings = {"callbacks": [lambda state: epochs.append(state.epoch)]}
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        mx.fit(network(), *data, checkpoint=mx.Checkpoint(tmp_path / "file" / "run"), **settings)
    with pytest.raises(FileExistsError):
        mx.fit(network(), *data, checkpoint=mx.Checkpoint(tmp_path / "file"), **settings)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=200))
    with pytest.raises(OSError, match=r"\d+ bytes are needed, 200 are free") as caught:
        mx.fit(network(), *data, checkpoint=mx.Checkpoint(tmp_path / "run"), **settings)
    assert caught.value.errno == errno.ENOSPC
    assert epochs == []


def test_a_folder_that_may_not_be_written_is_found_out_before_training(data, tmp_path, monkeypatch):
    mx.fit(network(), *data, epochs=1, checkpoint=mx.Checkpoint(tmp_path))
    create = os.open

    def refuse(path, flags, *mode):  # root, who runs many a test, may write everywhere
        if str(path).endswith(".tmp"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return create(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    epochs = []
    with pytest.raises(PermissionError, match=r"nothing can be written in this folder \(Permission denied\)"):
        mx.fit(
            network(), *data, epochs=3, callbacks=[lambda state: epochs.append(state.epoch)],
            checkpoint=mx.Checkpoint(tmp_path, resume=True),
        )  # fmt: skip
    assert epochs == []


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(data, tmp_path, monkeypatch):
    write, saved = os.write, []

    def fill(state):
        if state.epoch == 3:
            saved.append((tmp_path / FILE).read_bytes())
            monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "disk full")))

    with pytest.raises(OSError, match=r"\d+ bytes could not be saved \(disk full\)"):
        mx.fit(network(), *data, epochs=9, callbacks=[fill], checkpoint=mx.Checkpoint(tmp_path, every=1))
    monkeypatch.setattr(os, "write", write)
    assert (tmp_path / FILE).read_bytes() == saved[0]
    straight, resumed = network(), network()
    mx.fit(resumed, *data, epochs=9, checkpoint=mx.Checkpoint(tmp_path, resume=True))
    mx.fit(straight, *data, epochs=9)
    assert_array_equal(resumed.theta, straight.theta)


# Errors in the training.


@pytest.mark.usefixtures("numpy_engine")
@pytest.mark.parametrize("batch_size", [None, 16])
def test_a_failing_worker_leaves_model_and_checkpoint(batch_size, rng, tmp_path, monkeypatch):
    X, y = rng.random((3000, 8)), rng.integers(0, 3, 3000)
    X, y = (X, y) if batch_size is None else (X[:64], y[:64])
    model, straight = mx.MLP([8, 6, 3]), mx.MLP([8, 6, 3])
    settings = {"batch_size": batch_size, "threads": 2}
    limits = [pool["num_threads"] for pool in threadpool_info()]
    total = mx.kernels.cpu.numpy_.NumpyKernels.sum
    thetas = []

    def fail(self, losses):
        if len(thetas) == 2:
            raise MemoryError("no room for the sums")
        return total(self, losses)

    def note(state):
        thetas.append(state.model.theta.copy())

    with monkeypatch.context() as patch:
        patch.setattr(mx.kernels.cpu.numpy_.NumpyKernels, "sum", fail)
        checkpoint = mx.Checkpoint(tmp_path, every=1)
        with pytest.raises(MemoryError, match="no room for the sums"):
            mx.fit(model, X, y, epochs=5, callbacks=[note], checkpoint=checkpoint, **settings)
    assert_array_equal(model.theta, thetas[1])
    assert_array_equal(read(tmp_path / FILE).snapshot.theta, thetas[1])
    assert [pool["num_threads"] for pool in threadpool_info()] == limits
    mx.fit(model, X, y, epochs=5, checkpoint=mx.Checkpoint(tmp_path, resume=True), **settings)
    mx.fit(straight, X, y, epochs=5, **settings)
    assert_array_equal(model.theta, straight.theta)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's own words about the overflow
@pytest.mark.parametrize("batch_size", [None, 20])
@pytest.mark.parametrize("every", [1, "0.0001s"])
def test_what_diverged_is_never_saved(every, batch_size, rng, tmp_path):
    X, y = rng.standard_normal((60, 4)), rng.standard_normal((60, 1))
    model = mx.MLP([4, 6, 1], "identity", "identity")
    settings = {"optimizer": mx.SGD(2.0), "batch_size": batch_size, "epochs": 50}
    words = rf"at epoch \d+, {'update 1' if batch_size is None else '.*update'}.*, with learning rate 2;"
    with pytest.raises(mx.DivergenceError, match=words):
        mx.fit(model, X, y, checkpoint=mx.Checkpoint(tmp_path, every=every), **settings)
    saved = read(tmp_path / FILE)
    assert saved.snapshot.epoch + saved.snapshot.update > 0
    assert np.isfinite(saved.history["loss"]).all()
    assert np.isfinite(model.theta).all()


class Exploding(mx.SGD):
    """Descends, and in the second epoch puts a parameter out of the numbers."""

    def update(self, theta, grad, state, rate):
        theta, state = super().update(theta, grad, state, rate)
        if rate < self.base_lr:
            theta[0] = np.inf
        return theta, state


@pytest.mark.parametrize("epochs", [2, 5])
def test_parameters_that_blow_up_are_seen_though_the_loss_was_finite(epochs, data, tmp_path):
    model, thetas = network(), []
    with pytest.raises(mx.DivergenceError, match="a parameter is NaN or infinite at epoch 2, update 1,"):
        mx.fit(
            model, *data, epochs=epochs, optimizer=Exploding(mx.StepDecay(0.1, every=1)),
            callbacks=[lambda state: thetas.append(state.model.theta.copy())],
            checkpoint=mx.Checkpoint(tmp_path, every=1),
        )  # fmt: skip
    assert_array_equal(model.theta, thetas[0])
    assert_array_equal(read(tmp_path / FILE).snapshot.theta, thetas[0])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_validation_loss_that_overflows_stops_too(rng, tmp_path):
    X, y = rng.random((20, 4)), rng.random((20, 1))
    model = mx.MLP([4, 1], output="identity")
    with pytest.raises(mx.DivergenceError, match="val_loss is inf at epoch 1"):
        mx.fit(model, X, y, epochs=3, validation=(X * 1e30, y), checkpoint=mx.Checkpoint(tmp_path))
    assert not (tmp_path / FILE).exists()


NO_MEMORY = """
import resource, sys
import numpy as np
import mlp_xp as mx
from mlp_xp.cli.errors import exit_code

def train(epochs, **settings):
    X, y = np.zeros((5_000_000, 1), np.uint8), np.zeros(5_000_000, np.uint8)  # labels, losses, predictions: 76 MiB
    mx.fit(mx.MLP([1, 2]), X[:10], y[:10], epochs=epochs, threads=1, validation=(X, y),
           checkpoint=mx.Checkpoint(sys.argv[1], **settings))

train(1)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 50_000_000, size + 50_000_000))
sys.exit(exit_code("train", lambda: train(2, resume=True)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the size of the process from Linux's /proc")
def test_too_little_memory_is_one_line_and_the_checkpoint_stays(tmp_path):
    done = subprocess.run([sys.executable, "-c", NO_MEMORY, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"mlp-xp train: out of memory \(.*MiB.*\); use fewer samples, .*\n", done.stderr)
    assert read(tmp_path / FILE).snapshot.epoch == 1


# The command.


def start(*arguments):
    command = [sys.executable, "-m", "mlp_xp.train", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Options of a run of some seconds, and the run folder that it leaves when nobody disturbs it."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("straight")
    rows = 6_000 if library() is None else 40_000  # NumPy takes longer
    X, y = rng.integers(0, 256, (rows, 30), dtype=np.uint8), rng.integers(0, 3, rows)
    np.savez(folder / "data.npz", X=X, y=y)
    options = ["--data", folder / "data.npz", "--hidden", "8", "--batch-size", "2", "--epochs", "9", "--quiet"]
    options += ["--optimizer", "adamw", "--schedule", "cosine", "--warm-up", "2", "--validation", "0.2", "--tol", "0"]
    run = start(*options, "--out", folder / "run")
    assert run.communicate(timeout=100)[1] == ""
    return options, folder / "run"


def until(condition, run):
    while not condition():
        assert run.poll() is None, run.communicate()
        threading.Event().wait(0.01)


def history_without_times(folder):
    return [line.rsplit(",", 1)[0] for line in (folder / "history.csv").read_text().splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_command_that_was_stopped_leaves_what_an_undisturbed_one_leaves(number, arguments, tmp_path):
    options, straight = arguments
    folder = tmp_path / "a run"
    often = ["--checkpoint-every", "0.05s"] if number == signal.SIGKILL else []
    run = start(*options, "--out", folder, *often)
    until((folder / (FILE if often else "config.json")).exists, run)
    run.send_signal(number)
    output, error = run.communicate(timeout=20)
    if number == signal.SIGKILL:
        assert run.returncode == -signal.SIGKILL
    else:
        assert run.returncode == 128 + number
        assert output == ""
        words = (
            rf"mlp-xp train: stopped by {number.name} in epoch \d .*; go on with: python -m .* --resume '{folder}'\n"
        )
        assert re.fullmatch(words, error)
    assert not (folder / "history.csv").exists()
    assert read(folder / FILE).snapshot.epoch < 9

    resumed = start("--resume", folder, *options, "--out", folder)
    output, error = resumed.communicate(timeout=100)
    assert (resumed.returncode, error) == (0, "")
    assert {path.name for path in folder.iterdir()} == {path.name for path in straight.iterdir()}
    assert history_without_times(folder) == history_without_times(straight)
    assert (folder / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
    config, other = (json.loads((each / "config.json").read_text()) for each in (folder, straight))
    assert config == {**other, "out": str(folder), "checkpoint_every": often[1] if often else None}
    assert len(list((folder / "plots").iterdir())) == len(list((straight / "plots").iterdir()))


def test_two_interrupts_leave_at_once(arguments, tmp_path):
    run = start(*arguments[0], "--out", tmp_path / "run", "--epochs", "100000", "--checkpoint-every", "1")
    until((tmp_path / "run" / FILE).exists, run)
    run.send_signal(signal.SIGINT)
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=20) == 130
    run.communicate()
    assert read(tmp_path / "run" / FILE).snapshot.epoch >= 1
    assert not list(Path(tmp_path, "run").glob("*.tmp"))


def test_a_second_command_in_the_folder_is_refused(arguments, tmp_path):
    run = start(*arguments[0], "--out", tmp_path / "run", "--checkpoint-every", "0.05s", "--epochs", "1000")
    try:
        until((tmp_path / "run" / FILE).exists, run)
        second = start("--resume", tmp_path / "run")
        _, error = second.communicate(timeout=60)
    finally:
        run.kill()
        run.communicate()
    assert second.returncode == 2
    assert re.fullmatch(rf"mlp-xp train: .*/run: in use by process {run.pid} on .*; wait until.*\n", error)


FULL_DISK = """
import resource, sys
from mlp_xp.train import main
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_ends_the_command_with_one_line(arguments, tmp_path):
    command = [sys.executable, "-c", FULL_DISK, *map(str, arguments[0]), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"mlp-xp train: .*checkpoint\.safetensors: \d+ bytes could not be saved \(.*\n", done.stderr)


def test_divergence_is_one_line_without_warnings(tmp_path):
    options = [
        "--preset",
        "xor",
        "--output",
        "identity",
        "--optimizer",
        "sgd",
        "--lr",
        "1e30",
        "--out",
        tmp_path / "run",
    ]
    run = start(*options, "--quiet")
    output, error = run.communicate(timeout=60)
    assert (run.returncode, output) == (1, "")
    assert re.fullmatch(r"mlp-xp train: .* at epoch \d+, update 1, with learning rate 1e\+30; .*smaller.*\n", error)
