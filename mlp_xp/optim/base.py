"""What all optimizers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..devices import Array
from .numbers import not_negative, positive
from .schedules import Schedule

__all__ = ["Optimizer", "State"]

State = dict[str, Any]


@dataclass(frozen=True)
class Optimizer:
    """What all optimisers share.

    Parameters
    ----------
    lr : float or Schedule
        Learning rate.
    l2 : float
        Adds l2/2 |W|^2, over weights and not biases, to the loss.
    lr_bias : float, optional
        A learning rate of their own for the biases, in place of `lr`; a schedule scales it along.
    """

    lr: float | Schedule = 0.1
    l2: float = 0.0
    lr_bias: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.lr, Schedule):
            positive(self, "lr")
        if self.lr_bias is not None:
            positive(self, "lr_bias")
        not_negative(self, "l2")

    @property
    def base_lr(self) -> float:
        """The learning rate before any schedule."""
        return self.lr.lr if isinstance(self.lr, Schedule) else self.lr

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 1."""
        return self.lr(epoch) if isinstance(self.lr, Schedule) else self.lr

    @property
    def descends(self) -> bool:
        """Whether an update is theta -= lr g and nothing else, so that it may be taken within the backward pass."""
        return False

    def init(self, theta: Array) -> State:
        """Return the state before the first update: arrays shaped like `theta` (P,), and numbers."""
        raise NotImplementedError

    def update(self, theta: Array, grad: Array, state: State, rate: float | Array) -> tuple[Array, State]:
        """Return the parameters (P,) and the state after one update with gradient `grad` (P,) of the mean loss."""
        raise NotImplementedError
