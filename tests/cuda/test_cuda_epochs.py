"""Whole epochs on a stand-in for a GPU that can be captured, against training in NumPy."""

from __future__ import annotations

import logging
import sys
from typing import Any

import numpy as np
import pytest

import mlp_xp as mx
from mlp_xp.arrays import Device
from mlp_xp.cuda_epochs import CudaEpochs
from mlp_xp.kernels import cuda
from mlp_xp.params import Parameters

from .fake_cupy import GPU

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the shim is made for Linux")

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


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> GPU:
    gpu = GPU()
    monkeypatch.setattr(cuda, "_cublas", lambda: gpu.library)
    return gpu


class Run:
    """The same training by NumPy and by :class:`CudaEpochs`."""

    def __init__(
        self, gpu: GPU, rng: Any, targets: Any, *, sizes: tuple[int, ...] = (20, 12, 3), activation: str = "tanh",
        output: str = "softmax", dtype: str = "float32", precision: str | None = None, X: Any = None,
        optimizer: Any = OPTIMIZERS[0], batch_size: int | None = None,
    ) -> None:  # fmt: skip
        self.X = rng.integers(0, 256, (N, sizes[0])).astype(np.uint8) if X is None else X
        y = targets(output, N, sizes[-1])
        self.want, self.got = (mx.MLP(list(sizes), activation, output, dtype=dtype, seed=1) for _ in range(2))
        arguments: dict[str, Any] = {"optimizer": optimizer, "batch_size": batch_size, "plan": "dense"}
        self.reference = mx.epochs(self.want, self.X, y, **arguments)
        self.gpu, self.optimizer, self.batch_size, self.dtype = gpu, optimizer, batch_size, dtype
        self.got.device = Device("cuda", gpu)
        self.got.theta = gpu.array(self.got.theta)
        self.got.precision = precision or self.got.precision
        X, y = gpu.array(self.X), gpu.array(self.want.check_targets(y, N))
        self.epochs = CudaEpochs(self.got, optimizer, X, y, batch_size)
        self.epoch = 0

    def order(self) -> Any:
        return None if self.batch_size is None else np.random.default_rng([1, self.epoch]).permutation(N)

    def train(self) -> list[Any]:
        """Train one epoch and return the log of it."""
        self.epoch += 1
        self.gpu.log.clear()
        self.got.theta, self.loss = self.epochs.run_epoch(self.got.theta, self.optimizer.rate(self.epoch), self.order())
        return list(self.gpu.log)

    def check(self, tolerance: float | None = None) -> None:
        """Assert that all is as it is after NumPy's next epoch."""
        state, tolerance = next(self.reference), tolerance or TOLERANCE[self.dtype]
        assert float(self.loss) == pytest.approx(float(state.loss), rel=tolerance)
        vectors = [(self.got.theta, self.want.theta), (self.epochs.gradient, state.gradient)]
        assert self.epochs.state.keys() == state.optimizer_state.keys()
        vectors += [(self.epochs.state[name], value) for name, value in state.optimizer_state.items()]
        for got, want in vectors:
            host = got.get() if hasattr(got, "get") else got
            np.testing.assert_allclose(host, want, rtol=0, atol=tolerance)
            assert getattr(got, "dtype", None) == getattr(want, "dtype", None)


@pytest.mark.parametrize("batch_size", [None, 32])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_epochs_equal_numpys(dtype: str, optimizer: Any, batch_size: int | None, gpu: GPU, rng, targets) -> None:
    run = Run(gpu, rng, targets, dtype=dtype, optimizer=optimizer, batch_size=batch_size)
    for epoch in range(EPOCHS):
        log = run.train()
        run.check()
        assert ("graph" in log) == (epoch > 0)


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
    monkeypatch.setattr(Device, "shard_rows", 32)
    run = Run(gpu, rng, targets, sizes=sizes, batch_size=batch_size, optimizer=OPTIMIZERS[1])
    for _ in range(EPOCHS):
        run.train()
        run.check()


@pytest.mark.parametrize("batch_size", [None, 32])
def test_numbers_as_input(batch_size: int | None, gpu: GPU, rng, targets) -> None:
    run = Run(gpu, rng, targets, X=rng.standard_normal((N, 20)).astype(np.float32), batch_size=batch_size)
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


