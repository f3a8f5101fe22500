"""Matrices whose rows end in zeros, stored so that products leave most of the zeros out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..devices import Array

__all__ = ["Blocks", "Cuts", "Ragged", "blocks_of"]

_TILES = 4  # of one product: of equal work, so that 1, 2 or 4 threads are busy to the end


class Blocks(NamedTuple):
    """A matrix (n, d) in blocks of rows, the widest first; each (m, k) ends before the columns that are zero in it."""

    blocks: tuple[Array, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d), d that of the widest block."""
        return sum(block.shape[0] for block in self.blocks), self.blocks[0].shape[1]

    @property
    def dtype(self) -> Any:
        """That of all blocks."""
        return self.blocks[0].dtype


def blocks_of(A: Array | Blocks) -> Iterator[tuple[slice, Array]]:
    """Yield the blocks of a matrix, of which most have but one, and where their rows are."""
    row = 0
    for block in A.blocks if isinstance(A, Blocks) else (A,):
        yield slice(row, row + block.shape[0]), block
        row += block.shape[0]


class Cuts(NamedTuple):
    """Where batches of n rows are cut into blocks of about the same work, both ways.

    Attributes
    ----------
    rows : tuple of int
        Cuts between blocks of rows, (0, ..., n).
    columns : tuple of int
        First columns of blocks of columns, (0, ...).
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @classmethod
    def of(cls, extents: np.ndarray[Any, Any], n: int) -> Cuts:
        """Return the cuts for n rows that are drawn from rows with these extents (N,)."""
        typical = np.quantile(extents, 1 - (np.arange(n) + 0.5) / n).astype(np.intp)
        heights = (typical[:, None] > np.arange(max(1, typical[0]))).sum(axis=0)
        return cls(_cut_evenly(typical, 4), _cut_evenly(heights, 16)[:-1])


class Ragged(NamedTuple):
    """A batch (n, k), the rows that need the most columns first.

    Attributes
    ----------
    values : array (n, k)
    cuts : Cuts
    widths : sequence of int
        For each block of rows, where its columns of zeros begin; the first is k.
    heights : sequence of int
        For each block of columns, where its rows of zeros begin.
    """

    values: np.ndarray[Any, Any]
    cuts: Cuts
    widths: Sequence[int]
    heights: Sequence[int]

    @property
    def shape(self) -> Any:
        """(n, k)."""
        return self.values.shape


def _cut_evenly(heights: np.ndarray[Any, Any], unit: int) -> tuple[int, ...]:
    """Cut a falling staircase into parts, at multiples of `unit`, so that the largest box around a part is smallest."""
    end = len(heights)

    def cuts(most: float) -> tuple[int, ...]:
        found: list[int] = [0]
        while found[-1] < end and len(found) <= _TILES:
            length = int(most / max(1, int(heights[found[-1]]))) // unit * unit
            found.append(min(end, found[-1] + length))
        return tuple(found)

    low, high = 0.0, float(heights[0]) * (end + unit)
    while high - low > 1:
        middle = (low + high) / 2
        low, high = (low, middle) if cuts(middle)[-1] == end else (middle, high)
    return cuts(high)
