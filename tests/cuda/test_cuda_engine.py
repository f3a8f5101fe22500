"""Training on a GPU, by the loop that people use, against training in NumPy."""

from __future__ import annotations

import gc
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import mlp_xp as mx
from mlp_xp.devices import PRECISIONS, CupyDevice
from mlp_xp.engines import Setup
from mlp_xp.engines.cuda.clock import Clock
from mlp_xp.engines.cuda.engine import CudaEngine
from mlp_xp.engines.cuda.memory import _attempts, make_cuda_engine
from mlp_xp.engines.cuda.streamed import Streamed
from mlp_xp.kernels.cuda import products as cuda_products
from mlp_xp.kernels.cuda.cublas import CuBLAS
from mlp_xp.kernels.cuda.graph import _no_collection
from mlp_xp.kernels.cuda.operations import CudaKernels
from mlp_xp.optim import Optimizer
from mlp_xp.params import Parameters
from mlp_xp.rows.batches import shuffled_rows
from mlp_xp.rows.plan import make_plan
from mlp_xp.runs.report import environment

from ..test_recipes import follow_recipes

pytestmark = pytest.mark.gpu

N, EPOCHS = 100, 4
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}

OPTIMIZERS = [
    mx.SGD(lr=0.5),
    mx.SGD(lr=0.5, l2=0.01, lr_bias=0.1),
    mx.SGD(lr=0.2, momentum=0.9),
    mx.SGD(lr=0.2, momentum=0.9, nesterov=True, l2=0.01),
    mx.Adam(lr=0.01, l2=0.01),
    mx.AdamW(lr=mx.optim.ExponentialDecay(0.01, factor=0.5), weight_decay=0.1, lr_bias=0.02),
]


def ragged_rows(rng: np.random.Generator, n: int, d: int) -> np.ndarray[Any, Any]:
    """Return bytes (n, d) with zeros, in some rows many of them and at odd places."""
    X = rng.integers(1, 256, (n, d)).astype(np.uint8)
    X[rng.permutation(d) >= rng.integers(0, d - 3, n)[:, None]] = 0
    return X


