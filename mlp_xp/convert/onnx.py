"""Trained models as ONNX.

The outputs have the names that scikit-learn's converters give them:

    X (n, n_0)               numbers of the model's dtype, used as they are; with pixels, uint8, divided by 255 inside
    label                    what `MLP.predict` returns: classes (n,), or 0/1 labels (n, n_L), (n,) for one unit
    probabilities (n, n_L)   what `MLP.predict_proba` returns; a perceptron has none
    variable                 instead of these two if the outputs are values: (n, n_L), (n,) for one unit
"""

from __future__ import annotations

import io
import json
import os
from importlib.metadata import version
from typing import Any

import numpy as np

from ..files.atomic import replace_file
from ..kernels import ACTIVATIONS
from ..mlp import MLP
from ..objective import OUTPUTS

__all__ = ["save_onnx", "signature", "to_onnx"]

MAX_BYTES = 2_000_000_000  # of parameters: protobuf ends at 2 GiB
TYPES = {"float32": ("float", 1), "float64": ("double", 11)}  # name and number in ONNX
INT64 = 7


def save_onnx(model: MLP, path: str | os.PathLike[str], *, pixels: bool = False) -> None:
    """Write :func:`to_onnx` of the model to a file: all of it, or nothing.

    Raises
    ------
    ValueError, OSError
        If the format cannot hold the model, or the file cannot be written.
    """
    content = to_onnx(model, pixels=pixels).SerializeToString()

    def verify(file: io.BufferedReader) -> None:
        if file.read() != content:
            raise OSError(None, "it does not read back as it was written")

    replace_file(path, [memoryview(content)], verify)


def to_onnx(model: MLP, *, pixels: bool = False) -> Any:
    """Return the model, which may be on any device, as an ``onnx.ModelProto`` that has passed onnx's checker.

    Parameters
    ----------
    model
        The model.
    pixels
        Let the input be uint8, and divide it by 255 in the graph. Otherwise the input has the model's dtype and is used
        as it is: a model that was trained on uint8 then takes X / 255.

    Raises
    ------
    ValueError
        If the parameters take more bytes than an ONNX file can have, or an activation has no form in ONNX.
    ModuleNotFoundError
        If onnx is not installed.
    """
    try:
        import onnx
        import onnx.parser
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("ONNX files need onnx; install it with: pip install 'mlp_xp[onnx]'") from error

    needed = model.layout.size * np.dtype(model.dtype).itemsize
    if needed > MAX_BYTES:
        raise ValueError(f"the parameters take {needed} bytes, and ONNX files hold {MAX_BYTES}; export a smaller model")
    proto = onnx.parser.parse_model(_text(model, pixels))
    for l, (W, b) in enumerate(zip(model.weights, model.biases, strict=True), 1):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(W, f"W{l}"))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(b, f"b{l}"))
    config = {key: json.dumps(model.config[key]) for key in ("sizes", "activation", "output")}
    onnx.helper.set_model_props(proto, config)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _text(model: MLP, pixels: bool) -> str:
    """Return the model in ONNX's text format, without the values of W1, b1, W2, and so on.

    Opset 13 is from 2020; every runtime since then has all of its operators.
    """
    real, code = TYPES[model.dtype]

    def number(value: float) -> str:
        return f"Constant <value = {real} {{{value}}}> ()"

    nodes = ["A0 = Identity (X)"]
    if pixels:
        nodes = [f"numbers = Cast <to = {code}> (X)", f"scale = {number(1 / 255)}", "A0 = Mul (numbers, scale)"]
    for l, g in enumerate(model.network.g[1:], 1):
        nodes.append(f"Z{l} = Gemm <transB = 1> (A{l - 1}, W{l}, b{l})")
        nodes += [node.replace("#", str(l)).replace("REAL", real) for node in _nodes(g)]

    A, shape = f"A{len(model.network.g) - 1}", [-1] if model.sizes[-1] == 1 else [-1, model.sizes[-1]]
    match OUTPUTS[model.output].task:
        case "classes":
            nodes += [f"label = ArgMax <axis = 1, keepdims = 0> ({A})", f"probabilities = Softmax <axis = 1> ({A})"]
        case "labels":
            nodes += [f"zero = {number(0.0)}", f"above = Greater ({A}, zero)", f"labels = Cast <to = {INT64}> (above)"]
            nodes += [f"shape = Constant <value_ints = {shape}> ()", "label = Reshape (labels, shape)"]
            nodes += [f"probabilities = Sigmoid ({A})"] if OUTPUTS[model.output].probability else []
        case _:
            nodes += [f"shape = Constant <value_ints = {shape}> ()", f"variable = Reshape ({A}, shape)"]
    body = "\n".join(nodes)
    header = (
        f'<ir_version: 7, opset_import: ["": 13], producer_name: "mlp_xp", producer_version: "{version("mlp_xp")}">'
    )
    return f"{header}\nmlp_xp {signature(model, pixels)}\n{{\n{body}\n}}"


def _nodes(activation: str) -> tuple[str, ...]:
    """Return how ONNX computes an activation, see :class:`mlp_xp.kernels.functions.Activation`."""
    nodes = ACTIVATIONS[activation].onnx
    if not nodes:
        known = ", ".join(repr(g.name) for g in ACTIVATIONS.values() if g.onnx)
        raise ValueError(f"activation {activation!r} has no form in ONNX; those that have one are {known}")
    return nodes


def signature(model: MLP, pixels: bool) -> str:
    """Return the types and shapes of input and outputs, as in ``(float[n, 784] X) => (int64[n] label, ...)``."""
    real, output = TYPES[model.dtype][0], OUTPUTS[model.output]
    rows = f"[n, {model.sizes[-1]}]"
    each = "[n]" if model.sizes[-1] == 1 or output.task == "classes" else rows
    outputs = f"{real}{each} variable" if output.task == "values" else f"int64{each} label"
    outputs += f", {real}{rows} probabilities" if output.probability else ""
    return f"({'uint8' if pixels else real}[n, {model.sizes[0]}] X) => ({outputs})"
