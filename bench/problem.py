"""What every contender has to do: one training problem, and the same training in float64 NumPy as the judge.

Legend: n rows, d inputs, k classes; layer l has W (n_l, n_{l-1}) and b (n_l,).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Parameters = list[tuple[Array, Array]]

_ROWS = 4096  # a float64 block of 784 columns is then 26 MB, whatever n is


@dataclass(frozen=True, eq=False)
class Problem:
    """Train a classifier of byte images by gradient descent on the mean softmax cross-entropy.

    Attributes
    ----------
    name : str
        Name of the case.
    X : array of uint8 (n, d)
        Pixels; the network sees X / 255.
    y : array of int (n,)
        Labels 0 to k - 1.
    sizes : tuple of int
        Units per layer, (d, ..., k).
    activation : str
        ``"sigmoid"``, ``"tanh"`` or ``"relu"``, in every hidden layer.
    learning_rate : float
    batch_size : int or None
        None: one step an epoch, on all rows.
    seed : int
        Of the initial weights and of the order of the rows.
    """

    name: str
    X: Array
    y: Array
    sizes: tuple[int, ...]
    activation: str = "sigmoid"
    learning_rate: float = 0.5
    batch_size: int | None = None
    seed: int = 0

    @cached_property
    def initial(self) -> Parameters:
        """Weights from the normal law of Glorot and Bengio (2010), biases 0, float32: where every contender starts."""
        rng = np.random.default_rng(self.seed)
        return [
            (
                (rng.standard_normal((fan_out, fan_in)) * (2 / (fan_in + fan_out)) ** 0.5).astype(np.float32),
                np.zeros(fan_out, np.float32),
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
        """Return loss and parameters after `epochs` epochs of plain float64 NumPy."""
        return _reference(self, epochs)

    def _blocks(self, rows: Array | slice) -> Iterator[Array]:
        indices = np.arange(len(self.X))[rows]
        for start in range(0, len(indices), _ROWS):
            yield indices[start : start + _ROWS]

    def _gradient(self, parameters: Parameters, rows: Array, backward: bool = True) -> tuple[float, Parameters]:
        """Return the sums over `rows` of the loss and, if asked for, of the gradients."""
        A = [self.X[rows] / 255.0]
        for W, b in parameters[:-1]:
            A.append(activate(self.activation, A[-1] @ W.T + b))
        W, b = parameters[-1]
        Z = A[-1] @ W.T + b
        Z -= Z.max(axis=1, keepdims=True)
        log_P = Z - np.log(np.exp(Z).sum(axis=1, keepdims=True))
        each, labels = np.arange(len(rows)), self.y[rows]
        loss = -float(log_P[each, labels].sum())
        if not backward:
            return loss, []
        dZ = np.exp(log_P)
        dZ[each, labels] -= 1
        gradients = []
        for layer in reversed(range(len(parameters))):
            gradients.append((dZ.T @ A[layer], dZ.sum(axis=0)))
            if layer > 0:
                dZ = dZ @ parameters[layer][0] * activation_slope(self.activation, A[layer])
        return loss, gradients[::-1]


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


def scaled(X: Array) -> Array:
    """Return X / 255 (n, d) in float32: what the peers take, as none of them takes bytes."""
    return np.divide(X, np.float32(255), dtype=np.float32)


@lru_cache(maxsize=8)
def _reference(problem: Problem, epochs: int) -> tuple[float, Parameters]:
    """Train in float64; kept, since every contender of a comparison is judged by the same numbers."""
    parameters = [(W.astype(np.float64), b.astype(np.float64)) for W, b in problem.initial]
    for epoch in range(1, epochs + 1):
        for rows in problem.batches(epoch):
            total: Parameters = [(np.zeros_like(W), np.zeros_like(b)) for W, b in parameters]
            count = 0
            for block in problem._blocks(rows):
                count += len(block)
                for (dW, db), (sum_W, sum_b) in zip(problem._gradient(parameters, block)[1], total, strict=True):
                    sum_W += dW
                    sum_b += db
            for (W, b), (dW, db) in zip(parameters, total, strict=True):
                W -= problem.learning_rate / count * dW
                b -= problem.learning_rate / count * db
    return problem.loss(parameters), parameters
