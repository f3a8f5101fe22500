"""JAX on its default device."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np

from .base import Array, Device

__all__ = ["JaxDevice"]


class JaxDevice(Device):
    """JAX, on whatever device it takes by itself."""

    spellings: ClassVar[tuple[str, ...]] = ("jax",)
    title: ClassVar[str] = "JAX"
    namespace: ClassVar[str] = "jax.numpy"
    remedy: ClassVar[str] = "pip install 'mlp_xp[jax]'"
    packages: ClassVar[tuple[str, ...]] = ("jax",)

    def prepare(self, dtype: str) -> None:
        """Allow float64, which JAX otherwise turns into float32."""
        if dtype == "float64":
            importlib.import_module("jax").config.update("jax_enable_x64", True)

    def active(self) -> AbstractContextManager[object]:
        """Return a context of products with all digits: on a GPU JAX would otherwise round their factors to TF32."""
        context: AbstractContextManager[object] = importlib.import_module("jax").default_matmul_precision("highest")
        return context

    def _is_here(self, x: Array) -> bool:
        return bool(x.device == self.xp.zeros(()).device)

    def assemble(self, blocks: Iterable[np.ndarray[Any, Any]], shape: tuple[int, ...], dtype: str) -> Array:
        return self.xp.concat([self.asarray(block) for block in blocks])  # nothing is written into an array of JAX

    def to_host(self, x: Array) -> np.ndarray[Any, Any]:
        host = np.asarray(x)
        return host.astype(np.float32) if host.dtype.name == "bfloat16" else host  # NumPy has none of its own

    def hardware(self) -> str | None:
        place = self.xp.zeros(()).device
        return None if place.platform == "cpu" else str(place.device_kind)
