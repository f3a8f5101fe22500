"""Parameters: one flat vector, seen as the lectures' weights and biases, their first values, and sums of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .checks import check_choice, check_numbers
from .devices import Array

__all__ = [
    "INITIALIZERS",
    "Forward",
    "GradSum",
    "Gradient",
    "Layout",
    "Parameters",
    "check_like",
    "check_vector",
    "fitting_init",
    "initial_theta",
]


class Parameters(NamedTuple):
    """Weights and biases by layer, numbered as in the lectures: ``W[1]`` to ``W[L]``; index 0 is None."""

    W: list[Array]
    b: list[Array]


class Forward(NamedTuple):
    """Every Z[l] and A[l] of a pass, numbered as in the lectures: A[0] is the input and Z[0] is None."""

    Z: list[Array]
    A: list[Array]


class Gradient(NamedTuple):
    """Derivatives of the mean loss, layer by layer (``weights[0]`` belongs to W[1]).

    Attributes
    ----------
    weights, biases : list of array
        Shapes as in ``model.weights`` and ``model.biases``.
    deltas : list of array
        The error delta[l] = d loss_i / d Z[l] of each row i, (n, n_l). ``biases[l]`` is the mean of its rows.
    """

    weights: list[Array]
    biases: list[Array]
    deltas: list[Array]


class GradSum(NamedTuple):
    """Sums over rows. They are divided once, at the end.

    Attributes
    ----------
    loss : 0-d array
        Sum of the rows' losses.
    rows : int
        How many rows there were.
    grad : array (P,)
        Sum of the rows' gradients, as one flat vector.
    """

    loss: Array
    rows: int
    grad: Array


class Layout:
    """How the flat parameter vector of length P is split into the layers' weights and biases.

    Layer l is stored as the block ``[b ; W.T]`` of shape (1 + n_{l-1}, n_l): the product of a row [1, x] with it is
    ``W x + b``, a prefix of the inputs is a prefix of the rows, and matrix products read it in their favorite order.

    Parameters
    ----------
    sizes : sequence of int
        Units per layer, input first: (n_0, n_1, ..., n_L).

    Examples
    --------
    >>> Layout([784, 196, 10]).size
    155830
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        self.blocks: list[slice] = []
        start = 0
        for fan_in, fan_out in pairwise(self.sizes):
            self.blocks.append(slice(start, start + (1 + fan_in) * fan_out))
            start = self.blocks[-1].stop
        self.size = start

    def split(self, theta: Array, xp: Any = np) -> Parameters:
        """(P,) -> W[l] (n_l, n_{l-1}) and b[l] (n_l,): views, if the library has views."""
        W, b = [None], [None]
        for block, (fan_in, fan_out) in zip(self.blocks, pairwise(self.sizes), strict=True):
            matrix = xp.reshape(theta[block], (1 + fan_in, fan_out))
            W.append(matrix[1:, :].T)
            b.append(matrix[0, :])
        return Parameters(W, b)

    def join(self, parameters: Parameters, xp: Any = np) -> Array:
        """W[l] (n_l, n_{l-1}) and b[l] (n_l,) -> (P,): the inverse of :meth:`split`, as a new vector."""
        parts = []
        for W, b in zip(parameters.W[1:], parameters.b[1:], strict=True):
            parts += [b, xp.reshape(W.T, (-1,))]
        return xp.concat(parts)

    def is_bias(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return a mask (P,) that is True at the biases."""
        mask = np.zeros(self.size, dtype=bool)
        for b in self.split(mask).b[1:]:
            b[:] = True
        return mask


def _zeros(rng: np.random.Generator, fan_in: int, fan_out: int) -> np.ndarray[Any, Any]:
    return np.zeros((fan_out, fan_in))


def _normal(std: Any) -> Any:
    return lambda rng, fan_in, fan_out: rng.standard_normal((fan_out, fan_in)) * std(fan_in, fan_out)


def _uniform(std: Any) -> Any:
    # a uniform distribution on (-c, c) has the standard deviation c / sqrt(3)
    return lambda rng, fan_in, fan_out: rng.uniform(-1, 1, (fan_out, fan_in)) * (3**0.5 * std(fan_in, fan_out))


def _xavier(fan_in: int, fan_out: int) -> float:
    return float((2 / (fan_in + fan_out)) ** 0.5)


def _he(fan_in: int, fan_out: int) -> float:
    return float((2 / fan_in) ** 0.5)


INITIALIZERS: dict[str, Any] = {
    "zeros": _zeros,
    "normal": _normal(lambda fan_in, fan_out: 0.01),
    "lecun_normal": _normal(lambda fan_in, fan_out: fan_in**-0.5),
    "xavier_normal": _normal(_xavier),
    "xavier_uniform": _uniform(_xavier),
    "he_normal": _normal(_he),
    "he_uniform": _uniform(_he),
}
"""Distributions of the first weights, by standard deviation. Biases always start at zero.

``zeros``: 0 (every hidden unit stays the same: S11). ``normal``: 0.01, the lecture's. ``lecun_normal``:
1/sqrt(n_in) (LeCun et al. 1998, Efficient BackProp, sec. 4.6). ``xavier_*``: sqrt(2 / (n_in + n_out)) (Glorot and
Bengio 2010, eq. 16). ``he_*``: sqrt(2 / n_in) (He et al. 2015, eq. 10).
"""


def fitting_init(activation: Sequence[str]) -> str:
    """Return the initializer for hidden layers of these activations.

    He's takes into account that ReLUs let half of the variance through (He et al. 2015, sec. 2.2), and Xavier's is made
    for units that are linear at 0 (Glorot and Bengio 2010, sec. 4.2).

    Examples
    --------
    >>> fitting_init(["relu", "tanh"]), fitting_init(["tanh", "sigmoid"]), fitting_init([])
    ('he_normal', 'xavier_normal', 'xavier_normal')
    """
    return "he_normal" if {"relu", "leaky_relu"} & set(activation) else "xavier_normal"


def initial_theta(layout: Layout, init: str, seed: int, dtype: str) -> np.ndarray[Any, Any]:
    """Draw the first parameter vector (P,) on the host and in float64, so that every backend starts at the same one.

    Raises
    ------
    ValueError
        If `init` is not a key of :data:`INITIALIZERS`.
    """
    check_choice("initializer", init, INITIALIZERS)
    rng = np.random.default_rng(seed)
    theta = np.zeros(layout.size, dtype)
    for W, fans in zip(layout.split(theta).W[1:], pairwise(layout.sizes), strict=True):
        W[:] = INITIALIZERS[init](rng, *fans)
    return theta


def check_like(what: str, values: Any, current: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """Return the values as finite arrays of the dtype and shapes of the current ones.

    Raises
    ------
    ValueError
        If `values` is not one array of finite real numbers per layer, with the same shapes.
    """
    wanted = [array.shape for array in current]
    try:
        values = list(values)
    except TypeError:
        raise ValueError(f"{what} must be a list of arrays of shapes {wanted}, got {values!r:.60}") from None
    numbers = [check_numbers(f"{what}[{i}]", value) for i, value in enumerate(values)]
    shapes = [array.shape for array in numbers]
    if shapes != wanted:
        raise ValueError(f"{what} have the shapes {wanted}, got {shapes}; give one array per layer")
    with np.errstate(over="ignore"):
        arrays = [array.astype(current[0].dtype) for array in numbers]
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(f"{what} must be finite, got NaN, infinity or a number beyond {current[0].dtype}")
    return arrays


def check_vector(what: str, vector: Array, size: int, dtype: Any) -> Array:
    """Return the vector if it has this size and dtype."""
    if vector.shape != (size,) or vector.dtype != dtype:
        name = getattr(dtype, "__name__", dtype)
        raise ValueError(
            f"{what} must have the shape {(size,)} and the dtype {name}, got {tuple(vector.shape)} and "
            f"{vector.dtype}; convert it first, or assign weights and biases"
        )
    return vector
