"""Activations and losses: one record each, which all kernels, exporters, traces, plots, and tests read.

A new record in a table below is all that a new function needs. It then trains on every device, at the speed of its
formula; a kernel class may know a faster way for some of them, and uses the formula for the rest.

Formulas take the array library as `xp` and keep to the Array API standard. They leave their arguments as they are and
return numbers of the dtype that they are given.

Legend: n rows, h units of a layer, k outputs of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import array_api_compat as compat

from ..devices import Array

__all__ = ["ACTIVATIONS", "LEAK", "LOSSES", "Activation", "Loss", "softmax"]

LEAK = 0.01  # slope of the leaky ReLU below zero


@dataclass(frozen=True, eq=False)
class Activation:
    """An activation function g.

    Attributes
    ----------
    name : str
        What users call it.
    value : callable
        ``value(xp, Z)``: (n, h) -> A = g(Z) (n, h).
    gradient : callable
        ``gradient(xp, dA, A)``: (n, h), (n, h) -> dZ = dA ∘ g'(Z) (n, h). The slope comes from the output A, so that
        no kernel has to keep Z.
    symbol : str
        How formulas write g, as in "σ"; "" for the identity, which they leave out.
    onnx : tuple of str
        Nodes in ONNX's text format that compute ``A#`` from ``Z#``, with operators of opset 13. ``#`` stands for the
        number of the layer and ``REAL`` for the model's dtype. Empty if ONNX cannot express it.
    torch : str
        Name of the module in ``torch.nn``; "" if there is none.
    torch_options : mapping of str to number
        Arguments of that module, which are also its attributes.
    line : str
        Line style in the plot of all activations; "" leaves it out.
    """

    name: str
    value: Callable[[Any, Array], Array]
    gradient: Callable[[Any, Array, Array], Array]
    symbol: str
    onnx: tuple[str, ...] = ()
    torch: str = ""
    torch_options: Mapping[str, float] = field(default_factory=dict)
    line: str = "-"


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss on the outputs A[L] of a network.

    Attributes
    ----------
    name : str
        What :class:`mlp_xp.model.Output` calls it.
    formula : callable
        ``formula(xp, A, y)``: (n, k) and targets -> each row's loss (n,), and dA = ∂loss/∂A (n, k). Targets are labels
        (n,) for outputs whose task is classes, otherwise Y (n, k).
    written : str
        How a trace writes the loss: ``{0}`` stands for Y and ``{1}`` for the prediction Ŷ.
    predicted : str
        How a trace writes Ŷ: ``{}`` stands for A.
    slope : str
        How a trace writes dA: ``{0}`` stands for Ŷ and ``{1}`` for Y.
    """

    name: str
    formula: Callable[[Any, Array, Array], tuple[Array, Array]]
    written: str
    predicted: str = "{}"
    slope: str = "{0} - {1}"


def sigmoid(xp: Any, Z: Array) -> Array:
    """(n, h) -> (n, h): 1 / (1 + e⁻ᶻ)."""
    e = xp.exp(-xp.abs(Z))  # never overflows
    return xp.where(Z >= 0, xp.ones_like(Z), e) / (1 + e)


