"""The plan: how the rows and columns of a data set are stored, so that products by zero are left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import check_choice
from ..devices import Array, Device
from ..mlp import MLP
from .background import usual_values
from .csr import CsrRows
from .source import Rows
from .stored import StoredRows

__all__ = ["PLANS", "Plan", "make_plan"]

PLANS = ("auto", "dense", "sparse", "zero", "ragged")
_SAMPLE = 8192  # rows from which the order of the columns is decided
_NUMBERS = 2**23  # in these rows, so that many columns take no longer: fewer rows, but no fewer than _LEAST
_LEAST = 256
_BLOCK = 4096  # rows that are looked at together
_WORTH_SKIPPING = 0.5  # of the columns, used by a row on average: from 0.6 on, BLAS has multiplied by all zeros sooner
_WORTH = 0.85  # of the columns, on average: a plan that needs more of them is not worth sorting the rows


@dataclass(frozen=True, eq=False)
class Plan:
    """How the rows and columns of a data set are stored; the sums over them stay what they were.

    Attributes
    ----------
    kind : {"dense", "sparse", "zero", "ragged"}
        ``dense``: as given. ``sparse``: as given, and zeros are skipped one by one. ``zero``: columns that are zero in
        all rows come last and are left out. ``ragged``: columns that few rows use come last, and each shard of rows
        with similar needs is stored up to the last one it uses.
    reason : str
        Why this kind was chosen, in words.
    mean_columns : float
        Columns that take part in the products, averaged over rows.
    columns : array (d,), optional
        The order of the columns; None if they stay as they are.
    extents : array (n,), optional
        How many columns of that order each row needs.
    background : array (d,), optional
        The usual value of each column, in the order of the data, if it is not zero, as in standardized images; see
        :mod:`mlp_xp.rows.background`. What is stored is X - background; a sparse plan stores X, and skips its entries
        that are the background.
    """

    kind: str
    reason: str
    mean_columns: float
    columns: np.ndarray[Any, Any] | None = None
    extents: np.ndarray[Any, Any] | None = None
    background: np.ndarray[Any, Any] | None = None

    @property
    def order(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The columns and extents of a plan that has them."""
        assert self.columns is not None
        assert self.extents is not None
        return self.columns, self.extents

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
    rows: Rows, device: Device, kind: str = "auto", epochs: int | None = None, batch_size: int | None = None,
    skips: bool = False,
) -> Plan:  # fmt: skip
    """Look at the data once and choose how to store them.

    Parameters
    ----------
    rows : Rows
    device : Device
        Where they will be trained on.
    kind : {"auto", "dense", "sparse", "zero", "ragged"}
        ``"auto"`` takes the sparse plan if the engine skips zeros and there are enough of them. An engine that does not
        has the ragged plan if that leaves out enough products by zero to pay for itself within `epochs`.
    epochs : int, optional
        How often the data will be passed over; None for often.
    batch_size : int, optional
        Rows that meet at random in a mini-batch; None for shards of sorted rows.
    skips : bool
        Whether the engine can skip zeros one by one.

    Raises
    ------
    ValueError
        If the kind is unknown, or not available on the device.
    """
    check_choice("plan", kind, PLANS)
    if isinstance(rows, CsrRows):
        return _plan_of_stored(rows, kind, skips)
    d, repay = rows.shape[1], device.epochs_to_repay_plan
    if kind == "dense":
        return Plan("dense", "asked for", d)
    if kind == "sparse" and not skips:
        raise ValueError("plan 'sparse' takes the compiled library, which cannot train this here; use plan='auto'")
    if skips and kind in ("auto", "sparse"):
        return _sparse_plan(rows, device, kind, epochs, batch_size)
    if isinstance(rows, StoredRows):
        if kind == "auto":
            return Plan("dense", "rows that stay in a file are not sorted", d)
        raise ValueError(f"plan {kind!r} would copy rows that stay in a file; use plan='auto' or 'dense'")
    if repay is None:
        if kind == "auto":
            return Plan("dense", f"device {device.name!r} takes the data as they are", d)
        raise ValueError(f"plan {kind!r} is not available on device {device.name!r}; use plan='auto' or 'dense'")
    if kind == "auto" and batch_size is not None and not device.plans_on_host:
        return Plan("dense", "a GPU waits for mini-batches, not for their products", d)
    if kind == "auto" and epochs is not None and epochs < repay:
        return Plan("dense", f"{epochs} epochs do not repay the sorting", d)
    sample = _sample_of(rows)
    corrects = batch_size is None and device.plans_on_host  # once an update: elsewhere it costs more than it saves
    background = usual_values(sample, next(_blocks(rows))) if corrects else np.zeros(d, sample.dtype)
    if kind == "zero":
        return _zero_plan(rows, background)
    return _ragged_plan(rows, sample, background, device.block_rows, kind == "auto")


