"""The engine of L-BFGS: the device's own engine computes losses and gradients, and what they say decides where to next.

Vectors stay on the device, in the order of the plan. The host sees scalar products.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from time import perf_counter
from types import TracebackType
from typing import Self

from ..devices import Array
from ..mlp import MLP
from ..optim import LBFGS, OptimizerState
from ..optim.lbfgs import Pair, Point, largest
from ..params import GradSum
from .base import Done, Engine

__all__ = ["LbfgsEngine"]

_log = logging.getLogger(__name__)


class LbfgsEngine:
    """Iterations of L-BFGS, each an epoch of one update.

    Parameters
    ----------
    model : MLP
    optimizer : LBFGS
    inner : Engine
        For the same rows, all at once, by plain gradient descent. Only the loss and the gradient of its updates count.
    leads : bool
        Whether this process is the one that tells why the training ended.
    """

    updates = 1

    def __init__(self, model: MLP, optimizer: LBFGS, inner: Engine, leads: bool = True) -> None:
        self._model, self._device, self._optimizer = model, model.device, optimizer
        self._leads = leads
        self._inner, self.plan, self.shared = inner, inner.plan, inner.shared
        self._known: Array | None = None  # the parameters that were handed out, in the order of the data
        self._at: Point | None = None  # the same, with their loss and gradient; None if these are yet to be computed
        self._start: Point | None = None  # of the iteration
        self._pairs: list[Pair] = []
        self._over = False

    # The interface of engines.

    def grad_sum(self, theta: Array) -> GradSum:
        return self._inner.grad_sum(theta)

    def begin(self, theta: Array, epoch: int, lr: float, done: Done) -> None:
        began = perf_counter()
        with self._device.active():
            if theta is not self._known:
                self._theta, self._at = self.plan.inward(theta, self._model), None
            self._epoch, self._lr, self._iteration = epoch, lr, self._iterate()
            self._go_on(None)
        self._spent = perf_counter() - began

    def advance(self, pause: Callable[[], bool] | None) -> Done:
        began, paused = perf_counter(), False
        with self._device.active():
            while self._trial is not None and not paused:
                done = self._inner.advance(pause)
                paused = not done.updates
                if not paused:
                    self._go_on(self._point(self._trial, done))
                    paused = pause is not None and self._trial is not None and pause()
        self._spent += perf_counter() - began
        if self._trial is not None:
            return Done()
        assert self._start is not None
        return Done(1, self._rows, self._start.loss * self._rows, self._spent, self._over)

    def theta(self) -> Array:
        with self._device.active():
            self._known = self.plan.outward(self._theta, self._model)
            return self._known

    def gradient(self) -> Array | None:
        return None if self._start is None else self._start.gradient

    def state(self) -> OptimizerState:
        with self._device.active():
            state = self._optimizer.init(self._theta)
        for i, pair in enumerate(self._pairs):
            state |= {f"s{i}": pair.s, f"y{i}": pair.y}
        return state | {"over": int(self._over)}

    def restore(self, state: OptimizerState) -> None:
        with self._device.active():
            vectors = {
                name: self.plan.inward(self._device.asarray(value), self._model)
                for name, value in state.items()
                if name != "over"
            }
            self._pairs = self._optimizer.pairs_of(vectors, self._device.dot)

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inner.__exit__(kind, error, trace)

    # The work of an iteration.

    def _iterate(self) -> Generator[Array, Point, tuple[Point, bool]]:
        """Yield the parameters to evaluate; return where the iteration ends, and whether it is the last one."""
        if self._at is None:
            self._at = yield self._theta
        self._start = self._at
        return (yield from self._optimizer.iterate(self._start, self._pairs, self._device.dot))

    def _go_on(self, point: Point | None) -> None:
        """Tell the iteration what it asked for, and begin with what it asks for next."""
        try:
            self._trial: Array | None = self._iteration.send(point)  # type: ignore[arg-type]  # None begins it
        except StopIteration as end:
            self._trial, (self._at, self._over) = None, end.value
            self._theta = self._at.theta
            if self._over and self._leads:
                self._explain(self._at)
            return
        self._inner.begin(self.plan.outward(self._trial, self._model), self._epoch, self._lr, Done())

    def _point(self, theta: Array, done: Done) -> Point:
        """Return parameters with the loss and the gradient at which the inner engine's update began."""
        self._rows = done.rows
        gradient = self._device.xp.asarray(self._inner.gradient(), copy=True)
        return Point(theta, float(done.loss_sum) / done.rows, gradient)

    def _explain(self, end: Point) -> None:
        """Warn of an end that is not the one that was asked for."""
        size, tol = largest(end.gradient), self._optimizer.tol
        if size > tol:
            _log.warning(
                "L-BFGS ended before the gradient was within tol: its largest component is %.2g, tol is %g, and no "
                "step was found that makes the loss of %.6g smaller; in %s, rounding may hide what is left to gain",
                size, tol, end.loss, self._model.dtype,
            )  # fmt: skip
