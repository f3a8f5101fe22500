"""Trained models as ONNX.

The outputs have the names that scikit-learn's converters give them:

    X (n, n_0)               numbers of the model's dtype, used as they are; with pixels, uint8, divided by 255 inside
    label                    what `MLP.predict` returns: classes (n,), or 0/1 labels (n, n_L), (n,) for one unit
    probabilities (n, n_L)   what `MLP.predict_proba` returns; there are none of a perceptron
    variable                 for outputs that are values, instead of these two: (n, n_L), (n,) for one unit
"""

from __future__ import annotations

import io
import json
import os
from importlib.metadata import version
from typing import Any

import numpy as np

from ..files.atomic import replace_file
from ..kernels.generic import LEAK
from ..mlp import MLP
from ..objective import OUTPUTS

__all__ = ["save_onnx", "signature", "to_onnx"]

MAX_BYTES = 2_000_000_000  # of parameters: protobuf ends at 2 GiB
TYPES = {
    "float32": ("float", 1),
    "float64": ("double", 11),
}  # their names in ONNX, and their numbers
INT64 = 7
OPERATORS = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu", "identity": "Identity"}


def save_onnx(model: MLP, path: str | os.PathLike[str], *, pixels: bool = False) -> None:
    """Write :func:`to_onnx` of the model to a file: all of it, or nothing.

    Raises
    ------
    ValueError, OSError
        If the model is too large for the format, or the file cannot be written.
    """
    content = to_onnx(model, pixels=pixels).SerializeToString()

    def verify(file: io.BufferedReader) -> None:
        if file.read() != content:
            raise OSError(None, "it reads back otherwise than it was written")

    replace_file(path, [memoryview(content)], verify)


def to_onnx(model: MLP, *, pixels: bool = False) -> Any:
    """Return the model, which may be on any device, as an ``onnx.ModelProto`` that has passed onnx's checker.

    Parameters
    ----------
    model
        The model.
    pixels
        Let the input be uint8, and divide it by 255 in the graph. Otherwise it has the dtype of the model and is used
        as it is: a model that was trained on uint8 then takes X / 255.

    Raises
    ------
    ValueError
        If the parameters take more bytes than an ONNX file can have.
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
    """Return the model in ONNX's own notation, in which W1, b1, W2 and so on are still to be given.

    All operators are in opset 13, of 2020: every runtime since then reads them.
    """
    real, code = TYPES[model.dtype]

    def number(value: float) -> str:
        return f"Constant <value = {real} {{{value}}}> ()"

    nodes = ["A0 = Identity (X)"]
    if pixels:
        nodes = [f"numbers = Cast <to = {code}> (X)", f"scale = {number(1 / 255)}", "A0 = Mul (numbers, scale)"]
    for l, g in enumerate(model.network.g[1:], 1):
        nodes.append(f"Z{l} = Gemm <transB = 1> (A{l - 1}, W{l}, b{l})")
        if g == "leaky_relu":  # the operator of this name would round the leak to float32
            nodes += [f"leak{l} = {number(LEAK)}", f"leaked{l} = Mul (leak{l}, Z{l})", f"A{l} = Max (Z{l}, leaked{l})"]
        else:
            nodes.append(f"A{l} = {OPERATORS[g]} (Z{l})")

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


def signature(model: MLP, pixels: bool) -> str:
    """Return the types and shapes of input and outputs, as in ``(float[n, 784] X) => (int64[n] label, ...)``."""
    real, output = TYPES[model.dtype][0], OUTPUTS[model.output]
    rows = f"[n, {model.sizes[-1]}]"
    each = "[n]" if model.sizes[-1] == 1 or output.task == "classes" else rows
    outputs = f"{real}{each} variable" if output.task == "values" else f"int64{each} label"
    outputs += f", {real}{rows} probabilities" if output.probability else ""
    return f"({'uint8' if pixels else real}[n, {model.sizes[0]}] X) => ({outputs})"
