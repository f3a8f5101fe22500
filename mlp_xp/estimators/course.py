"""The course of a fit, epoch by epoch, and how a checkpoint keeps it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np

from ..callbacks import History
from ..files.tensors import CheckpointError
from ..loop import State
from ..mlp import MLP
from ..optim import Optimizer
from ..rows.checks import check_weights
from ..rows.source import Rows
from ..runs.checkpoint import Checkpoint
from ..runs.training import Training
from ..snapshot import Snapshot
from .arrays import like, on_host
from .data import Data, HeldOut
from .stopping import Measured, Stopping

__all__ = ["Course"]

_FREE = ("device", "dropout", "max_fun", "max_iter", "precision", "verbose", "warm_start")
"""Parameters that change nothing of the epochs that are over, or that the run's settings have in other words."""


class Course:
    """Records the epochs of a fit, and saves them as scikit-learn's rules need them: as what was measured.

    Parameters
    ----------
    estimator : Stopping
    model : MLP
        What is trained.
    rows : int
        Those of an epoch.
    checkpoint : Checkpoint, optional
        Where to save.

    Attributes
    ----------
    over : bool
        Whether the rules have ended the training.
    """

    def __init__(self, estimator: Stopping, model: MLP, rows: int, checkpoint: Checkpoint | None) -> None:
        self._estimator, self._model, self._rows, self._checkpoint = estimator, model, rows, checkpoint
        self._history, self._epochs, self.over = History(), list[Measured](), False
        self._names = Measured._fields if estimator.early_stopping else Measured._fields[:1]

    def __enter__(self) -> Self:
        self._open = ExitStack()
        if self._checkpoint is not None:
            self._open.enter_context(self._checkpoint)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def attach(
        self, rows: Rows, data: Data, batch_size: int | None, dropout: tuple[float, ...], optimizer: Optimizer
    ) -> Snapshot | None:
        """Return where to go on, which is where the estimator is then, and None for a new run."""
        if self._checkpoint is None:
            return None
        model, targets = self._model, self._model.targets(data.y, self._rows)
        if data.weights is not None:
            targets = replace(targets, weights=check_weights(data.weights, self._rows, model.dtype))
        plan, history = self._estimator.plan, self._history
        training = Training(model, optimizer, (rows, targets), None, batch_size, plan, dropout, history, [self])
        start = self._checkpoint.attach(training, self._estimator._ranks)
        if start is not None and start.epoch != len(self._epochs):
            raise CheckpointError(f"its fit has {len(self._epochs)} epochs, and the run {start.epoch}")
        return start

    def begin(self, start: Snapshot | None) -> None:
        """Find out before the training whether saving will work."""
        if self._checkpoint is not None:
            self._checkpoint.begin(start)

    def ends_with(self, state: State, held: HeldOut | None, stopped: Callable[[], bool]) -> bool:
        """Record an epoch, and return whether it is the last one, by the rules or because it is `stopped`."""
        estimator = self._estimator
        self._record(estimator._measure(state, held), estimator.verbose)
        ends = estimator._ranks.any(stopped()) or self.over
        if self._checkpoint is not None:
            self._history(state)
            self._checkpoint.after(state, ends or estimator.n_iter_ == estimator.max_iter)
        return ends

    def _record(self, epoch: Measured, verbose: bool) -> None:
        self._epochs.append(epoch)
        self.over = self._estimator._ends_with(epoch, self._rows, verbose)

    # What a checkpoint asks of a callback.

    def __repr__(self) -> str:
        parameters = self._estimator.get_params(deep=False).items()
        text = ", ".join(f"{name}={value!r}" for name, value in parameters if name not in _FREE)
        return f"{type(self._estimator).__name__}({text})"

    def dump(self) -> dict[str, Any]:
        """Return what was measured, as the bits of floats (epochs,), and the parameters of the best epoch."""
        columns = np.array([epoch[: len(self._names)] for epoch in self._epochs], np.float64)
        columns = columns.reshape(len(self._epochs), len(self._names)).T
        record = {name: column.copy().view(np.int64) for name, column in zip(self._names, columns, strict=True)}
        return record | self._best()

    def restore(self, record: dict[str, Any], model: MLP) -> None:
        """Go on from what :meth:`dump` returned: the rules follow from what was measured.

        Raises
        ------
        CheckpointError
            If the record is not that of such a fit.
        """
        best = self._best()
        columns: list[Any] = [record.get(name) for name in self._names]
        if record.keys() != {*self._names, *best} or not (
            all(_is_like(column, np.int64, (np.size(columns[0]),)) for column in columns)
            and all(_is_like(record[name], array.dtype, array.shape) for name, array in best.items())
        ):
            raise CheckpointError("it has a record of a fit that such an estimator cannot have")
        for epoch in np.stack(columns, axis=1).view(np.float64).tolist():
            self._record(Measured(*epoch), verbose=False)
        if best:
            estimator, layers = self._estimator, len(best) // 2
            found = [like(estimator.coefs_[0], record[name]) for name in best]
            estimator._best = found[:layers], found[layers:]

    def _best(self) -> dict[str, Any]:
        """Return the parameters of the best epoch, on the host, if there are rows that say which it is."""
        if not self._estimator.early_stopping:
            return {}
        return {
            f"{name}{l}": np.asarray(on_host(part))
            for name, parts in zip(("coef", "intercept"), self._estimator._best, strict=True)
            for l, part in enumerate(parts)
        }


def _is_like(found: Any, dtype: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(found, np.ndarray) and (found.dtype, found.shape) == (np.dtype(dtype), shape)
