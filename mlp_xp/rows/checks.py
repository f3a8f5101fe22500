"""Samples and targets are checked once, when they come in."""

from __future__ import annotations

from typing import Any

import array_api_compat as compat
import numpy as np

from ..devices import Array, Device

__all__ = ["as_features", "as_targets"]


def as_features(X: Any, width: int, device: Device, dtype: str) -> Array:
    """Return `X` (n, width), on the host or the device, wherever it is: uint8 as it is, else finite numbers of a dtype.

    Raises
    ------
    ValueError
        If it is empty, not two-dimensional, of the wrong width, not numeric, or holds NaN or infinity.
    TypeError
        If it is an array of another device.
    """
    if not compat.is_array_api_obj(X):
        X = _to_numpy(X, "X")
    if X.ndim != 2 or X.shape[1] != width or X.shape[0] == 0:
        raise ValueError(f"X must have the shape (n, {width}) with n >= 1, got {tuple(X.shape)}")
    # BLAS reads rows of unit stride
    X = np.ascontiguousarray(_to_numpy(X, "X")) if compat.is_numpy_array(X) else device.asarray(X)
    xp = compat.array_namespace(X)
    if X.dtype == xp.uint8:
        return X
    with np.errstate(over="ignore"):  # what the dtype cannot hold becomes infinite, and is found right here
        X = xp.astype(X, getattr(xp, dtype), copy=False)
    _check_finite(X, xp, 4096 if compat.is_numpy_array(X) else device.shard_rows)
    return X


def as_targets(y: Any, task: str, n: int, units: int, device: Device, dtype: str) -> np.ndarray[Any, Any]:
    """Return the targets on the host: int32 labels (n,) where the task is ``"classes"``, numbers (n, units) else.

    Raises
    ------
    ValueError
        If there are not n rows, a label is out of range or not whole, or a value is NaN or infinite.
    """
    on_device = compat.is_array_api_obj(y) and not compat.is_numpy_array(y)
    host = _to_numpy(device.to_host(device.asarray(y)) if on_device else y, "y")
    if host.shape[:1] != (n,):
        raise ValueError(f"X has {n} rows and y has the shape {host.shape}; give one target per row")
    if task == "classes":
        return _labels(host, units).astype(np.int32)
    if host.shape != (n, units) and not (units == 1 and host.shape == (n,)):
        wanted = f"({n}, {units})" + (f" or ({n},)" if units == 1 else "")
        raise ValueError(f"an output of {units} unit(s) needs y of shape {wanted}, got {host.shape}")
    with np.errstate(over="ignore"):
        host = host.astype(dtype)
    if not np.isfinite(host).all():
        raise ValueError("y holds NaN or infinity; targets must be finite numbers")
    if task == "labels" and not ((host == 0) | (host == 1)).all():
        raise ValueError(f"yes-or-no outputs need targets 0 or 1, got values from {host.min()} to {host.max()}")
    return host.reshape(n, units)


def _labels(y: np.ndarray[Any, Any], k: int) -> np.ndarray[Any, Any]:
    """Labels (n,) or one-hot rows (n, k) -> labels (n,) from 0 to k - 1."""
    if y.ndim == 2 and y.shape[1] == k and k > 1:
        if not (((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all()):
            raise ValueError("two-dimensional y must be one-hot: each row a single 1 among zeros")
        return np.asarray(y.argmax(axis=1))
    if y.ndim != 1:
        raise ValueError(f"y must be labels of shape (n,) or one-hot rows of shape (n, {k}), got {y.shape}")
    if y.dtype.kind not in "biu":
        raise ValueError(f"labels must be whole numbers from 0 to {k - 1}, got dtype {y.dtype}; try y.astype(int)")
    if y.min() < 0 or y.max() >= k:
        raise ValueError(f"labels must lie between 0 and {k - 1}, got {y.min()} to {y.max()}; are there {k} classes?")
    return y


def _to_numpy(x: Any, name: str) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{name} is not a rectangular array of numbers ({error})") from None
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold real numbers, got dtype {array.dtype}")
    return array


def _check_finite(X: Array, xp: Any, rows: int) -> None:
    for i in range(0, X.shape[0], rows):  # by blocks: no mask as large as the data
        if not bool(xp.all(xp.isfinite(X[i : min(i + rows, X.shape[0]), :]))):
            raise ValueError("X holds NaN or infinity; clean or impute the data first")
