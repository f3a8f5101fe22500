"""The one order of additions: the same bits, however many workers there are and whichever is first.

Shards are dealt into groups. Their number depends on the data alone, unless there are more ranks. A group adds up its
own shards in order, and the groups are added in order.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any, Protocol

import numpy as np

from ..devices import Device
from ..params import GradSum
from .ranks import Ranks

__all__ = ["AcrossRanks", "InOrder", "Reducer", "add_in_order", "groups_of"]

_GROUPS = 16  # more would cost memory, fewer keep threads waiting for the last one


def groups_of(shards: int, ranks: Ranks | None = None) -> int:
    """Return the number of groups for so many shards: at least one for each rank, if there are enough."""
    return min(_GROUPS if ranks is None else max(_GROUPS, ranks.size), shards)


def add_in_order(sums: Iterable[GradSum]) -> GradSum:
    """Return the total of some sums; the first one's gradient becomes that of the total, if the library allows."""
    own = iter(sums)
    loss, rows, grad = next(own)
    for other in own:
        loss, rows = loss + other.loss, rows + other.rows
        grad += other.grad
    return GradSum(loss, rows, grad)


class Reducer(Protocol):
    """Adds up the groups' sums.

    Attributes
    ----------
    own : range
        The groups whose sums are computed in this process.
    """

    own: range

    def reduce(self, sums: Iterable[GradSum]) -> GradSum:
        """Return the total of all groups' sums, of which this process's own come in the order of the groups."""


class InOrder:
    """Adds up the sums of groups that are all of this process."""

    def __init__(self, groups: int) -> None:
        self.own = range(groups)

    def reduce(self, sums: Iterable[GradSum]) -> GradSum:
        return add_in_order(sums)


class AcrossRanks:
    """Adds up the sums of groups that each have a rank: each one adds up a piece of all gradients, on the host.

    Parameters
    ----------
    ranks : Ranks
    groups, size : int
        How many groups, and how many parameters.
    device : Device
        Where the sums are, and the total is to be.
    dtype : str
        Of gradients.
    """

    def __init__(self, ranks: Ranks, groups: int, size: int, device: Device, dtype: str) -> None:
        self.own, self._ranks, self._device, self._dtype = ranks.share(groups), ranks, device, dtype
        self._pieces = [ranks.share(size, rank) for rank in range(ranks.size)]
        self._groups = [len(ranks.share(groups, rank)) for rank in range(ranks.size)]

    def reduce(self, sums: Iterable[GradSum]) -> GradSum:
        host, comm = self._device.to_host, self._ranks.comm
        losses: list[Any] = []
        grads: list[np.ndarray[Any, Any]] = []
        for loss, rows, grad in sums:
            losses.append((host(loss), rows))
            grads.append(host(grad))
        lengths = list(map(len, self._pieces))
        own = lengths[self._ranks.rank]
        none = np.empty(0, self._dtype)
        sent = np.concatenate([none, *(grad[piece.start : piece.stop] for piece in self._pieces for grad in grads)])
        pieces = np.empty((sum(self._groups), own), self._dtype)
        comm.Alltoallv((sent, [len(grads) * length for length in lengths]), (pieces, [n * own for n in self._groups]))
        each = zip(chain.from_iterable(comm.allgather(losses)), pieces, strict=True)
        loss, rows, piece = add_in_order(GradSum(loss, rows, piece) for (loss, rows), piece in each)
        total = np.empty(sum(lengths), self._dtype)
        comm.Allgatherv(piece, (total, lengths))
        return GradSum(self._device.asarray(loss), rows, self._device.asarray(total))
