"""Read a folder of .npy files, named like the members of an .npz; large samples stay in their files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..files import open_regular
from .idx import as_array, read_exactly
from .limits import ANY_SIZE, Limits
from .maps import Span, map_rest, stays_in_file
from .npz import NAMES, choose, find, read_header
from .records import Part
from .shards import Shards

__all__ = ["has_npy", "read_npy_folder"]

_SHARD = re.compile(r"(?P<name>.+)-(?P<number>[0-9]{1,9})\.npy", re.IGNORECASE)


def has_npy(folder: Path) -> bool:
    """Return whether there is an .npy file in the folder."""
    return any(folder.glob("*.npy"))


def read_npy_folder(folder: Path, limits: Limits) -> list[Part]:
    """Read the files x_train.npy, y_train.npy, x_test.npy, y_test.npy, or the first two, or x.npy, y.npy.

    Capitals do not matter. Each may be in shards instead, x-000.npy, x-001.npy and so on. Samples of more than 256 MiB
    that are uint8, float32 or float64 stay in their files.

    Returns and raises as :func:`mlp_xp.datasets.npz.read_npz`.
    """
    paths = sorted(folder.glob("*.npy"))
    numbered = {path: match for path in paths if (match := _SHARD.fullmatch(path.name)) and _holds(match) in NAMES}
    try:
        files = find(path.name for path in paths if path not in numbered)
        shards = _in_order(numbered)
        if both := sorted(files.keys() & shards.keys()):
            raise ValueError(f"{files[both[0]]} and {shards[both[0]][0].name} both name {both[0]}; keep one of them")
        pairs = choose({*files, *shards})
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    parts = []
    for pair in pairs:
        arrays = {name: Shards(shards[name]) for name in pair if name in shards}
        if len(arrays) == 2:
            _check_rows(*(arrays[name] for name in pair))
        X, y = (
            _gather(arrays[name], limits, samples=name == pair[0])
            if name in arrays
            else _read(folder / files[name], limits, samples=name == pair[0])
            for name in pair
        )
        parts.append(Part(X, y, f"{folder} ({', '.join(pair)})"))
    return parts


def _holds(match: re.Match[str]) -> str:
    return match["name"].lower()


def _in_order(numbered: dict[Path, re.Match[str]]) -> dict[str, list[Path]]:
    """Return the files of each name by their numbers, which begin with 0 or 1 and leave none out."""
    found: dict[str, dict[int, Path]] = {}
    for path, match in numbered.items():
        shards = found.setdefault(_holds(match), {})
        other = shards.setdefault(int(match["number"]), path)
        if other is not path:
            raise ValueError(f"{other.name} and {path.name} are both shard {int(match['number'])}; keep one of them")
    for name, shards in found.items():
        missing = next((i for i in range(min(1, *shards), max(shards)) if i not in shards), None)
        if missing is not None:
            last = shards[max(shards)].name
            raise ValueError(f"shard {missing} of {name} is missing: there is {last}, and numbers count from 0 or 1")
    return {name: [shards[i] for i in sorted(shards)] for name, shards in found.items()}


def _check_rows(X: Shards, y: Shards) -> None:
    if len(X.paths) != len(y.paths):
        raise ValueError(
            f"{X.paths[0].parent}: {len(X.paths)} shards of samples and {len(y.paths)} of labels; give the labels the "
            "same shards, or one file"
        )
    for samples, rows, labels, count in zip(X.paths, X.rows, y.paths, y.rows, strict=True):
        if rows != count:
            raise ValueError(f"{labels}: {count} labels, but {samples.name} has {rows} samples; they must agree")


def _gather(shards: Shards, limits: Limits, samples: bool) -> Any:
    """Return the rows of all shards: an array, or samples that stay in the files."""
    try:
        if samples and stays_in_file(shards.shape, shards.dtype):
            limits.check_width(shards.shape)
            return Span(shards)
        limits.admit(shards.shape, shards.dtype, samples)
    except ValueError as error:
        raise ValueError(f"{shards.paths[0]}: {error}") from error
    X = shards[:]
    return X.astype(X.dtype.newbyteorder("="), copy=False)


def _read(path: Path, limits: Limits, samples: bool) -> NDArray[Any]:
    with open_regular(path, ANY_SIZE) as file:
        try:
            shape, dtype, order, _ = read_header(file)
            if samples and order == "C" and stays_in_file(shape, dtype):
                limits.check_width(shape)
                return map_rest(file, shape, dtype)
            data = read_exactly(file, limits.admit(shape, dtype, samples))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return as_array(data, dtype).reshape(shape, order=order)
