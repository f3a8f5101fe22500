"""What is minimized, and when that ends: scikit-learn's rules, epoch by epoch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..kernels import GenericKernels
from ..loop import State
from ..mlp import MLP
from ..objective import Objective
from .data import HeldOut
from .network import Network

__all__ = ["Measured", "Stopping"]

_Matrix = NDArray[Any]

_LOSSES = {
    ("log_loss", "softmax"): "softmax_log_loss",
    ("log_loss", "logistic"): "sigmoid_log_loss",
    ("squared_error", "identity"): "half_mean_squared_error",
    ("poisson", "exp"): "poisson_deviance",
    ("absolute_error", "identity"): "absolute_error",
    ("huber", "identity"): "huber",
}
"""The losses here, by scikit-learn's of an estimator and the last activation: those that scikit-learn reports."""


class Measured(NamedTuple):
    """The mean loss of an epoch; and the score and the mean loss of rows that are held out, if there are any."""

    loss: float
    score: float | None = None
    held_out_loss: float | None = None


class Stopping(Network):
    """A network that records the epochs of its training, and says which is the last one."""

    loss = "log_loss"

    def _score(self, P: _Matrix, y: _Matrix, weights: _Matrix | None) -> float:
        """Return the score of probabilities or values (m, k) for targets (m, k)."""
        raise NotImplementedError

    def _objective(self, model: MLP) -> Objective:
        loss = _LOSSES.get((self.loss, self.out_activation_))
        if loss is None:
            raise ValueError(
                f"loss {self.loss!r} does not go with the outputs of the fit before, {self.out_activation_!r}; set "
                "warm_start=False, or fit once more before partial_fit"
            )
        output = model.objective.output._replace(loss=loss)
        return Objective(output, l2_sum=float(self.alpha))

    def _measure(self, state: State, held: HeldOut | None) -> Measured:
        """Return what there is to know of an epoch, and keep the parameters of the one with the best score."""
        loss = float(state.loss_sum) / state.rows
        if held is None:
            return Measured(loss)
        model = state.model
        A = self._linear_outputs(model, held.data.X)
        losses, _ = self._objective(model).losses(GenericKernels(np, model.dtype), A, held.targets)
        score = self._score(self._link(A), held.data.y, held.data.weights)
        if score > self.best_validation_score_:
            self._best = self._parameters(model)
        return Measured(loss, score, float(np.average(losses.astype(np.float64), weights=held.data.weights)))

    def _ends_with(self, epoch: Measured, rows: int, verbose: bool) -> bool:
        """Record an epoch of so many rows, and return whether it is the last one."""
        self.n_iter_ += 1
        self.loss_ = epoch.loss
        self.t_ += rows
        self.loss_curve_.append(epoch.loss)
        if verbose:
            print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")
        if epoch.score is None:
            quantity, improves = "Training loss", self._training_improves()
        else:
            quantity, improves = "Validation score", self._validation_improves(epoch.score)
            self.validation_loss_curve_.append(epoch.held_out_loss)
            if verbose:
                print(f"Validation score: {epoch.score:f}")
        self._no_improvement_count = 0 if improves else self._no_improvement_count + 1
        self._optimizer.end_epoch(self.t_)
        if self._no_improvement_count <= self.n_iter_no_change:
            return False
        reason = f"did not improve more than tol={self.tol:f} for {self.n_iter_no_change} consecutive epochs."
        ends = self._optimizer.ends_on_plateau(f"{quantity} {reason}", verbose)
        if not ends:
            self._no_improvement_count = 0
        return ends

    def _training_improves(self) -> bool:
        improves = not self.loss_ > self.best_loss_ - self.tol
        self.best_loss_ = min(self.best_loss_, self.loss_)  # a NaN is not smaller
        return improves

    def _validation_improves(self, score: float) -> bool:
        self.validation_scores_.append(score)
        improves = not score < self.best_validation_score_ + self.tol
        if score > self.best_validation_score_:
            self.best_validation_score_ = score
        return improves
