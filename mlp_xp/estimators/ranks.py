"""A fit: what several processes share of it, and that one that is refused changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any

from sklearn.base import BaseEstimator, _fit_context

from ..mlp import MLP
from ..objective import Targets
from ..rows.source import Rows
from ..runs.agreement import Agreement
from ..runs.training import sketch
from .data import Data

__all__ = ["OnRanks", "fitting"]

_FREE = ("random_state", "verbose")  # parameters that ranks may have of their own: rank 0 draws for all


def fitting(method: Callable[..., Any]) -> Any:
    """Make a method one that fits, as scikit-learn does, among the processes of its `comm`, if it is given one.

    They meet before parameters are checked: one that is refused on some ranks is an error on all. If it is refused,
    the estimator is left as it was before.
    """
    checked = _fit_context(prefer_skip_nested_validation=True)(method)

    @wraps(method)
    def fit(estimator: OnRanks, *arguments: Any, **named: Any) -> Any:
        with estimator._among(named.get("comm")), estimator._unchanged_until_it_begins():
            return checked(estimator, *arguments, **named)

    return fit


class OnRanks(BaseEstimator):  # type: ignore[misc]
    """An estimator that knows, while it is fitted with a communicator, who shares its work."""

    _ranks = Agreement()
    _begun = True

    def _rows(self, model: MLP, X: Any) -> Rows:
        """Return samples that were checked."""
        raise NotImplementedError

    @contextmanager
    def _among(self, comm: Any) -> Iterator[None]:
        """Share the work with the processes of a communicator; what is copied or stored knows nothing of them."""
        with Agreement(comm) as self._ranks:
            try:
                yield
            finally:
                del self._ranks

    @contextmanager
    def _unchanged_until_it_begins(self) -> Iterator[None]:
        """Take back what a fit has changed if it ends in an error before it is marked as `_begun`."""
        before = dict(vars(self))
        self._begun = False
        try:
            yield
        except BaseException:
            if not self._begun:
                self.__dict__ = before
            raise
        finally:
            self.__dict__.pop("_begun", None)

    def _sketch(self, model: MLP, data: Data, held_out: Data | None, checkpoint: Any) -> dict[str, Any]:
        """Return what has to be the same on all ranks; nothing if there is one."""
        if self._ranks.size == 1:
            return {}
        given = {name: value for name, value in self.get_params().items() if name not in _FREE}
        validation = None if held_out is None else self._opened(model, held_out)
        return {**given, "checkpoint": checkpoint, **sketch(model, self._opened(model, data), validation)}

    def _opened(self, model: MLP, data: Data) -> tuple[Rows, Targets]:
        return self._rows(model, data.X), replace(model.targets(data.y, len(data.y)), weights=data.weights)
