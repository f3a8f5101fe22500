"""Checkpoints: save a run now and then, so that it can go on, to the bit, from where it was."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, is_dataclass
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from ..callbacks import EarlyStopping, History
from ..checks import check_count
from ..devices import Array
from ..files import FolderLock, probe_writable
from ..files.tensors import CheckpointError
from ..loop import Snapshot
from ..mlp import MLP
from ..optim import Optimizer
from .record import FILE, Saved, fits, read, write
from .signals import Interrupted, StopSignals

__all__ = ["Checkpoint", "check_every", "check_same", "describe"]

_SECONDS = 30.0  # between saves, if nothing else is asked for
_SHARE = 0.01  # of the time, that saving may take then


class Checkpoint:
    """Saves a run in a folder now and then, so that :func:`mlp_xp.fit` can go on from there with the same result.

    While it trains, the first SIGTERM or Ctrl-C makes ``fit`` finish the current update, save, and raise
    :class:`Interrupted`; a second Ctrl-C leaves at once. The folder is locked against other processes.

    Parameters
    ----------
    folder : path
        Made if it is missing. The file in it is ``checkpoint.safetensors``.
    every : int or str, optional
        Epochs from one save to the next, such as ``5``, or seconds, such as ``"30s"``, also in the middle of an epoch.
        None takes 30 seconds, or more where saving would then take more than 1 % of the time. The end is always saved.
    resume : bool
        Go on with the run in the folder. Data and settings must be those it was started with; the number of epochs,
        the threads, the device and `every` may be others.
    config : mapping, optional
        Plain data of the caller's that are kept in the file.

    Raises
    ------
    ValueError
        If `every` is neither; in ``fit``, if there is nothing to resume, something differs (the message lists what),
        or a new run would overwrite another.
    OSError
        In ``fit``, before training, if the folder cannot be written or is in use; later, if the disk is full.

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
        folder: str | os.PathLike[str],
        every: int | str | None = None,
        resume: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.path = Path(folder), Path(folder, FILE)
        self.epochs, self.seconds = check_every(every)
        self.resume, self.config = resume, dict(config or {})
        self._open = ExitStack()
        self._signals = StopSignals()
        self._next = inf

    def attach(
        self,
        settings: dict[str, Any],
        model: MLP,
        optimizer: Optimizer,
        history: History,
        stoppings: Sequence[EarlyStopping],
    ) -> Snapshot | None:
        """Take up what is to be saved; return where to go on, and None for a new run.

        The history and the states of early stopping become the saved ones. The model is left as it is.
        """
        self._settings, self._history, self._stoppings = settings, history, stoppings
        if not self.resume:
            return None
        if not self.path.is_file():
            raise ValueError(f"there is no {self.path} to resume from; start the run without resume")
        self._open.enter_context(FolderLock(self.folder))
        saved = read(self.path)
        check_same(self.folder, saved.settings, settings)
        if not fits(saved, model, optimizer, history, stoppings):
            raise CheckpointError(f"{self.path} holds a state that a run with its settings cannot have; do not use it")
        history.restore(saved.history)
        for stopping, state in zip(stoppings, saved.stopping, strict=True):
            stopping.restore(state, model)
        return saved.snapshot

    def begin(self, model: MLP) -> None:
        """Find out before the training whether saving will work, and keep others away from the folder."""
        if not self.resume:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._open.enter_context(FolderLock(self.folder))
            if self.path.exists():
                raise ValueError(f"{self.path} is of an earlier run; resume it, remove it, or choose another folder")
        vectors = 4  # the parameters, two of their optimiser's, the best
        probe_writable(self.folder, vectors * model.layout.size * np.dtype(model.dtype).itemsize)
        self._signals = self._open.enter_context(StopSignals())
        self._plan_next(took=0)

    def is_due(self) -> bool:
        """Return whether to save in the middle of an epoch; asked after each update, so it costs next to nothing."""
        return self._signals.received is not None or monotonic() >= self._next

    def after(self, state: Any, final: bool) -> None:
        """Save the state handed out by the loop, if it is time to; stop the training if a signal asked for it."""
        epoch_due = self.epochs is not None and state.whole and state.epoch % self.epochs == 0
        if final or epoch_due or self.is_due():
            began = monotonic()
            stopping = [each.dump() for each in self._stoppings]
            write(self.path, Saved(state.snapshot(), self._history.dump(), stopping, self._settings, self.config))
            self._plan_next(took=monotonic() - began)
        if self._signals.received is not None:
            where = f"in epoch {state.epoch} after update {state.updates}"
            raise Interrupted(self._signals.received, str(self.folder), where)

    def close(self) -> None:
        """Give back the folder and the signals."""
        self._open.close()

    def _plan_next(self, took: float) -> None:
        wait = max(_SECONDS, took / _SHARE) if self.seconds is None else self.seconds
        self._next = monotonic() + wait if self.epochs is None else inf


def check_every(every: Any) -> tuple[int | None, float | None]:
    """Return the epochs, or the seconds, between two saves."""
    if every is None:
        return None, None
    text = str(every)
    if re.fullmatch(r"[0-9]+", text) and int(text) > 0:
        return int(text), None
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?s", text) and float(text[:-1]) > 0:
        return None, float(text[:-1])
    raise ValueError(f"checkpoints come every so many epochs, as in 5, or seconds, as in 30s; got {every!r}")


def describe(
    model: MLP,
    X: Array,
    y: Array,
    optimizer: Optimizer,
    batch_size: int | None,
    plan: str,
    validation: tuple[Array, Array] | None,
    stoppings: Sequence[EarlyStopping],
) -> dict[str, Any]:
    """Return everything that decides where a run goes, by name and as plain data; X, y as the model checked them."""
    return {
        **{f"model.{name}": value for name, value in model.config.items()},
        **_flat("optimizer", optimizer),
        "batch_size": None if batch_size is None else min(check_count("batch_size", batch_size), X.shape[0]),
        "plan": plan,
        "early_stopping": [repr(stopping) for stopping in stoppings],
        "data": _fingerprint(model, X, y),
        "validation": None if validation is None else _fingerprint(model, *validation),
    }


def check_same(folder: str | os.PathLike[str], then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise a ValueError that lists all the settings of the run in `folder` that are others now.

    Settings that the run does not know came with a later version; they had no say in it.
    """
    changed = [f"{name}: {then[name]}, now {now.get(name)}" for name in then if now.get(name) != then[name]]
    if changed:
        raise ValueError(
            f"{folder} cannot be resumed with other settings than it was started with ({'; '.join(changed)}); "
            "leave them as they were, or start a new run in another folder"
        )


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Return a dataclass as names with dots and values: {"optimizer": "SGD", "optimizer.lr": 0.1, ...}."""
    if not is_dataclass(value):
        return {name: value}
    record: dict[str, Any] = {name: type(value).__name__}
    for part in fields(value):
        record |= _flat(f"{name}.{part.name}", getattr(value, part.name))
    return record


def _fingerprint(model: MLP, X: Array, y: Array) -> str:
    """Return shapes, dtypes and a SHA-256 of the data as the model sees them, the same on every device."""
    digest, shapes = hashlib.sha256(), []
    for array in (X, y):
        for i in range(0, array.shape[0], 65_536):
            part = model.device.to_host(array[i : min(i + 65_536, array.shape[0]), ...])
            digest.update(np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("<")).data)
        shapes.append(f"{part.dtype} {tuple(array.shape)}")
    return f"{' and '.join(shapes)} with sha256 {digest.hexdigest()}"
