"""What the kernels of whole epochs do not know: rows that do not all count the same, and dropout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...devices import Array
from ...params import GradSum
from ...rows.batches import Shard
from ..base import Setup
from ..host import HostEngine, as_stored
from .share import Share, share_of

__all__ = ["ShareEngine", "make_host_engine"]


class ShareEngine(HostEngine):
    """Updates by operations that the host starts, on this rank's share of the rows of each shard.

    Parameters
    ----------
    setup : Setup
    share : Share
    """

    def __init__(self, setup: Setup, share: Share) -> None:
        self._share = share
        super().__init__(replace(setup, ranks=None))
        self.shared = True

    def _grad_sum(self, theta: Array, shards: Sequence[Shard]) -> GradSum:
        xp = self.device.xp
        loss, _, gradient = self._add_up(self.layout.split(theta, xp), list(map(self._part, shards)))
        total = xp.concat([gradient, xp.reshape(xp.asarray(loss, dtype=gradient.dtype), (1,))])
        self._share.add_up(total)
        return GradSum(total[-1], sum(shard.rows for shard in shards), total[:-1])

    def _part(self, shard: Shard) -> Shard:
        rows = self._share.rows(shard.rows)
        X, y, samples = shard
        part = slice(rows.start, rows.stop)
        return Shard(X[part, :], y[part, ...], samples[part])


def make_host_engine(setup: Setup) -> HostEngine:
    """Return the engine for a GPU whose host starts each operation."""
    share = share_of(setup)
    return HostEngine(as_stored(setup)) if share is None else ShareEngine(as_stored(setup), share)