ACTIVATIONS: dict[str, Activation] = {
    g.name: g
    for g in (
        Activation(
            "sigmoid",
            value=sigmoid,
            gradient=lambda xp, dA, A: dA * A * (1 - A),
            symbol="σ",
            onnx=("A# = Sigmoid (Z#)",),
            torch="Sigmoid",
        ),
        Activation(
            "tanh",
            value=lambda xp, Z: xp.tanh(Z),
            gradient=lambda xp, dA, A: dA * (1 - A * A),
            symbol="tanh",
            onnx=("A# = Tanh (Z#)",),
            torch="Tanh",
        ),
        Activation(
            "relu",
            # -0.0 for Z < 0, and 0.0 for zeros of both signs: it tells the gradient which side of the kink Z is on.
            value=lambda xp, Z: xp.where(Z < 0, -xp.zeros_like(Z), xp.abs(Z)),
            gradient=lambda xp, dA, A: xp.where(xp.signbit(A), xp.zeros_like(dA), dA),  # slope 1 at Z = 0
            symbol="relu",
            onnx=("A# = Relu (Z#)",),
            torch="ReLU",
        ),
        Activation(
            "leaky_relu",
            value=lambda xp, Z: xp.where(Z >= 0, Z, LEAK * Z),
            gradient=lambda xp, dA, A: xp.where(A >= 0, dA, LEAK * dA),  # slope 1 at Z = 0
            symbol="leaky_relu",
            # ONNX's LeakyRelu would round the leak to float32, also in a float64 model.
            onnx=(
                f"leak# = Constant <value = REAL {{{LEAK}}}> ()",
                "leaked# = Mul (leak#, Z#)",
                "A# = Max (Z#, leaked#)",
            ),
            torch="LeakyReLU",
            torch_options={"negative_slope": LEAK},
            line="--",  # it covers the ReLU
        ),
        Activation(
            "identity",
            value=lambda xp, Z: Z,
            gradient=lambda xp, dA, A: dA,
            symbol="",
            onnx=("A# = Identity (Z#)",),
            torch="Identity",
            line="",
        ),
    )
}
"""The activations by name."""


def softmax(xp: Any, A: Array) -> Array:
    """(n, k) -> (n, k): rows of probabilities."""
    E = xp.exp(A - xp.max(A, axis=1, keepdims=True))  # shifted so that nothing overflows
    return E / xp.sum(E, axis=1, keepdims=True)


def softmax_cross_entropy(xp: Any, A: Array, y: Array) -> tuple[Array, Array]:
    """(n, k), labels (n,) -> -log softmax(A)[y] (n,) and softmax(A) - Y (n, k), where Y has a 1 at each label."""
    classes = xp.arange(A.shape[1], dtype=y.dtype, device=compat.device(y))
    Y = xp.astype(y[:, None] == classes[None, :], A.dtype)
    A = A - xp.max(A, axis=1, keepdims=True)
    E = xp.exp(A)
    total = xp.sum(E, axis=1, keepdims=True)
    return xp.log(total[:, 0]) - xp.sum(A * Y, axis=1), E / total - Y


def sigmoid_cross_entropy(xp: Any, A: Array, Y: Array) -> tuple[Array, Array]:
    """(n, k), targets (n, k) -> Σ -Y log s - (1 - Y) log(1 - s) (n,) and s - Y (n, k), with s = σ(A)."""
    softplus = (xp.abs(A) + A) / 2 + xp.log1p(xp.exp(-xp.abs(A)))  # log(1 + e^A) without overflow
    return xp.sum(softplus - A * Y, axis=1), sigmoid(xp, A) - Y


def half_squared_error(xp: Any, A: Array, Y: Array) -> tuple[Array, Array]:
    """(n, k), targets (n, k) -> |A - Y|² / 2 (n,) and A - Y (n, k)."""
    dA = A - Y
    return xp.sum(dA * dA, axis=1) / 2, dA


def perceptron_criterion(xp: Any, A: Array, Y: Array) -> tuple[Array, Array]:
    """(n, k), targets (n, k) of 0 or 1 -> Σ max(0, -s A) (n,) and -s wherever s A <= 0 (n, k), with s = 2 Y - 1."""
    s = 2 * Y - 1
    dA = xp.where(s * A <= 0, -s, xp.zeros_like(s))  # a point on the line counts as wrong: training can start at zero
    return xp.sum(dA * A, axis=1), dA


def absolute_error(xp: Any, A: Array, Y: Array) -> tuple[Array, Array]:
    """(n, k), targets (n, k) -> Σ |A - Y| (n,), and its sign, 0 at the targets themselves, (n, k)."""
    error = A - Y
    return xp.sum(xp.abs(error), axis=1), xp.sign(error)


