"""The operations of forward and backward in pure Array API: the reference that every other backend is checked against.

Legend: n rows, d inputs, h outputs of a layer, k outputs of the network.
"""

from __future__ import annotations

from typing import Any

from ..devices import Array

__all__ = ["ACTIVATIONS", "LEAK", "GenericKernels"]

ACTIVATIONS = ("sigmoid", "tanh", "relu", "leaky_relu", "identity")
LEAK = 0.01  # slope of the leaky ReLU below zero


class GenericKernels:
    """Forward and backward operations for any array library that keeps to the standard.

    No operation changes its arguments; each returns new arrays. Specialised kernels may write into `into`, `Z`, `dA`
    and the like instead, and hand out buffers that stay valid until the next call of :meth:`features`: callers rebind.

    Parameters
    ----------
    xp : module
        An Array API namespace.
    dtype : str
        ``"float32"`` or ``"float64"``: everything is computed in it.
    """

    def __init__(self, xp: Any, dtype: str) -> None:
        self.xp = xp
        self.dtype = getattr(xp, dtype)

    def features(self, X: Array) -> Array:
        """(n, d) -> (n, d): bytes become numbers in [0, 1], floats stay as they are."""
        if X.dtype == self.xp.uint8:
            return self.xp.astype(X, self.dtype) * (1 / 255)
        return X

    def affine(self, A: Array, W: Array, b: Array) -> Array:
        """(n, d) @ (h, d).T + (h,) -> (n, h). `A` may stop short of d: its missing columns are zero."""
        return A @ W[:, : A.shape[1]].T + b

    def activate(self, name: str, Z: Array) -> Array:
        """(n, h) -> (n, h): A = g(Z)."""
        xp = self.xp
        match name:
            case "sigmoid":
                e = xp.exp(-xp.abs(Z))  # never overflows
                return xp.where(Z >= 0, xp.ones_like(Z), e) / (1 + e)
            case "tanh":
                return xp.tanh(Z)
            case "relu":
                return Z * xp.astype(Z >= 0, self.dtype)  # -0.0 where Z < 0: the derivative reads the sign
            case "leaky_relu":
                return xp.where(Z >= 0, Z, LEAK * Z)
            case _:
                return Z

    def activation_gradient(self, name: str, dA: Array, A: Array) -> Array:
        """(n, h), (n, h) -> (n, h): dZ = dA * g'(Z), g' from the output A. At Z = 0 both ReLUs have slope 1."""
        xp = self.xp
        match name:
            case "sigmoid":
                return dA * A * (1 - A)
            case "tanh":
                return dA * (1 - A * A)
            case "relu":
                return xp.where(xp.signbit(A), xp.zeros_like(dA), dA)
            case "leaky_relu":
                return xp.where(A >= 0, dA, LEAK * dA)
            case _:
                return dA

    def weight_gradient(self, dZ: Array, A: Array, into: Array) -> Array:
        """(n, h).T @ (n, d) added to (h, d): dW = dZ.T A. Columns that `A` lacks get nothing."""
        dW = dZ.T @ A
        if A.shape[1] < into.shape[1]:
            rest = into[:, A.shape[1] :]
            return self.xp.concat([into[:, : A.shape[1]] + dW, rest], axis=1)
        return into + dW

    def bias_gradient(self, dZ: Array, into: Array) -> Array:
        """(n, h) added up over n, to (h,): db = dZ.T 1."""
        return into + self.xp.sum(dZ, axis=0)

    def input_gradient(self, dZ: Array, W: Array) -> Array:
        """(n, h) @ (h, d) -> (n, d): dA = dZ W."""
        return dZ @ W

    def softmax_cross_entropy(self, A: Array, y: Array) -> tuple[Array, Array]:
        """(n, k), labels (n,) -> losses -log softmax(A)[y] (n,) and dA = softmax(A) - Y (n, k)."""
        xp = self.xp
        classes = xp.arange(A.shape[1], dtype=y.dtype, device=y.device)
        Y = xp.astype(y[:, None] == classes[None, :], self.dtype)
        A = A - xp.max(A, axis=1, keepdims=True)
        E = xp.exp(A)
        total = xp.sum(E, axis=1, keepdims=True)
        return xp.log(total[:, 0]) - xp.sum(A * Y, axis=1), E / total - Y

    def sigmoid_cross_entropy(self, A: Array, Y: Array) -> tuple[Array, Array]:
        """(n, k), targets (n, k) -> losses -Y log s - (1 - Y) log(1 - s) over k (n,), dA = s - Y; s = sigmoid(A)."""
        xp = self.xp
        softplus = (xp.abs(A) + A) / 2 + xp.log1p(xp.exp(-xp.abs(A)))
        return xp.sum(softplus - A * Y, axis=1), self.activate("sigmoid", A) - Y

    def half_squared_error(self, A: Array, Y: Array) -> tuple[Array, Array]:
        """(n, k), targets (n, k) -> losses |A - Y|^2 / 2 (n,) and dA = A - Y (n, k)."""
        dA = A - Y
        return self.xp.sum(dA * dA, axis=1) / 2, dA

    def perceptron_criterion(self, A: Array, Y: Array) -> tuple[Array, Array]:
        """(n, k), targets (n, k) of 0 or 1 -> losses max(0, -s A) over k (n,), dA = -s where s A <= 0; s = 2 Y - 1."""
        s = 2 * Y - 1
        dA = self.xp.where(s * A <= 0, -s, self.xp.zeros_like(s))  # on the line is wrong: training can begin at zero
        return self.xp.sum(dA * A, axis=1), dA

    def sum(self, losses: Array) -> Array:
        """(n,) -> ()."""
        return self.xp.sum(losses)

    def softmax(self, A: Array) -> Array:
        """(n, k) -> (n, k): rows of probabilities."""
        E = self.xp.exp(A - self.xp.max(A, axis=1, keepdims=True))
        return E / self.xp.sum(E, axis=1, keepdims=True)
