"""The usual value of each column, so that data whose zeros are another number keep them.

Standardized images have one value wherever the paper was white. Stored as X - background, those entries are zero again,
and products leave them out: W x + b is W (x - background) + (b + W background), and dZᵀ X is
dZᵀ (X - background) + db backgroundᵀ.

The subtraction is exact only up to the rounding of the larger operand. Where the usual value is a code for "missing",
such as -9999 or 1e9, x - background would hold hardly a digit of x; such a column gets no background.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..params import Layout

__all__ = ["add_background", "remove_background", "usual_values"]

_Matrix = np.ndarray[Any, Any]

_LOOKED_AT = 256  # rows of a sample
_TOGETHER = 512  # columns of it, so that they stay in the cache
_SHARE = 8  # a value is usual if more than one in so many rows has it
_LARGEST = 16.0  # times the size of the others, but for the smallest in _SHARE: the background costs four bits at most


def usual_values(sample: _Matrix, run: _Matrix | None = None) -> _Matrix:
    """Return each column's usual value (d,); zero if none is usual, if it would cost digits, and for integers.

    Parameters
    ----------
    sample : array (m, d)
        Rows from all over the data.
    run : array (m, d), optional
        Rows that follow each other. Where every other row lacks a value, a sample at regular distances may not show it.
    """
    background = np.zeros(sample.shape[1], sample.dtype)
    if sample.dtype.kind != "f":
        return background
    few, near = sample[:: max(1, len(sample) // _LOOKED_AT)], (sample if run is None else run)[:_LOOKED_AT]
    for i in range(0, len(background), _TOGETHER):
        columns = np.ascontiguousarray(few[:, i : i + _TOGETHER].T)
        usual, counts = _most_frequent(columns)
        found = i + np.flatnonzero((counts > len(few) // _SHARE) & (usual != 0))
        if len(found):
            columns = np.concatenate([few[:, found], near[:, found]]).T
            background[found] = np.where(_keep_digits(usual[found - i], columns), usual[found - i], 0)
    return background


def _most_frequent(columns: _Matrix) -> tuple[_Matrix, _Matrix]:
    """Return the most frequent value of each row of `columns` (d, m), the least of several, and its count, (d,)."""
    columns = np.sort(columns, axis=1)
    place = np.arange(columns.shape[1], dtype=np.int32)
    begins = np.zeros(columns.shape, np.int32)  # where the run of equal values begins that a place belongs to
    np.multiply(columns[:, 1:] != columns[:, :-1], place[1:], out=begins[:, 1:])
    lengths = place - np.maximum.accumulate(begins, axis=1, out=begins)
    last = lengths.argmax(axis=1)[:, None]
    return np.take_along_axis(columns, last, axis=1)[:, 0], np.take_along_axis(lengths, last, axis=1)[:, 0] + 1


def _keep_digits(usual: _Matrix, columns: _Matrix) -> _Matrix:
    """Return for each row of `columns` (d, m) whether its values other than the usual one (d,) are large enough.

    The smallest one in _SHARE does not count. Their median would not do: with two codes for "missing" it may be the
    other one.
    """
    usual = usual[:, None]
    others = columns != usual
    sizes = np.sort(np.where(others, np.abs(columns), np.inf), axis=1)
    least = np.take_along_axis(sizes, others.sum(axis=1, keepdims=True) // _SHARE, axis=1)  # infinite: no others
    return (np.abs(usual.astype(np.float64)) <= _LARGEST * least.astype(np.float64))[:, 0]


def remove_background(theta: _Matrix, layout: Layout, background: _Matrix) -> _Matrix:
    """Return parameters (P,) that give X - background the outputs that `theta` gives X."""
    theta = theta.copy()
    params = layout.split(theta)
    params.b[1][:] += params.W[1] @ background
    return theta


def add_background(gradient: _Matrix, layout: Layout, background: _Matrix) -> None:
    """Make a gradient (P,) that was computed from X - background that of X, in place."""
    dW, db = layout.split(gradient)
    dW[1][:] += np.outer(db[1], background)
