"""`mlp_xp`, through its public names only."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from typing import Any

import numpy as np

import mlp_xp as mx
from bench.contender import TOLERANCE, Contender, UnavailableError
from bench.problem import Parameters, Problem, scaled


def make(
    problem: Problem,
    device: str,
    threads: int,
    *,
    plan: str = "auto",
    pixels: str = "uint8",
    dtype: str = "float32",
    precision: str | None = None,
    library: str | None = None,
    callbacks: bool = False,
) -> Contender:
    """Return `mx.epochs` on this device.

    `library` names another array library ("torch", "jax") on the same one. With `callbacks`, all that `mx.fit` may put
    on an epoch is put on it: history, progress bar, early stopping, a function of the user's.
    """
    if library == "jax" and device != "cpu":
        raise UnavailableError("not supported: JAX chooses its own device; run it with --device cpu")
    if library is not None:
        device = {"cpu": library, "cuda": f"{library}:cuda"}[device]
    return Ours(problem, device, threads, plan, pixels, dtype, precision, callbacks)


class Ours(Contender):
    """One generator, asked for its next state once an epoch."""

    def __init__(
        self,
        problem: Problem,
        device: str,
        threads: int,
        plan: str,
        pixels: str,
        dtype: str,
        precision: str | None,
        callbacks: bool,
    ) -> None:
        super().__init__(problem)
        self.settings = f"device {device}, plan {plan}, {pixels} images, {dtype}"
        self.settings += "" if precision is None else f", {precision} products"
        self.settings += ", callbacks" * callbacks
        self.tolerance = TOLERANCE.get(precision or "", self.tolerance)
        self.callbacks = _all_callbacks() if callbacks else []
        try:
            self.model = mx.MLP(
                list(problem.sizes),
                activation=problem.activation,
                dtype=dtype,
                device=device,
                seed=problem.seed,
                precision=precision,
            )
        except ValueError as error:
            raise UnavailableError(f"not available: {error}") from error
        self.model.weights = [W for W, _ in problem.initial]
        self.model.biases = [b for _, b in problem.initial]
        self.states = mx.epochs(
            self.model,
            problem.X if pixels == "uint8" else scaled(problem.X),
            problem.y,
            optimizer=mx.SGD(lr=problem.learning_rate),
            batch_size=problem.batch_size,
            plan=plan,
            threads=threads,
        )

    def run(self, epochs: int) -> None:
        for _ in range(epochs):
            self.epoch += 1
            state = next(self.states)
            for callback in self.callbacks:
                callback(state)
        float(state.loss)  # reading the loss waits for the device
        self.columns = state.plan.mean_columns

    def parameters(self) -> Parameters:
        return [(np.array(W), np.array(b)) for W, b in zip(self.model.weights, self.model.biases, strict=True)]


def _all_callbacks() -> list[Any]:
    seen: list[float] = []
    with redirect_stderr(io.StringIO()):
        bar = mx.Progress(1_000_000, disable=False)
    return [mx.History(), mx.EarlyStopping(patience=1_000_000), bar, lambda state: seen.append(state.seconds)]
