"""JAX: a jitted step called from Python, or one compiled loop that Python calls once."""

from __future__ import annotations

import math
import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.contender import TOLERANCE, Contender, UnavailableError
from bench.problem import BETA1, BETA2, EPSILON, MOMENTUM, Parameters, Problem, scaled

_ACTIVATIONS = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh, "relu": jax.nn.relu}


def make(
    problem: Problem,
    device: str,
    threads: int,
    *,
    loop: bool = False,
    precision: str = "float32",
    inputs_first: bool = False,
) -> Contender:
    """Return JAX's training loop; `inputs_first` stores weights as (in, out), which is faster for some networks.

    XLA has no setting for its threads on the CPU: it takes one per core the process may use, so the commands of this
    package narrow the process to `threads` cores before JAX starts.
    """
    if precision == "tf32" and device == "cpu":
        raise UnavailableError("not supported: TF32 is a mode of NVIDIA's tensor cores")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # others share the GPU; read when it is first used
    if problem.dtype == "float64":
        jax.config.update("jax_enable_x64", True)  # the process's; without it, float64 becomes float32
    try:
        home = jax.devices("cpu" if device == "cpu" else "gpu")[0]
    except RuntimeError as error:
        raise UnavailableError(f"not installed: a JAX for this device ({error})") from error
    return (Loop if loop else Step)(problem, home, precision, inputs_first)


class Step(Contender):
    """Gather, forward, backward and update in one jitted function; parameters and the optimizer's state are donated.

    Data are arguments: closed over, XLA would treat 188 MB as constants to fold. The precision of the products is
    spelt out, as JAX's default on a GPU is TF32.
    """

    settings = "jit of the whole step (gather, forward, backward, update), parameters donated"

    def __init__(self, problem: Problem, home: Any, precision: str, inputs_first: bool) -> None:
        super().__init__(problem)
        self.home, self.inputs_first = home, inputs_first
        self.tolerance = TOLERANCE[problem.dtype if precision == "float32" else precision]
        self.X = jax.device_put(scaled(problem.X, problem.dtype), home)
        y = problem.y.astype(np.int32) if problem.output == "softmax" else problem.y
        self.y = jax.device_put(y, home)
        # jnp.array, as device_put may keep NumPy's own memory, which donation would then overwrite
        layers = [(jnp.array(W.T if inputs_first else W), jnp.array(b)) for W, b in problem.initial]
        self.state = jax.device_put((layers, *_kept(problem.optimizer, layers)), home)
        if home.platform != "cpu":
            self.settings = f"{self.settings}, {precision} products"
        if inputs_first:
            self.settings = f"{self.settings}, weights (in, out)"
        self.update = partial(_update, problem, _precision(precision), inputs_first)
        self.step = jax.jit(self._step, donate_argnums=0)

    def _step(self, state: Any, X: Any, y: Any, rows: Any) -> Any:
        return self.update(state, X, y) if rows is None else self.update(state, X[rows], y[rows])

    def copies(self) -> Any:
        """Return copies of the state, to be donated in a rehearsal."""
        return jax.tree.map(jnp.copy, self.state)

    def compile(self) -> None:
        first, *_, last = [*self.problem.batches(1)] * 2
        for rows in (first, last):
            jax.block_until_ready(self.step(self.copies(), self.X, self.y, _indices(rows)))

    def run(self, epochs: int) -> None:
        for _ in range(epochs):
            self.epoch += 1
            for rows in self.problem.batches(self.epoch):
                self.state = self.step(self.state, self.X, self.y, _indices(rows))
        jax.block_until_ready(self.state)

    def parameters(self) -> Parameters:
        return [(np.array(W.T if self.inputs_first else W), np.array(b)) for W, b in self.state[0]]


