"""JAX: a jitted step called from Python, or one compiled loop that Python calls once."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.contender import TOLERANCE, Contender, UnavailableError
from bench.problem import Parameters, Problem, scaled

_ACTIVATIONS = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh, "relu": jax.nn.relu}


def make(problem: Problem, device: str, threads: int, *, loop: bool = False, precision: str = "float32") -> Contender:
    """Return JAX's training loop.

    XLA has no setting for its threads on the CPU: it takes one per core the process may use, so the commands of this
    package narrow the process to `threads` cores before JAX starts.
    """
    if precision == "tf32" and device == "cpu":
        raise UnavailableError("not supported: TF32 is a mode of NVIDIA's tensor cores")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # others share the GPU; read when it is first used
    try:
        home = jax.devices("cpu" if device == "cpu" else "gpu")[0]
    except RuntimeError as error:
        raise UnavailableError(f"not installed: a JAX for this device ({error})") from error
    return (Loop if loop else Step)(problem, home, precision)


class Step(Contender):
    """Gather, forward, backward and update in one jitted function whose parameters are donated.

    Images and labels are arguments: closed over, XLA would treat 188 MB as constants to fold. The precision of the
    products is spelt out, as JAX's default on a GPU is TF32.
    """

    settings = "jit of the whole step (gather, forward, backward, update), parameters donated"

    def __init__(self, problem: Problem, home: Any, precision: str) -> None:
        super().__init__(problem)
        self.home, self.tolerance = home, TOLERANCE[precision]
        self.X = jax.device_put(scaled(problem.X), home)
        self.y = jax.device_put(problem.y.astype(np.int32), home)
        # jnp.array, as device_put may keep NumPy's own memory, which donation would then overwrite
        self.layers = jax.device_put([(jnp.array(W), jnp.array(b)) for W, b in problem.initial], home)
        if home.platform != "cpu":
            self.settings = f"{self.settings}, {precision} products"
        self.update = partial(_update, _ACTIVATIONS[problem.activation], problem.learning_rate, _precision(precision))
        self.step = jax.jit(self._step, donate_argnums=0)

    def _step(self, layers: Any, X: Any, y: Any, rows: Any) -> Any:
        return self.update(layers, X, y) if rows is None else self.update(layers, X[rows], y[rows])

    def copies(self) -> Any:
        """Return copies of the parameters, to be donated in a rehearsal."""
        return jax.tree.map(jnp.copy, self.layers)

    def compile(self) -> None:
        first, *_, last = [*self.problem.batches(1)] * 2
        for rows in (first, last):
            jax.block_until_ready(self.step(self.copies(), self.X, self.y, _indices(rows)))

    def run(self, epochs: int) -> None:
        for _ in range(epochs):
            self.epoch += 1
            for rows in self.problem.batches(self.epoch):
                self.layers = self.step(self.layers, self.X, self.y, _indices(rows))
        jax.block_until_ready(self.layers)

    def parameters(self) -> Parameters:
        return [(np.array(W), np.array(b)) for W, b in self.layers]


class Loop(Step):
    """Full batch: all epochs of a round in one fori_loop. Mini-batch: the whole epoch in one scan over the batches."""

    settings = "one fori_loop over the epochs (full batch) or one scan over the batches, parameters donated"

    def __init__(self, problem: Problem, home: Any, precision: str) -> None:
        super().__init__(problem, home, precision)
        self.epochs = jax.jit(self._epochs, donate_argnums=0)
        self.scan = jax.jit(self._scan, donate_argnums=0)

    def _epochs(self, layers: Any, X: Any, y: Any, epochs: Any) -> Any:
        return jax.lax.fori_loop(0, epochs, lambda _, layers: self.update(layers, X, y), layers)

    def _scan(self, layers: Any, X: Any, y: Any, order: Any) -> Any:
        size = self.problem.batch_size or len(order)
        whole = len(order) // size * size
        layers, _ = jax.lax.scan(
            lambda layers, rows: (self.update(layers, X[rows], y[rows]), None), layers, order[:whole].reshape(-1, size)
        )
        rest = order[whole:]
        return self.update(layers, X[rest], y[rest]) if len(rest) else layers

    def compile(self) -> None:
        if self.problem.batch_size is None:
            rehearsal = self.epochs(self.copies(), self.X, self.y, 0)
        else:
            rehearsal = self.scan(self.copies(), self.X, self.y, _indices(self.problem.order(1)))
        jax.block_until_ready(rehearsal)

    def run(self, epochs: int) -> None:
        if self.problem.batch_size is None:
            self.epoch += epochs
            self.layers = self.epochs(self.layers, self.X, self.y, epochs)
        else:
            for _ in range(epochs):
                self.epoch += 1
                self.layers = self.scan(self.layers, self.X, self.y, _indices(self.problem.order(self.epoch)))
        jax.block_until_ready(self.layers)


def _indices(rows: Any) -> Any:
    """Row numbers in JAX's integer type; None for all rows."""
    return None if isinstance(rows, slice) else rows.astype(np.int32)


def _precision(name: str) -> Any:
    return jax.lax.Precision.HIGHEST if name == "float32" else jax.lax.DotAlgorithmPreset.TF32_TF32_F32


def _update(activation: Any, rate: float, precision: Any, layers: Any, X: Any, y: Any) -> Any:
    """One step of gradient descent on the rows X (m, d), y (m,)."""

    def loss(layers: Any) -> Any:
        A = X
        for W, b in layers[:-1]:
            A = activation(jnp.matmul(A, W.T, precision=precision) + b)
        W, b = layers[-1]
        Z = jnp.matmul(A, W.T, precision=precision) + b
        hit = jnp.take_along_axis(Z, y[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(Z, axis=1) - hit)

    return jax.tree.map(lambda part, slope: part - rate * slope, layers, jax.grad(loss)(layers))
