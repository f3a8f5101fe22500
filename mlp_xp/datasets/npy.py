"""Read a folder of .npy files, named like the members of an .npz; large samples stay in their file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..files import open_regular
from .idx import as_array, read_exactly
from .limits import MAX_FILE, Limits
from .maps import map_rest, stays_in_file
from .npz import choose, find, read_header
from .records import Part

__all__ = ["has_npy", "read_npy_folder"]


def has_npy(folder: Path) -> bool:
    """Return whether there is an .npy file in the folder."""
    return any(folder.glob("*.npy"))


def read_npy_folder(folder: Path, limits: Limits) -> list[Part]:
    """Read the files x_train.npy, y_train.npy, x_test.npy, y_test.npy, or the first two, or x.npy, y.npy.

    Capitals do not matter. Samples of more than 256 MiB that are uint8, float32 or float64 are mapped.

    Returns and raises as :func:`mlp_xp.datasets.npz.read_npz`.
    """
    try:
        files = find(path.name for path in sorted(folder.glob("*.npy")))
        pairs = choose(set(files))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    parts = []
    for pair in pairs:
        X, y = (_read(folder / files[name], limits, samples=name == pair[0]) for name in pair)
        parts.append(Part(X, y, f"{folder} ({', '.join(pair)})"))
    return parts


def _read(path: Path, limits: Limits, samples: bool) -> NDArray[Any]:
    with open_regular(path, MAX_FILE) as file:
        try:
            shape, dtype, order, _ = read_header(file)
            if samples and order == "C" and stays_in_file(shape, dtype):
                limits.check_width(shape)
                return map_rest(file, shape, dtype)
            data = read_exactly(file, limits.admit(shape, dtype, samples))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return as_array(data, dtype).reshape(shape, order=order)
