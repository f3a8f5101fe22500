"""How much memory a training on the CPU will take, told before it begins.

Legend: ``n`` rows, ``d`` inputs, ``P`` parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..checks import check_count
from ..devices import NumpyDevice
from ..devices.blas_threads import default_threads
from ..dropout import check_dropout
from ..mlp import MLP
from ..optim import LBFGS, SGD, Optimizer
from ..rows.csr import CsrRows
from ..rows.plan import Plan
from ..rows.source import Rows
from ..rows.stored import WINDOW, StoredRows, come_in_blocks
from . import choose_plan
from .compiled import MARKED, SHARD, mask_bytes
from .compiled_program import buffer_widths, why_not
from .padded import Padded
from .reduce import groups_of

__all__ = ["estimate_memory"]

_COPIES = 5  # of the parameters: the model's, those to go back to, and what is being made of them
_SEARCHED = 10  # more by L-BFGS: a search's ends and gradients, its direction, and products in float64


def estimate_memory(
    model: MLP,
    X: Any,
    *,
    batch_size: int | None = None,
    optimizer: Optimizer | None = None,
    plan: str = "auto",
    epochs: int | None = None,
    threads: int | None = None,
    dropout: float | Sequence[float] = 0.0,
) -> int:
    """Return about how many bytes :func:`mlp_xp.fit` will take at most, beside the data that are in memory already.

    Parameters
    ----------
    model, X, batch_size, optimizer, plan, epochs, threads, dropout
        As for :func:`mlp_xp.fit`. Of a file that is mapped, the pages that the system keeps do not count: it takes
        them back when others need memory.

    Raises
    ------
    ValueError
        If an argument does not fit, or the model is not on the CPU.

    Examples
    --------
    >>> import mlp_xp as mx
    >>> train, test = mx.datasets.mnist()
    >>> 20e6 < estimate_memory(mx.MLP([784, 196, 10]), train.X, threads=2) < 60e6
    True
    """
    if not isinstance(model.device, NumpyDevice):
        raise ValueError(f"memory is estimated on device 'cpu', and the model is on {model.device.name!r}")
    optimizer = SGD() if optimizer is None else optimizer
    rates = (0.0, *check_dropout(dropout, len(model.sizes) - 2), 0.0)
    rows, threads = model.open(X), default_threads() if threads is None else check_count("threads", threads)
    if batch_size is not None:
        batch_size = min(check_count("batch_size", batch_size), rows.shape[0])
    chosen = choose_plan(rows, model, optimizer, plan, epochs, batch_size)
    item, P = np.dtype(model.dtype).itemsize, Padded(model).size
    state = sum(isinstance(value, np.ndarray) for value in optimizer.init(model.theta).values())
    copies = _COPIES + (_SEARCHED if isinstance(optimizer, LBFGS) else 0)
    parameters = item * P * (2 + state + copies)
    compiled = chosen.kind in ("dense", "sparse") and why_not(model, optimizer, rows, model.objective) is None
    work = _compiled if compiled else _numpy
    targets = 4 * rows.shape[0] if model.task == "classes" else item * rows.shape[0] * model.sizes[-1]
    copy = 0 if _is_in_place(X, rows) else rows.shape[0] * rows.shape[1] * rows.dtype.itemsize
    own = work(model, rows, chosen, batch_size, threads, rates)
    return int(parameters + targets + copy + _of_order(rows, batch_size) + own)


def _is_in_place(X: Any, rows: Rows) -> bool:
    """Return whether no array was made of the rows when they were opened."""
    return rows is X or isinstance(rows, StoredRows) or np.may_share_memory(np.asarray(X), rows.block(0, rows.shape[0]))


def _read(rows: Rows, count: int) -> int:
    """Return the bytes of so many rows, if rows are read from a file, or 0."""
    return int(count * rows.shape[1] * np.dtype(rows.dtype).itemsize) if come_in_blocks(rows) else 0


def _of_order(rows: Rows, batch_size: int | None) -> int:
    """Return the bytes for the order of the rows in mini-batches, and for the windows of a file that they come from."""
    n = rows.shape[0]
    return 0 if batch_size is None else 12 * n + _read(rows, 5 * min(n, WINDOW + batch_size))


def _compiled(
    model: MLP, rows: Rows, plan: Plan, batch_size: int | None, threads: int, rates: tuple[float, ...]
) -> int:
    """Return the bytes of the compiled library: see ``new`` in ``replay.c``."""
    (n, d), item, P = rows.shape, np.dtype(model.dtype).itemsize, Padded(model).size
    sparse, words = plan.kind == "sparse", -(-d // 64)
    capacity = -(-min(batch_size or SHARD, n) // 64) * 64
    frame = capacity * (item * (sum(buffer_widths(model, sparse, rows, rates)) + 1 + model.sizes[-1]) + 32)
    if sparse:
        frame += capacity * words * 8
    masks = 0
    if isinstance(rows, CsrRows):
        masks = mask_bytes(n, d) + n * (4 * words + 24)
    elif sparse and mask_bytes(n, d) <= MARKED and not come_in_blocks(rows):
        masks = mask_bytes(n, d)
    if batch_size is not None:
        return frame + masks
    groups = groups_of(-(-n // SHARD))
    return threads * frame + masks + groups * P * item + _read(rows, 3 * min(n, groups * SHARD))


def _numpy(model: MLP, rows: Rows, plan: Plan, batch_size: int | None, threads: int, rates: tuple[float, ...]) -> int:
    """Return the bytes of NumPy's engine: activations and their gradients, sums of groups, rows in a plan's order."""
    (n, d), item = rows.shape, np.dtype(model.dtype).itemsize
    size, P = batch_size or model.device.shard_rows, model.layout.size
    copied = (
        n * d * item
        if isinstance(rows, CsrRows)
        else 0
        if plan.columns is None
        else int(plan.mean_columns * n) * np.dtype(rows.dtype).itemsize
    )
    groups = groups_of(-(-n // size)) if batch_size is None else 1
    workers = min(threads, groups)
    dropped = sum(units for units, rate in zip(model.sizes, rates, strict=True) if rate)  # factors, products, hashes
    shards = workers * size * item * (d + 3 * sum(model.sizes[1:]) + 5 * dropped)
    return copied + groups * P * item + shards + (_read(rows, workers * size) if batch_size is None else 0)
