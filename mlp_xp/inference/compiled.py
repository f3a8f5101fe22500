"""Predictions by the compiled library: the text of forward, replayed for shards of rows on threads of its own."""

from __future__ import annotations

import ctypes
import threading
import weakref
from bisect import bisect_left
from typing import Any

import numpy as np

from ..devices import Device, NumpyDevice
from ..devices.blas_threads import default_threads, one_blas_thread
from ..kernels.cpu import compiled
from ..kernels.cpu.blas import gemm_address
from ..kernels.recording import Program, RecordingKernels, symbols
from ..model import Network, forward
from ..params import Layout

__all__ = ["Predictor"]

_WORTH_THREADS = 2e7  # multiplications, half a millisecond: a core that sleeps takes as long to begin
_SHARD = 256  # rows at most, whose activations stay in the cache of a core
_LEAST_SHARD = 48  # if there are as many
_CAPACITIES = 64, _SHARD  # rows that buffers are made for
_KEPT = 2**20  # bytes of buffers that are used again: to make larger ones takes no time beside what they are for
_SHARDS = 16  # of a few rows, at most
_BLOCK, _NUMBERS, _PRODUCTS = 8192, 2**24, 2**34  # rows at once, and what they may be, so that Ctrl-C is heard

_ANYTHING = ctypes.c_char * 0
_Array = np.ndarray[Any, Any]


