"""The types that options of the command have, and how text, TOML or JSON becomes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["convert"]


def convert(what: str, kind: Any, value: Any) -> Any:
    """Return a value of this type, or raise a ValueError that says what is taken."""
    make, described = _KINDS[kind]
    try:
        if isinstance(value, bool) == (kind is bool):
            return make(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{what} takes {described}; got {value!r}")


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str):  # an int, as in checkpoint_every = 5
        raise TypeError
    return str(value)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [item.strip() for item in str(value).split(",") if item.strip()]


_KINDS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    bool: (bool, "true or false"),
    int: (_whole, "a whole number"),
    float: (float, "a number, as in 0.01"),
    str: (_text, "text"),
    tuple[int, ...]: (lambda value: tuple(map(_whole, _items(value))), "whole numbers with commas, as in 128,64"),
    tuple[float, ...]: (lambda value: tuple(map(_number, _items(value))), "numbers with commas, as in 0.5,0.2"),
    tuple[str, ...]: (lambda value: tuple(map(_text, _items(value))), "names with commas, as in relu,tanh"),
}
"""For each type of a field, how a value becomes one and how users are told."""
