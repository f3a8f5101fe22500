"""How outputs are read, and how well they agree with targets."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["accuracy", "r_squared", "read_outputs"]

_Array = np.ndarray[Any, Any]


def read_outputs(A: _Array, task: str) -> _Array:
    """A[L] (n, k) -> class labels (n,), or 0/1 labels or values (n, k). With one unit, (n,) for all."""
    if task == "classes":
        return np.asarray(A.argmax(axis=1))
    values = (A > 0).astype(np.int64) if task == "labels" else A
    return values[:, 0] if values.shape[1] == 1 else values


def accuracy(target: _Array, predicted: _Array) -> float:
    """(n,) or (n, k), twice -> the share of rows that are right, with all of their labels."""
    right = predicted == target
    return float(np.mean(right if right.ndim == 1 else right.all(axis=1)))


def r_squared(target: _Array, predicted: _Array) -> float:
    """(n,) or (n, k), twice -> the coefficient of determination R^2, in float64 and on average over the outputs.

    R^2 of an output is 1 - sum (y - p)^2 / sum (y - mean y)^2. As for ``sklearn.metrics.r2_score``, an output whose
    targets are constant counts as 1 if it is predicted exactly, and as 0 otherwise.
    """
    y, p = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (target, predicted))
    residual, total = np.sum((y - p) ** 2, axis=0), np.sum((y - np.mean(y, axis=0)) ** 2, axis=0)
    varies = total > 0
    share = np.where(varies, residual / np.where(varies, total, 1), residual != 0)
    return float(np.mean(1 - share))
