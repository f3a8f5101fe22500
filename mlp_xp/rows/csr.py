"""Rows of which only the numbers that are not zero are stored."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..devices import Array, Device
from .source import Digest, InMemory

__all__ = ["CsrRows"]


class CsrRows:
    """Rows of a SciPy matrix in compressed form, on the host.

    The compiled library skips what is not stored. Everything else asks for blocks, which are dense.

    Parameters
    ----------
    X : sparse matrix (n, d)
        Of finite numbers.
    dtype : str
        The model's.
    """

    pixels: bool
    home: Device | None

    def __init__(self, X: Any, dtype: str) -> None:
        X = X.tocsr().astype(dtype)  # a copy, so that it may be put in order
        X.sum_duplicates()
        self.matrix = X
        self.shape: tuple[int, int] = X.shape
        self.dtype = X.dtype
        self.pixels, self.home = False, None
        self.starts, self.columns = X.indptr.astype(np.int64), X.indices.astype(np.int32)

    def block(self, start: int, stop: int) -> Array:
        return np.asarray(self.matrix[start:stop].toarray())

    def take(self, index: Array, out: Array | None = None) -> Array:
        return np.asarray(self.matrix[index].toarray(out=out))

    def to(self, device: Device) -> InMemory:
        """Return all rows where `device` computes, zeros included."""
        return InMemory(self.matrix.toarray()).to(device)

    def part(self, start: int, stop: int) -> CsrRows:
        return CsrRows(self.matrix[start:stop], self.dtype.name)

    def fingerprint(self, digest: Digest) -> str:
        for part in (self.starts, self.columns, self.matrix.data):
            digest.update(np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("<")).data)
        return f"compressed {self.dtype} {self.shape}"
