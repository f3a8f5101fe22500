"""Where a training run is, and whether another can go on from there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .checks import brief
from .mlp import MLP
from .optim import Optimizer
from .rows.plan import PLANS

__all__ = ["Snapshot", "check_snapshot"]

_MOST = 2**53  # of any count: what a float holds exactly


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Where a training run is: arrays of the host, in the order of the data, and numbers.

    Attributes
    ----------
    epoch : int
        Epochs that are over.
    update : int
        Updates done of the epoch after these.
    rows, loss_sum, seconds : int, float, float
        Rows that these updates saw, the sum of their losses, and the time they took.
    theta : array (P,)
    optimizer : dict of str to array (P,) or number
        State of the optimizer.
    plan : str
        Kind of the plan, as it was chosen.
    """

    epoch: int
    update: int
    rows: int
    loss_sum: float
    seconds: float
    theta: np.ndarray[Any, Any]
    optimizer: dict[str, Any]
    plan: str


def check_snapshot(start: Snapshot, model: MLP, optimizer: Optimizer, rows: int, batch_size: int | None) -> None:
    """Raise a ValueError unless a training of this model, with this optimizer, can go on from `start`.

    Parameters
    ----------
    start : Snapshot
        Of a run, or read from a file, where it may hold anything.
    model : MLP
    optimizer : Optimizer
    rows : int
        Rows of the training data.
    batch_size : int, optional
        Rows per update; None takes all.
    """
    for name in ("epoch", "update", "rows"):
        if not _is_count(getattr(start, name)):
            raise ValueError(f"start has {name} {brief(getattr(start, name))}; it must be a whole number below 2^53")
    for name in ("loss_sum", "seconds"):
        if not _is_real(getattr(start, name)):
            raise ValueError(f"start has {name} {brief(getattr(start, name))}; it must be a finite number")
    batch = rows if batch_size is None else min(batch_size, rows)
    if start.rows != start.update * batch or start.rows >= rows:
        raise ValueError(
            f"start is after update {start.update} with {start.rows} rows, and an epoch of {rows} rows in batches of "
            f"{batch} has no such place; use the data and the batch size it was taken with"
        )
    if start.seconds < 0 or (start.update == 0 and (start.loss_sum or start.seconds)):
        raise ValueError("start has a loss or a duration that nothing in its epoch can have; use it as it was taken")
    if start.plan not in PLANS[1:]:
        raise ValueError(f"start has the plan {brief(start.plan)}; it must be one of {', '.join(map(repr, PLANS[1:]))}")
    _check_vector("theta", start.theta, model)
    _check_optimizer(start.optimizer, model, optimizer)


def _check_optimizer(state: Any, model: MLP, optimizer: Optimizer) -> None:
    kind = type(optimizer).__name__
    with model.device.active():
        fresh = optimizer.init(model.theta)
    if not isinstance(state, dict) or state.keys() != fresh.keys():
        found, wanted = (", ".join(names) or "nothing" for names in (map(str, state), fresh))
        raise ValueError(f"start has an optimizer that keeps {brief(found)}, and {kind} keeps {wanted}; use the same")
    for name, value in fresh.items():
        if not isinstance(value, int | float):
            _check_vector(name, state[name], model)
        elif not (_is_count(state[name]) if isinstance(value, int) else _is_real(state[name])):
            raise ValueError(f"start has {name} {brief(state[name])}, which the state of {kind} cannot have")


def _check_vector(name: str, value: Any, model: MLP) -> None:
    size = model.layout.size
    if not isinstance(value, np.ndarray) or value.shape != (size,):
        shape = value.shape if isinstance(value, np.ndarray) else type(value).__name__
        raise ValueError(f"start has {name} of shape {shape}, and the model has {size} parameters; use the same model")
    if value.dtype != model.dtype:
        raise ValueError(f"start has {name} of {value.dtype}, and the model computes in {model.dtype}; use the same")
    if not np.isfinite(value).all():
        raise ValueError(f"start has {name} with values that are NaN or infinite; take a start from before")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_real(value: Any) -> bool:
    return _is_count(value) or (type(value) is float and math.isfinite(value))
