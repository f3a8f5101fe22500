"""What XLA compiles for the engine of JAX: the text of forward and backward, and a loop over updates around it."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from ..devices import Array
from ..kernels import ACTIVATIONS, LOSSES, GenericKernels
from ..model import Network, grad_sum
from ..objective import Objective
from ..optim import SGD, Adam, AdamW, Optimizer, OptimizerState
from ..params import Layout, Parameters
from .base import Setup

__all__ = ["Program", "program_of"]

_CACHED = 2**20  # numbers, features and activations of a shard, that the caches of a core hold
_LEAST_ROWS, _MOST_ROWS = 1024, 8192  # of a shard; sums over more would cost digits of float32
_SMALL = 16_384  # parameters, up to which one vector is updated faster than many arrays

_Parts = list[Array]


class Program:
    """What XLA compiles: updates, and the ways of a vector (P,) into parts and back.

    Parts are the arrays that the optimizer updates one by one: the vector itself, if the optimizer may look at it as a
    whole or it is short, and otherwise W[1] to W[L] and b[1] to b[L], which then need not be cut out of a vector and
    put together again in each update.

    Parameters
    ----------
    g : tuple of str
        Activations of layers 1 to L; g[0] is unused.
    objective : Objective
    layout : Layout
    dtype : str
    optimizer : Optimizer
    elementwise : bool
        Whether the optimizer treats each parameter by itself.
    shard_rows : int
        Rows of a full batch to work on at a time.
    """

    def __init__(
        self, g: tuple[str, ...], objective: Objective, layout: Layout, dtype: str, optimizer: Optimizer,
        elementwise: bool, shard_rows: int,
    ) -> None:  # fmt: skip
        self.network, self.objective, self.layout = Network(g, objective), objective, layout
        self.kernels, self.optimizer, self.shard_rows = GenericKernels(jnp, dtype), optimizer, shard_rows
        self.layers, self.whole = len(layout.blocks), not elementwise or layout.size <= _SMALL
        bias = jnp.asarray(layout.is_bias().astype(dtype))
        self.is_bias: list[Any] = [bias] if self.whole else [0] * self.layers + [1] * self.layers
        self.split, self.join = jax.jit(self._split), jax.jit(self._join)
        self.run = jax.jit(self._run, static_argnames="size", donate_argnums=0)

    def parts_of(self, params: Parameters) -> _Parts:
        """Return the parts that hold these weights and biases."""
        return [self.layout.join(params, jnp)] if self.whole else [*params.W[1:], *params.b[1:]]

    def params_of(self, parts: _Parts) -> Parameters:
        """Return the weights and biases that these parts hold."""
        if self.whole:
            return self.layout.split(parts[0], jnp)
        return Parameters([None, *parts[: self.layers]], [None, *parts[self.layers :]])

    def _split(self, vector: Array) -> _Parts:
        """(P,) -> new parts."""
        return [jnp.copy(vector)] if self.whole else self.parts_of(self.layout.split(vector, jnp))

    def _join(self, parts: _Parts) -> Array:
        """Parts -> a new vector (P,)."""
        return jnp.copy(parts[0]) if self.whole else self.layout.join(self.params_of(parts), jnp)

    def split_state(self, state: OptimizerState) -> dict[str, Any]:
        """Return a state of the optimizer whose vectors are in parts."""
        return {name: value if isinstance(value, int | float) else self.split(value) for name, value in state.items()}

    def _run(
        self, carry: Any, X: Array, y: Array, order: Array | None, first: Any, count: Any, rates: list[Any], size: int
    ) -> Any:
        """Do so many updates of `size` rows each, the first of them with the rows from `first` on in this order.

        `carry` is what an update changes: parameters, the optimizer's state and the gradient, all in parts, and the sum
        of losses with the penalty.
        """

        def update(i: Any, carry: Any) -> Any:
            theta, state, _, losses = carry
            params = self.params_of(theta)
            if order is None:
                loss, sums = self._full_batch(params, X, y)
            else:
                rows = jax.lax.dynamic_slice_in_dim(order, first + i * size, size)
                loss, sums = self._grad_sum(params, X[rows, :], y[rows, ...], jax.tree.map(jnp.zeros_like, params))
            gradient = [part * (1 / size) for part in self.parts_of(sums)]
            losses += loss
            if self.objective.penalizes:
                for l, (part, is_bias) in enumerate(zip(theta, self.is_bias, strict=True)):
                    penalty, slope = self.objective.penalty(part, is_bias, size)
                    gradient[l] += slope
                    losses += penalty * size
            return *self._step(theta, gradient, state, rates), gradient, losses

        return jax.lax.fori_loop(0, count, update, carry)

    def _full_batch(self, params: Parameters, X: Array, y: Array) -> tuple[Array, Parameters]:
        """Return the sums of losses () and gradients over all rows, shard by shard."""
        n, step = X.shape[0], self.shard_rows
        begin = jnp.zeros((), jnp.float64), jax.tree.map(jnp.zeros_like, params)
        if n <= step:  # a loop that goes round once would copy them
            return self._added(params, X, y, begin)

        def add(i: Any, sums: Any) -> Any:
            X_shard, y_shard = (jax.lax.dynamic_slice_in_dim(array, i * step, step) for array in (X, y))
            return self._added(params, X_shard, y_shard, sums)

        sums = jax.lax.fori_loop(0, n // step, add, begin)
        return self._added(params, X[-rest:, :], y[-rest:, ...], sums) if (rest := n % step) else sums

    def _added(self, params: Parameters, X: Array, y: Array, sums: Any) -> tuple[Array, Parameters]:
        """Return the sums of losses () and gradients, with those of some more rows."""
        loss, into = self._grad_sum(params, X, y, sums[1])
        return sums[0] + loss, into

    def _grad_sum(self, params: Parameters, X: Array, y: Array, into: Parameters) -> tuple[Array, Parameters]:
        """Return the sum () of the rows' losses, and their gradients added to `into`."""
        into = Parameters([*into.W], [*into.b])
        loss, _ = grad_sum(self.network, self.kernels, params, X, y, into)
        return loss, into

    def _step(self, theta: _Parts, gradient: _Parts, state: OptimizerState, rates: list[Any]) -> Any:
        """Return the parameters and the optimizer's state after an update, in parts."""
        new, states = [], []
        for l, (part, slope, rate) in enumerate(zip(theta, gradient, rates, strict=True)):
            own = {name: value[l] if isinstance(value, list) else value for name, value in state.items()}
            part, own = self.optimizer.update(part, slope, own, rate)
            new.append(part)
            states.append(own)
        return new, {
            name: [own[name] for own in states] if isinstance(state[name], list) else value
            for name, value in states[0].items()
        }


