"""JAX on its default device."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import numpy as np

from .base import Array, Device

__all__ = ["JaxDevice", "wide_numbers"]


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

    def _default(self) -> Any:
        """Return where JAX puts new arrays; to make one and look would take 0.2 ms."""
        jax = importlib.import_module("jax")
        chosen = jax.config.jax_default_device
        return jax.devices(chosen)[0] if chosen is None or isinstance(chosen, str) else chosen

    def _is_here(self, x: Array) -> bool:
        return bool(x.device == self._default())

    def assemble(self, blocks: Iterable[np.ndarray[Any, Any]], shape: tuple[int, ...], dtype: str) -> Array:
        return self.xp.concat([self.asarray(block) for block in blocks])  # nothing is written into an array of JAX

    def to_host(self, x: Array) -> np.ndarray[Any, Any]:
        host = np.asarray(x)
        return host.astype(np.float32) if host.dtype.name == "bfloat16" else host  # NumPy has none of its own

    def dot(self, x: Array, y: Array) -> float:
        with wide_numbers():
            return super().dot(x, y)

    def hardware(self) -> str | None:
        place = self._default()
        return None if place.platform == "cpu" else str(place.device_kind)


@contextmanager
def wide_numbers() -> Iterator[None]:
    """Keep 64 bits, here and now only: of the sum of losses, and of Python's numbers beside arrays, as in NumPy.

    JAX's default of 32 bits would leave Adam's 1 - beta**t four digits. It keeps Python's numbers apart from arrays
    ("weak types"), so no array becomes wider.
    """
    jax = importlib.import_module("jax")
    if hasattr(jax, "enable_x64"):
        wide = jax.enable_x64(True)
    else:  # JAX before 0.8
        experimental = importlib.import_module("jax.experimental")
        wide = experimental.enable_x64()
    with wide:
        yield
