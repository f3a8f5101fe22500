"""A matrix whose rows end in zeros, as blocks that leave most of the zeros out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..arrays import Array

__all__ = ["Blocks", "blocks_of"]


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
