"""Checkpoints: save a run now and then, so that it can go on, bit for bit, from where it was."""

from __future__ import annotations

import os
import re
import warnings
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from math import inf
from statistics import median_low
from time import monotonic
from types import TracebackType
from typing import Any, Self

from ..files.tensors import CheckpointError
from ..snapshot import Snapshot
from .agreement import Agreement
from .folder import RunFolder
from .record import Record
from .signals import Interrupted, StopSignals
from .training import Training
from .versions import differences, versions

__all__ = ["Checkpoint", "Unsaved", "check_every"]

_SECONDS = 30.0  # between saves, if nothing else is asked for
_SHARE = 0.01  # of the time, that saving may take then
_MOST_SECONDS = 300.0  # that a killed run may lose because saving is slow
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")


class Checkpoint:
    """Saves a run in a folder now and then, so that :func:`mlp_xp.fit` can go on from there with the same result.

    During training, the first Ctrl-C, SIGTERM or SIGHUP (SIGBREAK on Windows) makes ``fit`` finish the current update,
    save, and raise :class:`Interrupted`. A second Ctrl-C leaves at once. The folder is locked against other processes.

    Parameters
    ----------
    folder : path or RunFolder
        Made if it is missing. The file in it is ``checkpoint.safetensors``.
    every : int or str, optional
        Epochs from one save to the next, such as ``5``, or seconds, such as ``"30s"``, also in the middle of an epoch.
        None takes 30 seconds, or up to 5 minutes if saving would otherwise take more than 1 % of the time. The end is
        always saved.
    resume : bool
        Go on with the run in the folder. Data and settings must be those it was started with. The number of epochs,
        the threads, the device and `every` may differ.
    config : mapping, optional
        Plain data of the caller's that are kept in the file.

    Raises
    ------
    ValueError
        If `every` is neither; in ``fit``, before training, if there is nothing to resume, something differs (the
        message lists what), a new run would overwrite another, or something cannot be saved.
    OSError
        In ``fit``, before training, if the folder cannot be written or is in use; later, if the disk is full or the
        folder was moved.

    Warns
    -----
    UserWarning
        In ``fit``, if the run that is resumed was saved under other versions, which may round differently.

    Examples
    --------
    >>> import mlp_xp as mx, tempfile
    >>> (X, y), folder = mx.datasets.xor(), tempfile.mkdtemp()
    >>> history = mx.fit(mx.MLP([2, 4, 2]), X, y, epochs=3, checkpoint=mx.Checkpoint(folder))
    >>> history = mx.fit(mx.MLP([2, 4, 2]), X, y, epochs=5, checkpoint=mx.Checkpoint(folder, resume=True))
    >>> history.epoch
    [1, 2, 3, 4, 5]
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | RunFolder,
        every: int | str | None = None,
        resume: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.epochs, self.seconds = check_every(every)
        self.resume, self.config = resume, dict(config or {})
        self._borrowed = isinstance(folder, RunFolder)
        self.folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)

    def __repr__(self) -> str:
        every = self.epochs if self.seconds is None else f"{self.seconds}s"
        return f"{type(self).__name__}({str(self.folder)!r}, every={every!r}, resume={self.resume})"

    def __enter__(self) -> Self:
        self._open = ExitStack()
        if not self._borrowed:
            self._open.callback(self.folder.close)
        self._versions: list[dict[str, str]] = []
        self._took: deque[float] = deque(maxlen=3)  # one slow save, of a disk that stalled once, says little
        self._next = inf
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def attach(self, training: Training, ranks: Agreement) -> Snapshot | None:
        """Take up what is to be saved; return where to go on, and None for a new run.

        The history and the callbacks become the saved ones. The model is left as it is. Rank 0 reads and writes the
        folder, and hashes the data, for all.
        """
        self._training, self._ranks = training, ranks
        self._signals = StopSignals(_SIGNALS, self._unheard, ranks.most)
        record = ranks.first(self._saved)
        if record is None:
            return None
        with ranks.together():
            self._restore(record)
        self._versions = record.versions
        return record.snapshot

    def _saved(self) -> Record | None:
        self._settings = self._training.settings()
        return self.folder.resume(self._settings) if self.resume else None

    def _restore(self, record: Record) -> None:
        try:
            self._training.restore(record)
        except ValueError as error:
            problem = f"holds a state that a run with its settings cannot have: {error}; do not use it"
            raise CheckpointError(f"{self.folder.checkpoint} {problem}") from None

    def begin(self, start: Snapshot | None) -> None:
        """Find out before the training whether saving will work, and keep others away from the folder."""
        now = versions()
        if self._ranks.leads and self._versions and (changed := differences(self._versions[-1], now)):
            problem = (
                f"{self.folder} was saved under other versions ({changed}); the result may differ in its last digits"
            )
            warnings.warn(problem, stacklevel=3)
        if not self._versions or self._versions[-1] != now:
            self._versions = [*self._versions, now]
        self._ranks.first(lambda: self.folder.begin(self._record(start or self._training.first())))
        self._plan_next()
        self._open.enter_context(self._signals)

    def is_due(self) -> bool:
        """Return whether to save in the middle of an epoch; asked after each update, so it costs next to nothing."""
        return self._signals.received is not None or monotonic() >= self._next

    def after(self, state: Any, final: bool) -> None:
        """Save the state handed out by the loop, if it is time to; stop the training if a signal asked for it."""
        epoch_due = self.epochs is not None and state.whole and state.epoch % self.epochs == 0
        due = self._ranks.any(final or epoch_due or self.is_due())
        signal = self._ranks.most(self._signals.received or 0)  # after the question, or one that came now was not saved
        if due or signal:
            began, snapshot = monotonic(), state.snapshot()
            self._ranks.first(lambda: self.folder.save(self._record(snapshot)))
            self._took.append(monotonic() - began)
            self._plan_next()
        if signal:
            where = f"in epoch {state.epoch} after update {state.updates}; all up to here is saved in"
            raise Interrupted(signal, str(self.folder), where)

    def _record(self, snapshot: Snapshot) -> Record:
        return Record(snapshot, *self._training.dump(), self._settings, self.config, self._versions)

    def _unheard(self, number: int) -> Interrupted:
        saved = self.folder.checkpoint.exists()
        where = "after the last save, which is in" if saved else "before there was anything to save in"
        return Interrupted(number, str(self.folder), where)

    def _plan_next(self) -> None:
        wait = self.seconds
        if wait is None:
            took = median_low(self._took) if self._took else 0.0
            wait = min(max(_SECONDS, took / _SHARE), _MOST_SECONDS)
        self._next = monotonic() + wait if self.epochs is None else inf


class Unsaved:
    """What ``fit`` has in the place of a :class:`Checkpoint` without one: Ctrl-C stops between two updates."""

    def __enter__(self) -> Self:
        self._open = ExitStack()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def attach(self, training: Training, ranks: Agreement) -> None:
        """Begin anew."""
        self._ranks, self._whole = ranks, training.model.theta
        self._signals = StopSignals(("SIGINT",), lambda number: KeyboardInterrupt(), ranks.most)

    def begin(self, start: Snapshot | None) -> None:
        """Note Ctrl-C from here on."""
        self._open.enter_context(self._signals)

    def is_due(self) -> bool:
        """Return whether to stop in the middle of an epoch."""
        return self._signals.received is not None

    def after(self, state: Any, final: bool) -> None:
        """Stop if Ctrl-C asked for it, with the parameters of the last whole epoch."""
        if state.whole:
            self._whole = state.model.theta
        if self._ranks.most(self._signals.received or 0):
            state.model.theta = self._whole
            raise KeyboardInterrupt


def check_every(every: Any) -> tuple[int | None, float | None]:
    """Return the epochs, or the seconds, between two saves."""
    if every is None:
        return None, None
    text = str(every)
    if re.fullmatch(r"[0-9]{1,15}", text) and int(text) > 0:
        return int(text), None
    if re.fullmatch(r"[0-9]{1,15}(\.[0-9]+)?s", text) and float(text[:-1]) > 0:
        return None, float(text[:-1])
    raise ValueError(f"checkpoints come every so many epochs, as in 5, or seconds, as in 30s; got {every!r}")
