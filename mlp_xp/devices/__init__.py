"""Devices: where arrays live, and how they get there and back.

A device string names an array library and, if the library has several, one of its devices. Everything above this
package works with the :class:`Device` it returns and never asks which library it is talking to.
"""

from __future__ import annotations

from .base import PRECISIONS, Array, Device, check_precision, is_foreign, library_of
from .cupy_ import CupyDevice
from .jax_ import JaxDevice
from .numpy_ import NumpyDevice
from .strict import StrictDevice
from .torch_ import TorchDevice

__all__ = [
    "DEVICES",
    "PRECISIONS",
    "Array",
    "CupyDevice",
    "Device",
    "JaxDevice",
    "NumpyDevice",
    "StrictDevice",
    "TorchDevice",
    "check_precision",
    "device_of",
    "get_device",
    "is_foreign",
    "library_of",
]

DEVICES: dict[str, type[Device]] = {
    "cpu": NumpyDevice,
    "cuda": CupyDevice,
    "torch": TorchDevice,
    "jax": JaxDevice,
    "strict": StrictDevice,
}
"""The classes of devices, by the part of a device string before its colon."""


def get_device(name: str | Device, dtype: str = "float32") -> Device:
    """Return the :class:`Device` of a device string.

    Parameters
    ----------
    name : {"cpu", "cuda", "cuda:N", "torch", "torch:DEVICE", "jax", "strict"}
        ``"cpu"`` is NumPy, ``"cuda"`` is CuPy, ``"strict"`` is array-api-strict on its second device, where nothing
        converts to NumPy by accident. A :class:`Device` is returned as it is.
    dtype : str
        The dtype that will be computed in: JAX has to be told before its first float64 array.

    Raises
    ------
    ValueError
        If the name is not one of these, the library is not installed, or the machine has no such device.
    """
    device = name if isinstance(name, Device) else _open(name)
    device.prepare(dtype)
    return device


def device_of(x: Array) -> Device:
    """Return the :class:`Device` that an array is on.

    Raises
    ------
    TypeError
        If it is of a library that no device is for.
    """
    library = library_of(x).__name__
    for kind in DEVICES.values():
        if kind.namespace.removeprefix("array_api_compat.") == library:
            return kind.holding(x)
    titles = ", ".join(kind.title for kind in DEVICES.values())
    raise TypeError(f"got a {type(x).__module__}.{type(x).__qualname__}; pass an array of {titles}")


def _open(name: str) -> Device:
    key, colon, index = str(name).partition(":")
    if key not in DEVICES or (colon and (not index or len(DEVICES[key].spellings) == 1)):
        *others, last = (repr(spelling) for device in DEVICES.values() for spelling in device.spellings)
        raise ValueError(f"unknown device {name!r}; choose from {', '.join(others)} and {last}")
    return DEVICES[key].open(str(name))