def huber(xp: Any, A: Array, Y: Array) -> tuple[Array, Array]:
    """(n, k), targets (n, k) -> Σ e² / 2, or |e| - 1/2 beyond 1, (n,) and e within ±1 (n, k), with e = A - Y.

    It is half a square near the targets and a size far from them (Huber 1964, with k = 1), so that single targets that
    are far off do not decide. What is near is for the scale of the targets to say.
    """
    error = A - Y
    dA = xp.clip(error, -1.0, 1.0)
    return xp.sum(dA * (error - dA / 2), axis=1), dA


def softmax_log_loss(xp: Any, A: Array, y: Array) -> tuple[Array, Array]:
    """Return what scikit-learn reports of the softmax cross-entropy: probabilities count as eps to 1 - eps.

    The slope knows nothing of that. The eps is that of the dtype.
    """
    losses, dA = softmax_cross_entropy(xp, A, y)
    eps = float(xp.finfo(A.dtype).eps)
    return xp.clip(losses, -math.log1p(-eps), -math.log(eps)), dA


def sigmoid_log_loss(xp: Any, A: Array, Y: Array) -> tuple[Array, Array]:
    """Return what scikit-learn reports of the sigmoid cross-entropy, with the rounding of 1 - s, and s - Y."""
    eps, s = float(xp.finfo(A.dtype).eps), sigmoid(xp, A)
    P = xp.clip(s, eps, 1 - eps)
    return -xp.sum(Y * xp.log(P) + (1 - Y) * xp.log(1 - P), axis=1), s - Y


def half_mean_squared_error(xp: Any, A: Array, Y: Array) -> tuple[Array, Array]:
    """(n, k), targets (n, k) -> |A - Y|² / 2k (n,) and A - Y (n, k): scikit-learn's slope is that of the sum over k."""
    losses, dA = half_squared_error(xp, A, Y)
    return losses / A.shape[1], dA


def poisson_deviance(xp: Any, A: Array, Y: Array) -> tuple[Array, Array]:
    """(n, k), targets (n, k) >= 0 -> Σ Y log(Y / μ) - Y + μ (n,), half the deviance, and μ - Y (n, k), with μ = e^A."""
    mean = xp.exp(A)
    log_Y = xp.log(xp.where(Y > 0, Y, xp.ones_like(Y)))
    return xp.sum(Y * (log_Y - A) - Y + mean, axis=1), mean - Y


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("softmax_cross_entropy", softmax_cross_entropy, "-Σ {0} log {1}", predicted="softmax({})"),
        Loss(
            "sigmoid_cross_entropy",
            sigmoid_cross_entropy,
            "-Σ [{0} log {1} + (1-{0}) log(1-{1})]",
            predicted="σ({})",
        ),
        Loss("half_squared_error", half_squared_error, "Σ ({1} - {0})² / 2"),
        Loss(
            "perceptron_criterion",
            perceptron_criterion,
            "Σ max(0, (1-2{0}) {1})",
            slope="±1 where {0} and {1} disagree",
        ),
        Loss("absolute_error", absolute_error, "Σ |{1} - {0}|", slope="sign({0} - {1})"),
        Loss("huber", huber, "Σ huber({1} - {0})", slope="{0} - {1} within ±1"),
        Loss("softmax_log_loss", softmax_log_loss, "-Σ {0} log {1}", predicted="softmax({})"),
        Loss("sigmoid_log_loss", sigmoid_log_loss, "-Σ [{0} log {1} + (1-{0}) log(1-{1})]", predicted="σ({})"),
        Loss("half_mean_squared_error", half_mean_squared_error, "Σ ({1} - {0})² / 2k"),
        Loss("poisson_deviance", poisson_deviance, "Σ [{0} log({0}/{1}) - {0} + {1}]", predicted="exp({})"),
    )
}
"""The losses by name. ``softmax_log_loss`` to ``poisson_deviance`` are scikit-learn's, which has
ways of its own to report losses."""