def _plan_of_stored(rows: CsrRows, kind: str, skips: bool) -> Plan:
    n, d = rows.shape
    if skips and kind in ("auto", "sparse"):
        return Plan("sparse", "given in compressed form", len(rows.columns) / n)
    if kind == "auto":
        return Plan("dense", "the compiled library, which skips what is not stored, cannot train this here", d)
    raise ValueError(f"plan {kind!r} is not available for rows in compressed form; use 'auto', or pass X.toarray()")


def _sparse_plan(rows: Rows, device: Device, kind: str, epochs: int | None, batch_size: int | None) -> Plan:
    """Return the plan whose zeros are skipped, unless there are too few of them or a background pays better."""
    d, sample = rows.shape[1], _sample_of(rows)
    background, needed = None, _needed(sample != 0)
    found = f"{needed:.0f} of {d} numbers in a row are not zero"
    if needed > _WORTH_SKIPPING * d and (usual := usual_values(sample, next(_blocks(rows)))).any():
        background, needed = usual, _needed(sample != usual)
        found = f"{needed:.0f} of {d} numbers in a row are not the usual value of their column"
    if kind == "sparse" or needed <= _WORTH_SKIPPING * d:
        reason = "asked for" if kind == "sparse" else found
        return Plan("sparse", reason, needed, background=background)
    if batch_size is None and background is not None:
        return make_plan(rows, device, "auto", epochs, batch_size)
    return Plan("dense", f"{found}, too many to skip the others one by one", d)


def _needed(used: np.ndarray[Any, Any]) -> float:
    """Return how many columns of a mask (n, d) a row uses on average."""
    return float(used.sum(axis=1).mean())


def _zero_plan(rows: Rows, background: np.ndarray[Any, Any]) -> Plan:
    used = np.any([np.any(block != background, axis=0) for block in _blocks(rows)], axis=0)
    extents = np.full(rows.shape[0], int(used.sum()))
    return _stored("zero", "asked for", int(used.sum()), np.argsort(~used, kind="stable"), extents, background)


def _ragged_plan(
    rows: Rows, sample: np.ndarray[Any, Any], background: np.ndarray[Any, Any], block_rows: int, auto: bool
) -> Plan:
    (n, d), used = rows.shape, sample != background
    if auto and used.mean() > _WORTH:  # so is the extent of a row, which is no less than the columns that it uses
        return _too_wide(used.mean() * d, d)
    columns = _column_order(used)
    if auto:
        in_sample = np.sort(_extents([sample], background, columns))[::-1]
        expected = _mean_extent(in_sample, max(1, block_rows * len(sample) // n))
        if expected > _WORTH * d:
            return _too_wide(expected, d)
    extents = _extents(_blocks(rows), background, columns)
    mean = _mean_extent(np.sort(extents)[::-1], block_rows)
    if auto and mean > _WORTH * d:  # a small sample of many columns promises too much
        return _too_wide(mean, d)
    reason = f"rows need {mean:.0f} of {d} columns on average" if auto else "asked for"
    return _stored("ragged", reason, mean, columns, extents, background)


def _too_wide(needed: float, d: int) -> Plan:
    return Plan("dense", f"rows need {needed:.0f} of {d} columns on average, too many to sort for", d)


def _stored(kind: str, reason: str, mean: float, columns: Any, extents: Any, background: np.ndarray[Any, Any]) -> Plan:
    return Plan(kind, reason, mean, columns, extents, background if background.any() else None)


def _sample_of(rows: Rows) -> np.ndarray[Any, Any]:
    """Return rows from all over the data, on the host."""
    n, d = rows.shape
    count = min(_SAMPLE, max(_LEAST, _NUMBERS // d))
    step = max(1, n // count)
    if isinstance(rows, StoredRows):
        return np.asarray(rows.take(np.arange(0, n, step)))
    return _on_host(rows, rows.block(0, n)[::step, :])


def _blocks(rows: Rows) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the rows on the host, as many at a time as are worth it."""
    for i in range(0, rows.shape[0], _BLOCK):
        yield _on_host(rows, rows.block(i, i + _BLOCK))


def _on_host(rows: Rows, X: Array) -> np.ndarray[Any, Any]:
    return np.asarray(X if rows.home is None else rows.home.to_host(X))


def _column_order(used: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Order the columns of a mask (n, d) so that short prefixes hold whole rows.

    The column that fewest rows use goes last, before it the one that fewest of the other rows use, and so on.
    """
    by_column = np.asfortranarray(used)
    order: list[Any] = []  # the last one first
    users = used.sum(axis=0)
    open_rows = np.ones(len(used), dtype=bool)
    while len(order) < used.shape[1]:
        unused = np.flatnonzero(users == 0)
        if len(unused):  # by no open row: they are next, and close none
            order += unused.tolist()
            users[unused] = len(used) + 1  # placed: never the fewest again
            continue
        column = users.argmin()
        closed = np.flatnonzero(by_column[:, column] & open_rows)
        open_rows[closed] = False
        users -= used[closed].sum(axis=0)
        users[column] = len(used) + 1
        order.append(column)
    return np.array(order[::-1], dtype=np.intp)


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
