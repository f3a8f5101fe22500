"""What comes in is checked once, at the door: one clear sentence, before anything is computed or changed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from numbers import Integral
from typing import Any

import array_api_compat as compat
import numpy as np

from .arrays import PRECISIONS, Array, Device
from .kernels import ACTIVATIONS

__all__ = [
    "as_features",
    "as_targets",
    "check_activations",
    "check_choice",
    "check_count",
    "check_like",
    "check_precision",
    "check_seed",
    "check_sizes",
]


def check_choice(what: str, value: Any, allowed: Collection[str]) -> str:
    """Return `value` if it is one of `allowed`, else raise a ValueError that lists them."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"unknown {what} {value!r}; choose from {', '.join(map(repr, allowed))}")
    return value


def check_count(what: str, value: Any, least: int = 1) -> int:
    """Return `value` as an int if it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise ValueError(f"{what} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def check_seed(seed: Any) -> int:
    """Return the seed as an int if it is one and not negative."""
    return check_count("seed", seed, least=0)


def check_sizes(sizes: Any) -> tuple[int, ...]:
    """Return the layer sizes as a tuple of at least two positive ints."""
    if not isinstance(sizes, Sequence | np.ndarray) or isinstance(sizes, str) or len(sizes) < 2:
        raise ValueError(f"sizes must list the units per layer, input first, as in [784, 196, 10]; got {sizes!r}")
    return tuple(check_count("a layer size", size) for size in sizes)


def check_activations(activation: Any, hidden: int) -> tuple[str, ...]:
    """Return one activation name per hidden layer."""
    if isinstance(activation, str) or not isinstance(activation, Sequence):
        return (check_choice("activation", activation, ACTIVATIONS),) * hidden
    if len(activation) != hidden:
        raise ValueError(
            f"got {len(activation)} activations for {hidden} hidden layers; give one name, or one per hidden layer"
        )
    return tuple(check_choice("activation", name, ACTIVATIONS) for name in activation)


def check_like(what: str, values: Sequence[Any], current: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """Return the values as finite arrays of the dtype and shapes of the current ones."""
    arrays = [np.asarray(value, dtype=current[0].dtype) for value in values]
    shapes, wanted = [array.shape for array in arrays], [array.shape for array in current]
    if shapes != wanted:
        raise ValueError(f"{what} have the shapes {wanted}, got {shapes}; give one array per layer")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(f"{what} must be finite, got NaN or infinity")
    return arrays


def check_precision(precision: str | None, dtype: str, device: Device) -> str:
    """Return a precision that goes with the dtype and is to be had on the device; all its digits if None."""
    if precision is None:
        return {"float32": "fp32", "float64": "fp64"}[dtype]
    check_choice("precision", precision, PRECISIONS)
    if PRECISIONS[precision] != dtype:
        raise ValueError(f"precision {precision!r} goes with dtype {PRECISIONS[precision]!r}, got dtype {dtype!r}")
    if precision not in device.precisions:
        raise ValueError(
            f"device {device.name!r} has the precisions {' and '.join(map(repr, device.precisions))}, got "
            f"{precision!r}; use one of them, or device 'cuda'"
        )
    return precision


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
