"""Random networks, data, and optimizers on a GPU against NumPy, each drawn from the suite's seed and its own number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import array_api_compat as compat
import numpy as np
import pytest

import mlp_xp as mx
from mlp_xp.devices import CupyDevice
from mlp_xp.kernels import ACTIVATIONS
from mlp_xp.optim import SGD, Optimizer
from mlp_xp.optim.schedules import CosineDecay, ExponentialDecay, Schedule, StepDecay, WarmUp

from . import emulated as emulation

pytestmark = pytest.mark.gpu

NETWORKS = 300
SMOOTH = ["sigmoid", "tanh", "identity"]  # in float32 a Z within rounding of 0 may be on the other side of a kink
ERROR = {"fp64": 1e-12, "fp32": 1e-5, "fp16x2": 1e-5, "tf32": 1e-2, "bf16": 1e-1}  # of the largest number


@dataclass(frozen=True)
class Smoothed(Optimizer):
    """An optimizer that the kernels do not know: it follows the mean of all gradients, and returns a new array."""

    def init(self, theta: Any) -> dict[str, Any]:
        return {"sum": compat.array_namespace(theta).zeros_like(theta), "updates": 0}

    def update(self, theta: Any, grad: Any, state: Any, rate: Any) -> tuple[Any, dict[str, Any]]:
        total, count = state["sum"] + grad, state["updates"] + 1
        return theta - rate * total / count, {"sum": total, "updates": count}


@dataclass(frozen=True)
class Halved(SGD):
    """A rule of its own beside a known one."""

    def update(self, theta: Any, grad: Any, state: Any, rate: Any) -> tuple[Any, dict[str, Any]]:
        return super().update(theta, grad / 2, state, rate)


class Setting(NamedTuple):
    """What is drawn; a failing test prints it."""

    sizes: list[int]
    activation: list[str]
    output: str
    precision: str
    init: str
    rows: int
    data: str
    targets_on_device: bool
    optimizer: Optimizer
    batch_size: int | None
    plan: str
    shard_rows: int
    block_rows: int
    steps_of_graph: int
    streamed: bool
    pages: bool
    order: int


def draw(rng: np.random.Generator) -> Setting:
    """Draw a network, its data, and how it is trained."""

    def one(values: Any) -> Any:
        return values[rng.integers(len(values))]

    precision, hidden = one(["fp64", "fp64", "fp64", *ERROR]), int(rng.integers(4))
    rows = int(rng.integers(1, one([5, 30, 30, 90, 200]) + 1))
    dtype = mx.devices.PRECISIONS[precision]
    widths = [int(rng.integers(1, 34)) if rng.integers(2) else one([4, 12, 32, 64]) for _ in range(hidden)]
    data = "uint8" if precision == "fp16x2" else one(["uint8", "float32", "float64", "uint8 there", f"{dtype} there"])
    output = one(list(mx.OUTPUTS) if dtype == "float64" else [name for name in mx.OUTPUTS if name != "perceptron"])
    names = list(ACTIVATIONS) if dtype == "float64" else SMOOTH
    if output == "perceptron":
        names = [
            name for name in names if name != "relu"
        ]  # of units that are all dead, too, it computes a bias: `data`
    return Setting(
        sizes=[int(rng.integers(1, 41)), *widths, one([2, 3, 5, 10] if "softmax" in output else [1, 2, 5, 17])],
        activation=[one(names) for _ in widths], output=output, precision=precision,
        init=one(["xavier_normal", "xavier_uniform", "he_normal"]), rows=rows, data=data,
        targets_on_device=bool(rng.integers(2)), optimizer=draw_optimizer(rng),
        batch_size=one([None, None, int(rng.integers(1 + rows // 8, rows + 1)), 1 + rows // 3, rows, rows + 7]),
        plan=one(["auto", "dense", "zero", "ragged"]),
        shard_rows=one([7 if rows <= 30 else 40, 64, 65_536]), block_rows=one([5, 8192]),
        steps_of_graph=one([2, 512]), streamed="there" not in data and one([False, False, True]),
        pages=one([False, False, False, True]), order=one([0, 0, -1, int(rng.integers(1, 1000))]),
    )  # fmt: skip


def draw_optimizer(rng: np.random.Generator) -> Optimizer:
    """Draw an optimizer whose steps are small enough that rounding does not grow."""
    lr = float(rng.choice([0.001, 0.01, 0.03]))
    schedules = (
        lr, Schedule(lr), StepDecay(lr, every=2), ExponentialDecay(lr, factor=0.7), CosineDecay(lr, epochs=2),
        WarmUp(lr, epochs=2), WarmUp(lr, epochs=1, after=ExponentialDecay(lr)),
    )  # fmt: skip
    shared: dict[str, Any] = {
        "lr": schedules[rng.integers(len(schedules))],
        "l2": float(rng.choice([0, 1e-3, 0.1])),
        "lr_bias": [None, 2 * lr, lr / 3][rng.integers(3)],
    }
    adam = {"epsilon": 0.01, "beta1": float(rng.choice([0, 0.9])), "beta2": float(rng.choice([0.9, 0.999]))}
    return [
        lambda: SGD(**shared), lambda: SGD(**shared, momentum=0.9), lambda: SGD(**shared, momentum=0.7, nesterov=True),
        lambda: mx.Adam(**shared, **adam), lambda: mx.AdamW(**shared, **adam, weight_decay=0.1),
        lambda: Smoothed(**shared), lambda: Halved(**shared, momentum=0.5),
    ][rng.integers(7)]()  # fmt: skip


def draw_data(rng: np.random.Generator, s: Setting) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Draw samples with exact zeros, and columns of nothing else, and their targets."""
    (n, d, k), task = (s.rows, s.sizes[0], s.sizes[-1]), mx.OUTPUTS[s.output].task
    kept = (rng.random((n, d)) < rng.random()) & (rng.random(d) < 0.8)
    dtype = s.data.split()[0]
    X = (rng.integers(2, 256, (n, d)) if dtype == "uint8" else rng.standard_normal((n, d))) * kept
    if dtype == "uint8":
        X[0, 0] = 2  # only zeros and ones would be warned of
    if s.output == "perceptron":  # of zeros alone it computes a bias, whose gradients of 1 and -1 may cancel: a kink
        X[~X.any(axis=1), 0] = 2
    y: Any = rng.standard_normal((n, k))
    if task == "classes":
        y = rng.integers(0, k, n)
        y = np.eye(k, dtype=int)[y] if rng.integers(2) else y
    elif task == "labels":
        y = rng.integers(0, 2, (n, k))
    return X.astype(dtype), y[:, 0] if k == 1 and rng.integers(2) else y


