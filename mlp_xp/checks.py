"""What comes in is checked once, at the door: one clear sentence, before anything is computed or changed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from numbers import Integral
from typing import Any

import numpy as np

__all__ = ["check_choice", "check_count", "check_seed", "check_sizes"]


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
