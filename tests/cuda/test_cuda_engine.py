"""Setup on a stand-in for a GPU, by the loop that a real one would have, against training in NumPy."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import mlp_xp as mx
from mlp_xp.devices import CupyDevice
from mlp_xp.engines import Setup
from mlp_xp.engines.cuda.engine import CudaEngine
from mlp_xp.engines.cuda.memory import _attempts, make_cuda_engine
from mlp_xp.kernels.cuda import products as cuda_products
from mlp_xp.optim import Optimizer
from mlp_xp.params import Parameters
from mlp_xp.rows.batches import shuffled_rows
from mlp_xp.rows.plan import make_plan
from mlp_xp.runs.report import environment

from ..test_recipes import follow_recipes
from .fake_cupy import GPU

pytestmark = pytest.mark.needs("g++")

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


@pytest.fixture(params=["device", "bus"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> GPU:
    """Return a GPU on which all work is late, or copies from the host are."""
    gpu = GPU()
    gpu.slow = request.param
    monkeypatch.setattr(cuda_products, "load_cublas", lambda: gpu.library)
    return gpu


@pytest.fixture
def late_gpu(monkeypatch: pytest.MonkeyPatch) -> GPU:
    gpu = GPU()
    monkeypatch.setattr(cuda_products, "load_cublas", lambda: gpu.library)
    return gpu


def ragged_rows(rng: np.random.Generator, n: int, d: int) -> np.ndarray[Any, Any]:
    """Return bytes (n, d) with zeros, in some rows many of them and at odd places."""
    X = rng.integers(1, 256, (n, d)).astype(np.uint8)
    X[rng.permutation(d) >= rng.integers(0, d - 3, n)[:, None]] = 0
    return X


class Run:
    """The same training by NumPy and on the stand-in."""

    def __init__(
        self, gpu: GPU, rng: Any, targets: Any, *, sizes: tuple[int, ...] = (20, 12, 3), activation: str = "tanh",
        output: str = "softmax", dtype: str = "float32", precision: str | None = None, X: Any = None,
        optimizer: Any = OPTIMIZERS[0], batch_size: int | None = None, plan: str = "dense", here: bool = False,
        y: Any = None,
    ) -> None:  # fmt: skip
        self.X = rng.integers(0, 256, (N, sizes[0])).astype(np.uint8) if X is None else X
        self.y = targets(output, N, sizes[-1]) if y is None else y
        self.want, self.got = (
            mx.MLP(list(sizes), activation, output, dtype=dtype, seed=1, device=device, precision=own)
            for device, own in (("cpu", None), (CupyDevice("cuda", gpu), precision))
        )
        self.gpu, self.dtype = gpu, dtype
        self.arguments: dict[str, Any] = {"optimizer": optimizer, "batch_size": batch_size}
        self.reference = mx.epochs(self.want, self.X, self.y, plan="dense", **self.arguments)
        self.states = mx.epochs(self.got, gpu.asarray(self.X) if here else self.X, self.y, plan=plan, **self.arguments)

    @property
    def engine(self) -> CudaEngine:
        """What the loop runs."""
        return self.states.gi_frame.f_locals["engine"]

    def train(self) -> list[Any]:
        """Train one epoch and return the log of it."""
        self.gpu.log.clear()
        self.state = next(self.states)
        return list(self.gpu.log)

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


@pytest.mark.parametrize("batch_size", [None, 32])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_epochs_equal_numpys(dtype: str, optimizer: Any, batch_size: int | None, gpu: GPU, rng, targets) -> None:
    run = Run(gpu, rng, targets, dtype=dtype, optimizer=optimizer, batch_size=batch_size)
    for epoch in range(EPOCHS):
        log = run.train()
        run.check()
        assert ("graph" in log) == (epoch > 0)
    assert 0 < float(run.state.seconds) < 60


@dataclass(frozen=True)
class Rooted(Optimizer):
    """Steps along the root of the gradient, ever shorter: an optimizer that no kernel knows."""

    def init(self, theta: Any) -> Any:
        return {"steps": 0, "last": theta * 0}

    def update(self, theta: Any, grad: Any, state: Any, rate: Any) -> Any:
        step = rate * grad / (1 + grad * grad) / (state["steps"] + 1)
        return theta - step, {"steps": state["steps"] + 1, "last": step}


@pytest.mark.parametrize("batch_size", [None, 32])
def test_an_optimizer_that_no_kernel_knows(batch_size: int | None, gpu: GPU, rng, targets) -> None:
    """It updates by its own rule, each step launched by the host."""
    optimizer = Rooted(lr=0.5, l2=0.01, lr_bias=0.1)
    run = Run(gpu, rng, targets, dtype="float64", optimizer=optimizer, batch_size=batch_size)
    for _ in range(EPOCHS):
        assert "graph" not in run.train()
        run.check()


@pytest.mark.parametrize("output", mx.OUTPUTS)
@pytest.mark.parametrize("sizes", [(20, 3), (20, 12, 3), (9, 7, 5, 2)], ids=str)
def test_other_networks(sizes: tuple[int, ...], output: str, gpu: GPU, rng, targets) -> None:
    run = Run(gpu, rng, targets, sizes=sizes, output=output, dtype="float64", batch_size=40, optimizer=mx.SGD(lr=0.05))
    for _ in range(EPOCHS):
        run.train()
        run.check()


@pytest.mark.parametrize("sizes", [(20, 12, 3), (20, 12, 8, 3)], ids=["head", "text"])
@pytest.mark.parametrize("batch_size", [None, 70])
def test_batches_of_several_shards(batch_size: int | None, sizes: Any, gpu: GPU, rng, targets, monkeypatch) -> None:
    monkeypatch.setattr(CupyDevice, "shard_rows", 32)
    run = Run(gpu, rng, targets, sizes=sizes, batch_size=batch_size, optimizer=OPTIMIZERS[1])
    for _ in range(EPOCHS):
        run.train()
        run.check()


@pytest.mark.parametrize("shard_rows", [32, 64])
def test_batches_of_two_sizes_need_no_more_room_than_the_larger(
    shard_rows: int, late_gpu: GPU, rng, targets, monkeypatch
) -> None:
    monkeypatch.setattr(CupyDevice, "shard_rows", shard_rows)
    monkeypatch.setattr("mlp_xp.kernels.cuda.capturable.PENALTY_BLOCKS", 0)  # no room to spare
    run = Run(late_gpu, rng, targets, sizes=(20, 12, 8, 3), batch_size=60)
    for _ in range(EPOCHS):
        run.train()
        run.check()


@pytest.mark.parametrize("here", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("batch_size", [None, 32])
def test_numbers_as_input(batch_size: int | None, here: bool, gpu: GPU, rng, targets) -> None:
    X = rng.standard_normal((N, 20)).astype(np.float32)
    run = Run(gpu, rng, targets, X=X, batch_size=batch_size, here=here)
    for _ in range(EPOCHS):
        run.train()
        run.check()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("batch_size", [None, 32])
def test_a_part_of_an_array_on_the_device(batch_size: int | None, dtype: str, late_gpu: GPU, rng, targets) -> None:
    """Kernels read whole rows, one after another; this one's lie apart, and begin on no boundary."""
    array, part = rng.integers(0, 3, (N + 1, 25)).astype(dtype), np.s_[1:, 3:23]
    run = Run(late_gpu, rng, targets, X=array[part], batch_size=batch_size)
    run.states = mx.epochs(run.got, late_gpu.asarray(array)[part], run.y, plan="dense", **run.arguments)
    for _ in range(EPOCHS):
        run.train()
        run.check()


