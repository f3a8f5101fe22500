"""Models as safetensors files: named tensors with the shapes of ``torch.nn.Linear``, and a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from os import PathLike
from reprlib import repr as brief
from typing import Any, NamedTuple

import numpy as np

from ..files import tensors as tensor_file

__all__ = ["StoredModel", "read_model", "write_model"]

_Array = np.ndarray[Any, Any]


class StoredModel(NamedTuple):
    """What a file says about a model.

    Attributes
    ----------
    config : dict
        Its arguments, with sizes and dtype that agree with the arrays.
    pixels : bool or None
        Whether uint8 counts as pixels, if that is decided.
    W, b : list of array
        Weights (n_l, n_{l-1}) and biases (n_l,) of layers 1 to L.
    """

    config: dict[str, Any]
    pixels: bool | None
    W: list[_Array]
    b: list[_Array]


def write_model(
    path: str | PathLike[str], config: Mapping[str, Any], pixels: bool | None, W: Sequence[_Array], b: Sequence[_Array]
) -> None:
    """Write a model with tensors ``layers.0.weight``, ``layers.0.bias`` and so on: all of it, or nothing."""
    tensors = {}
    for i, (weight, bias) in enumerate(zip(W, b, strict=True)):
        tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"] = weight, bias
    decided = {} if pixels is None else {"pixels": pixels}
    tensor_file.save(path, tensors, {"kind": "model", "model": dict(config), **decided})


def read_model(path: str | PathLike[str]) -> StoredModel:
    """Read a model whose configuration is that of its tensors, which is known before they are read.

    Raises
    ------
    CheckpointError
        If the file is damaged, holds no model, or contradicts itself.
    """
    try:
        tensors, metadata = tensor_file.load(path, expect=_check)
    except (TypeError, KeyError) as error:
        raise tensor_file.CheckpointError(f"{path} does not describe a model: {error}") from None
    layers = range(len(metadata["model"]["sizes"]) - 1)
    W, b = ([tensors[f"layers.{i}.{kind}"] for i in layers] for kind in ("weight", "bias"))
    return StoredModel(metadata["model"], metadata.get("pixels"), W, b)


def _check(contents: tensor_file.Contents) -> None:
    """Raise a CheckpointError if a header is not that of a model, or its tensors differ from its configuration."""
    config, pixels = contents.metadata.get("model"), contents.metadata.get("pixels")
    if not isinstance(config, dict):
        raise tensor_file.CheckpointError("it holds no model configuration, so MLP.save did not write it")
    if not isinstance(pixels, bool | None):
        raise tensor_file.CheckpointError(f"pixels is {brief(pixels)}, and must be true, false or absent")
    layers = range(len(config["sizes"]) - 1)
    names = [f"layers.{i}.{kind}" for kind in ("weight", "bias") for i in layers]
    shapes, dtypes = [contents.shapes[name] for name in names], {contents.dtypes[name].name for name in names}
    wanted = [*((n, m) for m, n in pairwise(config["sizes"])), *((n,) for n in config["sizes"][1:])]
    if shapes != wanted or dtypes != {config["dtype"]}:
        said = f"sizes {brief(config['sizes'])} and dtype {brief(config['dtype'])}"
        found = f"weights {brief(shapes[: len(layers)])} of {' and '.join(sorted(dtypes))}"
        raise tensor_file.CheckpointError(f"it says {said}, but has {found}")