class Run:
    """The same training by NumPy and on a GPU."""

    def __init__(
        self, rng: Any, targets: Any, *, sizes: tuple[int, ...] = (20, 12, 3), activation: str = "tanh",
        output: str = "softmax", dtype: str = "float32", precision: str | None = None, X: Any = None,
        optimizer: Any = OPTIMIZERS[0], batch_size: int | None = None, plan: str = "dense", here: bool = False,
        y: Any = None,
    ) -> None:  # fmt: skip
        self.X = rng.integers(0, 256, (N, sizes[0])).astype(np.uint8) if X is None else X
        self.y = targets(output, N, sizes[-1]) if y is None else y
        self.want, self.got = (
            mx.MLP(list(sizes), activation, output, dtype=dtype, seed=1, device=device, precision=own)
            for device, own in (("cpu", None), ("cuda", precision))
        )
        self.dtype = dtype
        self.arguments: dict[str, Any] = {"optimizer": optimizer, "batch_size": batch_size}
        self.reference = mx.epochs(self.want, self.X, self.y, plan="dense", **self.arguments)
        X = self.got.device.asarray(self.X) if here else self.X
        self.states = mx.epochs(self.got, X, self.y, plan=plan, **self.arguments)

    @property
    def engine(self) -> CudaEngine:
        """What the loop runs."""
        return self.states.gi_frame.f_locals["engine"]

    @property
    def graphs(self) -> list[Any]:
        """The graphs that were captured so far."""
        return [graph for graph in self.engine._graphs._graphs.values() if graph is not None]

    def train(self) -> None:
        """Train one epoch."""
        self.state = next(self.states)

    def check(self, tolerance: float | None = None) -> None:
        """Assert that all is as it is after NumPy's next epoch."""
        want, tolerance = next(self.reference), tolerance or TOLERANCE[self.dtype]
        got = self.state
        assert (got.epoch, got.whole, got.updates, got.rows, got.lr) == (
            want.epoch, want.whole, want.updates, want.rows, want.lr
        )  # fmt: skip
        assert float(got.loss) == pytest.approx(float(want.loss), rel=tolerance)
        assert got.optimizer_state.keys() == want.optimizer_state.keys()
        vectors = [(self.got.theta, self.want.theta), (self.outward(got.gradient), want.gradient)]
        vectors += [(self.outward(got.optimizer_state[name]), value) for name, value in want.optimizer_state.items()]
        for a, b in vectors:
            np.testing.assert_allclose(a.get() if hasattr(a, "get") else a, b, rtol=0, atol=tolerance)
            assert getattr(a, "dtype", None) == getattr(b, "dtype", None)

    def outward(self, value: Any) -> Any:
        return self.state.plan.outward(value, self.got) if hasattr(value, "shape") else value


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Return the list of what the host launches, or has captured: kernels with their blocks, products with sizes."""
    found: list[tuple[Any, ...]] = []
    launch, gemm = CudaKernels.launch, CuBLAS.gemm

    def launch_and_note(self: Any, kernel: Any, grid: int, *arguments: Any) -> None:
        found.append((kernel.name, grid, *(int(x) for x in arguments if isinstance(x, np.integer))))
        launch(self, kernel, grid, *arguments)

    def multiply_and_note(self: Any, A: Any, B: Any, C: Any, *more: Any, **scalars: Any) -> None:
        found.append(("gemm", *A.shape, B.shape[1]))
        gemm(self, A, B, C, *more, **scalars)

    monkeypatch.setattr(CudaKernels, "launch", launch_and_note)
    monkeypatch.setattr(CuBLAS, "gemm", multiply_and_note)
    return found


@pytest.mark.parametrize("batch_size", [None, 32])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_epochs_equal_numpys(dtype: str, optimizer: Any, batch_size: int | None, rng, targets) -> None:
    run = Run(rng, targets, dtype=dtype, optimizer=optimizer, batch_size=batch_size)
    for epoch in range(EPOCHS):
        run.train()
        run.check()
        assert len(run.graphs) == (epoch > 0)
    assert 0 < float(run.state.seconds) < 60


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch_size", [None, 32])
def test_each_precision_is_captured_and_trains_as_numpy_does(
    batch_size: int | None, precision: str, rng, targets, caplog
) -> None:
    """TF32 and bfloat16 have errors of 2^-11 and 2^-8 in each factor, and losses that are off by less."""
    run = Run(
        rng, targets, sizes=(50, 12, 3), dtype=PRECISIONS[precision], precision=precision, batch_size=batch_size,
        optimizer=mx.AdamW(lr=0.01),
    )  # fmt: skip
    close = {"tf32": 2e-3, "bf16": 2e-2, "fp64": 1e-12}.get(precision, 1e-5)
    for _ in range(EPOCHS):
        run.train()
        assert float(run.state.loss) == pytest.approx(float(next(run.reference).loss), rel=close)
    assert not caplog.records
    assert len(run.graphs) == 1


@dataclass(frozen=True)
class Rooted(Optimizer):
    """Steps along the root of the gradient, ever shorter: an optimizer that no kernel knows."""

    def init(self, theta: Any) -> Any:
        return {"steps": 0, "last": theta * 0}

    def update(self, theta: Any, grad: Any, state: Any, rate: Any) -> Any:
        step = rate * grad / (1 + grad * grad) / (state["steps"] + 1)
        return theta - step, {"steps": state["steps"] + 1, "last": step}


@pytest.mark.parametrize("batch_size", [None, 32])
def test_an_optimizer_that_no_kernel_knows(batch_size: int | None, rng, targets, caplog) -> None:
    """It updates by its own rule, each step launched by the host."""
    optimizer = Rooted(lr=0.5, l2=0.01, lr_bias=0.1)
    run = Run(rng, targets, dtype="float64", optimizer=optimizer, batch_size=batch_size)
    for _ in range(EPOCHS):
        run.train()
        run.check()
    assert not run.graphs
    assert not caplog.records


@pytest.mark.parametrize("output", mx.OUTPUTS)
@pytest.mark.parametrize("sizes", [(20, 3), (20, 12, 3), (9, 7, 5, 2)], ids=str)
def test_other_networks(sizes: tuple[int, ...], output: str, rng, targets) -> None:
    run = Run(rng, targets, sizes=sizes, output=output, dtype="float64", batch_size=40, optimizer=mx.SGD(lr=0.05))
    for _ in range(EPOCHS):
        run.train()
        run.check()


@pytest.mark.parametrize("sizes", [(20, 12, 3), (20, 12, 8, 3)], ids=["head", "text"])
@pytest.mark.parametrize("batch_size", [None, 70])
def test_batches_of_several_shards(batch_size: int | None, sizes: Any, rng, targets, monkeypatch) -> None:
    monkeypatch.setattr(CupyDevice, "shard_rows", 32)
    run = Run(rng, targets, sizes=sizes, batch_size=batch_size, optimizer=OPTIMIZERS[1])
    for _ in range(EPOCHS):
        run.train()
        run.check()


@pytest.mark.parametrize("shard_rows", [32, 64])
def test_batches_of_two_sizes_need_no_more_room_than_the_larger(shard_rows: int, rng, targets, monkeypatch) -> None:
    monkeypatch.setattr(CupyDevice, "shard_rows", shard_rows)
    monkeypatch.setattr("mlp_xp.kernels.cuda.capturable.PENALTY_BLOCKS", 0)  # no room to spare
    run = Run(rng, targets, sizes=(20, 12, 8, 3), batch_size=60)
    for _ in range(EPOCHS):
        run.train()
        run.check()


@pytest.mark.parametrize("here", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("batch_size", [None, 32])
def test_numbers_as_input(batch_size: int | None, here: bool, rng, targets) -> None:
    X = rng.standard_normal((N, 20)).astype(np.float32)
    run = Run(rng, targets, X=X, batch_size=batch_size, here=here)
    for _ in range(EPOCHS):
        run.train()
        run.check()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("batch_size", [None, 32])
def test_a_part_of_an_array_on_the_device(batch_size: int | None, dtype: str, rng, targets) -> None:
    """Kernels read whole rows, one after another; this one's lie apart, and begin on no boundary."""
    array, part = rng.integers(0, 3, (N + 1, 25)).astype(dtype), np.s_[1:, 3:23]
    run = Run(rng, targets, X=array[part], batch_size=batch_size)
    there = run.got.device.asarray(array)[part]
    run.states = mx.epochs(run.got, there, run.y, plan="dense", **run.arguments)
    for _ in range(EPOCHS):
        run.train()
        run.check()


@pytest.mark.parametrize("batch_size", [None, 32])
def test_rows_and_targets_that_were_opened_on_the_device(batch_size: int | None, rng, targets) -> None:
    run = Run(rng, targets, batch_size=batch_size)
    rows, y = run.got.open(run.got.device.asarray(run.X)), run.got.device.asarray(run.y)
    assert rows.home is run.got.device
    run.states = mx.epochs(run.got, rows, y, **run.arguments)
    for _ in range(EPOCHS):
        run.train()
        run.check()
    np.testing.assert_array_equal(run.got.outputs(rows), run.got.outputs(run.X))


