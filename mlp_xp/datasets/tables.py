"""Read a .csv of numbers; a fault is reported with the number of its line."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .records import MAX_LABEL, Dataset, make_dataset

LABEL_NAMES = ("label", "target", "class", "y")
LINES_AT_ONCE = 1024
MAX_FLOAT32 = float(np.finfo(np.float32).max)

Line = tuple[int, str]


def read_csv(path: Path) -> Dataset:
    """Read numbers parted by commas, a row a line, one column of them the labels; see `load` for which.

    Raises
    ------
    ValueError
        If there are no rows, rows differ in length, or a cell is not a finite number or not a label.
    """
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        lines: Iterator[Line] = ((number, text) for number, text in enumerate(file, 1) if text.strip())
        first = next(lines, None)
        if first is None:
            raise ValueError(f"{path}: the file is empty")
        names = [name.strip().strip('"').lower() for name in first[1].split(",")]
        if _is_header(names):
            label = _label_column(path, names)
        else:
            label, lines = 0, itertools.chain([first], lines)
        Xs, ys = [], []
        while block := list(itertools.islice(lines, LINES_AT_ONCE)):
            rows = _parse(path, block, len(names), label)
            Xs.append(_narrow(np.delete(rows, label, axis=1)))
            ys.append(rows[:, label])
    if not Xs:
        raise ValueError(f"{path}: there is a header but no row below it")
    return make_dataset(np.concatenate(Xs), np.concatenate(ys), str(path))


def _is_header(cells: list[str]) -> bool:
    """Tell names from a first row of numbers in which one cell is wrong: that must not pass for a header."""
    return not any(map(_is_number, cells)) or any(name in cells for name in LABEL_NAMES)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _label_column(path: Path, names: list[str]) -> int:
    for name in LABEL_NAMES:
        if name in names:
            return names.index(name)
    raise ValueError(f"{path}: no column is called {', '.join(LABEL_NAMES)}; name the column that holds the labels so")


def _parse(path: Path, block: list[Line], width: int, label: int) -> NDArray[np.float64]:
    """Parse lines to an array (len(block), width), all at once; only if that fails look for the cell at fault."""
    reason = "not a table of numbers"
    try:
        rows = np.loadtxt([text for _, text in block], delimiter=",", comments=None, ndmin=2)
        if rows.shape == (len(block), width) and _are_finite(rows) and _are_labels(rows[:, label]):
            return rows
    except ValueError as error:
        reason = str(error)
    for number, text in block:
        cells = text.strip().split(",")
        if len(cells) != width:
            raise ValueError(f"{path}, line {number}: {len(cells)} values, but the first line has {width}")
        for column, cell in enumerate(cells):
            where = f"{path}, line {number}, column {column + 1}: {cell[:40]!r}"
            value = float(cell) if _is_number(cell) else np.nan
            if not _are_finite(value):
                raise ValueError(f"{where} is not a finite number of type float32")
            if column == label and not _are_labels(value):
                raise ValueError(f"{where} is not a label; labels are whole numbers from 0 to {MAX_LABEL}")
    raise ValueError(f"{path}, lines {block[0][0]} to {block[-1][0]}: {reason}")


def _narrow(X: NDArray[np.float64]) -> NDArray[np.int16 | np.float32]:
    """Whole numbers of at most 255 become int16, so that `make_dataset` can tell pixels; all else becomes float32."""
    if np.abs(X).max(initial=0) <= 255 and np.array_equal(X, np.trunc(X)):
        return X.astype(np.int16)
    return X.astype(np.float32)


def _are_finite(values: NDArray[np.float64] | float) -> bool:
    return bool(np.all(np.abs(values) <= MAX_FLOAT32))


def _are_labels(values: NDArray[np.float64] | float) -> bool:
    return bool(np.all((values >= 0) & (values <= MAX_LABEL) & (values == np.trunc(values))))
