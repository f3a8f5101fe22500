"""The record of a run and its file: what is in it, and that it is what it says.

A run has one file, and everything is in it. Two files could be of different moments after a crash. This one is replaced
as a whole, once the new one has been written, flushed and verified (:mod:`mlp_xp.files.atomic`). That holds for the
best parameters too: they are part of the state of early stopping, and a file of their own could contradict it.

The format, version 2
---------------------
A :mod:`mlp_xp.files.tensors`. Its metadata are ``kind``, ``version``, ``settings``, ``config`` and ``versions``
(:class:`Record`), and ``state``, which holds records by name: ``run`` and ``optimizer`` (:class:`Snapshot`),
``history``, and ``callback.0`` and so on. Arrays of a record are tensors, named ``run.theta``, ``optimizer.mean``,
``history.loss``, ``callback.0.theta``: parameters and what goes with them as (P,), columns of the history as (epochs,).

Version 1 has no ``versions``, calls ``callback.0`` ``stopping.0``, and R^2 ``val_accuracy``. It is read as well.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..checks import brief
from ..files import tensors as tensor_file
from ..files.tensors import CheckpointError
from ..objective import OUTPUTS
from ..snapshot import Snapshot

__all__ = ["FILE", "NO_DROPOUT", "Record", "check_same", "read", "size", "write"]

FILE = "checkpoint.safetensors"
VERSION = 2
NO_DROPOUT = 0.0
"""The setting of a run in which nothing is dropped."""
_ADDED = {"dropout": NO_DROPOUT}
"""Settings that a later version added, and what they were in runs from before."""


class Record(NamedTuple):
    """The content of a checkpoint file.

    Attributes
    ----------
    snapshot : Snapshot
        Where the training is.
    history : dict
        What :meth:`mlp_xp.History.dump` returned.
    callbacks : list of dict
        What the other callbacks that have ``dump`` returned.
    settings : dict
        What decides where the run goes; see :meth:`mlp_xp.runs.training.Training.settings`.
    config : dict
        Plain data of the caller's.
    versions : list of dict
        The versions of each program that went on with the run, see :func:`mlp_xp.runs.versions.versions`.
    """

    snapshot: Snapshot
    history: dict[str, Any]
    callbacks: list[dict[str, Any]]
    settings: dict[str, Any]
    config: dict[str, Any]
    versions: list[dict[str, str]]


def write(path: str | os.PathLike[str], record: Record) -> None:
    """Write a checkpoint file, all or nothing; see :func:`mlp_xp.files.tensors.save`. A link is replaced."""
    tensor_file.save(path, *_content(record), follow_links=False)


def size(record: Record) -> int:
    """Return the bytes of the file.

    Raises
    ------
    CheckpointError
        If something in it cannot be saved.
    """
    return tensor_file.serialized_size(*_content(record))


def _content(record: Record) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return arrays and metadata of the file."""
    run = vars(record.snapshot)
    parts = {
        "run": {name: value for name, value in run.items() if name != "optimizer"},
        "optimizer": run["optimizer"],
        "history": record.history,
        **{f"callback.{i}": state for i, state in enumerate(record.callbacks)},
    }
    arrays: dict[str, Any] = {}
    state: dict[str, dict[str, Any]] = {}
    for part, values in parts.items():
        state[part] = {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
        arrays |= {f"{part}.{name}": value for name, value in values.items() if isinstance(value, np.ndarray)}
    own = {"kind": "checkpoint", "version": VERSION, "settings": record.settings, "config": record.config}
    return arrays, {**own, "versions": record.versions, "state": state}


def read(path: str | os.PathLike[str]) -> Record:
    """Read a checkpoint file.

    Raises
    ------
    CheckpointError
        If it is damaged, is of a version that is not known here, or is something else.
    OSError
        If it cannot be read.
    """
    arrays, metadata = tensor_file.load(path)
    if metadata.get("kind") != "checkpoint":
        raise CheckpointError(f"{os.fspath(path)!r} is not the checkpoint of a run; give the {FILE} of its folder")
    version = metadata.get("version")
    if type(version) is not int or version not in (1, VERSION):
        raise CheckpointError(
            f"{os.fspath(path)!r} is a checkpoint of version {version!r}, and this mlp_xp reads 1 to {VERSION}; "
            "update mlp_xp"
        )
    try:
        state = {name: dict(values) for name, values in metadata["state"].items()}
        for name, array in arrays.items():
            part, _, last = name.rpartition(".")
            state[part][last] = array
        settings, config = dict(metadata["settings"]), dict(metadata["config"])
        if version == 1:
            state, settings = _from_version_1(state, settings)
        versions = [dict(each) for each in metadata.get("versions", [])]
        snapshot = Snapshot(**state.pop("run"), optimizer=state.pop("optimizer"))
        history = state.pop("history")
        callbacks = [state.pop(f"callback.{i}") for i in range(len(state))]
        return Record(snapshot, history, callbacks, settings, config, versions)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{os.fspath(path)!r} does not describe a run: {error!r}") from None


def _from_version_1(state: dict[str, Any], settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return state and settings of a file of version 1 as version 2 has them."""
    score = "val_r2" if OUTPUTS[settings["model.output"]].task == "values" else "val_accuracy"
    history = {}
    for name, column in state["history"].items():
        name = score if name == "val_accuracy" else name
        history[name] = column.astype(np.int64 if name == "epoch" else np.float64)
    measured = [name for name in ("val_loss", score) if name in history]
    rest = {name.replace("stopping.", "callback.", 1): value for name, value in state.items() if name != "history"}
    settings = {"callbacks" if name == "early_stopping" else name: value for name, value in settings.items()}
    return {**rest, "history": {"order": measured, **history}}, settings


def check_same(folder: str | os.PathLike[str], then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise a ValueError that lists all the settings of the run in `folder` that are others now.

    Of those that a later version added, a run from before has the value that it went by.

    Any other settings that the run does not know came with a later version, too; they did not affect the run.
    """
    then = {name: value for name, value in _ADDED.items() if name in now} | dict(then)
    changed = [
        f"{brief(name)}: {brief(then[name])}, now {brief(now.get(name))}"
        for name in then
        if now.get(name) != then[name]
    ]
    if changed:
        raise ValueError(
            f"{folder} cannot be resumed with other settings than it was started with ({'; '.join(changed)}); "
            "leave them as they were, or start a new run in another folder"
        )
