"""The door: samples of any kind become rows, once."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..devices import Device
from .checks import as_features
from .source import InMemory, Rows
from .stored import StoredRows, is_stored

__all__ = ["open_rows"]


def open_rows(X: Any, width: int, device: Device, dtype: str, pixels: bool | None = None) -> Rows:
    """Check samples (n, width) and return them as rows; rows that were opened before are returned as they are.

    Parameters
    ----------
    X, width, device, dtype, pixels
        As for :func:`mlp_xp.rows.checks.as_features`.

    Raises
    ------
    ValueError
        If X is empty, not two-dimensional, of the wrong width, not numeric, or holds NaN or infinity.
    TypeError
        If it is an array, or rows, of another device.
    """
    # the last test, which looks for each attribute, takes as long as to predict a row
    if type(X) is not np.ndarray and isinstance(X, InMemory | Rows):
        if X.shape[1] != width:
            raise ValueError(f"the rows have {X.shape[1]} columns, and the model takes {width}")
        if not X.pixels and not str(X.dtype).endswith(dtype):
            raise ValueError(f"the rows are of {X.dtype}, and the model computes in {dtype}; open them with this model")
        if X.home is not None and (X.home.xp, X.home.where) != (device.xp, device.where):
            raise TypeError(
                f"the rows are on device {X.home.name!r}, and the model computes on {device.name!r}; open them with "
                "this model"
            )
        return X
    if type(X) is not np.ndarray and is_stored(X):
        return StoredRows(X, width, dtype, pixels)
    X = as_features(X, width, device, dtype, pixels)
    return InMemory(X, None if type(X) is np.ndarray else device)
