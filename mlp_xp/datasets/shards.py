"""Samples that are spread over many .npy files."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..files import open_regular
from .limits import ANY_SIZE
from .maps import bounds
from .npz import read_header

__all__ = ["Shards"]


class _File(NamedTuple):
    """An .npy file as it was when its header was read."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    begin: int
    state: tuple[int, int]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class Shards:
    """The rows of many ``.npy`` files, one file after another, as one object that ``fit`` takes for `X`.

    It has a shape, a dtype and slices of rows. The headers of all files are read at once; a file is open only while
    rows are read from it, and any thread may read.

    Parameters
    ----------
    paths : iterable of path
        The files, in the order of their rows.

    Attributes
    ----------
    shape : tuple of int
        (n, ...), with the rows of all files.
    dtype : dtype
    paths : list of Path
    rows : list of int
        How many there are in each file.

    Raises
    ------
    TypeError
        If `paths` is a single path, or what is read is no slice of rows.
    FileNotFoundError
        If a file is missing; also when rows are read.
    ValueError
        If there are no files, or one is damaged, cut short, in Fortran order, or of another dtype or another shape of
        its rows than the first; when rows are read, if the file has changed since.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     paths = [Path(folder, f"X-{i}.npy") for i in range(3)]
    ...     for i, path in enumerate(paths):
    ...         np.save(path, np.full((2, 4), i))
    ...     X = Shards(paths)
    ...     X.shape, X[1:4]
    ((6, 4), array([[0, 0, 0, 0],
           [1, 1, 1, 1],
           [1, 1, 1, 1]]))
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        if isinstance(paths, str | bytes | os.PathLike):
            raise TypeError(f"Shards takes a list of paths, got the single path {os.fspath(paths)!r}; write [path]")
        self._files = [_look_at(Path(path)) for path in paths]
        if not self._files:
            raise ValueError("Shards takes at least one file, and got none")
        first = self._files[0]
        for file in self._files:
            if (file.dtype, file.shape[1:]) != (first.dtype, first.shape[1:]):
                raise ValueError(
                    f"{file.path}: rows of {file.dtype} and shape {file.shape[1:]}, but those of {first.path.name} are "
                    f"of {first.dtype} and shape {first.shape[1:]}; save all shards alike"
                )
        self.paths, self.rows = [file.path for file in self._files], [file.shape[0] for file in self._files]
        self._ends = np.cumsum(self.rows)
        self.shape = (int(self._ends[-1]), *first.shape[1:])
        self.dtype = first.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Read rows that follow one another, (m, ...)."""
        start, stop = bounds(rows, len(self))
        X = np.empty((max(0, stop - start), *self.shape[1:]), self.dtype)
        done, i = 0, int(np.searchsorted(self._ends, start, side="right"))
        while done < len(X):
            within = start + done - (self._ends[i] - self.rows[i])
            part = X[done : done + self.rows[i] - within]
            _read(self._files[i], int(within), part)
            done, i = done + len(part), i + 1
        return X


def _look_at(path: Path) -> _File:
    with open_regular(path, ANY_SIZE) as file:
        try:
            shape, dtype, order, begin = read_header(file)
            state = _state(file)
            size, held = math.prod(shape) * dtype.itemsize, state[0] - begin
            if held != size:
                raise ValueError(f"the header announces {size} bytes of data, and {held} follow")
            if order != "C" and len(shape) > 1:
                raise ValueError("it is stored by columns; save np.ascontiguousarray(X)")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return _File(path, shape, dtype, begin, state)


def _read(shard: _File, start: int, into: NDArray[Any]) -> None:
    """Fill an array with the rows of a shard from `start` on."""
    with open_regular(shard.path, ANY_SIZE) as file:
        file.seek(shard.begin + start * shard.row_bytes)
        held = file.readinto(into.reshape(-1).view(np.uint8).data) if into.size else 0
        if _state(file) != shard.state or held != into.nbytes:
            raise ValueError(
                f"{shard.path}: the file has changed since its header was read; leave it until all is done"
            )


def _state(file: io.BufferedReader) -> tuple[int, int]:
    """Return what changes when somebody writes to a file: its size, and the time of the last change."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
