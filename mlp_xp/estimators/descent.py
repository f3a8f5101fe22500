"""The solvers "sgd" and "adam": scikit-learn's rules, orders of rows and learning rates, on the library's loop."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..loop import State, epochs
from ..mlp import MLP
from ..optim import AdamEpsilonHat, Optimizer, Schedule, SGDOfSteps, Steered
from ..snapshot import Snapshot

__all__ = ["Descent", "Order"]

_SMALLEST = 1e-6  # no learning rate is divided further


class Order:
    """The order of n rows, epoch by epoch; each one is the order before, shuffled.

    Parameters
    ----------
    n : int
    random_state : RandomState or None
        What the shuffles are drawn from; None keeps the rows as they are.
    """

    def __init__(self, n: int, random_state: np.random.RandomState | None) -> None:
        self._rows, self._random_state = np.arange(n), random_state

    def __call__(self, epoch: int) -> NDArray[Any]:
        if self._random_state is not None:
            drawn = np.arange(len(self._rows))
            self._random_state.shuffle(drawn)
            self._rows = self._rows[drawn]
        return self._rows


class Descent:
    """The optimizer of a fit, with what `partial_fit` goes on from: its learning rate and its state.

    Parameters
    ----------
    solver : {"sgd", "adam"}
    constants : dict of str to number
        What its optimizer is made with, but the learning rate.
    schedule : Schedule or {"constant", "invscaling", "adaptive"}
    first_rate, power : float
        The first learning rate, and the power of the rows that "invscaling" divides it by.
    rate : float
        The learning rate of the next epoch.
    epochs : int
        Those that are over.
    last : dict, optional
        The fields of the :class:`mlp_xp.snapshot.Snapshot` to go on from.
    """

    def __init__(
        self,
        solver: str,
        constants: dict[str, Any],
        schedule: Schedule | str,
        first_rate: float,
        power: float,
        rate: float,
        epochs: int = 0,
        last: dict[str, Any] | None = None,
    ) -> None:
        self._solver, self._constants = solver, constants
        self._schedule, self._first_rate, self._power = schedule, first_rate, power
        self._rate, self._epochs, self._last = Steered(first_rate), epochs, last
        self._rate.steer(rate)  # which may have fallen to zero
        kind = SGDOfSteps if solver == "sgd" else AdamEpsilonHat
        self._optimizer: Optimizer = kind(self._rate, **constants)

    @classmethod
    def of(cls, estimator: Any) -> Self:
        """Return the beginning of a fit by the estimator's parameters as they are now."""
        sgd, schedule, rate = estimator.solver == "sgd", estimator.learning_rate, float(estimator.learning_rate_init)
        if isinstance(schedule, Schedule):
            rate = schedule(1)
        elif not sgd:
            schedule = "constant"
        if sgd:
            nesterov = bool(estimator.nesterovs_momentum and estimator.momentum > 0)
            constants = {"momentum": estimator.momentum, "nesterov": nesterov}
        else:
            constants = {"beta1": estimator.beta_1, "beta2": estimator.beta_2, "epsilon": estimator.epsilon}
        return cls(estimator.solver, constants, schedule, rate, estimator.power_t, rate)

    def plain(self) -> dict[str, Any]:
        """Return the arguments that make this again: arrays, numbers and texts, which any file format can hold."""
        return {
            "solver": self._solver,
            "constants": self._constants,
            "schedule": self._schedule,
            "first_rate": self._first_rate,
            "power": self._power,
            "rate": self._rate.lr,
            "epochs": self._epochs,
            "last": self._last,
        }

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next epoch."""
        return self._rate.lr

    @property
    def rule(self) -> Optimizer:
        """The optimizer that the loop is given."""
        return self._optimizer

    def epochs(
        self, model: MLP, X: Any, y: Any, order: Order, start: Snapshot | None = None, **how: Any
    ) -> Generator[State, None, None]:
        """Go on from a snapshot of this fit, or else from the last one's state, by :func:`mlp_xp.loop.epochs`."""
        if start is not None:
            for epoch in range(start.epoch):
                order(epoch)  # each one is made of the one before
        elif self._last is not None:
            start = Snapshot(**self._last | {"epoch": 0, "theta": model.device.to_host(model.theta)})
        states = epochs(model, X, y, order=order, optimizer=self._optimizer, start=start, **how)
        return self._keep(states, order, how["batch_size"] is None)

    def _keep(self, states: Iterator[State], order: Order, full: bool) -> Generator[State, None, None]:
        """Yield the states, and keep that of the optimizer when they end."""
        state = None
        try:
            for state in states:
                if full:  # nobody asked for an order, and one is drawn all the same
                    order(state.epoch)
                yield state
        finally:
            if state is not None:
                self._last = vars(state.snapshot())

    def end_epoch(self, rows: int) -> None:
        """Set the learning rate after so many rows, those of all fits of this estimator."""
        self._epochs += 1
        if isinstance(self._schedule, Schedule):
            self._rate.steer(self._schedule(self._epochs + 1))
        elif self._schedule == "invscaling":
            self._rate.steer(self._first_rate / (rows + 1) ** self._power)

    def ends_on_plateau(self, reason: str, verbose: Any) -> bool:
        """Return whether to stop, for a reason that may be printed, or else divide the learning rate by 5."""
        adaptive = self._schedule == "adaptive"
        if not adaptive:
            outcome = "Stopping."
        elif self.learning_rate <= _SMALLEST:
            outcome = "Learning rate too small. Stopping."
        else:
            self._rate.steer(self._rate.lr / 5)
            outcome = f"Setting learning rate to {self._rate.lr:f}"
        if verbose:
            print(f"{reason} {outcome}")
        return outcome.endswith("Stopping.")
