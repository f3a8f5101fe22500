"""The operations of forward and backward in pure Array API: the reference for every other backend.

What the activations and losses compute is in ``functions.py``, one formula each.

Legend: n rows, d inputs and h outputs of a layer, k outputs of the network.
"""

from __future__ import annotations

from typing import Any

from ..devices import Array
from .functions import ACTIVATIONS, LOSSES

__all__ = ["GenericKernels"]


class GenericKernels:
    """Forward and backward operations for any array library that follows the standard.

    Operations leave their arguments unchanged and return new arrays. A specialized class may write into `into`, `Z`,
    or `dA` instead and return buffers that stay valid until the next call of :meth:`features`, so callers rebind names.

    Parameters
    ----------
    xp : module
        An Array API namespace.
    dtype : str
        ``"float32"`` or ``"float64"``: the type of every number.
    """

    def __init__(self, xp: Any, dtype: str) -> None:
        self.xp = xp
        self.dtype = getattr(xp, dtype)

    def features(self, X: Array) -> Array:
        """(n, d) -> (n, d): bytes become numbers in [0, 1]; floats stay as they are."""
        if X.dtype == self.xp.uint8:
            return self.xp.astype(X, self.dtype) * (1 / 255)
        return X

    def affine(self, A: Array, W: Array, b: Array) -> Array:
        """(n, d) @ (h, d).T + (h,) -> (n, h). `A` may have fewer than d columns: the missing ones are zero."""
        return A @ W[:, : A.shape[1]].T + b

    def activate(self, name: str, Z: Array) -> Array:
        """(n, h) -> (n, h): A = g(Z)."""
        return ACTIVATIONS[name].value(self.xp, Z)

    def dropout(self, A: Array, D: Array | None) -> Array:
        """(n, h), (n, h) -> (n, h): H = A ∘ D; without D, A itself."""
        return A if D is None else A * D

    def activation_gradient(self, name: str, dA: Array, A: Array) -> Array:
        """(n, h), (n, h) -> (n, h): dZ = dA ∘ g'(Z), with g' from the output A."""
        return ACTIVATIONS[name].gradient(self.xp, dA, A)

    def weight_gradient(self, dZ: Array, A: Array, into: Array) -> Array:
        """(n, h).T @ (n, d) added to (h, d): dW = dZ.T A. Columns that `A` lacks stay as they are."""
        dW = dZ.T @ A
        if A.shape[1] < into.shape[1]:
            rest = into[:, A.shape[1] :]
            return self.xp.concat([into[:, : A.shape[1]] + dW, rest], axis=1)
        return into + dW

    def bias_gradient(self, dZ: Array, into: Array) -> Array:
        """(n, h) summed over n and added to (h,): db = dZ.T 1."""
        return into + self.xp.sum(dZ, axis=0)

    def input_gradient(self, dZ: Array, W: Array) -> Array:
        """(n, h) @ (h, d) -> (n, d): dA = dZ W."""
        return dZ @ W

    def loss(self, name: str, A: Array, y: Array) -> tuple[Array, Array]:
        """(n, k), targets -> each row's loss (n,) and dA = ∂loss/∂A (n, k)."""
        return LOSSES[name].formula(self.xp, A, y)

    def sum(self, losses: Array) -> Array:
        """(n,) -> ()."""
        return self.xp.sum(losses)
