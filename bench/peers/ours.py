"""`mlp_xp`, through its public names only; the compiled library is turned off from outside."""

from __future__ import annotations

import io
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from typing import Any
from unittest.mock import patch

import numpy as np

import mlp_xp as mx
from bench.contender import TOLERANCE, Contender, UnavailableError
from bench.problem import BETA1, BETA2, EPSILON, MOMENTUM, Parameters, Problem, scaled

_OUTPUTS = {"softmax": "softmax", "linear": "identity"}
_OPTIMIZERS = {
    "sgd": lambda rate: mx.SGD(lr=rate),
    "momentum": lambda rate: mx.SGD(lr=rate, momentum=MOMENTUM),
    "adam": lambda rate: mx.Adam(lr=rate, beta1=BETA1, beta2=BETA2, epsilon=EPSILON),
}


def without_library() -> AbstractContextManager[Any]:
    """Have engines that are made meanwhile compute by NumPy, as if there had been no C compiler.

    As the environment variable MLP_XP_COMPILED=0 does, which is read once in a process; both kinds of engines take
    turns in this one.
    """
    return patch("mlp_xp.kernels.cpu.compiled.library", lambda: None)


def make(
    problem: Problem,
    device: str,
    threads: int,
    *,
    plan: str = "auto",
    floats: bool = False,
    dtype: str | None = None,
    precision: str | None = None,
    library: str | None = None,
    callbacks: bool = False,
    compiled: bool = True,
) -> Contender:
    """Return `mx.epochs` on this device; with `floats`, bytes are divided by 255 before, as the peers' are.

    `library` names another array library ("torch", "jax") on the same one. With `callbacks`, all that `mx.fit` may put
    on an epoch is put on it: history, progress bar, early stopping, a function of the user's.
    """
    if library == "jax" and device != "cpu":
        raise UnavailableError("not supported: JAX chooses its own device; run it with --device cpu")
    if not compiled and device != "cpu":
        raise UnavailableError("not supported: the compiled library is for the CPU, and NumPy too")
    if library is not None:
        device = {"cpu": library, "cuda": f"{library}:cuda"}[device]
    with nullcontext() if compiled else without_library():
        return Ours(problem, device, threads, plan, floats, dtype or problem.dtype, precision, callbacks)


class Ours(Contender):
    """One generator, asked for its next state once an epoch."""

    def __init__(
        self,
        problem: Problem,
        device: str,
        threads: int,
        plan: str,
        floats: bool,
        dtype: str,
        precision: str | None,
        callbacks: bool,
    ) -> None:
        super().__init__(problem)
        given = scaled(problem.X, problem.dtype) if floats else problem.X
        self.asked = f"device {device}, plan {plan}, {given.dtype} inputs, {dtype}"
        self.asked += "" if precision is None else f", {precision} products"
        self.asked += ", callbacks" * callbacks
        self.tolerance = TOLERANCE.get(precision or dtype, self.tolerance)
        self.callbacks = _all_callbacks() if callbacks else []
        try:
            self.model = mx.MLP(
                list(problem.sizes),
                activation=problem.activation,
                output=_OUTPUTS[problem.output],
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
            given,
            problem.y,
            optimizer=_OPTIMIZERS[problem.optimizer](problem.learning_rate),
            batch_size=problem.batch_size,
            plan=plan,
            threads=threads,
        )
        self.settings = self.asked

    def run(self, epochs: int) -> None:
        for _ in range(epochs):
            self.epoch += 1
            state = next(self.states)
            for callback in self.callbacks:
                callback(state)
        float(state.loss)  # reading the loss waits for the device
        self.columns = state.plan.mean_columns
        self.settings = f"{self.asked}; took plan {state.plan.kind}, {type(state.engine).__name__}"

    def parameters(self) -> Parameters:
        return [(np.array(W), np.array(b)) for W, b in zip(self.model.weights, self.model.biases, strict=True)]


def _all_callbacks() -> list[Any]:
    seen: list[float] = []
    with redirect_stderr(io.StringIO()):
        bar = mx.Progress(1_000_000, disable=False)
    return [mx.History(), mx.EarlyStopping(patience=1_000_000), bar, lambda state: seen.append(state.seconds)]
