"""``python -m mlp_xp.predict``: what a trained model sees in pictures.

For each image, one line: where it is from, the class, its probability, and the runner-up with its probability. For
files with labels, a line with the accuracy follows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..datasets import read_idx
from ..datasets.idx import KINDS, find_idx
from ..datasets.npz import read_npz
from ..datasets.pictures import PNG, read_png
from ..datasets.records import make_dataset
from ..mlp import MLP
from ..objective import OUTPUTS
from .errors import Parser, exit_code, model_file

__all__ = ["main", "run"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return exit_code("predict", lambda: _run_with(arguments))


def _run_with(arguments: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m mlp_xp.predict", description="Classify images with a trained model.")
    parser.add_argument("model", metavar="RUN", help="a run folder, or a model file")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="a PNG, an IDX file (plain or .gz) or an .npz")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N, torch, torch:DEVICE, jax or strict")
    given = parser.parse_args(arguments)
    run(Path(given.model), [Path(image) for image in given.images], given.device)


def run(source: Path, images: Sequence[Path], device: str = "cpu") -> None:
    """Print what the model in `source`, a run folder or a model file, sees in `images`.

    Raises
    ------
    ValueError, OSError
        If a file is damaged, or does not fit the model.
    """
    model, labels = load_run(source, device)
    for path in images:
        X, y = read_images(path, model.sizes[0])
        P = _probabilities(model, X, path)
        best = P.argsort(axis=1, kind="stable")[:, :-3:-1]
        for i, (first, second) in enumerate(best):
            name = f"{path}[{i}]" if len(X) > 1 else path
            print(f"{name}  {labels[first]}  {P[i, first]:.4f}  runner-up {labels[second]} {P[i, second]:.4f}")
        if y is not None:
            right = int(np.sum(_codes(labels)[best[:, 0]] == y))
            print(f"{path}: accuracy {right / len(y):.4f} ({right} of {len(y)})")


def load_run(source: Path, device: str = "cpu") -> tuple[MLP, list[str]]:
    """Return the model of a run folder or model file, and the names of its classes.

    Raises
    ------
    ValueError
        If a file is damaged, the run is not finished, or the model makes no probabilities of classes.
    """
    model = MLP.load(model_file(source), device=device)
    output, classes = OUTPUTS[model.output], max(2, model.sizes[-1])
    if not output.probability or (output.task == "labels" and model.sizes[-1] > 1):
        raise ValueError(
            f"{source}: {model.sizes[-1]} unit(s) with output {model.output!r} make no probabilities of classes; "
            "give a model with output 'softmax', 'softmax_of_sigmoid', or 'sigmoid' with one unit"
        )
    if not source.is_dir():
        return model, [str(label) for label in range(classes)]
    path = source / "config.json"
    try:
        labels = json.loads(path.read_bytes())["labels"]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"{path} is not the configuration of a run with 'labels' ({error!r})") from None
    if not isinstance(labels, list) or not all(isinstance(label, str) and label.isprintable() for label in labels):
        raise ValueError(f"{path}: 'labels' must be a list of printable names")
    if len(labels) != classes:
        raise ValueError(f"{path}: there are {len(labels)} 'labels', but the model has {classes} classes")
    return model, labels


def read_images(path: Path, inputs: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the images (n, inputs) of a PNG, IDX or .npz file, and their labels (n,) where there are any.

    The labels of an IDX file of images are in the file beside it that is named as in MNIST. Of an .npz with a test
    part, that part is taken.

    Raises
    ------
    ValueError
        If the file is damaged, or a PNG is given for a model whose input is not a square image.
    """
    if path.suffix.lower() == ".npz":
        data, test = read_npz(path)
        return test or data
    with open(path, "rb") as file:
        start = file.read(len(PNG))
    if start == PNG:
        side = isqrt(inputs)
        if side * side != inputs:
            raise ValueError(f"{path}: a PNG needs a model of square images, and this one takes {inputs} inputs")
        return read_png(path, side)[None], None
    if start[:2] not in (b"\0\0", b"\x1f\x8b"):
        raise ValueError(f"{path}: images come as PNG, as IDX (plain or .gz) or as .npz; this is none of them")
    X = read_idx(path)
    part, images, _ = path.name.partition("-images")
    beside = find_idx(path.parent, part, KINDS[1]) if images else None
    y = read_idx(beside) if beside else np.zeros(len(X), np.uint8)
    data = make_dataset(X, y, str(path))
    return data.X, data.y if beside else None


def _probabilities(model: MLP, X: NDArray[Any], path: Path) -> NDArray[Any]:
    """(n, n_0) -> probabilities of the classes (n, k), of two classes for a single unit."""
    try:
        P = model.predict_proba(X)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return P if P.shape[1] > 1 else np.concatenate([1 - P, P], axis=1)


def _codes(labels: Sequence[str]) -> NDArray[Any]:
    """Return the labels that classes have in files: their names where these are numbers, else 0, 1, 2 and so on."""
    return np.array([int(label) for label in labels] if all(map(str.isdecimal, labels)) else range(len(labels)))
