"""The interface of callbacks."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Callback"]


class Callback(Protocol):
    """Anything that is called with a :class:`mlp_xp.loop.State`; returning True ends the training."""

    def __call__(self, state: Any) -> bool | None: ...
