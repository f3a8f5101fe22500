"""What an engine is: where rows are and updates are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, SupportsFloat

import numpy as np

from ..devices import Array
from ..dropout import Dropout
from ..mlp import MLP
from ..objective import Objective, Targets
from ..optim import Optimizer, OptimizerState
from ..params import GradSum
from ..rows.batches import shuffled_rows
from ..rows.plan import Plan
from ..rows.source import Rows
from ..rows.stored import come_in_blocks, shuffled_chunks
from .ranks import Ranks

__all__ = ["Done", "Engine", "Setup"]


@dataclass(frozen=True, eq=False)
class Setup:
    """Everything that a training needs, checked.

    Attributes
    ----------
    model : MLP
        Its parameters are where the training begins.
    objective : Objective
    optimizer : Optimizer
    rows, targets : Rows and Targets
    batch_size : int or None
        Rows per update, no more than there are; None for all.
    plan : Plan
    threads : int
        The most threads to use on the CPU.
    order : callable, optional
        ``order(epoch)`` is the order of the rows (n,) in an epoch of mini-batches, in place of the model's own.
    ranks : Ranks, optional
        The processes that share the work, if the engine can; all of them have the same rows.
    dropout : Dropout, optional
        If units are dropped.
    """

    model: MLP
    objective: Objective
    optimizer: Optimizer
    rows: Rows
    targets: Targets
    batch_size: int | None
    plan: Plan
    threads: int
    order: Callable[[int], np.ndarray[Any, Any]] | None = None
    ranks: Ranks | None = None
    dropout: Dropout | None = None

    def row_order(self, epoch: int) -> np.ndarray[Any, Any]:
        """Return the order of the rows (n,) in an epoch of mini-batches."""
        if self.order is not None:
            return self.order(epoch)
        rows = self.rows
        shuffled = shuffled_chunks if come_in_blocks(rows) else shuffled_rows
        return shuffled(self.model.seed, epoch, rows.shape[0])

    def updates_at_once(self, count: int) -> int:
        """Return how many updates to do before `pause` is asked, given a number that a clock suggests.

        All ranks do as many as the first, and so ask equally often.
        """
        return count if self.ranks is None else self.ranks.of_first(count)


class Done(NamedTuple):
    """How far an epoch has come.

    Attributes
    ----------
    updates, rows : int
        Updates, and the rows that they saw.
    loss_sum : float or 0-d array of the device
        Sum of the rows' losses, with the penalty.
    seconds : float, or an object that ``float`` converts once the device is done
    final : bool
        Whether the optimizer has nothing left to do: no epoch follows.
    """

    updates: int = 0
    rows: int = 0
    loss_sum: SupportsFloat = 0.0
    seconds: SupportsFloat = 0.0
    final: bool = False


class Engine(Protocol):
    """Where rows are and updates are computed; an epoch is ``begin``, and ``advance`` until all updates are done.

    Every engine trains the same: what it overrides of :class:`mlp_xp.engines.host.HostEngine` is there for speed.

    Attributes
    ----------
    updates : int
        Updates in an epoch.
    plan : Plan
        As it is carried out.
    shared : bool
        Whether the ranks share each update; else each one does all of it.
    """

    updates: int
    plan: Plan
    shared: bool

    def grad_sum(self, theta: Array) -> GradSum:
        """Return the sums of losses and gradients over all rows at `theta` (P,), in the order of the data.

        They are those of the whole network: nothing is dropped.

        If there are ranks, all of them have to ask.
        """

    def begin(self, theta: Array, epoch: int, lr: float, done: Done) -> None:
        """Begin an epoch at `theta` (P,), in the order of the data, or continue one that is `done` in part."""

    def advance(self, pause: Callable[[], bool] | None) -> Done:
        """Do updates until the epoch is over or `pause` answers True; return what is done of the epoch.

        It is asked after each update but the last, by an engine that does many at once after each piece of its work. If
        an update is several pieces, none of it is done before its last one.
        """

    def theta(self) -> Array:
        """Return a copy of the parameters (P,), in the order of the data."""

    def gradient(self) -> Array | None:
        """Return the gradient (P,) of the last update that kept one, in the plan's order; valid until the next."""

    def state(self) -> OptimizerState:
        """Return the optimizer's state: arrays (P,) in the plan's order, valid until the next update, and numbers."""

    def restore(self, state: OptimizerState) -> None:
        """Take up a state of the optimizer whose arrays are on the host, in the order of the data."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
