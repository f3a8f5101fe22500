"""Samples and targets are checked once, when they come in."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..checks import check_numbers
from ..devices import Array, Device, is_foreign

__all__ = ["as_features", "as_numbers", "as_targets", "check_finite", "check_shape", "check_weights", "is_indicator"]

INDICATOR = (
    "X is uint8 without a value above 1: uint8 counts as pixels, so a 1 is 1/255; pass X.astype(bool) if these are "
    "numbers"
)
NOT_PIXELS = (
    "the model was trained on pixels, uint8 divided by 255, and X is {}, whose numbers count as they are; pass "
    "X.astype(np.uint8) if these are pixels"
)
_ROWS_ON_HOST = 4096  # to look at together: no mask as large as the data


def as_features(X: Any, width: int, device: Device, dtype: str, pixels: bool | None = None) -> Array:
    """Return `X` (n, width), on the host or the device, wherever it is: uint8 as it is, or finite numbers of a dtype.

    Parameters
    ----------
    X : array-like (n, width)
    width : int
    device : Device
    dtype : str
        Name of the dtype of numbers.
    pixels : bool, optional
        Whether the model was trained on pixels. If it was, whole numbers of another type get a warning; if not, uint8
        that looks like numbers does.

    Raises
    ------
    ValueError
        If it is empty, not two-dimensional, of the wrong width, sparse, masked or not numeric, or if it holds NaN,
        infinity, or a number that does not fit the dtype.
    TypeError
        If it is an array of another device.
    """
    on_device = is_foreign(X)
    X = device.asarray(X) if on_device else check_numbers("X", X)
    xp = device.xp if on_device else np
    if on_device and not xp.isdtype(X.dtype, ("bool", "integral", "real floating")):
        raise ValueError(f"X must hold real numbers, got dtype {X.dtype}")
    check_shape(X.shape, width)
    if not on_device:
        X = np.ascontiguousarray(X)  # BLAS reads rows of unit stride
    rows = device.shard_rows if on_device else _ROWS_ON_HOST
    if X.dtype == xp.uint8:
        if not pixels and is_indicator((X[block, :] for block in _blocks(X, rows)), xp):
            warnings.warn(INDICATOR, stacklevel=4)
        return X
    if pixels and xp.isdtype(X.dtype, "integral") and bool(xp.max(X) > 1):
        warnings.warn(NOT_PIXELS.format(X.dtype), stacklevel=4)
    return as_numbers(X, dtype, xp, rows)


def as_numbers(X: Array, dtype: str, xp: Any = np, rows: int = _ROWS_ON_HOST) -> Array:
    """Return the numbers `X` (n, ...) in a dtype, after a look at so many rows at a time.

    Raises
    ------
    ValueError
        If one is NaN or infinite, or does not fit the dtype.
    """
    numbers = X
    if X.dtype != getattr(xp, dtype):
        with np.errstate(over="ignore"):  # what the dtype cannot hold becomes infinite, and is found right here
            numbers = xp.astype(X, getattr(xp, dtype))
    if X.shape[0] <= rows:  # to cut it out would take as long as the look at one row
        check_finite(numbers, X, xp)
        return numbers
    for block in _blocks(X, rows):
        check_finite(numbers[block, ...], X[block, ...], xp)
    return numbers


def _blocks(X: Array, rows: int) -> list[slice]:
    return [slice(i, min(i + rows, X.shape[0])) for i in range(0, X.shape[0], rows)]


def check_shape(shape: tuple[int, ...], width: int) -> None:
    """Raise a ValueError if samples of this shape are not (n, width), with at least one row."""
    if len(shape) != 2 or shape[1] != width or shape[0] == 0:
        raise ValueError(f"X must have the shape (n, {width}) with n >= 1, got {tuple(shape)}{_hint(shape, width)}")


def as_targets(y: Any, task: str, n: int, units: int, device: Device, dtype: str) -> np.ndarray[Any, Any]:
    """Return the targets on the host: int32 labels (n,) if the task is ``"classes"``, otherwise numbers (n, units).

    Raises
    ------
    ValueError
        If there are not n rows, a label is out of range or not a whole number, or a value is NaN, infinite, missing or
        too large for the dtype.
    """
    host = check_numbers("y", device.to_host(device.asarray(y)) if is_foreign(y) else y)
    if host.shape[:1] != (n,):
        raise ValueError(f"X has {n} rows and y has the shape {host.shape}; give one target per row")
    if task == "classes":
        return _labels(host, units).astype(np.int32)
    if host.shape != (n, units) and not (units == 1 and host.shape == (n,)):
        wanted = f"({n}, {units})" + (f" or ({n},)" if units == 1 else "")
        raise ValueError(f"an output of {units} unit(s) needs y of shape {wanted}, got {host.shape}")
    if not np.isfinite(host).all():
        raise ValueError("y holds NaN or infinity; targets must be finite numbers")
    with np.errstate(over="ignore"):
        numbers = host.astype(dtype)
    if not np.isfinite(numbers).all():
        raise ValueError(_too_large("y", np.abs(host).max(), dtype))
    if task == "labels" and not ((host == 0) | (host == 1)).all():
        raise ValueError(f"yes-or-no outputs need targets 0 or 1, got values from {host.min()} to {host.max()}")
    return numbers.reshape(n, units)


def check_weights(weights: Any, n: int, dtype: str) -> np.ndarray[Any, Any]:
    """Return the weights of n rows as an array (n,) of the host.

    Raises
    ------
    ValueError
        If they are not n numbers, or one is negative, NaN or infinite.
    """
    host = check_numbers("weights", weights)
    if host.shape != (n,):
        raise ValueError(f"X has {n} rows and weights have the shape {host.shape}; give one weight per row")
    numbers = np.ascontiguousarray(host, dtype)
    if not (np.isfinite(numbers).all() and (numbers >= 0).all()):
        raise ValueError(f"weights must be finite numbers of at least 0, got {host.min()} to {host.max()}")
    return numbers


def _hint(shape: tuple[int, ...], width: int) -> str:
    """Return what to do if the shape can be made to fit."""
    if shape == (width,):
        return "; pass X[None, :] if this is one row"
    return "; pass X.reshape(len(X), -1)" if len(shape) > 2 and math.prod(shape[1:]) == width else ""


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


def is_indicator(blocks: Iterable[Array], xp: Any) -> bool:
    """Return whether the largest byte is 1. Pictures are told apart by their first rows, and blank ones have none."""
    found = False
    for block in blocks:
        if bool(xp.any(block > 1)):
            return False
        found = found or bool(xp.any(block == 1))
    return found


def check_finite(numbers: Array, X: Array, xp: Any) -> None:
    """Check numbers (m, ...) that were made of the rows X (m, ...)."""
    if xp is np and math.isfinite(np.vdot(numbers, numbers)):  # squares may overflow; if not, that was the fastest look
        return
    if bool(xp.all(xp.isfinite(numbers))):
        return
    if numbers.dtype != X.dtype and bool(xp.all(xp.isfinite(X))):
        raise ValueError(_too_large("X", float(xp.max(xp.abs(X))), numbers.dtype))
    raise ValueError("X holds NaN or infinity; clean or impute the data first")


def _too_large(name: str, largest: Any, dtype: Any) -> str:
    return f"{name} holds values up to {largest:.4g} in size, which do not fit {dtype}; scale them, or use float64"
