"""The engine for any array library: the host starts each operation, and the optimizer's own rule updates.

It is complete. Every other engine overrides pieces of it, or does the same by other means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from ..devices import Array
from ..dropout import Samples
from ..kernels import Kernels
from ..model import Factors, Network, grad_sum
from ..optim import OptimizerState
from ..params import GradSum, Parameters
from ..rows.batches import Batches, FullBatch, MiniBatches, Shard, shards_as_stored
from ..rows.plan import Plan
from ..rows.stored import StoredRows
from .base import Done, Setup
from .reduce import AcrossRanks, InOrder, Reducer, add_in_order, groups_of

__all__ = ["HostEngine", "as_stored"]


class HostEngine:
    """Updates by the operations of any library, one after another, with that library's own threads.

    Parameters
    ----------
    setup : Setup
    """

    kernels: Kernels

    def __init__(self, setup: Setup) -> None:
        self.model, self.optimizer, self.objective = setup.model, setup.optimizer, setup.objective
        self.device, self.layout, self.plan = self.model.device, self.model.layout, setup.plan
        self.network = Network(self.model.network.g, setup.objective)
        self.batches = self._make_batches(setup)
        self.updates = self.batches.updates
        self.reducer = self._make_reducer(setup)
        self.shared = isinstance(self.reducer, AcrossRanks)
        self.kernels = self._make_kernels(setup)
        self._is_bias = self.device.asarray(self.layout.is_bias().astype(self.model.dtype))
        with self.device.active():
            self._state = self.optimizer.init(self.model.theta)
        self._gradient: Array | None = None
        self._weighted = setup.targets.weights is not None
        self._dropout = setup.dropout
        self._dropout_keys: Any = None  # of the epoch; None outside of epochs, where nothing is dropped

    def _make_batches(self, setup: Setup) -> Batches:
        rows, y = setup.rows, setup.targets.on(self.device)
        if not isinstance(rows, StoredRows) or self.device.hardware() is not None:  # the processor has no other memory
            rows = rows.to(self.device)
        if setup.batch_size is None:
            return FullBatch(shards_as_stored(rows, y, self._shard_rows, self.device))
        return MiniBatches(rows, y, self.device, setup.row_order, setup.batch_size)

    @property
    def _shard_rows(self) -> int:
        """Rows of a full batch to work on at a time."""
        return self.device.shard_rows

    def _make_reducer(self, setup: Setup) -> Reducer:
        """Return what adds up the gradients of groups; a mini-batch is a single one, and each rank does all of it."""
        self.groups = 1
        if not isinstance(self.batches, FullBatch):
            return InOrder(1)
        self.groups = groups_of(len(self.batches.shards), setup.ranks)
        if setup.ranks is None or setup.ranks.size == 1 or self.groups == 1:
            return InOrder(self.groups)
        return AcrossRanks(setup.ranks, self.groups, self.layout.size, self.device, self.model.dtype)

    def _make_kernels(self, setup: Setup) -> Kernels:
        return self.model.kernels

    # The interface of engines.

    def grad_sum(self, theta: Array) -> GradSum:
        with self.device.active():
            inward, keys = self.plan.inward(theta, self.model), self._dropout_keys
            self._dropout_keys = None
            try:
                totals = (self._grad_sum(inward, shards) for shards in self.batches(1))
                return add_in_order(total._replace(grad=self.plan.outward(total.grad, self.model)) for total in totals)
            finally:
                self._dropout_keys = keys

    def begin(self, theta: Array, epoch: int, lr: float, done: Done) -> None:
        began = perf_counter()
        with self.device.active():
            self._theta = self.plan.inward(theta, self.model)
            self._rates, self._lr = self.optimizer.rates(epoch, self._is_bias), lr
        self._dropout_keys = None if self._dropout is None else self._dropout.keys(epoch)
        self._left: Iterator[Sequence[Shard]] = islice(self.batches(epoch), done.updates, None)
        self._done = done._replace(seconds=float(done.seconds) + perf_counter() - began)

    def advance(self, pause: Callable[[], bool] | None) -> Done:
        began, losses = perf_counter(), []
        updates, rows, loss_sum, seconds, _ = self._done
        with self.device.active():
            for shards in self._left:
                updates += 1
                loss, count = self._update(shards, last=updates == self.updates)
                losses.append(loss)
                rows += count
                if pause is not None and updates < self.updates and pause():
                    break
            # in float64, and only now: a float waits for the device
            loss_sum = float(loss_sum) + sum(map(float, losses))
        self._done = Done(updates, rows, loss_sum, float(seconds) + perf_counter() - began)
        return self._done

    def theta(self) -> Array:
        with self.device.active():
            return self.plan.outward(self._theta, self.model)

    def gradient(self) -> Array | None:
        return self._gradient

    def state(self) -> OptimizerState:
        return self._state

    def restore(self, state: OptimizerState) -> None:
        with self.device.active():
            self._state = {
                name: value
                if isinstance(value, int | float)
                else self.plan.inward(self.device.asarray(value), self.model)
                for name, value in state.items()
            }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forget the epoch, so that a thread which reads ahead for it ends."""
        self._left = iter(())

    # What it is made of, and what may be overridden.

    def _update(self, shards: Sequence[Shard], last: bool) -> tuple[Any, int]:
        """Do one update; return the sum () of its rows' losses, with the penalty, and their number."""
        count = self._count(shards)
        loss, rows, gradient = self._mean_gradient(shards, count)
        if self._weighted:
            loss = loss / count * rows
        if self.objective.penalizes:
            penalty, slope = self.objective.penalty(self._theta, self._is_bias, count)
            gradient += slope
            loss = loss + penalty * rows
        self._gradient = gradient
        self._descend(gradient)
        return loss, rows

    def _count(self, shards: Sequence[Shard]) -> Any:
        """Return what the mean over the rows of some shards is divided by: their number, or the sum () of weights."""
        if self._weighted:
            return sum(self.device.xp.sum(shard.y.weights) for shard in shards)
        return sum(shard.rows for shard in shards)

    def _mean_gradient(self, shards: Sequence[Shard], count: Any) -> tuple[Any, int, Array]:
        """Return the sum () of the losses of some shards, their rows, and the gradient (P,) of their mean loss."""
        loss, rows, gradient = self._grad_sum(self._theta, shards)
        gradient *= 1 / count
        return loss, rows, gradient

    def _descend(self, gradient: Array) -> None:
        """Update the parameters and the optimizer's state by the gradient (P,) of the mean loss."""
        self._theta, self._state = self.optimizer.update(self._theta, gradient, self._state, self._rates)

    def _grad_sum(self, theta: Array, shards: Sequence[Shard]) -> GradSum:
        """Return the sums over the rows of some shards at `theta` (P,), both in the plan's order."""
        params = self.layout.split(theta, self.device.xp)
        return self.reducer.reduce(self._add_up(params, shards[i :: self.groups]) for i in self.reducer.own)

    def _add_up(self, params: Parameters, shards: Sequence[Shard]) -> GradSum:
        """Return the sums over a group of shards."""
        xp = self.device.xp
        into = self.layout.split(self.device.zeros((self.layout.size,), self.model.dtype), xp)
        loss, rows = self._add_to(into, params, shards)
        return GradSum(loss, rows, self.layout.join(into, xp))

    def _add_to(self, into: Parameters, params: Parameters, shards: Sequence[Shard]) -> tuple[Any, int]:
        """Add the gradients of a group of shards to `into`; return the sum () of losses, and the number of rows."""
        loss: Any = 0
        for shard in shards:
            loss = self._grad_sum_of(shard, into, params) + loss
        return loss, sum(shard.rows for shard in shards)

    def _grad_sum_of(self, shard: Shard, into: Parameters, params: Parameters, scale: float | None = None) -> Any:
        """Return the sum () of a shard's losses; its gradient, times `scale` if given, is added to `into`."""
        X, y, samples = shard
        return grad_sum(self.network, self.kernels, params, X, y, into, scale, self._dropped(samples))[0]

    def _dropped(self, samples: Samples) -> Factors | None:
        """Return what dropout multiplies each layer by in the rows of some samples; None outside of epochs."""
        if self._dropout is None or self._dropout_keys is None:
            return None
        factors = self._dropout.of_rows(self._dropout_keys, samples, self.model.dtype)
        return [None if D is None else self.device.asarray(D) for D in factors]


def as_stored(setup: Setup) -> Setup:
    """Return the setup for a :class:`HostEngine`, which takes the columns as they are stored, whatever the plan."""
    if setup.plan.columns is None:
        return setup
    return replace(setup, plan=Plan("dense", "the host's engine takes the data as they are", setup.rows.shape[1]))
