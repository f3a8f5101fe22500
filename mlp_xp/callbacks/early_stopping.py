"""End a training when a quantity has stopped falling."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from ..checks import check_choice, check_count
from ..files.tensors import CheckpointError
from ..mlp import MLP

__all__ = ["EarlyStopping"]


class EarlyStopping:
    """Ends the training when a quantity has stopped falling.

    Parameters
    ----------
    tol : float
        A fall by no more than this counts as none.
    patience : int
        Epochs without a fall before the training ends.
    monitor : {"loss", "val_loss", "gradient"}
        Training loss, validation loss, or the norm of the gradient, which ends the training once it stays below `tol`.
        With ``"val_loss"`` the parameters of the best epoch are put back at the end.

    Attributes
    ----------
    best : float
        The least value of the last ``fit``.
    best_epoch : int
        When it was, counted from 1.
    waited : int
        Epochs without a fall up to the last one.

    Raises
    ------
    ValueError
        If an argument does not fit; at the start of ``fit``, if ``"val_loss"`` is monitored and nothing measures it.
    """

    def __init__(self, tol: float = 0.0, patience: int = 10, monitor: str = "loss") -> None:
        self.tol, self.patience = _check_tol(tol), check_count("patience", patience)
        self.monitor = check_choice("monitor", monitor, ("loss", "val_loss", "gradient"))
        self.needs = ("val_loss",) if monitor == "val_loss" else ()
        self.begin()

    def __repr__(self) -> str:
        return f"EarlyStopping(tol={self.tol}, patience={self.patience}, monitor={self.monitor!r})"

    def begin(self, model: MLP | None = None) -> None:
        """Forget the run before."""
        self.best, self.best_epoch, self.waited = math.inf, 0, 0
        self._best_of: tuple[MLP, Any] | None = None

    @property
    def over(self) -> bool:
        """Whether patience has run out."""
        return self.waited >= self.patience

    def __call__(self, state: Any) -> bool:
        if self.monitor == "gradient":
            self.waited = self.waited + 1 if float(state.gradient_norm) <= self.tol else 0
            return self.over
        if self.monitor == "loss":
            value = float(state.loss)
        elif "val_loss" in state.metrics:
            value = float(state.metrics["val_loss"])
        else:  # fit has checked it, a loop of the caller's has not
            raise ValueError(f"{self!r} needs 'val_loss' in state.metrics; call an Evaluation('val', X, y) before it")
        self.waited = 0 if value < self.best - self.tol else self.waited + 1
        if value < self.best:
            self.best, self.best_epoch = value, state.epoch
            if self.monitor == "val_loss":
                self._best_of = state.model, state.model.theta
        return self.over

    def dump(self) -> dict[str, Any]:
        """Return what was seen so far as numbers and the best parameters (P,), for :meth:`restore`."""
        best = self.best if self.best_epoch else 0.0
        seen = {"best": best, "best_epoch": self.best_epoch, "waited": self.waited}
        if self._best_of is None:
            return seen
        model, theta = self._best_of
        return {**seen, "theta": model.device.to_host(theta)}

    def restore(self, record: dict[str, Any], model: MLP) -> None:
        """Go on from what :meth:`dump` returned, with the same or an equal model.

        Raises
        ------
        CheckpointError
            If the record is not that of such a callback.
        """
        best, theta = record.get("best"), record.get("theta")
        counts: list[Any] = [record.get(name) for name in ("best_epoch", "waited")]
        if not (
            record.keys() - {"theta"} == {"best", "best_epoch", "waited"}
            and all(type(count) is int and 0 <= count < 2**53 for count in counts)
            and isinstance(best, float)
            and math.isfinite(best)
            and (theta is not None) == (self.monitor == "val_loss" and counts[0] != 0)
        ):
            raise CheckpointError("it has a record of early stopping that such a callback cannot have")
        if theta is not None and not (
            isinstance(theta, np.ndarray)
            and (theta.shape, theta.dtype) == ((model.layout.size,), model.dtype)
            and np.isfinite(theta).all()
        ):
            raise CheckpointError("the best parameters of its early stopping are not parameters of this model")
        self.best_epoch, self.waited = counts
        self.best = best if self.best_epoch else math.inf
        self._best_of = None if theta is None else (model, model.device.asarray(theta))

    def close(self) -> None:
        """Put the best parameters back if a validation loss was monitored."""
        if self._best_of is not None:
            model, theta = self._best_of
            model.theta = theta


def _check_tol(tol: Any) -> float:
    number = tol.item() if isinstance(tol, np.generic) else tol
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= sys.float_info.max:
        raise ValueError(f"tol must be a finite number of at least 0, got {tol!r}")
    return number
