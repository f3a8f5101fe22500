"""What is trained on, and what is held out.

Legend: ``n`` rows, ``d`` inputs, ``k`` outputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import _check_sample_weight

from .arrays import on_host

__all__ = ["Data", "HeldOut", "as_columns", "check_row_weights"]

_Matrix = NDArray[Any]


class Data(NamedTuple):
    """Samples (n, d), targets (n, k), and the weights of rows (n,) or None."""

    X: Any
    y: Any
    weights: _Matrix | None


class HeldOut(NamedTuple):
    """Rows to stop early by, and their targets as the loss takes them."""

    data: Data
    targets: _Matrix


def as_columns(y: _Matrix) -> _Matrix:
    """(n,) or (n, k) -> (n, 1) or (n, k)."""
    return y.reshape(len(y), -1)


def check_row_weights(weights: Any, y: _Matrix) -> _Matrix | None:
    """Return the weights of rows (n,) on the host, in float64 or float32, if there are any."""
    return None if weights is None else np.asarray(_check_sample_weight(on_host(weights), y))
