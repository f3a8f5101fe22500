"""Single launches of the CUDA kernels, on a GPU or an emulated one."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from mlp_xp.kernels.cuda import products, sources
from mlp_xp.kernels.cuda.sources import Kernel

from . import emulated as emulation

Array = np.ndarray[Any, Any]

REALS = {"float": np.float32, "double": np.float64}
ORDERS = 0, -1, 7  # of threads and blocks: ascending, descending, shuffled
BARRIER = "__syncthreads();"

PROCESS, POISON, PAGE = ctypes.CDLL(None), "__asan_poison_memory_region", 4096


class Gpu:
    """Arrays and launches on the current GPU, and what an emulated one can do besides.

    Attributes
    ----------
    cp : module
        CuPy.
    emulated : bool
    """

    def __init__(self, emulated: bool) -> None:
        self.cp: Any = importlib.import_module("cupy")
        self.emulated = emulated

    def put(self, *arrays: Array) -> Any:
        """Copy to the device."""
        copies = tuple(map(self.cp.array, arrays))
        return copies if len(copies) > 1 else copies[0]

    def unwritten(self, *shapes: Any, dtype: Any) -> Any:
        """Return arrays full of NaNs, which a kernel is to overwrite."""
        arrays = tuple(self.cp.full(shape, np.nan, dtype) for shape in shapes)
        return arrays if len(arrays) > 1 else arrays[0]

    def launch(self, kernel: Kernel, grid: int, *arguments: Any, real: str = "float") -> None:
        """Start a kernel; a Python number becomes an int or a REAL, None a null pointer."""
        types = {int: np.int32, bool: np.int32, float: REALS[real]}
        typed = [types[type(x)](x) if type(x) in types else x for x in arguments]
        device = self.cp.cuda.Device().id
        function = sources.function_of(self.cp, kernel, real, device)
        function((grid,), kernel.block, tuple(typed), shared_mem=kernel.shared)

    def in_every_order(self, run: Callable[[], tuple[Any, ...]]) -> tuple[Array, ...]:
        """Return on the host what `run` makes, the same bits every time, whatever thread or block comes first."""
        results = []
        for order in ORDERS:
            with emulation.settings(order=order) if self.emulated else nullcontext():
                results.append(tuple(self.cp.asnumpy(x) for x in run()))
        for other in results[1:]:
            assert [x.tobytes() for x in other] == [x.tobytes() for x in results[0]]
        return results[0]

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Allocate each array on its own; on an emulated GPU it ends where nobody may read or write."""
        pages = emulation.settings(pages=True) if self.emulated else nullcontext()
        with pages, self.cp.cuda.using_allocator(self._fenced if hasattr(PROCESS, POISON) else None):
            yield

    def _fenced(self, size: int) -> Any:
        """Allocate memory with surroundings that the AddressSanitizer of this process knows to be nobody's."""
        memory = self.cp.cuda.Memory(size)
        begin, end = memory.ptr, memory.ptr + size
        for first, last in ((begin // PAGE * PAGE, begin), (end, -(-end // PAGE) * PAGE)) if size else ():
            PROCESS[POISON](ctypes.c_void_p(first), ctypes.c_size_t(last - first))
        return self.cp.cuda.MemoryPointer(memory, 0)


def without_barrier(name: str, k: int, monkeypatch: Any) -> None:
    """Have ``name.cu`` compiled without the barrier number k, for the time of a test."""
    source, pieces = sources.source, sources.source(name).split(BARRIER)
    text = BARRIER.join(pieces[: k + 1]) + BARRIER.join(pieces[k + 1 :])
    monkeypatch.setattr(sources, "source", lambda asked: text if asked == name else source(asked))
    compiled_anew = sources.function_of.__wrapped__
    for module in (sources, products):
        monkeypatch.setattr(module, "function_of", compiled_anew)
