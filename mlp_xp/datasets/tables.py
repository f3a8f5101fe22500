"""Read a .csv of numbers; a fault is reported with its line and its cause."""

from __future__ import annotations

import io
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from ..files import open_regular
from .limits import MAX_FILE, Limits
from .records import MAX_LABEL, Part

LABEL_NAMES = ("label", "target", "class", "y")
MAX_COLUMNS = 1 << 18
MAX_LINE = 1 << 23  # characters
MAX_BLANK = 1000  # lines, one after another
BLOCK = 1 << 18  # characters that are parsed at once
_FEW = 3  # columns in which 1, 2, 3 may well be a sample
MAX_FLOAT32 = float(np.finfo(np.float32).max)
CODE_THEM = (
    f"labels are whole numbers from 0 to {MAX_LABEL}, so code each class as one, such as 0, 1 and 2, "
    "in the first column or in one that a header calls label"
)

Line = tuple[int, str]

_log = logging.getLogger("mlp_xp.datasets")


def read_csv(path: Path, limits: Limits) -> Part:
    """Read numbers separated by commas, a row a line, one column of them the labels; see `load` for which.

    If the limits give the width of a sample, the labels may be missing.

    Raises
    ------
    ValueError
        If there are no rows, rows differ in length, a cell is not a finite number or not a label, the file is no table
        of numbers separated by commas, or the limits are exceeded.
    """
    with open_regular(path, MAX_FILE) as file, io.TextIOWrapper(file, "utf-8-sig", "replace") as text:
        _check_encoding(path, file.peek(2))
        lines = _read_lines(path, text)
        first = next(lines, None)
        if first is None:
            raise ValueError(f"{path}: the file is empty")
        cells = _split_first(path, first[1], limits.width)
        names = _read_names(path, cells)
        label = None if len(cells) == limits.width else _find_label(path, names or [])
        if names is None:
            lines = itertools.chain([first], lines)
        Xs, ys = [], []
        for block in _join(lines):
            rows = _parse(path, block, len(cells), label)
            limits.charge(rows.size * 4)  # float32
            Xs.append(_narrow(rows if label is None else np.delete(rows, label, axis=1)))
            ys.append(rows[:, label or 0])
    if not Xs:
        raise ValueError(f"{path}: there is a header but no row below it")
    if label is None:
        return Part(np.concatenate(Xs), None, str(path))
    y = np.concatenate(ys)
    _log.info("%s: column %d holds the labels, %d classes", path, label + 1, len(np.unique(y)))
    return Part(np.concatenate(Xs), y, str(path))


def _check_encoding(path: Path, start: bytes) -> None:
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start:
        raise ValueError(f"{path}: not UTF-8 text but UTF-16, or no text at all; save it as CSV in UTF-8")


def _read_lines(path: Path, text: TextIO) -> Iterator[Line]:
    """Yield the lines that are not blank, with their numbers."""
    blank = 0
    for number in itertools.count(1):
        line = text.readline(MAX_LINE + 1)
        if not line:
            return
        blank = 0 if line.strip() else blank + 1
        if len(line) > MAX_LINE or blank > MAX_BLANK:
            problem = f"over {MAX_BLANK} blank lines in a row" if blank else f"over {MAX_LINE} characters"
            raise ValueError(f"{path}, line {number}: {problem}; this is no table of numbers")
        if not blank:
            yield number, line


def _join(lines: Iterator[Line]) -> Iterator[list[Line]]:
    """Yield blocks of lines of about the same number of characters."""
    block: list[Line] = []
    size = 0
    for line in lines:
        block.append(line)
        size += len(line[1])
        if size >= BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def _split_first(path: Path, line: str, width: int | None) -> list[str]:
    """Return the cells of the first line, in lower case and without quotes, if commas separate them."""
    commas = line.count(",")
    others = {"semicolons": line.count(";"), "tabs": line.count("\t"), "bars": line.count("|")}
    found = max(others, key=lambda name: others[name])
    if others[found] > commas or (found == "semicolons" and others[found] == commas > 0):
        raise ValueError(f"{path}: {found} separate the cells; save the table with commas, and with decimal points")
    if not commas and len(line.split()) > 1 and all(map(_is_number, line.split())):
        raise ValueError(f"{path}: blanks separate the cells; save the table with commas")
    if commas >= MAX_COLUMNS:
        raise ValueError(f"{path}: {commas + 1} columns; {MAX_COLUMNS} are the most allowed")
    if width is not None and commas + 1 not in (width, width + 1):
        raise ValueError(f"{path}: {commas + 1} columns, but the model takes {width}, and one more may hold the labels")
    return [name.strip().strip('"').lower() for name in line.split(",")]


