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
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from ..files import open_regular
from .idx import Stream, as_array, read_exactly
from .limits import MAX_FILE, Limits
from .records import Part

TRAIN, TEST, UNSPLIT = ("x_train", "y_train"), ("x_test", "y_test"), ("x", "y")
NAMES = {*TRAIN, *TEST, *UNSPLIT}
LAYOUTS = ((TRAIN, TEST), (TRAIN,), (UNSPLIT,))
MAX_DIRECTORY = 1 << 18  # bytes; room for some 4,000 members

MAGIC = b"\x93NUMPY\x01\x00"
HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>\|[ui]1|[<>][ui][248]|[<>]f[248])', "
    rb"'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>\d{1,19}(, \d{1,19})*),?\), \}\s*"
)

OTHER = re.compile(rb"\{'descr': '(?P<dtype>[|<>](?P<kind>[USbOc])\d{0,9})', ")
KINDS = {b"U": "text", b"S": "text", b"b": "truth values", b"O": "objects", b"c": "complex numbers"}


def read_npz(path: Path, limits: Limits) -> list[Part]:
    """Read the members x_train, y_train, x_test, y_test, or x_train, y_train, or x, y (capitals do not matter).

    Returns
    -------
    The training data, or all data, and then the test data if there are any.

    Raises
    ------
    ValueError
        If the file is damaged, members are missing or there twice, one is not a plain numeric array, or the limits are
        exceeded.
    """
    with open_regular(path, MAX_FILE) as file:
        try:
            with _open_zip(file) as archive:
                members = find(archive.namelist())
                pairs = choose(set(members))
                arrays = [
                    [_read_array(archive, members[name], limits, samples=name == pair[0]) for name in pair]
                    for pair in pairs
                ]
        # OSError: an offset before the file; RuntimeError: encryption.
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise ValueError(f"{path}: damaged .npz ({str(error) or 'it ends too early'})") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return [Part(X, y, f"{path} ({', '.join(pair)})") for (X, y), pair in zip(arrays, pairs, strict=True)]


class _Brief:
    """A file that refuses to read much at once, for zipfile, which reads the whole directory of an archive."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.most = MAX_DIRECTORY
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = MAX_DIRECTORY) -> bytes:
        if size > self.most:
            raise ValueError(f"a directory of {size} bytes; {self.most} are the most allowed, so save fewer members")
        return self.file.read(size)


def _open_zip(file: BinaryIO) -> zipfile.ZipFile:
    brief = _Brief(file)
    archive = zipfile.ZipFile(brief)
    brief.most = MAX_FILE
    return archive


def find(members: Iterable[str]) -> dict[str, str]:
    """Return the names of members, or of files, by what they name: "x_train" for "X_train.npy"."""
    found: dict[str, str] = {}
    for member in members:
        name = member.lower().removesuffix(".npy")
        if name in found and name in NAMES:
            raise ValueError(f"{found[name]!r} and {member!r} both name {name}; keep one of them")
        found[name] = member
    return found


def choose(members: set[str]) -> tuple[tuple[str, str], ...]:
    """Return the pairs of samples and labels that there are, the training pair first."""
    present = members & NAMES
    for pairs in LAYOUTS:
        if present == {name for pair in pairs for name in pair}:
            return pairs
    raise ValueError(
        f"of the members that name data there are {sorted(present)}; "
        "expected x_train, y_train, x_test and y_test, or x_train and y_train, or x and y"
    )


def _read_array(archive: zipfile.ZipFile, name: str, limits: Limits, samples: bool) -> NDArray[Any]:
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is packed by method {info.compress_type}; NumPy stores or deflates")
    with archive.open(info) as stream:
        try:
            shape, dtype, order, length = read_header(stream)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        held = info.file_size - length
        size = math.prod(shape) * dtype.itemsize
        if size != held:
            raise ValueError(
                f"{name} announces {size} bytes of data (shape {shape}, {dtype}), but the zip holds {held}"
            )
        data = read_exactly(stream, limits.admit(shape, dtype, samples, info.compress_size))
    return as_array(data, dtype).reshape(shape, order=order)


def read_header(stream: Stream) -> tuple[tuple[int, ...], np.dtype[Any], Literal["C", "F"], int]:
    """Read the header of an .npy; return the shape, the dtype and the order of its array, and the header's length."""
    magic, length = stream.read(len(MAGIC)), stream.read(2)
    header = stream.read(int.from_bytes(length, "little"))
    match = HEADER.fullmatch(header)
    if magic == MAGIC and (other := OTHER.match(header)):
        kind, dtype = KINDS[other["kind"]], other["dtype"].decode()
        raise ValueError(f"not a plain array of integers or floats, but of {kind} ({dtype}); save numbers")
    if magic != MAGIC or match is None:
        raise ValueError(f"not a plain array of integers or floats: it starts with {(magic + length + header)[:80]!r}")
    shape = tuple(int(size) for size in match["shape"].split(b", "))
    order: Literal["C", "F"] = "F" if match["fortran"] == b"True" else "C"
    return shape, np.dtype(match["dtype"].decode()), order, len(MAGIC) + 2 + len(header)
