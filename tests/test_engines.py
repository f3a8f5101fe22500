"""However rows and columns are cut, stored and spread over threads, the sums stay the same."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import pairwise

import array_api_compat as compat
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from threadpoolctl import threadpool_info

import mlp_xp as mx
from mlp_xp.engines import Setup, choose_plan, make_engine
from mlp_xp.engines.host import HostEngine
from mlp_xp.engines.threads import Pace, ThreadEngine
from mlp_xp.kernels.cpu import blas
from mlp_xp.kernels.staircase import Cuts
from mlp_xp.optim import Optimizer
from mlp_xp.params import Parameters
from mlp_xp.rows.batches import FullBatch, RaggedMiniBatches, Shard, shards_by_need, shuffled_rows
from mlp_xp.rows.plan import make_plan
from mlp_xp.rows.source import InMemory

SPARSE = pytest.param("sparse", marks=pytest.mark.needs("compiled"))
STORED = ("dense", "zero", "ragged")  # what the NumPy engine has
KINDS = (*STORED, SPARSE)


def sparse_rows(rng, n, d, dtype=np.float64):
    """Draw rows that use few columns, the first ones more often, and one column that no row uses."""
    X = rng.random((n, d)) * (rng.random((n, d)) < np.linspace(0.5, 0, d) ** 2)
    X[:, d // 2] = 0
    return (255 * X).astype(np.uint8) if dtype == np.uint8 else X.astype(dtype)


def setup(model, X, y, kind="dense", threads=2, batch_size=None, optimizer=None):
    rows, optimizer = model.open(X), optimizer or mx.SGD()
    plan = choose_plan(rows, model, optimizer, kind, None, batch_size)
    targets = model.targets(y, rows.shape[0])
    return Setup(model, model.objective, optimizer, rows, targets, batch_size, plan, threads)


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, 40), max_size=6), seed=st.integers(0, 9))
def test_any_partition_of_rows_gives_the_same_sums(cuts, seed):
    rng = np.random.default_rng(seed)
    model = mx.MLP([5, 4, 3], "tanh", dtype="float64", seed=seed)
    X, y = rng.standard_normal((40, 5)), rng.integers(0, 3, 40).astype(np.int32)
    edges = [0, *sorted(cuts), 40]  # equal edges make empty shards
    shards = [Shard(X[i:j], y[i:j], range(i, j)) for i, j in pairwise(edges)]
    loss, gradient = model.loss_and_gradient(X, y)
    for kind in (HostEngine, ThreadEngine):
        with cut_as(kind, shards)(setup(model, X, y)) as engine:
            total = engine.grad_sum(model.theta)
        assert total.rows == 40
        assert_allclose(total.loss / 40, loss, rtol=1e-12)
        assert_allclose(model.layout.split(total.grad).W[1] / 40, gradient.weights[0], rtol=1e-10, atol=1e-13)


def cut_as(kind, shards):
    """Return an engine of a kind that cuts the rows as these shards."""
    return type("Cut", (kind,), {"_make_batches": lambda self, setup: FullBatch(shards)})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
@pytest.mark.parametrize("batch_size", [None, 300])
def test_every_plan_gives_the_same_gradient(kind, dtype, batch_size, rng):
    X, y = sparse_rows(rng, 2500, 30, dtype), rng.integers(0, 3, 2500).astype(np.int32)
    model = mx.MLP([30, 7, 3], dtype="float64")
    wanted, gradient = model.loss_and_gradient(X, y)
    for engine in (make_engine, HostEngine):  # the plain engine takes no plan but the dense one
        with engine(setup(model, X, y, kind if engine is make_engine else "dense", batch_size=batch_size)) as own:
            loss, n, grad = own.grad_sum(model.theta)
        assert n == 2500
        assert_allclose(loss / n, wanted, rtol=1e-12)
        assert_allclose(model.layout.split(grad).W[1] / n, gradient.weights[0], rtol=1e-10, atol=1e-14)
        assert_allclose(model.layout.split(grad).b[2] / n, gradient.biases[1], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("batch_size", [None, 300])
@pytest.mark.parametrize("kind", [*STORED[1:], SPARSE])
def test_every_plan_ends_at_the_same_parameters(kind, batch_size, rng):
    X, y = sparse_rows(rng, 2500, 30), rng.integers(0, 3, 2500)
    thetas = []
    for plan in ("dense", kind):
        model = mx.MLP([30, 7, 3], dtype="float64")
        mx.fit(model, X, y, epochs=3, optimizer=mx.Adam(lr=0.01, l2=0.01), plan=plan, batch_size=batch_size)
        thetas.append(model.theta)
    assert_allclose(thetas[1], thetas[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [None, 300])
def test_standardized_data_train_as_they_would_as_they_are(kind, batch_size, rng):
    X, y = sparse_rows(rng, 2500, 30), rng.integers(0, 3, 2500)
    X = (X - X.mean(axis=0)) / (X.std(axis=0) + 0.1)
    thetas = []
    for plan in ("dense", kind):
        model = mx.MLP([30, 7, 3], dtype="float64")
        optimizer = mx.SGD(lr=0.3, momentum=0.9)
        mx.fit(model, X, y, epochs=4, optimizer=optimizer, plan=plan, batch_size=batch_size)
        thetas.append(model.theta)
    assert_allclose(thetas[1], thetas[0], rtol=1e-9, atol=1e-12)


def test_standardized_data_keep_their_zeros(rng):
    X = sparse_rows(rng, 2500, 30)
    X[X != 0] += 1  # far from their mean: where a column's few values lie beside it, zeros are not worth the digits
    model = mx.MLP([30, 7, 3])
    plan = make_plan(InMemory(X), model.device)
    again = make_plan(InMemory((X - X.mean(axis=0)) / (X.std(axis=0) + 0.1)), model.device)
    assert again.kind == "ragged"
    assert again.mean_columns == plan.mean_columns < 25
    assert plan.background is None
    assert_allclose(again.background, -X.mean(axis=0) / (X.std(axis=0) + 0.1))


@pytest.mark.parametrize("n", [1, 7, 96, 128])
def test_cuts_cover_a_batch_and_share_its_work(n, mnist):
    train, _ = mnist
    extents = make_plan(InMemory(train.X), mx.devices.get_device("cpu"), "ragged").extents
    cuts = Cuts.of(extents, n)
    assert cuts.rows[0] == cuts.columns[0] == 0
    assert cuts.rows[-1] == n
    assert list(cuts.rows) == sorted(set(cuts.rows))
    assert list(cuts.columns) == sorted(set(cuts.columns))
    if n == 128:
        typical = -np.sort(-np.random.default_rng(0).choice(extents, (200, n)), axis=1)
        boxes = np.diff(cuts.rows) * typical.mean(axis=0)[list(cuts.rows[:-1])]
        assert len(boxes) == 4
        assert boxes.max() < 1.4 * boxes.mean()
        assert boxes.sum() < 0.75 * n * typical.mean(axis=0)[0]


def test_ragged_mini_batches_leave_products_out_and_lose_nothing(mnist):
    train, _ = mnist
    rows = InMemory(train.X)
    plan = make_plan(rows, mx.devices.get_device("cpu"), "ragged")
    batches = RaggedMiniBatches(rows, train.y, plan, lambda epoch: shuffled_rows(3, epoch, rows.shape[0]), 128)
    order = np.random.default_rng([3, 2]).permutation(60_000)
    seen = []
    for i, (shard,) in enumerate(batches(2)):
        X, rows = shard.X, np.sort(order[128 * i : 128 * (i + 1)])
        for (top, bottom), width in zip(pairwise(X.cuts.rows), X.widths, strict=True):
            assert not X.values[top:bottom, width:].any()
        for (left, right), height in zip(pairwise([*X.cuts.columns, X.shape[1]]), X.heights, strict=True):
            assert not X.values[height:, left:right].any()
        seen.append(len(shard.y))
        if i % 50 == 0:
            whole = np.zeros((len(rows), 784), np.uint8)
            whole[:, plan.columns[: X.shape[1]]] = X.values
            assert_array_equal(np.sort(whole.sum(axis=1)), np.sort(train.X[rows].sum(axis=1, dtype=np.int64)))
            assert_array_equal(np.sort(shard.y), np.sort(train.y[rows]))
    assert len(seen) == batches.updates == 469
    assert sum(seen) == 60_000


@pytest.mark.parametrize("library", ["compiled", "OpenBLAS", "unknown"])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_taken_in_the_backward_pass_are_steps(kind, library, mnist, monkeypatch, request):
    train, _ = mnist
    if (library == "compiled") != (kind == "sparse") and kind != "dense":
        pytest.skip("the engines have plans of their own")
    if library != "compiled":
        request.getfixturevalue("numpy_engine")
    if library == "unknown":
        monkeypatch.setattr(blas, "_numpy_blas", lambda: None)
    X, y = train.X[:1000], train.y[:1000]
    thetas = []
    for momentum in (0.0, 1e-300):  # so little momentum changes nothing but the way
        model = mx.MLP([784, 196, 10], dtype="float64")
        mx.fit(model, X, y, epochs=3, optimizer=mx.SGD(0.1, momentum=momentum), plan=kind, batch_size=128)
        thetas.append(model.theta)
    assert_allclose(thetas[1], thetas[0], rtol=1e-9, atol=1e-13)


@pytest.mark.usefixtures("cpu_engine")
def test_the_gradient_of_an_epoch_is_that_of_its_last_update(rng):
    X, y = rng.random((100, 6)), rng.integers(0, 3, 100)
    model = mx.MLP([6, 5, 3], dtype="float64")
    state = next(mx.epochs(model, X, y, optimizer=mx.SGD(lr=0.25), batch_size=32))
    rows = np.random.default_rng([model.seed, 1]).permutation(100)[96:]
    before = mx.MLP([6, 5, 3], dtype="float64")
    before.theta = model.theta + 0.25 * state.gradient
    _, gradient = before.loss_and_gradient(X[rows], y[rows])
    assert_allclose(model.layout.split(state.gradient).W[1], gradient.weights[0], rtol=1e-10, atol=1e-14)


def test_ragged_shards_hold_every_row_and_little_else(rng):
    X, y = sparse_rows(rng, 3000, 40), np.arange(3000)
    plan = make_plan(InMemory(X), mx.devices.get_device("cpu"), "ragged")
    shards = shards_by_need(InMemory(X), y, plan, 1024)
    widths = [shard.X.shape[1] for shard in shards]
    assert widths == sorted(widths, reverse=True)
    assert plan.mean_columns == np.average(widths, weights=[len(shard.X) for shard in shards]) < 35
    for shard in shards:
        whole = np.zeros((len(shard.X), 40))
        whole[:, plan.columns[: shard.X.shape[1]]] = shard.X
        assert_array_equal(whole, X[shard.y])
    assert_array_equal(np.sort(np.concatenate([shard.y for shard in shards])), y)


@pytest.mark.parametrize("kind", STORED)
def test_inward_and_outward_are_inverse(kind, rng):
    model = mx.MLP([30, 7, 3])
    plan = make_plan(InMemory(sparse_rows(rng, 500, 30)), model.device, kind)
    inward = plan.inward(model.theta, model)
    assert_array_equal(plan.outward(inward, model), model.theta)
    assert not np.shares_memory(inward, model.theta)
    assert (kind == "dense") == np.array_equal(inward, model.theta)


def test_auto_is_ragged_where_that_pays(rng):
    cpu, strict = (mx.devices.get_device(name) for name in ("cpu", "strict"))
    sparse, full = InMemory(sparse_rows(rng, 5000, 30)), InMemory(rng.random((5000, 30)) + 1)
    assert make_plan(sparse, cpu).kind == "ragged"
    assert make_plan(full, cpu).kind == "dense"
    assert make_plan(sparse, strict).kind == "dense"
    with pytest.raises(ValueError, match="plan 'ragged' is not available on device 'strict'; use plan='auto'"):
        make_plan(sparse, strict, "ragged")


@pytest.mark.parametrize("epochs", [7, 8])
def test_auto_sorts_for_eight_epochs_and_not_for_fewer(epochs, rng):
    rows = InMemory(sparse_rows(rng, 5000, 30))
    assert make_plan(rows, mx.devices.get_device("cpu"), epochs=epochs).kind == ("ragged" if epochs == 8 else "dense")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [None, 100])
def test_data_of_zeros(kind, batch_size):
    X, y = np.zeros((1500, 4), np.uint8), np.arange(1500) % 3
    model = mx.MLP([4, 3, 3])
    W = model.weights[0]
    mx.fit(model, X, y, epochs=2, plan=kind, batch_size=batch_size)
    assert_array_equal(model.weights[0], W)
    assert np.isfinite(model.theta).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [None, 128])
@pytest.mark.parametrize("rows", [3000, 600])
def test_same_bits_for_any_number_of_threads(kind, batch_size, rows, mnist):
    train, _ = mnist
    thetas, losses = [], []
    for threads in (1, 2, 3):
        model = mx.MLP([784, 196, 10])
        history = mx.fit(
            model, train.X[:rows], train.y[:rows], epochs=2, plan=kind, batch_size=batch_size, threads=threads
        )
        thetas.append(model.theta)
        losses.append(history.loss)
    assert_array_equal(thetas[1], thetas[0])
    assert_array_equal(thetas[2], thetas[0])
    assert losses[0] == losses[1] == losses[2]


def test_products_stay_on_one_thread_for_a_while_after_they_had_to_wait():
    pace = Pace(4)
    assert [pace.threads_after(seconds) for seconds in (5, 1, 2, 1)] == [4, 4, 4, 4]
    for updates_alone in (4, 8, 16):
        assert pace.threads_after(3.1) == 1
        assert [pace.threads_after(2) for _ in range(updates_alone)] == [1] * (updates_alone - 1) + [4]
    assert [pace.threads_after(1) for _ in range(100)] == [4] * 100
    assert [pace.threads_after(3.1), *(pace.threads_after(2) for _ in range(4))] == [1, 1, 1, 1, 4]
    assert pace.threads_after(0.5) == 4
    assert pace.threads_after(1.6) == 1


def test_products_that_always_have_to_wait_try_again_after_at_most_256_updates():
    pace, alone = Pace(4), []
    pace.threads_after(1)
    for _ in range(10):
        assert pace.threads_after(100) == 1
        alone.append(1 + next(i for i in itertools.count() if pace.threads_after(1) == 4))
    assert alone == [4, 8, 16, 32, 64, 128, 256, 256, 256, 256]


def test_changing_the_number_of_threads_changes_no_bit(mnist, monkeypatch):
    train, _ = mnist
    thetas, turns = [], itertools.cycle([2, 1, 1])
    for change in (False, True):
        if change:
            monkeypatch.setattr(Pace, "threads_after", lambda self, seconds: next(turns))
        model = mx.MLP([784, 196, 10])
        mx.fit(model, train.X[:2000], train.y[:2000], epochs=2, batch_size=128, plan="ragged", threads=2)
        thetas.append(model.theta)
    assert_array_equal(thetas[1], thetas[0])


@pytest.mark.usefixtures("numpy_engine")
@pytest.mark.parametrize("batch_size", [None, 128])
def test_a_failing_worker_leaves_everything_as_it_was(batch_size, monkeypatch, rng):
    X, y = rng.random((5000, 8)), rng.integers(0, 3, 5000)
    model = mx.MLP([8, 6, 3])
    before, limits = model.theta.copy(), [pool["num_threads"] for pool in threadpool_info()]
    calls = []

    def fail(self, *arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise MemoryError("no room for the sums")
        return self.xp.sum(arguments[0])

    monkeypatch.setattr("mlp_xp.kernels.cpu.numpy_.NumpyKernels.sum", fail)
    with pytest.raises(MemoryError, match="no room for the sums"):
        mx.fit(model, X, y, epochs=5, batch_size=batch_size, threads=2)
    assert len(calls) >= 4
    assert_array_equal(model.theta, before)
    assert [pool["num_threads"] for pool in threadpool_info()] == limits


@dataclass(frozen=True)
class Sign(Optimizer):
    """Steps of one length along the signs of the gradient, ever shorter: an optimizer that no engine knows."""

    def init(self, theta):
        return {"steps": 0, "last": theta * 0}

    def update(self, theta, grad, state, rate):
        steps = state["steps"] + 1
        step = compat.array_namespace(theta).sign(grad) * rate / steps
        return theta - step, {"steps": steps, "last": step}


class SignOfSGD(mx.SGD):
    """Steps of one length: an optimizer that inherits, and has an update of its own."""

    def update(self, theta, grad, state, rate):
        xp = compat.array_namespace(theta)
        return theta - rate * xp.sign(grad), state


@pytest.mark.parametrize("device", ["cpu", "strict", "torch", "jax"])
def test_an_optimizer_that_inherits_updates_by_its_own_text(device, rng):
    model = mx.MLP([6, 3], dtype="float64", device=device)
    begin = model.device.to_host(model.theta).copy()
    mx.fit(
        model, rng.standard_normal((50, 6)), rng.integers(0, 3, 50), epochs=1, batch_size=5, optimizer=SignOfSGD(0.5)
    )
    steps = (model.device.to_host(model.theta) - begin) / 0.5
    assert_allclose(steps, np.round(steps), atol=1e-9)


@pytest.mark.parametrize("batch_size", [None, 32])
@pytest.mark.parametrize("device", ["cpu", "torch", "jax", "cuda", "strict"])
def test_an_optimizer_of_your_own_trains_on_every_engine(device, batch_size, rng):
    X, y = rng.standard_normal((100, 4)), rng.integers(0, 2, 100)
    model = mx.MLP([4, 5, 2], "tanh", dtype="float64", device=device)
    theta, twin, wanted = model.theta, mx.MLP([4, 5, 2], "tanh", dtype="float64"), Sign(lr=0.1, l2=0.01, lr_bias=0.05)
    is_bias = twin.layout.is_bias().astype(float)
    state = wanted.init(twin.theta)
    for epoch in (1, 2):
        order = np.arange(100) if batch_size is None else shuffled_rows(0, epoch, 100)
        for i in range(0, 100, batch_size or 100):
            rows = order[i : i + (batch_size or 100)]
            _, gradient = twin.loss_and_gradient(X[rows], y[rows])
            flat = twin.layout.join(Parameters([None, *gradient.weights], [None, *gradient.biases]))
            flat += 0.01 * twin.theta * (1 - is_bias)
            theta, state = wanted.update(twin.theta, flat, state, 0.1 - 0.05 * is_bias)
            twin.theta = theta
    states = list(mx.epochs(model, X, y, optimizer=wanted, batch_size=batch_size, epochs=2))
    assert_allclose(model.device.to_host(model.theta), theta, rtol=1e-9, atol=1e-12)
    assert states[-1].optimizer_state["steps"] == (2 if batch_size is None else 8)
    again = mx.MLP([4, 5, 2], "tanh", dtype="float64", device=device)
    first = next(mx.epochs(again, X, y, optimizer=wanted, batch_size=batch_size)).snapshot()
    list(mx.epochs(again, X, y, optimizer=wanted, batch_size=batch_size, start=first, epochs=2))
    assert_array_equal(model.device.to_host(again.theta), model.device.to_host(model.theta))


@pytest.mark.usefixtures("cpu_engine")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_loss_of_an_epoch_of_many_updates_keeps_its_digits(dtype):
    X, y = np.zeros((20_000, 1), np.uint8), np.zeros(20_000)
    model = mx.MLP([1, 1], output="sigmoid", init="zeros", dtype=dtype)
    state = next(mx.epochs(model, X, y, batch_size=1, optimizer=mx.SGD(lr=1e-30)))
    assert state.loss.dtype == dtype
    assert abs(float(state.loss) / np.log(2) - 1) < (1e-7 if dtype == "float32" else 1e-12)


@pytest.mark.usefixtures("cpu_engine")
@pytest.mark.parametrize(("batch_size", "threads"), [(None, 1), (64, 1), (64, 4)])
def test_one_thread_is_the_callers_own(batch_size, threads, rng, monkeypatch):
    """All that a mini-batch needs: its products have threads of BLAS."""

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    X, y = rng.random((3000, 8)), rng.integers(0, 3, 3000)
    assert len(mx.fit(mx.MLP([8, 6, 3]), X, y, epochs=2, threads=threads, batch_size=batch_size)) == 2


@pytest.mark.usefixtures("cpu_engine", "single_updates")
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_trainings_that_overlap_leave_blas_its_threads(order, rng):
    X, y = rng.random((500, 8)), rng.integers(0, 3, 500)
    before = [pool["num_threads"] for pool in threadpool_info()]
    runs = [mx.epochs(mx.MLP([8, 6, 3]), X, y, batch_size=64, pause=lambda: True) for _ in range(2)]
    for run in runs:
        next(run)  # in the middle of an epoch
    for i in order:
        runs[i].close()
    assert [pool["num_threads"] for pool in threadpool_info()] == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theta": np.zeros(5)}, r"start has theta of shape \(5,\), and the model has 27 parameters"),
        ({"theta": np.zeros(27, np.float32)}, "start has theta of float32, and the model computes in float64"),
        ({"theta": np.full(27, np.nan)}, "start has theta with values that are NaN or infinite"),
        ({"optimizer": {}}, "start has an optimizer that keeps nothing, and Adam keeps mean, square, updates"),
        ({"optimizer": {"velocity": np.zeros(27)}}, "start has an optimizer that keeps velocity"),
    ],
)
def test_a_snapshot_of_another_run_is_refused(change, message, rng):
    X, y = rng.random((20, 4)), rng.integers(0, 2, 20)
    model = mx.MLP([4, 3, 3], dtype="float64")
    snapshot = next(mx.epochs(model, X, y, optimizer=mx.Adam())).snapshot()
    before = model.theta
    with pytest.raises(ValueError, match=message):
        mx.epochs(model, X, y, optimizer=mx.Adam(), start=replace(snapshot, **change))
    assert model.theta is before


PEAK = """
import sys
import mlp_xp as mx
train, _ = mx.datasets.mnist()
model = mx.MLP([784, 196, 10])
mx.fit(model, train.X[:64], train.y[:64], epochs=1)
status = lambda key: int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1])
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = status("VmRSS")
mx.fit(model, train.X, train.y, epochs=2, plan=sys.argv[1])
print((status("VmHWM") - before) / 1000)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the resident set from Linux's /proc")
@pytest.mark.usefixtures("cpu_engine")
@pytest.mark.parametrize("kind", ["auto", "dense", "ragged"])
def test_memory_of_a_full_batch(kind):
    # not getrusage: its peak begins with that of the process that started this one
    done = subprocess.run([sys.executable, "-c", PEAK, kind], capture_output=True, text=True, check=True)
    assert 1 < float(done.stdout) <= 150
