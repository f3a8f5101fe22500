"""Adam, and AdamW."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..devices import Array, library_of
from .base import Optimizer, OptimizerState
from .numbers import fraction, not_negative, positive
from .schedules import Schedule

__all__ = ["Adam", "AdamEpsilonHat", "AdamW"]


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1): steps along the mean of the gradient over the root of its mean square."""

    lr: float | Schedule = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction(self, "beta1", "beta2")
        positive(self, "epsilon")

    def init(self, theta: Array) -> OptimizerState:
        zeros_like = library_of(theta).zeros_like
        return {"mean": zeros_like(theta), "square": zeros_like(theta), "updates": 0}

    def update(
        self, theta: Array, grad: Array, state: OptimizerState, rate: float | Array
    ) -> tuple[Array, OptimizerState]:
        mean, square, t = state["mean"], state["square"], state["updates"] + 1
        mean *= self.beta1
        mean += (1 - self.beta1) * grad
        square *= self.beta2
        square += (1 - self.beta2) * grad * grad
        root = library_of(theta).sqrt(square / (1 - self.beta2**t))
        if self.weight_decay:
            theta -= rate * self.weight_decay * theta
        theta -= rate / (1 - self.beta1**t) * mean / (root + self.epsilon)
        return theta, {"mean": mean, "square": square, "updates": t}


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with the weights' decay apart from the gradient (Loshchilov and Hutter 2019, algorithm 2)."""

    weight_decay: float = 0.01  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "weight_decay")


@dataclass(frozen=True)
class AdamEpsilonHat(Adam):
    """Adam in the form that Kingma and Ba give at the end of section 2, as scikit-learn and TensorFlow have it.

    Epsilon is added to the root of the mean square before that is corrected for its start at zero, so that it counts
    for more in the first updates: in update t it is epsilon / sqrt(1 - beta2^t).
    """

    def update(
        self, theta: Array, grad: Array, state: OptimizerState, rate: float | Array
    ) -> tuple[Array, OptimizerState]:
        epsilon = self.epsilon / math.sqrt(1 - self.beta2 ** (state["updates"] + 1))
        return Adam(beta1=self.beta1, beta2=self.beta2, epsilon=epsilon).update(theta, grad, state, rate)
