"""The record every data set comes in, and the checks it has passed.

Legend: ``n`` rows (samples), ``d`` columns (inputs).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_LABEL = 65_535


class Dataset(NamedTuple):
    """Samples and their labels: ``X`` of shape (n, d), ``y`` of shape (n,)."""

    X: NDArray[Any]
    y: NDArray[Any]


def make_dataset(X: NDArray[Any], y: NDArray[Any], source: str) -> Dataset:
    """Check samples (n, ...) and labels (n,) or (n, 1) that were read from `source`, and make them a `Dataset`.

    ``X`` becomes (n, d): bytes stay ``uint8`` and floats stay floats. Other whole numbers become ``uint8`` where they
    are pixels, that is, between 0 and 255 with some above 127, else ``float32``. ``y`` becomes (n,), ``uint8`` where
    the labels fit, else ``int64``.

    Raises
    ------
    ValueError
        If the numbers of samples and labels differ or are 0, a sample is not finite, or a label is not a whole number
        from 0 to 65535.
    """
    if X.ndim == 0 or X.size == 0:
        raise ValueError(f"{source}: samples of shape {X.shape}; at least one row and one column are needed")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise ValueError(f"{source}: labels of shape {y.shape}; expected one label a row, (n,) or (n, 1)")
    if len(X) != len(y):
        raise ValueError(f"{source}: {len(X)} samples but {len(y)} labels; they must agree")
    return Dataset(_features(X.reshape(len(X), -1), source), _labels(y, source))


def split(data: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Shuffle the n rows by `seed` and part them: the last sixth, and at least one row, is for testing."""
    n = len(data.y)
    if n < 2:
        raise ValueError(f"{n} row cannot be parted into training and test data; at least 2 are needed")
    order = np.random.default_rng(seed).permutation(n)
    cut = n - max(1, n // 6)
    return Dataset(data.X[order[:cut]], data.y[order[:cut]]), Dataset(data.X[order[cut:]], data.y[order[cut:]])


def _features(X: NDArray[Any], source: str) -> NDArray[Any]:
    if X.dtype == np.uint8:
        return X
    if X.dtype.kind == "f":
        if not np.isfinite(X).all():
            row, column = np.argwhere(~np.isfinite(X))[0]
            raise ValueError(
                f"{source}: row {row}, column {column} of the samples (counted from 0) is {X[row, column]}; "
                "samples must be finite, so remove or fill such values"
            )
        return X if X.dtype in (np.float32, np.float64) else X.astype(np.float32)
    if X.min() >= 0 and 127 < X.max() <= 255:
        return X.astype(np.uint8)
    return X.astype(np.float32)


def _labels(y: NDArray[Any], source: str) -> NDArray[Any]:
    if y.dtype.kind == "f":
        y = y.astype(np.float64)  # in float16 the largest label is infinity
    fits = (y >= 0) & (y <= MAX_LABEL) & (y == np.trunc(y))
    if not fits.all():
        row = int(np.argmin(fits))
        raise ValueError(
            f"{source}: the label of row {row} (counted from 0) is {y[row]}; "
            f"labels are whole numbers from 0 to {MAX_LABEL}, the number of the class"
        )
    return y.astype(np.uint8 if y.max() < 256 else np.int64)
