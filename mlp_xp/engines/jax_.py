"""The engine for JAX: the text is traced once, and XLA compiles a loop over updates of it.

An array of JAX cannot be written to, but XLA puts a result where an argument was that the caller gives away. So updates
happen in place, and the host takes part once for many of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from ..devices import Array
from ..kernels import ACTIVATIONS, LOSSES, GenericKernels
from ..model import Network, grad_sum
from ..objective import Objective
from ..optim import SGD, Adam, AdamW, Optimizer, OptimizerState
from ..params import GradSum, Layout, Parameters
from ..rows.batches import shuffled_rows
from ..rows.source import InMemory
from .base import Done, Setup
from .host import HostEngine

__all__ = ["JaxEngine", "why_not"]

_CPU_SHARD = 1024  # rows, whose activations stay in the cache of a core
_SMALL = 16_384  # parameters, up to which one vector is updated faster than many arrays
_PIECE = 0.02  # seconds of updates between two questions whether to pause
_UNASKED = 0.1  # seconds of updates if there is no such question: Ctrl-C has to wait for them

_Parts = list[Array]


class _Program:
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
        self.is_bias: list[Any] = [0] * self.layers + [1] * self.layers  # or, for the whole, an array of these
        if self.whole:
            self.is_bias = [layout.is_bias().astype(dtype)]
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
        self, carry: Any, X: Array, y: Array, order: Array | None, first: Any, count: Any, rates: list[Any], *, size: int
    ) -> Any:  # fmt: skip
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
            if self.objective.l2:
                for l, (part, is_bias) in enumerate(zip(theta, self.is_bias, strict=True)):
                    penalty, slope = self.objective.penalty(part, is_bias)
                    gradient[l] += slope
                    losses += penalty * size
            return *self._step(theta, gradient, state, rates), gradient, losses

        return jax.lax.fori_loop(0, count, update, carry)

    def _full_batch(self, params: Parameters, X: Array, y: Array) -> tuple[Array, Parameters]:
        """Return the sums of losses () and gradients over all rows, shard by shard."""
        n, step = X.shape[0], self.shard_rows

        def add(i: Any, sums: Any) -> Any:
            rows = (jax.lax.dynamic_slice_in_dim(array, i * step, step) for array in (X, y))
            loss, into = self._grad_sum(params, *rows, sums[1])
            return sums[0] + loss, into

        begin = jnp.zeros((), jnp.float64), jax.tree.map(jnp.zeros_like, params)
        loss, into = jax.lax.fori_loop(0, n // step, add, begin)
        if rest := n % step:
            more, into = self._grad_sum(params, X[-rest:, :], y[-rest:, ...], into)
            loss += more
        return loss, into

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


@lru_cache(maxsize=32)
def _shared_program(formulas: tuple[Any, ...], sizes: tuple[int, ...], *arguments: Any) -> _Program:
    """Return a program that trainings share, for it takes seconds to compile; the formulas are in the name's place."""
    g, objective, dtype, optimizer, shard_rows = arguments
    return _Program(g, objective, Layout(sizes), dtype, optimizer, True, shard_rows)


def _program_of(setup: Setup) -> _Program:
    model, optimizer, objective, device = setup.model, setup.optimizer, setup.objective, setup.model.device
    g, shard_rows = model.network.g, device.shard_rows if device.hardware() else min(device.shard_rows, _CPU_SHARD)
    if type(optimizer) not in (SGD, Adam, AdamW):
        return _Program(g, objective, model.layout, model.dtype, optimizer, False, shard_rows)
    formulas = *(ACTIVATIONS[name] for name in g[1:]), LOSSES[objective.output.loss]
    alike = replace(optimizer, lr=1.0, l2=0.0, lr_bias=None)  # its rates are arguments, l2 is the objective's
    return _shared_program(formulas, model.sizes, g, objective, model.dtype, alike, shard_rows)


@contextmanager
def _compiling() -> Iterator[None]:
    """Keep 64 bits, here and now only: of the sum of losses, and of Python's numbers beside arrays, as in NumPy.

    JAX's default of 32 bits would leave Adam's 1 - beta**t four digits. It keeps Python's numbers apart from arrays
    ("weak types"), so no array becomes wider.
    """
    if hasattr(jax, "enable_x64"):
        wide = jax.enable_x64(True)
    else:  # JAX before 0.8
        from jax.experimental import enable_x64

        wide = enable_x64()
    with wide:
        yield


