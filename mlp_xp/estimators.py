"""The lectures' linear classifiers with scikit-learn's interface: networks of one layer, trained like any other.

Legend: ``n`` rows, ``d`` inputs, ``k`` classes. Features count as they are, bytes too.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from .callbacks import EarlyStopping
from .mlp import MLP
from .optim import SGD, CosineDecay, Schedule
from .training import fit
from .validation import check_choice, check_count, check_seed

__all__ = ["LogisticRegression", "Perceptron", "Step"]


class _LinearClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A layer of linear units: one for two classes, else one for each class.

    The parameters are all that is kept after a fit, so that a classifier can be copied and stored like scikit-learn's.
    """

    def _read(self, X: Any, y: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the samples (n, d) in float64 and the numbers of their classes (n,)."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds 1 class, {self.classes_[0]}; give samples of at least 2")
        return X, codes

    def _make_model(self, d: int) -> MLP:
        """Return the network for the classes that were read, with all parameters zero."""
        raise NotImplementedError

    def _ready(self, X: Any) -> tuple[MLP, NDArray[Any]]:
        """Return the network with the fitted parameters, and the samples (n, d) to give it."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        model = self._make_model(X.shape[1])
        model.weights, model.biases = [self.coef_], [self.intercept_]
        return model, X

    def decision_function(self, X: Any) -> NDArray[Any]:
        """Return X wᵀ + b: (n,) for two classes, positive where the second is predicted, and (n, k) for more."""
        model, X = self._ready(X)
        Z = model.outputs(X)
        return Z[:, 0] if Z.shape[1] == 1 else Z

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the class (n,) of each row."""
        model, X = self._ready(X)
        return np.asarray(self.classes_[model.predict(X)])


class LogisticRegression(_LinearClassifier):
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
                "bring the features to one scale; where a line separates the classes w grows for ever: set l2",
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


class Step(NamedTuple):
    """A row of the perceptron's table: the index of the misclassified point, and the weights (d,) and bias after it."""

    point: int | None
    w: NDArray[Any]
    b: float


class Perceptron(_LinearClassifier):
    """Rosenblatt's perceptron, step by step: at a point with y (w·x + b) <= 0, w += η y x and b += η y.

    That is gradient descent on the criterion max(0, -y (w·x + b)) of one misclassified point at a time, starting at
    zero. Of the two classes the first in order counts as y = -1, the second as +1.

    Parameters
    ----------
    lr : float
        Learning rate η.
    choose : {"cyclic", "random"} or sequence of int
        Which misclassified point comes next: the first one after the last choice, beginning again after the last row;
        any one; or, for the first steps, the rows of these indices, and cyclic after them.
    max_steps : int
        The most steps.
    random_state : int
        Seed of the random choice.

    Attributes
    ----------
    path_ : list of Step
        The start, (None, 0, 0), and what each step led to.
    coef_, intercept_ : ndarray (1, d) and (1,)
    classes_ : ndarray (2,)

    Raises
    ------
    ValueError
        From `fit`, if the data or a parameter do not fit, or a chosen point is classified correctly.

    Warns
    -----
    ConvergenceWarning
        If points are still misclassified after `max_steps` steps.

    Examples
    --------
    >>> perceptron = Perceptron().fit([[3, 3], [4, 3], [1, 1]], [1, 1, -1])
    >>> for point, w, b in perceptron.path_:
    ...     print(point, w, b)
    None [0. 0.] 0.0
    0 [3. 3.] 1.0
    2 [2. 2.] 0.0
    2 [1. 1.] -1.0
    2 [0. 0.] -2.0
    0 [3. 3.] -1.0
    2 [2. 2.] -2.0
    2 [1. 1.] -3.0
    """

    def __init__(
        self,
        lr: float = 1.0,
        choose: str | Sequence[int] = "cyclic",
        max_steps: int = 1000,
        random_state: int = 0,
    ) -> None:
        self.lr = lr
        self.choose = choose
        self.max_steps = max_steps
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Perceptron:
        """Look for a line between the samples `X` (n, d) of two classes `y` (n,)."""
        X, codes = self._read(X, y)
        if len(self.classes_) > 2:
            raise ValueError(
                f"Only binary classification is supported. The type of the target is {type_of_target(y)}: a perceptron "
                "tells two classes apart; use LogisticRegression for more"
            )
        check_count("max_steps", self.max_steps)
        if not isinstance(self.choose, Sequence | np.ndarray) or isinstance(self.choose, str):
            check_choice("choose", self.choose, ("cyclic", "random"))
        rng, optimizer = np.random.default_rng(check_seed(self.random_state)), SGD(self.lr)
        model = self._make_model(X.shape[1])
        self.path_ = [Step(None, model.weights[0][0], 0.0)]
        while len(wrong := np.flatnonzero((2 * codes - 1) * model.outputs(X)[:, 0] <= 0)):
            if len(self.path_) > self.max_steps:
                warnings.warn(
                    f"{len(wrong)} of {len(X)} points are still misclassified after {self.max_steps} steps: perhaps no "
                    "line separates the classes; raise max_steps, add features, or use LogisticRegression",
                    ConvergenceWarning,
                    stacklevel=2,
                )
                break
            i = self._choose(wrong, rng)
            fit(model, X[[i]], codes[[i]], epochs=1, optimizer=optimizer, plan="dense", threads=1)
            self.path_.append(Step(i, model.weights[0][0], float(model.biases[0][0])))
        self.coef_, self.intercept_ = model.weights[0], model.biases[0]
        return self

    def _make_model(self, d: int) -> MLP:
        return MLP([d, 1], output="perceptron", init="zeros", dtype="float64")

    def _choose(self, wrong: NDArray[Any], rng: np.random.Generator) -> int:
        """Return one of the misclassified points, whose indices ascend."""
        step, last = len(self.path_), self.path_[-1].point
        if isinstance(self.choose, str):
            if self.choose == "random":
                return int(rng.choice(wrong))
        elif step <= len(self.choose):
            if self.choose[step - 1] not in wrong:
                raise ValueError(
                    f"choose names point {self.choose[step - 1]} for step {step}, where the misclassified points are "
                    f"{wrong.tolist()}; name one of these"
                )
            return int(self.choose[step - 1])
        after_last = np.searchsorted(wrong, 0 if last is None else last + 1)
        return int(wrong[after_last % len(wrong)])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags
