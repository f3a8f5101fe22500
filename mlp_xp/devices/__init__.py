"""Devices: where arrays live, and how they get there and back.

A device string names an array library and, where the library has several, one of its devices. Everything above this
module works with the :class:`Device` it returns and never asks again which library it is talking to.
"""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import array_api_compat as compat
import numpy as np

from ..checks import check_choice

__all__ = ["PRECISIONS", "Array", "Device", "check_precision", "get_device"]

Array = Any  # an array of any conforming library; the standard has no common type to name

PRECISIONS = {"fp32": "float32", "fp64": "float64", "tf32": "float32", "bf16": "float32", "fp16x2": "float32"}
"""How products are computed, and the dtype of all else; sums have all of its digits.

``fp32``, ``fp64``: as exactly as the dtype has it. ``tf32``, ``bf16``: of factors rounded to 10 or 7 bits of mantissa.
``fp16x2``: as exactly as ``fp32``, by way of pairs of float16; for byte images.
"""

_LIBRARIES = {
    "cpu": ("numpy", "array_api_compat.numpy", ""),
    "cuda": ("cupy", "array_api_compat.cupy", "pip install 'mlp_xp[cuda12]' or 'mlp_xp[cuda13]', to match your driver"),
    "torch": ("torch", "array_api_compat.torch", "pip install 'mlp_xp[torch]'"),
    "jax": ("jax", "jax.numpy", "pip install 'mlp_xp[jax]'"),
    "strict": ("array_api_strict", "array_api_strict", "pip install array-api-strict"),
}
_ALLOWED = "'cpu', 'cuda', 'cuda:N', 'torch', 'torch:DEVICE', 'jax' and 'strict'"


@dataclass(frozen=True)
class Device:
    """One array library on one of its devices.

    Attributes
    ----------
    name : str
        The string it was asked for by, such as ``"cpu"`` or ``"cuda:1"``.
    xp : module
        The library's Array API namespace.
    where : object or None
        The library's own device object; None stands for its default.
    """

    name: str
    xp: Any
    where: Any = None

    @property
    def library(self) -> str:
        """Key of the library: ``"cpu"``, ``"cuda"``, ``"torch"``, ``"jax"`` or ``"strict"``."""
        return self.name.partition(":")[0]

    @property
    def shard_rows(self) -> int:
        """Rows to work on at a time: on the CPU what stays in a core's cache, elsewhere what fills a GPU."""
        return 1024 if self.library == "cpu" else 65_536

    @property
    def block_rows(self) -> int:
        """Rows that a plan stores with one width: few, so that it is narrow, and enough to occupy the device."""
        return 8192 if self.library == "cuda" else self.shard_rows

    @property
    def precisions(self) -> tuple[str, ...]:
        """Keys of :data:`PRECISIONS` that there are on this device."""
        return tuple(PRECISIONS) if self.library == "cuda" else ("fp32", "fp64")

    def asarray(self, x: Any, dtype: str | None = None) -> Array:
        """Return `x` as an array of this device, copying from the host only where it has to.

        Parameters
        ----------
        x : array of this library, NumPy array or array-like
        dtype : str, optional
            Name of the dtype to convert to, such as ``"float32"``; None keeps that of `x`.

        Raises
        ------
        TypeError
            If `x` is an array of another library or device: nothing is moved between devices behind your back.
        """
        if compat.is_array_api_obj(x) and not compat.is_numpy_array(x):
            self._check_home(x)
            return x if dtype is None else self.xp.astype(x, getattr(self.xp, dtype), copy=False)
        host = np.asarray(x, dtype=dtype)
        if self.library == "cpu":
            return host
        if self.library == "cuda":
            with self.where or nullcontext():  # asarray would keep pinned memory, up to twice as much as the array
                array = self.xp.empty(host.shape, dtype=host.dtype)
                array.set(np.ascontiguousarray(host))
            return array
        if self.library == "torch" and not host.flags.writeable:
            host = host.copy()  # torch has no read-only tensors and warns about sharing one
        return self.xp.asarray(host, device=self.where) if self.where is not None else self.xp.asarray(host)

    def _check_home(self, x: Array) -> None:
        own = self.zeros((1,), "float32")
        if compat.array_namespace(x) is not compat.array_namespace(own) or compat.device(x) != compat.device(own):
            raise TypeError(
                f"got a {type(x).__module__}.{type(x).__qualname__} on device {compat.device(x)!r}, but the model is "
                f"on {self.name!r}; pass a NumPy array or move it there yourself"
            )

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Return an array of zeros of this shape and dtype name."""
        return self.xp.zeros(shape, dtype=getattr(self.xp, dtype), device=self.where)

    def to_host(self, x: Array) -> np.ndarray[Any, Any]:
        """Return `x`, if it is not one already, as a NumPy array, waiting for the device where it must."""
        if type(x) is np.ndarray:
            return x
        if self.library == "cuda":
            return np.asarray(x.get())
        if self.library == "torch":
            return np.asarray(x.detach().cpu())
        if self.library == "strict":
            return np.asarray(self.xp.asarray(x, device=self.xp.Device("CPU_DEVICE"), copy=True))
        return np.asarray(x)

    def synchronize(self) -> None:
        """Wait until everything that was asked of the device is done."""
        if self.library == "cuda":
            self.xp.cuda.get_current_stream().synchronize()
        elif self.library == "torch" and self.where is not None and self.where.type == "cuda":
            import torch

            torch.cuda.synchronize(self.where)


def get_device(name: str | Device, dtype: str = "float32") -> Device:
    """Return the :class:`Device` of a device string.

    Parameters
    ----------
    name : {"cpu", "cuda", "cuda:N", "torch", "torch:DEVICE", "jax", "strict"}
        ``"cpu"`` is NumPy, ``"cuda"`` is CuPy, ``"strict"`` is array-api-strict on its second device, where nothing
        converts to NumPy by accident.
    dtype : str
        The dtype that will be computed in: JAX has to be told before its first float64 array.

    Raises
    ------
    ValueError
        If the name is not one of these, the library is not installed, or the machine has no such device.
    """
    if isinstance(name, Device):
        return name
    library, _, index = str(name).partition(":")
    if library not in _LIBRARIES or (index and library not in ("cuda", "torch")):
        raise ValueError(f"unknown device {name!r}; choose from {_ALLOWED}")
    package, namespace, remedy = _LIBRARIES[library]
    try:
        xp = importlib.import_module(namespace)
    except ImportError as error:
        raise ValueError(f"device {name!r} needs {package}, which is not installed ({error}): {remedy}") from None
    return Device(str(name), xp, _place(library, index, xp, dtype))


def _place(library: str, index: str, xp: ModuleType, dtype: str) -> Any:
    """Return the library's device object, or None for its only or default one."""
    if library == "cuda":
        return _cuda_device(index, xp)
    if library == "torch":
        return _torch_device(index or "cpu")
    if library == "strict":
        return xp.Device("device1")
    if library == "jax" and dtype == "float64":
        importlib.import_module("jax").config.update("jax_enable_x64", True)
    return None


def _cuda_device(index: str, xp: ModuleType) -> Any:
    if index and not index.isdecimal():
        raise ValueError(f"unknown device 'cuda:{index}'; after the colon comes the number of the GPU, as in 'cuda:1'")
    try:
        count = xp.cuda.runtime.getDeviceCount()
    except Exception as error:
        raise ValueError(
            f"device 'cuda' needs an NVIDIA GPU with its driver, and none answered here ({error}); use device 'cpu'"
        ) from None
    number = int(index or 0)
    if number >= count:
        raise ValueError(f"device 'cuda:{number}' was asked for, but this machine has {count} GPU(s), numbered from 0")
    device = xp.cuda.Device(number)
    device.use()  # CuPy allocates and launches on the thread's current device, whatever `device=` says
    return device


def _torch_device(index: str) -> Any:
    import torch

    try:
        return torch.empty(0, device=index).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device 'torch:{index}' cannot be used here ({reason}); use 'torch' for the CPU") from None


def check_precision(precision: str | None, dtype: str, device: Device) -> str:
    """Return a precision that goes with the dtype and is to be had on the device; all its digits if None."""
    if precision is None:
        return {"float32": "fp32", "float64": "fp64"}[dtype]
    check_choice("precision", precision, PRECISIONS)
    if PRECISIONS[precision] != dtype:
        raise ValueError(f"precision {precision!r} goes with dtype {PRECISIONS[precision]!r}, got dtype {dtype!r}")
    if precision not in device.precisions:
        raise ValueError(
            f"device {device.name!r} has the precisions {' and '.join(map(repr, device.precisions))}, got "
            f"{precision!r}; use one of them, or device 'cuda'"
        )
    return precision
