"""The one order of additions: the same bits, however many workers there are and whichever is first.

Shards are dealt into groups. Their number depends on the data alone, unless there are more ranks. A group adds up its
own shards in order, and the groups are added in order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ..params import GradSum
from .ranks import Ranks

__all__ = ["InOrder", "Reducer", "groups_of"]

_GROUPS = 16  # more would cost memory, fewer keep threads waiting for the last one


def groups_of(shards: int, ranks: Ranks | None = None) -> int:
    """Return the number of groups for so many shards: at least one for each rank, if there are enough."""
    return min(_GROUPS if ranks is None else max(_GROUPS, ranks.size), shards)


class Reducer(Protocol):
    """Adds up the groups' sums."""

    def reduce(self, sums: Iterable[GradSum]) -> GradSum:
        """Return the total of the groups' sums, which come in the order of the groups."""


class InOrder:
    """Adds up the groups' sums of this process; the first one's gradient becomes the total, if the library allows."""

    def reduce(self, sums: Iterable[GradSum]) -> GradSum:
        own = iter(sums)
        loss, rows, grad = next(own)
        for other in own:
            loss, rows = loss + other.loss, rows + other.rows
            grad += other.grad
        return GradSum(loss, rows, grad)
