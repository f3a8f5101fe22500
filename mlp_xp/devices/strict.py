"""array-api-strict: the Array API standard and not a word more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np

from .base import Array, Device

__all__ = ["StrictDevice"]


class StrictDevice(Device):
    """array-api-strict on its second device, where nothing converts to NumPy by accident."""

    spellings: ClassVar[tuple[str, ...]] = ("strict",)
    title: ClassVar[str] = "array-api-strict"
    namespace: ClassVar[str] = "array_api_strict"
    remedy: ClassVar[str] = "pip install array-api-strict"
    packages: ClassVar[tuple[str, ...]] = ("array-api-strict",)

    @classmethod
    def holding(cls, x: Array) -> Self:
        """Return the device of an array, which may be another one: those have no strings to ask for them by."""
        return replace(cls.open("strict"), where=x.device)

    @classmethod
    def _place(cls, index: str, xp: Any) -> Any:
        return xp.Device("device1")

    def to_host(self, x: Array) -> np.ndarray[Any, Any]:
        if type(x) is np.ndarray:
            return x
        return np.asarray(self.xp.asarray(x, device=self.xp.Device("CPU_DEVICE"), copy=True))
