"""The updates of SGD and Adam for NumPy: equal to the optimizers' own up to rounding, without a new array.

An update is bound by memory, so it goes block by block, all passes over one before the next: a block of all vectors
fits into the cache of a core. Factors of a whole vector are multiplied with each other first. Numbers come as arrays
(), which NumPy takes faster than Python's. No block depends on another, so their size changes no bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["AdamUpdate", "DescentUpdate"]

_BLOCK = 2**15  # entries: five vectors of float32 take 640 KiB

_Vector = np.ndarray[Any, Any]


class _Update:
    """What both updates need.

    Parameters
    ----------
    size : int
        Of the vectors.
    dtype : str
    """

    def __init__(self, size: int, dtype: str) -> None:
        self.dtype, self.size = np.dtype(dtype), size
        self.scratch = np.empty(min(size, _BLOCK), self.dtype)

    def number(self, value: float) -> _Vector:
        """Return a number as an array ()."""
        return np.array(value, self.dtype)

    def blocks(self, rate: float | _Vector, *vectors: _Vector) -> Iterator[tuple[Any, ...]]:
        """Yield the learning rate, a number or (m,), the blocks (m,) of vectors (P,), and as much scratch memory."""
        for i in range(0, self.size, _BLOCK):
            block = slice(i, min(i + _BLOCK, self.size))
            own = rate[block] if isinstance(rate, np.ndarray) else rate
            yield own, *[vector[block] for vector in vectors], self.scratch[: block.stop - i]


class DescentUpdate(_Update):
    """Gradient descent, see :class:`mlp_xp.optim.SGD`.

    Parameters
    ----------
    size, dtype
        Of the vectors.
    momentum : float
    nesterov : bool
    """

    def __init__(self, size: int, dtype: str, momentum: float, nesterov: bool) -> None:
        super().__init__(size, dtype)
        self.momentum, self.nesterov = self.number(momentum), nesterov

    def __call__(self, theta: _Vector, grad: _Vector, velocity: _Vector | None, rate: float | _Vector) -> None:
        """Update the parameters (P,), and the velocity (P,), which is None if there is no momentum."""
        if velocity is None:
            for own, T, g, step in self.blocks(rate, theta, grad):
                T -= np.multiply(g, own, out=step)
            return
        for own, T, g, v, step in self.blocks(rate, theta, grad, velocity):
            v *= self.momentum
            v += g
            if self.nesterov:
                np.multiply(v, self.momentum, out=step)
                step += g
                step *= own
            else:
                np.multiply(v, own, out=step)
            T -= step


class AdamUpdate(_Update):
    """Adam, and AdamW if there is a decay, see :class:`mlp_xp.optim.Adam`.

    The corrections c1 = 1 - beta1^t and c2 = 1 - beta2^t are numbers, and taken together as Kingma and Ba (2015, end of
    section 2) advise: lr (m / c1) / (sqrt(v / c2) + eps) is (lr sqrt(c2) / c1) m / (sqrt(v) + eps sqrt(c2)).

    Parameters
    ----------
    size, dtype
        Of the vectors.
    beta1, beta2, epsilon, decay : float
    """

    def __init__(self, size: int, dtype: str, beta1: float, beta2: float, epsilon: float, decay: float) -> None:
        super().__init__(size, dtype)
        self.betas, self.epsilon, self.decay = (beta1, beta2), epsilon, decay
        self.kept = self.number(beta1), self.number(beta2)
        self.added = self.number(1 - beta1), self.number(1 - beta2)

    def __call__(
        self, theta: _Vector, grad: _Vector, mean: _Vector, square: _Vector, updates: int, rate: float | _Vector
    ) -> None:
        """Do update number `updates`, counted from 1: of the parameters, the mean and the mean square, all (P,)."""
        c1, c2 = (1 - beta**updates for beta in self.betas)
        (kept1, kept2), (added1, added2) = self.kept, self.added
        factor, epsilon = self.number(c2**0.5 / c1), self.number(self.epsilon * c2**0.5)
        for own, T, g, m, v, step in self.blocks(rate, theta, grad, mean, square):
            m *= kept1
            m += np.multiply(g, added1, out=step)
            v *= kept2
            np.multiply(g, added2, out=step)
            v += np.multiply(step, g, out=step)
            if self.decay:
                T -= np.multiply(T, own * self.decay, out=step)
            np.sqrt(v, out=step)
            step += epsilon
            np.divide(m, step, out=step)
            T -= np.multiply(step, own * factor, out=step)
