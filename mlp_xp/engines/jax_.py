"""The engine for JAX: the text is traced once, and XLA compiles a loop over updates of it.

An array of JAX cannot be written to, but XLA puts a result where an argument was that the caller gives away. So updates
happen in place, and the host takes part once for many of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from ..devices import Array
from ..devices.jax_ import wide_numbers
from ..optim import OptimizerState
from ..params import GradSum
from ..rows.source import InMemory
from ..rows.stored import StoredRows
from .base import Done, Setup
from .host import HostEngine
from .jax_program import program_of

__all__ = ["JaxEngine", "why_not"]

_PIECE = 0.02  # seconds of updates between two questions whether to pause
_UNASKED = 0.1  # seconds of updates if there is no such question: Ctrl-C has to wait for them


def why_not(setup: Setup) -> str | None:
    """Return why JAX cannot compile this training, in words, or None if it can."""
    if type(setup.rows) not in (InMemory, StoredRows):
        return "the rows are not in memory"
    if setup.targets.weights is not None:
        return "the rows have weights"
    if setup.dropout is not None:
        return "units are dropped"
    model, (n, d), y = setup.model, setup.rows.shape, setup.targets.y
    array, size = jax.ShapeDtypeStruct, setup.batch_size or n
    try:
        with model.device.active(), wide_numbers():
            program = program_of(setup)
            theta, state = program.split(model.theta), program.split_state(setup.optimizer.init(model.theta))
            rates = [setup.optimizer.rates(1, is_bias) for is_bias in program.is_bias]
            order = None if setup.batch_size is None else array((n,), np.int32)
            data = array((n, d), program.kernels.dtype if not setup.rows.pixels else np.uint8), array(y.shape, y.dtype)
            jax.eval_shape(
                partial(program.run, size=size), (theta, state, theta, np.float64(0)), *data, order, 0, 1, rates
            )
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

    shared = False

    def __init__(self, setup: Setup) -> None:
        self._setup, self.plan, self._device = setup, setup.plan, setup.model.device
        self._n = setup.rows.shape[0]
        self._size = setup.batch_size or self._n
        self.updates = -(-self._n // self._size)
        self._X = setup.rows.to(self._device).block(0, self._n)
        self._y = self._device.asarray(setup.targets.y)
        self._program = program_of(setup)
        self._known = setup.model.theta
        with self._device.active():
            self._theta = self._program.split(self._known)
            self._state = self._program.split_state(setup.optimizer.init(self._known))
            self._gradient = self._program.split(jnp.zeros_like(self._known))
        self._has_gradient = False
        self._seconds = math.inf  # of an update, lately

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
                self._order = self._device.asarray(self._setup.row_order(epoch).astype(np.int32))
        self._done = done._replace(seconds=float(done.seconds) + perf_counter() - began)

    def advance(self, pause: Callable[[], bool] | None) -> Done:
        began = perf_counter()
        updates, whole = self._done.updates, self._n // self._size
        losses = float(self._done.loss_sum)
        with self._device.active(), wide_numbers():
            while updates < self.updates:
                seconds = _UNASKED if pause is None else _PIECE
                count = max(1, int(seconds / self._seconds))
                if pause is not None:
                    count = self._setup.updates_at_once(count)
                count = min(max(1, whole - updates), count)
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
        state = self._state
        return {
            name: self._program.join(value) if isinstance(value, list) else _number(value)
            for name, value in state.items()
        }

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
        self._theta, self._state, self._gradient, total = self._program.run(
            carry, self._X, self._y, self._order, first, count, self._rates, size=min(self._size, self._n - first)
        )
        self._has_gradient = True
        return float(total)


def _number(value: Any) -> int | float:
    """Return a number that the program may have made an array of."""
    number: int | float = value.item() if isinstance(value, jax.Array) else value
    return number
