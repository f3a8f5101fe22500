"""``python -m mlp_xp.predict``: what a trained model sees in pictures and tables.

For each sample, one line: where it is from, the class, its probability, and the runner-up with its probability. For
files with labels, a line with the accuracy follows.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..datasets.files import READERS
from ..datasets.idx import KINDS, find_idx, read_array
from ..datasets.limits import Limits
from ..datasets.pictures import JPEG, PNG, read_picture
from ..datasets.records import Part, check_part, scale
from ..files import open_regular
from ..mlp import MLP
from ..objective import OUTPUTS
from ..runs.folder import RunFolder
from .errors import Parser, exit_code, model_file, printable

__all__ = ["main", "run"]

SHOWN = 100  # samples that --show draws
NEWEST = 3  # runs that are suggested


class Seen(NamedTuple):
    """Samples as the model got them, X (n, n_0), its probabilities P (n, k), and the names of their classes (n,).

    `truth` is `names` if there are no labels.
    """

    X: NDArray[Any]
    P: NDArray[Any]
    names: NDArray[np.str_]
    truth: NDArray[np.str_]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    codes: list[int] = []
    return exit_code("predict", lambda: codes.append(_run_with(arguments))) or codes[0]


def _run_with(arguments: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m mlp_xp.predict", description="Classify pictures and tables with a trained model.")
    parser.add_argument("model", metavar="RUN", help="a run folder, or a model file")
    kinds = "a PNG, a JPEG, an IDX file (plain or .gz), an .npz or a .csv"
    parser.add_argument("images", metavar="FILE", nargs="+", help=kinds)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N, torch, torch:DEVICE, jax or strict")
    parser.add_argument("--show", metavar="FILE.png", help="draw what the network was given and what it saw in it")
    given = parser.parse_args(arguments)
    show = Path(given.show) if given.show else None
    return run(Path(given.model), [Path(image) for image in given.images], given.device, show)


def run(source: Path, images: Sequence[Path], device: str = "cpu", show: Path | None = None) -> int:
    """Print what the model in `source`, a run folder or a model file, sees in each of the files `images`.

    A file that is damaged or does not fit the model is named on standard error, and the next one is taken.

    Parameters
    ----------
    source, images, device
        The model, the files, and where to compute.
    show
        A PNG to draw: the first 100 samples as the model got them, with its predictions.

    Returns
    -------
    int
        The exit code of the command: 0, or 2 if a file could not be used.

    Raises
    ------
    ValueError, OSError
        If the model is missing or damaged, or the drawing is not possible.
    """
    model, labels = load_run(source, device)
    if show:
        _check_show(show, images, model.sizes[0])
        from ..plots.run import save_predictions  # now, so that a missing matplotlib is told before anything is printed
    seen: list[Seen] = []
    code = 0
    for path in images:
        code = max(code, exit_code("predict", partial(_predict, model, labels, path, seen)))
        if code > 2:  # stopped by the user, or a bug of ours
            return code
    if show and seen:
        X, P, names, truth = (np.concatenate(values)[:SHOWN] for values in zip(*seen, strict=True))
        save_predictions(show, X, names, P, truth)
        print(f"drawn: {printable(show)}")
    return code


def load_run(source: Path, device: str = "cpu") -> tuple[MLP, list[str]]:
    """Return the model of a run folder or model file, and the names of its classes.

    Raises
    ------
    ValueError
        If a file is damaged, the run is not finished, or the model makes no probabilities of classes.
    OSError
        If there is no such run, or a file cannot be read.
    """
    if not source.exists():
        raise FileNotFoundError(errno.ENOENT, f"no such run folder or model file; {_suggest_runs()}", str(source))
    model_file(source)
    model, labels, _ = RunFolder.load(source, device)
    if not OUTPUTS[model.output].probability or (model.task == "labels" and model.sizes[-1] > 1):
        raise ValueError(
            f"{source}: {model.sizes[-1]} unit(s) with output {model.output!r} make no probabilities of classes; "
            "give a model with output 'softmax', 'softmax_of_sigmoid', or 'sigmoid' with one unit"
        )
    return model, labels


def _suggest_runs() -> str:
    """Return what is known of the runs in the folder where training puts them."""
    runs = sorted((path for path in Path("runs").glob("*") if path.is_dir()), key=lambda path: path.stat().st_mtime)
    if not runs:
        return "python -m mlp_xp.train leaves one in runs/"
    return f"the newest are {', '.join(str(path) for path in runs[: -NEWEST - 1 : -1])}"


def _predict(model: MLP, labels: Sequence[str], path: Path, seen: list[Seen]) -> None:
    """Print what the model sees in a file, and append it to `seen`."""
    X, y = read_samples(path, model.sizes[0], model.pixels)
    P = model.predict_proba(X)
    P = P if P.shape[1] > 1 else np.concatenate([1 - P, P], axis=1)
    best = P.argsort(axis=1, kind="stable")[:, :-3:-1]
    for i, (first, second) in enumerate(best):
        name = printable(f"{path}[{i}]" if len(X) > 1 else path)
        words = f"{labels[first]}  {P[i, first]:.4f}  runner-up {labels[second]} {P[i, second]:.4f}"
        print(f"{name}  {printable(words)}")
    names = truth = np.array(labels)[best[:, 0]]
    if y is not None:
        codes = _codes(labels)
        right = int(np.sum(codes[best[:, 0]] == y))
        print(f"{printable(path)}: accuracy {right / len(y):.4f} ({right} of {len(y)})")
        known = dict(zip(codes.tolist(), labels, strict=True))
        truth = np.array([known.get(int(label), str(label)) for label in y])
    seen.append(Seen(X, P, names, truth))


def read_samples(path: Path, inputs: int, pixels: bool | None = None) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the samples (n, inputs) of a picture or a file of data, and their labels (n,) if there are any.

    The labels of an IDX file of images are in the file beside it that is named as in MNIST. Of an .npz with a test
    part, that part is taken. A .csv has labels if it has a column more than the model has inputs.

    Parameters
    ----------
    path, inputs
        The file, and the numbers in a sample.
    pixels
        Whether the model was trained on pixels; None if it is not known, so that the file decides.

    Raises
    ------
    ValueError
        If the file is damaged, has samples of another width or on another scale than the training data, or is a picture
        and the model takes none.
    """
    with open_regular(path, max_bytes=1 << 62) as file:
        start = file.read(len(PNG))
    suffix, limits = path.suffix.lower(), Limits(inputs)
    if start == PNG or start.startswith(JPEG):
        return _read_picture(path, inputs, pixels), None
    if suffix in READERS:
        parts = READERS[suffix](path, limits)
    elif start[:2] in (b"\0\0", b"\x1f\x8b"):
        parts = [_read_idx(path, limits)]
    else:
        known = ", ".join(("PNG", "JPEG", "IDX (plain or .gz)", *READERS))
        raise ValueError(f"{path}: samples come as {known}; this is none of them")
    parts = [check_part(part) for part in parts]
    return scale(parts, pixels)[-1], parts[-1].y