def why_not(setup: Setup) -> str | None:
    """Return why JAX cannot compile this training, in words, or None if it can."""
    if type(setup.rows) is not InMemory:
        return "the rows are not in memory"
    model, (n, d) = setup.model, setup.rows.shape
    shape, size = jax.ShapeDtypeStruct, setup.batch_size or n
    try:
        with model.device.active(), _compiling():
            program = _program_of(setup)
            theta, state = program.split(model.theta), program.split_state(setup.optimizer.init(model.theta))
            order = None if setup.batch_size is None else shape((n,), np.int32)
            y = setup.targets.y
            X, y, carry = shape((n, d), str(setup.rows.dtype)), shape(y.shape, y.dtype), (theta, state, theta, np.zeros(()))
            rates = [setup.optimizer.rates(1, is_bias) for is_bias in program.is_bias]
            jax.eval_shape(partial(program.run, size=size), carry, X, y, order, 0, 1, rates)
    except Exception as error:  # an optimizer, an activation or a loss of the user's, which may do anything
        return f"it cannot be traced: {type(error).__name__}: {error}".partition("\n")[0]
    return None


class JaxEngine:
    """Updates by a program that XLA has compiled, many in a call.

    The first updates of a training wait for the compiler, once more for a last batch that is shorter.

    Parameters
    ----------
    setup : Setup
        One that :func:`why_not` has nothing against.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup, self.plan, self._device = setup, setup.plan, setup.model.device
        self._n = setup.rows.shape[0]
        self._size = setup.batch_size or self._n
        self.updates = -(-self._n // self._size)
        self._X = setup.rows.to(self._device).block(0, self._n)
        self._y = self._device.asarray(setup.targets.y)
        self._program = _program_of(setup)
        self._known = setup.model.theta
        with self._device.active():
            self._theta = self._program.split(self._known)
            self._state = self._program.split_state(setup.optimizer.init(self._known))
            self._gradient = self._program.split(jnp.zeros_like(self._known))
        self._has_gradient = False
        self._seconds = 1e-3  # of an update, lately

    # The interface of engines.

    def grad_sum(self, theta: Array) -> GradSum:
        return HostEngine(self._setup).grad_sum(theta)

    def begin(self, theta: Array, epoch: int, lr: float, done: Done) -> None:
        began = perf_counter()
        with self._device.active():
            if theta is not self._known:
                self._theta = self._program.split(theta)
            self._rates = [self._setup.optimizer.rates(epoch, is_bias) for is_bias in self._program.is_bias]
            self._order = None
            if self._setup.batch_size is not None:
                order = shuffled_rows(self._setup.model.seed, epoch, self._n)
                self._order = self._device.asarray(order.astype(np.int32))
        self._done = done._replace(seconds=float(done.seconds) + perf_counter() - began)

    def advance(self, pause: Callable[[], bool] | None) -> Done:
        began = perf_counter()
        updates, whole = self._done.updates, self._n // self._size
        losses = float(self._done.loss_sum)
        with self._device.active(), _compiling():
            while updates < self.updates:
                seconds = _UNASKED if pause is None else _PIECE
                count = min(max(1, whole - updates), max(1, int(seconds / self._seconds)))
                start = perf_counter()
                losses = self._piece(updates, count, losses)
                self._seconds = max((perf_counter() - start) / count, 1e-9)
                updates += count
                if pause is not None and updates < self.updates and pause():
                    break
        rows = min(self._n, updates * self._size)
        self._done = Done(updates, rows, losses, float(self._done.seconds) + perf_counter() - began)
        return self._done

    def theta(self) -> Array:
        self._known = self._program.join(self._theta)  # given this, `begin` need not take it apart
        return self._known

    def gradient(self) -> Array | None:
        return self._program.join(self._gradient) if self._has_gradient else None

    def state(self) -> OptimizerState:
        join = self._program.join
        return {name: join(value) if isinstance(value, list) else value for name, value in self._state.items()}

    def restore(self, state: OptimizerState) -> None:
        with self._device.active():
            self._state = self._program.split_state(state)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release nothing."""

    def _piece(self, update: int, count: int, losses: float) -> float:
        """Do updates of one size; return the sum of losses up to here."""
        first = update * self._size
        carry = self._theta, self._state, self._gradient, np.float64(losses)
        self._theta, state, self._gradient, total = self._program.run(
            carry, self._X, self._y, self._order, first, count, self._rates, size=min(self._size, self._n - first)
        )
        self._state = {name: value if isinstance(value, list) else value.item() for name, value in state.items()}
        self._has_gradient = True
        return float(total)
