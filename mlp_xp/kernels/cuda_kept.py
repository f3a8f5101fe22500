"""The operations for CUDA in arrays that stay where they are, as a CUDA graph needs them."""

from __future__ import annotations

from typing import Any

from ..arrays import Array
from .cuda import CudaKernels
from .cuda_source import FusedHead

__all__ = ["PENALTY_BLOCKS", "KeptKernels"]

PENALTY_BLOCKS = 64  # the most that leave a sum of squared weights behind, once a step
_MOST_TOTALS = 2048  # blocks that leave a sum of losses behind, for a shard


class _Slab:
    """An array (capacity, columns) that is handed out by rows, from the first, for each step anew."""

    def __init__(self, array: Array) -> None:
        self.array, self.used = array, 0

    def take(self, rows: int) -> Array:
        self.used += rows
        return self.array[self.used - rows : self.used, :]


class KeptKernels(CudaKernels):
    """The operations in arrays that every pass uses again, where a graph will find them.

    What is only added up at the end of a step, sums of losses and the gradients of a head, stays until then.

    Parameters
    ----------
    xp, dtype, precision
        As for :class:`CudaKernels`.
    shards : int
        The most shards of a step.
    """

    def __init__(self, xp: Any, dtype: str, precision: str, shards: int) -> None:
        super().__init__(xp, dtype, precision)
        self.shards = shards
        self.totals = _Slab(xp.zeros((shards * _MOST_TOTALS + PENALTY_BLOCKS, 2), dtype=self.dtype))
        self.head: FusedHead | None = None
        self.gradients: _Slab | None = None
        self._arrays: dict[Any, Array] = {}
        self._used = 0

    def begin_step(self) -> None:
        """Forget the sums of the step before."""
        self.totals.used = 0
        if self.gradients is not None:
            self.gradients.used = 0

    def features(self, X: Array) -> Array:
        self._used = 0
        return super().features(X)

    def _empty(self, *shape: int, dtype: Any = None) -> Array:
        key = self._used, shape, dtype
        self._used += 1
        if key not in self._arrays:
            self._arrays[key] = super()._empty(*shape, dtype=dtype)
        return self._arrays[key]

    def _totals(self, blocks: int) -> Array:
        return self.totals.take(blocks)

    def _gradients(self, blocks: int, head: FusedHead) -> Array:
        if self.gradients is None:
            self.head = head
            self.gradients = _Slab(self.xp.empty((self.shards * self._chip()[0], head.gradients), dtype=self.dtype))
        return self.gradients.take(blocks)

    def _add_head(self, gradients: Array, head: FusedHead, into: Any) -> None:
        """Leave them where they are: the update adds them up."""

    def _sum(self, totals: Array) -> Array:
        """Leave them where they are: ``tick`` adds them up."""
        return totals
