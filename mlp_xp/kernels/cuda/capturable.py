"""The operations for CUDA in arrays that stay where they are, as a CUDA graph needs them.

A graph holds addresses and keeps no array alive: memory that Python gives back is handed out again, and a replay would
write into it (cupy/cupy#9655).
"""

from __future__ import annotations

from typing import Any

from ...devices import Array
from ..staircase import Blocks
from .operations import CudaKernels
from .sources import SWEEP, FusedHead, grid_for

__all__ = ["PENALTY_BLOCKS", "KeptKernels"]

PENALTY_BLOCKS = 64  # at most so many leave a sum of squared weights behind, once a step


class KeptKernels(CudaKernels):
    """The operations in arrays that every pass uses again, so that a graph finds them.

    Sums of losses stay where blocks left them until the end of the step. So do the gradients of a head, if a step has a
    single shard: the update adds them up.

    Formulas of activations and losses that have no kernel make new arrays. While a graph is captured, these come from
    its own pool, which lives as long as the graph.

    Parameters
    ----------
    xp, dtype, precision
        As for :class:`CudaKernels`.
    shards, rows : int
        Most shards of a step, and most rows of a shard.

    Attributes
    ----------
    totals : array (blocks,)
        Sums of losses, of which the first `used` are of this step.
    used : int
    head_gradients : (array (blocks, head.gradients), FusedHead) or None
        What the head of this step left for the update.
    """

    def __init__(self, xp: Any, dtype: str, precision: str, shards: int, rows: int) -> None:
        super().__init__(xp, dtype, precision)
        self.shards = shards
        self.totals = xp.zeros(shards * grid_for(rows, *SWEEP) + PENALTY_BLOCKS, dtype=self.dtype)
        self.used = 0
        self.head_gradients: tuple[Array, FusedHead] | None = None
        self._arrays: dict[Any, Array] = {}
        self._next = 0

    def begin_step(self) -> None:
        """Forget the sums of the previous step."""
        self.used, self.head_gradients = 0, None

    def take_totals(self, blocks: int) -> Array:
        """Return room (blocks,) in `totals`."""
        self.used += blocks
        return self.totals[self.used - blocks : self.used]

    def features(self, X: Array | Blocks) -> Array | Blocks:
        self._next = 0
        return super().features(X)

    def _empty(self, *shape: int, dtype: Any = None) -> Array:
        key = self._next, shape, dtype
        self._next += 1
        if key not in self._arrays:
            self._arrays[key] = super()._empty(*shape, dtype=dtype)
        return self._arrays[key]

    def _totals(self, blocks: int) -> Array:
        return self.take_totals(blocks)

    def _add_head(self, gradients: Array, head: FusedHead, into: Any) -> None:
        if self.shards == 1:
            self.head_gradients = gradients, head
        else:
            super()._add_head(gradients, head, into)

    def _sum(self, totals: Array) -> Array:
        """Leave them where they are: ``tick`` adds them up."""
        return totals