def program_of(setup: Setup) -> Program:
    """Return the program of a training; those that are compiled alike share one, for that takes seconds."""
    model, optimizer, objective, device = setup.model, setup.optimizer, setup.objective, setup.model.device
    g, shard_rows = model.network.g, device.shard_rows
    if not device.hardware():
        shard_rows = min(_MOST_ROWS, max(_LEAST_ROWS, _CACHED // sum(model.sizes)))
    if type(optimizer) not in (SGD, Adam, AdamW):
        return Program(g, objective, model.layout, model.dtype, optimizer, False, shard_rows)
    formulas = *(ACTIVATIONS[name] for name in g[1:]), LOSSES[objective.output.loss]
    alike = replace(optimizer, lr=1.0, l2=0.0, lr_bias=None)  # its rates are arguments, l2 is the objective's
    return _shared_program(g, objective, model.sizes, model.dtype, alike, shard_rows, formulas)


@lru_cache(maxsize=32)
def _shared_program(
    g: tuple[str, ...], objective: Objective, sizes: tuple[int, ...], dtype: str, optimizer: Optimizer,
    shard_rows: int, formulas: tuple[Any, ...],
) -> Program:  # fmt: skip
    # formulas are here to be compared: a name may come to stand for another one
    return Program(g, objective, Layout(sizes), dtype, optimizer, True, shard_rows)
