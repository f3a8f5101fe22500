"""Read IDX files, the format of MNIST, from sources that need not be trusted.

An IDX file is a header and the numbers in C order, all big-endian::

    0 0 | type code | number of dimensions | one 4-byte size for each dimension | the numbers
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..files import open_regular
from .limits import ANY_SIZE, CHUNK, Limits
from .maps import map_rest, stays_in_file
from .packed import GzipStream
from .records import Part

MAX_DIMENSIONS = 32
KINDS = ("images-idx3-ubyte", "labels-idx1-ubyte")
DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class Stream(Protocol):
    """Bytes that come one after another."""

    def read(self, size: int, /) -> bytes:
        """Return `size` bytes, or fewer at the end."""


def read_idx(path: str | os.PathLike[str], *, sha256: str | None = None) -> NDArray[Any]:
    """Read an IDX file, plain or packed with gzip, as an array of the shape its header gives.

    The header is checked before anything is allocated, and memory grows only with the bytes that are there. The
    content, not the name, tells whether the file is packed. Members of gzip that follow one another are read as one
    stream, as `gzip` itself does.

    Parameters
    ----------
    path
        The file.
    sha256
        The SHA-256 that the unpacked file must have, in hexadecimal.

    Returns
    -------
    Array in native byte order: uint8, int8, int16, int32, float32 or float64.

    Raises
    ------
    ValueError
        If the file is not IDX, its header names an unknown type, no dimension, more than 32, a size of 0, more than
        4 GiB or more than half of the available memory, it holds fewer or more bytes than the header says, the gzip
        data are damaged or packed over 200 times, or the hash differs.

    Examples
    --------
    Two dimensions (type 8, ``uint8``) of sizes 2 and 3:

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, "small-idx2-ubyte")
    ...     _ = path.write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes(range(6)))
    ...     read_idx(path)
    array([[0, 1, 2],
           [3, 4, 5]], dtype=uint8)
    """
    return read_array(path, Limits(), samples=False, sha256=sha256)


def read_array(path: str | os.PathLike[str], limits: Limits, samples: bool, sha256: str | None = None) -> NDArray[Any]:
    """Read an IDX file as :func:`read_idx` does, within the limits of a source that has other files, too.

    Samples of more than 256 MiB that are not packed stay in the file: the array is a map.
    """
    try:
        with open_regular(path, ANY_SIZE) as file:
            packed = os.fstat(file.fileno()).st_size if file.peek(2)[:2] == b"\x1f\x8b" else None
            stream: Stream = file if packed is None else GzipStream(file)
            header, dtype, shape = _read_header(stream)
            if packed is None and samples and sha256 is None and stays_in_file(shape, dtype):
                limits.check_width(shape)
                return map_rest(file, shape, dtype)
            data = read_exactly(stream, limits.admit(shape, dtype, samples, packed))
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip data ({error}); fetch the file again") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if sha256 is not None:
        digest = hashlib.sha256(header)
        digest.update(data)
        if digest.hexdigest() != sha256:
            raise ValueError(f"{path}: the SHA-256 of the unpacked file is {digest.hexdigest()}, expected {sha256}")
    return as_array(data, dtype).reshape(shape)


def read_exactly(stream: Stream, size: int) -> bytearray:
    """Read the last `size` bytes of `stream`; fewer or more are a `ValueError`, and more than one more is not read."""
    data = bytearray()
    while chunk := stream.read(min(CHUNK, size + 1 - len(data))):
        data += chunk
    if len(data) < size:
        raise ValueError(f"the header announces {size} bytes of data, but the file ends after {len(data)}")
    if len(data) > size:
        raise ValueError(f"the header announces {size} bytes of data, but more follow")
    return data


def as_array(data: bytearray, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the numbers in `data` (n,) in native byte order, swapped in place."""
    array = np.frombuffer(data, dtype)
    return array if dtype.isnative else array.byteswap(inplace=True).view(dtype.newbyteorder("="))


def read_idx_pair(
    folder: str | os.PathLike[str], part: str, limits: Limits, sha256: Mapping[str, str] | None = None
) -> Part:
    """Read the images and labels of `part`, "train" or "t10k", from the files in `folder` that are named as MNIST's.

    `sha256` gives the hash that each file must have, by its name without ``.gz``.
    """
    arrays = []
    for kind in KINDS:
        path = find_idx(folder, part, kind)
        if path is None:
            raise FileNotFoundError(f"{folder}: no file {part}-{kind} or {part}-{kind}.gz in this folder")
        pinned = sha256[f"{part}-{kind}"] if sha256 else None
        arrays.append(read_array(path, limits, samples=kind == KINDS[0], sha256=pinned))
    return Part(arrays[0], arrays[1], f"{folder} ({part})")


def find_idx(folder: str | os.PathLike[str], part: str, kind: str) -> Path | None:
    """Find a file that is named as MNIST's are; some copies have a dot in place of the second hyphen."""
    names = (f"{part}-{kind}", f"{part}-{kind}".replace("-idx", ".idx"))
    paths = (Path(folder, name + end) for name in names for end in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def _read_header(stream: Stream) -> tuple[bytes, np.dtype[Any], tuple[int, ...]]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise ValueError(f"not an IDX file: it starts with {magic!r}, expected two zero bytes and two more")
    code, ndim = magic[2:]
    if code not in DTYPES:
        known = ", ".join(f"0x{known:02x}" for known in DTYPES)
        raise ValueError(f"unknown IDX type code 0x{code:02x}; known are {known}")
    if not 1 <= ndim <= MAX_DIMENSIONS:
        raise ValueError(f"{ndim} dimensions; an IDX file of 1 to {MAX_DIMENSIONS} dimensions can be read")
    sizes = stream.read(4 * ndim)
    if len(sizes) < 4 * ndim:
        raise ValueError(f"the file ends within its header, which has {ndim} dimensions")
    shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, 4 * ndim, 4))
    if 0 in shape:
        raise ValueError(f"the header announces the shape {shape}; every size must be at least 1")
    return magic + sizes, np.dtype(DTYPES[code]), shape
