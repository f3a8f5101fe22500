"""L-BFGS: a step along curvature that it learns from the gradients before, as long as a search finds good.

NW stands for Nocedal and Wright, Numerical Optimization, 2nd edition, 2006.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

from ..checks import check_count
from ..devices import Array, library_of
from .base import Optimizer, OptimizerState
from .numbers import not_negative

__all__ = ["LBFGS", "Pair", "Point", "strong_wolfe"]

_DECREASE, _CURVATURE = 1e-4, 0.9  # c1 and c2 of the Wolfe conditions, NW eq. 3.7
_LEAST_CURVATURE = 2.2e-16  # of a pair, as in Byrd, Lu, Nocedal and Zhu (1995)

_Dot = Callable[[Array, Array], float]


class Point(NamedTuple):
    """Parameters (P,), their loss, and its gradient (P,)."""

    theta: Array
    loss: float
    gradient: Array


class Pair(NamedTuple):
    """A step s (P,), the change y (P,) of the gradient along it, s y, and s y / y y."""

    s: Array
    y: Array
    curvature: float
    scale: float

    @classmethod
    def of(cls, s: Array, y: Array, dot: _Dot) -> Self | None:
        """Return the pair; None if the loss does not curve upward along its step, where it says nothing."""
        curvature, square = dot(s, y), dot(y, y)
        return cls(s, y, curvature, curvature / square) if curvature > _LEAST_CURVATURE * square else None


@dataclass(frozen=True, kw_only=True)
class LBFGS(Optimizer):
    """L-BFGS (Liu and Nocedal 1989): theta -= t H g, where H is made of the last steps and the gradients along them.

    H g is the two-loop recursion (NW algorithm 7.4). A line search finds a t at which the strong Wolfe conditions hold
    (NW algorithms 3.5 and 3.6). An epoch is one such iteration, on all rows: there are no mini-batches, and there is no
    learning rate. The training ends early at a gradient within `tol`, or where no step makes the loss smaller.

    All vectors have the dtype of the parameters; their scalar products are computed in float64, if the device has it.

    Parameters
    ----------
    history : int
        Steps to remember, each with two vectors of the size of the parameters.
    tol : float
        End when no component of the gradient is larger.
    max_evaluations : int
        The most steps that a search tries, each of which takes a gradient. If none is good, the iteration begins again
        with nothing to remember.
    l2 : float
        As for :class:`Optimizer`.

    Examples
    --------
    >>> import mlp_xp as mx
    >>> X, y = mx.datasets.xor()
    >>> model = mx.MLP([2, 4, 2], activation="tanh", dtype="float64", seed=1)
    >>> history = mx.fit(model, X, y, optimizer=LBFGS())
    >>> len(history) < 50, model.evaluate(X, y)[0] < 1e-4
    (True, True)
    """

    lr: ClassVar[float] = 1.0  # type: ignore[misc]
    lr_bias: ClassVar[None] = None  # type: ignore[misc]
    l2: float = 0.0
    history: int = 10
    tol: float = 1e-5
    max_evaluations: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "tol")
        for name in ("history", "max_evaluations"):
            object.__setattr__(self, name, check_count(f"LBFGS: {name}", getattr(self, name)))

    def init(self, theta: Array) -> OptimizerState:
        zeros_like = library_of(theta).zeros_like
        return {"over": 0, **{f"{name}{i}": zeros_like(theta) for i in range(self.history) for name in "sy"}}

    def is_over(self, state: OptimizerState) -> bool:
        return bool(state["over"])

    def pairs_of(self, state: OptimizerState, dot: _Dot) -> list[Pair]:
        """Return the pairs of a state, the oldest first; what no iteration has written yet is none."""
        pairs = [Pair.of(state[f"s{i}"], state[f"y{i}"], dot) for i in range(self.history)]
        return [pair for pair in pairs if pair is not None]

    def iterate(self, start: Point, pairs: list[Pair], dot: _Dot) -> Generator[Array, Point, tuple[Point, bool]]:
        """Do one iteration from a point; yield the parameters (P,) to evaluate, and be sent each as a :class:`Point`.

        Parameters
        ----------
        start : Point
        pairs : list of Pair
            What is remembered, the oldest first. The iteration adds to it, and forgets what there is no room for.
        dot : callable
            Returns the scalar product of two vectors (P,).

        Returns
        -------
        Point, bool
            Where it ends, which is the point that was sent last, or `start`; and whether no iteration can follow.
        """
        if _largest(start.gradient) <= self.tol:
            return start, True
        while True:
            direction = _direction(start.gradient, pairs, dot)
            slope = dot(start.gradient, direction)
            if not (pairs or math.isfinite(slope)):  # nor are the parameters then, for whoever watches over them
                return start._replace(theta=start.theta + slope * direction), True
            first = 1.0 if pairs else 1 / math.sqrt(max(-slope, sys.float_info.min))
            end = yield from self._step(start, direction, slope, first, dot)
            if end is not None:
                pair = Pair.of(end.theta - start.theta, end.gradient - start.gradient, dot)
                pairs += [] if pair is None else [pair]
                del pairs[: -self.history]
                return end, _largest(end.gradient) <= self.tol
            if not pairs:
                return start, True
            pairs.clear()

    def _step(
        self, start: Point, direction: Array, slope: float, first: float, dot: _Dot
    ) -> Generator[Array, Point, Point | None]:
        """Search along a direction (P,), in which the loss has this slope; return the point found, if any."""
        unseen = float(library_of(direction).finfo(direction.dtype).eps) * abs(start.loss)
        lengths, point = strong_wolfe(start.loss, slope, first, self.max_evaluations, unseen), None
        try:
            length = next(lengths)
            while True:
                point = yield start.theta + length * direction
                length = lengths.send((point.loss, dot(point.gradient, direction)))
        except StopIteration as search:
            return point if search.value else None


class _Trial(NamedTuple):
    length: float
    loss: float
    slope: float


def strong_wolfe(
    loss: float, slope: float, length: float, most: int, unseen: float = 0.0
) -> Generator[float, tuple[float, float], bool]:
    """Search for a step at which the strong Wolfe conditions hold (NW algorithms 3.5 and 3.6).

    Yield the length of a step to try, and be sent the loss there, and its slope along the step. Where these are not
    finite, the step was too long.

    Parameters
    ----------
    loss, slope : float
        At the beginning; the slope is below 0.
    length : float
        Of the step to try first.
    most : int
        The most steps to try.
    unseen : float
        Give up when the loss is expected to change by no more.

    Returns
    -------
    bool
        Whether the last length that was yielded is such a step; or if there was none, at least one at which the loss is
        sufficiently smaller.
    """
    low, high, tried = _Trial(0.0, loss, slope), _Trial(math.inf, math.inf, math.inf), 0
    while tried < most and -slope * length > unseen and length not in (low.length, high.length):
        trial, tried = _Trial(length, *(yield length)), tried + 1
        enough = trial.loss <= loss + _DECREASE * length * slope and math.isfinite(trial.slope)
        if enough and abs(trial.slope) <= -_CURVATURE * slope:
            return True
        if not enough or trial.loss >= low.loss:
            high = trial
        else:
            if trial.slope * (high.length - low.length) >= 0:
                high = low
            low = trial
        length = 4 * length if high.length == math.inf else _between(low, high)
    if low.length and low is not trial:
        yield low.length
    return low.length > 0


def _between(low: _Trial, high: _Trial) -> float:
    """Return where the cubic through two trials is smallest (NW eq. 3.59), a tenth of their distance from either."""
    width = high.length - low.length
    first = low.slope + high.slope - 3 * (high.loss - low.loss) / width
    square = first * first - low.slope * high.slope
    second = math.copysign(math.sqrt(square), width) if 0 <= square < math.inf else math.nan
    bend = high.slope - low.slope + 2 * second
    share = 1 - (high.slope + second - first) / bend if bend and not math.isnan(bend) else 0.5
    return low.length + min(max(share, 0.1), 0.9) * width


def _direction(gradient: Array, pairs: list[Pair], dot: _Dot) -> Array:
    """Return -H g (P,) by the two-loop recursion (NW algorithm 7.4), which begins at the scale of the last pair."""
    direction, shares = -gradient, []
    for s, y, curvature, _ in reversed(pairs):
        shares.append(dot(s, direction) / curvature)
        direction -= shares[-1] * y
    if pairs:
        direction *= pairs[-1].scale
    for s, y, curvature, _ in pairs:
        direction += (shares.pop() - dot(y, direction) / curvature) * s
    return direction


def _largest(gradient: Array) -> float:
    """Return the size of the largest component."""
    xp = library_of(gradient)
    return float(xp.max(xp.abs(gradient)))
