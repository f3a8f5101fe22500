"""Regression by a multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import column_or_1d
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import validate_data

from ..devices import Array
from ..optim import Schedule
from .arrays import float_dtypes, like, on_host
from .hyperparameters import Hyperparameters
from .mlp import MultilayerPerceptron
from .ranks import fitting

__all__ = ["MLPRegressor"]

_Matrix = NDArray[Any]


class MLPRegressor(RegressorMixin, MultilayerPerceptron):  # type: ignore[misc]
    """A drop-in for ``sklearn.neural_network.MLPRegressor``: the same run, in less time, on any device.

    Parameters
    ----------
    loss : {"squared_error", "absolute_error", "huber", "poisson"}
        Half the squared error; its size, for which outputs are medians; half its square up to 1, and beyond its size
        less 1/2; or half the Poisson deviance on exponentials of outputs.
    hidden_layer_sizes, activation, solver, ... : as in scikit-learn
        With its defaults. For what else `activation` and `learning_rate` may be, see :class:`MLPClassifier`.
    init, device, precision, plan, dropout
        As for :class:`MLPClassifier`.

    Attributes
    ----------
    coefs_, intercepts_, loss_curve_, validation_loss_curve_, ...
        As for :class:`MLPClassifier`.

    Examples
    --------
    >>> X, y = [[0.0], [1.0], [2.0], [3.0]], [1.0, 3.0, 5.0, 7.0]
    >>> mlp = MLPRegressor(activation="identity", hidden_layer_sizes=2, solver="lbfgs", alpha=0, random_state=0)
    >>> mlp.fit(X, y).predict([[4.0]]).round(2)
    array([9.])
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **Hyperparameters._parameter_constraints,
        "loss": [StrOptions({"squared_error", "absolute_error", "huber", "poisson"})],
    }

    def __init__(
        self,
        loss: str = "squared_error",
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
        init: str | None = None,
        device: str | None = None,
        precision: str | None = None,
        plan: str = "auto",
        dropout: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__(
            loss=loss, hidden_layer_sizes=hidden_layer_sizes, activation=activation, solver=solver,
            alpha=alpha, batch_size=batch_size, learning_rate=learning_rate, learning_rate_init=learning_rate_init,
            power_t=power_t, max_iter=max_iter, shuffle=shuffle, random_state=random_state, tol=tol, verbose=verbose,
            warm_start=warm_start, momentum=momentum, nesterovs_momentum=nesterovs_momentum,
            early_stopping=early_stopping, validation_fraction=validation_fraction, beta_1=beta_1, beta_2=beta_2,
            epsilon=epsilon, n_iter_no_change=n_iter_no_change, max_fun=max_fun, init=init, device=device,
            precision=precision, plan=plan, dropout=dropout,
        )  # fmt: skip

    def _read(self, X: Any, y: Any, reset: bool) -> tuple[_Matrix, _Matrix]:
        X, y = validate_data(
            self,
            X,
            on_host(y),
            accept_sparse="csr",
            multi_output=True,
            y_numeric=True,
            dtype=float_dtypes(X),
            reset=reset,
        )
        return X, column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y

    def _last_activation(self) -> str:
        return "exp" if self.loss == "poisson" else "identity"

    def _score(self, P: _Matrix, y: _Matrix, weights: _Matrix | None) -> float:
        return float(r2_score(y, P, sample_weight=weights)) if np.isfinite(P).all() else np.nan

    @available_if(lambda estimator: estimator._is_stochastic())  # type: ignore[untyped-decorator]
    @fitting
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for one epoch."""
        return self._fit(X, y, sample_weight, None, incremental=True)

    def predict(self, X: Any) -> Array:
        """Return the values (n,), or (n, k) for more than one output."""
        values = self._predicted(X, "predict")
        return like(X, values[:, 0] if values.shape[1] == 1 else values)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R² of the predictions, on average over the outputs."""
        # on the host: scikit-learn's metric writes into arrays, and JAX's cannot be written to
        y, predicted = on_host(y), on_host(self.predict(X))
        return float(r2_score(y, predicted, sample_weight=on_host(sample_weight)))
