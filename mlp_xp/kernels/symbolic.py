"""Kernels that compute nothing: they take names and shapes, and write down each formula that they are called for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

__all__ = ["PRODUCTS", "ShapeKernels", "Step", "Symbol"]

FORWARD = ("features", "affine", "activate")
PRODUCTS = ("affine", "weight_gradient", "input_gradient")
"""The operations that are matrix products."""


@dataclass(frozen=True)
class Step:
    """One line of a trace.

    Attributes
    ----------
    part : {"forward", "loss", "backward"}
    operation : str
        The kernel's method that does it; what it computes is in ``kernels/generic.py``.
    name, formula : str
        What comes out, and of what, as in ``"Z[1]"`` and ``"Z[1] = A[0] W[1]ᵀ + b[1]"``.
    operands : tuple of shapes
        Of what goes in, transposed where the formula says so.
    shape : tuple of int
        Of what comes out.
    shapes : str
        Both, as people write them: ``"(7, 10) (10, 64) + (64,) -> (7, 64)"``.
    parameters : int
        Weights and biases that come in.
    flops : int
        Floating-point operations.
    bytes : int
        Of what comes out; 0 where it is an array that was there before.
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
    """An array of which no number is known."""

    letter: str
    shape: tuple[int, ...]  # where samples are rows
    layer: int = -1  # -1: it belongs to no layer
    of_samples: bool = True  # its first axis counts samples: the column form has its transpose
    transposed: bool = False

    def __str__(self) -> str:
        return self.letter + (f"[{self.layer}]" if self.layer >= 0 else "") + ("ᵀ" if self.transposed else "")

    def transpose(self) -> Symbol:
        """Return the same array, transposed."""
        return self._replace(transposed=not self.transposed)

    def shape_in(self, form: str) -> tuple[int, ...]:
        """Return the shape in the row form or in the column form, in which vectors are columns."""
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
        Whether formulas and shapes are written for samples as rows or as columns.
    item_size : int
        Bytes of a number.
    """

    def __init__(self, form: str, item_size: int) -> None:
        self.form, self.item_size = form, item_size
        self.steps: list[Step] = []

    def features(self, X: Symbol) -> Symbol:
        return self._add("features", Symbol("A", X.shape, 0), "{}", [X], flops=0)

    def affine(self, A: Symbol, W: Symbol, b: Symbol) -> Symbol:
        return self._product("affine", "Z", W.layer, A, W.transpose(), plus=b)

    def activate(self, name: str, Z: Symbol) -> Symbol:
        return self._add("activate", Z._replace(letter="A"), _written(name), [Z])

    def activation_gradient(self, name: str, dA: Symbol, A: Symbol) -> Symbol:
        dZ, Z = dA._replace(letter="dZ"), A._replace(letter="Z")
        if name == "identity":
            return self._add("activation_gradient", dZ, "{}", [dA])
        slope = _written(name).replace("(", "'(")
        return self._add("activation_gradient", dZ, f"{{}} ∘ {slope}", [dA, Z], "{} ∘ {}")

    def weight_gradient(self, dZ: Symbol, A: Symbol, into: Symbol) -> Symbol:
        return self._product("weight_gradient", "dW", dZ.layer, dZ.transpose(), A)

    def bias_gradient(self, dZ: Symbol, into: Symbol) -> Symbol:
        ones = Symbol("1", dZ.shape[:1], of_samples=False)
        return self._product("bias_gradient", "db", dZ.layer, dZ.transpose(), ones)

    def input_gradient(self, dZ: Symbol, W: Symbol) -> Symbol:
        return self._product("input_gradient", "dA", dZ.layer - 1, dZ, W)

    def softmax_cross_entropy(self, A: Symbol, Y: Symbol) -> tuple[Symbol, Symbol]:
        return self._loss("softmax_cross_entropy", A, Y, "softmax({})", "-Σ {0} log {1}")

    def sigmoid_cross_entropy(self, A: Symbol, Y: Symbol) -> tuple[Symbol, Symbol]:
        return self._loss("sigmoid_cross_entropy", A, Y, "σ({})", "-Σ [{0} log {1} + (1-{0}) log(1-{1})]")

    def half_squared_error(self, A: Symbol, Y: Symbol) -> tuple[Symbol, Symbol]:
        return self._loss("half_squared_error", A, Y, "{}", "Σ ({1} - {0})² / 2")

    def perceptron_criterion(self, A: Symbol, Y: Symbol) -> tuple[Symbol, Symbol]:
        return self._loss("perceptron_criterion", A, Y, "{}", "Σ max(0, (1-2{0}) {1})", "±1 where {} and {} disagree")

    def sum(self, losses: Symbol) -> Symbol:
        (n,) = losses.shape
        return self._add("sum", Symbol("J", ()), f"Σ {{}} / {n}", [losses], flops=n)

    def _loss(
        self, operation: str, A: Symbol, Y: Symbol, predicted: str, loss: str, slope: str = "{} - {}"
    ) -> tuple[Symbol, Symbol]:
        P = self._add(operation, Symbol("Ŷ", A.shape), predicted, [A])
        L = self._add(operation, Symbol("L", A.shape[:1]), loss, [Y, P], "{}, {}", flops=prod(A.shape))
        return L, self._add(operation, A._replace(letter="dA"), slope, [P, Y], "{} - {}")

    def _product(
        self, operation: str, letter: str, layer: int, left: Symbol, right: Symbol, plus: Symbol | None = None
    ) -> Symbol:
        """Add a product, as the row form has it; where samples are columns, it becomes that of the transposes."""
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
        """Add a step: `formula` takes the operands' names and `shapes` their shapes; "{}" is the operand itself."""
        taken, shape = tuple(operand.shape_in(self.form) for operand in operands), result.shape_in(self.form)
        size = 0 if formula == "{}" and operation != "features" else prod(shape)
        forward, backward = operation in FORWARD, operation.endswith("_gradient")
        step = Step(
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


def _written(activation: str) -> str:
    """Return how an activation is written: "σ({})", or "{}" for the identity."""
    return {"sigmoid": "σ({})", "identity": "{}"}.get(activation, f"{activation}({{}})")
