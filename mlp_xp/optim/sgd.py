"""Gradient descent, with momentum or without."""

from __future__ import annotations

from dataclasses import dataclass

from ..devices import Array, library_of
from .base import Optimizer, OptimizerState
from .numbers import fraction

__all__ = ["SGD", "SGDOfSteps"]


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent: theta -= lr g; with momentum v = momentum v + g, theta -= lr v.

    With `nesterov`, theta -= lr (g + momentum v) (Sutskever et al. 2013, sec. 2, in the form of PyTorch).

    Examples
    --------
    >>> import numpy as np
    >>> sgd, theta = SGD(lr=0.1), np.array([1.0])
    >>> state = sgd.init(theta)
    >>> for _ in range(3):
    ...     theta, state = sgd.update(theta, 2 * theta, state, sgd.rate(1))  # the gradient of theta^2
    >>> theta.round(3)
    array([0.512])
    """

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction(self, "momentum")
        if self.nesterov and not self.momentum:
            raise ValueError("SGD: nesterov needs a momentum above 0, such as 0.9")

    @property
    def plain(self) -> bool:
        own = type(self).update not in (SGD.update, SGDOfSteps.update) or type(self).rates is not Optimizer.rates
        return not (own or self.momentum or self.lr_bias)

    def init(self, theta: Array) -> OptimizerState:
        return {"velocity": library_of(theta).zeros_like(theta)} if self.momentum else {}

    def update(
        self, theta: Array, grad: Array, state: OptimizerState, rate: float | Array
    ) -> tuple[Array, OptimizerState]:
        step = grad
        if self.momentum:
            velocity = state["velocity"]
            velocity *= self.momentum
            velocity += grad
            state = {"velocity": velocity}
            step = grad + self.momentum * velocity if self.nesterov else velocity
        theta -= rate * step
        return theta, state


@dataclass(frozen=True)
class SGDOfSteps(SGD):
    """Gradient descent whose velocity gathers steps, as scikit-learn's: v = momentum v + lr g, theta -= v.

    With `nesterov`, theta -= lr g + momentum v (Sutskever et al. 2013, eq. 1 to 4). While the learning rate stays, that
    is what :class:`SGD` does; when it falls, the steps that were gathered before keep their length.
    """

    def update(
        self, theta: Array, grad: Array, state: OptimizerState, rate: float | Array
    ) -> tuple[Array, OptimizerState]:
        step = rate * grad
        if self.momentum:
            velocity = state["velocity"]
            velocity *= self.momentum
            velocity += step
            state = {"velocity": velocity}
            step = step + self.momentum * velocity if self.nesterov else velocity
        theta -= step
        return theta, state
