"""Optimisers over the flat parameter vector, as (init, update) pairs, and learning-rate schedules.

An ``update`` may overwrite the parameters and the state it is given, never the gradient; callers rebind both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import array_api_compat as compat
import numpy as np

from .arrays import Array

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adam",
    "AdamW",
    "CosineDecay",
    "ExponentialDecay",
    "Optimizer",
    "Schedule",
    "StepDecay",
    "WarmUp",
]

State = dict[str, Any]


def _number(owner: Any, name: str) -> Any:
    """Return a field, made a Python number where it was a NumPy scalar, which would widen float32 arrays."""
    value = getattr(owner, name)
    if isinstance(value, np.generic):
        value = value.item()
        object.__setattr__(owner, name, value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _positive(owner: Any, *names: str) -> None:
    for name in names:
        if not 0 < _number(owner, name) < math.inf:
            value = getattr(owner, name)
            raise ValueError(f"{type(owner).__name__}: {name} must be a finite number above 0, got {value!r}")


def _not_negative(owner: Any, *names: str) -> None:
    for name in names:
        if not 0 <= _number(owner, name) < math.inf:
            value = getattr(owner, name)
            raise ValueError(f"{type(owner).__name__}: {name} must be a finite number of at least 0, got {value!r}")


def _fraction(owner: Any, *names: str) -> None:
    for name in names:
        if not 0 <= _number(owner, name) < 1:
            value = getattr(owner, name)
            raise ValueError(f"{type(owner).__name__}: {name} must lie in [0, 1), got {value!r}")


@dataclass(frozen=True)
class Schedule:
    """A learning rate that depends on the epoch, counted from 1; this base class keeps it constant."""

    lr: float

    def __post_init__(self) -> None:
        _positive(self, *(field.name for field in fields(self) if field.name != "after"))

    def __call__(self, epoch: int) -> float:
        """Return the learning rate of an epoch."""
        return self.lr


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
        return float(self.lr * self.factor ** ((epoch - 1) // self.every))


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """Multiply the rate by `factor` every epoch."""

    factor: float = 0.95

    def __call__(self, epoch: int) -> float:
        return float(self.lr * self.factor ** (epoch - 1))


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
            _positive(self, "lr")
        if self.lr_bias is not None:
            _positive(self, "lr_bias")
        _not_negative(self, "l2")

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
        _fraction(self, "momentum")
        if self.nesterov and not self.momentum:
            raise ValueError("SGD: nesterov needs a momentum above 0, such as 0.9")

    @property
    def descends(self) -> bool:
        return not (self.momentum or self.l2 or self.lr_bias)

    def init(self, theta: Array) -> State:
        return {"velocity": compat.array_namespace(theta).zeros_like(theta)} if self.momentum else {}

    def update(self, theta: Array, grad: Array, state: State, rate: float | Array) -> tuple[Array, State]:
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
class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1): steps along the mean of the gradient over the root of its mean square."""

    lr: float | Schedule = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _fraction(self, "beta1", "beta2")
        _positive(self, "epsilon")

    def init(self, theta: Array) -> State:
        zeros_like = compat.array_namespace(theta).zeros_like
        return {"mean": zeros_like(theta), "square": zeros_like(theta), "updates": 0}

    def update(self, theta: Array, grad: Array, state: State, rate: float | Array) -> tuple[Array, State]:
        mean, square, t = state["mean"], state["square"], state["updates"] + 1
        mean *= self.beta1
        mean += (1 - self.beta1) * grad
        square *= self.beta2
        square += (1 - self.beta2) * grad * grad
        root = compat.array_namespace(theta).sqrt(square / (1 - self.beta2**t))
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
        _not_negative(self, "weight_decay")


OPTIMIZERS: dict[str, Any] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
SCHEDULES: dict[str, Any] = {
    "constant": Schedule,
    "step": StepDecay,
    "exponential": ExponentialDecay,
    "cosine": CosineDecay,
    "warm_up": WarmUp,
}
