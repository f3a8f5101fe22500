"""The kernel interface: the operations that forward and backward are made of, one class per way to run them."""

from __future__ import annotations

from functools import singledispatch
from typing import Any, Protocol

from ..devices import Array, CupyDevice, Device, NumpyDevice, TorchDevice
from .functions import ACTIVATIONS, LOSSES
from .generic import GenericKernels

__all__ = ["ACTIVATIONS", "LOSSES", "GenericKernels", "Kernels", "kernels_for"]


class Kernels(Protocol):
    """Operations on arrays whose rows are samples; :class:`GenericKernels` says what each one computes.

    Names of activations and losses are keys of :data:`ACTIVATIONS` and :data:`LOSSES`. A class without a special case
    for one of them uses its formula on its own arrays: that is slower, never wrong.

    An operation may overwrite its arguments, ``dropout`` excepted, and may return a buffer that the next call of
    ``features`` in the same thread uses again. Callers rebind names and copy what they keep.
    """

    xp: Any
    dtype: Any

    def features(self, X: Array) -> Array: ...
    def affine(self, A: Array, W: Array, b: Array) -> Array: ...
    def activate(self, name: str, Z: Array) -> Array: ...
    def dropout(self, A: Array, D: Array | None) -> Array: ...
    def activation_gradient(self, name: str, dA: Array, A: Array) -> Array: ...
    def weight_gradient(self, dZ: Array, A: Array, into: Array) -> Array: ...
    def bias_gradient(self, dZ: Array, into: Array) -> Array: ...
    def input_gradient(self, dZ: Array, W: Array) -> Array: ...
    def loss(self, name: str, A: Array, y: Array) -> tuple[Array, Array]: ...
    def sum(self, losses: Array) -> Array: ...


@singledispatch
def kernels_for(device: Device, dtype: str, precision: str | None = None) -> Kernels:
    """Return the fastest kernels for this device, dtype name and precision, one of ``device.precisions``.

    A device without kernels of its own has the generic ones.
    """
    return GenericKernels(device.xp, dtype)


@kernels_for.register(NumpyDevice)
def _(device: NumpyDevice, dtype: str, precision: str | None = None) -> Kernels:
    from .cpu.numpy_ import NumpyKernels

    return NumpyKernels(dtype)


@kernels_for.register(CupyDevice)
def _(device: CupyDevice, dtype: str, precision: str | None = None) -> Kernels:
    from .cuda.operations import CudaKernels

    return CudaKernels(device.xp, dtype, precision)


@kernels_for.register(TorchDevice)
def _(device: TorchDevice, dtype: str, precision: str | None = None) -> Kernels:
    from .torch_ import TorchKernels

    return TorchKernels(device.xp, dtype)
