"""The file of a checkpoint: what is in it, and that it is what it says.

A run has one file, and everything is in it. Two files could be of different moments after a crash; this one is
replaced as a whole, once the new one has been written, flushed and verified (:mod:`mlp_xp.files.atomic`). That holds
for the best parameters too: they are part of the state of early stopping, and a file of their own could contradict it.

The format, version 1
---------------------
A :mod:`mlp_xp.files.tensors`. Its metadata are ``kind``, ``version``, ``settings`` and ``config`` (:class:`Saved`), and
``state``, which holds records by name: ``run`` and ``optimizer`` (:class:`Snapshot`), ``history``, and ``stopping.0``
and so on. Arrays of a record are tensors, named ``run.theta``, ``optimizer.mean``, ``history.loss``,
``stopping.0.theta``: parameters and what goes with them as (P,), columns of the history as (epochs,).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..callbacks import EarlyStopping, History
from ..files import tensors as tensor_file
from ..files.tensors import CheckpointError
from ..loop import Snapshot
from ..mlp import MLP
from ..optim import Optimizer

__all__ = ["FILE", "Saved", "fits", "read", "write"]

FILE = "checkpoint.safetensors"
VERSION = 1


class Saved(NamedTuple):
    """The content of a checkpoint file."""

    snapshot: Snapshot
    history: dict[str, np.ndarray[Any, Any]]
    stopping: list[dict[str, Any]]
    settings: dict[str, Any]
    config: dict[str, Any]


def write(path: str | os.PathLike[str], saved: Saved) -> None:
    """Write a checkpoint file, all or nothing; see :func:`mlp_xp.files.tensors.save`."""
    run = vars(saved.snapshot)
    records = {
        "run": {name: value for name, value in run.items() if name != "optimizer"},
        "optimizer": run["optimizer"],
        "history": saved.history,
        **{f"stopping.{i}": state for i, state in enumerate(saved.stopping)},
    }
    arrays: dict[str, Any] = {}
    state: dict[str, dict[str, Any]] = {}
    for record, values in records.items():
        state[record] = {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
        arrays |= {f"{record}.{name}": value for name, value in values.items() if isinstance(value, np.ndarray)}
    own = {"kind": "checkpoint", "version": VERSION, "settings": saved.settings, "config": saved.config}
    tensor_file.save(path, arrays, {**own, "state": state})


def read(path: str | os.PathLike[str]) -> Saved:
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
        raise CheckpointError(f"{os.fspath(path)!r} is no checkpoint of a run; give the {FILE} of its folder")
    if metadata.get("version") != VERSION:
        found = metadata.get("version")
        raise CheckpointError(
            f"{os.fspath(path)!r} is a checkpoint of version {found!r}, and this mlp_xp reads {VERSION}; update mlp_xp"
        )
    try:
        records = {name: dict(values) for name, values in metadata["state"].items()}
        for name, array in arrays.items():
            record, _, last = name.rpartition(".")
            records[record][last] = array
        snapshot = Snapshot(**records.pop("run"), optimizer=records.pop("optimizer"))
        history = records.pop("history")
        stopping = [records.pop(f"stopping.{i}") for i in range(len(records))]
        return Saved(snapshot, history, stopping, dict(metadata["settings"]), dict(metadata["config"]))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{os.fspath(path)!r} does not describe a run: {error!r}") from None


def fits(saved: Saved, model: MLP, optimizer: Optimizer, history: History, stoppings: Sequence[EarlyStopping]) -> bool:
    """Return whether every value of the state is of the type, the dtype and the shape that it has to have."""
    run = saved.snapshot
    fresh = optimizer.init(model.theta)
    if run.optimizer.keys() != fresh.keys() or len(saved.stopping) != len(stoppings):
        return False
    numbers = [name for name, value in fresh.items() if isinstance(value, int | float)]
    vectors = [run.theta, *(value for name, value in run.optimizer.items() if name not in numbers)]
    counts = [run.epoch, run.update, run.rows, *(run.optimizer[name] for name in numbers)]
    reals = [run.loss_sum, run.seconds]
    for state in saved.stopping:
        if not {"best", "best_epoch", "waited"} <= state.keys() <= {"best", "best_epoch", "waited", "theta"}:
            return False
        counts += [state["best_epoch"], state["waited"]]
        reals.append(state["best"])
        vectors += [state["theta"]] if "theta" in state else []
    return (
        all(_is_vector(value, model.layout.size) and value.dtype == model.dtype for value in vectors)
        and all(type(value) is int and value >= 0 for value in counts)
        and all(type(value) in (int, float) for value in reals)
        and all(_is_vector(column, run.epoch) for column in saved.history.values())
        and saved.history.keys() == history.columns().keys()
    )


def _is_vector(value: Any, length: int) -> bool:
    return isinstance(value, np.ndarray) and value.shape == (length,)
