"""CuPy on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Self

import numpy as np

from .base import PRECISIONS, Array, Device

__all__ = ["CupyDevice"]


class CupyDevice(Device):
    """CuPy on one GPU.

    CuPy allocates and launches on the current device of the calling thread, whatever device its arrays are on. So
    all work is done inside :meth:`active`, and the methods here enter it by themselves.
    """

    spellings: ClassVar[tuple[str, ...]] = ("cuda", "cuda:N")
    title: ClassVar[str] = "CuPy"
    namespace: ClassVar[str] = "array_api_compat.cupy"
    remedy: ClassVar[str] = "pip install 'mlp_xp[cuda12]' or 'mlp_xp[cuda13]', to match your driver"
    packages: ClassVar[tuple[str, ...]] = ("cupy-cuda12x", "cupy-cuda13x", "nvmath-python")
    precisions: ClassVar[tuple[str, ...]] = tuple(PRECISIONS)
    block_rows: ClassVar[int] = 8192
    epochs_to_repay_plan: ClassVar[int | None] = 600

    @classmethod
    def _name_for(cls, x: Array) -> str:
        return f"cuda:{x.device.id}"

    @classmethod
    def _place(cls, index: str, xp: Any) -> Any:
        if index and not index.isdecimal():
            raise ValueError(
                f"unknown device 'cuda:{index}'; after the colon comes the number of the GPU, as in 'cuda:1'"
            )
        try:
            count = xp.cuda.runtime.getDeviceCount()
        except Exception as error:
            raise ValueError(
                f"device 'cuda' needs an NVIDIA GPU with its driver, and none answered here ({error}); use device 'cpu'"
            ) from None
        number = int(index or 0)
        if number >= count:
            raise ValueError(
                f"device 'cuda:{number}' was asked for, but this machine has {count} GPU(s), numbered from 0"
            )
        return xp.cuda.Device(number)

    def of_process(self, number: int) -> Self:
        own = number % self.xp.cuda.runtime.getDeviceCount()
        return type(self).open(f"cuda:{own}") if own and self.name == "cuda" else self

    def active(self) -> AbstractContextManager[object]:
        if self.where is None:
            return nullcontext()
        # a new object each time: CuPy's keeps the device to go back to, which differs from thread to thread
        context: AbstractContextManager[object] = self.xp.cuda.Device(self.where.id)
        return context

    def asarray(self, x: Any, dtype: str | None = None) -> Array:
        with self.active():
            return super().asarray(x, dtype)

    def _from_host(self, host: np.ndarray[Any, Any]) -> Array:
        array = self.xp.empty(host.shape, dtype=host.dtype)
        # asarray would keep pinned memory, up to twice as much as the array; and NumPy gives a number an axis here
        array.set(np.ascontiguousarray(host).reshape(host.shape))
        return array

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        with self.active():
            return super().zeros(shape, dtype)

    def assemble(self, blocks: Iterable[np.ndarray[Any, Any]], shape: tuple[int, ...], dtype: str) -> Array:
        with self.active():
            return super().assemble(blocks, shape, dtype)

    def to_host(self, x: Array) -> np.ndarray[Any, Any]:
        if type(x) is np.ndarray:
            return x
        with self.active():
            return np.asarray(x.get())

    def synchronize(self) -> None:
        with self.active():
            self.xp.cuda.get_current_stream().synchronize()

    def hardware(self) -> str | None:
        cuda = self.xp.cuda
        with self.active():
            return str(cuda.runtime.getDeviceProperties(cuda.Device().id)["name"].decode())
