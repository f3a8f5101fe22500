"""Ranks with GPUs share every update, and train what one of them would, up to rounding; their own bits are the same."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from unittest import mock

import numpy as np
import pytest

import mlp_xp as mx
from mlp_xp.devices import CupyDevice, get_device
from mlp_xp.engines import Ranks
from mlp_xp.engines.cuda import engine, memory, share
from mlp_xp.kernels.cuda import nccl
from mlp_xp.runs.folder import RunFolder

from .launch import MPIEXEC, ROOT, on_ranks
from .test_command import COMMAND, columns

pytestmark = [pytest.mark.gpu, pytest.mark.needs("mpi")]

N, SIZES = 203, (20, 12, 3)
OPTIMIZERS = {"sgd": mx.SGD(lr=0.1, l2=0.01), "adam": mx.Adam(lr=0.01, lr_bias=0.02), "lbfgs": mx.LBFGS()}


@pytest.fixture(autouse=True)
def two_gpus():
    if get_device("cuda").xp.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two GPUs")


def draw():
    """Return samples whose last columns are zero in most rows."""
    rng = np.random.default_rng(1)
    X = rng.integers(1, 256, (N, SIZES[0])).astype(np.uint8)
    X[:180, 5:] = 0
    return X, rng.integers(0, SIZES[-1], N)


class Source:
    """Rows by slices, and how many were read."""

    def __init__(self, X):
        self.X, self.shape, self.dtype, self.read = X, X.shape, X.dtype, 0

    def __getitem__(self, rows):
        self.read += len(self.X[rows])
        return self.X[rows]


def trained(comm, X, y, *, gpus=9, dtype="float32", **settings):
    """Return the parameters and the losses of each state, and how the last one came about."""
    device = get_device("cuda").of_process(0 if comm is None else comm.rank % gpus)
    model = mx.MLP(SIZES, "tanh", dtype=dtype, seed=1, device=device)
    losses = []
    for state in mx.epochs(model, X, y, comm=comm, **{"epochs": 3} | settings):
        losses.append(float(state.loss))
    return model.device.to_host(model.theta), losses, state.engine.shared, state.plan.kind


def trainings(comm):
    """Train in every way."""
    X, y = draw()
    found, wide = {}, X.astype("f") / 255
    for (name, optimizer), size in itertools.product(OPTIMIZERS.items(), (None, 150, 16, 2)):
        if size is None or name != "lbfgs":  # 203 = 101 * 2 + 1: the last batch has no row for some rank
            found[name, size] = trained(comm, X, y, optimizer=optimizer, batch_size=size)
    for plan, size in itertools.product(("zero", "ragged"), (None, 16)):
        found[plan, size] = trained(comm, X, y, plan=plan, batch_size=size)
    for size in (None, 50):
        with mock.patch.object(CupyDevice, "shard_rows", 30):
            found["shards", size] = trained(comm, X, y, batch_size=size)
            found["dropout", size] = trained(comm, X, y, batch_size=size, dropout=0.4)
        with mock.patch.object(memory, "_attempts", return_value=[(True, 30)]):
            found["streamed", size] = trained(comm, X, y, batch_size=size)
            found["read", size] = trained(comm, Source(wide), y, batch_size=size)
        found["float64", size] = trained(comm, wide.astype("d"), y, dtype="float64", batch_size=size)
        found["weights", size] = trained(comm, X, y, batch_size=size, weights=np.linspace(0.1, 2, N))
    with mock.patch.object(engine, "_MOST_STEPS", 3):
        settings = {"batch_size": 16, "optimizer": OPTIMIZERS["adam"]}
        pauses = iter([False] * 5 + [comm is None or comm.rank == 1])
        model = mx.MLP(SIZES, "tanh", seed=1, device=get_device("cuda").of_process(comm.rank if comm else 0))
        states = mx.epochs(model, X, y, comm=comm, epochs=3, pause=lambda: next(pauses), **settings)
        snapshot = next(state for state in states if not state.whole).snapshot()
        states.close()
        assert (snapshot.epoch, snapshot.update) == (1, 6)
        found["resumed", 16] = trained(comm, X, y, start=snapshot, **settings)
    found["one row", None] = trained(comm, X[:1], y[:1])
    return found


def compare(ranks, function):
    """Assert that all ranks have the same bits, and those of one process without MPI up to rounding; return them."""
    want = function(None)
    first, *others = on_ranks(ranks, function)
    for name, (theta, losses, *_) in want.items():
        for other in others:
            assert first[name][0].tobytes() == other[name][0].tobytes(), name
            assert first[name][1:] == other[name][1:], name
        close = 1e-12 if name[0] == "float64" else 1e-4 if name[0] == "lbfgs" else 2e-6
        np.testing.assert_allclose(first[name][0], theta, rtol=close, atol=close, err_msg=str(name))
        np.testing.assert_allclose(first[name][1], losses, rtol=close, err_msg=str(name))
        assert first[name][3] == want[name][3]
    return first


def test_gpus_train_what_one_would():
    found = compare(2, trainings)
    assert [name for name, (*_, shared, _) in found.items() if not shared] == [("one row", None)]
    theta, losses, *_ = found["adam", 16]
    assert found["resumed", 16][0].tobytes() == theta.tobytes()
    assert found["resumed", 16][1] == losses[1:]


# ------------------------------------------------------------------------------------- who adds up, and who reads what


def told(comm, gpus=9):
    """Return what short trainings train, what the log says of the way of gradients, and how many graphs ran."""
    from tests.cuda import emulated

    records, handler = [], logging.Handler()
    handler.emit = records.append
    log = logging.getLogger(share.__name__)
    log.addHandler(handler)
    before = emulated.counts()
    try:
        X, y = (data[:197] for data in draw())  # the last batch of 7 has no row for some ranks
        found = {
            size: trained(comm, X, y, gpus=gpus, optimizer=OPTIMIZERS["adam"], batch_size=size, weights=weights)
            for size, weights in ((None, None), (8, None), (7, np.linspace(0.1, 2, 197)))
        }
    finally:
        log.removeHandler(handler)
    said = {record.getMessage().partition(": ")[2] for record in records}
    return found, said, (emulated.counts() - before).graphs


def in_every_way(comm):
    """Train three ranks on two GPUs, on three, and where one of them has no NCCL."""
    from tests.cuda import emulated

    made = mock.Mock(side_effect=nccl.Nccl)
    lacking = "it is not installed" if comm.rank == 1 else ""
    with mock.patch.object(share, "Nccl", made), emulated.settings(devices=3):  # before CuPy counts them
        few, enough = told(comm, 2), told(comm)
        with mock.patch.object(share, "why_no_nccl", return_value=lacking):
            without = told(comm)
    return few, enough, without, made.call_count


@pytest.mark.usefixtures("emulated")
def test_without_nccl_or_enough_gpus_the_host_adds_up():
    want, nothing, graphs = told(None)
    assert nothing == set()
    through = "gradients go through the host, not from GPU to GPU: "
    for rank, (few, enough, without, made) in enumerate(on_ranks(3, in_every_way)):
        assert (few[1], enough[1], made) == ({through + "ranks have the same GPU"}, set(), 1)
        assert without[1] == {through + ("it is not installed" if rank == 1 else "a rank has no NCCL")}
        assert (few[2], enough[2], without[2]) == (0, graphs, 0)
        for found, *_ in (few, enough, without):
            for size, (theta, losses, shared, _) in found.items():
                assert shared
                np.testing.assert_allclose(theta, want[size][0], rtol=2e-6, atol=2e-6)
                np.testing.assert_allclose(losses, want[size][1], rtol=2e-6)


def short_of_memory(comm):
    """Return how often rows were read, and what is trained, on ranks of which one has no memory for the first plan."""
    X, y = draw()
    source, found = Source(X.astype("f") / 255), {}
    found["enough"] = trained(comm, source, y, epochs=1, plan="dense")
    read = source.read
    take = memory.CudaEngine.take_memory
    refused = iter([comm is not None and comm.rank == 1])

    def refuse(engine):
        if next(refused, False):
            raise MemoryError("refused")
        return take(engine)

    with mock.patch.object(memory.CudaEngine, "take_memory", refuse):
        found["short"] = trained(comm, X, y, plan="ragged")
    return read, found


def test_ranks_store_alike_and_read_their_own_rows():
    results = on_ranks(2, short_of_memory)
    assert sum(read for read, _ in results) == 3 * N  # all look at all rows, and each takes its own
    (_, first), (_, second) = results
    (_, want) = short_of_memory(None)
    for name, (theta, *_, kind) in want.items():
        np.testing.assert_allclose(first[name][0], theta, rtol=2e-6, atol=2e-6)
        assert first[name][0].tobytes() == second[name][0].tobytes()
        assert (first[name][3], second[name][3]) == ((kind,) * 2 if name == "enough" else ("dense",) * 2)


# ------------------------------------------------------------------------------------------------ runs and the command


def test_the_command_gives_each_process_a_gpu(tmp_path, rng):
    X = rng.standard_normal((400, 3))
    np.savez(tmp_path / "points.npz", X=X, y=(X.sum(axis=1) > 0).astype(int))
    options = ["--data", "points.npz", "--device", "cuda", "--hidden", "8", "--epochs", "4", "--batch-size", "50"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"MPLBACKEND": "agg"}
    alone = [argument for argument in COMMAND if argument != "--distributed"]
    for name, command in (("one", alone), ("two", [MPIEXEC, "-n", "2", *COMMAND])):
        command = [*command, *options, "--quiet", "--out", name]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
        assert (done.returncode, done.stderr) == (0, "")
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    losses = [np.loadtxt(columns(each.path)[1:], delimiter=",") for each in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    models = [mx.MLP.load(each.model).theta for each in (one, two)]
    np.testing.assert_allclose(*models, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(*models)  # the sums were others
    found = json.loads(two.environment.read_text())
    assert (found["device"], found["gpu"]) == ("cuda", get_device("cuda").hardware())


def by_an_estimator(comm, X, y):
    """Return the scores of an estimator on a GPU of its own, and where its model is."""
    from mlp_xp.estimators import MLPClassifier

    device = "cuda:0" if comm is None else f"cuda:{Ranks(comm).local()}"
    mlp = MLPClassifier(8, device=device, max_iter=3, tol=0, n_iter_no_change=9, random_state=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlp.fit(X, y, comm=comm)
    return mlp.loss_curve_, device


def test_estimators_may_each_have_a_gpu():
    X, y = draw()
    X = X / 255
    want, _ = by_an_estimator(None, X, y)
    (first, *places), (second, *others) = on_ranks(2, by_an_estimator, X, y)
    assert first == second
    np.testing.assert_allclose(first, want, rtol=1e-9)
    assert places + others == ["cuda:0", "cuda:1"]


def test_cupy_says_why_there_is_no_nccl(monkeypatch):
    import cupy

    nccl.why_no_nccl.cache_clear()
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", None)  # to be put back
    monkeypatch.setattr(cupy.cuda, "nccl", None, raising=False)
    monkeypatch.setattr(cupy._environment, "_preload_library", mock.Mock(side_effect=ImportError("it is gone")))
    del sys.modules["cupy.cuda.nccl"], cupy.cuda.nccl
    assert re.search(r"\(it is gone\).* pip install .*nvidia-nccl-cu1\d", nccl.why_no_nccl())
    nccl.why_no_nccl.cache_clear()


@pytest.mark.parametrize(
    ("name", "number", "own"),
    [("cuda", 0, "cuda"), ("cuda", 1, "cuda:1"), ("cuda", 2, "cuda"), ("cuda:0", 1, "cuda:0"), ("cpu", 1, "cpu")],
)
@pytest.mark.usefixtures("emulated")
def test_each_process_of_a_machine_has_a_gpu(name, number, own):
    assert get_device(name).of_process(number).name == own
