"""scikit-learn's MLPClassifier, one partial_fit an epoch."""

from __future__ import annotations

import numpy as np
from sklearn.neural_network import MLPClassifier
from threadpoolctl import ThreadpoolController

from bench.contender import Contender, UnavailableError
from bench.problem import Parameters, Problem, scaled

_ACTIVATIONS = {"sigmoid": "logistic", "tanh": "tanh", "relu": "relu"}


def make(problem: Problem, device: str, threads: int) -> Contender:
    """Return scikit-learn's classifier at the problem's initial weights."""
    if device != "cpu":
        raise UnavailableError("not supported: scikit-learn's MLPClassifier has no GPU path")
    return Sklearn(problem, threads)


class Sklearn(Contender):
    """Plain SGD (no momentum, no L2), as the problem asks; float32 images, which halve its time against float64.

    It has no way to be given initial weights or an order of rows: its own weights are overwritten in place after a
    first step, and the rows arrive in the problem's order with its own shuffle off, at the price of one gather an
    epoch, which its shuffle would pay batch by batch.
    """

    settings = "solver sgd, momentum 0, alpha 0, float32 images, shuffled outside, BLAS threads as given"

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem)
        self.X, self.y = scaled(problem.X), problem.y
        self.threads = threads
        self.controller = ThreadpoolController()
        self.model = MLPClassifier(
            problem.sizes[1:-1],
            activation=_ACTIVATIONS[problem.activation],
            solver="sgd",
            alpha=0.0,
            batch_size=1,
            learning_rate_init=problem.learning_rate,
            momentum=0.0,
            nesterovs_momentum=False,
            shuffle=False,
        )
        self.model.partial_fit(self.X[:1], self.y[:1], classes=np.arange(problem.sizes[-1]))
        self.model.set_params(batch_size=problem.batch_size or len(self.X))
        for layer, (W, b) in enumerate(problem.initial):
            self.model.coefs_[layer][:] = W.T
            self.model.intercepts_[layer][:] = b

    def run(self, epochs: int) -> None:
        with self.controller.limit(limits=self.threads, user_api="blas"):
            for _ in range(epochs):
                self.epoch += 1
                rows = slice(None) if self.problem.batch_size is None else self.problem.order(self.epoch)
                self.model.partial_fit(self.X[rows], self.y[rows])

    def parameters(self) -> Parameters:
        return [(W.T.copy(), b.copy()) for W, b in zip(self.model.coefs_, self.model.intercepts_, strict=True)]
