"""A training as a checkpoint sees it: what decides where it goes, and what has to be saved of it."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from ..callbacks import History
from ..checks import check_count
from ..files.tensors import CheckpointError
from ..mlp import MLP
from ..objective import Targets
from ..optim import Optimizer
from ..rows.source import InMemory, Rows
from ..rows.stored import come_in_blocks
from ..snapshot import Snapshot, check_snapshot
from .record import NO_DROPOUT, Record
from .versions import versions

__all__ = ["Training", "parameters_digest", "sampled", "sketch"]

_SAMPLES, _SAMPLED = 64, 32  # places in the data, and rows at each, that stand for all


@dataclass(frozen=True, eq=False)
class Training:
    """What a training is made of.

    Attributes
    ----------
    model : MLP
    optimizer : Optimizer
    data : (Rows, Targets)
        What to train with.
    validation : (Rows, Targets), optional
    batch_size : int, optional
    plan : str
        As it was asked for.
    dropout : tuple of float
        The rates of the hidden layers.
    history : History
        The one that ``fit`` returns.
    callbacks : sequence
        The others whose state is saved.
    """

    model: MLP
    optimizer: Optimizer
    data: tuple[Rows, Targets]
    validation: tuple[Rows, Targets] | None
    batch_size: int | None
    plan: str
    dropout: tuple[float, ...]
    history: History
    callbacks: Sequence[Any]

    def settings(self) -> dict[str, Any]:
        """Return everything that decides where the run goes, by name and as plain data."""
        validation = None if self.validation is None else _fingerprint(*self.validation)
        return {**self._choices(), "data": _fingerprint(*self.data), "validation": validation}

    def sketch(self) -> dict[str, Any]:
        """Return what :meth:`settings` does at next to no cost, from a sample of the data, and what else decides."""
        return {**self._choices(), **sketch(self.model, self.data, self.validation)}

    def _choices(self) -> dict[str, Any]:
        batch_size = self.batch_size
        order = {} if batch_size is None else {"order": "blocks of rows" if come_in_blocks(self.data[0]) else "rows"}
        return {
            **{f"model.{name}": value for name, value in self.model.config.items()},
            **_flat("optimizer", self.optimizer),
            "batch_size": None if batch_size is None else min(check_count("batch_size", batch_size), self._rows),
            **order,
            "plan": self.plan,
            "dropout": list(self.dropout) if any(self.dropout) else NO_DROPOUT,
            "callbacks": [_described(callback) for callback in self.callbacks],
        }

    def first(self) -> Snapshot:
        """Return the snapshot before the first update."""
        model = self.model
        with model.device.active():
            state = self.optimizer.init(model.theta)
        host = {
            name: value if isinstance(value, int | float) else model.device.to_host(value)
            for name, value in state.items()
        }
        return Snapshot(0, 0, 0, 0.0, 0.0, model.device.to_host(model.theta), host, "dense")

    def dump(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return what the history and the callbacks have seen."""
        return self.history.dump(), [callback.dump() for callback in self.callbacks]

    def restore(self, record: Record) -> None:
        """Make the history and the callbacks go on from a record. The model is left as it is.

        Raises
        ------
        ValueError
            If the record is not one of such a training.
        """
        check_snapshot(record.snapshot, self.model, self.optimizer, self._rows, self.batch_size)
        if len(record.callbacks) != len(self.callbacks):
            raise CheckpointError(f"it has {len(record.callbacks)} callbacks, and the run {len(self.callbacks)}")
        self.history.restore(record.history)
        if len(self.history) != record.snapshot.epoch:
            raise CheckpointError(f"its history has {len(self.history)} epochs, and the run {record.snapshot.epoch}")
        for callback, state in zip(self.callbacks, record.callbacks, strict=True):
            callback.restore(state, self.model)

    def last(self, start: Snapshot | None, epochs: int) -> int:
        """Return the epoch to end with: where the run is, if a callback has ended it and would again, else `epochs`."""
        if start is None or not any(getattr(callback, "over", False) is True for callback in self.callbacks):
            return epochs
        return start.epoch + (start.update > 0)

    @property
    def _rows(self) -> int:
        return int(self.data[0].shape[0])


def sketch(model: MLP, data: tuple[Rows, Targets], validation: tuple[Rows, Targets] | None) -> dict[str, Any]:
    """Return what the bits of a training depend on beside its settings, with samples of the data, at little cost."""
    return {
        "data": sampled(*data),
        "validation": None if validation is None else sampled(*validation),
        "first parameters": parameters_digest(model),
        "device": model.device.name.partition(":")[0],
        "hardware": model.device.hardware(),
        "precision": model.precision,
        "python": platform.python_version(),
        **versions(),
    }


def parameters_digest(model: MLP) -> str:
    """Return dtype, shape and a SHA-256 of the parameters."""
    theta = np.ascontiguousarray(model.device.to_host(model.theta))
    return f"{theta.dtype} {theta.shape} with sha256 {hashlib.sha256(theta.data).hexdigest()}"


def _described(callback: Any) -> str:
    """Return what a callback is: its repr if its class wrote one, for object's would differ from process to process."""
    text = repr(callback)
    return type(callback).__name__ if text == object.__repr__(callback) else text


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Return a dataclass as names with dots and values: {"optimizer": "SGD", "optimizer.lr": 0.1, ...}."""
    if not is_dataclass(value):
        return {name: value}
    record: dict[str, Any] = {name: type(value).__name__}
    for part in fields(value):
        record |= _flat(f"{name}.{part.name}", getattr(value, part.name))
    return record


def _fingerprint(rows: Rows, targets: Targets) -> str:
    """Return shapes, dtypes and a SHA-256 of the data as the model sees them, the same on every device."""
    digest = hashlib.sha256()
    shapes = [data.fingerprint(digest) for data in (rows, targets)]
    return f"{' and '.join(shapes)} with sha256 {digest.hexdigest()}"


def sampled(rows: Rows, targets: Targets) -> str:
    """Return what :func:`_fingerprint` does, of all targets and of rows from all over the data."""
    digest = hashlib.sha256()
    for start in range(0, rows.shape[0], max(_SAMPLED, -(-rows.shape[0] // _SAMPLES))):
        InMemory(rows.block(start, start + _SAMPLED), rows.home).fingerprint(digest)
    shapes = f"{rows.dtype} {rows.shape} and {targets.fingerprint(digest)}"
    return f"{shapes} with a sample of sha256 {digest.hexdigest()}"
