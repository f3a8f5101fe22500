"""End a training when a quantity has stopped falling."""

from __future__ import annotations

import math
from typing import Any

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
    """

    def __init__(self, tol: float = 0.0, patience: int = 10, monitor: str = "loss") -> None:
        if not (isinstance(tol, int | float) and 0 <= tol < math.inf):
            raise ValueError(f"tol must be a finite number of at least 0, got {tol!r}")
        if monitor not in ("loss", "val_loss", "gradient"):
            raise ValueError(f"unknown monitor {monitor!r}; choose from 'loss', 'val_loss', 'gradient'")
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience must be a whole number of at least 1, got {patience!r}")
        self.tol, self.patience, self.monitor = tol, patience, monitor
        self.best, self.best_epoch, self.waited = math.inf, 0, 0
        self._best_of: tuple[MLP, Any] | None = None

    def __repr__(self) -> str:
        return f"EarlyStopping(tol={self.tol}, patience={self.patience}, monitor={self.monitor!r})"

    @property
    def over(self) -> bool:
        """Whether the patience is at its end."""
        return self.waited >= self.patience

    def __call__(self, state: Any) -> bool:
        if self.monitor == "gradient":
            self.waited = self.waited + 1 if float(state.gradient_norm) <= self.tol else 0
            return self.over
        value = float(state.loss) if self.monitor == "loss" else state.metrics.get("val_loss")
        if value is None:
            raise ValueError("early stopping on 'val_loss' needs validation data; pass fit(..., validation=(X, y))")
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

    def restore(self, seen: dict[str, Any], model: MLP) -> None:
        """Go on from what :meth:`dump` returned, with the same or an equal model."""
        self.best_epoch, self.waited = seen["best_epoch"], seen["waited"]
        self.best = seen["best"] if self.best_epoch else math.inf
        self._best_of = (model, model.device.asarray(seen["theta"])) if "theta" in seen else None

    def close(self) -> None:
        """Put the best parameters back, where a validation loss was watched."""
        if self._best_of is not None:
            model, theta = self._best_of
            model.theta = theta
