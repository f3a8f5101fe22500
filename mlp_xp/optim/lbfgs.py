"""L-BFGS: a step along curvature that it learns from the gradients before, as long as a search finds good.

NW stands for Nocedal and Wright, Numerical Optimization, 2nd edition, 2006.

Far from zero a loss has too few digits to show a short step, and the slopes still do. They take over there, which makes
the approximate Wolfe conditions of Hager and Zhang (2005), A new conjugate gradient method with guaranteed descent and
an efficient line search, SIAM Journal on Optimization 16.
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

__all__ = ["LBFGS", "Pair", "Point", "largest", "strong_wolfe"]

_DECREASE, _CURVATURE = 1e-4, 0.9  # c1 and c2 of the Wolfe conditions, NW eq. 3.7
_LEAST_CURVATURE = 2.2e-16  # of a pair, as in Byrd, Lu, Nocedal and Zhu (1995)
_ROUNDING = 10  # units of its last digit by which a loss may be wrong: in float32 the 1e-6 of Hager and Zhang (2005)
_MOST_UNSEEN = 10  # steps in an iteration that the loss does not show

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
    learning rate. The training ends early at a gradient within `tol`, or where no step makes the loss smaller, of which
    the logger ``mlp_xp.engines.lbfgs`` warns.

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
        if not math.isfinite(dot(start.gradient, start.gradient)):  # nor are the parameters then, for who watches them
            return start._replace(theta=start.theta + math.nan * start.gradient), True
        at, unseen = start, self._unseen(start)
        for _ in range(_MOST_UNSEEN):
            if largest(at.gradient) <= self.tol:
                return at, True
            end = yield from self._advance(at, pairs, dot)
            if end is None:
                break
            if end.loss < start.loss - unseen:
                return end, largest(end.gradient) <= self.tol
            at = end
        return start, True

    def _advance(self, start: Point, pairs: list[Pair], dot: _Dot) -> Generator[Array, Point, Point | None]:
        """Take one step, without what is remembered if there is none with it; return its end, if any."""
        while True:
            direction = _direction(start.gradient, pairs, dot)
            slope = dot(start.gradient, direction)
            first = 1.0 if pairs else 1 / math.sqrt(max(-slope, sys.float_info.min))
            end = yield from self._step(start, direction, slope, first, dot)
            if end is not None:
                pair = Pair.of(end.theta - start.theta, end.gradient - start.gradient, dot)
                pairs += [] if pair is None else [pair]
                del pairs[: -self.history]
                return end
            if not pairs:
                return None
            pairs.clear()

    def _step(
        self, start: Point, direction: Array, slope: float, first: float, dot: _Dot
    ) -> Generator[Array, Point, Point | None]:
        """Search along a direction (P,), in which the loss has this slope; return the point found, if any."""
        lengths, point = strong_wolfe(start.loss, slope, first, self.max_evaluations, self._unseen(start)), None
        try:
            length = next(lengths)
            while True:
                point = yield start.theta + length * direction
                length = lengths.send((point.loss, dot(point.gradient, direction)))
        except StopIteration as search:
            return point if search.value else None

    def _unseen(self, point: Point) -> float:
        """Return by how much the loss may differ from that of a point, and rounding alone be the cause."""
        return _ROUNDING * float(library_of(point.theta).finfo(point.theta.dtype).eps) * abs(point.loss)


class _Trial(NamedTuple):
    length: float
    change: float  # of the loss
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
        Where the loss changes by no more, the mean of the two slopes tells the change. The conditions are then those
        that Hager and Zhang (2005) call approximate.

    Returns
    -------
    bool
        Whether the last length that was yielded is such a step; or if there was none, at least one at which the loss is
        sufficiently smaller, and seen to be.
    """
    low, high, tried = _Trial(0.0, 0.0, slope), _Trial(math.inf, math.inf, math.inf), 0
    while tried < most and -slope * length > 0 and length not in (low.length, high.length):
        there, slope_there = yield length
        change = there - loss
        if abs(change) <= unseen:
            change = length * (slope + slope_there) / 2
        trial, tried = _Trial(length, change, slope_there), tried + 1
        enough = change <= _DECREASE * length * slope and math.isfinite(slope_there)
        if enough and abs(slope_there) <= -_CURVATURE * slope:
            return True
        if not enough or change >= low.change:
            high = trial
        else:
            if slope_there * (high.length - low.length) >= 0:
                high = low
            low = trial
        length = 4 * length if high.length == math.inf else _between(low, high)
    if low.change >= -unseen:
        return False
    if low is not trial:
        yield low.length
    return True


def _between(low: _Trial, high: _Trial) -> float:
    """Return where the cubic through two trials is smallest (NW eq. 3.59), a tenth of their distance from either."""
    width = high.length - low.length
    first = low.slope + high.slope - 3 * (high.change - low.change) / width
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


def largest(gradient: Array) -> float:
    """Return the size of the largest component."""
    xp = library_of(gradient)
    return float(xp.max(xp.abs(gradient)))
