"""What is put on top of the loop: recording, progress, stopping. A callback is called with each state."""

from __future__ import annotations

import csv
import math
import sys
from os import PathLike
from typing import Any, Protocol

import numpy as np

from .mlp import MLP
from .model import OUTPUTS

__all__ = ["Callback", "EarlyStopping", "History", "Progress", "accuracy_by_class"]

COLUMNS = ("epoch", "loss", "val_loss", "val_accuracy", "lr", "seconds")


class Callback(Protocol):
    """Anything that is called with a :class:`mlp_xp.loop.State`; returning True ends the training."""

    def __call__(self, state: Any) -> bool | None: ...


class History:
    """Records each epoch, as lists.

    The attributes are ``epoch``, ``loss``, ``lr`` and ``seconds``; with validation data also ``val_loss`` and
    ``val_accuracy`` (R^2 for values).

    Parameters
    ----------
    validation : (X, y), optional
        Data to measure after each epoch.
    """

    def __init__(self, validation: tuple[Any, Any] | None = None) -> None:
        self.validation = validation
        self.epoch: list[int] = []
        self.loss: list[float] = []
        self.val_loss: list[float] = []
        self.val_accuracy: list[float] = []
        self.lr: list[float] = []
        self.seconds: list[float] = []

    def __call__(self, state: Any) -> None:
        if self.validation is not None:
            loss, score = state.model.evaluate(*self.validation)
            state.metrics.update(val_loss=loss, val_accuracy=score)
            self.val_loss.append(loss)
            self.val_accuracy.append(score)
        self.epoch.append(state.epoch)
        self.loss.append(float(state.loss))
        self.lr.append(state.lr)
        self.seconds.append(state.seconds)

    def __len__(self) -> int:
        return len(self.epoch)

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns that were recorded, by name."""
        return {name: getattr(self, name) for name in COLUMNS if len(getattr(self, name)) == len(self) > 0}

    def save(self, path: str | PathLike[str]) -> None:
        """Write the columns as CSV, one row per epoch."""
        columns = self.columns()
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))


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

    def __call__(self, state: Any) -> bool:
        if self.monitor == "gradient":
            self.waited = self.waited + 1 if float(state.gradient_norm) <= self.tol else 0
            return self.waited >= self.patience
        value = float(state.loss) if self.monitor == "loss" else state.metrics.get("val_loss")
        if value is None:
            raise ValueError("early stopping on 'val_loss' needs validation data; pass fit(..., validation=(X, y))")
        self.waited = 0 if value < self.best - self.tol else self.waited + 1
        if value < self.best:
            self.best, self.best_epoch = value, state.epoch
            if self.monitor == "val_loss":
                self._best_of = state.model, state.model.theta
        return self.waited >= self.patience

    def close(self) -> None:
        """Put the best parameters back, where a validation loss was watched."""
        if self._best_of is not None:
            model, theta = self._best_of
            model.theta = theta


class Progress:
    """A progress bar with loss, accuracy and speed; silent where nobody watches (standard error is no terminal).

    Parameters
    ----------
    total : int
        Epochs that are planned.
    disable : bool, optional
        None decides by the terminal.
    """

    def __init__(self, total: int, disable: bool | None = None) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=total, unit="epoch", disable=disable, file=sys.stderr, mininterval=0.1, leave=True)

    def __call__(self, state: Any) -> None:
        shown = f"loss {float(state.loss):.4f}"
        if "val_accuracy" in state.metrics:
            name = "R2" if OUTPUTS[state.model.output].task == "values" else "accuracy"
            shown += f", {name} {state.metrics['val_accuracy']:.4f}"
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update()

    def close(self) -> None:
        """Leave the last line standing."""
        self.bar.close()


def accuracy_by_class(y: np.ndarray[Any, Any], predicted: np.ndarray[Any, Any]) -> dict[int, float]:
    """Return the share of each class's rows that were predicted right, by class; y and predicted (n,)."""
    return {int(label): float(np.mean(predicted[y == label] == label)) for label in np.unique(y)}