@pytest.mark.parametrize("batch_size", [None, 32])
def test_steps_are_few_and_the_same_each_time(batch_size: int | None, gpu: GPU, rng, targets) -> None:
    run = Run(gpu, rng, targets, batch_size=batch_size)
    work = [entry for entry in run.train() if isinstance(entry, tuple)]
    steps = 1 if batch_size is None else 4
    gather = [] if batch_size is None else ["gather"]
    assert [entry[0] for entry in work] == [*gather, "gemm", "fused_head", "gemm", "sgd", "tick"] * steps
    run.train()
    (graph,) = run.epochs._graphs._graphs.values()
    assert [entry for entry, _ in graph.launches] == work
    log = run.train()
    assert log == ([] if batch_size is None else ["copy from the host"]) + ["graph", "allocation", "allocation"]
    assert len(run.epochs._graphs._graphs) == 1


def test_long_epochs_are_cut_into_graphs_that_serve_again(gpu: GPU, rng, targets, monkeypatch) -> None:
    monkeypatch.setattr("mlp_xp.cuda_epochs._MOST_STEPS", 3)
    run = Run(gpu, rng, targets, batch_size=12)  # 8 whole batches and one of 4 rows
    for _ in range(EPOCHS):
        log = run.train()
        run.check()
    assert log.count("graph") == 3
    assert [len(sizes) for sizes in run.epochs._graphs._graphs] == [3, 3]


def test_parameters_and_state_can_be_put_in(gpu: GPU, rng, targets) -> None:
    """Going on in a new object, as after a resume, is going on in the old one, bit for bit."""
    options = {"optimizer": mx.Adam(lr=0.01), "batch_size": 32}
    run = Run(gpu, np.random.default_rng(0), targets, **options)
    for _ in range(3):
        run.train()
    theta, state = run.got.theta, {k: v.copy() if k != "updates" else v for k, v in run.epochs.state.items()}
    resumed = CudaEpochs(run.got, run.optimizer, gpu.array(run.X), run.epochs._y, 32)
    resumed.state = state
    run.train()
    again, loss = resumed.run_epoch(theta, run.optimizer.rate(4), run.order())
    assert again.tobytes() == run.got.theta.tobytes()
    assert float(loss) == float(run.loss)


def test_a_state_from_elsewhere_does_not_shift_the_batches(gpu: GPU, rng, targets) -> None:
    """Adam's count of updates need not be a multiple of an epoch's, as when the batch size was another."""
    run = Run(gpu, rng, targets, optimizer=mx.Adam(lr=0.01), batch_size=32)
    state = run.epochs.state
    run.epochs.state = {**state, "updates": 3}
    theta = run.want.theta.copy()
    run.train()
    reference = {**run.optimizer.init(theta), "updates": 3}
    order, y = run.order(), run.epochs._y.get()
    for rows in np.split(order, [32, 64, 96]):
        run.want.theta = theta
        gradient = run.want.loss_and_gradient(run.X[rows], y[rows])[1]
        flat = run.want.layout.join(Parameters([None, *gradient.weights], [None, *gradient.biases]))
        theta, reference = run.optimizer.update(theta, flat, reference, 0.01)
    np.testing.assert_allclose(run.got.theta.get(), theta, rtol=0, atol=1e-5)
    assert run.epochs.state["updates"] == 3 + 4


def test_what_was_handed_out_stays(gpu: GPU, rng, targets) -> None:
    run = Run(gpu, rng, targets)
    run.train()
    theta, loss = run.got.theta, run.loss
    before = theta.tobytes(), float(loss)
    run.train()
    assert before == (theta.tobytes(), float(loss))
    assert run.got.theta.tobytes() != before[0]


@pytest.mark.parametrize("missing", ["nvmath", "capture"])
def test_without_capture_every_step_is_launched(missing: str, gpu: GPU, rng, targets, monkeypatch, caplog) -> None:
    if missing == "nvmath":
        monkeypatch.setattr(cuda, "_cublas", lambda: None)
    else:
        monkeypatch.setattr("tests.cuda.fake_cupy.Stream.begin_capture", _refuse, raising=True)
    with caplog.at_level(logging.WARNING):
        run = Run(gpu, rng, targets)
        for _ in range(EPOCHS):
            log = run.train()
            run.check()
    assert "graph" not in log
    (record,) = caplog.records
    assert "no CUDA graphs" in record.getMessage()


def _refuse(stream: Any) -> None:
    raise RuntimeError("not today")
