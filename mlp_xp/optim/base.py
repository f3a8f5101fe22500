"""What all optimizers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..devices import Array
from .numbers import not_negative, positive
from .schedules import Schedule

__all__ = ["Optimizer", "OptimizerState"]

OptimizerState = dict[str, Any]


@dataclass(frozen=True)
class Optimizer:
    """What all optimizers share.

    Parameters
    ----------
    lr : float or Schedule
        Learning rate.
    l2 : float
        Adds l2/2 |W|², over weights and not biases, to what is minimized. This belongs to the objective, which takes
        it from here (:class:`mlp_xp.objective.Objective`); no update reads it.
    lr_bias : float, optional
        A learning rate for the biases alone, in place of `lr`; a schedule scales it along.
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

    def rates(self, epoch: int, is_bias: Array) -> float | Array:
        """Return the learning rate of an epoch, or those of all parameters (P,), if the biases have their own.

        Parameters
        ----------
        epoch : int
            Counted from 1.
        is_bias : array (P,)
            1 at biases, else 0.
        """
        lr = self.rate(epoch)
        return lr if self.lr_bias is None else lr * (1 + is_bias * (self.lr_bias / self.base_lr - 1))

    @property
    def plain(self) -> bool:
        """Whether an update is theta -= lr g and nothing else, so that the backward pass may take it on its way."""
        return False

    def is_over(self, state: OptimizerState) -> bool:
        """Return whether the optimizer has nothing left to do: a training that goes on from `state` ends at once."""
        return False

    def init(self, theta: Array) -> OptimizerState:
        """Return the state before the first update: arrays shaped like `theta` (P,), and numbers."""
        raise NotImplementedError

    def update(
        self, theta: Array, grad: Array, state: OptimizerState, rate: float | Array
    ) -> tuple[Array, OptimizerState]:
        """Return the parameters (P,) and the state after one update with gradient `grad` (P,) of the mean loss."""
        raise NotImplementedError
