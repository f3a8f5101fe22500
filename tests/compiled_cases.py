"""Random networks for the compiled library, trained by it or by NumPy; and the library built anew."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import mlp_xp as mx
from mlp_xp.dropout import Dropout, check_dropout
from mlp_xp.engines import Done, Setup
from mlp_xp.engines.compiled import CompiledEngine
from mlp_xp.engines.threads import ThreadEngine
from mlp_xp.kernels.cpu import compiled
from mlp_xp.kernels.functions import ACTIVATIONS
from mlp_xp.optim import Optimizer
from mlp_xp.rows.plan import make_plan

ROOT = Path(__file__).parents[1]
REPLAY = compiled.FOLDER  # of the checkout, or where a wheel was installed
KINKED = {"relu", "leaky_relu"}


@dataclass(frozen=True, eq=False)
class Case:
    """What is trained, and on what."""

    sizes: list[int]
    activations: list[str]
    output: str
    optimizer: Optimizer
    X: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any]
    batch_size: int | None
    dtype: str = "float64"
    epochs: int = 2
    seed: int = 0
    dropout: tuple[float, ...] | float = 0.0

    def model(self) -> mx.MLP:
        """Return the network before training: the same numbers in both dtypes."""
        model = mx.MLP(self.sizes, self.activations, output=self.output, dtype=self.dtype, seed=self.seed)
        rng = np.random.default_rng(self.seed)
        pairs = zip(self.sizes[1:], self.sizes[:-1], strict=True)
        scales = [0.7 * W / W.shape[1] ** 0.5 for W in map(rng.standard_normal, pairs)]
        model.weights = [W.astype(np.float32).astype(self.dtype) for W in scales]
        model.biases = [(0.1 * rng.standard_normal(h)).astype(np.float32).astype(self.dtype) for h in self.sizes[1:]]
        return model

    def in_double(self) -> Case:
        """Return the same case in float64."""
        X = self.X if self.X.dtype == np.uint8 else self.X.astype(np.float64)
        return replace(self, X=X, y=self.y if self.y.ndim == 1 else self.y.astype(np.float64), dtype="float64")


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training leaves: sums of losses per epoch, and vectors (P,)."""

    losses: np.ndarray[Any, Any]
    theta: np.ndarray[Any, Any]
    gradient: np.ndarray[Any, Any]
    state: dict[str, Any]

    def bits(self) -> tuple[bytes, ...]:
        """Return all numbers, to be compared."""
        vectors = (self.losses, self.theta, self.gradient, *self.state.values())
        return tuple(np.asarray(vector).tobytes() for vector in vectors)

    def error(self, want: Trained) -> float:
        """Return the largest deviation, relative to the largest number of its kind."""
        pairs = [(self.losses, want.losses), (self.theta, want.theta), (self.gradient, want.gradient)]
        pairs += [(value, want.state[name]) for name, value in self.state.items()]
        return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)) for a, b in pairs)


def train(
    case: Case, engine: Any = CompiledEngine, *, plan: str = "dense", threads: int = 1,
    pause: Callable[[], bool] | None = None,
) -> Trained:  # fmt: skip
    """Train by one engine."""
    model, losses = case.model(), []
    rows = model.open(case.X)
    objective = replace(model.objective, l2=case.optimizer.l2)
    targets = model.targets(case.y, rows.shape[0])
    chosen = make_plan(rows, model.device, plan, skips=True)
    rates = (0.0, *check_dropout(case.dropout, len(case.sizes) - 2), 0.0)
    dropout = Dropout(rates, case.sizes, case.seed) if any(rates) else None
    setup = Setup(model, objective, case.optimizer, rows, targets, case.batch_size, chosen, threads, dropout=dropout)
    with engine(setup) as running:
        assert running.plan.kind == plan
        theta = model.theta
        for epoch in range(1, case.epochs + 1):
            running.begin(theta, epoch, case.optimizer.rate(epoch), Done())
            done = Done()
            while done.updates < running.updates:
                done = running.advance(pause)
            assert done.rows == rows.shape[0]
            losses.append(float(done.loss_sum))
            theta = running.theta()
        return Trained(np.array(losses), theta, running.gradient().copy(), dict(running.state()))


def by_numpy(case: Case) -> Trained:
    """Train by the engine that the compiled one replaces, in float64."""
    return train(case.in_double(), ThreadEngine)


