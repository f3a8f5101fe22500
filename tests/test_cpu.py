"""The two engines of the CPU, the compiled one and NumPy's, train the same: only the last bits differ."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import mlp_xp as mx
from mlp_xp.engines.compiled import CompiledEngine
from mlp_xp.engines.threads import ThreadEngine
from mlp_xp.rows.source import InMemory
from mlp_xp.train import main

pytestmark = pytest.mark.needs("compiled")

OPTIMIZERS = {
    "descent": mx.SGD(0.1),
    "l2": mx.SGD(0.1, l2=0.01, lr_bias=0.05),
    "momentum": mx.SGD(0.1, momentum=0.9),
    "nesterov": mx.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": mx.Adam(0.01, l2=0.01, lr_bias=0.02),
    "adamw": mx.AdamW(0.01, weight_decay=0.1),
}


def columns(X):
    """Return the rows as every other column of a larger array."""
    wide = np.zeros((len(X), 2 * X.shape[1]), X.dtype)
    wide[:, ::2] = X
    return wide[:, ::2]


def mapped(X, folder):
    np.save(folder / "X.npy", X)
    return np.load(folder / "X.npy", mmap_mode="r")


def unaligned(X):
    memory = np.zeros(X.nbytes + 1, np.uint8)
    memory[1:] = X.ravel().view(np.uint8)
    return memory[1:].view(X.dtype).reshape(X.shape)


ROWS = {  # how data for 37 rows and 5 columns may come
    "bytes": lambda X, folder: (255 * X).astype(np.uint8),
    "dense": lambda X, folder: X + 0.5,
    "float64": lambda X, folder: X.astype(np.float64),
    "whole numbers": lambda X, folder: (3 * X).astype(np.int64),
    "another byte order": lambda X, folder: X.astype(X.dtype.newbyteorder()),
    "columns": lambda X, folder: columns(X),
    "by columns": lambda X, folder: np.asfortranarray(X),
    "backwards": lambda X, folder: X[::-1],
    "mapped": mapped,
    "unaligned": lambda X, folder: unaligned(X),
    "zeros": lambda X, folder: 0 * X,
    "one column": lambda X, folder: X[:, :1],
    "one row": lambda X, folder: X[:1],
    "a list": lambda X, folder: X.tolist(),
}


def sparse_rows(rng, n, d):
    return (rng.random((n, d)) * (rng.random((n, d)) < 0.3)).astype(np.float32)


def trained(X, y, d, *, numpy=None, dtype="float32", **settings):
    """Return the states after two epochs; those of the NumPy engine, if its fixture is given."""
    if numpy is not None:
        numpy.getfixturevalue("numpy_engine")
    model = mx.MLP([d, 7, 3], "tanh", dtype=dtype)
    states = []
    for state in mx.epochs(model, X, y, epochs=2, **settings):
        assert type(state.engine) is (CompiledEngine if numpy is None else ThreadEngine)
        arrays = {name: np.copy(value) for name, value in state.optimizer_state.items()}
        values = (state.loss, state.gradient_norm, state.gradient, model.theta)
        states.append((*map(np.copy, values), arrays))
    return states


def assert_same_states(some, others, tolerance):
    for one, two in zip(some, others, strict=True):
        for a, b in zip(one[:-1], two[:-1], strict=True):
            assert_allclose(a, b, rtol=tolerance, atol=tolerance)
            assert a.dtype == b.dtype
        assert one[-1].keys() == two[-1].keys()
        for name, value in one[-1].items():
            # squares are of the order of 1e-4
            assert_allclose(value, two[-1][name], rtol=100 * tolerance, atol=tolerance)
            assert value.dtype == two[-1][name].dtype


@pytest.mark.parametrize("batch_size", [None, 1, 10])
@pytest.mark.parametrize("rows", ROWS)
def test_both_engines_take_rows_in_any_form(rows, batch_size, rng, tmp_path, request):
    X = ROWS[rows](sparse_rows(rng, 37, 5), tmp_path)
    before, y, d = np.copy(X), rng.integers(0, 3, len(X)), len(X[0])
    settings = {"batch_size": batch_size, "threads": 50}
    compiled = trained(X, y, d, **settings)
    assert_array_equal(X, before)
    # with a row at a time, what one update rounds the next ones enlarge
    tolerance = 2e-6 if batch_size != 1 else 1e-5
    assert_same_states(compiled, trained(X, y, d, numpy=request, plan="dense", **settings), tolerance)


@pytest.mark.parametrize("plan", ["dense", "sparse"])
@pytest.mark.parametrize("batch_size", [None, 64])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_both_engines_have_the_same_gradients_and_states(optimizer, batch_size, plan, rng, request):
    X, y = sparse_rows(rng, 1300, 20), rng.integers(0, 3, 1300)
    settings = {"batch_size": batch_size, "optimizer": OPTIMIZERS[optimizer], "dtype": "float64"}
    compiled = trained(X, y, 20, plan=plan, **settings)
    assert_same_states(compiled, trained(X, y, 20, numpy=request, plan="dense", **settings), 1e-10)


@pytest.mark.usefixtures("cpu_engine", "single_updates")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_in_the_middle_of_an_epoch_plain_descent_alone_keeps_no_gradient(optimizer, data):
    X, y = data
    model = mx.MLP([12, 6, 2], dtype="float64")
    state = next(mx.epochs(model, X, y, batch_size=10, optimizer=OPTIMIZERS[optimizer], pause=lambda: True))
    assert not state.whole
    assert (state.gradient is None) == (optimizer == "descent")
    if optimizer == "momentum":
        assert_allclose(state.gradient, state.optimizer_state["velocity"])  # after the first update


@pytest.mark.parametrize("plan", ["auto", "dense", "sparse"])
@pytest.mark.parametrize("shape", [(5, 65_536), (5, 65_537), (70_000, 2)])
def test_an_index_of_16_bits_is_no_limit(shape, plan, rng, request):
    X, y = np.zeros(shape, np.float32), rng.integers(0, 3, shape[0])
    X[:, -1] = X[-1] = 0.5
    settings = {"batch_size": shape[0], "optimizer": mx.SGD(1e-6)}
    compiled = trained(X, y, shape[1], plan=plan, **settings)
    assert_same_states(compiled, trained(X, y, shape[1], numpy=request, plan="dense", **settings), 2e-5)


def test_zeros_decide_the_plan_and_not_the_engine(rng):
    y = rng.integers(0, 2, 500)
    for X, kind in ((sparse_rows(rng, 500, 40), "sparse"), (rng.random((500, 40)) + 1, "dense")):
        for batch_size in (None, 20):
            state = next(mx.epochs(mx.MLP([40, 2]), X, y, batch_size=batch_size))
            assert (state.plan.kind, type(state.engine)) == (kind, CompiledEngine)


def standardized(X):
    return (X - X.mean(axis=0)) / (X.std(axis=0) + 0.1)


@pytest.mark.parametrize("epochs", [1, 8])
@pytest.mark.parametrize("batch_size", [None, 20])
def test_usual_values_are_skipped_as_zeros_are(epochs, batch_size, rng):
    X = standardized(rng.random((2500, 30)) * (rng.random((2500, 30)) < np.linspace(0.5, 0, 30) ** 2))
    model, y = mx.MLP([30, 2]), rng.integers(0, 2, 2500)
    state = next(mx.epochs(model, X, y, epochs=epochs, batch_size=batch_size))
    assert (state.plan.kind, type(state.engine)) == ("sparse", CompiledEngine)
    assert state.plan.background.any()


@pytest.mark.parametrize(("epochs", "kind"), [(7, "dense"), (8, "ragged")])
def test_rows_with_too_few_usual_values_are_sorted_where_that_repays(epochs, kind, rng):
    X = standardized(rng.random((2500, 30)) * (np.arange(30) < rng.integers(10, 31, (2500, 1))))
    state = next(mx.epochs(mx.MLP([30, 2]), X, rng.integers(0, 2, 2500), epochs=epochs))
    assert state.plan.kind == kind


@pytest.mark.usefixtures("numpy_engine")
def test_a_sparse_plan_without_the_library_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="plan 'sparse' takes the compiled library, which cannot train this here; use"):
        mx.epochs(mx.MLP([2, 2]), [[0, 1], [1, 0]], [0, 1], plan="sparse")


# What only NumPy trains, and what is said about it.


class Elsewhere(InMemory):
    """Rows of a kind of their own."""


@dataclass(frozen=True)
class Scaled(mx.SGD):
    """Gradient descent whose rates are not what the library takes them for."""

    def rates(self, epoch, is_bias):
        return self.rate(epoch) * (1 + is_bias)


UNKNOWN = {
    "it does not know the update of Scaled": {"optimizer": Scaled()},
    "the rows are not in the host's memory": {"X": Elsewhere(np.eye(2, dtype=np.float32))},
    "the rows do not lie one behind another": {"X": InMemory(np.eye(2, dtype=np.float32)[:, ::-1])},
    "it was not built, or MLP_XP_COMPILED is 0": {},
}


@pytest.mark.parametrize("words", UNKNOWN)
def test_one_line_in_the_log_says_why_numpy_computes(words, caplog, request):
    settings = {"X": np.eye(2), **UNKNOWN[words]}
    if not UNKNOWN[words]:
        request.getfixturevalue("numpy_engine")
    with caplog.at_level(logging.INFO, "mlp_xp"):
        state = next(mx.epochs(mx.MLP([2, 2]), y=[0, 1], **settings))
    assert type(state.engine) is ThreadEngine
    assert caplog.messages == [f"NumPy computes, not the compiled library: {words}"]


@pytest.mark.parametrize("batch_size", ["0", "100"])
def test_a_dry_run_names_the_plan_that_is_used(batch_size, tmp_path, capsys):
    arguments = ["--preset", "mnist-5v8", "--batch-size", batch_size, "--out", str(tmp_path / "run")]
    assert main([*arguments, "--dry-run"]) == 0
    assert "\nplan sparse: " in capsys.readouterr().out


@pytest.mark.usefixtures("numpy_engine")
def test_a_dry_run_without_the_library_names_another_plan(tmp_path, capsys):
    assert main(["--preset", "mnist-5v8", "--epochs", "9", "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    assert "\nplan ragged: " in capsys.readouterr().out


# From one engine to the other.


def snapshots(X, y, **settings):
    """Return the snapshots in the middle of the second epoch and at the end of the third."""
    model = mx.MLP([X.shape[1], 6, 2], "tanh")
    optimizer = mx.Adam(0.01)
    states = mx.epochs(model, X, y, epochs=3, batch_size=10, optimizer=optimizer, pause=lambda: True, **settings)
    taken = {(state.epoch, state.updates): state.snapshot() for state in states}
    return taken[2, 2], taken[3, 4]


def go_on(X, y, start, **settings):
    model = mx.MLP([X.shape[1], 6, 2], "tanh", seed=0)
    *_, state = mx.epochs(model, X, y, epochs=3, batch_size=10, optimizer=mx.Adam(0.01), start=start, **settings)
    return state


@pytest.fixture
def data(rng):
    return sparse_rows(rng, 40, 12), rng.integers(0, 2, 40)


@pytest.mark.usefixtures("single_updates")
def test_a_run_that_began_without_the_library_goes_on_with_it(data, monkeypatch):
    monkeypatch.setenv("MLP_XP_COMPILED", "0")
    for plan in ("dense", "ragged"):
        start, end = snapshots(*data, plan=plan)
        with monkeypatch.context() as patch:
            patch.delenv("MLP_XP_COMPILED")
            state = go_on(*data, start)
        assert state.plan.kind == plan
        assert_allclose(state.snapshot().theta, end.theta, rtol=1e-5, atol=1e-6)
        if plan == "ragged":  # the same engine, so bit for bit
            assert_array_equal(state.snapshot().theta, end.theta)


@pytest.mark.usefixtures("single_updates")
@pytest.mark.parametrize("device", ["cpu", "strict"])
def test_a_sparse_run_goes_on_where_there_is_no_library(device, data, monkeypatch):
    start, end = snapshots(*data)
    assert start.plan == end.plan == "sparse"
    assert_array_equal(go_on(*data, start).snapshot().theta, end.theta)
    monkeypatch.setenv("MLP_XP_COMPILED", "0")
    model = mx.MLP([12, 6, 2], "tanh", device=device)
    *_, state = mx.epochs(model, *data, epochs=3, batch_size=10, optimizer=mx.Adam(0.01), start=start)
    assert state.plan.kind in ("dense", "ragged")
    assert_allclose(state.snapshot().theta, end.theta, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("single_updates")
def test_a_checkpoint_says_that_the_library_has_gone(data, tmp_path, monkeypatch):
    mx.fit(mx.MLP([12, 2]), *data, epochs=1, checkpoint=mx.Checkpoint(tmp_path))
    monkeypatch.setenv("MLP_XP_COMPILED", "0")
    with pytest.warns(UserWarning, match=r"saved under other versions \(compiled library \w+, now None\)"):
        mx.fit(mx.MLP([12, 2]), *data, epochs=2, checkpoint=mx.Checkpoint(tmp_path, resume=True))


@pytest.mark.parametrize("value", ["false", "no", "2", " 0"])
def test_a_switch_that_says_neither_on_nor_off_is_refused(value, data, monkeypatch):
    model = mx.MLP([12, 2])
    before = model.theta.copy()
    monkeypatch.setenv("MLP_XP_COMPILED", value)
    for use in (lambda: mx.fit(model, *data, epochs=1), lambda: mx.MLP([12, 2]).predict(data[0])):
        with pytest.raises(ValueError, match=re.escape(f"MLP_XP_COMPILED must be 0 or 1, got {value!r}")):
            use()
    assert_array_equal(model.theta, before)
    monkeypatch.setenv("MLP_XP_COMPILED", "")  # as good as not at all
    mx.fit(model, *data, epochs=1)


@pytest.mark.usefixtures("single_updates")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("plan", ["dense", "sparse"])
def test_going_on_takes_any_number_of_threads(threads, plan, data):
    start, end = snapshots(*data, plan=plan, threads=2)
    assert_array_equal(go_on(*data, replace(start), threads=threads).snapshot().theta, end.theta)


# The model belongs to the caller.


@pytest.mark.usefixtures("cpu_engine", "single_updates")
@pytest.mark.parametrize("batch_size", [None, 10])
def test_parameters_that_were_handed_out_stay_as_they_were(batch_size, data):
    model, handed_out = mx.MLP([12, 6, 2]), []
    states = mx.epochs(model, *data, epochs=3, batch_size=batch_size, optimizer=mx.Adam(), pause=lambda: True)
    for state in states:
        arrays = [model.theta, *model.weights, *model.biases]
        if state.whole:
            arrays.append(state.snapshot().theta)
        handed_out += [(array, array.copy()) for array in arrays]
    for array, copied in handed_out:
        assert_array_equal(array, copied)


@pytest.mark.usefixtures("cpu_engine")
@pytest.mark.parametrize("batch_size", [None, 10])
def test_parameters_may_be_changed_between_epochs_also_in_place(batch_size, data):
    X, y = data
    model = mx.MLP([12, 6, 2])
    states = mx.epochs(model, X, y, batch_size=batch_size, optimizer=mx.SGD(1e-20))
    next(states)
    model.theta *= 3
    tripled = model.theta.copy()
    loss, _ = model.loss_and_gradient(X, y)
    assert_allclose(next(states).loss, loss, rtol=1e-5)
    assert_allclose(model.theta, tripled, rtol=1e-6, atol=1e-15)


@pytest.mark.usefixtures("cpu_engine", "single_updates")
def test_a_model_in_training_can_be_copied_and_pickled(data):
    model = mx.MLP([12, 6, 2])
    for _ in mx.epochs(model, *data, epochs=1, batch_size=10, pause=lambda: True):
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert_array_equal(twin.theta, model.theta)
            assert not np.shares_memory(twin.theta, model.theta)


# The process.


def running():
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.thread_unsafe
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in Linux's /proc")
def test_the_library_leaves_no_thread_behind(data):
    before = running()
    states = mx.epochs(mx.MLP([12, 6, 2]), *data, batch_size=10, threads=4)
    for _ in range(3):
        next(states)
        assert running() <= before
    states.close()


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.thread_unsafe
@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident set from Linux's /proc")
@pytest.mark.parametrize("batch_size", [None, 500])
def test_trainings_give_their_memory_back(batch_size, rng):
    X, y = sparse_rows(rng, 1000, 784), rng.integers(0, 10, 1000)
    sizes = []
    for _ in range(40):  # of 3 MB or more
        next(mx.epochs(mx.MLP([784, 196, 10]), X, y, batch_size=batch_size, threads=2))
        gc.collect()
        sizes.append(resident())
    assert sizes[-1] - sizes[10] < 30e6


FORK = """
import os, sys
import numpy as np
import mlp_xp as mx
rng = np.random.default_rng(0)
X, y = rng.random((3000, 20)), rng.integers(0, 3, 3000)
def train():
    model = mx.MLP([20, 7, 3])
    mx.fit(model, X, y, epochs=2, batch_size=64, threads=2)
    return model.theta.tobytes()
