"""A training as scikit-learn's callbacks see it, which it has since version 1.9."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from ..mlp import MLP
from .data import Data

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Before, estimators have no ``set_callbacks``."""


__all__ = ["CallbackSupportMixin", "Tasks"]

_State = TypeVar("_State")


class Tasks:
    """A task for the whole training, and in it one for each epoch, or each iteration of "lbfgs".

    Parameters
    ----------
    estimator : MultilayerPerceptron
    name : {"fit", "partial_fit"}
    most : int
        The most epochs.
    data : Data
        What is trained on, with targets and weights as the user gave them.
    model : MLP
        What is trained.

    Attributes
    ----------
    heard : bool
        Whether there are callbacks.
    ended : bool
        Whether one of them has asked to end the training.
    """

    def __init__(self, estimator: Any, name: str, most: int, data: Data, model: MLP) -> None:
        self._estimator, self._model = estimator, model
        metadata = None if data.weights is None else {"sample_weight": data.weights}
        self._given = {"estimator": estimator, "X": data.X, "y": data.y, "metadata": metadata}
        self.ended = False
        self.heard = bool(getattr(estimator, "_skl_callbacks", None))
        if self.heard:
            self._task: Any = None  # the one that has begun
            self._whole = estimator._init_callback_context(name, max_subtasks=most)
            self._whole.call_on_fit_task_begin(**self._given)

    def epochs(self, states: Iterator[_State], most: int) -> Iterator[_State]:
        """Yield the states of so many epochs, and begin each one's task before it."""
        for _ in range(most):
            self.begin("epoch")
            yield next(states)

    def begin(self, name: str) -> None:
        """Begin a task where the model is now, unless one has begun."""
        if self.heard and self._task is None:
            self._task = self._whole.subcontext(name)
            self._task.call_on_fit_task_begin(**self._given, reconstruction_attributes=self._parameters)

    def end(self) -> bool:
        """End the task that has begun where the model is now; return whether a callback asks to end the training."""
        if not self.heard:
            return False
        task, self._task = self._task, None
        self.ended = task.call_on_fit_task_end(**self._given, reconstruction_attributes=self._parameters)
        return self.ended

    def close(self) -> None:
        """End the training, whose outcome the estimator has."""
        if self.heard:
            if self._task is not None:  # an iteration without a step
                self.end()
            self._whole.call_on_fit_task_end(**self._given, reconstruction_attributes={})

    def _parameters(self) -> dict[str, Any]:
        """Return what makes the estimator one that was trained up to here."""
        return dict(zip(("coefs_", "intercepts_"), self._estimator._parameters(self._model), strict=True))
