"""The solvers "sgd" and "adam": scikit-learn's rules, orders of rows and learning rates, on the library's loop."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..loop import State, epochs
from ..mlp import MLP
from ..optim import AdamEpsilonHat, Optimizer, SGDOfSteps, Steered
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
    estimator : MultilayerPerceptron
        Its parameters count as they are now.
    """

    def __init__(self, estimator: Any) -> None:
        self._rate = Steered(float(estimator.learning_rate_init))
        self._first_rate, self._power = self._rate.lr, estimator.power_t
        self._schedule = estimator.learning_rate if estimator.solver == "sgd" else "constant"
        self._last: Snapshot | None = None
        self._optimizer: Optimizer
        if estimator.solver == "sgd":
            nesterov = bool(estimator.nesterovs_momentum and estimator.momentum > 0)
            self._optimizer = SGDOfSteps(self._rate, momentum=estimator.momentum, nesterov=nesterov)
        else:
            constants = {"beta1": estimator.beta_1, "beta2": estimator.beta_2, "epsilon": estimator.epsilon}
            self._optimizer = AdamEpsilonHat(self._rate, **constants)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next epoch."""
        return self._rate.lr

    def epochs(self, model: MLP, X: Any, y: Any, order: Order, **how: Any) -> Generator[State, None, None]:
        """Go on with the optimizer's state, by :func:`mlp_xp.loop.epochs`, and keep it as it is when that ends."""
        start = None
        if self._last is not None:
            start = replace(self._last, epoch=0, theta=model.device.to_host(model.theta))
        state = None
        try:
            for state in epochs(model, X, y, order=order, optimizer=self._optimizer, start=start, **how):
                if (
                    how["batch_size"] is None
                ):  # all rows at once: nobody asked for an order, and one is drawn all the same
                    order(state.epoch)
                yield state
        finally:
            if state is not None:
                self._last = state.snapshot()

    def end_epoch(self, rows: int) -> None:
        """Set the learning rate after so many rows, those of all fits of this estimator."""
        if self._schedule == "invscaling":
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
