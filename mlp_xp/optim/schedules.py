"""Learning rates that depend on the epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from .numbers import positive

__all__ = ["SCHEDULES", "CosineDecay", "ExponentialDecay", "Schedule", "Steered", "StepDecay", "WarmUp"]


@dataclass(frozen=True)
class Schedule:
    """A learning rate that depends on the epoch, counted from 1; this base class keeps it constant."""

    lr: float

    def __post_init__(self) -> None:
        positive(self, *(field.name for field in fields(self) if field.name != "after"))

    def __call__(self, epoch: int) -> float:
        """Return the learning rate of an epoch."""
        return self.lr


class Steered(Schedule):
    """A learning rate that a loop changes between epochs."""

    def steer(self, lr: float) -> None:
        """Set the learning rate of the epochs to come."""
        object.__setattr__(self, "lr", lr)


@dataclass(frozen=True)
class StepDecay(Schedule):
    """Multiply the rate by `factor` every `every` epochs.

    Examples
    --------
    >>> [StepDecay(0.8, every=2, factor=0.5)(epoch) for epoch in (1, 2, 3, 4, 5)]
    [0.8, 0.8, 0.4, 0.4, 0.2]
    """

    every: int = 10
    factor: float = 0.5

    def __call__(self, epoch: int) -> float:
        return _scaled(self.lr, self.factor, (epoch - 1) // self.every)


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """Multiply the rate by `factor` every epoch."""

    factor: float = 0.95

    def __call__(self, epoch: int) -> float:
        return _scaled(self.lr, self.factor, epoch - 1)


def _scaled(lr: float, factor: float, times: int) -> float:
    """Return the rate after so many changes; one beyond all floats is infinite, and the training diverges."""
    try:
        return float(lr * factor**times)
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class CosineDecay(Schedule):
    """Fall from `lr` to zero over `epochs` along half a cosine (Loshchilov and Hutter 2017, SGDR, eq. 5, one cycle)."""

    epochs: int = 100

    def __call__(self, epoch: int) -> float:
        return self.lr / 2 * (1 + math.cos(math.pi * min(epoch - 1, self.epochs) / self.epochs))


@dataclass(frozen=True)
class WarmUp(Schedule):
    """Rise linearly to `lr` over the first `epochs`, then follow `after`, which begins there; None stays at `lr`.

    Examples
    --------
    >>> [WarmUp(0.4, epochs=4)(epoch) for epoch in (1, 2, 3, 4, 5)]
    [0.1, 0.2, 0.30000000000000004, 0.4, 0.4]
    """

    epochs: int = 5
    after: Schedule | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.after is not None and not isinstance(self.after, Schedule):
            raise ValueError(f"WarmUp: after must be a schedule or None, got {self.after!r}")

    def __call__(self, epoch: int) -> float:
        if epoch <= self.epochs:
            return self.lr * epoch / self.epochs
        return self.lr if self.after is None else self.after(epoch - self.epochs)


SCHEDULES: dict[str, Any] = {
    "constant": Schedule,
    "step": StepDecay,
    "exponential": ExponentialDecay,
    "cosine": CosineDecay,
    "warm_up": WarmUp,
}