class Loop(Step):
    """Full batch: all epochs of a round in one fori_loop. Mini-batch: the whole epoch in one scan over the batches."""

    settings = "one fori_loop over the epochs (full batch) or one scan over the batches, parameters donated"

    def __init__(self, problem: Problem, home: Any, precision: str, inputs_first: bool) -> None:
        super().__init__(problem, home, precision, inputs_first)
        self.epochs = jax.jit(self._epochs, donate_argnums=0)
        self.scan = jax.jit(self._scan, donate_argnums=0)

    def _epochs(self, state: Any, X: Any, y: Any, epochs: Any) -> Any:
        return jax.lax.fori_loop(0, epochs, lambda _, state: self.update(state, X, y), state)

    def _scan(self, state: Any, X: Any, y: Any, order: Any) -> Any:
        size = self.problem.batch_size or len(order)
        whole = len(order) // size * size
        state, _ = jax.lax.scan(
            lambda state, rows: (self.update(state, X[rows], y[rows]), None), state, order[:whole].reshape(-1, size)
        )
        rest = order[whole:]
        return self.update(state, X[rest], y[rest]) if len(rest) else state

    def compile(self) -> None:
        if self.problem.batch_size is None:
            rehearsal = self.epochs(self.copies(), self.X, self.y, 0)
        else:
            rehearsal = self.scan(self.copies(), self.X, self.y, _indices(self.problem.order(1)))
        jax.block_until_ready(rehearsal)

    def run(self, epochs: int) -> None:
        if self.problem.batch_size is None:
            self.epoch += epochs
            self.state = self.epochs(self.state, self.X, self.y, epochs)
        else:
            for _ in range(epochs):
                self.epoch += 1
                self.state = self.scan(self.state, self.X, self.y, _indices(self.problem.order(self.epoch)))
        jax.block_until_ready(self.state)


def _indices(rows: Any) -> Any:
    """Row numbers in JAX's integer type; None for all rows."""
    return None if isinstance(rows, slice) else rows.astype(np.int32)


def _precision(name: str) -> Any:
    return jax.lax.Precision.HIGHEST if name == "float32" else jax.lax.DotAlgorithmPreset.TF32_TF32_F32


def _kept(optimizer: str, layers: Any) -> tuple[Any, ...]:
    """Return what an optimizer keeps beside the parameters, at its beginning."""
    zeros = partial(jax.tree.map, jnp.zeros_like, layers)
    return {"sgd": (), "momentum": (zeros(),), "adam": (zeros(), zeros(), jnp.zeros((), np.int32))}[optimizer]


def _update(problem: Problem, precision: Any, inputs_first: bool, state: Any, X: Any, y: Any) -> Any:
    """One update on the rows X (m, d), y (m,) or (m, k)."""
    activation = _ACTIVATIONS[problem.activation]

    def affine(A: Any, W: Any, b: Any) -> Any:
        return jnp.matmul(A, W if inputs_first else W.T, precision=precision) + b

    def loss(layers: Any) -> Any:
        A = X
        for W, b in layers[:-1]:
            A = activation(affine(A, W, b))
        Z = affine(A, *layers[-1])
        if problem.output == "linear":
            return jnp.sum((Z - y) ** 2) / (2 * len(Z))
        hit = jnp.take_along_axis(Z, y[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(Z, axis=1) - hit)

    layers, *kept = state
    return _optimized(problem, layers, kept, jax.grad(loss)(layers))


def _optimized(problem: Problem, layers: Any, kept: Any, gradient: Any) -> Any:
    """Return the state after an update by this gradient, which XLA fuses into one pass over the parameters."""
    rate, over = problem.learning_rate, jax.tree.map
    if problem.optimizer == "sgd":
        return (over(lambda part, slope: part - rate * slope, layers, gradient),)
    if problem.optimizer == "momentum":
        velocity = over(lambda v, slope: MOMENTUM * v + slope, kept[0], gradient)
        return over(lambda part, v: part - rate * v, layers, velocity), velocity
    count = kept[2] + 1
    mean = over(lambda m, slope: BETA1 * m + (1 - BETA1) * slope, kept[0], gradient)
    square = over(lambda v, slope: BETA2 * v + (1 - BETA2) * slope * slope, kept[1], gradient)
    t = count.astype(problem.dtype)
    # 1 - beta**t loses digits in float32 for small t
    of_mean, of_square = -jnp.expm1(t * math.log(BETA1)), -jnp.expm1(t * math.log(BETA2))
    layers = over(
        lambda part, m, v: part - rate / of_mean * m / (jnp.sqrt(v / of_square) + EPSILON), layers, mean, square
    )
    return layers, mean, square, count
