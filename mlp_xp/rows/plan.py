"""The plan: how the rows and columns of a data set are stored, so that products by zero are left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import check_choice
from ..devices import Array, Device
from ..mlp import MLP

__all__ = ["PLANS", "Plan", "make_plan"]

PLANS = ("auto", "dense", "zero", "ragged")
_SAMPLE = 8192  # rows from which the order of the columns is decided
_BLOCK = 4096  # rows that are looked at together
_FEW_EPOCHS = {"cpu": 8, "cuda": 1000}  # do not repay the sorting; for a GPU, an estimate


@dataclass(frozen=True)
class Plan:
    """How the rows and columns of a data set are stored; the sums over them stay what they were.

    Attributes
    ----------
    kind : {"dense", "zero", "ragged"}
        ``dense``: as given. ``zero``: columns that are zero in all rows come last and are left out. ``ragged``: columns
        that few rows use come last, and each shard of rows with similar needs is stored up to the last one it uses.
    reason : str
        Why this kind was chosen, in words.
    columns : array (d,), optional
        The order of the columns; None where they stay as they are.
    extents : array (n,), optional
        How many columns of that order each row needs.
    mean_columns : float
        Columns that take part in the products, averaged over rows.
    background : array (d,), optional
        The usual value of each column, in the order of the data, where that is not zero, as in standardised images.
        What is stored is X - background; :class:`mlp_xp.engines.shards.BackgroundExecutor` makes good for it.
    """

    kind: str
    reason: str
    mean_columns: float
    columns: np.ndarray[Any, Any] | None = None
    extents: np.ndarray[Any, Any] | None = None
    background: np.ndarray[Any, Any] | None = None

    def inward(self, theta: Array, model: MLP) -> Array:
        """Return a copy of a vector of parameters (P,) with the first layer's inputs in the order of the plan."""
        return self._reorder(theta, model, self.columns)

    def outward(self, theta: Array, model: MLP) -> Array:
        """Return a copy of a vector of parameters (P,) in the order of the data: the inverse of :meth:`inward`."""
        return self._reorder(theta, model, None if self.columns is None else np.argsort(self.columns))

    def _reorder(self, theta: Array, model: MLP, columns: np.ndarray[Any, Any] | None) -> Array:
        xp = model.device.xp
        if columns is None:
            return xp.asarray(theta, copy=True)
        block, (d, h) = model.layout.blocks[0], model.sizes[:2]
        rows = model.device.asarray(np.concatenate([[0], 1 + columns]))
        first = xp.take(xp.reshape(theta[block], (1 + d, h)), rows, axis=0)
        return xp.concat([xp.reshape(first, (-1,)), theta[block.stop :]])


def make_plan(
    X: Array, model: MLP, kind: str = "auto", epochs: int | None = None, batch_size: int | None = None
) -> Plan:
    """Look at the data once and choose how to store it.

    Parameters
    ----------
    X : array (n, d)
    model : MLP
    kind : {"auto", "dense", "zero", "ragged"}
        ``"auto"`` takes the ragged plan where it leaves out enough products by zero to be repaid within `epochs`.
    epochs : int, optional
        How often the data will be passed over; None for often.
    batch_size : int, optional
        Rows that meet at random in a mini-batch; None for shards of sorted rows.

    Raises
    ------
    ValueError
        If the kind is unknown, or not to be had on the model's device.
    """
    check_choice("plan", kind, PLANS)
    n, d = X.shape
    if kind == "dense":
        return Plan("dense", "asked for", d)
    device = model.device
    if device.library not in _FEW_EPOCHS:
        if kind == "auto":
            return Plan("dense", f"device {device.name!r} takes the data as they are", d)
        raise ValueError(f"plan {kind!r} is there on the devices 'cpu' and 'cuda'; use plan='auto' or 'dense'")
    if kind == "auto" and device.library == "cuda" and batch_size is not None:
        return Plan("dense", "a GPU waits for mini-batches, not for their products", d)
    if kind == "auto" and epochs is not None and epochs < _FEW_EPOCHS[device.library]:
        return Plan("dense", f"{epochs} epochs do not repay the sorting", d)
    sample = device.to_host(X[:: max(1, n // _SAMPLE), :])
    zeros = np.zeros(d, sample.dtype)
    background = _background(sample) if batch_size is None and device.library == "cpu" else zeros
    if kind == "zero":
        used = np.any([np.any(block != background, axis=0) for block in _blocks(X, device)], axis=0)
        columns = np.argsort(~used, kind="stable")
        extents = np.full(n, int(used.sum()))
    else:
        columns = _column_order(sample != background)
        if kind == "auto":
            expected = _mean_extent(
                np.sort(_extents([sample], background, columns))[::-1], max(1, device.block_rows * len(sample) // n)
            )
            if expected > 0.85 * d:
                return Plan("dense", f"rows need {expected:.0f} of {d} columns in the mean, too many to sort for", d)
        extents = _extents(_blocks(X, device), background, columns)
    mean = _mean_extent(np.sort(extents)[::-1], device.block_rows)
    reason = f"rows need {mean:.0f} of {d} columns in the mean" if kind == "auto" else "asked for"
    name = "zero" if kind == "zero" else "ragged"
    return Plan(name, reason, mean, columns, extents, background if background.any() else None)


def _blocks(X: Array, device: Device) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the rows of X on the host, so many at a time as are worth it."""
    for i in range(0, X.shape[0], _BLOCK):
        yield device.to_host(X[i : min(i + _BLOCK, X.shape[0]), :])


def _background(sample: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return each column's most common value (d,); zero where none is common, and for integers."""
    background = np.zeros(sample.shape[1], sample.dtype)
    if sample.dtype.kind == "f":
        few = sample[:: max(1, len(sample) // 256)]
        for j, column in enumerate(few.T):
            values, counts = np.unique(column, return_counts=True)
            if counts.max() > len(few) // 8:
                background[j] = values[counts.argmax()]
    return background


def _column_order(used: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Order the columns of a mask (n, d) so that short prefixes hold whole rows.

    The column that fewest rows use goes last, before it the one that fewest of the other rows use, and so on.
    """
    by_column = np.asfortranarray(used)
    users = used.sum(axis=0)
    open_rows = np.ones(len(used), dtype=bool)
    order = np.empty(used.shape[1], dtype=np.intp)
    for position in range(used.shape[1] - 1, -1, -1):
        column = order[position] = users.argmin()
        closed = np.flatnonzero(by_column[:, column] & open_rows)
        open_rows[closed] = False
        users -= used[closed].sum(axis=0)
        users[column] = len(used) + 1 << 1  # placed: never the fewest again
    return order


def _extents(
    blocks: Iterable[np.ndarray[Any, Any]], background: np.ndarray[Any, Any], columns: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return for each row (n,) how many columns of this order reach its last one that differs from the background."""
    last_first, found = columns[::-1], []
    for block in blocks:
        used = block.take(last_first, axis=1) != background[last_first]
        found.append(np.where(used.any(axis=1), len(columns) - used.argmax(axis=1), 0))
    return np.concatenate(found)


def _mean_extent(descending: np.ndarray[Any, Any], rows: int) -> float:
    """Return the mean over rows of the widest extent in their shard."""
    widest = descending[::rows]
    counts = np.diff(np.append(np.arange(0, len(descending), rows), len(descending)))
    return float((widest * counts).sum() / len(descending))
