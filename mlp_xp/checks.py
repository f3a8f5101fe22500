"""What comes in is checked once, at the door: one clear sentence, before anything is computed or changed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

__all__ = [
    "brief", "check_choice", "check_count", "check_numbers", "check_seed", "check_sizes", "check_unmasked", "shown",
]  # fmt: skip

_SHOWN = 200  # letters of a value that a message quotes


def brief(value: Any) -> str:
    """Return what a message says of a value that may be anything, and of any length."""
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def shown(value: Any) -> str:
    """Return the repr of a value that may be an array, in one line."""
    return brief(" ".join(map(str.strip, repr(value).splitlines())))


def check_choice(what: str, value: Any, allowed: Collection[str]) -> str:
    """Return `value` if it is one of `allowed`, or else raise a ValueError that lists them."""
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


def check_numbers(what: str, value: Any) -> np.ndarray[Any, Any]:
    """Return `value` as an array of bools, integers or floats if it is an array-like of real numbers.

    Masked entries, missing values and sparse matrices are refused: NumPy would drop the mask, or see one object.
    """
    array = value if type(value) is np.ndarray else _as_array(what, value)
    if array.dtype.kind == "O":
        array = _unboxed(what, array)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{what} must hold real numbers, got dtype {array.dtype}")
    return array


def check_unmasked(what: str, value: Any) -> None:
    """Raise a ValueError if an array-like has masked entries: whoever makes an array of it drops the mask."""
    if any(map(np.ma.is_masked, value if isinstance(value, list | tuple) else [value])):
        raise ValueError(f"{what} has masked entries; fill them in, or leave their rows out")


def _as_array(what: str, value: Any) -> np.ndarray[Any, Any]:
    if hasattr(value, "toarray"):
        raise ValueError(f"{what} is sparse, and all computations here are dense; pass {what}.toarray()")
    check_unmasked(what, value)
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # the last is torch's
        raise ValueError(f"{what} is not a rectangular array of numbers ({error})") from None


def _unboxed(what: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return Python's numbers as NumPy's: tables come as objects if their columns differ in type or may have gaps."""
    kinds = set(map(type, array.flat))
    others = [kind for kind in kinds if not issubclass(kind, Real | np.bool_)]
    if others:
        names = ", ".join(sorted(kind.__name__ for kind in others))
        raise ValueError(
            f"{what} must hold real numbers, got dtype object with values of type {names}; fill in or leave out "
            "missing values, and encode anything else as numbers"
        )
    whole = all(issubclass(kind, Integral | np.bool_) for kind in kinds)
    try:
        return array.astype(np.int64 if whole else np.float64)
    except OverflowError as error:
        raise ValueError(f"{what} holds a number that is too large ({error})") from None
