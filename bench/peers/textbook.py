"""NumPy as a textbook writes it: the formulas on whole batches, a new array for every operation."""

from __future__ import annotations

import numpy as np
from threadpoolctl import ThreadpoolController

from bench.contender import Contender, UnavailableError
from bench.problem import (
    BETA1,
    BETA2,
    EPSILON,
    MOMENTUM,
    Array,
    Parameters,
    Problem,
    activate,
    activation_slope,
    scaled,
)


def make(problem: Problem, device: str, threads: int) -> Contender:
    """Return the textbook's training loop."""
    if device != "cpu":
        raise UnavailableError("not supported: NumPy runs on the CPU")
    return Textbook(problem, threads)


class Textbook(Contender):
    """Bytes divided by 255 once, labels one-hot; no buffers, no shards. Only the update works in place.

    Of Adam, the two corrections are numbers and taken together, as Kingma and Ba (2015, section 2) advise.
    """

    settings = "inputs kept as floats, one array per operation, updates in place, BLAS threads as given"

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem)
        self.X = scaled(problem.X, problem.dtype)
        one_hot = problem.output == "softmax"
        self.Y = np.eye(problem.sizes[-1], dtype=problem.dtype)[problem.y] if one_hot else problem.y
        self.layers = [(W.copy(), b.copy()) for W, b in problem.initial]
        self.kept = [(np.zeros_like(part), np.zeros_like(part)) for layer in self.layers for part in layer]
        self.updates = 0
        self.threads = threads
        self.controller = ThreadpoolController()

    def run(self, epochs: int) -> None:
        with self.controller.limit(limits=self.threads, user_api="blas"):
            for _ in range(epochs):
                self.epoch += 1
                for rows in self.problem.batches(self.epoch):
                    self._step(self.X[rows], self.Y[rows])

    def _step(self, X: Array, Y: Array) -> None:
        A = [X]
        for W, b in self.layers[:-1]:
            A.append(activate(self.problem.activation, A[-1] @ W.T + b))
        W, b = self.layers[-1]
        Z = A[-1] @ W.T + b
        if self.problem.output == "softmax":
            Z = np.exp(Z - Z.max(axis=1, keepdims=True))
            Z /= Z.sum(axis=1, keepdims=True)
        dZ = (Z - Y) / Z.dtype.type(len(X))
        gradient = []
        for layer in reversed(range(len(self.layers))):
            gradient[:0] = [dZ.T @ A[layer], dZ.sum(axis=0)]
            if layer > 0:
                dZ = dZ @ self.layers[layer][0] * activation_slope(self.problem.activation, A[layer])
        self._update(gradient)

    def _update(self, gradient: list[Array]) -> None:
        self.updates += 1
        rate, t = self.problem.learning_rate, self.updates
        parts = (part for layer in self.layers for part in layer)
        for part, slope, (m, v) in zip(parts, gradient, self.kept, strict=True):
            match self.problem.optimizer:
                case "sgd":
                    part -= rate * slope
                case "momentum":
                    m *= MOMENTUM
                    m += slope
                    part -= rate * m
                case "adam":
                    correction = (1 - BETA2**t) ** 0.5
                    m *= BETA1
                    m += (1 - BETA1) * slope
                    v *= BETA2
                    v += (1 - BETA2) * slope * slope
                    part -= rate * correction / (1 - BETA1**t) * m / (np.sqrt(v) + EPSILON * correction)

    def parameters(self) -> Parameters:
        return [(W.copy(), b.copy()) for W, b in self.layers]