@pytest.mark.parametrize("batch_size", [None, 32])
@pytest.mark.parametrize("sizes", [(20, 12, 3), (20, 12, 8, 3)], ids=["head", "text"])
def test_pairs_of_halves_are_as_exact_as_float32(sizes: Any, batch_size: int | None, work, rng, targets) -> None:
    run = Run(rng, targets, sizes=sizes, precision="fp16x2", batch_size=batch_size)
    for epoch in range(EPOCHS):
        work.clear()
        run.train()
        run.check()
        if epoch == 0:
            kernels = [entry[0] for entry in work if entry[0] not in ("gather", "gemm")]
            head = ["split_matrix", "fused_head", "join_products", "sgd", "tick"]
            assert kernels[:5] == head if len(sizes) == 3 else kernels[:2] == ["split_matrix", "join_products"]


PLANS = [
    ("ragged", None, 64),
    ("ragged", None, 65_536),
    ("zero", None, 65_536),
    ("zero", 32, 64),
    ("ragged", 32, 65_536),
]


@pytest.mark.parametrize("precision", [None, "fp16x2"])
@pytest.mark.parametrize("sizes", [(50, 12, 3), (50, 12, 8, 3), (50, 3)], ids=["head", "text", "linear"])
@pytest.mark.parametrize(("plan", "batch_size", "shard_rows"), PLANS)
def test_plans_train_the_same(
    plan: str, batch_size: int | None, shard_rows: int, sizes: Any, precision: str | None, rng, targets, monkeypatch
) -> None:
    monkeypatch.setattr(CupyDevice, "block_rows", 16)
    monkeypatch.setattr(CupyDevice, "shard_rows", shard_rows)
    options = {"optimizer": mx.Adam(lr=0.01, l2=0.01), "batch_size": batch_size, "precision": precision}
    run = Run(rng, targets, sizes=sizes, X=ragged_rows(rng, N, 50), plan=plan, **options)
    assert run.engine.plan.kind == plan
    for _ in range(3):
        run.train()
        run.check()
    assert len(run.graphs) == 1


@pytest.mark.parametrize("batch_size", [None, 32])
@pytest.mark.parametrize("plan", ["zero", "ragged"])
def test_plans_of_data_on_the_device(plan: str, batch_size: int | None, rng, targets) -> None:
    run = Run(rng, targets, sizes=(50, 3), X=ragged_rows(rng, N, 50), plan=plan, batch_size=batch_size, here=True)
    run.train()
    run.check()


