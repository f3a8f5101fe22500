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
    for j, column in enumerate(few.T):
        values, counts = np.unique(column, return_counts=True)
        usual = values[counts.argmax()]
        if counts.max() > len(few) // _SHARE and _keeps_digits(usual, np.concatenate([column, near[:, j]])):
            background[j] = usual
    return background


def _keeps_digits(usual: float, column: _Matrix) -> bool:
    """Return whether the other values of a column are large enough, not counting the smallest one in _SHARE.

    Their median would not do: with two codes for "missing" it may be the other one.
    """
    sizes = np.sort(np.abs(column[column != usual]))
    return not len(sizes) or abs(float(usual)) <= _LARGEST * float(sizes[len(sizes) // _SHARE])


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
