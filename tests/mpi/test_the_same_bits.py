"""However many ranks share a training, its bits are those of one process, and each rank has all of them."""

from __future__ import annotations

import hashlib
import itertools
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from scipy import sparse

import mlp_xp as mx
from mlp_xp.engines import Ranks, compiled
from mlp_xp.engines.reduce import groups_of
from mlp_xp.rows.csr import CsrRows

from .. import compiled_cases as cases
from .launch import on_ranks

pytestmark = pytest.mark.needs("mpi")

SEVERAL = (2, 3, 4)
ADAM = mx.Adam(l2=0.1)
OPTIMIZERS = (
    mx.SGD(lr=0.1),
    mx.SGD(lr=0.1, lr_bias=0.2, momentum=0.5, l2=0.01),
    mx.SGD(lr=0.1, momentum=0.5, nesterov=True),
    ADAM,
    mx.AdamW(weight_decay=0.1),
)


def small_shares(shard=16):
    """Share small updates, too, and let full batches have several groups."""
    return mock.patch.multiple(compiled, SHARD=shard, _WORTH_SENDING=0)


def make(n, sizes=(40, 300, 10), device="cpu"):
    """Return a network, and data with a background."""
    rng = np.random.default_rng(n)
    X = np.where(rng.random((n, sizes[0])) < 0.4, rng.random((n, sizes[0])), 0.25).astype("f")
    return mx.MLP(sizes, "tanh", seed=1, device=device), X, rng.integers(0, sizes[-1], n)


def trained(comm, model, X, y, *, threads=1, epochs=2, **settings):
    """Return the engine's name, the number of states, and a digest of all that a training hands out."""
    digest, states, host = hashlib.sha256(), 0, model.device.to_host
    for state in mx.epochs(model, X, y, comm=comm, threads=threads, epochs=epochs, **settings):
        states += 1
        vectors = [model.theta, *(state.optimizer_state.values() if state.whole else ())]
        for vector in (*vectors, *([state.gradient] if state.whole else [])):
            digest.update(str(vector).encode() if isinstance(vector, int) else host(vector).tobytes())
        digest.update(np.float64(state.loss_sum).tobytes())
    return type(state.engine).__name__, states, digest.hexdigest()


def by_the_library(comm):
    """Train what the compiled library can, in all its ways."""
    found = {}
    with small_shares():
        for seed, plan in itertools.product(range(24), ("dense", "sparse")):
            case = cases.draw(seed, ("float32", "float64")[seed % 2])
            weights = np.random.default_rng(seed).random(len(case.X)) + 0.1 if seed % 3 == 0 else None
            settings = {
                "optimizer": case.optimizer, "batch_size": case.batch_size, "weights": weights, "plan": plan,
                "dropout": case.dropout,
            }  # fmt: skip
            found[seed, plan] = trained(comm, case.model(), case.X, case.y, threads=1 + seed % 2, **settings)
        for way in itertools.product(OPTIMIZERS, (None, 33, 150, 260), ("dense", "sparse"), (1, 2)):
            settings = dict(zip(("optimizer", "batch_size", "plan", "threads"), way, strict=True))
            found[way] = trained(comm, *make(260), **settings)
        for n, batch_size in itertools.product((1, 2, 17), (None, 1, 7)):  # fewer parts and groups than ranks
            found[n, batch_size] = trained(comm, *make(n, (3, 4, 2)), optimizer=ADAM, batch_size=batch_size)
    return found


def by_libraries_of_arrays(comm, device):
    """Train by the engines that call NumPy, PyTorch and so on."""
    found = {}
    for plan, n, batch_size in itertools.product(("dense", "zero", "ragged"), (1, 700, 5000), (None, 64)):
        if plan != "dense" and device != "cpu":
            continue
        data = make(n, (12, 5, 3), device)
        with mock.patch.object(data[0].device, "shard_rows", 300):
            settings = {"optimizer": ADAM, "batch_size": batch_size, "plan": plan, "threads": 1 + n % 3}
            found[plan, n, batch_size] = trained(comm, *data, **settings)
            found[plan, n, batch_size, "dropout"] = trained(comm, *make(n, (12, 5, 3), device), **settings, dropout=0.4)
    return found


def same(ranks, function, *arguments):
    """Assert that all ranks have what one process without MPI has; return that."""
    want = function(None, *arguments)
    for rank, got in enumerate(on_ranks(ranks, function, *arguments)):
        assert {name for name in want if got[name] != want[name]} == set(), f"rank {rank} of {ranks}"
    return want


@pytest.mark.needs("compiled")
@pytest.mark.parametrize("ranks", SEVERAL)
def test_the_library_computes_the_same(ranks):
    assert {engine for engine, *_ in same(ranks, by_the_library).values()} == {"CompiledEngine"}


@pytest.mark.usefixtures("numpy_engine")
@pytest.mark.parametrize("ranks", SEVERAL)
def test_numpy_computes_the_same(ranks):
    assert {engine for engine, *_ in same(ranks, by_libraries_of_arrays, "cpu").values()} == {"ThreadEngine"}


@pytest.mark.parametrize("device", ["strict", "torch"])
def test_other_libraries_compute_the_same(device):
    same(2, by_libraries_of_arrays, device)


# --------------------------------------------------------------------------------------------- who reads and sends what


class Source:
    """Rows by slices, and how many were read."""

    def __init__(self, X):
        self.X, self.shape, self.dtype, self.read = X, X.shape, X.dtype, 0

    def __getitem__(self, rows):
        self.read += len(self.X[rows])
        return self.X[rows]


