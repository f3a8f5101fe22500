"""Load the user's own data: a folder of IDX or .npy files, an .npz, a .csv, HDF5 or Zarr."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .chunked import read_hdf5, read_zarr
from .idx import KINDS, find_idx, read_idx_pair
from .limits import Limits
from .npy import has_npy, read_npy_folder
from .npz import read_npz
from .records import Dataset, Part, check_part, make_datasets, split
from .tables import read_csv

__all__ = ["READERS", "load"]

READERS: dict[str, Callable[[Path, Limits], list[Part]]] = {
    ".npz": read_npz,
    ".csv": lambda path, limits: [read_csv(path, limits)],
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
}
"""What reads a file, by the end of its name: its parts, the training part first, as the file holds them."""


def load(path: str | os.PathLike[str], *, seed: int = 0) -> tuple[Dataset, Dataset]:
    r"""Load training and test data from `path`: each has ``X`` of shape (n, d) and labels ``y`` of shape (n,).

    Six kinds of sources are understood:

    - a folder with the IDX files ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
      ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, each plain or with ``.gz``;
    - a folder with ``x_train.npy``, ``y_train.npy``, ``x_test.npy`` and ``y_test.npy``, or ``X.npy`` and ``y.npy``
      (capitals do not matter). Each may be in shards instead, ``X-000.npy``, ``X-001.npy`` and so on: the rows of one
      follow those of the one before, numbers count from 0 or 1, and labels have the same shards, or one file;
    - an ``.npz`` with the members ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or ``X`` and ``y``
      (capitals do not matter). Only plain numeric arrays are read, never a pickle;
    - an HDF5 file, ``.h5`` or ``.hdf5``, with datasets of these names, for which h5py must be installed;
    - a Zarr group, a folder ``.zarr`` with arrays of these names, for which Zarr must be installed;
    - a ``.csv`` of numbers, with or without a header line. The label is in the column that the header calls label,
      target, class or y (the first of these that it has), without names in the first column. A header of the column
      numbers 0, 1, 2, ..., which pandas writes, is left out.

    Without a test part, the rows are shuffled by `seed` and the last sixth becomes the test data.

    Images are flattened. Both parts get the same type, decided once from all samples: ``uint8``, which counts as
    pixels, and floats stay as they are (a ``.csv`` is read as ``float32``). Other whole numbers are pixels, ``uint8``,
    if they lie between 0 and 255 and some exceed 127, and the logger ``mlp_xp.datasets`` says so. Otherwise they become
    ``float32``.

    A source may take 4 GiB, and half of the available memory. Samples of more than 256 MiB in an IDX file that is not
    packed, or of uint8, float32 or float64 in ``.npy``, HDF5 or Zarr, take none: they stay where they are. ``X`` is a
    memory map then or, of shards, HDF5 and Zarr, an object whose slices are read by ``np.asarray(X[i:j])``, and ``fit``
    takes both. Without a test part, their last sixth becomes the test data as it is stored, because shuffled rows would
    be a copy.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`, or a file is missing from the folder.
    ValueError
        If `path` is of another kind, or what it holds is damaged, too large, contradicts itself, has no rows, samples
        that are not finite or labels that are not whole numbers from 0 to 65535.

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
    parts = _read(path, Limits())
    if len(parts) == 1:
        parts = split(check_part(parts[0]), seed)
    train, test = make_datasets(parts)
    if train.X.shape[1] != test.X.shape[1]:
        raise ValueError(
            f"{path}: the training data have {train.X.shape[1]} columns and the test data {test.X.shape[1]}"
        )
    return train, test


def _read(path: Path, limits: Limits) -> list[Part]:
    if path.is_dir() and path.suffix.lower() == ".zarr":
        return read_zarr(path, limits)
    if path.is_dir():
        if has_npy(path):
            return read_npy_folder(path, limits)
        if not any(find_idx(path, part, kind) for part in ("train", "t10k") for kind in KINDS):
            raise FileNotFoundError(
                f"{path}: no data in this folder; expected IDX files such as train-images-idx3-ubyte, or X.npy and "
                "y.npy, or shards of these, X-000.npy, X-001.npy and so on"
            )
        has_test = any(find_idx(path, "t10k", kind) for kind in KINDS)
        return [read_idx_pair(path, part, limits) for part in ("train", "t10k")[: 1 + has_test]]
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        if path.suffix.lower() == ".npy":
            raise ValueError(f"{path}: samples and labels are two files; name the folder that they are in")
        kinds = f"a folder of IDX or .npy files or as {', '.join((*READERS, '.zarr'))}"
        raise ValueError(f"{path}: data come as {kinds}; this is none of them")
    return reader(path, limits)
