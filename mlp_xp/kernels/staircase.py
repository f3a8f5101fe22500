"""Matrices whose rows end in zeros, stored so that products leave most of the zeros out.

The rows that need the most columns come first, so that everything but zeros lies under a falling staircase:

    columns  0 . . . . . . . . d
    rows  0  x x x x x x x x x x    extent   how many columns a row needs: behind them it holds zeros only
          .  x x x x x x x x x .    width    how many columns a block of rows needs: the extent of its first row
          .  x x x x x . . . . .    height   how many rows a block of columns needs
          .  x x x x . . . . . .
          n  x . . . . . . . . .

A product with the matrix takes it in blocks of rows, each as far as its width. A product with its transpose takes it in
blocks of columns, each as far as its height. What is beyond is zero and would add nothing.

A full batch stays the same, so :class:`Blocks` stores each block of rows apart, and the zeros nowhere. A mini-batch is
gathered anew for each update, so :class:`Ragged` keeps it in one piece and says where its blocks end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..devices import Array

__all__ = ["Blocks", "Cuts", "Ragged", "blocks_of"]

_TILES = 4  # most blocks of a product: of equal work, so that 1, 2, or 4 threads are busy to the end


class Blocks(NamedTuple):
    """A matrix (n, d) in blocks of rows, the widest first; each is an array (m, width)."""

    blocks: tuple[Array, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d), where d is the largest width."""
        return sum(block.shape[0] for block in self.blocks), self.blocks[0].shape[1]

    @property
    def dtype(self) -> Any:
        """The dtype of all blocks."""
        return self.blocks[0].dtype


def blocks_of(A: Array | Blocks) -> Iterator[tuple[slice, Array]]:
    """Yield the blocks of a matrix, and where their rows are; an ordinary array is a single block."""
    row = 0
    for block in A.blocks if isinstance(A, Blocks) else (A,):
        yield slice(row, row + block.shape[0]), block
        row += block.shape[0]


class Cuts(NamedTuple):
    """Where batches of n rows are cut into blocks of about the same work, both ways: once for all batches of a size.

    Attributes
    ----------
    rows : tuple of int
        Cuts between blocks of rows: (0, ..., n).
    columns : tuple of int
        First columns of the blocks of columns: (0, ...). The last block ends where its batch does.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @classmethod
    def of(cls, extents: np.ndarray[Any, Any], n: int) -> Cuts:
        """Return the cuts for n rows drawn from rows with these extents (N,)."""
        typical = np.quantile(extents, 1 - (np.arange(n) + 0.5) / n).astype(np.intp)
        heights = (typical[:, None] > np.arange(max(1, typical[0]))).sum(axis=0)
        return cls(_cut_evenly(typical, 4), _cut_evenly(heights, 16)[:-1])


class Ragged(NamedTuple):
    """A matrix (n, d) in one piece, and where the blocks of its rows and of its columns end.

    Attributes
    ----------
    values : array (n, d)
    cuts : Cuts
    widths : sequence of int
        Of each block of rows; the first is d.
    heights : sequence of int
        Of each block of columns.
    """

    values: np.ndarray[Any, Any]
    cuts: Cuts
    widths: Sequence[int]
    heights: Sequence[int]

    @property
    def shape(self) -> Any:
        """(n, d)."""
        return self.values.shape


def _cut_evenly(heights: np.ndarray[Any, Any], unit: int) -> tuple[int, ...]:
    """Cut a falling staircase at multiples of `unit` into at most `_TILES` parts with the smallest largest box.

    The box around a part is what its product costs: its length times its first, greatest height.
    """
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