def test_a_ragged_plan_leaves_out_products(work, rng, targets, monkeypatch) -> None:
    monkeypatch.setattr(CupyDevice, "block_rows", 16)
    run = Run(rng, targets, sizes=(50, 12, 3), X=ragged_rows(rng, N, 50), plan="ragged")
    work.clear()
    run.train()
    gemms = [tuple(sizes) for name, *sizes in work if name == "gemm"]
    forward, back = gemms[: len(gemms) // 2], gemms[len(gemms) // 2 :]
    widths = [width for _, width, _ in forward]
    assert [n for n, _, _ in forward] == [16] * 6 + [4]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == 16
    assert back == [(width, n, 12) for n, width, _ in forward]


def test_plan_on_a_gpu_is_chosen_by_what_it_repays(rng, monkeypatch) -> None:
    monkeypatch.setattr(CupyDevice, "block_rows", 16)
    model = mx.MLP([50, 3], device="cuda")
    X = ragged_rows(rng, N, 50)
    for data in (X, model.device.asarray(X)):
        rows = model.open(data)
        assert make_plan(rows, model.device).kind == "ragged"
        assert make_plan(rows, model.device, epochs=100).kind == "dense"
        assert make_plan(rows, model.device, batch_size=32).kind == "dense"
    assert make_plan(model.open(X | 1), model.device).kind == "dense"


# ----------------------------------------------------------------------------------------------------------------------
# What the host does, and when


@pytest.mark.parametrize("batch_size", [None, 32])
def test_steps_are_few_and_the_same_each_time(batch_size: int | None, work, rng, targets) -> None:
    run = Run(rng, targets, batch_size=batch_size)
    work.clear()
    run.train()
    first = list(work)
    gather = [] if batch_size is None else ["gather"]
    steps = 1 if batch_size is None else 4
    assert [entry[0] for entry in first] == [*gather, "gemm", "fused_head", "gemm", "sgd", "tick"] * steps
    work.clear()
    run.train()
    assert work == first  # captured
    work.clear()
    run.train()
    assert work == []
    assert len(run.graphs) == 1


@pytest.mark.parametrize("batch_size", [None, 32])
def test_an_epoch_is_one_graph_and_the_host_waits_for_nothing(batch_size: int | None, emulated, rng, targets) -> None:
    run = Run(rng, targets, batch_size=batch_size)
    for _ in range(3):
        run.train()
    before = emulated.counts()
    run.train()
    asked = emulated.counts() - before
    assert (asked.graphs, asked.products) == (1, 0)
    assert asked.launches == 2  # copies of theta and of the sum of losses, which are handed out
    assert asked.copies == (batch_size is not None)  # the order of the rows
    assert (asked.waits, asked.captures, asked.compilations, asked.allocations) == (0, 0, 0, 0)


def test_long_epochs_are_cut_into_graphs_that_serve_again(work, rng, targets, monkeypatch) -> None:
    monkeypatch.setattr("mlp_xp.engines.cuda.engine._MOST_STEPS", 3)
    run = Run(rng, targets, batch_size=12)  # 8 whole batches and one of 4 rows
    updates = []
    for _ in range(EPOCHS):
        work.clear()
        run.train()
        run.check()
        updates.append([entry[0] for entry in work].count("tick"))
    assert updates == [3 + 3 + 3, 3, 0, 0]  # the first graph is captured, and serves again, in the first epoch already
    assert [len(sizes) for sizes in run.engine._graphs._graphs] == [3, 3]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("optimizer", [mx.Adam(lr=0.01), mx.SGD(lr=0.2, momentum=0.9)], ids=str)
def test_resuming_in_the_middle_of_an_epoch_is_going_on(
    optimizer: Any, streamed: bool, rng, targets, monkeypatch
) -> None:
    """Bit for bit, and whichever update it stopped after."""
    monkeypatch.setattr("mlp_xp.engines.cuda.engine._MOST_STEPS", 3)
    if streamed:
        leave_on_host(monkeypatch)
    options: dict[str, Any] = {"optimizer": optimizer, "batch_size": 12}
    run = Run(rng, targets, **options)
    for _ in range(3):
        run.train()
    want = run.got.theta.get().tobytes(), float(run.state.loss)
    for pause_at in (3, 6):
        snapshot = replace(paused(run, pause_at, options), seconds=1000.0)
        for device in ("cuda", "cpu"):
            model = mx.MLP([20, 12, 3], "tanh", seed=1, device=device)
            states = list(mx.epochs(model, run.X, run.y, start=snapshot, epochs=3, **options))
            assert [state.updates for state in states] == [9, 9]
            assert [float(state.seconds) > 1000 for state in states] == [True, False]
            if device == "cuda":
                assert (model.theta.get().tobytes(), float(states[-1].loss)) == want
            else:
                np.testing.assert_allclose(model.theta, np.frombuffer(want[0], np.float32), rtol=0, atol=1e-5)


def paused(run: Run, updates: int, options: dict[str, Any]) -> mx.Snapshot:
    """Return a snapshot of the same training after so many updates of its second epoch."""
    model = mx.MLP([20, 12, 3], "tanh", seed=1, device="cuda")
    asked: list[int] = []  # at each update but an epoch's last: three at a time, so twice an epoch

    def pause() -> bool:
        asked.append(1)
        return len(asked) == 2 + updates // 3

    for state in mx.epochs(model, run.X, run.y, pause=pause, **options):
        if not state.whole:
            assert (state.epoch, state.updates, state.rows) == (2, updates, 12 * updates)
            return state.snapshot()
    raise AssertionError


def test_seconds_are_those_of_one_epoch_without_pauses_and_callbacks(rng, targets, monkeypatch) -> None:
    monkeypatch.setattr("mlp_xp.engines.cuda.engine._MOST_STEPS", 3)
    run, seconds, slow = Run(rng, targets), [], 0.3
    for state in mx.epochs(run.got, run.X, run.y, batch_size=12, epochs=3, pause=lambda: True):
        if state.whole:
            seconds.append(float(state.seconds))
        if (state.epoch, state.updates) in ((1, 9), (2, 6)):
            run.got.device.synchronize()
            time.sleep(slow)
    assert all(0 < time < slow for time in seconds[1:])  # the first epoch may have compiled


def test_seconds_add_up_what_lies_between_pauses(rng, targets, monkeypatch) -> None:
    monkeypatch.setattr("mlp_xp.engines.cuda.engine._MOST_STEPS", 3)
    events, record = [], Clock._event
    monkeypatch.setattr(Clock, "_event", lambda clock: events.append(event := record(clock)) or event)
    run = Run(rng, targets)
    states = list(mx.epochs(run.got, run.X, run.y, batch_size=12, epochs=1, pause=lambda: True))
    assert [state.updates for state in states] == [3, 6, 9]
    run.got.device.synchronize()
    laps = [run.got.device.xp.cuda.get_elapsed_time(*events[i : i + 2]) / 1000 for i in range(0, 6, 2)]
    assert [float(state.seconds) for state in states] == pytest.approx([sum(laps[: i + 1]) for i in range(3)])
    assert len(events) == 6


# ----------------------------------------------------------------------------------------------------------------------
# Data that stay on the host


def leave_on_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all data streamed, in chunks of 32 rows."""
    monkeypatch.setattr("mlp_xp.engines.cuda.memory._attempts", lambda shard_rows, size, on_host: iter([(True, 32)]))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("batch_size", [None, 7, 16, 32, 70])
@pytest.mark.parametrize("output", ["softmax", "identity"])
def test_data_that_stay_on_the_host(output: str, batch_size: int | None, dtype: str, rng, targets, monkeypatch) -> None:
    """Copies are ordered after what reads the same memory, and work after the copies that it reads."""
    leave_on_host(monkeypatch)
    X, y = rng.integers(0, 256, (3 * N, 20)).astype(np.uint8), targets(output, 3 * N, 3)  # each place is used often
    X = X if dtype == "uint8" else (X / np.float32(255)).astype(np.float32)
    run = Run(rng, targets, output=output, X=X, y=y, batch_size=batch_size, optimizer=mx.SGD(lr=0.01, momentum=0.9))
    assert "host" in run.engine.plan.reason
    for _ in range(EPOCHS):
        run.train()
        run.check()
    assert not run.graphs


@pytest.mark.parametrize("batch_size", [None, 16, 70])
def test_streamed_data_give_the_same_bits(batch_size: int | None, rng, targets, monkeypatch) -> None:
    monkeypatch.setattr(CupyDevice, "shard_rows", 32)
    X, y, bits = rng.integers(0, 256, (N, 20)).astype(np.uint8), targets("softmax", N, 3), []
    for streamed in (False, True):
        if streamed:
            leave_on_host(monkeypatch)
        run = Run(rng, targets, X=X, y=y, batch_size=batch_size)
        for _ in range(3):
            run.train()
        bits.append((run.got.theta.get().tobytes(), float(run.state.loss)))
    assert bits[0] == bits[1]


@pytest.mark.parametrize("plan", ["dense", "ragged"])
@pytest.mark.parametrize("batch_size", [None, 32])
def test_training_again_gives_the_same_bits(batch_size: int | None, plan: str, rng, targets, monkeypatch) -> None:
    monkeypatch.setattr(CupyDevice, "block_rows", 16)
    X, y, bits = ragged_rows(rng, N, 50), targets("softmax", N, 3), []
    for _ in range(2):
        run = Run(rng, targets, sizes=(50, 12, 3), X=X, y=y, batch_size=batch_size, plan=plan, optimizer=mx.Adam())
        for _ in range(EPOCHS):
            run.train()
        bits.append((run.got.theta.get().tobytes(), float(run.state.loss)))
    assert bits[0] == bits[1]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("batch_size", [None, 70])
def test_the_order_of_blocks_and_threads_changes_no_bit(
    batch_size: int | None, streamed: bool, emulated, rng, targets, monkeypatch
) -> None:
    monkeypatch.setattr(CupyDevice, "shard_rows", 32)
    if streamed:
        leave_on_host(monkeypatch)
    X, y, bits = rng.integers(0, 256, (N, 20)).astype(np.uint8), targets("softmax", N, 3), []
    for order in (0, -1, 7):
        with emulated.settings(order=order):
            run = Run(rng, targets, sizes=(20, 12, 8, 3), X=X, y=y, batch_size=batch_size, optimizer=mx.Adam())
            for _ in range(3):
                run.train()
            bits.append((run.got.theta.get().tobytes(), float(run.state.loss)))
    assert bits[0] == bits[1] == bits[2]


@pytest.mark.parametrize(
    ("batch_size", "chunks"), [(7, [28, 28, 28, 16]), (16, [32, 32, 32, 4]), (32, [32, 32, 32, 4])]
)
def test_small_batches_travel_together(batch_size: int, chunks: list[int], rng, targets, monkeypatch) -> None:
    leave_on_host(monkeypatch)
    sent, load = [], Streamed._load

    def load_and_note(self: Any, place: Any, first: int, chunk: list[int], *more: Any) -> Any:
        sent.append(sum(chunk))
        return load(self, place, first, chunk, *more)

    monkeypatch.setattr(Streamed, "_load", load_and_note)
    run = Run(rng, targets, batch_size=batch_size)
    for _ in range(2):
        sent.clear()
        run.train()
        run.check()
        assert sent == chunks


# ----------------------------------------------------------------------------------------------------------------------
# Memory


@pytest.fixture
def pool() -> Iterator[Any]:
    """Return the device's memory pool, which may be given a limit."""
    pool = mx.devices.get_device("cuda").xp.get_default_memory_pool()
    limit = pool.get_limit()
    empty(pool)
    yield pool
    pool.set_limit(size=limit)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CupyDevice, "shard_rows", 64)
    monkeypatch.setattr("mlp_xp.engines.cuda.memory._ENOUGH_ROWS", 32)
    monkeypatch.setattr("mlp_xp.engines.cuda.memory._LEAST_ROWS", 8)
    monkeypatch.setattr(cuda_products, "_WORKSPACE", SMALL_WORKSPACE)