@pytest.mark.parametrize("batch_size", [None, 32])
@pytest.mark.parametrize("sizes", [(20, 12, 3), (20, 12, 8, 3)], ids=["head", "text"])
def test_pairs_of_halves_are_as_exact_as_float32(sizes: Any, batch_size: int | None, gpu: GPU, rng, targets) -> None:
    run = Run(gpu, rng, targets, sizes=sizes, precision="fp16x2", batch_size=batch_size)
    for _ in range(EPOCHS):
        log = run.train()
        run.check()
        if "graph" not in log:
            work = [entry[0] for entry in log if isinstance(entry, tuple) and entry[0] not in ("gather", "gemm")]
            head = ["split_matrix", "fused_head", "join_products", "sgd", "tick"]
            assert work[:5] == head if len(sizes) == 3 else work[:2] == ["split_matrix", "join_products"]


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
    plan: str, batch_size: int | None, shard_rows: int, sizes: Any, precision: str | None,
    late_gpu: GPU, rng, targets, monkeypatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(CupyDevice, "block_rows", 16)
    monkeypatch.setattr(CupyDevice, "shard_rows", shard_rows)
    options = {"optimizer": mx.Adam(lr=0.01, l2=0.01), "batch_size": batch_size, "precision": precision}
    run = Run(late_gpu, rng, targets, sizes=sizes, X=ragged_rows(rng, N, 50), plan=plan, **options)
    assert run.engine.plan.kind == plan
    for _ in range(3):
        log = run.train()
        run.check()
    assert "graph" in log


