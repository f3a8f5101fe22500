"""The plan: how the rows and columns of a data set are stored, so that products by zero are left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import Array
from .mlp import MLP
from .validation import check_choice

__all__ = ["PLANS", "Plan", "make_plan"]

PLANS = ("auto", "dense", "zero", "ragged")
_SAMPLE = 8192  # rows from which the order of the columns is decided


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
        What is stored is X - background; :class:`mlp_xp.shards.BackgroundExecutor` makes good for it.
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
        If the kind is unknown, or needs the data on the host and they are elsewhere.
    """
    check_choice("plan", kind, PLANS)
    d = X.shape[1]
    if kind == "dense":
        return Plan("dense", "asked for", d)
    if not isinstance(X, np.ndarray) or model.device.library != "cpu":
        if kind == "auto":
            return Plan("dense", f"device {model.device.name!r} takes the data as they are", d)
        raise ValueError(f"plan {kind!r} needs data and model on device 'cpu'; use plan='auto' or 'dense'")
    if kind == "auto" and epochs is not None and epochs < 8:
        return Plan("dense", f"{epochs} epochs do not repay the sorting", d)
    sample = X[:: max(1, X.shape[0] // _SAMPLE)]
    background = _background(sample) if batch_size is None else np.zeros(d, X.dtype)
    if kind == "zero":
        used = np.not_equal(X, background).any(axis=0)
        columns = np.argsort(~used, kind="stable")
        extents = np.full(len(X), int(used.sum()))
    else:
        columns = _column_order(sample != background)
        if kind == "auto":
            expected = _mean_extent(
                np.sort(_extents(sample, background, columns))[::-1],
                max(1, model.device.shard_rows * len(sample) // len(X)),
            )
            if expected > 0.85 * d:
                return Plan("dense", f"rows need {expected:.0f} of {d} columns in the mean, too many to sort for", d)
        extents = _extents(X, background, columns)
    mean = _mean_extent(np.sort(extents)[::-1], model.device.shard_rows)
    reason = f"rows need {mean:.0f} of {d} columns in the mean" if kind == "auto" else "asked for"
    name = "zero" if kind == "zero" else "ragged"
    return Plan(name, reason, mean, columns, extents, background if background.any() else None)


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
    X: np.ndarray[Any, Any], background: np.ndarray[Any, Any], columns: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return for each row (n,) how many columns of this order reach its last one that differs from the background."""
    extents = np.empty(len(X), dtype=np.intp)
    last_first = columns[::-1]
    for i in range(0, len(X), 4096):
        used = X[i : i + 4096].take(last_first, axis=1) != background[last_first]
        extents[i : i + 4096] = np.where(used.any(axis=1), X.shape[1] - used.argmax(axis=1), 0)
    return extents


def _mean_extent(descending: np.ndarray[Any, Any], rows: int) -> float:
    """Return the mean over rows of the widest extent in their shard."""
    widest = descending[::rows]
    counts = np.diff(np.append(np.arange(0, len(descending), rows), len(descending)))
    return float((widest * counts).sum() / len(descending))