SMALL_WORKSPACE = 16 * 2**10  # bytes: the least that cuBLAS documents


def empty(pool: Any) -> int:
    """Give back what nobody uses, and return the bytes that are left."""
    gc.collect()
    pool.free_all_blocks()
    return pool.total_bytes()


def memory_of(pool: Any, run: Callable[[], object]) -> int:
    """Return the bytes that the pool takes for what it runs."""
    before = empty(pool)
    result = run()
    need = pool.total_bytes() - before
    del result
    empty(pool)
    return need


@pytest.mark.parametrize("batch_size", [None, 32])
def test_bytes_stay_bytes_on_the_device(batch_size: int | None, pool, rng, targets, monkeypatch) -> None:
    """Their numbers, all at once, would take four times the room."""
    monkeypatch.setattr(CupyDevice, "shard_rows", 16)
    monkeypatch.setattr(cuda_products, "_WORKSPACE", SMALL_WORKSPACE)
    X, y, before = rng.integers(0, 256, (500, 200)).astype(np.uint8), targets("softmax", 500, 3), pool.used_bytes()
    run = Run(rng, targets, sizes=(200, 3), X=X, y=y, batch_size=batch_size)
    run.train()
    assert X.nbytes < pool.used_bytes() - before < 2 * X.nbytes


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("batch_size", [None, 32])
def test_a_training_that_is_over_leaves_no_memory_behind(
    batch_size: int | None, streamed: bool, pool, rng, targets, monkeypatch
) -> None:
    """Nor one that was left in the middle, by a callback that failed."""
    if streamed:
        leave_on_host(monkeypatch)
    X, y, used = rng.integers(0, 256, (N, 20)).astype(np.uint8), targets("softmax", N, 3), []

    def fail(state: mx.State) -> None:
        if state.epoch == 3:
            raise RuntimeError("of a callback")

    for callbacks in ([], [], [fail]):
        model = mx.MLP([20, 12, 3], seed=1, device="cuda")
        with pytest.raises(RuntimeError, match="of a callback") if callbacks else nullcontext():
            mx.fit(model, X, y, epochs=3, batch_size=batch_size, optimizer=mx.Adam(), callbacks=callbacks)
        del model
        empty(pool)
        used.append(pool.used_bytes())
    assert used[0] == used[1] == used[2]


