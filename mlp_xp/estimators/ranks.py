"""A fit whose work several processes share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..mlp import MLP
from ..rows.source import Rows
from ..runs.agreement import Agreement
from ..runs.training import sketch

__all__ = ["OnRanks"]

_FREE = ("random_state", "verbose")  # parameters that ranks may have of their own: rank 0 draws for all


class OnRanks:
    """An estimator that knows, while `fit` has a communicator, who shares its work."""

    _ranks = Agreement()

    @contextmanager
    def _among(self, comm: Any) -> Iterator[None]:
        """Share the work with the processes of a communicator; what is copied or stored knows nothing of them."""
        with Agreement(comm) as self._ranks:
            try:
                yield
            finally:
                del self._ranks

    def _compare(self, parameters: dict[str, Any], model: MLP, rows: Rows, y: Any, weights: Any) -> None:
        """Raise a ValueError on all ranks unless model, data and parameters are the same on all."""
        if self._ranks.size > 1:
            given = {name: value for name, value in parameters.items() if name not in _FREE}
            targets = replace(model.targets(y, len(y)), weights=weights)
            self._ranks.compare({**given, **sketch(model, (rows, targets))})
