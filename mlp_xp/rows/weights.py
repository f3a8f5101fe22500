"""Targets whose rows do not all count the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..devices import Array

__all__ = ["Weighted"]


@dataclass(frozen=True, eq=False)
class Weighted:
    """Targets (n, ...) and how much each row counts, (n,): a loss and its slope are multiplied by it.

    It is cut into shards like the targets alone.
    """

    y: Array
    weights: Array

    def __getitem__(self, index: Any) -> Weighted:
        return Weighted(self.y[index], self.weights[index])

    def take(self, index: Array, xp: Any) -> Weighted:
        """Return the rows of this index."""
        return Weighted(xp.take(self.y, index, axis=0), xp.take(self.weights, index, axis=0))
