"""Rows: samples somewhere, opened and checked once.

What trains or predicts asks for blocks of rows, in the order stored or in an order of its own, and does not ask again
what kind of data they are.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..devices import Array, Device

__all__ = ["Digest", "InMemory", "Rows"]

_HASHED_AT_ONCE = 65_536  # rows, so that data on a device do not come to the host as a whole


class Digest(Protocol):
    """A hash of :mod:`hashlib`."""

    def update(self, data: Any, /) -> object: ...


@runtime_checkable
class Rows(Protocol):
    """Samples (n, d), never written to.

    Attributes
    ----------
    shape : (n, d)
    dtype : dtype
        uint8, or that of the model.
    pixels : bool
        Whether numbers count as x / 255: uint8 does.
    home : Device or None
        The device that holds them; None if they are on the host.
    """

    shape: tuple[int, int]
    dtype: Any
    pixels: bool
    home: Device | None

    def block(self, start: int, stop: int) -> Array:
        """Return rows `start` to `stop` (m, d), in the order stored."""

    def take(self, index: Array, out: Array | None = None) -> Array:
        """Return the rows of this index (m, d), which lives where they do; those of the host are written to `out`."""

    def to(self, device: Device) -> Rows:
        """Return the same rows where `device` computes, moved there if they are on the host."""

    def part(self, start: int, stop: int) -> Rows:
        """Return rows `start` to `stop` as rows of their own, where they are."""

    def fingerprint(self, digest: Digest) -> str:
        """Add all rows to a digest, in the same bytes on every device, and return dtype and shape in words."""


class InMemory:
    """Rows of an array on the host or on a device.

    Parameters
    ----------
    X : array (n, d)
        As :func:`mlp_xp.rows.checks.as_features` returns it.
    home : Device or None
    """

    def __init__(self, X: Array, home: Device | None = None) -> None:
        self._X, self.home = X, home
        self.shape: tuple[int, int] = (X.shape[0], X.shape[1])
        self.dtype = X.dtype
        self.pixels = X.dtype == (np if home is None else home.xp).uint8

    def block(self, start: int, stop: int) -> Array:
        n = self.shape[0]
        return self._X if start == 0 and stop >= n else self._X[start : min(stop, n), :]  # a view takes time, too

    def take(self, index: Array, out: Array | None = None) -> Array:
        if self.home is not None:
            return self.home.xp.take(self._X, index, axis=0)
        return self._X.take(index, axis=0, out=out, mode="clip")  # mode="raise" would copy `out`

    def to(self, device: Device) -> InMemory:
        if self.home is not None:
            return self
        X = device.asarray(self._X)
        return self if X is self._X else InMemory(X, device)

    def part(self, start: int, stop: int) -> InMemory:
        return InMemory(self.block(start, stop), self.home)

    def fingerprint(self, digest: Digest) -> str:
        for i in range(0, self.shape[0], _HASHED_AT_ONCE):
            block = self.block(i, i + _HASHED_AT_ONCE)
            host = np.asarray(block if self.home is None else self.home.to_host(block))
            digest.update(np.ascontiguousarray(host, dtype=host.dtype.newbyteorder("<")).data)
        return f"{host.dtype} {self.shape}"
