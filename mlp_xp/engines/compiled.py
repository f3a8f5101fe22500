"""The engine of the compiled library: it replays what the text of forward and backward does, whole epochs at a time.

The text runs once, on kernels that write down each call. What they wrote is to the processor what a CUDA graph is to a
GPU: it is replayed for each block of rows, and nothing of it is repeated here.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable, Iterator
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import numpy as np

from ..kernels.cpu import compiled
from ..kernels.cpu.blas import gemm_address
from ..optim import OptimizerState
from ..params import GradSum
from ..rows.csr import CsrRows
from ..rows.source import Rows
from ..rows.stored import StoredRows, ahead, come_in_blocks
from .base import Done, Setup
from .compiled_program import constants_of, program_of
from .host import HostEngine
from .padded import Padded
from .ranks import Requests
from .reduce import groups_of

__all__ = ["CompiledEngine", "mask_bytes"]

SHARD = 512  # rows
_PIECE = 2e-2  # seconds of updates between two questions whether to pause
_UNASKED = 0.1  # seconds of updates if there is no such question, or of a full batch: Ctrl-C has to wait for them
_WORTH_SENDING = 2e7  # rows times parameters of an update: with less, messages take longer than each rank to do all
_ENOUGH = 12  # numbers that are not zero, in a sum: with fewer, it costs more to begin and to end it
MARKED = 2**24  # bytes of masks, of all rows together, that are kept: with more, each row is marked when it is taken

_Vector = np.ndarray[Any, Any]


def mask_bytes(n: int, d: int) -> int:
    """Return the bytes of the masks of n rows: a bit for each of d numbers, in words of 64."""
    return n * -(-d // 64) * 8


class CompiledEngine:
    """Updates by the compiled library, on threads of its own.

    Parameters
    ----------
    setup : Setup
        With the plan ``"dense"`` or ``"sparse"``, and nothing that ``why_not`` of :mod:`.compiled_program` names.
    """

    def __init__(self, setup: Setup) -> None:
        library = compiled.library()
        assert library is not None
        self._setup, self.plan, model = setup, setup.plan, setup.model
        self._n = setup.rows.shape[0]
        self.updates = 1 if setup.batch_size is None else -(-self._n // setup.batch_size)
        self._padded, dtype = Padded(model), np.dtype(model.dtype)
        self._theta, self._gradient = self._padded.zeros(), self._padded.zeros()
        self._state = setup.optimizer.init(model.theta)
        self._vectors = {name: self._padded.zeros() for name in self._state if name != "updates"}
        self._count = 0
        self._has_gradient = False
        # of the gradients, or only an epoch's last one
        self._keeps_all = not setup.optimizer.plain or setup.objective.penalizes
        rows, ranks = setup.batch_size or self._n, setup.ranks
        shared = ranks is not None and ranks.size > 1 and rows * self._padded.size >= _WORTH_SENDING
        self.shared, self._ranks = shared, ranks if shared else None
        self._requests = None if self._ranks is None else Requests(self._ranks)
        self._kept = self._described()
        new, self._run, self._gather, free = (
            library.function(name, dtype) for name in ("new", "run", "gather", "free")
        )
        replay = new(ctypes.byref(self._kept[0]))
        if not replay:
            raise MemoryError(f"there is no memory for updates of {setup.batch_size or SHARD} rows")
        self._replay = ctypes.c_void_p(replay)
        weakref.finalize(self, free, self._replay).atexit = False  # a thread may be at work until the very end
        self._rows_of_step = setup.batch_size or self._kept[0].shard * self._kept[0].groups
        self._steps = -(-self._n // self._rows_of_step)  # a full batch may take long: rounds of a shard for each group
        # rows in a file, in the order of the epoch: where they begin, and a block of them
        self._blocks: Iterator[tuple[int, _Vector]] | None = None
        self._X: _Vector | None = None  # the last of them, and its first row
        self._first = self._read = 0
        self._seconds = math.inf  # of a step, lately

    def _described(self) -> tuple[compiled.Setup, list[Any]]:
        """Return what the library is given, and what has to live as long as that."""
        setup, model, optimizer = self._setup, self._setup.model, self._setup.optimizer
        dropout = setup.dropout
        rates = None if dropout is None else dropout.rates
        program = program_of(model.sizes, model.network.g, setup.objective, rates)
        instructions = compiled.instructions_of(program)
        y, weights = np.ascontiguousarray(setup.targets.y), setup.targets.weights
        X, starts, columns = _stored(setup.rows)
        sizes, widths = np.asarray(model.sizes, np.int64), np.asarray(program.columns, np.int64)
        first, second, *_ = [*self._vectors.values(), None, None]
        exchange = compiled.Exchange(self._requests or 0)
        address = gemm_address(model.dtype)
        assert address is not None
        given = compiled.Setup(
            layers=len(model.sizes) - 1, buffers=len(widths), instructions=len(instructions),
            sizes=sizes.ctypes.data, widths=widths.ctypes.data, program=ctypes.addressof(instructions),
            gemm=address[0], long_integers=address[1], X=_address(X), starts=_address(starts),
            columns=_address(columns), y=y.ctypes.data, weights=_address(weights), rows=self._n,
            bytes=setup.rows.dtype == np.uint8, labels=y.ndim == 1, sparse=self.plan.kind == "sparse",
            words=_words_of_sum(setup.rows.shape[1], self.plan.mean_columns),
            marked=starts is not None or (X is not None and mask_bytes(*setup.rows.shape) <= MARKED),
            background=_address(self.plan.background),
            thresholds=None if dropout is None else dropout.thresholds.ctypes.data,
            factors=None if dropout is None else dropout.factors.ctypes.data,
            theta=self._theta.ctypes.data, gradient=self._gradient.ctypes.data,
            first=_address(first), second=_address(second),
            l2=setup.objective.l2, l2_sum=setup.objective.l2_sum, batch=setup.batch_size or self._n, shard=SHARD,
            groups=0 if setup.batch_size else groups_of(-(-self._n // SHARD), setup.ranks),
            threads=min(setup.threads, compiled.MOST_THREADS), rank=self._ranks.rank if self._ranks else 0,
            ranks=self._ranks.size if self._ranks else 1, exchange=ctypes.cast(exchange, ctypes.c_void_p),
            **constants_of(optimizer),
        )  # fmt: skip
        return given, [X, starts, columns, y, weights, sizes, widths, instructions, exchange]

    # The interface of engines.

    def grad_sum(self, theta: _Vector) -> GradSum:
        return HostEngine(self._setup).grad_sum(theta)

    def begin(self, theta: _Vector, epoch: int, lr: float, done: Done) -> None:
        began = perf_counter()
        self._padded.put(theta, self._theta)
        optimizer = self._setup.optimizer
        self._lr = lr
        self._lr_bias = lr if optimizer.lr_bias is None else lr * (optimizer.lr_bias / optimizer.base_lr)
        self._order = None
        if self._setup.batch_size is not None:
            self._order = self._setup.row_order(epoch).astype(np.int32)
        self._dropout_keys = None if self._setup.dropout is None else self._setup.dropout.keys(epoch)
        self._at, self._loss_sum = done.updates, float(done.loss_sum)
        rows = self._setup.rows
        if come_in_blocks(rows):
            self._blocks, self._read = self._read_ahead(rows), self._at
        self._spent = float(done.seconds) + perf_counter() - began

    def advance(self, pause: Callable[[], bool] | None) -> Done:
        began = perf_counter()
        longest = _UNASKED if pause is None or self._setup.batch_size is None else _PIECE
        with self._setup.model.device.active():
            while self._at < self._steps:
                count = max(1, int(longest / self._seconds))
                if pause is not None:
                    count = self._setup.updates_at_once(count)
                count = min(self._steps_at_hand(), count)
                start = perf_counter()
                self._piece(count)
                self._seconds = max((perf_counter() - start) / count, 1e-9)
                if pause is not None and self._at < self._steps and pause():
                    break
            if self._ranks is not None:
                self._call(self._gather)
        self._spent += perf_counter() - began
        updates = self._at * self.updates // self._steps
        if not updates:
            return Done()
        rows = min(self._n, updates * (self._setup.batch_size or self._n))
        return Done(updates, rows, self._loss_sum, self._spent)

    def theta(self) -> _Vector:
        return self._padded.take(self._theta)

    def gradient(self) -> _Vector | None:
        return self._padded.take(self._gradient) if self._has_gradient else None

    def state(self) -> OptimizerState:
        vectors = {name: self._padded.take(vector) for name, vector in self._vectors.items()}
        return {**vectors, "updates": self._count} if "updates" in self._state else vectors

    def restore(self, state: OptimizerState) -> None:
        for name, vector in self._vectors.items():
            self._padded.put(state[name], vector)
        self._count = state.get("updates", 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the thread end that reads ahead. The library's own end with each piece, its memory with this object."""
        self._blocks = None
        if self._requests is not None:
            self._requests.close()

    def _read_ahead(self, rows: StoredRows) -> Iterator[tuple[int, _Vector]]:
        """Yield the rows of the steps to do, in order; of a full batch, a rank reads those of its own groups."""
        first, step = self._at * self._rows_of_step, self._rows_of_step
        if self._order is not None:
            for X in rows.in_order(self._order, first, step):
                yield first, X
                first += len(X)
            return
        given = self._kept[0]
        own = range(given.groups) if self._ranks is None else self._ranks.share(given.groups)
        begin, end = own.start * given.shard, own.stop * given.shard
        cuts = [(min(i + begin, self._n), min(i + end, self._n)) for i in range(first, self._n, step)]
        yield from ahead((start, rows.block(start, stop)) for start, stop in cuts)

    def _steps_at_hand(self) -> int:
        """Return how many steps can be done with the rows that are in memory, once there are any."""
        if self._blocks is None:
            return self._steps - self._at
        if self._at == self._read:
            self._first, self._X = next(self._blocks)
            self._read += 1 if self._order is None else -(-len(self._X) // self._rows_of_step)
        return self._read - self._at

    def _piece(self, count: int) -> None:
        """Do so many steps of this epoch."""
        last = self._at + count
        piece = compiled.Piece(
            order=_address(self._order), X=_address(self._X), first=self._first, keys=_address(self._dropout_keys),
            update=self._at, last=last, done=self._count, rate=self._lr, bias_rate=self._lr_bias,
            keep_gradient=last == self._steps, loss=self._loss_sum,
        )  # fmt: skip
        self._call(self._run, ctypes.byref(piece))
        self._at, self._loss_sum = last, piece.loss
        over = last == self._steps
        self._count += count if self._setup.batch_size else over
        self._has_gradient |= over or (self._keeps_all and self._setup.batch_size is not None)

    def _call(self, function: Any, *arguments: Any) -> None:
        """Call the library, and raise what its messages raised."""
        function(self._replay, *arguments)
        if self._requests is not None and self._requests.error is not None:
            raise self._requests.error


def _words_of_sum(d: int, used: float) -> int:
    """Return how many words of a mask, 64 numbers each, a sum takes: those with `_ENOUGH` of the used numbers."""
    return min(-(-d // 64), max(1, int(_ENOUGH * d / (64 * max(used, 1e-9)))))


def _stored(rows: Rows) -> tuple[_Vector | None, _Vector | None, _Vector | None]:
    """Return all numbers of the rows; or those that are not zero, where each row's start, and their columns.

    Rows that have to be read from a file come later: for them, return nothing.
    """
    if isinstance(rows, StoredRows):
        return rows.in_place, None, None
    if isinstance(rows, CsrRows):
        return rows.matrix.data, rows.starts, rows.columns
    return rows.block(0, rows.shape[0]), None, None


def _address(array: _Vector | None) -> int | None:
    return None if array is None else array.ctypes.data
