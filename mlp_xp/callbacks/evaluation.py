"""Loss and score on data that are not trained with."""

from __future__ import annotations

import logging
from typing import Any

from ..engines import Ranks
from ..mlp import MLP
from ..objective import Targets
from ..rows.source import Rows

__all__ = ["Evaluation", "score_name"]

_log = logging.getLogger(__name__)


def score_name(model: MLP) -> str:
    """Return what :meth:`mlp_xp.MLP.score` is: ``"r2"`` for outputs that are values, else ``"accuracy"``."""
    return "r2" if model.task == "values" else "accuracy"


class Evaluation:
    """Measures the loss and the score on (X, y) after each epoch, under a name of their own.

    With the name ``"val"`` the metrics are ``val_loss`` and ``val_accuracy`` (``val_r2`` if the outputs are values);
    ``fit(..., validation=(X, y))`` does just that. Give test data another name, such as ``"test"``, and choose nothing
    by them.

    Parameters
    ----------
    name : str
        What the names of the metrics begin with.
    X : array (n, n_0)
    y : array
        As for :meth:`mlp_xp.MLP.loss_and_gradient`.
    comm : mpi4py.MPI.Comm, optional
        Share the work with the other processes of this communicator, which have the same data, model and callback, in
        the same place; ``fit(..., comm=comm)`` compares them. What is measured has the same bits in all of them as
        without it.

    Raises
    ------
    ValueError
        If the name is no identifier; at the start of ``fit``, if the data do not fit the model.

    Examples
    --------
    >>> import mlp_xp as mx
    >>> (X, y), test = mx.datasets.moons(seed=0), mx.datasets.moons(seed=1)
    >>> history = mx.fit(mx.MLP([2, 8, 2]), X, y, epochs=3, callbacks=[mx.callbacks.Evaluation("test", *test)])
    >>> list(history.columns())
    ['epoch', 'loss', 'test_loss', 'test_accuracy', 'lr', 'seconds']
    """

    def __init__(self, name: str, X: Any, y: Any, comm: Any = None) -> None:
        if not (isinstance(name, str) and name.isascii() and name.isidentifier() and not name.startswith("_")):
            raise ValueError(f"the name of an evaluation must be a word such as 'val' or 'test', got {name!r}")
        self.name, self.X, self.y = name, X, y
        self.ranks = None if comm is None else Ranks(comm)
        self.data: tuple[Rows, Targets] | None = None
        self.measures: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Evaluation({self.name!r})"

    def begin(self, model: MLP) -> tuple[Rows, Targets]:
        """Open the data, once for all epochs, where the model computes, or on the host if there is no room for them."""
        rows = model.open(self.X)
        try:
            rows = rows.to(model.device)
        except MemoryError as error:
            reason = str(error)  # a record with the error itself would keep its frames alive
            _log.warning(
                "%s has no memory for the data of %r, which stay on the host: %s", model.device.name, self, reason
            )
        self.data = rows, model.targets(self.y, rows.shape[0])
        self.measures = f"{self.name}_loss", f"{self.name}_{score_name(model)}"
        return self.data

    def __call__(self, state: Any) -> None:
        rows, targets = self.data or self.begin(state.model)
        state.metrics.update(zip(self.measures, state.model.evaluate(rows, targets, self.ranks), strict=True))

    def close(self) -> None:
        """Release the data."""
        self.data = None
