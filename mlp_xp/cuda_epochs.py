"""Whole epochs on a GPU: the host starts them and reads a loss, nothing else.

A step gathers its rows, computes their gradient, updates the parameters and counts itself, all from what it finds in
the device's memory, so that steps can be captured once and replayed as a CUDA graph.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from .arrays import Array
from .cuda_descent import Descent
from .kernels.cuda import CudaKernels, grid_for
from .kernels.cuda_graph import Graphs
from .kernels.cuda_source import RANGE, THREADS, FusedHead, Kernel
from .mlp import MLP
from .model import grad_sum
from .optim import Adam, Optimizer, State

__all__ = ["CudaEpochs", "KeptKernels"]

_MOST_STEPS = 512  # of a graph: beyond, the time to start one is negligible, and its memory is not
_MOST_TOTALS = 2048  # blocks that leave a sum of losses behind, for a shard
_PENALTY_BLOCKS = 64
_MOST_BLOCKS = 4096  # that copy rows
_BOUNDARY = 16  # bytes


class _Slab:
    """An array (capacity, columns) that is handed out by rows, from the first, for each step anew."""

    def __init__(self, array: Array) -> None:
        self.array, self.used = array, 0

    def take(self, rows: int) -> Array:
        self.used += rows
        return self.array[self.used - rows : self.used, :]


class KeptKernels(CudaKernels):
    """The operations in arrays that every pass uses again, where a graph will find them.

    What is only added up at the end of a step, sums of losses and the gradients of a head, stays until then.

    Parameters
    ----------
    xp, dtype, precision
        As for :class:`CudaKernels`.
    shards : int
        The most shards of a step.
    """

    def __init__(self, xp: Any, dtype: str, precision: str, shards: int) -> None:
        super().__init__(xp, dtype, precision)
        self.shards = shards
        self.totals = _Slab(xp.zeros((shards * _MOST_TOTALS + _PENALTY_BLOCKS, 2), dtype=self.dtype))
        self.head: FusedHead | None = None
        self.gradients: _Slab | None = None
        self._arrays: dict[Any, Array] = {}
        self._used = 0

    def begin_step(self) -> None:
        """Forget the sums of the step before."""
        self.totals.used = 0
        if self.gradients is not None:
            self.gradients.used = 0

    def features(self, X: Array) -> Array:
        self._used = 0
        return super().features(X)

    def _empty(self, *shape: int, dtype: Any = None) -> Array:
        key = self._used, shape, dtype
        self._used += 1
        if key not in self._arrays:
            self._arrays[key] = super()._empty(*shape, dtype=dtype)
        return self._arrays[key]

    def _totals(self, blocks: int) -> Array:
        return self.totals.take(blocks)

    def _gradients(self, blocks: int, head: FusedHead) -> Array:
        if self.gradients is None:
            self.head = head
            self.gradients = _Slab(self.xp.empty((self.shards * self._chip()[0], head.gradients), dtype=self.dtype))
        return self.gradients.take(blocks)

    def _add_head(self, gradients: Array, head: FusedHead, into: Any) -> None:
        """Leave them where they are: the update adds them up."""

    def _sum(self, totals: Array) -> Array:
        """Leave them where they are: ``tick`` adds them up."""
        return totals


class CudaEpochs:
    """Epochs of training on a GPU, in which the host has no part once they are captured.

    Parameters
    ----------
    model : MLP
        On a CUDA device; its parameters are where the training begins.
    optimizer : Optimizer
    X, y : array (n, n_0) and (n, ...)
        As :meth:`MLP.check_features` and :meth:`MLP.check_targets` return them.
    batch_size : int, optional
        Rows of an update; None for all.

    Attributes
    ----------
    gradient : array (P,)
        Gradient of the last update's mean loss, with the L2 term's; valid until the next epoch.
    """

    def __init__(self, model: MLP, optimizer: Optimizer, X: Array, y: Array, batch_size: int | None = None) -> None:
        xp, n = model.device.xp, X.shape[0]
        size = n if batch_size is None else min(batch_size, n)
        sizes = [size] * (n // size) + [n % size] * (n % size > 0)
        self.model, self.optimizer, self.updates, self._batch_size = model, optimizer, len(sizes), size
        self._pieces = [tuple(sizes[i : i + _MOST_STEPS]) for i in range(0, len(sizes), _MOST_STEPS)]
        self._shard_rows = model.device.shard_rows
        self._kernels = KeptKernels(xp, model.dtype, model.precision, -(-size // self._shard_rows))
        self._theta, self._sums = model.theta.copy(), xp.zeros(model.theta.shape, dtype=model.theta.dtype)
        self._params, self._into = (model.layout.split(vector, xp) for vector in (self._theta, self._sums))
        self._descent = Descent(self._kernels, optimizer, self._theta)
        self._step, self._means = xp.zeros(2, dtype=xp.int32), xp.zeros(2, dtype=self._kernels.dtype)
        self._order = None if batch_size is None else xp.zeros(n, dtype=xp.int32)
        self._tables: dict[int, tuple[Array, int]] = {}
        self._graphs = Graphs(xp)
        self._n, self._known = n, None
        self._done = 0
        self._X, self._y = (self._on_boundary(array) for array in (X, y))
        self._batches: dict[int, tuple[Array, Array]] = {}
        self._one_batch = batch_size is None and n <= self._shard_rows
        if self._one_batch:  # the same in every epoch
            self._gather(0, n)
            self._X = self._y = None

    @property
    def gradient(self) -> Array:
        return self._descent.gradient

    @property
    def state(self) -> State:
        """The optimiser's state, as its ``init`` has it: arrays (P,), valid until the next epoch, and numbers."""
        return {**self._descent.arrays, **({"updates": self._done} if isinstance(self.optimizer, Adam) else {})}

    @state.setter
    def state(self, state: State) -> None:
        for name, array in self._descent.arrays.items():
            array[...] = state[name]
        self._done = state.get("updates", 0)
        self._step.set(np.asarray([self._done, 0], np.int32))

    def run_epoch(self, theta: Array, lr: float, order: Any = None) -> tuple[Array, Array]:
        """Train one epoch.

        Parameters
        ----------
        theta : array (P,)
            The parameters to begin at.
        lr : float
            Learning rate of the epoch.
        order : array of int (n,), optional
            On the host: the order of the rows, if there are mini-batches.

        Returns
        -------
        theta : array (P,)
            The parameters after the epoch; a new array.
        loss : 0-d array
            Mean loss, with the L2 term, that the epoch's gradients were computed at.
        """
        if theta is not self._known:
            self._theta[...] = theta
        if self._order is not None:
            self._order.set(np.ascontiguousarray(order, np.int32))
        self._descent.set_rate(lr)
        for piece in self._pieces:
            self._graphs.run(piece, partial(self._run, piece))
        self._done += self.updates
        self._known = self._theta.copy()
        return self._known, self._means[0].copy()

    def _run(self, sizes: tuple[int, ...]) -> None:
        for rows in sizes:
            self._update(rows)

    def _update(self, rows: int) -> None:
        """Launch one step, of so many rows."""
        net, k, params, into = self.model.network, self._kernels, self._params, self._into
        k.begin_step()
        for offset in range(0, rows, self._shard_rows):
            k.adds = offset > 0  # the first shard's gradients replace those of the step before
            X, y = self._gather(offset, min(self._shard_rows, rows - offset))
            if k.grad_sum(net, params, X, y, into) is None:
                grad_sum(net, k, params, X, y, into)
        ranges, shards = self._ranges(rows)
        parameters, real = np.int32(self._theta.size), k.dtype
        if l2 := self.optimizer.l2:
            grid = grid_for(self._theta.size, THREADS, _PENALTY_BLOCKS)
            pairs = k.totals.take(grid)
            kernel = Kernel("optimizers", "squared_weights")
            k.launch(kernel, grid, self._theta, ranges, pairs, parameters, real(rows * l2 / 2))
        self._descent(ranges, shards, self._step, rows)
        totals = k.totals
        k.launch(
            Kernel("optimizers", "tick"), 1,
            self._step, totals.array, np.int32(totals.used), self._means, np.int32(self.updates), real(1 / self._n),
        )  # fmt: skip

    def _gather(self, offset: int, rows: int) -> tuple[Array, Array]:
        """Return rows of this step's batch as the first product takes them, and their targets."""
        if self._one_batch and rows in self._batches:
            return self._batches[rows]
        k, X, y = self._kernels, self._X, self._y
        if rows not in self._batches:
            entry = k.xp.float16 if k.precision == "fp16x2" else k.dtype
            A = k.xp.empty((rows, X.shape[1]), dtype=entry)
            self._batches[rows] = A, k.xp.empty((rows, *y.shape[1:]), dtype=y.dtype)
        A, targets = self._batches[rows]
        macros = (
            ("INPUT", "byte" if X.dtype == k.xp.uint8 else "REAL"),
            ("ENTRY", "half_bits" if A.dtype == k.xp.float16 else "REAL"),
            ("TARGET", "int" if y.dtype == k.xp.int32 else "REAL"),
        )
        numbers = self._batch_size, offset, rows, X.shape[1], targets.size // rows
        k.launch(
            Kernel("batch", "gather", macros), grid_for(rows, 1, _MOST_BLOCKS),
            X, y, self._order, self._step, A, targets, *map(np.int32, numbers),
        )  # fmt: skip
        return A, targets

    def _ranges(self, rows: int) -> tuple[Array, int]:
        """Return where a step of so many rows leaves its gradients, and the most parts that one is in."""
        if rows not in self._tables:
            table, k = np.zeros(2 * len(self.model.layout.blocks), RANGE), self._kernels
            lengths = [n for d, h in pairwise(self.model.sizes) for n in (h, d * h)]  # b and W, layer by layer
            table["end"] = np.cumsum(lengths)
            size, first = self._sums.itemsize, k._address(self._sums)
            table["gradient"] = first + size * (table["end"] - lengths)
            table["shards"] = 1
            table["is_bias"] = [1, 0] * len(self.model.layout.blocks)
            if k.gradients is not None and k.head is not None:
                h, c = k.head.hidden, k.head.classes
                for row, at in ((0, 0), (2, h), (3, h + c)):
                    table["gradient"][row] = k._address(k.gradients.array) + size * at
                    table["stride"][row], table["shards"][row] = k.head.gradients, k.gradients.used
            self._tables[rows] = k.xp.asarray(table.view(np.uint8)), int(table["shards"].max())
        return self._tables[rows]

    def _on_boundary(self, array: Array) -> Array:
        array = self._kernels._as(array, array.dtype)
        return array if self._kernels._address(array) % _BOUNDARY == 0 else array.copy()