@pytest.mark.parametrize("streamed", [False, True])
def test_memory_is_given_back_at_once_and_serves_the_next_training(
    streamed: bool, pool, rng, targets, monkeypatch
) -> None:
    """No garbage collection is needed, and none of CuPy's pool, which keeps memory for the stream it was asked on."""
    if streamed:
        leave_on_host(monkeypatch)
    used, total, streams = [pool.used_bytes()], [], []
    gc.disable()
    try:
        for _ in range(3):
            run = Run(rng, targets, batch_size=32)
            run.train()
            streams.append(run.got.device.xp.cuda.Stream(non_blocking=True))  # so that the next one is another
            del run
            used.append(pool.used_bytes())
            total.append(pool.total_bytes())
    finally:
        gc.enable()
    assert len(set(used)) == 1
    assert len(set(total)) == 1


@pytest.mark.parametrize("batch_size", [None, 48])
@pytest.mark.parametrize("share", [1.0, 0.9, 0.7, 0.5])
def test_too_little_memory_ends_in_smaller_shards(
    share: float, batch_size: int | None, pool, rng, targets, small_shards, caplog, monkeypatch
) -> None:
    """Whatever the limit, the training is NumPy's, and begins anew with nothing half done."""
    X, y = rng.integers(0, 256, (2 * N, 300)).astype(np.uint8), targets("softmax", 2 * N, 3)
    options: dict[str, Any] = {"X": X, "y": y, "sizes": (300, 4, 3)}
    options |= {"batch_size": batch_size, "optimizer": mx.SGD(lr=0.1, momentum=0.9)}
    need, free = memory_of(pool, lambda: Run(rng, targets, **options)), []
    pool.set_limit(size=empty(pool) + int(share * need))

    def make(*arguments: Any) -> CudaEngine:
        free.append(pool.free_bytes())
        return CudaEngine(*arguments)

    monkeypatch.setattr("mlp_xp.engines.cuda.memory.CudaEngine", make)
    run = Run(rng, targets, **options)
    assert (share == 1.0) == (not caplog.records)
    assert ("host" in run.engine.plan.reason) == (share <= 0.7)
    *failures, last = [record.getMessage() for record in caplog.records] or [""]
    for message in failures:
        assert re.match(
            r"cuda has no memory for shards of \d+ rows, .*: Out of memory allocating .* limit set", message
        )
    assert len(free) == 1 + len(failures)
    assert set(free) == {0}  # what one attempt took is there for the next, and for other libraries
    assert not failures or re.fullmatch(r"cuda goes on with shards of \d+ rows, with the data on the \w+", last)
    for _ in range(EPOCHS):
        limit = pool.get_limit()
        run.train()
        pool.set_limit(size=0)
        run.check()
        empty(pool)
        pool.set_limit(size=limit)


@pytest.mark.parametrize("batch_size", [None, 48])
def test_a_device_that_is_almost_full(
    batch_size: int | None, emulated, pool, rng, targets, small_shards, caplog
) -> None:
    """CUDA itself has no more, as when another process has taken the rest."""
    X, y = rng.integers(0, 256, (2 * N, 300)).astype(np.uint8), targets("softmax", 2 * N, 3)
    options: dict[str, Any] = {"X": X, "y": y, "sizes": (300, 4, 3), "batch_size": batch_size}
    device = mx.devices.get_device("cuda").xp.cuda.Device()
    free, total = device.mem_info
    run = Run(rng, targets, **options)
    need = free - device.mem_info[0]
    del run
    empty(pool)
    with emulated.settings(memory=total - free + int(0.7 * need)):
        run = Run(rng, targets, **options)
        run.train()
    run.check()
    assert "host" in run.engine.plan.reason
    assert all("Out of memory allocating" in record.getMessage() for record in caplog.records[:-1])


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("size", [1, 300, 9000, 65_536, 10**6])
def test_nothing_is_tried_twice_and_the_device_comes_first(size: int, on_host: bool) -> None:
    attempts = [
        (streamed, rows if streamed else min(rows, size)) for streamed, rows in _attempts(65_536, size, on_host)
    ]
    assert attempts[0] == (False, min(size, 65_536))
    assert attempts == sorted(set(attempts), key=lambda attempt: (attempt[0], -attempt[1]))
    assert any(streamed for streamed, _ in attempts) == on_host


def test_too_little_memory_for_anything_says_so(pool, rng, targets, small_shards) -> None:
    pool.set_limit(size=empty(pool) + 10_000)
    with pytest.raises(MemoryError, match=r"'cuda' has too little memory even for 8 rows at a time and 291 parameters"):
        Run(rng, targets)