@pytest.mark.parametrize("batch_size", [None, 32])
@pytest.mark.parametrize("plan", ["zero", "ragged"])
def test_plans_of_data_on_the_device(plan: str, batch_size: int | None, late_gpu: GPU, rng, targets) -> None:
    run = Run(
        late_gpu, rng, targets, sizes=(50, 3), X=ragged_rows(rng, N, 50), plan=plan, batch_size=batch_size, here=True
    )
    run.train()
    run.check()


def test_a_ragged_plan_leaves_out_products(late_gpu: GPU, rng, targets, monkeypatch) -> None:
    monkeypatch.setattr(CupyDevice, "block_rows", 16)
    run = Run(late_gpu, rng, targets, sizes=(50, 12, 3), X=ragged_rows(rng, N, 50), plan="ragged")
    run.train()
    gemms = [sizes for name, *sizes in (entry for entry in late_gpu.log if isinstance(entry, tuple)) if name == "gemm"]
    rows = [n for h, n, width in gemms[: len(gemms) // 2]]
    widths = [width for h, n, width in gemms[: len(gemms) // 2]]
    assert rows == [16] * 6 + [4]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == 16
    assert [(12, width, n) for n, width in zip(rows, widths, strict=True)] == [
        tuple(sizes) for sizes in gemms[len(gemms) // 2 :]
    ]


def test_plan_on_a_gpu_is_chosen_by_what_it_repays(late_gpu: GPU, rng, monkeypatch) -> None:
    monkeypatch.setattr(CupyDevice, "block_rows", 16)
    model = mx.MLP([50, 3], device=CupyDevice("cuda", late_gpu))
    X = ragged_rows(rng, N, 50)
    for data in (X, late_gpu.asarray(X)):
        rows = model.open(data)
        assert make_plan(rows, model.device).kind == "ragged"
        assert make_plan(rows, model.device, epochs=100).kind == "dense"
        assert make_plan(rows, model.device, batch_size=32).kind == "dense"
    assert make_plan(model.open(X | 1), model.device).kind == "dense"


@pytest.mark.parametrize("batch_size", [None, 32])
def test_steps_are_few_and_the_same_each_time(batch_size: int | None, gpu: GPU, rng, targets) -> None:
    run = Run(gpu, rng, targets, batch_size=batch_size)
    work = [entry for entry in run.train() if isinstance(entry, tuple)]
    steps = 1 if batch_size is None else 4
    gather = [] if batch_size is None else ["gather"]
    assert [entry[0] for entry in work] == [*gather, "gemm", "fused_head", "gemm", "sgd", "tick"] * steps
    engine = run.engine
    run.train()
    (graph,) = engine._graphs._graphs.values()
    assert [entry for entry, _ in graph.launches] == work
    log = run.train()
    order = [] if batch_size is None else ["copy from the host"]
    assert log == ["event", *order, "graph", "allocation", "event", "take"]
    assert len(engine._graphs._graphs) == 1


def test_long_epochs_are_cut_into_graphs_that_serve_again(gpu: GPU, rng, targets, monkeypatch) -> None:
    monkeypatch.setattr("mlp_xp.engines.cuda.engine._MOST_STEPS", 3)
    run = Run(gpu, rng, targets, batch_size=12)  # 8 whole batches and one of 4 rows
    engine = run.engine
    for _ in range(EPOCHS):
        log = run.train()
        run.check()
    assert log.count("graph") == 3
    assert [len(sizes) for sizes in engine._graphs._graphs] == [3, 3]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("optimizer", [mx.Adam(lr=0.01), mx.SGD(lr=0.2, momentum=0.9)], ids=str)
def test_resuming_in_the_middle_of_an_epoch_is_going_on(
    optimizer: Any, streamed: bool, gpu: GPU, rng, targets, monkeypatch
) -> None:
    """Bit for bit, and whichever update it stopped after."""
    monkeypatch.setattr("mlp_xp.engines.cuda.engine._MOST_STEPS", 3)
    if streamed:
        leave_on_host(monkeypatch)
    options: dict[str, Any] = {"optimizer": optimizer, "batch_size": 12}
    first = run = Run(gpu, rng, targets, **options)
    for _ in range(3):
        run.train()
    want = run.got.theta.tobytes(), float(run.state.loss)

    run = Run(gpu, rng, targets, X=first.X, y=first.y, **options)
    asked = iter([True, False])  # in the second epoch
    pauses = mx.epochs(run.got, run.X, run.y, pause=lambda: asked_in(run, asked), **options)
    run.states = pauses
    while (state := next(pauses)).whole:
        pass
    assert (state.epoch, state.updates, state.rows) == (2, 3, 36)
    snapshot = replace(state.snapshot(), seconds=1000.0)
    for device in ("cuda", "cpu"):
        model = mx.MLP([20, 12, 3], "tanh", seed=1, device=CupyDevice("cuda", gpu) if device == "cuda" else "cpu")
        states = list(mx.epochs(model, run.X, run.y, start=snapshot, epochs=3, **options))
        assert [state.updates for state in states] == [9, 9]
        assert [float(state.seconds) > 1000 for state in states] == [True, False]
        if device == "cuda":
            assert (model.theta.tobytes(), float(states[-1].loss)) == want
        else:
            np.testing.assert_allclose(model.theta, np.frombuffer(want[0], np.float32), rtol=0, atol=1e-5)


def test_seconds_are_those_of_one_epoch_without_pauses_and_callbacks(late_gpu: GPU, rng, targets, monkeypatch) -> None:
    now = 0.0

    def look() -> float:  # at a clock that a second passes at each look
        nonlocal now
        now += 1
        return now

    monkeypatch.setattr("tests.cuda.fake_streams.perf_counter", look)
    monkeypatch.setattr("mlp_xp.engines.cuda.engine._MOST_STEPS", 3)
    run, seconds = Run(late_gpu, rng, targets), []
    for state in mx.epochs(run.got, run.X, run.y, batch_size=12, epochs=3, pause=lambda: True):
        if state.whole:
            seconds.append(float(state.seconds))
        now += 1000  # a slow callback
    assert 0 < seconds[0] < 100  # steps are captured, too
    assert seconds[1:] == [3, 3]  # three graphs, each between two events


def asked_in(run: Run, asked: Any) -> bool:
    """Answer what a loop asks from its second epoch on."""
    return run.states.gi_frame.f_locals["epoch"] == 2 and next(asked, False)


def leave_on_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all data streamed, in chunks of 32 rows."""
    monkeypatch.setattr("mlp_xp.engines.cuda.memory._attempts", lambda shard_rows, size, on_host: iter([(True, 32)]))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("batch_size", [None, 7, 16, 32, 70])
@pytest.mark.parametrize("output", ["softmax", "identity"])
def test_data_that_stay_on_the_host(
    output: str, batch_size: int | None, dtype: str, gpu: GPU, rng, targets, monkeypatch
) -> None:
    """Copies are ordered after what reads the same memory, and work after the copies that it reads."""
    leave_on_host(monkeypatch)
    X = rng.integers(0, 256, (N, 20)).astype(np.uint8)
    X = X if dtype == "uint8" else (X / np.float32(255)).astype(np.float32)
    run = Run(gpu, rng, targets, output=output, X=X, batch_size=batch_size, optimizer=mx.SGD(lr=0.05, momentum=0.9))
    assert "host" in run.engine.plan.reason
    for _ in range(EPOCHS):
        log = run.train()
        run.check()
        assert "graph" not in log


@pytest.mark.parametrize("batch_size", [None, 16, 70])
def test_streamed_data_give_the_same_bits(batch_size: int | None, gpu: GPU, rng, targets, monkeypatch) -> None:
    monkeypatch.setattr(CupyDevice, "shard_rows", 32)
    X, y, bits = rng.integers(0, 256, (N, 20)).astype(np.uint8), targets("softmax", N, 3), []
    for streamed in (False, True):
        if streamed:
            leave_on_host(monkeypatch)
        run = Run(gpu, rng, targets, X=X, y=y, batch_size=batch_size)
        for _ in range(3):
            run.train()
        bits.append((run.got.theta.tobytes(), float(run.state.loss)))
    assert bits[0] == bits[1]


@pytest.mark.parametrize("batch_size", [None, 32])
def test_bytes_stay_bytes_on_the_device(batch_size: int | None, late_gpu: GPU, rng, targets, monkeypatch) -> None:
    """Their numbers, all at once, would take four times the room."""
    monkeypatch.setattr(CupyDevice, "shard_rows", 16)
    monkeypatch.setattr(cuda_products, "_WORKSPACE", 256)
    run = Run(late_gpu, rng, targets, sizes=(200, 3), batch_size=batch_size)
    run.train()
    assert N * 200 < late_gpu.used < 4 * N * 200


@pytest.mark.parametrize("batch_size", [7, 16, 32])
def test_small_batches_travel_together(batch_size: int, late_gpu: GPU, rng, targets, monkeypatch) -> None:
    leave_on_host(monkeypatch)
    run = Run(late_gpu, rng, targets, batch_size=batch_size)
    copies = [entry for entry in run.train() if entry == "copy from the host"]
    assert len(copies) == 1 + 2 * 4  # the learning rate; X and y of 28, 28, 28 and 16 rows, or of 32, 32, 32 and 4


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CupyDevice, "shard_rows", 64)
    monkeypatch.setattr("mlp_xp.engines.cuda.memory._ENOUGH_ROWS", 32)
    monkeypatch.setattr("mlp_xp.engines.cuda.memory._LEAST_ROWS", 8)
    monkeypatch.setattr(cuda_products, "_WORKSPACE", 256)


def memory_of(gpu: GPU, run: Any) -> int:
    """Return the most bytes that arrays take while it runs."""
    most = 0
    new = gpu.new

    def count(shape: Any, dtype: Any) -> Any:
        nonlocal most
        array = new(shape, dtype)
        most = max(most, gpu.used)
        return array

    gpu.new = count  # type: ignore[method-assign]
    run()
    gpu.new = new  # type: ignore[method-assign]
    return most


@pytest.mark.parametrize("batch_size", [None, 48])
@pytest.mark.parametrize("share", [1.0, 0.9, 0.7, 0.5])
def test_too_little_memory_ends_in_smaller_shards(
    share: float, batch_size: int | None, late_gpu: GPU, rng, targets, small_shards, caplog
) -> None:
    """Whatever the limit, the training is NumPy's, and begins anew with nothing half done."""
    options: dict[str, Any] = {"X": rng.integers(0, 256, (N, 300)).astype(np.uint8), "sizes": (300, 4, 3)}
    options |= {"batch_size": batch_size, "optimizer": mx.SGD(lr=0.1, momentum=0.9)}
    need = memory_of(late_gpu, lambda: Run(late_gpu, rng, targets, **options))
    late_gpu.limit = int(share * need)
    run = Run(late_gpu, rng, targets, **options)
    assert (share == 1.0) == (not caplog.records)
    assert ("host" in run.engine.plan.reason) == (share <= 0.7)
    *failures, last = [record.getMessage() for record in caplog.records] or [""]
    for message in failures:
        assert re.match(
            r"cuda has no memory for shards of \d+ rows, .*: Out of memory allocating .* limit set", message
        )
    assert late_gpu.log.count("the pool is emptied") == len(failures)  # what one of them took is there for the next
    assert not failures or re.fullmatch(r"cuda goes on with shards of \d+ rows, with the data on the \w+", last)
    for _ in range(EPOCHS):
        run.train()
        limit, late_gpu.limit = late_gpu.limit, None
        run.check()
        late_gpu.limit = limit


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("size", [1, 300, 9000, 65_536, 10**6])
def test_nothing_is_tried_twice_and_the_device_comes_first(size: int, on_host: bool) -> None:
    attempts = [
        (streamed, rows if streamed else min(rows, size)) for streamed, rows in _attempts(65_536, size, on_host)
    ]
    assert attempts[0] == (False, min(size, 65_536))
    assert attempts == sorted(set(attempts), key=lambda attempt: (attempt[0], -attempt[1]))
    assert any(streamed for streamed, _ in attempts) == on_host


def test_too_little_memory_for_anything_says_so(late_gpu: GPU, rng, targets, small_shards) -> None:
    late_gpu.limit = 5000
    with pytest.raises(MemoryError, match=r"'cuda' has too little memory even for 8 rows at a time and 291 parameters"):
        Run(late_gpu, rng, targets)


def test_predictions_take_the_rows_that_there_is_room_for(late_gpu: GPU, rng, monkeypatch) -> None:
    monkeypatch.setattr(cuda_products, "_WORKSPACE", 256)
    monkeypatch.setattr("mlp_xp.devices.base.LEAST_ROWS", 8)
    X = rng.integers(0, 256, (N, 300)).astype(np.uint8)
    model = mx.MLP([300, 12, 3], seed=1, device=CupyDevice("cuda", late_gpu))
    need = memory_of(late_gpu, lambda: model.outputs(X)) - late_gpu.used
    late_gpu.limit = late_gpu.used + need // 3
    np.testing.assert_allclose(model.outputs(X), mx.MLP([300, 12, 3], seed=1).outputs(X), rtol=0, atol=1e-6)
    late_gpu.limit = late_gpu.used + 1000
    with pytest.raises(MemoryError, match="Out of memory allocating"):
        model.outputs(X)


def test_data_that_are_on_the_device_are_not_left_on_the_host(late_gpu: GPU, rng, targets, small_shards) -> None:
    run, model = Run(late_gpu, rng, targets, here=True), mx.MLP([20, 12, 3], device=CupyDevice("cuda", late_gpu))
    rows, y = model.open(late_gpu.asarray(run.X)), model.targets(run.y, N)
    plan = make_plan(rows, model.device, "dense")
    setup = Setup(model, model.objective, mx.SGD(), rows, y, None, plan, 1)
    need = memory_of(late_gpu, lambda: make_cuda_engine(setup))
    late_gpu.limit = need - 500
    engine = make_cuda_engine(setup)
    assert type(engine._rows).__name__ == "WholeBatch"
    assert len(list(engine._rows.samples())) > 2


def test_a_state_from_elsewhere_does_not_shift_the_batches(gpu: GPU, rng, targets) -> None:
    """Adam's count of updates need not be a multiple of an epoch's, as when the batch size was another."""
    run = Run(gpu, rng, targets, optimizer=mx.Adam(lr=0.01), batch_size=32)
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


def test_what_was_handed_out_stays(gpu: GPU, rng, targets) -> None:
    run = Run(gpu, rng, targets)
    run.train()
    theta, loss = run.got.theta, run.state.loss_sum
    before = theta.tobytes(), float(loss)
    run.train()
    assert before == (theta.tobytes(), float(loss))
    assert run.got.theta.tobytes() != before[0]


def test_what_is_assigned_between_epochs_is_taken_up(gpu: GPU, rng, targets) -> None:
    run = Run(gpu, rng, targets, optimizer=mx.SGD(lr=0.2, momentum=0.9))
    for _ in range(EPOCHS):
        run.train()
        run.check()
        for model in (run.got, run.want):
            model.weights = [0.9 * W for W in model.weights]


@pytest.mark.parametrize("batch_size", [None, 40])
@pytest.mark.parametrize("shard_rows", [32, 1024])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("names", [{"activation": "softsign"}, {"output": "absolute"}], ids=["activation", "loss"])
def test_functions_without_a_kernel_train_by_their_formula(
    names: dict[str, str], dtype: str, shard_rows: int, batch_size: int | None, gpu: GPU, rng, targets, monkeypatch,
    caplog,
) -> None:  # fmt: skip
    """The stand-in captures kernels only, and these are operations of the library: the graphs give up, and say so."""
    monkeypatch.setattr(CupyDevice, "shard_rows", shard_rows)
    follow_recipes(monkeypatch)
    run = Run(gpu, rng, targets, dtype=dtype, batch_size=batch_size, optimizer=mx.SGD(lr=0.05, l2=0.01), **names)
    with caplog.at_level(logging.WARNING):
        for _ in range(EPOCHS):
            run.train()
            run.check()
    (record,) = caplog.records
    assert record.getMessage().startswith("no CUDA graphs, so every step is launched by the host")
    X = run.X[:50]
    np.testing.assert_allclose(run.got.outputs(X), run.want.outputs(X), rtol=0, atol=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("missing", ["nvmath", "capture"])
def test_without_capture_every_step_is_launched(missing: str, late_gpu: GPU, rng, targets, monkeypatch, caplog) -> None:
    if missing == "nvmath":
        monkeypatch.setattr(cuda_products, "load_cublas", lambda: None)
    else:
        monkeypatch.setattr("tests.cuda.fake_streams.Stream.begin_capture", _refuse, raising=True)
    with caplog.at_level(logging.WARNING):
        run = Run(late_gpu, rng, targets)
        for _ in range(EPOCHS):
            log = run.train()
            run.check()
    assert "graph" not in log
    (record,) = caplog.records
    assert "no CUDA graphs" in record.getMessage()


def _refuse(stream: Any) -> None:
    raise RuntimeError("not today")


def test_fit_on_a_gpu_is_numpys(late_gpu: GPU, rng, targets, tmp_path) -> None:
    """History, validation, early stopping, checkpoints: all that is put on the loop."""
    X, y = rng.integers(0, 256, (N, 20)).astype(np.uint8), targets("softmax", N, 3)
    histories = []
    for device in ("cpu", CupyDevice("cuda", late_gpu)):
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
    assert (about["device"], about["gpu"], about["precision"]) == ("cuda", "a stand-in", "fp32")
    cpu, cuda_ = histories[1], histories[3]
    assert cpu.epoch == cuda_.epoch == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(getattr(cuda_, name), getattr(cpu, name), rtol=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_divergence_on_a_gpu_keeps_the_last_finite_parameters(late_gpu: GPU, rng, targets) -> None:
    X, y = rng.integers(0, 256, (N, 20)).astype(np.uint8), targets("identity", N, 3)
    model = mx.MLP([20, 12, 3], "relu", "identity", seed=1, device=CupyDevice("cuda", late_gpu))
    with pytest.raises(mx.DivergenceError, match="with learning rate 1e\\+20"):
        mx.fit(model, X, y, optimizer=mx.SGD(lr=1e20))
    assert np.isfinite(model.theta.get()).all()
