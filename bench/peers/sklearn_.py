"""scikit-learn's MLPClassifier or MLPRegressor, one partial_fit an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer
from threadpoolctl import ThreadpoolController

from bench.contender import Contender, UnavailableError
from bench.problem import BETA1, BETA2, EPSILON, MOMENTUM, Parameters, Problem, scaled

_ACTIVATIONS = {"sigmoid": "logistic", "tanh": "tanh", "relu": "relu"}
_SOLVERS: dict[str, dict[str, Any]] = {
    "sgd": {"solver": "sgd", "momentum": 0.0, "nesterovs_momentum": False},
    "momentum": {"solver": "sgd", "momentum": MOMENTUM, "nesterovs_momentum": False},
    "adam": {"solver": "adam", "beta_1": BETA1, "beta_2": BETA2},
}


def make(problem: Problem, device: str, threads: int) -> Contender:
    """Return scikit-learn's estimator at the problem's initial weights."""
    if device != "cpu":
        raise UnavailableError("not supported: scikit-learn's MLPClassifier has no GPU path")
    return Sklearn(problem, threads)


class _Adam(AdamOptimizer):  # type: ignore[misc]
    """With epsilon beside the corrected root, as in the algorithm of the paper and in all other libraries."""

    def _get_updates(self, grads: Any) -> Any:
        self.epsilon = EPSILON * (1 - self.beta_2 ** (self.t + 1)) ** 0.5
        return super()._get_updates(grads)


class Sklearn(Contender):
    """No L2, as the problem asks; inputs in the problem's dtype: float32 halves the time of float64.

    It has no way to be given initial weights or an order of rows: its own weights are overwritten in place after a
    first step, what its optimizer keeps is made anew, and the rows arrive in the problem's order with its own shuffle
    off, at the price of one gather an epoch, which its shuffle would pay batch by batch.
    """

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem)
        solver, classes = _SOLVERS[problem.optimizer], problem.output == "softmax"
        self.settings = f"{', '.join(f'{name} {value}' for name, value in solver.items())}, alpha 0, "
        self.settings += f"{problem.dtype} inputs, shuffled outside, BLAS threads as given"
        self.X = scaled(problem.X, problem.dtype)
        self.y = problem.y.ravel() if problem.sizes[-1] == 1 else problem.y  # of one column it wants a vector
        self.threads = threads
        self.controller = ThreadpoolController()
        self.model: Any = (MLPClassifier if classes else MLPRegressor)(
            hidden_layer_sizes=problem.sizes[1:-1],
            activation=_ACTIVATIONS[problem.activation],
            alpha=0.0,
            batch_size=1,
            learning_rate_init=problem.learning_rate,
            shuffle=False,
            **solver,
        )
        known = {"classes": np.arange(problem.sizes[-1])} if classes else {}
        self.model.partial_fit(self.X[:1], self.y[:1], **known)
        self.model.set_params(batch_size=problem.batch_size or len(self.X))
        for layer, (W, b) in enumerate(problem.initial):
            self.model.coefs_[layer][:] = W.T
            self.model.intercepts_[layer][:] = b
        if problem.optimizer == "adam":
            parts = self.model.coefs_ + self.model.intercepts_
            self.model._optimizer = _Adam(parts, problem.learning_rate, BETA1, BETA2)
        else:
            for velocity in self.model._optimizer.velocities:
                velocity[:] = 0

    def run(self, epochs: int) -> None:
        with self.controller.limit(limits=self.threads, user_api="blas"):
            for _ in range(epochs):
                self.epoch += 1
                rows = slice(None) if self.problem.batch_size is None else self.problem.order(self.epoch)
                self.model.partial_fit(self.X[rows], self.y[rows])

    def parameters(self) -> Parameters:
        return [(W.T.copy(), b.copy()) for W, b in zip(self.model.coefs_, self.model.intercepts_, strict=True)]
