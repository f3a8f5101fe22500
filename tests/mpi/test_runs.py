"""What several processes agree on, and how they end together: ``fit`` with real ranks of MPI."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import mlp_xp as mx
from mlp_xp.engines import compiled
from mlp_xp.runs import agreement, training
from mlp_xp.runs.agreement import Agreement
from mlp_xp.runs.record import FILE, read
from tests.mpi.launch import MPIEXEC, ROOT, on_ranks

pytestmark = pytest.mark.needs("mpi")

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def data(n=300):
    rng = np.random.default_rng(5)
    X = rng.standard_normal((n, 4)).astype(np.float32)
    return X, (X @ [1, -2, 0.5, 1] > 0).astype(int)


def train(comm=None, network=(4, 6, 2), seed=3, **how):
    """Return the history and the parameters of a small training."""
    X, y = data()
    model = mx.MLP(network, seed=seed)
    how = {"epochs": 6, "batch_size": 32, "optimizer": mx.Adam(lr=0.02), **how}
    with mock.patch.object(compiled, "_WORTH_SENDING", 0):
        history = mx.fit(model, how.pop("X", X), how.pop("y", y), comm=comm, **how)
    return history, model.theta


def digest(theta):
    return hashlib.sha256(theta).hexdigest()


def attempt(call):
    """Return what a call returns, or the error that it raises, as texts."""
    try:
        return call()
    except BaseException as error:
        return type(error).__name__, str(error)


def only_on(comm, rank, usual, there):
    return there if comm.rank == rank else usual


def at_epoch(number, act):
    """Return a callback that acts after one epoch, and answers what that returns."""
    return lambda state: act() if state.epoch == number else None


# Before the first step.


def disagreeing(comm):
    """Return what each way to disagree with the others ends in."""
    X, y = data()
    other_X, other_y = X.copy(), y.copy()
    other_X[-1, 0] += 1
    other_y[7] = 1 - other_y[7]
    older = mock.patch.object(training, "versions", return_value={"numpy": only_on(comm, 1, "2.4.6", "2.0.2")})
    ways = {
        "batch_size": lambda: {"batch_size": only_on(comm, 2, 128, 64)},
        "model.seed": lambda: {"seed": comm.rank},
        "model.sizes": lambda: {"network": (4, only_on(comm, 1, 6, 5), 2)},
        "optimizer": lambda: {"optimizer": only_on(comm, 0, mx.Adam(), mx.SGD())},
        "optimizer.lr": lambda: {"optimizer": mx.Adam(lr=only_on(comm, 1, 0.1, 0.2))},
        "epochs": lambda: {"epochs": only_on(comm, 1, 6, 7)},
        "plan": lambda: {"plan": only_on(comm, 1, "auto", "dense")},
        "dropout": lambda: {"dropout": only_on(comm, 1, 0.5, 0.25)},
        "callbacks": lambda: {"tol": only_on(comm, 2, None, 0.1)},
        "validation": lambda: {"validation": (X, only_on(comm, 1, y, other_y))},
        "data": lambda: {"X": only_on(comm, 1, X, other_X)},
        "data ": lambda: {"y": only_on(comm, 2, y, other_y)},
        "checkpoint": lambda: {"checkpoint": only_on(comm, 2, None, mx.Checkpoint(os.devnull))},
        "callbacks with comm": lambda: {"callbacks": only_on(comm, 1, [evaluation(y)], [])},
        "callbacks with comm ": lambda: {"callbacks": [evaluation(only_on(comm, 1, y, other_y))]},
    }

    def evaluation(y):
        return mx.callbacks.Evaluation("test", X, y, comm=comm)

    ended = {name: attempt(lambda how=how: train(comm, **how())) for name, how in ways.items()}
    with older:
        return {**ended, "numpy": attempt(lambda: train(comm))}


def test_ranks_that_disagree_say_how_before_the_first_step():
    results = on_ranks(3, disagreeing)
    assert results[0] == results[1] == results[2]
    for name, (kind, text) in results[0].items():
        assert kind == "ValueError"
        assert text.startswith("ranks disagree: ")
        assert f"{name.strip()} is " in text
        assert all(len(digits) == 12 for digits in re.findall(r"sha256 ([0-9a-f]+)", text))
    assert "first parameters is float32 (44,) on rank 0, 2, float32 (37,) on rank 1" in results[0]["model.sizes"][1]
    assert len(set(re.findall(r"sha256 ([0-9a-f]+)", results[0]["data"][1]))) == 2
    assert "batch_size is 128 on rank 0, 1, 64 on rank 2" in results[0]["batch_size"][1]
    assert "model.seed is 0 on rank 0, 1 on rank 1, 2 on rank 2; first parameters is" in results[0]["model.seed"][1]
    assert "dropout is [0.5] on rank 0, 2, [0.25] on rank 1" in results[0]["dropout"][1]
    assert "numpy is 2.4.6 on rank 0, 2, 2.0.2 on rank 1" in results[0]["numpy"][1]


def stopped_at_the_door(comm, folder):
    X, y = data()
    broken = X.copy()
    broken[0, 0] = np.nan
    one = {
        "labels": lambda: train(comm, y=only_on(comm, 1, y, y + 5)),
        "NaN": lambda: train(comm, X=only_on(comm, 0, X, broken)),
        "epochs": lambda: train(comm, epochs=only_on(comm, 2, 5, 0)),
        "callback": lambda: train(comm, callbacks=only_on(comm, 2, [], [mx.Progress])),
        "folder": lambda: train(comm, checkpoint=mx.Checkpoint(os.devnull)),
        "resume": lambda: train(comm, checkpoint=mx.Checkpoint(folder, resume=True)),
    }
    ended = {name: attempt(call) for name, call in one.items()}
    return ended, digest(train(comm)[1]), os.listdir(folder)


def test_an_error_of_one_rank_at_the_door_is_raised_by_all(tmp_path):
    results = on_ranks(3, stopped_at_the_door, str(tmp_path))
    who = {"labels": 1, "NaN": 0, "epochs": 2, "callback": 2, "folder": 0, "resume": 0}
    alone = digest(train()[1])
    for rank, (ended, theta, left) in enumerate(results):
        for name, (kind, text) in ended.items():
            own = results[who[name]][0][name]
            if rank == who[name]:
                assert kind in ("ValueError", "NotADirectoryError", "FileExistsError"), (kind, text)
            else:
                assert (kind, text.partition(": ")[0]) == ("RankError", f"rank {who[name]}")
                assert own[1] in text
        assert (theta, left) == (alone, [])  # all are ready for the next training


# Together.


def ending_together(comm):
    """Return how trainings end that one rank wants to end, and whether the process is as it was."""
    handlers = [signal.getsignal(number) for number in SIGNALS]
    model = mx.MLP((4, 6, 2), seed=3)
    X, y = data()

    def interrupted():
        callback = at_epoch(3, lambda: comm.rank == 1 and signal.raise_signal(signal.SIGINT))
        ended = attempt(lambda: mx.fit(model, X, y, callbacks=[callback], comm=comm))
        return ended, digest(model.theta)

    def fail():
        raise LookupError("a fault that all ranks find")

    late = mock.Mock(spec=("__call__", "close"), return_value=None)
    if comm.rank == 1:  # when it is all over, but for what has to be closed
        late.close.side_effect = lambda: signal.raise_signal(signal.SIGINT)

    def doubled(on, also=(), **how):
        """Train with a callback that replaces the parameters on some ranks."""

        def double(state):
            if state.epoch == 2 and (comm is None or comm.rank in on):
                state.model.theta = state.model.theta * 2
            for rank in also:
                if state.epoch == 6 and comm.rank == rank:
                    state.model.theta[:] *= 2

        return attempt(lambda: digest(train(comm, callbacks=[double], **how)[1]))

    called = []
    quiet = mx.Progress(6, disable=True)
    with mock.patch.object(mx.Progress, "__call__", lambda self, state: called.append(state.epoch)):
        history, theta = train(comm, callbacks=[quiet], validation=data(1500))
    return {
        "stopped": len(train(comm, callbacks=[at_epoch(4, lambda: comm.rank == 2)])[0]),
        "interrupted": interrupted(),
        "failed": attempt(lambda: train(comm, callbacks=[at_epoch(2, fail)])),
        "lbfgs": digest(train(comm, optimizer=mx.LBFGS(), batch_size=None)[1]),
        "diverged": attempt(lambda: train(comm, optimizer=mx.SGD(lr=1e30))),
        "doubled": doubled([1]),
        "doubled by L-BFGS": doubled([1], optimizer=mx.LBFGS(), batch_size=None),
        "doubled in place": doubled([], [1]),
        "doubled alike": doubled([0, 1, 2])[0] != "ValueError",
        "losses": (history.loss, history.val_loss, history.val_accuracy),
        "theta": digest(theta),
        "progress": called,
        "late": attempt(lambda: train(comm, callbacks=[late])),
        "handlers": [signal.getsignal(number) for number in SIGNALS] == handlers,
    }


def test_all_ranks_end_at_the_same_update(tmp_path):
    results = on_ranks(3, ending_together)
    history, theta = train(validation=data(1500))
    assert [each.pop("progress") for each in results] == [history.epoch, [], []]
    assert results[0] == results[1] == results[2]
    assert results[0]["losses"] == (history.loss, history.val_loss, history.val_accuracy)
    assert results[0]["theta"] == digest(theta)
    assert results[0]["lbfgs"] == digest(train(optimizer=mx.LBFGS(), batch_size=None)[1])
    assert results[0]["stopped"] == 4
    assert results[0]["interrupted"][0] == ("KeyboardInterrupt", "")
    assert results[0]["late"] == ("KeyboardInterrupt", "")
    assert results[0]["failed"] == ("LookupError", "a fault that all ranks find")
    assert results[0]["diverged"][0] == "DivergenceError"
    assert results[0]["handlers"]
    for way, epoch in (("doubled", 2), ("doubled by L-BFGS", 2), ("doubled in place", 6)):
        kind, text = results[0][way]
        assert kind == "ValueError"
        assert text.startswith(f"ranks disagree: parameters after epoch {epoch} is float32 (44,) with sha256 ")
    assert results[0]["doubled alike"]


def agreeing(comm, times):
    from mpi4py import MPI

    half = comm.Split(comm.rank)
    outside = comm.Split(MPI.UNDEFINED)
    between = half.Create_intercomm(0, comm, 1 - comm.rank)
    refused = [attempt(lambda c=c: Agreement(c))[1] for c in (outside, between)]
    for _ in range(times):
        with Agreement(comm) as ranks:
            pass
    with Agreement(comm) as ranks:
        answers = ranks.most(comm.rank), ranks.any(comm.rank == 1), ranks.any(False)
        return refused, (*answers, ranks.first(lambda: comm.rank), ranks.leads)


def test_agreements_do_not_run_out_and_take_groups_of_processes_only():
    results = on_ranks(2, agreeing, 2200)  # MPICH has about 2,000 communicators at a time
    assert [answers for _, answers in results] == [(1, True, False, 0, True), (1, True, False, 0, False)]
    for (null, inter), _ in results:
        assert null.startswith("comm is MPI.COMM_NULL")
        assert inter.startswith("comm is an intercommunicator")


# Checkpoints.


def saved(comm, folder, resume=False, epochs=6, stop=None):
    """Return history and parameters of a training with a checkpoint; SIGTERM comes to the last rank at `stop`."""
    here = comm is None or comm.rank == comm.size - 1
    callbacks = [] if stop is None else [at_epoch(stop, lambda: here and signal.raise_signal(signal.SIGTERM))]
    keeper = mx.Checkpoint(folder, every="0.0001s", resume=resume)

    def run():
        how = {"checkpoint": keeper, "epochs": epochs, "callbacks": callbacks, "validation": data(50), "tol": 1e-9}
        history, theta = train(comm, **how)
        return history.loss, history.val_loss, digest(theta)

    return attempt(run)


@pytest.mark.parametrize("ranks", [(3, None, 2), (None, 2, 3)])
def test_a_run_goes_on_with_another_number_of_ranks(ranks, tmp_path):
    """Through middles of epochs and a signal to one rank, with the state of a callback, to the same bits."""
    expected = saved(None, tmp_path / "whole", epochs=9)
    for i, (count, stop, epochs) in enumerate(zip(ranks, (2, 5, None), (9, 9, 9), strict=True)):
        given = str(tmp_path / "parts"), i > 0, epochs, stop
        results = [saved(None, *given)] if count is None else on_ranks(count, saved, *given)
        assert all(result == results[0] for result in results)
        if stop is None:
            assert results[0] == expected
        else:
            kind, text = results[0]
            assert kind == "Interrupted"
            assert text.startswith(f"stopped by SIGTERM in epoch {stop} after update 10; all up to here is saved in")
    whole, parts = (read(tmp_path / name / FILE) for name in ("whole", "parts"))
    assert whole.settings == parts.settings
    assert (whole.history["loss"] == parts.history["loss"]).all()
    assert len(parts.versions) == 1


def with_a_full_disk(comm, folder):
    """Return how a training ends whose second save finds no room."""
    written = os.write
    asked = []

    def write(descriptor, chunk):
        asked.append(comm.rank)
        if len(read_epochs()) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(descriptor, chunk)

    def read_epochs():
        path = Path(folder, FILE)
        return read(path).history["epoch"] if path.exists() else []

    with mock.patch.object(os, "write", write):
        ended = attempt(lambda: train(comm, checkpoint=mx.Checkpoint(folder, every=2)))
    return ended, len(asked)


def test_a_full_disk_ends_all_ranks_and_leaves_the_checkpoint_before(tmp_path):
    results = on_ranks(2, with_a_full_disk, str(tmp_path))
    assert results[0][0][0] == "OSError"
    assert "make room" in results[0][0][1]
    assert results[1][0][0] == "RankError"
    assert "rank 0: OSError" in results[1][0][1]
    assert results[1][1] == 0  # rank 1 writes nothing
    assert read(tmp_path / FILE).snapshot.epoch == 2


def without_full_fingerprints(comm, folder):
    """Return how often each rank hashed all of the data."""
    counted = mock.Mock(side_effect=training._fingerprint)
    with mock.patch.object(training, "_fingerprint", counted):
        train(comm)
        before = counted.call_count
        train(comm, checkpoint=mx.Checkpoint(folder))
    return before, counted.call_count


def test_the_data_are_hashed_once_and_only_for_a_checkpoint(tmp_path):
    assert on_ranks(2, without_full_fingerprints, str(tmp_path)) == [(0, 1), (0, 0)]


# What one rank cannot tell the others.

EPOCHS = 1500  # with the pauses below, some ten seconds
TRAINING = """
import sys
import time
from mpi4py import MPI
import mlp_xp as mx
from mlp_xp.runs import agreement
from tests.mpi.test_runs import EPOCHS, at_epoch, train

