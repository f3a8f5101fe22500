"""Checks of the numbers that optimizers and schedules are made of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["fraction", "not_negative", "positive"]


def positive(owner: Any, *names: str) -> None:
    """Raise a ValueError if one of these fields is not a finite number above 0."""
    for name in names:
        if not 0 < _number(owner, name) < math.inf:
            value = getattr(owner, name)
            raise ValueError(f"{type(owner).__name__}: {name} must be a finite number above 0, got {value!r}")


def not_negative(owner: Any, *names: str) -> None:
    """Raise a ValueError if one of these fields is not a finite number of at least 0."""
    for name in names:
        if not 0 <= _number(owner, name) < math.inf:
            value = getattr(owner, name)
            raise ValueError(f"{type(owner).__name__}: {name} must be a finite number of at least 0, got {value!r}")


def fraction(owner: Any, *names: str) -> None:
    """Raise a ValueError if one of these fields does not lie in [0, 1)."""
    for name in names:
        if not 0 <= _number(owner, name) < 1:
            value = getattr(owner, name)
            raise ValueError(f"{type(owner).__name__}: {name} must lie in [0, 1), got {value!r}")


def _number(owner: Any, name: str) -> Any:
    """Return a field, made a Python number where it was a NumPy scalar, which would widen float32 arrays."""
    value = getattr(owner, name)
    if isinstance(value, np.generic):
        value = value.item()
        object.__setattr__(owner, name, value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
