"""The engine for a GPU: the host starts epochs and reads a loss, nothing else.

A step gathers its rows, computes their gradient, updates the parameters and counts itself, all from what it finds in
the device's memory. Steps can therefore be captured once and replayed as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

import numpy as np

from ...devices import Array
from ...kernels.cuda.capturable import PENALTY_BLOCKS, KeptKernels
from ...kernels.cuda.graph import Graphs
from ...kernels.cuda.sources import RANGE, THREADS, Kernel, grid_for
from ...model import Network, grad_sum
from ...optim import OptimizerState
from ...params import GradSum
from ...rows.plan import Plan
from ..base import Done, Setup
from ..host import HostEngine, as_stored
from .clock import Clock
from .gather import Shard
from .rows import MiniBatch, WholeBatch
from .share import Share
from .streamed import Streamed
from .update import Ranges, make_update

__all__ = ["CudaEngine"]

_MOST_STEPS = 512  # of a graph: with more, the time to start one is negligible already, and its memory is not


class CudaEngine:
    """Epochs of training on a GPU, in which the host has no part once they are captured.

    Parameters
    ----------
    setup : Setup
    shard_rows : int
        Rows to work on at a time.
    streamed : bool
        Whether the data stay on the host, where they have to be then, and visit the device in every epoch.
    share : Share, optional
        Of this rank, if several compute each update together.
    """

    def __init__(self, setup: Setup, shard_rows: int, streamed: bool, share: Share | None = None) -> None:
        self.model, self.device, self.plan = setup.model, setup.model.device, setup.plan
        self._setup, self._xp, self._share = setup, self.device.xp, share
        self.shared = share is not None
        self._network = Network(self.model.network.g, setup.objective)
        n = setup.rows.shape[0]
        self._size = size = setup.batch_size or n
        self._sizes = (size,) * (n // size) + (n % size,) * (n % size > 0)
        self.updates = len(self._sizes)
        self._done = Done()
        self._own = {rows: rows if share is None else len(share.rows(rows)) for rows in self._sizes}
        self._make_room(setup if share is None else share.setup, shard_rows, streamed)
        self._clock = Clock(self._xp)
        self._known, self._count = self.model.theta, 0

    def _make_room(self, setup: Setup, shard_rows: int, streamed: bool) -> None:
        model, xp, share = self.model, self._xp, self._share
        sizes = [self._own[size] for size in self._sizes]
        rows = min(sizes[0], shard_rows)
        k = self._kernels = KeptKernels(xp, model.dtype, model.precision, -(-sizes[0] // rows), rows)
        self._step, self._sums = xp.zeros(2, dtype=xp.int32), xp.zeros(1, dtype=xp.float64)
        if streamed:
            self.plan = Plan(
                "dense", "the data come from the host: the device has no room for them", self.model.sizes[0]
            )
            self._rows: WholeBatch | MiniBatch | Streamed = Streamed(k, setup, sizes, shard_rows)
        elif setup.batch_size is None:
            self._rows = WholeBatch(k, setup, shard_rows)
        else:
            self._rows = MiniBatch(k, setup, sizes, shard_rows, self._step)
        self._theta = self.plan.inward(model.theta, model)
        self._gradients = xp.zeros(model.theta.shape, dtype=model.theta.dtype)
        self._params, self._into = (model.layout.split(vector, xp) for vector in (self._theta, self._gradients))
        self._update = make_update(k, setup, self._theta, self._step)
        self._outward = self.plan.outward(self.device.asarray(np.arange(model.layout.size, dtype=np.int32)), model)
        self._tables: dict[int, Ranges] = {}
        if share is not None:
            self._total = xp.zeros(model.layout.size + 1, dtype=model.theta.dtype)  # gradient and loss of all ranks
            self._table_of_total = xp.asarray(self._table(self._total).view(np.uint8))
        captures = self._rows.captures and self._update.captures
        self._graphs = Graphs(xp, captures and (share is None or share.captures))

    def take_memory(self) -> Self:
        """Compute the gradient of a shard of each size, with whatever is in it, and make room for what epochs hand out.

        Raises
        ------
        MemoryError
            If the device has too little; nothing was trained then.
        """
        self._graphs.call(self._rehearse)
        held = [self.theta() for _ in range(3)]
        del held
        self.device.synchronize()
        return self

    # The interface of engines.

    def grad_sum(self, theta: Array) -> GradSum:
        return HostEngine(as_stored(self._setup)).grad_sum(theta)

    def begin(self, theta: Array, epoch: int, lr: float, done: Done) -> None:
        with self.device.active():
            self._clock.start(float(done.seconds))
            if theta is not self._known:
                self._theta[...] = self.plan.inward(theta, self.model)
            if done.updates:  # from a snapshot
                self._step.set(np.asarray([self._count, done.updates], np.int32))
                self._sums.set(np.asarray([float(done.loss_sum)], np.float64))
            self._done = done
            self._update.begin(epoch, lr)
            order = None if self._setup.batch_size is None else self._setup.row_order(epoch)
            if order is not None and self._share is not None:
                order = self._share.order(order, self._size)
            self._rows.begin(order, done.updates)

    def advance(self, pause: Callable[[], bool] | None) -> Done:
        with self.device.active():
            self._clock.go_on()
            updates = self._done.updates
            while updates < self.updates:
                piece = self._sizes[updates : updates + _MOST_STEPS]
                self._graphs.run(piece, partial(self._run, piece))
                updates, self._count = updates + len(piece), self._count + len(piece)
                if pause is not None and updates < self.updates and pause():
                    break
            rows = min(self._setup.rows.shape[0], updates * self._size)
            self._done = Done(updates, rows, self._sums[0].copy(), self._clock.stop())
            return self._done

    def theta(self) -> Array:
        with self.device.active():
            self._known = self._xp.take(self._theta, self._outward)  # given this, `begin` need not read it
            return self._known

    def gradient(self) -> Array:
        return self._update.gradient

    def state(self) -> OptimizerState:
        return self._update.state_after(self._count)

    def restore(self, state: OptimizerState) -> None:
        with self.device.active():
            for name, value in self._update.state.items():
                if isinstance(value, int | float):
                    self._update.state[name] = state[name]
                else:
                    value[...] = self.plan.inward(self.device.asarray(state[name]), self.model)
            self._count = state.get("updates", 0)
            self._step.set(np.asarray([self._count, 0], np.int32))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forget the epoch; what is on the device goes with its arrays."""
        self._rows.end()

    # The work of a step.

    def _run(self, sizes: tuple[int, ...]) -> None:
        for rows in sizes:
            self._take_step(rows)

    def _rehearse(self) -> None:
        for shard in self._rows.samples():
            self._gradient([shard])  # one at a time: there is room for the sums of one step

    def _take_step(self, rows: int) -> None:
        """Launch one step, of so many rows."""
        k = self._kernels
        self._gradient(self._rows.shards(self._own[rows]))
        ranges = self._ranges(rows) if self._share is None else self._exchange(rows, self._share)
        parameters, real = np.int32(self._theta.size), k.dtype
        if l2 := self._setup.objective.l2_of(rows):
            grid = grid_for(self._theta.size, THREADS, PENALTY_BLOCKS)
            penalty = k.take_totals(grid)
            kernel = Kernel("optimizers", "squared_weights")
            k.launch(kernel, grid, self._theta, ranges.table, penalty, parameters, real(rows * l2 / 2))
        self._update(ranges)
        tick = Kernel("optimizers", "tick")
        k.launch(tick, 1, self._step, k.totals, np.int32(k.used), self._sums, np.int32(self.updates))

    def _gradient(self, shards: Iterable[Shard]) -> None:
        """Launch the sums over shards, which replace those of the step before."""
        k = self._kernels
        k.begin_step()
        for i, (X, y) in enumerate(shards):
            k.adds = i > 0
            if k.grad_sum(self._network, self._params, X, y, self._into) is None:
                grad_sum(self._network, k, self._params, X, y, self._into)

    def _exchange(self, rows: int, share: Share) -> Ranges:
        """Launch the sum over all ranks of what their shares of a step left; return where it is."""
        k, total = self._kernels, self._total
        if self._own[rows]:
            collect, size = Kernel("optimizers", "collect", block=(32, THREADS // 32)), total.size
            k.launch(collect, grid_for(size, 32, size), total, self._ranges(rows).table, np.int32(size))
        else:
            total.fill(0)
        share.add_up(total)
        k.begin_step()
        k.take_totals(1)[...] = total[-1:]
        return Ranges(self._table_of_total, 1, rows)

    def _ranges(self, rows: int) -> Ranges:
        """Return where a step of so many rows leaves its gradients, and the sum of losses as one number more."""
        if rows not in self._tables:
            table, k = self._table(self._gradients), self._kernels
            if k.head_gradients is not None:
                parts, head = k.head_gradients
                for row, at in ((0, 0), (2, head.hidden), (3, head.hidden + head.classes)):
                    table["gradient"][row] = k._address(parts) + parts.itemsize * at
                    table["stride"][row], table["shards"][row] = head.gradients, parts.shape[0]
            loss = np.array([(self._theta.size + 1, k._address(k.totals), 1, k.used, 0)], RANGE)
            whole = np.concatenate([table, loss]).view(np.uint8)
            self._tables[rows] = Ranges(k.xp.asarray(whole), int(table["shards"].max()), rows)
        return self._tables[rows]

    def _table(self, gradients: Array) -> np.ndarray[Any, Any]:
        """Return the ranges of gradients (P,), layer by layer."""
        layers = range(len(self.model.layout.blocks))
        table = np.zeros(2 * len(layers), RANGE)
        lengths = [n for d, h in pairwise(self.model.sizes) for n in (h, d * h)]  # b and W
        table["end"] = np.cumsum(lengths)
        table["gradient"] = self._kernels._address(gradients) + gradients.itemsize * (table["end"] - lengths)
        table["shards"] = 1
        table["is_bias"] = [1, 0] * len(layers)
        return table
