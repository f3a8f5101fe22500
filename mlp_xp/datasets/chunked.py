"""Read HDF5 files and Zarr folders: arrays named like the members of an .npz; large samples stay where they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import open_regular
from .limits import ANY_SIZE, Limits
from .maps import MAPPED, Span, stays_in_file
from .npz import choose, find
from .records import Part

__all__ = ["read_hdf5", "read_zarr"]

# Zarr runs the codecs that an array names, and one of them unpickles.
_CODECS = {
    "BZ2", "Blosc", "BloscCodec", "BytesCodec", "Crc32cCodec", "Delta", "GZip", "GzipCodec", "LZ4", "LZMA", "Shuffle",
    "TransposeCodec", "Zlib", "Zstd", "ZstdCodec",
}  # fmt: skip


def read_hdf5(path: Path, limits: Limits) -> list[Part]:
    """Read the datasets x_train, y_train, x_test, y_test, or the first two, or x, y, at the root of an HDF5 file.

    Capitals do not matter. Samples of more than 256 MiB that are uint8, float32 or float64 stay in the file.

    Returns and raises as :func:`mlp_xp.datasets.npz.read_npz`; ModuleNotFoundError if there is no h5py.
    """
    with open_regular(path, ANY_SIZE):  # no FIFO, and an error of the system's for what cannot be read
        pass
    try:
        import h5py
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{path}: HDF5 is read by h5py; run pip install h5py", name="h5py") from None
    try:
        file = h5py.File(path, "r")  # closed with the last of its datasets
        own = [name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]  # of no other file
        arrays = {name: file[name] for name in own if isinstance(file[name], h5py.Dataset)}
    except OSError as error:
        raise ValueError(f"{path}: damaged HDF5 ({error})") from error
    for name, array in arrays.items():
        if array.external or array.is_virtual:
            raise ValueError(f"{path}: the data of {name} are in other files; copy them to this one")
    return _parts(path, arrays, limits)


def read_zarr(path: Path, limits: Limits) -> list[Part]:
    """Read the arrays x_train, y_train, x_test, y_test, or the first two, or x, y, of the Zarr group in a folder.

    Capitals do not matter. Samples of more than 256 MiB that are uint8, float32 or float64 stay in the folder.

    Returns and raises as :func:`mlp_xp.datasets.npz.read_npz`; ModuleNotFoundError if there is no Zarr.
    """
    try:
        import zarr
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{path}: a .zarr is read by Zarr; run pip install zarr", name="zarr") from None
    folders = [
        part for part in sorted(path.iterdir()) if (part / "zarr.json").is_file() or (part / ".zarray").is_file()
    ]
    try:
        arrays = {folder.name: zarr.open_array(folder, mode="r") for folder in folders}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged Zarr ({error})") from error
    for name, array in arrays.items():
        codecs = {type(codec).__name__ for codec in (*array.filters, *array.compressors, *_serializer(array))}
        if unknown := sorted(codecs - _CODECS):
            raise ValueError(f"{path}: {name} is packed by {', '.join(unknown)}; save it by one of Zarr's own codecs")
    return _parts(path, arrays, limits)


def _serializer(array: Any) -> list[Any]:
    """Return what makes bytes of numbers in Zarr's format 3; format 2 has nothing of the kind."""
    return [array.serializer] if array.metadata.zarr_format == 3 else []


def _parts(path: Path, arrays: Mapping[str, Any], limits: Limits) -> list[Part]:
    try:
        members = find(arrays)
        pairs = choose(set(members))
        parts = []
        for pair in pairs:
            X, y = (_take(members[name], arrays[members[name]], limits, samples=name == pair[0]) for name in pair)
            parts.append(Part(X, y, f"{path} ({', '.join(pair)})"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return parts


def _take(name: str, array: Any, limits: Limits, samples: bool) -> Any:
    """Return an array, or samples that stay where they are."""
    shape, dtype = tuple(map(int, array.shape)), np.dtype(array.dtype)
    if dtype.kind not in "iuf" or not shape:
        raise ValueError(f"{name}: not an array of integers or floats, but of {dtype} and shape {shape}")
    unit = math.prod(array.chunks or (1,)) * dtype.itemsize
    if unit > MAPPED:
        raise ValueError(f"{name}: chunks of {unit} bytes, which are read as a whole; save it in chunks of 1,024 rows")
    if samples and stays_in_file(shape, dtype):
        limits.check_width(shape)
        return Span(array)
    limits.admit(shape, dtype, samples)
    return array[:].astype(dtype.newbyteorder("="), copy=False)
