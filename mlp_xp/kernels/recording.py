"""Kernels that compute nothing: they write down each call, as instructions on numbered buffers.

The text of forward and backward, run once on these, leaves a program that a library without Python can replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..params import Parameters

__all__ = ["Instruction", "Program", "RecordingKernels", "symbols"]


class Instruction(NamedTuple):
    """One call of an operation.

    Attributes
    ----------
    operation : str
        The method of the kernels, see ``generic.py``.
    name : str
        Of the activation or the loss, if it has one.
    layer : int
        Whose weights and biases take part, or whose units are dropped; 0 if none.
    source, other, target : int
        Numbers of buffers; 0 where there is none.
    """

    operation: str
    name: str = ""
    layer: int = 0
    source: int = 0
    other: int = 0
    target: int = 0


class Program(NamedTuple):
    """What a pass over a block of rows does.

    Attributes
    ----------
    instructions : list of Instruction
        In the order of the text.
    columns : list of int
        Of each buffer. Buffer 0 holds the features.
    """

    instructions: list[Instruction]
    columns: list[int]


class _Block(NamedTuple):
    """A buffer, by its number."""

    number: int


class _Layer(NamedTuple):
    """Weights, biases or dropout's factors of a layer, by its number."""

    number: int


_NONE = _Block(0)


def symbols(layers: int) -> Parameters:
    """Return what stands for the weights and biases, or their gradients, of layers 1 to L."""
    return Parameters([_Layer(l) for l in range(layers + 1)], [_Layer(l) for l in range(layers + 1)])


class RecordingKernels:
    """The operations of forward and backward; each call adds to ``program``.

    Parameters
    ----------
    sizes : sequence of int
        Units per layer, input first.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        self.program = Program([], [])

    def features(self, X: Any) -> _Block:
        return self._add("features", target=self._new(0))

    def affine(self, A: _Block, W: _Layer, b: _Layer) -> _Block:
        return self._add("affine", layer=W.number, source=A, target=self._new(W.number))

    def activate(self, name: str, Z: _Block) -> _Block:
        return self._add("activate", name, target=Z)

    def dropout(self, A: _Block, D: _Layer | None) -> _Block:
        return A if D is None else self._add("dropout", layer=D.number, source=A, target=self._new(D.number))

    def loss(self, name: str, A: _Block, y: Any) -> tuple[Any, _Block]:
        return y, self._add("loss", name, source=A, target=self._new(len(self.sizes) - 1))

    def activation_gradient(self, name: str, dA: _Block, A: _Block) -> _Block:
        return self._add("activation_gradient", name, other=A, target=dA)

    def input_gradient(self, dZ: _Block, W: _Layer) -> _Block:
        return self._add("input_gradient", layer=W.number, source=dZ, target=self._new(W.number - 1))

    def weight_gradient(self, dZ: _Block, A: _Block, into: _Layer) -> _Layer:
        self._add("weight_gradient", layer=into.number, source=dZ, other=A)
        return into

    def bias_gradient(self, dZ: _Block, into: _Layer) -> _Layer:
        self._add("bias_gradient", layer=into.number, source=dZ)
        return into

    def sum(self, losses: Any) -> Any:
        return losses

    def _new(self, layer: int) -> _Block:
        self.program.columns.append(self.sizes[layer])
        return _Block(len(self.program.columns) - 1)

    def _add(
        self, operation: str, name: str = "", *, layer: int = 0, source: _Block = _NONE, other: _Block = _NONE,
        target: _Block = _NONE,
    ) -> _Block:  # fmt: skip
        numbers = (block.number for block in (source, other, target))
        self.program.instructions.append(Instruction(operation, name, layer, *numbers))
        return target
