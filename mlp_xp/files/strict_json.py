"""JSON that somebody else wrote: objects only, and nothing that Python's parser forgives."""

from __future__ import annotations

import json
import math
import re
from reprlib import repr as brief
from typing import Any

__all__ = ["parse_object"]

_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"?|[][{}]')


def parse_object(text: str, max_depth: int) -> dict[str, Any]:
    """Parse a JSON object, and refuse repeated keys, NaN, infinities and deep nesting.

    Parameters
    ----------
    text
        The JSON.
    max_depth
        The most levels of lists and objects, the outermost included.

    Raises
    ------
    ValueError
        If the text is anything else. The message goes on after the name of the text: "is not strict JSON: ...".

    Examples
    --------
    >>> parse_object('{"a": 1, "a": 2}', max_depth=2)
    Traceback (most recent call last):
    ValueError: is not strict JSON: the key 'a' is there twice
    """
    depth = 0  # counted first: the parser recurses, and a file must not choose how deep
    for token in _STRING_OR_BRACKET.finditer(text):
        depth += (token[0] in "[{") - (token[0] in "]}")
        if depth > max_depth:
            raise ValueError(f"is nested deeper than {max_depth} levels")
    try:
        value = json.loads(text, object_pairs_hook=_distinct, parse_float=_finite, parse_constant=_finite)
    except ValueError as error:
        raise ValueError(f"is not strict JSON: {error}") from None
    if type(value) is not dict:
        raise ValueError(f"is {brief(value)}, and must be a JSON object")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {brief(key)} is there twice")
        result[key] = value
    return result


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{brief(text)} is not a finite number")
    return number
