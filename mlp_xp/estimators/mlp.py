"""What the estimators of multilayer perceptrons share: scikit-learn's parameters, put in the library's words.

Legend: ``n`` rows, ``d`` inputs, ``k`` outputs.
"""

from __future__ import annotations

import warnings
from contextlib import closing
from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.optimize import _check_optimize_result

from ..checks import shown
from ..dropout import check_dropout
from ..mlp import MLP
from ..runs.checkpoint import Checkpoint
from ..runs.signals import Interrupted
from .arrays import home_of, take
from .course import Course
from .data import Data, HeldOut, as_columns, check_row_weights
from .descent import Descent, Order
from .lbfgs import LossAndGradient, lbfgs
from .ranks import fitting
from .stopping import Stopping
from .tasks import CallbackSupportMixin, Tasks

__all__ = ["MultilayerPerceptron"]

_Matrix = NDArray[Any]

_CALLER = 6  # of fit: that many calls above the training


class MultilayerPerceptron(CallbackSupportMixin, Stopping):  # type: ignore[misc]
    """A multilayer perceptron with scikit-learn's interface.

    Trained parameters are kept as ``coefs_`` and ``intercepts_`` alone, so that an estimator can be copied, stored, and
    changed like scikit-learn's. They are where the samples were that it was trained on.
    """

    @fitting
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
        checkpoint: Checkpoint | None = None,
        comm: Any = None,
    ) -> Self:
        """Train on samples `X` (n, d) with targets `y` (n,) or (n, k), whose rows may have weights (n,).

        Parameters
        ----------
        X, y, sample_weight : as in scikit-learn
        X_val, y_val, sample_weight_val : array (m, d), (m,) or (m, k), and (m,), optional
            What early stopping looks at, in place of a part of `X` and `y`. Classes have no weights in them.
        checkpoint : Checkpoint, optional
            Save the fit in a folder, between epochs, and go on with the one that is there; see :func:`mlp_xp.fit`. Not
            for "lbfgs".
        comm : mpi4py.MPI.Comm, optional
            Share the work of "sgd" and "adam" with the other processes of this communicator, which call this with the
            same arguments, which they compare; see :func:`mlp_xp.fit`. Random numbers are those of rank 0. All get the
            same parameters, and the same bits as without it; on GPUs, up to rounding.
        """
        if checkpoint is not None:
            self._check_keepable()
        if X_val is None and y_val is None:
            if sample_weight_val is not None:
                raise ValueError("sample_weight_val was given without X_val and y_val, whose rows it weighs")
            return self._fit(X, y, sample_weight, None, incremental=False, checkpoint=checkpoint)
        if X_val is None or y_val is None:
            raise ValueError("one of X_val and y_val was given without the other; give both, or none")
        if self.solver == "lbfgs" or not self.early_stopping:
            raise ValueError(
                f"X_val and y_val are for early stopping, got solver={self.solver!r} and early_stopping="
                f"{self.early_stopping}; set early_stopping=True, with the solver 'sgd' or 'adam'"
            )
        held_out = Data(X_val, y_val, sample_weight_val)
        return self._fit(X, y, sample_weight, held_out, incremental=False, checkpoint=checkpoint)

    @fitting
    def initialize(self, X: Any, y: Any) -> Self:
        """Draw the parameters that :meth:`fit` begins with, for samples (n, d) and targets, and train nothing.

        The estimator can predict and be saved then; `partial_fit`, and `fit` with ``warm_start=True``, begin there.
        """
        X, y = self._read(X, y, reset=True)
        self._learn_targets(y, incremental=False)
        self.n_outputs_ = as_columns(self._targets(y)).shape[1]
        self._random_state = check_random_state(self.random_state)
        self._initialize(X)
        return self

    # What the classifier and the regressor say.

    def _read(self, X: Any, y: Any, reset: bool) -> tuple[_Matrix, _Matrix]:
        """Return the samples (n, d) in float64 or float32, and the targets (n,) or (n, k) as they were given."""
        raise NotImplementedError

    def _learn_targets(self, y: _Matrix, incremental: bool) -> None:
        """Learn what the targets are, or check that they are what they were before."""

    def _targets(self, y: _Matrix) -> _Matrix:
        """Return the targets as numbers, (n,) or (n, k)."""
        return y

    def _held_out_targets(self, y: _Matrix) -> _Matrix:
        """Return the targets of held-out rows as numbers, (m,) or (m, k)."""
        return self._targets(y)

    def _weights(self, y: _Matrix, sample_weight: _Matrix | None) -> _Matrix | None:
        """Return how much each row counts (n,), given its targets and its own weight."""
        return sample_weight

    # Training.

    def _is_stochastic(self) -> bool:
        if self.solver == "lbfgs":
            raise AttributeError("partial_fit is only available for stochastic optimizers. lbfgs is not stochastic.")
        return True

    def _check_keepable(self) -> None:
        """Raise a ValueError if a fit cannot be resumed from a checkpoint."""
        if self.solver == "lbfgs" or self.warm_start or not isinstance(self.random_state, Integral):
            raise ValueError(
                "a checkpoint takes the solver 'sgd' or 'adam', warm_start=False, and a random_state that is a whole "
                f"number, got {self.solver!r}, {self.warm_start} and {self.random_state!r}"
            )

    def _fit(
        self, X: Any, y: Any, sample_weight: Any, held_out: Data | None, incremental: bool,
        checkpoint: Checkpoint | None = None,
    ) -> Self:  # fmt: skip
        first = not hasattr(self, "coefs_") or not (self.warm_start or incremental)
        if not first:
            self._check_home(X, "partial_fit" if incremental else "fit", self._home())
        X, y = self._read(X, y, reset=first)
        self._learn_targets(y, incremental)
        given = Data(X, y, check_row_weights(sample_weight, y))
        weights, y = self._weights(y, given.weights), as_columns(self._targets(y))
        self.n_outputs_ = y.shape[1]
        if held_out is not None:
            if home_of(held_out.X) != home_of(X):
                raise ValueError("X_val must use the same namespace and the same device as X; move one of them")
            held_out = self._read_held_out(held_out)
        self._rates()  # refused before anything is drawn
        self._random_state = self._ranks.first(lambda: check_random_state(self.random_state))
        data = Data(X, y, weights)
        with self._ranks.together():
            if first:
                self._initialize(X)
            model = self.to_mlp()
            sketch = self._sketch(model, data, held_out, checkpoint)
        self._ranks.compare(sketch)
        most = 1 if incremental else self.max_iter
        tasks = Tasks(self, "partial_fit" if incremental else "fit", most, given, model)
        if self.solver == "lbfgs":
            self._minimize(model, data, tasks)
        else:
            self._descend(model, data, held_out, incremental, tasks, checkpoint)
        coefs, intercepts = self._parameters_on_host()
        if not all(np.isfinite(p).all() for p in (*coefs, *intercepts)):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
                "preprocessed."
            )
        tasks.close()
        return self

    def _read_held_out(self, data: Data) -> Data:
        """Return the rows to hold out, checked."""
        X, y = self._read(data.X, data.y, reset=False)
        weights = check_row_weights(data.weights, y)
        y = as_columns(self._held_out_targets(y))
        if y.shape[1] != self.n_outputs_:
            raise ValueError(f"y_val has {y.shape[1]} columns, and y has {self.n_outputs_}; give the same ones")
        return Data(X, y, weights)

    def _minimize(self, model: MLP, data: Data, tasks: Tasks) -> None:
        """Train by "lbfgs"."""
        function = LossAndGradient(
            model, self._rows(model, data.X), data.y, self._objective(model), data.weights, self.plan
        )
        self._begun = True
        result = lbfgs(model, function, max_iter=self.max_iter, max_evaluations=self.max_fun, tol=self.tol, tasks=tasks)
        self.n_iter_ = result.nit if tasks.ended else _check_optimize_result("lbfgs", result, self.max_iter)
        self.loss_, self.loss_curve_ = float(result.fun), result.losses
        self.coefs_, self.intercepts_ = self._parameters(model)

    def _descend(
        self, model: MLP, data: Data, held_out: Data | None, incremental: bool, tasks: Tasks,
        checkpoint: Checkpoint | None,
    ) -> None:  # fmt: skip
        """Train by "sgd" or "adam"."""
        if not incremental or not hasattr(self, "_optimizer"):
            self._optimizer = Descent.of(self)
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        if self.early_stopping and held_out is None:
            data, held_out = self._split(data)
        held = None if held_out is None else HeldOut(held_out, model.targets(held_out.y, len(held_out.y)).y)
        n, most, rows = data.X.shape[0], 1 if incremental else self.max_iter, self._rows(model, data.X)
        batch_size, order = self._batch_size(n), Order(n, self._random_state if self.shuffle else None)
        size, rates = None if batch_size == n else batch_size, self._rates()
        seed = self._drawn_seed() if any(rates) else model.seed
        self.n_iter_ = 0
        with Course(self, model, n, checkpoint) as course:
            start = course.attach(rows, data, size, rates, self._optimizer.rule)
            model.seed = seed  # not before: a run is known by its `random_state`, and not by what is drawn from it
            states = self._optimizer.epochs(
                model, rows, data.y, order, start, objective=self._objective(model), weights=data.weights,
                epochs=most, batch_size=size, plan=self.plan, dropout=rates, comm=self._ranks.comm,
            )  # fmt: skip
            course.begin(start)
            self._begun = True
            try:
                with closing(states):
                    ended = course.over or any(
                        course.ends_with(state, held, tasks.end) for state in tasks.epochs(states, most - self.n_iter_)
                    )
                if not (ended or incremental):
                    warnings.warn(
                        f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization "
                        "hasn't converged yet.",
                        ConvergenceWarning,
                        stacklevel=_CALLER,
                    )
            except Interrupted:
                raise
            except KeyboardInterrupt:
                if self._ranks.size > 1:  # the others know nothing of it
                    raise
                warnings.warn("Training interrupted by user.", stacklevel=_CALLER)
        self.coefs_, self.intercepts_ = self._best if self.early_stopping else self._parameters(model)

    def _rates(self) -> tuple[float, ...]:
        """Return the rates of dropout of the hidden layers."""
        rates = check_dropout(self.dropout, len(self._sizes()) - 2)
        if any(rates) and self.solver == "lbfgs":
            raise ValueError(
                "dropout is for the solvers 'sgd' and 'adam', got solver='lbfgs' and "
                f"dropout={shown(self.dropout)}; leave dropout at 0.0, or choose one of these"
            )
        return rates

    def _drawn_seed(self) -> int:
        """Draw what dropout depends on. Each fit counts its epochs from 1, so the samples before it are a part."""
        return int(self._random_state.randint(2**31)) + (int(self.t_) << 31)

    def _split(self, data: Data) -> tuple[Data, Data]:
        """Return the rows to train on, and those to hold out."""
        rows = train_test_split(
            np.arange(len(data.y)),
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=data.y if is_classifier(self) and self.n_outputs_ == 1 else None,
        )
        train, held_out = (Data(*(None if part is None else take(part, some) for part in data)) for some in rows)
        if held_out.X.shape[0] < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        return train, held_out

    def _batch_size(self, n: int) -> int:
        if isinstance(self.batch_size, str):  # "auto"
            return min(200, n)
        if self.batch_size > n:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped",
                stacklevel=_CALLER + 1,
            )
        return min(int(self.batch_size), n)
