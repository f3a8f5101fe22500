"""Load the user's own data: a folder of IDX files, an .npz or a .csv."""

from __future__ import annotations

import os
from pathlib import Path

from .idx import KINDS, find_idx, read_idx_pair
from .npz import read_npz
from .records import Dataset, split
from .tables import read_csv


def load(path: str | os.PathLike[str], *, seed: int = 0) -> tuple[Dataset, Dataset]:
    r"""Load training and test data from `path`: each has ``X`` of shape (n, d) and labels ``y`` of shape (n,).

    Three kinds of sources are understood:

    - a folder with the IDX files ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
      ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, each plain or with ``.gz``;
    - an ``.npz`` with the members ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or ``X`` and ``y``
      (capitals do not matter). Only plain numeric arrays are read, never a pickle;
    - a ``.csv`` of numbers, with or without a header line. The label is in the column that the header calls label,
      target, class or y (the first of these that there is), without a header in the first column.

    Where there is no test part, the rows are shuffled by `seed` and the last sixth becomes the test data.

    Images are flattened. Samples of type ``uint8`` or float keep their type (a ``.csv`` is read as ``float32``);
    whole numbers from 0 to 255 of which some exceed 127 are taken as pixels, ``uint8``; other whole numbers become
    ``float32``.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`, or a file is missing from the folder.
    ValueError
        If `path` is of another kind, or what it holds is damaged, contradicts itself, has no rows, samples that are
        not finite or labels that are not whole numbers from 0 to 65535.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "xor.csv")
    ...     _ = path.write_text("a,b,label\n0,0,0\n0,1,1\n1,0,1\n1,1,0\n")
    ...     train, test = load(path)
    >>> train.X.shape, test.X.shape
    ((3, 2), (1, 2))
    """
    path = Path(path)
    if path.is_dir():
        train, test = _load_folder(path)
    elif not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    elif path.suffix.lower() == ".npz":
        train, test = read_npz(path)
    elif path.suffix.lower() == ".csv":
        train, test = read_csv(path), None
    else:
        raise ValueError(f"{path}: data come as a folder of IDX files, an .npz or a .csv; this is none of them")
    if test is None:
        return split(train, seed)
    if train.X.shape[1] != test.X.shape[1]:
        raise ValueError(
            f"{path}: the training data have {train.X.shape[1]} columns and the test data {test.X.shape[1]}"
        )
    return train, test


def _load_folder(folder: Path) -> tuple[Dataset, Dataset | None]:
    train = read_idx_pair(folder, "train")
    has_test = any(find_idx(folder, "t10k", kind) for kind in KINDS)
    return train, read_idx_pair(folder, "t10k") if has_test else None
