"""Classification by a multilayer perceptron."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import column_or_1d
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call, type_of_target, unique_labels
from sklearn.utils.validation import validate_data

from ..devices import Array
from ..optim import Schedule
from .arrays import float_dtypes, like, on_host
from .hyperparameters import Hyperparameters
from .mlp import MultilayerPerceptron
from .ranks import fitting

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
        With its defaults. `activation` may also be one for each hidden layer, and `learning_rate` a
        :class:`mlp_xp.Schedule` for "sgd" or "adam", which then says the rate of each epoch.
    class_weight : dict, list of dict or "balanced", optional
        How much the rows of each class count, ``{class: weight}``, times their `sample_weight`; for labels that do not
        exclude each other a dict for each. ``"balanced"`` is n divided by the number of classes and the rows of each.
    init : str, optional
        The law of the first weights, a key of :data:`mlp_xp.INITIALIZERS`, such as ``"he_normal"``; biases are zero
        then. None is scikit-learn's.
    device : str, optional
        Where to train and predict, see :class:`mlp_xp.MLP`. None is where the samples are: on the CPU, or, while
        scikit-learn's ``array_api_dispatch`` is on, the device of their array, which is not copied to the host.
    precision : str, optional
        How products are computed, see :class:`mlp_xp.MLP`.
    plan : {"auto", "dense", "sparse", "zero", "ragged"}
        How the samples are stored, see :func:`mlp_xp.epochs`. Samples in SciPy's compressed form are trained on as they
        are, and what they do not store is skipped, if the compiled library is there and the device is the CPU.
    dropout : float or sequence of float
        The share of hidden units that "sgd" and "adam" leave out of each row's network, for all hidden layers or one
        for each, see :func:`mlp_xp.fit`. `random_state` decides which. `loss_curve_` is that of the thinned networks.

    Attributes
    ----------
    coefs_, intercepts_, loss_curve_, classes_, ... : as in scikit-learn
        With "lbfgs" there is a `loss_curve_` too, with the loss after each iteration.
    validation_loss_curve_ : list of float or None
        With early stopping, the mean loss on the rows held out after each epoch, without the penalty.

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

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **Hyperparameters._parameter_constraints,
        "class_weight": [dict, list, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] | int = (100,),
        activation: Sequence[str] | str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: Schedule | str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool | int = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        class_weight: Mapping[Any, float] | Sequence[Mapping[Any, float]] | str | None = None,
        init: str | None = None,
        device: str | None = None,
        precision: str | None = None,
        plan: str = "auto",
        dropout: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__(
            class_weight=class_weight, hidden_layer_sizes=hidden_layer_sizes, activation=activation, solver=solver,
            alpha=alpha, batch_size=batch_size, learning_rate=learning_rate, learning_rate_init=learning_rate_init,
            power_t=power_t, max_iter=max_iter, shuffle=shuffle, random_state=random_state, tol=tol, verbose=verbose,
            warm_start=warm_start, momentum=momentum, nesterovs_momentum=nesterovs_momentum,
            early_stopping=early_stopping, validation_fraction=validation_fraction, beta_1=beta_1, beta_2=beta_2,
            epsilon=epsilon, n_iter_no_change=n_iter_no_change, max_fun=max_fun, init=init, device=device,
            precision=precision, plan=plan, dropout=dropout,
        )  # fmt: skip

    def _read(self, X: Any, y: Any, reset: bool) -> tuple[_Matrix, _Matrix]:
        X, y = validate_data(
            self, X, on_host(y), accept_sparse="csr", multi_output=True, dtype=float_dtypes(X), reset=reset
        )
        y = y.toarray() if issparse(y) else y
        return X, column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y

    def _learn_targets(self, y: _Matrix, incremental: bool) -> None:
        if not hasattr(self, "classes_") or not (self.warm_start or incremental):
            self._know_classes(y)
        else:
            self._check_classes(unique_labels(y))

    def _targets(self, y: _Matrix) -> _Matrix:
        """Return whether each row is of each class, or has each label, (n, k); of two classes, the second alone."""
        if self._label_binarizer.y_type_.startswith("multilabel"):
            return y.astype(bool)
        if len(self.classes_) == 1:
            return np.zeros((len(y), 1), bool)
        hits = y[:, None] == self.classes_
        return np.asarray(hits if len(self.classes_) > 2 else hits[:, 1:])

    def _held_out_targets(self, y: _Matrix) -> _Matrix:
        if unknown := set(unique_labels(y).tolist()) - set(self.classes_.tolist()):
            raise ValueError(
                f"y_val holds the classes {sorted(unknown)}, and `y` holds {self.classes_.tolist()}; leave the rows of "
                "other classes out"
            )
        return self._targets(y)

    def _weights(self, y: _Matrix, sample_weight: _Matrix | None) -> _Matrix | None:
        """Multiply the weights of rows (n,) by those of their classes."""
        if self.class_weight is None:
            return sample_weight
        if y.ndim == 2:
            weights = compute_sample_weight(self.class_weight, y)
        else:
            of_class = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
            weights = of_class[np.searchsorted(self.classes_, y)]
        return np.asarray(weights if sample_weight is None else weights * sample_weight)

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

    def _score(self, P: _Matrix, y: _Matrix, weights: _Matrix | None) -> float:
        if self.out_activation_ == "softmax":
            right = P.argmax(axis=1) == y.argmax(axis=1)
        else:
            right = ((P > 0.5) == y).all(axis=1)
        return float(np.average(right, weights=weights))

    @available_if(lambda estimator: estimator._is_stochastic())  # type: ignore[untyped-decorator]
    @fitting
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Self:
        """Train for one epoch; the first call has to name all `classes` (k,) that `y` may hold in any."""
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight 'balanced' is not supported by partial_fit, which does not see all rows at once; compute "
                "the weights of all of them by sklearn.utils.class_weight.compute_class_weight, and give them as a dict"
            )
        y, classes = on_host(y), on_host(classes)
        if _check_partial_fit_first_call(self, classes):
            multilabel = type_of_target(y).startswith("multilabel")
            self._label_binarizer = LabelBinarizer().fit(y if multilabel else classes)
        return self._fit(X, y, sample_weight, None, incremental=True)

    def predict(self, X: Any) -> Array:
        """Return the class (n,) of each row, or its labels (n, k)."""
        P = self._predicted(X, "predict")
        return like(X, np.asarray(self._label_binarizer.inverse_transform(P.ravel() if P.shape[1] == 1 else P)))

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each class, or of each label, (n, k)."""
        return like(X, self._probabilities(X, "predict_proba"))

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithms of :meth:`predict_proba`."""
        return like(X, np.log(self._probabilities(X, "predict_log_proba")))

    def _probabilities(self, X: Any, method: str) -> _Matrix:
        P = self._predicted(X, method)
        return P if P.shape[1] > 1 else np.hstack([1 - P, P])

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of the rows that are predicted right, with all of their labels."""
        # on the host: scikit-learn's metric is in float32 if the arrays are PyTorch's
        y, predicted = on_host(y), on_host(self.predict(X))
        return float(accuracy_score(y, predicted, sample_weight=on_host(sample_weight)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
