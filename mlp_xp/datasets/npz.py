"""Read an .npz of plain numeric arrays without trusting a word of it.

`numpy.load` allocates what the header of an array asks for, and parses that header as Python text. Here the header
must be one that NumPy writes, agree with the size in the zip's directory, and memory grows only with the bytes that
are there.
"""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .idx import read_exactly
from .records import Dataset, make_dataset

TRAIN, TEST, UNSPLIT = ("x_train", "y_train"), ("x_test", "y_test"), ("x", "y")
LAYOUTS = ((TRAIN, TEST), (TRAIN,), (UNSPLIT,))

MAGIC = b"\x93NUMPY\x01\x00"
HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>\|[ui]1|[<>][ui][248]|[<>]f[248])', "
    rb"'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>\d{1,19}(, \d{1,19})*),?\), \}\s*"
)


def read_npz(path: Path) -> tuple[Dataset, Dataset | None]:
    """Read the members x_train, y_train, x_test, y_test, or x_train, y_train, or x, y (capitals do not matter).

    Returns
    -------
    The training data, or all data, and the test data where there are any.

    Raises
    ------
    ValueError
        If the file is damaged, members are missing, or one is not a plain numeric array.
    """
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = {name.lower().removesuffix(".npy"): name for name in archive.namelist()}
                pairs = _choose(set(members))
                arrays = [(_read_array(archive, members[X]), _read_array(archive, members[y])) for X, y in pairs]
        # OSError: an offset before the file; RuntimeError: encryption.
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise ValueError(f"{path}: damaged .npz ({str(error) or 'it ends too early'})") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    data = [make_dataset(X, y, f"{path} ({pair[0]}, {pair[1]})") for (X, y), pair in zip(arrays, pairs, strict=True)]
    return data[0], data[1] if len(data) == 2 else None


def _choose(members: set[str]) -> tuple[tuple[str, str], ...]:
    present = members & {*TRAIN, *TEST, *UNSPLIT}
    for pairs in LAYOUTS:
        if present == {name for pair in pairs for name in pair}:
            return pairs
    raise ValueError(
        f"of the members that name data there are {sorted(present)}; "
        "expected x_train, y_train, x_test and y_test, or x_train and y_train, or x and y"
    )


def _read_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is packed by method {info.compress_type}; NumPy stores or deflates")
    with archive.open(info) as stream:
        magic, length = stream.read(len(MAGIC)), stream.read(2)
        header = stream.read(int.from_bytes(length, "little"))
        match = HEADER.fullmatch(header)
        if magic != MAGIC or match is None:
            raise ValueError(
                f"{name} is not a plain array of integers or floats: it starts with {(magic + length + header)[:80]!r}"
            )
        dtype = np.dtype(match["dtype"].decode())
        shape = tuple(int(size) for size in match["shape"].split(b", "))
        size = math.prod(shape) * dtype.itemsize
        held = info.file_size - len(MAGIC) - 2 - len(header)
        if size != held:
            raise ValueError(
                f"{name} announces {size} bytes of data (shape {shape}, {dtype}), but the zip holds {held}"
            )
        data = read_exactly(stream, size)
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if match["fortran"] == b"True" else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)