agreement._PATIENCE /= 5

comm, (folder, what) = MPI.COMM_WORLD, sys.argv[1:]

def fail():
    if comm.rank == 1:
        raise ArithmeticError("only here")

def begin(state):
    if comm.rank == 0 and state.epoch == 3:
        print("begun", flush=True)

def wait(state):
    time.sleep(0.005)

keeper = mx.Checkpoint(folder, every=1 if what == "fail" else "0.01s", resume=what == "resume")
callbacks = [begin, at_epoch(4, fail)] if what == "fail" else [begin, wait]
train(comm, epochs=EPOCHS, checkpoint=keeper, callbacks=callbacks)
"""


def start(folder, what, count=2):
    command = [MPIEXEC, "-n", str(count), sys.executable, "-c", TRAINING, str(folder), what]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(parent):
    """Return the processes below one, with what they run."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [(int(pid), int(ppid), args) for pid, ppid, args in (line.split(None, 2) for line in listed.splitlines())]
    below = [(pid, args) for pid, ppid, args in rows if ppid == parent]
    return below + [deeper for pid, _ in below for deeper in children(pid)]


def ranks_of(launcher):
    return [pid for pid, args in children(launcher.pid) if args.startswith(sys.executable)]


def test_a_rank_that_fails_alone_ends_the_others_with_its_traceback(tmp_path):
    assert agreement._PATIENCE < 10
    run = start(tmp_path, "fail")
    _, said = run.communicate(timeout=60)
    assert run.returncode != 0
    assert "mlp_xp: rank 1 ends all 2 ranks, for:\nTraceback" in said
    assert "ArithmeticError: only here" in said
    assert read(tmp_path / FILE).snapshot.epoch == 3


