"""NumPy on the processor: many rows are shared by threads, each with a single thread of BLAS."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, ClassVar, TypeVar

import numpy as np

from .base import Device
from .blas_threads import default_threads, limit_this_thread, one_blas_thread

__all__ = ["NumpyDevice"]

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class NumpyDevice(Device):
    """NumPy. While it is active, BLAS has one thread, so that no result depends on the number of its threads."""

    spellings: ClassVar[tuple[str, ...]] = ("cpu",)
    title: ClassVar[str] = "NumPy"
    namespace: ClassVar[str] = "array_api_compat.numpy"
    shard_rows: ClassVar[int] = 1024
    block_rows: ClassVar[int] = 1024
    epochs_to_repay_plan: ClassVar[int | None] = 8
    plans_mini_batches: ClassVar[bool] = True

    def active(self) -> AbstractContextManager[object]:
        return one_blas_thread

    def map(self, function: Callable[[_In], _Out], items: Iterable[_In]) -> list[_Out]:
        items = list(items)
        threads = min(len(items), default_threads()) if len(items) > 1 else 1
        if threads == 1:  # a thread costs time, and WebAssembly has none
            return [function(item) for item in items]
        with ThreadPoolExecutor(threads, "mlp_xp", initializer=limit_this_thread) as pool:
            return list(pool.map(function, items))

    def _from_host(self, host: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return host
