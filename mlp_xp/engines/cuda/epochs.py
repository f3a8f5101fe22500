"""Whole epochs on a GPU: the host starts them and reads a loss, nothing else.

A step gathers its rows, computes their gradient, updates the parameters and counts itself, all from what it finds in
the device's memory, so that steps can be captured once and replayed as a CUDA graph.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, SupportsFloat

import numpy as np

from ...devices import Array
from ...kernels.cuda.capturable import PENALTY_BLOCKS, KeptKernels
from ...kernels.cuda.graph import Graphs
from ...kernels.cuda.sources import RANGE, THREADS, Kernel, grid_for
from ...mlp import MLP
from ...model import grad_sum
from ...optim import Adam, Optimizer, State
from ...rows.plan import Plan
from .descent import Descent
from .rows import MiniBatch, Rows, Shard, Streamed, WholeBatch

__all__ = ["CudaEpochs", "Watch", "make_epochs"]

_log = logging.getLogger(__name__)

_MOST_STEPS = 512  # of a graph: beyond, the time to start one is negligible, and its memory is not
_SHORTAGE = "MemoryAllocation", "OUT_OF_MEMORY", "ALLOC_FAILED"  # what CUDA, its driver and cuBLAS say of it
_LEAST_ROWS = 256  # of a shard; with fewer a GPU is no faster than a CPU
_ENOUGH_ROWS = 8192  # of a shard: sooner than with fewer, data are left on the host


class Watch:
    """The time between two moments of the work that a device was asked for; ``float`` waits for it, and has seconds.

    Parameters
    ----------
    xp : module
        ``array_api_compat.cupy``.
    before : float or Watch
        To begin with.
    """

    def __init__(self, xp: Any, before: SupportsFloat) -> None:
        self.xp, self.before = xp, before
        self.start = self.end = xp.cuda.get_current_stream().record()

    def stop(self) -> Watch:
        """Take the time now."""
        self.end = self.xp.cuda.get_current_stream().record()
        return self

    def __float__(self) -> float:
        self.end.synchronize()
        return float(self.before) + float(self.xp.cuda.get_elapsed_time(self.start, self.end)) / 1000


class CudaEpochs:
    """Epochs of training on a GPU, in which the host has no part once they are captured.

    Parameters
    ----------
    model : MLP
        On a CUDA device; its parameters are where the training begins.
    optimizer : Optimizer
    X, y : array (n, n_0) and (n, ...)
        As :meth:`MLP.check_features` and :meth:`MLP.check_targets` return them; y on the host.
    batch_size : int or None
        Rows of an update; None for all.
    plan : Plan
    shard_rows : int
        Rows to work on at a time.
    streamed : bool
        Whether the data stay on the host, where X has to be then, and visit the device in every epoch.

    Attributes
    ----------
    updates : int
        In each epoch.
    plan : Plan
        As it is carried out.
    gradient : array (P,)
        Gradient of the last update's mean loss, with the L2 term's, in the plan's order; valid until the next epoch.
    """

    def __init__(
        self,
        model: MLP,
        optimizer: Optimizer,
        X: Array,
        y: Array,
        batch_size: int | None,
        plan: Plan,
        shard_rows: int,
        streamed: bool,
    ) -> None:
        xp, n = model.device.xp, X.shape[0]
        size = n if batch_size is None else min(batch_size, n)
        self._sizes = sizes = (size,) * (n // size) + (n % size,) * (n % size > 0)
        self.model, self.optimizer, self.plan, self.updates = model, optimizer, plan, len(sizes)
        rows = min(size, shard_rows)
        self._kernels = KeptKernels(xp, model.dtype, model.precision, -(-size // rows), rows)
        self._step, self._sums = xp.zeros(2, dtype=xp.int32), xp.zeros(1, dtype=xp.float64)
        self._rows: Rows
        if streamed:
            self.plan = Plan("dense", "the data come from the host: the device has no room for them", X.shape[1])
            self._rows = Streamed(self._kernels, X, y, sizes, shard_rows)
        elif batch_size is None:
            self._rows = WholeBatch(self._kernels, model.device, X, y, plan, shard_rows)
        else:
            self._rows = MiniBatch(self._kernels, model.device, X, y, plan, sizes, shard_rows, self._step)
        self._theta = self.plan.inward(model.theta, model)
        self._gradients = xp.zeros(model.theta.shape, dtype=model.theta.dtype)
        self._params, self._into = (model.layout.split(vector, xp) for vector in (self._theta, self._gradients))
        self._descent = Descent(self._kernels, optimizer, self._theta)
        self._outward = self.plan.outward(model.device.asarray(np.arange(model.layout.size, dtype=np.int32)), model)
        self._tables: dict[int, tuple[Array, int]] = {}
        self._graphs = Graphs(xp, self._rows.captures)
        self._known, self._done = model.theta, 0

    @property
    def gradient(self) -> Array:
        return self._descent.gradient

    @property
    def state(self) -> State:
        """The optimiser's state, as its ``init`` has it: arrays (P,) in the plan's order, and numbers.

        The arrays are valid until the next epoch.
        """
        return {**self._descent.arrays, **({"updates": self._done} if isinstance(self.optimizer, Adam) else {})}

    def resume(self, state: State, updates: int, loss_sum: float) -> None:
        """Go on after so many updates of an epoch that have this sum of losses.

        Parameters
        ----------
        state : dict
            The optimiser's, as in :attr:`state`, but with arrays of the host in the order of the data.
        updates : int
        loss_sum : float
        """
        for name, array in self._descent.arrays.items():
            array[...] = self.plan.inward(self.model.device.asarray(state[name]), self.model)
        self._done = state.get("updates", 0)
        self._step.set(np.asarray([self._done, updates], np.int32))
        self._sums.set(np.asarray([loss_sum], np.float64))

    def take_memory(self) -> CudaEpochs:
        """Compute the gradient of a shard of each size, of whatever there is, and hold what epochs hand out.

        Raises
        ------
        MemoryError
            If the device has too little; nothing was trained then.
        """
        self._graphs.call(self._rehearse)
        held = [self.copy_theta() for _ in range(3)]
        del held
        self.model.device.synchronize()
        return self

    def run_epoch(self, theta: Array, lr: float, order: Any, updates: int) -> Iterator[int]:
        """Train one epoch, piece by piece; yield the number of its updates that were asked for after each.

        Parameters
        ----------
        theta : array (P,)
            The parameters to begin at, in the order of the data.
        lr : float
            Learning rate of the epoch.
        order : array of int (n,) or None
            On the host: the order of the rows, if there are mini-batches.
        updates : int
            Leave out so many at the beginning, as told to :meth:`resume`.
        """
        if theta is not self._known:
            self._theta[...] = self.plan.inward(theta, self.model)
        self._descent.set_rate(lr)
        self._rows.begin(order, updates)
        for i in range(updates, self.updates, _MOST_STEPS):
            piece = self._sizes[i : i + _MOST_STEPS]
            self._graphs.run(piece, partial(self._run, piece))
            self._done += len(piece)
            yield i + len(piece)

    def copy_theta(self) -> Array:
        """Return the parameters (P,) in the order of the data; the next epoch, given them, need not read them."""
        self._known = self.model.device.xp.take(self._theta, self._outward)
        return self._known

    @property
    def loss_sum(self) -> Array:
        """Sum () over the updates of the epoch of their mean loss, with the L2 term, times their rows; a new array."""
        return self._sums[0].copy()

    def _run(self, sizes: tuple[int, ...]) -> None:
        for rows in sizes:
            self._update(rows)

    def _rehearse(self) -> None:
        for shard in self._rows.samples():
            self._gradient([shard])  # one at a time: there is room for the sums of one step

    def _update(self, rows: int) -> None:
        """Launch one step, of so many rows."""
        k = self._kernels
        self._gradient(self._rows.shards(rows))
        ranges, shards = self._ranges(rows)
        parameters, real = np.int32(self._theta.size), k.dtype
        if l2 := self.optimizer.l2:
            grid = grid_for(self._theta.size, THREADS, PENALTY_BLOCKS)
            penalty = k.take_totals(grid)
            kernel = Kernel("optimizers", "squared_weights")
            k.launch(kernel, grid, self._theta, ranges, penalty, parameters, real(rows * l2 / 2))
        self._descent(ranges, shards, self._step, rows)
        tick = Kernel("optimizers", "tick")
        k.launch(tick, 1, self._step, k.totals, np.int32(k.used), self._sums, np.int32(self.updates))

    def _gradient(self, shards: Iterable[Shard]) -> None:
        """Launch the sums over shards, which replace those of the step before."""
        k = self._kernels
        k.begin_step()
        for i, (X, y) in enumerate(shards):
            k.adds = i > 0
            if k.grad_sum(self.model.network, self._params, X, y, self._into) is None:
                grad_sum(self.model.network, k, self._params, X, y, self._into)

    def _ranges(self, rows: int) -> tuple[Array, int]:
        """Return where a step of so many rows leaves its gradients, and the most parts that one is in."""
        if rows not in self._tables:
            table, k = np.zeros(2 * len(self.model.layout.blocks), RANGE), self._kernels
            lengths = [n for d, h in pairwise(self.model.sizes) for n in (h, d * h)]  # b and W, layer by layer
            table["end"] = np.cumsum(lengths)
            size, first = self._gradients.itemsize, k._address(self._gradients)
            table["gradient"] = first + size * (table["end"] - lengths)
            table["shards"] = 1
            table["is_bias"] = [1, 0] * len(self.model.layout.blocks)
            if k.head_gradients is not None:
                parts, head = k.head_gradients
                for row, at in ((0, 0), (2, head.hidden), (3, head.hidden + head.classes)):
                    table["gradient"][row] = k._address(parts) + size * at
                    table["stride"][row], table["shards"][row] = head.gradients, parts.shape[0]
            self._tables[rows] = k.xp.asarray(table.view(np.uint8)), int(table["shards"].max())
        return self._tables[rows]


def make_epochs(model: MLP, optimizer: Optimizer, X: Array, y: Array, batch_size: int | None, plan: Plan) -> CudaEpochs:
    """Return epochs that the device's memory suffices for.

    Where it does not suffice for shards of the usual size, they get smaller, and then data that came from the host stay
    there. Smaller shards round differently; the log says what was chosen, and what it was that did not fit.

    Parameters
    ----------
    model, optimizer, X, y, batch_size, plan
        As for :class:`CudaEpochs`.

    Raises
    ------
    MemoryError
        If there is too little for anything.
    """
    name, reason, size = model.device.name, "", X.shape[0] if batch_size is None else batch_size
    for streamed, shard_rows in _attempts(model.device.shard_rows, size, on_host=type(X) is np.ndarray):
        what = f"shards of {shard_rows} rows, with the data on the {'host' if streamed else 'device'}"
        try:
            epochs = CudaEpochs(model, optimizer, X, y, batch_size, plan, shard_rows, streamed).take_memory()
        except Exception as error:
            if not isinstance(error, MemoryError) and not any(word in str(error) for word in _SHORTAGE):
                raise
            reason = str(error)
            _log.warning("%s has no memory for %s: %s", name, what, reason)
        else:
            if reason:
                _log.warning("%s goes on with %s", name, what)
            return epochs
        model.device.xp.get_default_memory_pool().free_all_blocks()
    raise MemoryError(
        f"device {name!r} has too little memory even for {_LEAST_ROWS} rows at a time and "
        f"{model.layout.size} parameters: {reason} Use smaller layers, or device 'cpu'"
    )


def _attempts(shard_rows: int, size: int, on_host: bool) -> Iterator[tuple[bool, int]]:
    """Yield what to try for batches of some size: whether to leave the data on the host, and the rows of a shard."""
    for streamed in (False, True) if on_host else (False,):
        yield streamed, shard_rows
        rows, least = shard_rows // 2, _ENOUGH_ROWS if on_host and not streamed else _LEAST_ROWS
        while rows >= least:
            if streamed or rows < size:  # on the device larger shards are none
                yield streamed, rows
            rows //= 2
