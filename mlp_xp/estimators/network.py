"""What a trained network of the estimators is: parameters, where they are, and what they predict.

Legend: ``n`` rows, ``d`` inputs, ``k`` outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.utils.validation import check_is_fitted, validate_data

from ..devices import Device, NumpyDevice, device_of, is_foreign
from ..kernels import GenericKernels
from ..kernels.functions import sigmoid, softmax
from ..mlp import MLP
from ..model import forward
from ..params import Layout, Parameters, initial_theta
from ..rows.checks import as_numbers
from ..rows.csr import CsrRows
from ..rows.source import InMemory, Rows
from .arrays import dispatches, home_of, like
from .descent import Descent
from .hyperparameters import ACTIVATIONS, Hyperparameters
from .ranks import OnRanks

__all__ = ["Network"]

_Matrix = NDArray[Any]

_OUTPUTS = {"softmax": "softmax", "logistic": "sigmoid", "identity": "identity", "exp": "identity"}
"""The outputs here, by what scikit-learn calls the last activation."""
_LINKS: dict[str, Any] = {
    "softmax": softmax,
    "logistic": sigmoid,
    "identity": lambda xp, A: A,
    "exp": lambda xp, A: xp.exp(A),
}
"""What makes probabilities or values of linear outputs."""
_BLOCK, _BYTES = 4096, 2**23  # compressed rows at once, and what a layer of them may take


class Network(OnRanks, Hyperparameters):
    """The parameters of a multilayer perceptron: ``coefs_`` and ``intercepts_``, and how samples go through it."""

    def _last_activation(self) -> str:
        """Return what scikit-learn calls the activation of the outputs."""
        raise NotImplementedError

    def _sizes(self) -> list[int]:
        sizes = self.hidden_layer_sizes
        hidden = list(sizes) if hasattr(sizes, "__iter__") else [sizes]
        if np.any(np.array(hidden) <= 0):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {hidden}.")
        return [self.n_features_in_, *map(int, hidden), self.n_outputs_]

    def _activations(self, hidden: int) -> list[str]:
        """Return what scikit-learn calls the activations of so many hidden layers."""
        if isinstance(self.activation, str):
            return [self.activation] * hidden
        names = list(self.activation)
        if len(names) != hidden or any(name not in list(ACTIVATIONS) for name in names):
            raise ValueError(
                f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}, or one for each of the {hidden} "
                f"hidden layers, got {names}"
            )
        return names

    def _draw(self, sizes: list[int], dtype: str) -> tuple[list[_Matrix], list[_Matrix]]:
        """Draw the first weights (n_{l-1}, n_l) and biases (n_l,).

        If `init` does not say otherwise, both are uniform, with the bounds of Glorot and Bengio (2010, eq. 16).
        """
        activations = self._activations(len(sizes) - 2)
        if self.init is not None:
            layout, seed = Layout(tuple(sizes)), int(self._random_state.randint(2**31 - 1))
            drawn = layout.split(initial_theta(layout, self.init, seed, dtype))
            return [np.ascontiguousarray(W.T) for W in drawn.W[1:]], drawn.b[1:]
        coefs, intercepts = [], []
        last = activations[-1] if activations else self.activation
        for (fan_in, fan_out), activation in zip(pairwise(sizes), [*activations, last], strict=True):
            bound = np.sqrt((2.0 if activation == "logistic" else 6.0) / (fan_in + fan_out))
            coefs.append(self._random_state.uniform(-bound, bound, (fan_in, fan_out)).astype(dtype))
            intercepts.append(self._random_state.uniform(-bound, bound, fan_out).astype(dtype))
        return coefs, intercepts

    def _initialize(self, X: Any) -> None:
        """Draw the first parameters, and forget former fits."""
        sizes, dtype = self._sizes(), str(X.dtype).rpartition(".")[2]  # "float64", whatever the library
        self.n_iter_ = self.t_ = 0
        self.n_layers_, self.out_activation_ = len(sizes), self._last_activation()
        coefs, intercepts = self._draw(sizes, dtype)
        self.coefs_: list[Any] = [like(X, W) for W in coefs]
        self.intercepts_: list[Any] = [like(X, b) for b in intercepts]
        self._best = self.coefs_, self.intercepts_
        if self.solver != "lbfgs":
            self.loss_curve_: list[float] = []
            self._no_improvement_count = 0
            stops = self.early_stopping
            self.best_loss_: Any = None if stops else np.inf
            self.validation_scores_: Any = [] if stops else None
            self.validation_loss_curve_: Any = [] if stops else None
            self.best_validation_score_: Any = -np.inf if stops else None

    def to_mlp(self) -> MLP:
        """Return the network with the parameters that this estimator has now: to save, export, or train further.

        With the Poisson loss its outputs are the logarithms of what is predicted.
        """
        check_is_fitted(self)
        coefs, intercepts = self._parameters_on_host()
        sizes, output = [len(coefs[0]), *map(len, intercepts)], _OUTPUTS[self.out_activation_]
        device = (self._home() or "cpu") if self.device is None else self.device
        activations = [ACTIVATIONS[name] for name in self._activations(len(sizes) - 2)]
        model = MLP(sizes, activations, output, "zeros", coefs[0].dtype.name, device, precision=self.precision)
        model.theta = model.layout.join(Parameters([None, *(coef.T for coef in coefs)], [None, *intercepts]))
        return model

    def _home(self) -> Device | None:
        """Return the device that the parameters are on; None if they are NumPy's."""
        return device_of(self.coefs_[0]) if is_foreign(self.coefs_[0]) else None

    def _parameters_on_host(self) -> tuple[list[_Matrix], list[_Matrix]]:
        home = self._home()
        if home is None:
            return self.coefs_, self.intercepts_
        return [home.to_host(W) for W in self.coefs_], [home.to_host(b) for b in self.intercepts_]

    def _check_home(self, X: Any, method: str, home: Device | None) -> None:
        """Raise a ValueError if the samples given to a method are taken as they are, and not on the device `home`."""
        here = home_of(X)
        if dispatches() and here != home:
            names = ["on the host" if one is None else f"on device {one.name!r}" for one in (here, home)]
            raise ValueError(
                f"Inputs passed to {type(self).__name__}.{method}() must use the same namespace and the same device as "
                f"those passed to fit(); the former are {names[0]}, the latter {names[1]}. Move the inputs, or the "
                "estimator by sklearn.utils._array_api.move_estimator_to"
            )

    def __sklearn_array_api_convert__(self, converter: Callable[[Any], Any]) -> Self:
        """Return a copy whose parameters are converted, to another library or device."""
        moved = deepcopy(self)
        moved.coefs_, moved.intercepts_ = list(map(converter, self.coefs_)), list(map(converter, self.intercepts_))
        return moved

    def _parameters(self, model: MLP) -> tuple[list[Any], list[Any]]:
        """Return copies of the weights (n_{l-1}, n_l) and biases (n_l,) of a network, where the parameters are."""
        coefs, home = [np.ascontiguousarray(W.T) for W in model.weights], self._home()
        if home is None:
            return coefs, model.biases
        return [home.asarray(W) for W in coefs], [home.asarray(b) for b in model.biases]

    def _linear_outputs(self, model: MLP, X: Any) -> _Matrix:
        """Return linear outputs (n, k) for samples (n, d) of the model's dtype."""
        if issparse(X) and isinstance(model.device, NumpyDevice):  # SciPy's product skips what is not stored
            return _outputs_of_compressed(model, _compressed_as(X, model.dtype))
        return model.outputs(self._rows(model, X))

    def _link(self, A: _Matrix) -> _Matrix:
        """Return what linear outputs (n, k) stand for, probabilities or values."""
        return np.asarray(_LINKS[self.out_activation_](np, A))

    def _predicted(self, X: Any, method: str) -> _Matrix:
        """Check samples (n, d) given to a method, and return probabilities or values (n, k) for them, on the host."""
        model = self.to_mlp()
        self._check_home(X, method, self._home())
        X = validate_data(self, X, accept_sparse="csr", reset=False)
        return self._link(self._linear_outputs(model, X))

    def _rows(self, model: MLP, X: Any) -> Rows:
        """Return samples that were checked: what scikit-learn has looked through is not looked through again.

        Raises
        ------
        ValueError
            If a number does not fit the model's dtype.
        """
        if issparse(X):
            return model.open(CsrRows(_compressed_as(X, model.dtype), model.dtype))
        if is_foreign(X):
            home = device_of(X)
            if (home.xp, home.where) == (model.device.xp, model.device.where):
                xp, X = model.device.xp, model.device.asarray(X)
                if X.dtype != getattr(xp, model.dtype):
                    X = as_numbers(X, model.dtype, xp, model.device.shard_rows)
                return model.open(InMemory(X, model.device))
            X = home.to_host(X)  # `device` says so
        return model.open(InMemory(np.ascontiguousarray(X if X.dtype == model.dtype else as_numbers(X, model.dtype))))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.array_api_support = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and files are made of: arrays, numbers, texts, and objects of scikit-learn and NumPy."""
        state = dict(super().__getstate__())
        return state | {"_optimizer": state["_optimizer"].plain()} if "_optimizer" in state else state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_optimizer" in state:
            self._optimizer = Descent(**state["_optimizer"])


def _compressed_as(X: Any, dtype: str) -> Any:
    """Return compressed rows (n, d) that were checked, in a dtype."""
    if X.dtype == dtype:
        return X
    return type(X)((as_numbers(X.data, dtype), X.indices, X.indptr), shape=X.shape)


def _outputs_of_compressed(model: MLP, X: Any) -> _Matrix:
    """Return A[L] (n, n_L) for compressed rows (n, n_0) on the host, of the model's dtype."""
    n, k, params = X.shape[0], GenericKernels(np, model.dtype), model.layout.split(model.theta)
    rows = min(_BLOCK, max(1, _BYTES // (X.dtype.itemsize * max(model.sizes[1:]))))
    result = np.empty((n, model.sizes[-1]), model.dtype)
    for i in range(0, n, rows):
        A, _ = forward(model.network, k, params, X[i : i + rows])
        result[i : i + rows] = A[-1]
    return result