def test_a_rank_that_is_killed_takes_the_others_with_it(tmp_path):
    run = start(tmp_path, "run")
    assert run.stdout.readline() == "begun\n"
    ranks = ranks_of(run)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    began = time.monotonic()
    run.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert run.returncode != 0
    for rank in ranks:
        with pytest.raises(ProcessLookupError):
            os.kill(rank, 0)
    assert read(tmp_path / FILE).snapshot.epoch >= 1


@pytest.mark.slow
def test_twenty_kills_at_any_moment_change_nothing(tmp_path, pytestconfig):
    rng, kills = random.Random(pytestconfig.seed), 0
    while kills < 20:
        saved = (tmp_path / FILE).exists()
        run = start(tmp_path, "resume" if saved else "new", count=rng.choice((2, 3)))
        time.sleep(rng.uniform(0.4, 1.3))
        while kills >= 10 and not saved and run.poll() is None and not (tmp_path / FILE).exists():
            time.sleep(0.01)  # on a busy machine all kills might come before there is anything to lose
        if ranks := ranks_of(run):
            os.kill(rng.choice(ranks), signal.SIGKILL)
            kills += 1
        run.communicate(timeout=60)
    assert read(tmp_path / FILE).snapshot.epoch < EPOCHS
    run = start(tmp_path, "resume")
    run.communicate(timeout=60)
    assert run.returncode == 0
    assert digest(read(tmp_path / FILE).snapshot.theta) == digest(train(epochs=EPOCHS)[1])
