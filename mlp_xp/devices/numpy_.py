"""NumPy on the processor: many rows are shared by threads, each with a single thread of BLAS."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from time import perf_counter
from typing import Any, ClassVar, TypeVar

import numpy as np

from .base import LEAST_ROWS, Device
from .blas_threads import default_threads, limit_this_thread, one_blas_thread

__all__ = ["NumpyDevice"]

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_WORTH_THREADS = 2e-3  # seconds of work, ten times what it takes to start a few
_SHARES = 16  # of the rows of a call, so that as many threads have something to do


class NumpyDevice(Device):
    """NumPy. While it is active, BLAS has one thread, so that no result depends on the number of its threads."""

    spellings: ClassVar[tuple[str, ...]] = ("cpu",)
    title: ClassVar[str] = "NumPy"
    # NumPy itself, where it follows the standard, since 2.1: its twin takes a tenth of a second to import
    namespace: ClassVar[str] = "numpy" if hasattr(np, "astype") else "array_api_compat.numpy"
    shard_rows: ClassVar[int] = 1024
    block_rows: ClassVar[int] = 1024
    epochs_to_repay_plan: ClassVar[int | None] = 8
    plans_on_host: ClassVar[bool] = True

    def active(self) -> AbstractContextManager[object]:
        return one_blas_thread

    def map(self, function: Callable[[_In], _Out], items: Iterable[_In]) -> list[_Out]:
        items, start = list(items), perf_counter()
        first, rest = [function(item) for item in items[:1]], items[1:]
        if not rest:
            return first
        # to start threads takes as long as a little work does, and WebAssembly has none
        worth = len(rest) * (perf_counter() - start) > _WORTH_THREADS
        threads = min(len(rest), default_threads()) if worth else 1
        if threads == 1:
            return first + [function(item) for item in rest]
        with ThreadPoolExecutor(threads, "mlp_xp", initializer=limit_this_thread) as pool:
            return first + list(pool.map(function, rest))

    def _step(self, n: int) -> int:
        share = -(-n // (64 * _SHARES)) * 64
        return min(self.shard_rows, max(share, LEAST_ROWS))

    def _from_host(self, host: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return host
