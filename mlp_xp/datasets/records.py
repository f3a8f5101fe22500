"""The record every data set comes in, the checks it has passed, and the one decision about its scale.

Legend: ``n`` rows (samples), ``d`` columns (inputs).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import check_seed
from .maps import Span, in_file

MAX_LABEL = 65_535
BLOCK = 1 << 20  # numbers that are checked at a time, so that a check takes no memory to speak of

Test = Callable[[NDArray[Any]], NDArray[np.bool_]]

_log = logging.getLogger("mlp_xp.datasets")


class Dataset(NamedTuple):
    """Samples and their labels: ``X`` of shape (n, d), ``y`` of shape (n,)."""

    X: NDArray[Any]
    y: NDArray[Any]


class Part(NamedTuple):
    """What a file holds, as it holds it: samples (n, ...), labels (n,) or (n, 1) if there are any, and where from.

    Samples are an array or, if they stay in their file, a memory map or a :class:`~mlp_xp.datasets.maps.Span`.
    """

    X: Any
    y: NDArray[Any] | None
    source: str


def make_datasets(parts: Sequence[Part]) -> list[Dataset]:
    """Check the labeled parts of one source and make each a `Dataset`, all of one dtype.

    Raises
    ------
    ValueError
        If the numbers of samples and labels differ or are 0, a sample is not finite, a label is not a whole number from
        0 to 65535, or the parts contradict each other about their scale.
    """
    parts = [check_part(part) for part in parts]
    return [Dataset(X, part.y) for X, part in zip(scale(parts), parts, strict=True) if part.y is not None]


def check_part(part: Part) -> Part:
    """Return a part with samples (n, d) and labels (n,), ``uint8`` if they fit, else ``int32``; samples stay raw.

    Raises
    ------
    ValueError
        If the numbers of samples and labels differ or are 0, a sample is not finite, or a label is not a whole number
        from 0 to 65535.
    """
    X, y, source = part
    if X.ndim == 0 or X.size == 0:
        raise ValueError(f"{source}: samples of shape {X.shape}; at least one row and one column are needed")
    X = X if isinstance(X, Span) else X.reshape(len(X), -1)
    if X.dtype.kind == "f":
        _check_numbers(X, np.isfinite, "samples must be finite, so remove or fill such values", source)
    if y is None:
        return Part(X, None, source)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise ValueError(f"{source}: labels of shape {y.shape}; expected one label a row, (n,) or (n, 1)")
    if len(X) != len(y):
        raise ValueError(f"{source}: {len(X)} samples but {len(y)} labels; they must agree")
    return Part(X, _check_labels(y, source), source)


def scale(parts: Sequence[Part], pixels: bool | None = None) -> list[Any]:
    """Return the samples (n, d) of the parts of one source in one dtype: one decision about their scale.

    Parameters
    ----------
    parts
        What :func:`check_part` returned.
    pixels
        True: the numbers are pixels, whole and from 0 to 255, and become ``uint8``, which counts as x / 255. False:
        they count as they are, as floats. None: decide. ``uint8`` is pixels. Other whole numbers are pixels if they
        lie between 0 and 255 and some exceed 127, in whichever part; the log tells. All else counts as it is.

    Raises
    ------
    ValueError
        If a sample is no pixel and all must be, or ``uint8`` comes with samples that are no pixels.
    """
    if pixels is None:
        pixels = _are_pixels(parts)
    dtype = np.dtype(np.uint8 if pixels else np.float32)
    if not pixels and any(part.X.dtype == np.float64 for part in parts):
        dtype = np.dtype(np.float64)
    for X, _, source in parts:
        if pixels and X.dtype != np.uint8:
            advice = "the model was trained on pixels, so samples must be whole numbers from 0 to 255"
            _check_numbers(X, lambda x: (x >= 0) & (x <= 255) & (x == np.trunc(x)), advice, source)
    return [_astype(part.X, dtype) for part in parts]


def split(part: Part, seed: int) -> list[Part]:
    """Shuffle the n rows by `seed` and split them: the last sixth, and at least one row, is for testing.

    Rows that stay in a file are not shuffled, because that would be a copy.
    """
    X, y, source = part
    n = len(X)
    if n < 2:
        raise ValueError(f"{source}: {n} row cannot be split into training and test data; at least 2 are needed")
    cut = n - max(1, n // 6)
    if in_file(X):
        _log.info("%s: the last %d rows are the test data, in the order of the file", source, n - cut)
        return [Part(X[rows], None if y is None else y[rows], source) for rows in (slice(cut), slice(cut, n))]
    order = np.random.default_rng(check_seed(seed)).permutation(n)
    return [Part(X[rows], None if y is None else y[rows], source) for rows in (order[:cut], order[cut:])]


def _astype(X: Any, dtype: np.dtype[Any]) -> Any:
    """Return samples of a dtype; floats that stay in their file are left for the model to convert."""
    return X if in_file(X) and X.dtype.kind == dtype.kind else np.asarray(X).astype(dtype, copy=False)


def _are_pixels(parts: Sequence[Part]) -> bool:
    source = " and ".join(dict.fromkeys(part.source for part in parts))
    are_bytes = [part.X.dtype == np.uint8 for part in parts]
    if all(are_bytes):
        return True
    others = [part.X for part, is_bytes in zip(parts, are_bytes, strict=True) if not is_bytes]
    whole = all(X.dtype.kind != "f" for X in others)
    low, high = (min(X.min() for X in others), max(X.max() for X in others)) if whole else (0, 0)
    pixels = whole and low >= 0 and (high > 127 or any(are_bytes)) and high <= 255
    if any(are_bytes) and not pixels:
        types = " and ".join(str(part.X.dtype) for part in parts)
        raise ValueError(
            f"{source}: samples of type {types}; uint8 counts as pixels, x / 255, and the others are no "
            "whole numbers from 0 to 255; save all parts in one type"
        )
    if pixels:
        _log.info("%s: whole numbers from %d to %d are taken for pixels, x / 255", source, low, high)
    return pixels


def _check_numbers(X: Any, right: Test, advice: str, source: str) -> None:
    place = _first_fault(X, right)
    if place:
        row, column = place
        value = np.asarray(X[row : row + 1])[0, column]
        raise ValueError(f"{source}: row {row}, column {column} of the samples (counted from 0) is {value}; {advice}")


def _check_labels(y: NDArray[Any], source: str) -> NDArray[Any]:
    if y.dtype == np.float16:
        y = y.astype(np.float64)  # in float16 the largest label is infinity
    place = _first_fault(y, lambda label: (label >= 0) & (label <= MAX_LABEL) & (label == np.trunc(label)))
    if place:
        raise ValueError(
            f"{source}: the label of row {place[0]} (counted from 0) is {y[place]}; "
            f"labels are whole numbers from 0 to {MAX_LABEL}, the number of the class"
        )
    return y.astype(np.uint8 if y.max() < 256 else np.int32)


def _first_fault(values: Any, right: Test) -> tuple[int, ...] | None:
    """Return the index of the first of the values (n, ...) that is not right, looking at some rows at a time."""
    rows = max(1, BLOCK * len(values) // values.size)
    for start in range(0, len(values), rows):
        fits = right(np.asarray(values[start : start + rows]))
        if not fits.all():
            row, *rest = np.unravel_index(int(fits.argmin()), fits.shape)
            return (start + int(row), *map(int, rest))
    return None
