"""What every contender has to do: one training problem, and the same training in float64 NumPy as the judge.

Legend: n rows, d inputs, k classes; layer l has W (n_l, n_{l-1}) and b (n_l,).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Parameters = list[tuple[Array, Array]]

# Of the optimizers, as every library has them by default
MOMENTUM = 0.9
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

_ROWS = 4096  # a float64 block of 784 columns is then 26 MB, whatever n is


@dataclass(frozen=True, eq=False)
class Problem:
    """Train a classifier on the mean softmax cross-entropy, or linear outputs on half the mean squared error.

    Attributes
    ----------
    name : str
        Name of the case.
    X : array (n, d)
        Pixels of uint8, of which the network sees X / 255, or floats, which it sees as they are.
    y : array
        Labels (n,) 0 to k - 1; for linear outputs, numbers (n, k).
    sizes : tuple of int
        Units per layer, (d, ..., k).
    activation : str
        ``"sigmoid"``, ``"tanh"`` or ``"relu"``, in every hidden layer.
    learning_rate : float
    batch_size : int or None
        None: one step an epoch, on all rows.
    seed : int
        Of the initial weights and of the order of the rows.
    optimizer : str
        ``"sgd"``, ``"momentum"`` or ``"adam"``, with the constants of this module.
    output : str
        ``"softmax"`` or ``"linear"``.
    dtype : str
        Of the parameters and of all that is computed, ``"float32"`` or ``"float64"``.
    """

    name: str
    X: Array
    y: Array
    sizes: tuple[int, ...]
    activation: str = "sigmoid"
    learning_rate: float = 0.5
    batch_size: int | None = None
    seed: int = 0
    optimizer: str = "sgd"
    output: str = "softmax"
    dtype: str = "float32"

    @cached_property
    def initial(self) -> Parameters:
        """Weights from the normal law of Glorot and Bengio (2010), biases 0: where every contender starts."""
        rng = np.random.default_rng(self.seed)
        return [
            (
                (rng.standard_normal((fan_out, fan_in)) * (2 / (fan_in + fan_out)) ** 0.5).astype(self.dtype),
                np.zeros(fan_out, self.dtype),
            )
            for fan_in, fan_out in pairwise(self.sizes)
        ]

    @cached_property
    def initial_loss(self) -> float:
        """The mean loss there."""
        return self.loss(self.initial)

    def order(self, epoch: int) -> Array:
        """Return the order (n,) of the rows in an epoch, counted from 1: the one that ``mlp_xp`` uses for this seed."""
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.X))

    def batches(self, epoch: int) -> Iterator[Array | slice]:
        """Yield the rows of each step of an epoch; the last batch is the remainder, which nobody drops."""
        if self.batch_size is None:
            yield slice(None)
            return
        order = self.order(epoch)
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    @property
    def updates(self) -> int:
        """Updates in an epoch."""
        return 1 if self.batch_size is None else -(-len(self.X) // self.batch_size)

    @cached_property
    def early(self) -> Problem:
        """The same training with rows for five updates an epoch; the last batch is a remainder."""
        rows = 5 * (self.batch_size or len(self.X)) - (self.batch_size or 0) // 2
        return replace(self, name=f"{self.name}, few rows", X=self.X[:rows], y=self.y[:rows])

    @property
    def flops(self) -> int:
        """Floating-point operations of an epoch's matrix products: forward, weights' gradient, inputs' gradient.

        Nominal: every product with a zero counts, also for a contender that skips it. The gradient with respect to
        the images is not needed and not counted.
        """
        weights = [fan_in * fan_out for fan_in, fan_out in pairwise(self.sizes)]
        return 2 * len(self.X) * (3 * sum(weights) - weights[0])

    def loss(self, parameters: Parameters) -> float:
        """Return the mean loss over all rows at `parameters`, in float64 whatever their dtype."""
        wide = [(W.astype(np.float64), b.astype(np.float64)) for W, b in parameters]
        return sum(self._gradient(wide, rows, backward=False)[0] for rows in self._blocks(slice(None))) / len(self.X)

    def reference(self, epochs: int) -> tuple[float, Parameters]:
        """Return loss and parameters after `epochs` epochs of float64 NumPy by the formulas."""
        return _reference(self, epochs)

    def _blocks(self, rows: Array | slice) -> Iterator[Array]:
        indices = np.arange(len(self.X))[rows]
        for start in range(0, len(indices), _ROWS):
            yield indices[start : start + _ROWS]

    def _gradient(self, parameters: Parameters, rows: Array, backward: bool = True) -> tuple[float, Parameters]:
        """Return the sums over `rows` of the loss and, if asked for, of the gradients."""
        A = [scaled(self.X[rows], "float64")]
        for W, b in parameters[:-1]:
            A.append(activate(self.activation, A[-1] @ W.T + b))
        W, b = parameters[-1]
        loss, dZ = _loss(self.output, A[-1] @ W.T + b, self.y[rows])
        if not backward:
            return loss, []
        gradients = []
        for layer in reversed(range(len(parameters))):
            gradients.append((dZ.T @ A[layer], dZ.sum(axis=0)))
            if layer > 0:
                dZ = dZ @ parameters[layer][0] * activation_slope(self.activation, A[layer])
        return loss, gradients[::-1]


def _loss(output: str, Z: Array, y: Array) -> tuple[float, Array]:
    """Return the sum of the rows' losses and its gradient with respect to Z (m, k).

    Raises
    ------
    ValueError
        If `output` is none that the benchmarks use.
    """
    match output:
        case "softmax":
            Z = Z - Z.max(axis=1, keepdims=True)
            log_P = Z - np.log(np.exp(Z).sum(axis=1, keepdims=True))
            each, dZ = np.arange(len(Z)), np.exp(log_P)
            dZ[each, y] -= 1
            return -float(log_P[each, y].sum()), dZ
        case "linear":
            dZ = Z - y
            return float((dZ * dZ).sum()) / 2, dZ
    raise ValueError(f"unknown output {output!r}; the benchmarks use 'softmax' or 'linear'")


def activate(name: str, Z: Array) -> Array:
    """Return the activation called `name` of Z.

    Raises
    ------
    ValueError
        If `name` is none that the benchmarks use.
    """
    match name:
        case "sigmoid":
            return np.asarray(1 / (1 + np.exp(-Z)))
        case "tanh":
            return np.asarray(np.tanh(Z))
        case "relu":
            return np.asarray(np.maximum(Z, 0))
    raise ValueError(f"unknown activation {name!r}; the benchmarks use 'sigmoid', 'tanh' or 'relu'")


def activation_slope(name: str, A: Array) -> Array:
    """Return the derivative of the activation called `name`, from its output A."""
    match name:
        case "sigmoid":
            return np.asarray(A * (1 - A))
        case "tanh":
            return np.asarray(1 - A * A)
        case "relu":
            return np.asarray(A > 0, dtype=A.dtype)
    raise ValueError(f"unknown activation {name!r}; the benchmarks use 'sigmoid', 'tanh' or 'relu'")


def scaled(X: Array, dtype: str = "float32") -> Array:
    """Return what the network sees (n, d) in this dtype, X / 255 of bytes: the peers take no bytes."""
    if X.dtype == np.uint8:
        return np.divide(X, np.asarray(255, dtype), dtype=dtype)
    return X.astype(dtype, copy=False)


@lru_cache(maxsize=8)
def _reference(problem: Problem, epochs: int) -> tuple[float, Parameters]:
    """Train in float64; kept, since every contender of a comparison is judged by the same numbers."""
    parameters = [(W.astype(np.float64), b.astype(np.float64)) for W, b in problem.initial]
    flat = [part for layer in parameters for part in layer]
    first, second = ([np.zeros_like(part) for part in flat] for _ in range(2))
    count = 0
    for epoch in range(1, epochs + 1):
        for rows in problem.batches(epoch):
            count += 1
            gradient = _mean_gradient(problem, parameters, rows)
            for part, slope, m, v in zip(flat, gradient, first, second, strict=True):
                _update(problem.optimizer, problem.learning_rate, count, part, slope, m, v)
    return problem.loss(parameters), parameters


def _mean_gradient(problem: Problem, parameters: Parameters, rows: Array | slice) -> list[Array]:
    """Return the mean over these rows of the gradients, weights and biases in turn."""
    total = [np.zeros_like(part) for layer in parameters for part in layer]
    count = 0
    for block in problem._blocks(rows):
        count += len(block)
        slopes = (part for layer in problem._gradient(parameters, block)[1] for part in layer)
        for part, slope in zip(total, slopes, strict=True):
            part += slope
    return [part / count for part in total]


def _update(optimizer: str, rate: float, count: int, part: Array, slope: Array, m: Array, v: Array) -> None:
    """Do update number `count` of some parameters in place, and of what the optimizer keeps of them: m and v.

    Raises
    ------
    ValueError
        If `optimizer` is none that the benchmarks use.
    """
    match optimizer:
        case "sgd":
            part -= rate * slope
        case "momentum":
            m[...] = MOMENTUM * m + slope
            part -= rate * m
        case "adam":  # Kingma and Ba (2015), algorithm 1
            m[...] = BETA1 * m + (1 - BETA1) * slope
            v[...] = BETA2 * v + (1 - BETA2) * slope**2
            part -= rate * (m / (1 - BETA1**count)) / (np.sqrt(v / (1 - BETA2**count)) + EPSILON)
        case _:
            raise ValueError(f"unknown optimizer {optimizer!r}; the benchmarks use 'sgd', 'momentum' or 'adam'")