def _read_picture(path: Path, inputs: int, pixels: bool | None) -> NDArray[np.uint8]:
    side = isqrt(inputs)
    if side * side != inputs:
        raise ValueError(f"{path}: a picture needs a model of square images, and this one takes {inputs} inputs")
    if pixels is False:
        raise ValueError(
            f"{path}: the model was trained on numbers that are no pixels, so a picture has no scale for it; "
            "give the numbers as .npz or .csv"
        )
    return read_picture(path, side)[None]


def _read_idx(path: Path, limits: Limits) -> Part:
    X = read_array(path, limits, samples=True)
    part, images, _ = path.name.partition("-images")
    beside = find_idx(path.parent, part, KINDS[1]) if images else None
    return Part(X, read_array(beside, limits, samples=False) if beside else None, str(path))


def _check_show(path: Path, images: Sequence[Path], inputs: int) -> None:
    if isqrt(inputs) ** 2 != inputs:
        raise ValueError(f"--show needs a model of square images, and this one takes {inputs} inputs")
    if path.suffix.lower() != ".png" or path in images:
        raise ValueError(f"--show takes the name of a PNG to write, which is none of the pictures; got {path}")


def _codes(labels: Sequence[str]) -> NDArray[Any]:
    """Return the labels that classes have in files: their names if these are numbers, else 0, 1, 2 and so on."""
    return np.array([int(label) for label in labels] if all(map(str.isdecimal, labels)) else range(len(labels)))