def draw_width(rng: np.random.Generator) -> int:
    return int(rng.integers(1, 71) if rng.random() < 0.7 else 16 * rng.integers(1, 9))


def draw_data(rng: np.random.Generator, n: int, d: int, dtype: str) -> np.ndarray[Any, Any]:
    """Return pixels or numbers (n, d), of which some share is zero; the first row is zero at times."""
    used = rng.random((n, d)) < rng.choice([0.05, 0.3, 0.8, 1.0])
    used[0] &= rng.random() < 0.7
    if rng.random() < 0.5:
        return np.where(used, rng.integers(0, 256, (n, d)), 0).astype(np.uint8)
    return np.where(used, rng.standard_normal((n, d)), 0).astype(np.float32).astype(dtype)


def draw_optimizer(rng: np.random.Generator) -> Optimizer:
    """Return any; Adam's epsilon keeps rounding errors of tiny gradients small."""
    common = {
        "l2": float(rng.choice([0.0, 0.03])), "lr_bias": float(rng.choice([0.0, 0.03])) or None,
        "lr": float(rng.choice([0.01, 0.02])),
    }  # fmt: skip
    return [
        mx.SGD(lr=0.02),
        mx.SGD(**common),
        mx.SGD(**common, momentum=0.8),
        mx.SGD(**common, momentum=0.6, nesterov=True),
        mx.Adam(**{**common, "lr": 0.003}, epsilon=1e-3),
        mx.AdamW(**{**common, "lr": 0.003}, beta1=0.7, beta2=0.9, epsilon=1e-3, weight_decay=0.2),
    ][rng.integers(6)]


def draw(seed: int, dtype: str = "float64", *, smooth: bool = False) -> Case:
    """Return a random case; `smooth` leaves out kinks, on whose two sides float32 and float64 may be."""
    rng = np.random.default_rng(seed)
    n, d, layers = int(rng.integers(1, 201)), draw_width(rng), int(rng.integers(1, 5))
    outputs = sorted(mx.OUTPUTS.keys() - ({"perceptron"} if smooth else set()))
    output = str(rng.choice(outputs))
    k = int(rng.integers(2, 20)) if mx.OUTPUTS[output].task == "classes" else draw_width(rng)
    if rng.random() < 0.15:  # several slices of columns
        d = int(rng.integers(180, 420))
    sizes = [d, *(draw_width(rng) for _ in range(layers - 1)), k]
    names = sorted(ACTIVATIONS.keys() - (KINKED if smooth else set()))
    y = draw_targets(rng, output, n, k, dtype)
    X = draw_data(rng, n, d, dtype)
    batch_size = None if rng.random() < 0.4 else int(min(n, rng.choice([1, 2, 7, 16, 33, 64, 150, 200])))
    if batch_size is not None and n > 20 * batch_size:  # few updates: rounding errors grow
        n = 20 * batch_size
    return Case(sizes, [str(rng.choice(names)) for _ in sizes[1:-1]], output, draw_optimizer(rng), X[:n], y[:n],
                batch_size, dtype, seed=seed, dropout=draw_dropout(rng, layers - 1))  # fmt: skip


def draw_dropout(rng: np.random.Generator, hidden: int) -> tuple[float, ...] | float:
    """Return rates of so many hidden layers, of which some or all are zero at times."""
    return 0.0 if rng.random() < 0.5 else tuple(rng.choice([0.0, 0.1, 0.5, 0.9], hidden).tolist())


def draw_targets(rng: np.random.Generator, output: str, n: int, k: int, dtype: str) -> np.ndarray[Any, Any]:
    task = mx.OUTPUTS[output].task
    if task == "classes":
        return rng.choice([0, k - 1, k // 2], n)  # both ends are among them
    if task == "labels":
        return rng.integers(0, 2, (n, k)).astype(dtype)
    return 0.3 * rng.standard_normal((n, k)).astype(np.float32).astype(dtype)


@cache
def build() -> Any:
    """Return the module that builds the library; without hatchling it is imported all the same."""
    name = "hatchling.builders.hooks.plugin.interface"
    stand_in = types.ModuleType(name)
    stand_in.BuildHookInterface = object  # type: ignore[attr-defined]
    known = sys.modules.get(name)
    sys.modules[name] = stand_in
    try:
        spec = importlib.util.spec_from_file_location("hatch_build_in_tests", ROOT / "hatch_build.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        if known is None:
            del sys.modules[name]
        else:
            sys.modules[name] = known
    return module
