"""What the linear classifiers share.

Legend: ``n`` rows, ``d`` inputs, ``k`` classes. Features count as they are, bytes too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from ..checks import check_unmasked
from ..mlp import MLP

__all__ = ["LinearClassifier"]


class LinearClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A layer of linear units: one for two classes, else one for each class.

    The parameters are all that is kept after a fit, so that a classifier can be copied and stored like scikit-learn's.
    """

    def _read(self, X: Any, y: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the samples (n, d) in float64 and the numbers of their classes (n,)."""
        check_unmasked("X", X)
        check_unmasked("y", y)
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
        check_unmasked("X", X)
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