def test_predictions_take_the_rows_that_there_is_room_for(pool, rng, monkeypatch) -> None:
    monkeypatch.setattr(cuda_products, "_WORKSPACE", SMALL_WORKSPACE)
    monkeypatch.setattr("mlp_xp.devices.base.LEAST_ROWS", 8)
    X = rng.integers(0, 256, (N, 300)).astype(np.uint8)
    model = mx.MLP([300, 12, 3], "sigmoid", seed=1, device="cuda")
    want = model.outputs(X)
    need = memory_of(pool, lambda: model.outputs(X))
    pool.set_limit(size=empty(pool) + need // 3)
    np.testing.assert_allclose(model.outputs(X), want, rtol=0, atol=1e-6)
    np.testing.assert_allclose(want, mx.MLP([300, 12, 3], "sigmoid", seed=1).outputs(X), rtol=0, atol=1e-6)
    pool.set_limit(size=empty(pool) + 1000)
    with pytest.raises(MemoryError, match="Out of memory allocating"):
        model.outputs(X)


def test_predictions_give_their_memory_back_at_once(pool, rng) -> None:
    """No garbage collection is needed."""
    gc.disable()
    try:
        before = pool.used_bytes()
        mx.MLP([20, 12, 3], device="cuda").outputs(rng.standard_normal((N, 20)).astype(np.float32))
        assert pool.used_bytes() == before
    finally:
        gc.enable()


def test_data_that_are_on_the_device_are_not_left_on_the_host(pool, rng, targets, small_shards) -> None:
    X = rng.integers(0, 256, (N, 300)).astype(np.uint8)
    model = mx.MLP([300, 12, 3], device="cuda")
    rows, y = model.open(model.device.asarray(X)), model.targets(targets("softmax", N, 3), N)
    plan = make_plan(rows, model.device, "dense")
    setup = Setup(model, model.objective, mx.SGD(), rows, y, None, plan, 1)
    need = memory_of(pool, lambda: make_cuda_engine(setup))
    pool.set_limit(size=empty(pool) + need - 10_000)
    engine = make_cuda_engine(setup)
    assert type(engine._rows).__name__ == "WholeBatch"
    assert len(list(engine._rows.samples())) > 2


# ----------------------------------------------------------------------------------------------------------------------
# What goes in and comes out


def test_a_state_from_elsewhere_does_not_shift_the_batches(rng, targets) -> None:
    """Adam's count of updates need not be a multiple of an epoch's, as when the batch size was another."""
    run = Run(rng, targets, optimizer=mx.Adam(lr=0.01), batch_size=32)
    optimizer, theta = run.arguments["optimizer"], run.want.theta.copy()
    reference = {**optimizer.init(theta), "updates": 3}
    start = mx.Snapshot(0, 0, 0, 0.0, 0.0, theta, reference, "dense")
    state = next(mx.epochs(run.got, run.X, run.y, start=start, **run.arguments))
    for rows in np.split(shuffled_rows(1, 1, N), [32, 64, 96]):
        run.want.theta = theta
        gradient = run.want.loss_and_gradient(run.X[rows], run.y[rows])[1]
        flat = run.want.layout.join(Parameters([None, *gradient.weights], [None, *gradient.biases]))
        theta, reference = optimizer.update(theta, flat, reference, 0.01)
    np.testing.assert_allclose(run.got.theta.get(), theta, rtol=0, atol=1e-5)
    assert state.optimizer_state["updates"] == 3 + 4


def test_what_was_handed_out_stays(rng, targets) -> None:
    run = Run(rng, targets)
    run.train()
    theta, loss = run.got.theta, run.state.loss_sum
    before = theta.get().tobytes(), float(loss)
    for _ in range(2):  # the second is a graph
        run.train()
        assert before == (theta.get().tobytes(), float(loss))
    assert run.got.theta.get().tobytes() != before[0]


def test_what_is_assigned_between_epochs_is_taken_up(rng, targets) -> None:
    run = Run(rng, targets, optimizer=mx.SGD(lr=0.2, momentum=0.9))
    for _ in range(EPOCHS):
        run.train()
        run.check()
        for model in (run.got, run.want):
            model.weights = [0.9 * W for W in model.weights]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", [mx.SGD(lr=0.1, momentum=0.9, l2=1e-4), mx.Adam(), mx.AdamW()], ids=str)
def test_dtype_never_drifts(optimizer: Any, dtype: str, rng, targets) -> None:
    run = Run(rng, targets, dtype=dtype, optimizer=optimizer, batch_size=40)
    for _ in range(2):
        run.train()
        vectors = [value for value in run.state.optimizer_state.values() if hasattr(value, "dtype")]
        assert {x.dtype.name for x in (run.state.gradient, run.got.theta, run.state.loss, *vectors)} == {dtype}


@pytest.mark.parametrize("batch_size", [None, 40])
@pytest.mark.parametrize("shard_rows", [32, 1024])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("names", [{"activation": "softsign"}, {"output": "absolute"}], ids=["activation", "loss"])
def test_functions_without_a_kernel_train_by_their_formula(
    names: dict[str, str], dtype: str, shard_rows: int, batch_size: int | None, rng, targets, monkeypatch, caplog
) -> None:
    """Operations of CuPy's are captured too, with what they allocate; if one cannot be, the graphs give up and say so.

    The loss has ``sign``, which array-api-compat does with a mask on the host.
    """
    monkeypatch.setattr(CupyDevice, "shard_rows", shard_rows)
    follow_recipes(monkeypatch)
    run = Run(rng, targets, dtype=dtype, batch_size=batch_size, optimizer=mx.SGD(lr=0.05, l2=0.01), **names)
    for _ in range(EPOCHS):
        run.train()
        run.check()
    messages = [record.getMessage() for record in caplog.records]
    assert (len(run.graphs), len(messages)) == ((0, 1) if "output" in names else (1, 0))
    assert all(message.startswith("no CUDA graphs, so every step is launched by the host") for message in messages)
    X = run.X[:50]
    np.testing.assert_allclose(run.got.outputs(X), run.want.outputs(X), rtol=0, atol=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("batch_size", [None, 12])
@pytest.mark.parametrize("missing", ["nvmath", "capture"])
def test_without_capture_every_step_is_launched(
    missing: str, batch_size: int | None, work, rng, targets, monkeypatch, caplog
) -> None:
    monkeypatch.setattr("mlp_xp.engines.cuda.engine._MOST_STEPS", 3)
    if missing == "nvmath":
        monkeypatch.setattr(cuda_products, "load_cublas", lambda: None)
    else:
        stream = mx.devices.get_device("cuda").xp.cuda.Stream
        monkeypatch.setattr(stream, "begin_capture", _refuse)
    with caplog.at_level(logging.WARNING):
        run = Run(rng, targets, batch_size=batch_size)
        for _ in range(EPOCHS):
            run.train()
            run.check()
    assert not run.graphs
    assert [entry[0] for entry in work].count("tick") >= EPOCHS * run.state.updates
    (record,) = caplog.records
    assert "no CUDA graphs" in record.getMessage()


@pytest.mark.parametrize("number", range(1, 7))
def test_a_capture_that_breaks_at_any_operation(number: int, emulated, rng, targets, caplog) -> None:
    """Nothing of it is done, and the log names what broke it."""
    run = Run(rng, targets, optimizer=mx.SGD(lr=0.5, l2=0.01))
    run.train()
    run.check()
    with emulated.settings(failing_capture=number):
        run.train()
    run.check()
    for _ in range(2):
        run.train()
        run.check()
    assert not run.graphs
    (record,) = caplog.records
    assert record.getMessage().startswith("no CUDA graphs, so every step is launched by the host")


def test_an_interrupted_capture_is_an_interrupt(rng, targets, monkeypatch, caplog) -> None:
    """Also where the capture is broken by then; the model keeps the last whole epoch, and can be trained on."""
    run = Run(rng, targets)
    run.train()
    run.check()
    theta, take_step, cupy = run.got.theta, CudaEngine._take_step, run.got.device.xp

    def be_interrupted(engine: CudaEngine, rows: int) -> None:
        take_step(engine, rows)
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
            cupy.cuda.runtime.streamSynchronize(engine._graphs.stream.ptr)  # breaks the capture
        raise KeyboardInterrupt

    monkeypatch.setattr(CudaEngine, "_take_step", be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    monkeypatch.undo()
    assert run.got.theta is theta
    assert cupy.cuda.get_current_stream() == cupy.cuda.Stream.null
    assert gc.isenabled()
    run.states = mx.epochs(run.got, run.X, run.y, **run.arguments)
    for _ in range(3):
        run.train()
        assert float(run.state.loss) == pytest.approx(float(next(run.reference).loss), rel=1e-5)
    assert not caplog.records


def test_no_garbage_is_collected_while_any_thread_captures() -> None:
    first, second = ExitStack(), ExitStack()
    first.enter_context(_no_collection)
    second.enter_context(_no_collection)
    first.close()
    assert not gc.isenabled()
    second.close()
    assert gc.isenabled()


def test_trainings_in_threads_do_not_meet(rng, targets, caplog) -> None:
    """Bit for bit; captures among them, and the collection of garbage in between."""
    X, y, alone = rng.integers(0, 256, (N, 20)).astype(np.uint8), targets("softmax", N, 3), []
    found: dict[int, Any] = {}
    barrier = threading.Barrier(4)

    def train(seed: int) -> tuple[list[float], bytes]:
        model = mx.MLP([20, 12, 3], "tanh", seed=seed, device="cuda")
        batch_size = 16 if seed % 2 else None
        history = mx.fit(model, X, y, epochs=4, batch_size=batch_size, callbacks=[lambda state: gc.collect() and False])
        return history.loss, model.theta.get().tobytes()

    def work(seed: int) -> None:
        barrier.wait()
        found[seed] = train(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = [train(seed) for seed in range(4)]
    assert [found[seed] for seed in range(4)] == alone
    assert not caplog.records
    assert gc.isenabled()


def _refuse(stream: Any, mode: Any = None) -> None:
    raise RuntimeError("not today")


# ----------------------------------------------------------------------------------------------------------------------
# All that is put on the loop


def test_fit_on_a_gpu_is_numpys(rng, targets, tmp_path) -> None:
    """History, validation, early stopping, checkpoints: all that is put on the loop."""
    X, y = rng.integers(0, 256, (N, 20)).astype(np.uint8), targets("softmax", N, 3)
    histories = []
    for device in ("cpu", "cuda"):
        model = mx.MLP([20, 12, 3], "tanh", seed=1, device=device)
        folder = tmp_path / str(len(histories))
        for epochs in (3, 6):
            histories.append(
                mx.fit(
                    model, X, y, epochs=epochs, optimizer=mx.Adam(lr=0.01), batch_size=40, validation=(X[:30], y[:30]),
                    tol=0.0, checkpoint=mx.Checkpoint(folder, resume=epochs == 6),
                )
            )  # fmt: skip
    about = environment(model, None, make_plan(model.open(X), model.device))
    assert (about["device"], about["gpu"], about["precision"]) == ("cuda", model.device.hardware(), "fp32")
    cpu, cuda_ = histories[1], histories[3]
    assert cpu.epoch == cuda_.epoch == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(getattr(cuda_, name), getattr(cpu, name), rtol=1e-5)


def test_fit_takes_everything_from_the_device(rng, targets) -> None:
    X, y = rng.integers(0, 256, (N, 20)).astype(np.uint8), targets("softmax", N, 3)
    histories = []
    for device in ("cpu", "cuda"):
        model = mx.MLP([20, 12, 3], "tanh", seed=1, device=device)
        data, labels = model.device.asarray(X), model.device.asarray(y)
        more = {"validation": (data[:30], labels[:30]), "callbacks": [mx.EarlyStopping(1e-9, 9, "gradient")]}
        histories.append(mx.fit(model, data, labels, epochs=4, batch_size=40, **more))
    for name in ("loss", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(getattr(histories[1], name), getattr(histories[0], name), rtol=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_divergence_on_a_gpu_keeps_the_last_finite_parameters(rng, targets) -> None:
    X, y = rng.integers(0, 256, (N, 20)).astype(np.uint8), targets("identity", N, 3)
    model = mx.MLP([20, 12, 3], "relu", "identity", seed=1, device="cuda")
    with pytest.raises(mx.DivergenceError, match="with learning rate 1e\\+20"):
        mx.fit(model, X, y, optimizer=mx.SGD(lr=1e20))
    assert np.isfinite(model.theta.get()).all()
