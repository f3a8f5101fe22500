"""Logistic regression."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from ..callbacks import EarlyStopping
from ..checks import check_count
from ..fit import fit
from ..mlp import MLP
from ..optim import SGD, CosineDecay, Schedule
from .base import LinearClassifier

__all__ = ["LogisticRegression"]


class LogisticRegression(LinearClassifier):
    """Logistic regression by gradient descent: P(y = 1 | x) = σ(w·x + b), and with k > 2 classes their softmax.

    Each epoch follows the mean gradient (p(x) - y) x of the negative log-likelihood, of all rows or of mini-batches,
    starting at zero.

    Parameters
    ----------
    lr : float or Schedule, optional
        Learning rate. None takes 1/L, where L bounds the curvature of the loss, so that descent over all rows cannot
        diverge; with mini-batches it falls from there to zero over the epochs, and their noise with it.
    momentum : float
        Nesterov's; 0 is the lectures' plain gradient descent.
    l2 : float
        Adds l2/2 |w|² to the mean loss; scikit-learn's C is 1/(n l2). 0 leaves the likelihood alone.
    batch_size : int, optional
        Rows per update, drawn anew each epoch; None takes all at once, 1 is stochastic gradient descent.
    max_iter : int
        The most epochs; mini-batches take them all.
    tol : float
        Stop, with all rows at once, when the norm of the gradient is no larger.
    random_state : int
        Seed of the order of mini-batches.

    Attributes
    ----------
    coef_, intercept_ : ndarray (1, d) and (1,), or (k, d) and (k,) for k > 2 classes
    classes_ : ndarray (k,)
    history_ : History
        Loss and learning rate, epoch by epoch.
    n_iter_ : int
        Epochs that it took.

    Raises
    ------
    ValueError
        From `fit`, if the data or a parameter do not fit.

    Warns
    -----
    ConvergenceWarning
        If the gradient is not down to `tol` after `max_iter` epochs.

    Examples
    --------
    >>> X, y = [[0.0], [1.0], [2.0], [3.0]], ["no", "yes", "no", "yes"]
    >>> model = LogisticRegression().fit(X, y)
    >>> model.predict([[-1.0], [4.0]])
    array(['no', 'yes'], dtype='<U3')
    """

    def __init__(
        self,
        lr: float | Schedule | None = None,
        momentum: float = 0.9,
        l2: float = 0.0,
        batch_size: int | None = None,
        max_iter: int = 1000,
        tol: float = 1e-5,
        random_state: int = 0,
    ) -> None:
        self.lr = lr
        self.momentum = momentum
        self.l2 = l2
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> LogisticRegression:
        """Find the most likely parameters for samples `X` (n, d) of classes `y` (n,), starting at zero."""
        X, codes = self._read(X, y)
        model = self._make_model(X.shape[1])
        lr = self._learning_rate(X) if self.lr is None else self.lr
        optimizer = SGD(lr, momentum=self.momentum, nesterov=self.momentum > 0, l2=self.l2)
        stop = EarlyStopping(self.tol, patience=1, monitor="gradient")
        self.history_ = fit(
            model,
            X,
            codes,
            epochs=self.max_iter,
            optimizer=optimizer,
            batch_size=self.batch_size,
            callbacks=[stop] if self.batch_size is None else [],
        )
        self.coef_, self.intercept_ = model.weights[0], model.biases[0]
        self.n_iter_ = len(self.history_)
        if self.batch_size is None and not stop.waited:
            warnings.warn(
                f"the gradient is still longer than tol={self.tol:g} after {self.n_iter_} epochs; raise max_iter, or "
                "bring the features to one scale; if the classes are linearly separable, w grows without bound: set l2",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Return the probability of each class, (n, k)."""
        model, X = self._ready(X)
        P = model.predict_proba(X)
        return P if P.shape[1] > 1 else np.hstack([1 - P, P])

    def _make_model(self, d: int) -> MLP:
        k = len(self.classes_)
        units, output = (1, "sigmoid") if k == 2 else (k, "softmax")
        return MLP([d, units], output=output, init="zeros", dtype="float64", seed=self.random_state)

    def _learning_rate(self, X: NDArray[Any]) -> float | Schedule:
        """Return 1/L; the Hessian of the mean loss is at most 1/4, for a softmax 1/2, of the mean of [1, x]ᵀ[1, x]."""
        steepest = 1 / 4 if len(self.classes_) == 2 else 1 / 2
        lr = 1 / (steepest * float(1 + np.mean(np.sum(X * X, axis=1))) + self.l2)
        return lr if self.batch_size is None else CosineDecay(lr, epochs=check_count("max_iter", self.max_iter))
