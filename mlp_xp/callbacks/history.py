"""What happened, epoch by epoch."""

from __future__ import annotations

import csv
import io
import math
from os import PathLike
from typing import Any

import numpy as np

from ..files.atomic import replace_file
from ..files.tensors import CheckpointError
from ..mlp import MLP

__all__ = ["History", "accuracy_by_class"]

_OWN = ("epoch", "loss", "lr", "seconds")
_OF_VALIDATION = ("val_loss", "val_accuracy", "val_r2")  # are empty lists if there are no validation data
_SHOWN = 10  # epochs that repr prints


class History:
    """Records each epoch, and each metric that callbacks before it have put into ``state.metrics``, as lists.

    Attributes
    ----------
    epoch, loss, lr, seconds : list
        Number, mean training loss, learning rate and duration of each epoch.
    metrics : dict of str to list of float
        By name what was measured after each epoch, NaN where nothing was. Each is an attribute as well: with validation
        data ``val_loss`` and ``val_accuracy``, or ``val_r2`` if the outputs are values.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self, model: MLP | None = None) -> None:
        """Forget the run before."""
        self.epoch: list[int] = []
        self.loss: list[float] = []
        self.metrics: dict[str, list[float]] = {}
        self.lr: list[float] = []
        self.seconds: list[float] = []

    def __getattr__(self, name: str) -> list[float]:
        metrics = self.__dict__.get("metrics", {})  # not there yet while it is copied or unpickled
        if name in metrics or name in _OF_VALIDATION:
            found: list[float] = metrics.get(name, [])
            return found
        known = ", ".join((*_OWN, *metrics))
        raise AttributeError(f"no {name!r} was recorded; this history has {known}", name=name, obj=self)

    def __call__(self, state: Any) -> None:
        for name in state.metrics.keys() - self.metrics.keys():
            if name in _OWN:
                raise ValueError(f"a metric cannot be called {name!r}, which history records itself; rename it")
        before = len(self)
        self.epoch.append(state.epoch)
        self.loss.append(float(state.loss))
        self.lr.append(float(state.lr))
        self.seconds.append(float(state.seconds))
        for name in state.metrics:
            self.metrics.setdefault(name, [math.nan] * before)
        for name, column in self.metrics.items():
            column.append(float(state.metrics.get(name, math.nan)))

    def __len__(self) -> int:
        return len(self.epoch)

    def __repr__(self) -> str:
        columns, head = self.columns(), f"History of {len(self)} epochs"
        if not len(self):
            return head
        shown = range(max(0, len(self) - _SHOWN), len(self))
        rows = [list(columns), *([f"{column[i]:.6g}" for column in columns.values()] for i in shown)]
        head += f", the last {_SHOWN}:" if len(shown) < len(self) else ":"
        return "\n".join([head, *("".join(f"{cell:>14s}" for cell in row) for row in rows)])

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns that are recorded, by name."""
        first: dict[str, list[Any]] = {"epoch": self.epoch, "loss": self.loss}
        return {**first, **self.metrics, "lr": self.lr, "seconds": self.seconds}

    def to_csv(self) -> str:
        """Return the columns as CSV, one row per epoch."""
        columns = self.columns()
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue()

    def save(self, path: str | PathLike[str]) -> None:
        """Write :meth:`to_csv` to a file; the whole file or nothing."""
        replace_file(path, [memoryview(self.to_csv().encode())], verify=lambda file: None)

    def dump(self) -> dict[str, Any]:
        """Return the columns as arrays, and the order of the metrics, for :meth:`restore`."""
        columns = {name: _storable(name, column) for name, column in self.columns().items()}
        return {"order": list(self.metrics), **columns}

    def restore(self, record: dict[str, Any], model: MLP | None = None) -> None:
        """Go on after the epochs that :meth:`dump` returned.

        Raises
        ------
        CheckpointError
            If the record is not that of a history.
        """
        order = record.get("order")
        if not (isinstance(order, list) and all(isinstance(name, str) for name in order)):
            raise CheckpointError("its history does not say in which order its metrics come")
        if record.keys() != {"order", *_OWN, *order} or len(record) != 1 + len(_OWN) + len(order):
            raise CheckpointError(f"its history has {', '.join(sorted(record))}, which are not its columns")
        length = record["epoch"].size if isinstance(record["epoch"], np.ndarray) else -1
        columns = {name: _listed(name, record[name], length) for name in (*_OWN, *order)}
        if columns["epoch"] != list(range(1, length + 1)):
            raise CheckpointError("its history does not count the epochs from 1")
        if not all(math.isfinite(value) for name in _OWN for value in columns[name]):
            raise CheckpointError("its history has a loss, a learning rate or a duration that is not finite")
        self.epoch, self.loss, self.lr, self.seconds = (columns[name] for name in _OWN)
        self.metrics = {name: columns[name] for name in order}


def _storable(name: str, column: list[Any]) -> np.ndarray[Any, Any]:
    """Return a column as an array (epochs,) of finite floats or of integers, which is what a checkpoint can hold.

    A column with NaN or infinity becomes the bits of its floats: exact, and told apart by the dtype.
    """
    array = np.array(column, dtype=np.int64 if name == "epoch" else np.float64)
    return array if np.isfinite(array).all() else array.view(np.int64)


def _listed(name: str, column: Any, length: int) -> list[Any]:
    """Return the list that :func:`_storable` made a column of."""
    dtypes = (np.int64,) if name == "epoch" else (np.int64, np.float64)
    if not isinstance(column, np.ndarray) or column.shape != (length,) or column.dtype not in dtypes:
        raise CheckpointError(f"its history has a column {name!r} that is not one number per epoch")
    return list((column if name == "epoch" else column.view(np.float64)).tolist())


def accuracy_by_class(y: np.ndarray[Any, Any], predicted: np.ndarray[Any, Any]) -> dict[int, float]:
    """Return the share of each class's rows that were predicted right, by class; y and predicted (n,)."""
    return {int(label): float(np.mean(predicted[y == label] == label)) for label in np.unique(y)}