def _read_names(path: Path, cells: list[str]) -> list[str] | None:
    """Return the names in a header, none if it numbers the columns; None if the first line is a row already.

    A first row of numbers in which one cell is wrong must not pass for a header.
    """
    numbers = [str(i) for i in range(len(cells))]
    named = not any(map(_is_number, cells)) or any(name in cells for name in LABEL_NAMES)
    if len(cells) > 1 and cells[0] == "" and (named or cells[1:] == numbers[:-1]):
        raise ValueError(
            f"{path}: the first column has no name, as when pandas writes the row numbers; "
            "save with to_csv(..., index=False), or name the column"
        )
    from_one = [str(i + 1) for i in range(len(cells))]
    if len(cells) > 1 and (cells == numbers or (len(cells) > _FEW and cells == from_one)):
        start = "0, 1, 2" if cells == numbers else "1, 2, 3"
        _log.warning("%s: the first line, %s and so on, is taken for the numbers of the columns", path, start)
        return []
    return cells if named else None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _find_label(path: Path, names: list[str]) -> int:
    """Return the column of the labels: the first, or the one that is called so if the columns have names."""
    if not names:
        return 0
    name = next((name for name in LABEL_NAMES if name in names), None)
    if name is None:
        raise ValueError(
            f"{path}: no column is called {', '.join(LABEL_NAMES)}; name the column that holds the labels so"
        )
    if names.count(name) > 1:
        raise ValueError(f"{path}: {names.count(name)} columns are called {name}; keep one of them")
    if name == "y" and {"x", "z"} <= {*names}:
        raise ValueError(
            f"{path}: x, y and z look like coordinates, and no column is called label; name the one with the labels so"
        )
    return names.index(name)


def _parse(path: Path, block: list[Line], width: int, label: int | None) -> NDArray[np.float64]:
    """Parse lines to an array (len(block), width), all at once; only if that fails look for the cell at fault."""
    reason = "not a table of numbers"
    try:
        rows = np.loadtxt([text for _, text in block], delimiter=",", comments=None, ndmin=2)
        fits = rows.shape == (len(block), width) and _are_finite(rows)
        if fits and (label is None or _are_labels(rows[:, label])):
            return rows
    except ValueError as error:
        reason = str(error)
    for number, text in block:
        cells = text.strip().split(",")
        if len(cells) != width:
            raise ValueError(f"{path}, line {number}: {len(cells)} values, but the first line has {width}")
        for column in sorted(range(width), key=lambda column: column == label):  # text elsewhere says more
            cell = cells[column]
            problem = _fault_of(cell.strip(), column == label)
            if problem:
                raise ValueError(f"{path}, line {number}, column {column + 1}: {cell[:40]!r} {problem}")
    raise ValueError(f"{path}, lines {block[0][0]} to {block[-1][0]}: {reason}")


def _fault_of(cell: str, is_label: bool) -> str:
    """Return what is wrong with a cell, "" if nothing is."""
    if cell[:1] in ('"', "'"):
        return "is in quotes; save numbers without"
    if cell and not _is_number(cell):
        return f"is not a number; if it is a label: {CODE_THEM}"
    if not cell or not _are_finite(float(cell)):
        return "is not a finite number of type float32"
    return f"is not a label: {CODE_THEM}" if is_label and not _are_labels(float(cell)) else ""


def _narrow(X: NDArray[np.float64]) -> NDArray[np.int16 | np.float32]:
    """Whole numbers of at most 255 become int16, so that `scale` can tell pixels; all else becomes float32."""
    if np.abs(X).max(initial=0) <= 255 and np.array_equal(X, np.trunc(X)):
        return X.astype(np.int16)
    return X.astype(np.float32)


def _are_finite(values: NDArray[np.float64] | float) -> bool:
    return bool(np.all(np.abs(values) <= MAX_FLOAT32))


def _are_labels(values: NDArray[np.float64] | float) -> bool:
    return bool(np.all((values >= 0) & (values <= MAX_LABEL) & (values == np.trunc(values))))
