"""What happened, epoch by epoch."""

from __future__ import annotations

import csv
import io
from os import PathLike
from typing import Any

import numpy as np

from ..files.atomic import replace_file

__all__ = ["History", "accuracy_by_class"]

COLUMNS = ("epoch", "loss", "val_loss", "val_accuracy", "lr", "seconds")


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


def accuracy_by_class(y: np.ndarray[Any, Any], predicted: np.ndarray[Any, Any]) -> dict[int, float]:
    """Return the share of each class's rows that were predicted right, by class; y and predicted (n,)."""
    return {int(label): float(np.mean(predicted[y == label] == label)) for label in np.unique(y)}