states = mx.epochs(mx.MLP([20, 7, 3]), X, y, epochs=3, batch_size=64, threads=2)
next(states)
want = train()
child = os.fork()
same = train() == want and len(list(states)) == 2
if child == 0:
    os._exit(0 if same else 1)
print(same, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_forked_child_trains_too():
    command = [sys.executable, "-W", "ignore", "-c", FORK]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["True", "0"]


@pytest.mark.thread_unsafe
def test_an_interrupt_does_not_wait_for_the_end_of_a_long_epoch(rng):
    X, y = rng.integers(1, 256, (60_000, 784), np.uint8), rng.integers(0, 10, 60_000)
    model = mx.MLP([784, 500, 10])  # some ten seconds
    theta = model.theta.copy()
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    start = time.process_time()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        next(mx.epochs(model, X, y, batch_size=1, threads=1))
    assert time.process_time() - start < 2
    timer.join()
    assert_array_equal(model.theta, theta)  # of the last whole epoch


def calls(function):
    """Return how many functions are called, Python's and C's."""
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    function()  # what is done once
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("opened", [False, True])
def test_a_prediction_of_one_row_is_few_calls(opened):
    """Some 105, at a fifth of a microsecond each; an isinstance of a protocol alone is a hundred."""
    model = mx.MLP([784, 196, 10])
    X = np.zeros((1, 784), np.float32)
    rows = model.open(X) if opened else X
    assert calls(lambda: model.predict(rows)) < 140
