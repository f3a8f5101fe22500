"""Kernels that compute nothing: they take names and shapes, and write down the formula of each call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from .functions import ACTIVATIONS, LOSSES

__all__ = ["PRODUCTS", "ShapeKernels", "Symbol", "TraceLine"]

FORWARD = ("features", "affine", "activate")
PRODUCTS = ("affine", "weight_gradient", "input_gradient")
"""The matrix products among the operations."""


@dataclass(frozen=True)
class TraceLine:
    """One line of a trace.

    Attributes
    ----------
    part : {"forward", "loss", "backward"}
    operation : str
        The method of the kernels, see ``kernels/generic.py``.
    name, formula : str
        The result, and how it is computed, as in ``"Z[1]"`` and ``"Z[1] = A[0] W[1]ᵀ + b[1]"``.
    operands : tuple of shapes
        Shapes of the operands, transposed if the formula transposes them.
    shape : tuple of int
        Shape of the result.
    shapes : str
        Both, as people write them: ``"(7, 10) (10, 64) + (64,) -> (7, 64)"``.
    parameters : int
        Number of weights and biases among the operands.
    flops : int
        Floating-point operations.
    bytes : int
        Size of the result; 0 if it is an array that already existed.
    """

    part: str
    operation: str
    name: str
    formula: str
    operands: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    shapes: str
    parameters: int
    flops: int
    bytes: int


class Symbol(NamedTuple):
    """An array that is known by name and shape only."""

    letter: str
    shape: tuple[int, ...]  # in the row form
    layer: int = -1  # -1 for arrays that belong to no layer
    of_samples: bool = True  # the first axis counts samples, so the column form has the transpose
    transposed: bool = False

    def __str__(self) -> str:
        return self.letter + (f"[{self.layer}]" if self.layer >= 0 else "") + ("ᵀ" if self.transposed else "")

    def transpose(self) -> Symbol:
        """Return the same array, transposed."""
        return self._replace(transposed=not self.transposed)

    def shape_in(self, form: str) -> tuple[int, ...]:
        """Return the shape in the row form, or in the column form, where vectors are columns."""
        shape = self.shape
        if form == "column" and shape:
            shape = (*shape, 1)[:2]
            shape = shape[::-1] if self.of_samples else shape
        return shape[::-1] if self.transposed else shape


class ShapeKernels:
    """The operations of forward and backward on symbols; each call adds to ``steps``.

    Parameters
    ----------
    form : {"row", "column"}
        Whether samples are rows or columns in formulas and shapes.
    item_size : int
        Bytes of a number.
    """

    def __init__(self, form: str, item_size: int) -> None:
        self.form, self.item_size = form, item_size
        self.steps: list[TraceLine] = []

    def features(self, X: Symbol) -> Symbol:
        return self._add("features", Symbol("A", X.shape, 0), "{}", [X], flops=0)

    def affine(self, A: Symbol, W: Symbol, b: Symbol) -> Symbol:
        return self._product("affine", "Z", W.layer, A, W.transpose(), plus=b)

    def activate(self, name: str, Z: Symbol) -> Symbol:
        symbol = ACTIVATIONS[name].symbol
        return self._add("activate", Z._replace(letter="A"), f"{symbol}({{}})" if symbol else "{}", [Z])

    def dropout(self, A: Symbol, D: None) -> Symbol:
        return A

    def activation_gradient(self, name: str, dA: Symbol, A: Symbol) -> Symbol:
        dZ, Z = dA._replace(letter="dZ"), A._replace(letter="Z")
        symbol = ACTIVATIONS[name].symbol
        if not symbol:
            return self._add("activation_gradient", dZ, "{}", [dA])
        return self._add("activation_gradient", dZ, f"{{}} ∘ {symbol}'({{}})", [dA, Z], "{} ∘ {}")

    def weight_gradient(self, dZ: Symbol, A: Symbol, into: Symbol) -> Symbol:
        return self._product("weight_gradient", "dW", dZ.layer, dZ.transpose(), A)

    def bias_gradient(self, dZ: Symbol, into: Symbol) -> Symbol:
        ones = Symbol("1", dZ.shape[:1], of_samples=False)
        return self._product("bias_gradient", "db", dZ.layer, dZ.transpose(), ones)

    def input_gradient(self, dZ: Symbol, W: Symbol) -> Symbol:
        return self._product("input_gradient", "dA", dZ.layer - 1, dZ, W)

    def loss(self, name: str, A: Symbol, Y: Symbol) -> tuple[Symbol, Symbol]:
        loss = LOSSES[name]
        P = self._add("loss", Symbol("Ŷ", A.shape), loss.predicted, [A])
        L = self._add("loss", Symbol("L", A.shape[:1]), loss.written, [Y, P], "{}, {}", flops=prod(A.shape))
        return L, self._add("loss", A._replace(letter="dA"), loss.slope, [P, Y], "{} - {}")

    def sum(self, losses: Symbol) -> Symbol:
        (n,) = losses.shape
        return self._add("sum", Symbol("J", ()), f"Σ {{}} / {n}", [losses], flops=n)

    def _product(
        self, operation: str, letter: str, layer: int, left: Symbol, right: Symbol, plus: Symbol | None = None
    ) -> Symbol:
        """Add a product, given in the row form; the column form has the product of the transposes."""
        rows, inner = left.shape_in("row")
        shape = (rows, *right.shape_in("row")[1:])
        result = Symbol(letter, shape, layer, of_samples=left.of_samples and not left.transposed)
        factors = [left, right]
        if self.form == "column":
            factors = [factor.transpose() if factor.of_samples else factor for factor in factors]
            if result.of_samples:
                factors = [factor.transpose() for factor in reversed(factors)]
        each = 2 if operation in PRODUCTS else 1  # a product with 1 is a sum
        written, terms = ("{} {}", factors) if plus is None else ("{} {} + {}", [*factors, plus])
        return self._add(operation, result, written, terms, written, flops=each * inner * prod(shape))

    def _add(
        self,
        operation: str,
        result: Symbol,
        formula: str,
        operands: Sequence[Symbol],
        shapes: str = "{}",
        flops: int | None = None,
    ) -> Symbol:
        """Add a step: `formula` takes the operands' names, `shapes` their shapes; "{}" alone is the operand itself."""
        taken, shape = tuple(operand.shape_in(self.form) for operand in operands), result.shape_in(self.form)
        size = 0 if formula == "{}" and operation != "features" else prod(shape)
        forward, backward = operation in FORWARD, operation.endswith("_gradient")
        step = TraceLine(
            part="forward" if forward else "backward" if backward else "loss",
            operation=operation,
            name=str(result),
            formula=f"{result} = {formula.format(*operands)}",
            operands=taken,
            shape=shape,
            shapes=str(shape) if formula == "{}" else f"{shapes.format(*taken)} -> {shape}",
            parameters=sum(prod(part.shape) for part in operands if forward and part.letter in ("W", "b")),
            flops=size if flops is None else flops,
            bytes=size * self.item_size,
        )
        self.steps.append(step)
        return result
