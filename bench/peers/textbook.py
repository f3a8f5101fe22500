"""NumPy as a textbook writes it: the formulas on whole batches, a new array for every operation."""

from __future__ import annotations

import numpy as np
from threadpoolctl import ThreadpoolController

from bench.contender import Contender, UnavailableError
from bench.problem import Parameters, Problem, activate, activation_slope, scaled


def make(problem: Problem, device: str, threads: int) -> Contender:
    """Return the textbook's training loop."""
    if device != "cpu":
        raise UnavailableError("not supported: NumPy runs on the CPU")
    return Textbook(problem, threads)


class Textbook(Contender):
    """Float32 throughout, images divided by 255 once, labels one-hot; no buffers, no shards."""

    settings = "float32 images kept, one array per operation, BLAS threads as given"

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem)
        self.X = scaled(problem.X)
        self.Y = np.eye(problem.sizes[-1], dtype=np.float32)[problem.y]
        self.layers = [(W.copy(), b.copy()) for W, b in problem.initial]
        self.threads = threads
        self.controller = ThreadpoolController()

    def run(self, epochs: int) -> None:
        with self.controller.limit(limits=self.threads, user_api="blas"):
            for _ in range(epochs):
                self.epoch += 1
                for rows in self.problem.batches(self.epoch):
                    self._step(self.X[rows], self.Y[rows])

    def _step(self, X: np.ndarray, Y: np.ndarray) -> None:
        A = [X]
        for W, b in self.layers[:-1]:
            A.append(activate(self.problem.activation, A[-1] @ W.T + b))
        W, b = self.layers[-1]
        Z = A[-1] @ W.T + b
        P = np.exp(Z - Z.max(axis=1, keepdims=True))
        P /= P.sum(axis=1, keepdims=True)
        dZ = (P - Y) / np.float32(len(X))
        for layer in reversed(range(len(self.layers))):
            W, b = self.layers[layer]
            dW, db = dZ.T @ A[layer], dZ.sum(axis=0)
            if layer > 0:
                dZ = dZ @ W * activation_slope(self.problem.activation, A[layer])
            self.layers[layer] = (W - self.problem.learning_rate * dW, b - self.problem.learning_rate * db)

    def parameters(self) -> Parameters:
        return [(W.copy(), b.copy()) for W, b in self.layers]
