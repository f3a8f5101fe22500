"""What is put on top of the loop: recording, progress, stopping. A callback is called with each state."""

from __future__ import annotations

import csv
import io
import math
import sys
from os import PathLike
from typing import Any, Protocol

import numpy as np

from .atomic import replace_file
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
        self.seconds.append(float(state.seconds))

    def __len__(self) -> int:
        return len(self.epoch)

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns that are recorded, by name."""
        names = [name for name in COLUMNS if self.validation is not None or not name.startswith("val_")]
        return {name: getattr(self, name) for name in names}

    def save(self, path: str | PathLike[str]) -> None:
        """Write the columns as CSV, one row per epoch; the whole file or nothing."""
        columns = self.columns()
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        replace_file(path, [memoryview(text.getvalue().encode())], verify=lambda file: None)

    def dump(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the columns as arrays, for :meth:`restore`."""
        return {name: np.array(column) for name, column in self.columns().items()}

    def restore(self, columns: dict[str, np.ndarray[Any, Any]]) -> None:
        """Go on after the epochs that :meth:`dump` returned."""
        for name, column in columns.items():
            setattr(self, name, column.tolist())


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
        if not self.bar.n:
            self.bar.n = self.bar.initial = state.epoch - 1  # of a run that was resumed
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update()

    def close(self) -> None:
        """Leave the last line standing."""
        self.bar.close()


def accuracy_by_class(y: np.ndarray[Any, Any], predicted: np.ndarray[Any, Any]) -> dict[int, float]:
    """Return the share of each class's rows that were predicted right, by class; y and predicted (n,)."""
    return {int(label): float(np.mean(predicted[y == label] == label)) for label in np.unique(y)}