def from_everywhere(comm):
    """Train on rows in memory, in blocks, and without their zeros."""
    found = {}
    with small_shares(64):
        for batch_size, n in itertools.product((None, 300), (63, 5000)):
            model, X, y = make(n, (60, 50, 10))
            kinds = {"memory": X, "blocks": Source(X), "CSR": CsrRows(sparse.csr_array(X), "float32")}
            for kind, rows in kinds.items():
                model = mx.MLP(model.sizes, seed=1)
                settings = {"optimizer": ADAM, "batch_size": batch_size, "dropout": 0.3}
                found[kind, batch_size, n] = trained(comm, model, rows, y, **settings)
    return found


@pytest.mark.needs("compiled")
def test_rows_may_be_anywhere():
    same(3, from_everywhere)


def rows_read(comm):
    """Return how many rows of a file are read for an epoch of a full batch, or of all but the first."""
    model, X, y = make(5000)
    source = Source(X)
    with small_shares(64), mock.patch.object(model.device, "shard_rows", 64):
        states = mx.epochs(model, source, y, comm=comm, plan="dense")
        next(states)
        source.read = 0
        next(states)
        states.close()
    return source.read


@pytest.mark.parametrize("engine", [pytest.param("compiled", marks=pytest.mark.needs("compiled")), "NumPy"])
def test_a_rank_reads_its_own_rows_of_a_full_batch(engine, request):
    if engine == "NumPy":
        request.getfixturevalue("numpy_engine")
    assert rows_read(None) == 5000
    read = on_ranks(4, rows_read)
    assert sum(read) == 5000
    assert max(read) < 1400


def pauses_at_random(rng):
    return rng.random() < 0.3


def pausing(comm):
    """Pause where any rank wants to, after updates and after rounds, though each one works at its own pace."""
    found, rank = {}, comm.rank if comm else 0
    for longest, batch_size in itertools.product((0, 10), (None, 10)):
        pause = partial(pauses_at_random, np.random.default_rng(rank))
        with small_shares(4), mock.patch.multiple(compiled, _PIECE=longest * rank, _UNASKED=longest * rank):
            settings = {"optimizer": ADAM, "batch_size": batch_size, "pause": pause}
            found[longest, batch_size] = trained(comm, *make(200), **settings)
    return found


@pytest.mark.needs("compiled")
def test_ranks_pause_together():
    first, *others = on_ranks(3, pausing)
    assert all(other == first for other in others)
    assert min(states for _, states, _ in first.values()) > 2


def sums(comm):
    """Return the sums of losses and gradients over all rows that an engine computes."""
    found = {}
    for batch_size in (None, 50):
        model, X, y = make(5000, (12, 5, 3))
        with mock.patch.object(model.device, "shard_rows", 300):
            state = next(mx.epochs(model, X, y, comm=comm, batch_size=batch_size))
            total = state.engine.grad_sum(model.theta)
        found[batch_size] = float(total.loss), total.rows, total.grad.tobytes()
    return found


def test_the_gradient_of_all_rows_is_shared_too():
    same(3, sums)


def only_one(comm):
    """Return whether anything is prepared to be sent, and what is trained."""
    with small_shares():
        return {"it": trained(comm, *make(260), optimizer=ADAM)}


@pytest.mark.needs("compiled")
def test_one_rank_sends_nothing():
    with mock.patch.dict("sys.modules", {"mpi4py": None}):
        same(1, only_one)


def test_groups_are_at_least_as_many_as_ranks():
    assert [groups_of(100, SimpleNamespace(size=size)) for size in (1, 16, 20, 200)] == [16, 16, 20, 100]
    assert groups_of(100) == 16
    assert groups_of(3, SimpleNamespace(size=20)) == 3


# ------------------------------------------------------------------------------------------------------- communicators


def train_often(comm):
    """Train more often than there can be communicators, with one that lives and with those that are freed."""
    data = make(20)
    for _ in range(2200):
        next(mx.epochs(*data, comm=comm))
        other = comm.Dup()
        Ranks(other)
        other.Free()
    return Ranks(comm).comm.handle == Ranks(comm).comm.handle != comm.handle


def test_trainings_do_not_use_up_communicators():
    assert on_ranks(2, train_often) == [True, True]


def thread_counts(comm):
    return [Ranks(comm).threads(cores) for cores in (1, 5, 16)]


def test_ranks_of_a_machine_share_its_cores():
    assert on_ranks(2, thread_counts) == [[1, 2, 8]] * 2


def interrupted(comm):
    """Return what comes of a message that fails, how many were sent, and whether one can train again."""
    from mpi4py import MPI

    calls = itertools.count(1)
    start = MPI.Prequest.Startall

    def fail(requests):
        if next(calls) == 3:
            raise KeyboardInterrupt("the third")
        start(requests)

    model, X, y = make(260)
    before = model.theta.copy()
    failing = type("Failing", (MPI.Prequest,), {"Startall": staticmethod(fail)})
    with small_shares(), mock.patch.object(MPI, "Prequest", failing):
        try:
            trained(comm, model, X, y, batch_size=130)
        except KeyboardInterrupt as error:
            told = str(error), next(calls), np.array_equal(model.theta, before)
    return told, only_one(comm)


@pytest.mark.needs("compiled")
def test_what_interrupts_a_message_is_raised_and_nothing_is_sent_after_it():
    want = ("the third", 4, True), only_one(None)
    assert on_ranks(2, interrupted) == [want, want]


@pytest.mark.parametrize("comm", [1, "world", object()])
def test_what_is_no_communicator_is_refused(comm):
    with pytest.raises(ValueError, match=r"comm must be a communicator of mpi4py, such as MPI.COMM_WORLD, got "):
        Ranks(comm)
