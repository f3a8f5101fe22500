"""Classification by a multilayer perceptron."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call, type_of_target, unique_labels
from sklearn.utils.validation import validate_data

from ..mlp import MLP
from .mlp import Data, MultilayerPerceptron

__all__ = ["MLPClassifier"]

_Matrix = NDArray[Any]


class MLPClassifier(ClassifierMixin, MultilayerPerceptron):  # type: ignore[misc]
    """A drop-in for ``sklearn.neural_network.MLPClassifier``: the same run, in less time, on any device.

    First weights, orders of rows, and held-out rows are drawn from `random_state` as scikit-learn draws them, and the
    rules of "sgd", "adam" and "lbfgs" are its own, so that in float64 losses and parameters agree up to rounding. Two
    classes, and labels that do not exclude each other, have sigmoid outputs; more than two classes have a softmax.

    Parameters
    ----------
    hidden_layer_sizes, activation, solver, ... : as in scikit-learn
        With its defaults.
    device : str
        Where to train and predict, see :class:`mlp_xp.MLP`. Data come from the host and predictions return there.
    precision : str, optional
        How products are computed, see :class:`mlp_xp.MLP`.
    plan : {"auto", "dense", "sparse", "zero", "ragged"}
        How the samples are stored, see :func:`mlp_xp.epochs`. Samples in SciPy's compressed form are trained on as they
        are, and what they do not store is skipped, if the compiled library is there and the device is the CPU.

    Attributes
    ----------
    coefs_, intercepts_, loss_curve_, classes_, ... : as in scikit-learn
        With "lbfgs" there is a `loss_curve_` too, with the loss after each iteration.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> mlp = MLPClassifier(solver="lbfgs", hidden_layer_sizes=8, random_state=1).fit(X, y)
    >>> mlp.predict(X[::50])
    array([0, 1, 2])
    >>> mlp.to_mlp()
    MLP([4, 8, 3], activation=('relu',), output='softmax', dtype='float64', device='cpu'): 67 parameters
    """

    def _read(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[_Matrix, _Matrix]:
        X, y = validate_data(
            self, X, y, accept_sparse="csr", multi_output=True, dtype=(np.float64, np.float32), reset=reset
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if not hasattr(self, "classes_") or not (self.warm_start or incremental):
            self._know_classes(y)
        else:
            self._check_classes(unique_labels(y))
        return X, self._indicators(y)

    def _indicators(self, y: _Matrix) -> _Matrix:
        """Return whether each row is of each class, or has each label, (n, k); of two classes, the second alone."""
        if self._label_binarizer.y_type_.startswith("multilabel"):
            return y.astype(bool)
        if len(self.classes_) == 1:
            return np.zeros((len(y), 1), bool)
        hits = y[:, None] == self.classes_
        return np.asarray(hits if len(self.classes_) > 2 else hits[:, 1:])

    def _know_classes(self, y: Any) -> None:
        self._label_binarizer = LabelBinarizer().fit(y)
        self.classes_ = self._label_binarizer.classes_

    def _check_classes(self, classes: _Matrix) -> None:
        if self.warm_start:
            if set(classes) != set(self.classes_):
                raise ValueError(
                    "warm_start can only be used where `y` has the same classes as in the previous call to fit. "
                    f"Previously got {self.classes_}, `y` has {classes}"
                )
        elif len(np.setdiff1d(classes, self.classes_, assume_unique=True)):
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. 'y' has {classes}."
            )

    def _last_activation(self) -> str:
        return "softmax" if self._label_binarizer.y_type_ == "multiclass" else "logistic"

    def _score(self, model: MLP, data: Data) -> float:
        P = self._outputs(model, data.X)
        if self.out_activation_ == "softmax":
            right = P.argmax(axis=1) == data.y.argmax(axis=1)
        else:
            right = ((P > 0.5) == data.y).all(axis=1)
        return float(np.average(right, weights=data.weights))

    @available_if(lambda estimator: estimator._is_stochastic())  # type: ignore[untyped-decorator]
    @_fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Self:
        """Train for one epoch; the first call has to name all `classes` (k,) that `y` may hold in any."""
        if _check_partial_fit_first_call(self, classes):
            multilabel = type_of_target(y).startswith("multilabel")
            self._label_binarizer = LabelBinarizer().fit(y if multilabel else classes)
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> _Matrix:
        """Return the class (n,) of each row, or its labels (n, k)."""
        P = self._predicted(X)
        return np.asarray(self._label_binarizer.inverse_transform(P.ravel() if P.shape[1] == 1 else P))

    def predict_proba(self, X: Any) -> _Matrix:
        """Return the probability of each class, or of each label, (n, k)."""
        P = self._predicted(X)
        return P if P.shape[1] > 1 else np.hstack([1 - P, P])

    def predict_log_proba(self, X: Any) -> _Matrix:
        """Return the logarithms of :meth:`predict_proba`."""
        return np.log(self.predict_proba(X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