def train(s: Setting, device: str, X: Any, y: Any) -> tuple[np.ndarray[Any, Any], ...] | str:
    """Return the losses, parameters, and outputs after three epochs, or what was wrong with the setting."""
    precision, dtype = None if device == "cpu" else s.precision, mx.devices.PRECISIONS[s.precision]
    try:
        model = mx.MLP(s.sizes, s.activation, s.output, s.init, dtype, device, seed=1, precision=precision)
        if device == "cuda":
            X = model.device.asarray(X) if "there" in s.data else X
            y = model.device.asarray(y) if s.targets_on_device else y
        history = mx.fit(model, X, y, epochs=3, optimizer=s.optimizer, batch_size=s.batch_size, plan=s.plan)
    except ValueError as error:
        return str(error)
    assert model.theta.dtype.name == dtype
    return np.asarray(history.loss), model.device.to_host(model.theta), model.outputs(X)


@contextmanager
def made_hard(s: Setting, config: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have few rows make several shards, blocks, and graphs, and use what only an emulated GPU offers."""
    import cupy

    monkeypatch.setattr(CupyDevice, "shard_rows", s.shard_rows)
    monkeypatch.setattr(CupyDevice, "block_rows", s.block_rows)
    monkeypatch.setattr("mlp_xp.engines.cuda.engine._MOST_STEPS", s.steps_of_graph)
    if s.streamed:
        monkeypatch.setattr(
            "mlp_xp.engines.cuda.memory._attempts", lambda shard_rows, size, on_host: iter([(True, shard_rows)])
        )
    with ExitStack() as stack:
        if config.getoption("emulated_cuda"):
            monkeypatch.setattr("mlp_xp.kernels.cuda.products._WORKSPACE", 256)  # the emulated cuBLAS needs none
            stack.enter_context(emulation.settings(pages=s.pages, order=s.order))
            if s.pages:
                stack.enter_context(cupy.cuda.using_allocator(None))
        yield
    cupy.get_default_memory_pool().free_all_blocks()


@pytest.mark.parametrize("number", range(NETWORKS))
def test_a_random_network_trains_as_numpys_does(number: int, pytestconfig: Any, monkeypatch, caplog) -> None:
    rng = np.random.default_rng([pytestconfig.seed, number])
    setting = draw(rng)
    X, y = draw_data(rng, setting)
    want = train(setting, "cpu", X, y)
    with made_hard(setting, pytestconfig, monkeypatch):
        got = train(setting, "cuda", X, y)
    if isinstance(want, str) or isinstance(got, str):
        assert got == want, setting
        return
    for name, a, b in zip(("losses", "theta", "outputs"), got, want, strict=True):
        error, largest = np.abs(a.astype(float) - b).max(), np.abs(b).max()
        if name == "outputs" or setting.precision in ("tf32", "bf16"):  # sums of numbers about 1, which may cancel
            largest = max(1, largest)
        assert error <= ERROR[setting.precision] * largest, f"{name} up to {largest}, off by {error}: {setting}"
    assert not caplog.records, setting  # everything that can be captured was


# Each spoils what is given to `fit`.
FLAWS: dict[str, Any] = {
    "NaN in X": lambda given: given["X"].__setitem__((3, 1), np.nan),
    "infinity in X": lambda given: given["X"].__setitem__((0, 0), -np.inf),
    "numbers that float32 cannot hold": lambda given: given["X"].__setitem__((0, 0), 1e300),
    "a column too many": lambda given: given.update(X=np.zeros((9, 5))),
    "no rows": lambda given: given.update(X=np.zeros((0, 4)), y=np.zeros(0, int)),
    "a single row": lambda given: given.update(X=np.zeros(4)),
    "complex X": lambda given: given.update(X=given["X"] * 1j),
    "a target too few": lambda given: given.update(y=given["y"][1:]),
    "a label too large": lambda given: given["y"].__setitem__(0, 3),
    "a negative label": lambda given: given["y"].__setitem__(0, -1),
    "labels with a fraction": lambda given: given.update(y=given["y"] + 0.5),
    "two labels in a row": lambda given: given.update(y=np.ones((9, 3))),
    "targets too wide": lambda given: given.update(y=np.ones((9, 4))),
    "no rows in a batch": lambda given: given.update(batch_size=0),
    "no epochs": lambda given: given.update(epochs=0),
    "no threads": lambda given: given.update(threads=0),
    "an unknown plan": lambda given: given.update(plan="sorted"),
    "no optimizer": lambda given: given.update(optimizer="sgd"),
    "no callback": lambda given: given.update(callbacks=[3]),
    "validation data of another width": lambda given: given.update(validation=(np.zeros((2, 3)), [0, 1])),
}


@pytest.mark.parametrize("flaw", FLAWS)
@pytest.mark.parametrize("there", [False, True], ids=["data on the host", "data there"])
def test_what_does_not_fit_is_refused_as_numpys_is(there: bool, flaw: str, rng) -> None:
    given = {"X": rng.standard_normal((9, 4)), "y": rng.integers(0, 3, 9), "epochs": 2}
    FLAWS[flaw](given)
    messages = []
    for name in ("cpu", "cuda"):
        model = mx.MLP([4, 5, 3], device=name)
        before, own = model.device.to_host(model.theta).copy(), given
        if there:
            own = {**given, "X": model.device.asarray(given["X"]), "y": model.device.asarray(given["y"])}
        with pytest.raises(ValueError, match=r"\w") as refused:
            mx.fit(model, **own)
        messages.append(str(refused.value).replace(f"device {name!r}", "the device"))
        np.testing.assert_array_equal(model.device.to_host(model.theta), before)
    assert messages[0] == messages[1]