class Predictor:
    """Computes the outputs of a network for rows of the host, one or many.

    Each thread that asks has buffers of its own. Small ones are kept, so that a row takes no longer than it must.

    Parameters
    ----------
    library : Library
    layout : Layout
    network : Network
    dtype : str
        ``"float32"`` or ``"float64"``.
    """

    def __init__(self, library: compiled.Library, layout: Layout, network: Network, dtype: str) -> None:
        self.library, self.layout, self.dtype = library, layout, np.dtype(dtype)
        d, P = layout.sizes[0], layout.size
        self.block_rows = max(_SHARD, min(_BLOCK, _NUMBERS // d, _PRODUCTS // P))
        recorded: Any = RecordingKernels(layout.sizes)
        forward(network, recorded, symbols(len(layout.sizes) - 1), None)
        self.program: Program = recorded.program
        self._own = _Own()

    @classmethod
    def of(cls, device: Device, layout: Layout, network: Network, dtype: str) -> Predictor | None:
        """Return a predictor for the device, or None if there is no compiled library that can do this."""
        library = compiled.library() if isinstance(device, NumpyDevice) else None
        if library is None or gemm_address(dtype) is None or not set(network.g) <= compiled.FUNCTIONS.keys():
            return None
        return cls(library, layout, network, dtype)

    def edges(self, n: int) -> list[int]:
        """Return where blocks of n rows begin, and n: blocks of about the same size, whose shards are whole."""
        equal = -(-n // -(-n // self.block_rows))
        return [*range(0, n, min(self.block_rows, -(-equal // _SHARD) * _SHARD)), n]

    def __call__(self, theta: _Array, X: _Array) -> _Array:
        """Return A[L] (n, n_L) for rows (n, n_0) of bytes or of the dtype, with the parameters (P,).

        The bits do not depend on the number of threads.

        Raises
        ------
        MemoryError
            If there is none for the buffers.
        """
        n, pixels = X.shape[0], X.dtype == np.uint8
        if n == 1:
            return self._row(theta, X, pixels)
        shards = 1 if n < 2 * _LEAST_SHARD else min(_SHARDS, 1 << (n // _LEAST_SHARD).bit_length() - 1)
        shard = min(_SHARD, -(-n // shards))
        threads = 1 if n * self.layout.size < _WORTH_THREADS else min(default_threads(), compiled.MOST_THREADS)
        key = pixels, threads, _CAPACITIES[bisect_left(_CAPACITIES, shard)]
        replay = self._own.replays.get(key)
        if replay is None:
            replay = _Replay(self, *key)
            if replay.bytes <= _KEPT:
                self._own.replays[key] = replay
        with one_blas_thread:
            return replay(np.ascontiguousarray(X), shard, np.ascontiguousarray(theta))

    def _row(self, theta: _Array, X: _Array, pixels: bool) -> _Array:
        """Return the outputs of one row, on which Python spends longer than the library; BLAS has no part in it."""
        replay = self._own.rows.pop(pixels, None) or _RowReplay(self, pixels)  # out of reach of a signal's handler
        outputs = replay.outputs_of(X, theta)
        if replay.bytes <= _KEPT:
            self._own.rows[pixels] = replay
        return outputs


class _Replay:
    """Buffers of the library for shards of so many rows at most."""

    def __init__(self, predictor: Predictor, pixels: bool, threads: int, capacity: int) -> None:
        layout, program, dtype = predictor.layout, predictor.program, predictor.dtype
        address = gemm_address(dtype)
        assert address is not None
        sizes, widths = np.asarray(layout.sizes, np.int64), np.asarray(program.columns, np.int64)
        instructions = compiled.instructions_of(program)
        given = compiled.Setup(
            layers=len(sizes) - 1, buffers=len(widths), instructions=len(instructions), sizes=sizes.ctypes.data,
            widths=widths.ctypes.data, program=ctypes.addressof(instructions), gemm=address[0],
            long_integers=address[1], rows=capacity, bytes=pixels, shard=capacity, threads=threads, words=1, ranks=1,
        )  # fmt: skip
        new, self._predict, free = (predictor.library.function(name, dtype) for name in ("new", "predict", "free"))
        replay = new(ctypes.byref(given))
        if not replay:
            raise MemoryError(f"there is no memory for predictions of {capacity} rows by {threads} threads")
        self._replay = ctypes.c_void_p(replay)
        weakref.finalize(self, free, self._replay).atexit = False  # a thread may be at work until the very end
        self.bytes = threads * capacity * dtype.itemsize * sum(compiled.padded(width, dtype) for width in widths)
        self._units, self._dtype = layout.sizes[-1], dtype

    def __call__(self, X: _Array, shard: int, theta: _Array) -> _Array:
        outputs = np.empty((X.shape[0], self._units), self._dtype)
        self._predict(self._replay, _at(X), X.shape[0], shard, _at(theta), _at(outputs))
        return outputs


class _RowReplay(_Replay):
    """Buffers for one row, with arrays for it and for its outputs: looking up an array's address takes microseconds."""

    def __init__(self, predictor: Predictor, pixels: bool) -> None:
        super().__init__(predictor, pixels, 1, 1)
        self._row = np.empty((1, predictor.layout.sizes[0]), np.uint8 if pixels else self._dtype)
        self._outputs = np.empty((1, self._units), self._dtype)
        self._addresses = self._row.ctypes.data, self._outputs.ctypes.data
        self._theta: Any = lambda: None  # a weak reference to the last parameters, which lie at:
        self._at_theta = 0

    def outputs_of(self, X: _Array, theta: _Array) -> _Array:
        """Return A[L] (1, n_L) for a row (1, n_0) with the parameters (P,)."""
        theta = np.ascontiguousarray(theta)
        if self._theta() is not theta:
            self._theta, self._at_theta = weakref.ref(theta), theta.ctypes.data
        row, outputs = self._addresses
        np.copyto(self._row, X)
        self._predict(self._replay, row, 1, 1, self._at_theta, outputs)
        return self._outputs.copy()


def _at(array: _Array) -> Any:
    """Return where an array lies, as C takes it; ``array.ctypes.data`` would take a microsecond."""
    memory: Any = array
    return _ANYTHING.from_buffer(memory) if array.flags.writeable else array.ctypes.data


class _Own(threading.local):
    """What a thread has: replays, by what they are made for."""

    def __init__(self) -> None:
        self.replays: dict[tuple[bool, int, int], _Replay] = {}
        self.rows: dict[bool, _RowReplay] = {}
