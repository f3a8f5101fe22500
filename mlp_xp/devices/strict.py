"""array-api-strict: the Array API standard and not a word more."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .base import Array, Device

__all__ = ["StrictDevice"]


class StrictDevice(Device):
    """array-api-strict, on its second device, where nothing converts to NumPy by accident, or the one named."""

    spellings: ClassVar[tuple[str, ...]] = ("strict", "strict:DEVICE")
    title: ClassVar[str] = "array-api-strict"
    namespace: ClassVar[str] = "array_api_strict"
    remedy: ClassVar[str] = "pip install array-api-strict"
    packages: ClassVar[tuple[str, ...]] = ("array-api-strict",)

    @classmethod
    def _name_for(cls, x: Array) -> str:
        return "strict:" + repr(x.device).split("'")[1]  # of Device('device1'); a device has no public name

    @classmethod
    def _place(cls, index: str, xp: Any) -> Any:
        try:
            return xp.Device(index or "device1")
        except ValueError as error:
            raise ValueError(f"device 'strict:{index}' cannot be used ({error}); use 'strict'") from None

    def to_host(self, x: Array) -> np.ndarray[Any, Any]:
        if type(x) is np.ndarray:
            return x
        return np.asarray(self.xp.asarray(x, device=self.xp.Device("CPU_DEVICE"), copy=True))
