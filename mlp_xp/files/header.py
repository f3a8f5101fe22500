"""The header of a file of arrays: laid out, and read without believing it.

The format, version 1
---------------------
::

    8 bytes       length N of the header, unsigned, little-endian
    N bytes       header: JSON in ASCII, padded with spaces to a multiple of 8
    the rest      the arrays: little-endian, C order, without gaps, in the order of the header

    header = {"__metadata__": {"format": "1", "sha256": DIGEST, "mlp_xp": METADATA},
              NAME: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}

The header has no space before its end, and ``format``, ``sha256``, ``mlp_xp`` stand in this order, so that the file
begins alike in every version. METADATA is the text of a JSON object. DIGEST is the SHA-256 of the whole file, in 64
hexadecimal digits, computed with 64 zeros in the place of these digits. It finds damage, not malice: everything else is
checked whether or not it matches.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from reprlib import repr as brief
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from .strict_json import parse_object

__all__ = ["DTYPES", "MAX_BYTES", "Array", "CheckpointError", "Header", "lay_out", "read_header", "seal"]

Array: TypeAlias = npt.NDArray[Any]

FORMAT = 1
MAX_BYTES = 2**48  # of a file
MAX_HEADER = 2**18  # bytes; what hostile JSON of this size takes when parsed stays below 16 MB
MAX_TENSORS = 2048
MAX_DIMENSIONS = 8
MAX_DEPTH = 4  # of lists and objects in the metadata, the outermost included

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1",
}  # fmt: skip
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_NAME = re.compile(r"(?=.{1,128}\Z)[A-Za-z0-9]\w*(\.\w+)*", re.ASCII)
_VERSION = re.compile(rb'\{"__metadata__":\{"format":"([0-9]{1,9})"')
_DIGEST = re.compile(_VERSION.pattern + rb',"sha256":"([0-9a-f]{64})","mlp_xp":"')
_NO_DIGEST = "0" * 64
_FOREIGN = {b"\x80": "a pickle", b"PK\3\4": "a zip (.npz, .pt)", b"\x93NUMPY": "a .npy file", b"\x89HDF": "HDF5"}


class CheckpointError(ValueError):
    """A file that is damaged, of another format, or inconsistent, or content that must not become a file."""


class Header(NamedTuple):
    """The header of a file, whose tensors have not been compared with the data yet."""

    metadata: dict[str, Any]
    entries: dict[str, dict[str, Any]]
    digest: str
    sha256: hashlib._Hash  # of the file up to here


def lay_out(arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> tuple[bytes, list[memoryview]]:
    """Return the content of a file, whose digest is still zeros: its beginning, and each array as bytes."""
    try:
        text = json.dumps(dict(metadata), allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the metadata is not JSON ({error}); use numbers, strings, lists, dicts") from error
    _parse(text, "the metadata")

    entries, data, end = {}, [], 0
    for name, array in sorted(_storable(arrays).items(), key=lambda item: (-item[1].itemsize, item[0])):
        begin, end = end, end + array.nbytes
        entries[name] = {"dtype": _CODES[array.dtype.str], "shape": list(array.shape), "data_offsets": [begin, end]}
        data.append(_as_bytes(array))
    _check_entries(entries)

    own = {"format": str(FORMAT), "sha256": _NO_DIGEST, "mlp_xp": text}
    header = json.dumps({"__metadata__": own, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER:
        raise CheckpointError(f"the header takes {len(header)} bytes of {MAX_HEADER}; move long records into arrays")
    return len(header).to_bytes(8, "little") + header, data


def _storable(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the arrays in little-endian order, or say which one cannot be."""
    stored = {}
    for name, array in arrays.items():
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise CheckpointError(f"{brief(name)} names a {type(array).__name__}; use strings that name NumPy arrays")
        if array.dtype.newbyteorder("<").str not in _CODES:
            raise CheckpointError(f"array {name!r} has dtype {array.dtype}; use floats of 16 to 64 bits or integers")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CheckpointError(f"array {name!r} has values that are NaN or infinite; save an earlier, finite state")
        stored[name] = np.asarray(array, dtype=array.dtype.newbyteorder("<"))
    return stored


def seal(start: bytes, data: Sequence[memoryview]) -> bytes:
    """Return the beginning of a file with its digest in the place of the zeros."""
    digest = hashlib.sha256(start)
    for chunk in data:
        digest.update(chunk)
    return start.replace(_NO_DIGEST.encode(), digest.hexdigest().encode(), 1)


def read_header(file: io.BufferedReader) -> Header:
    """Read the header of a file that is open at its start, up to where the data begin."""
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    if size < 8:
        raise CheckpointError(f"it has {size} bytes, and 8 are the least")
    length = int.from_bytes(prefix, "little")
    if length > min(MAX_HEADER, size - 8):
        for magic, kind in _FOREIGN.items():
            if prefix.startswith(magic):
                raise CheckpointError(f"it looks like {kind}, which mlp_xp never opens")
        raise CheckpointError(f"its header length is {length}, and {min(MAX_HEADER, size - 8)} is the most possible")
    raw = file.read(length)

    version = _VERSION.match(raw)
    if version is None:
        raise CheckpointError("its header does not begin with the 'format' of mlp_xp: another program wrote it")
    if int(version[1]) != FORMAT:
        raise CheckpointError(f"it has format version {int(version[1])}, and this mlp_xp reads {FORMAT}: update it")
    place = _DIGEST.match(raw)
    if place is None:
        raise CheckpointError("its header does not go on with 'sha256', 64 hexadecimal digits, and 'mlp_xp', a text")
    sha256 = hashlib.sha256(prefix + raw[: place.start(2)] + _NO_DIGEST.encode() + raw[place.end(2) :])

    try:
        header = _parse(raw.decode(), "its header")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"its header is not UTF-8: {error.reason} at byte {error.start}") from None
    own = header.pop("__metadata__")
    if own.keys() != {"format", "sha256", "mlp_xp"}:
        raise CheckpointError(f"its '__metadata__' has {brief(list(own))}, and must have 'format', 'sha256', 'mlp_xp'")
    metadata = _parse(own["mlp_xp"], "its metadata")
    _check_entries(header)
    return Header(metadata, header, place[2].decode(), sha256)


def _parse(text: str, what: str) -> dict[str, Any]:
    try:
        return parse_object(text, MAX_DEPTH)
    except ValueError as error:
        raise CheckpointError(f"{what} {error}") from None


def _check_entries(entries: dict[str, Any]) -> None:
    """Refuse what the library would accept of the tensors in a header."""
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(f"there are {len(entries)} tensors, and {MAX_TENSORS} are the most allowed")
    for name, entry in entries.items():
        if not _NAME.fullmatch(name):
            raise CheckpointError(f"the tensor name {brief(name)} is not made of letters, digits, '_' and single dots")
        if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise CheckpointError(f"tensor {name!r} is {brief(entry)}, and must have dtype, shape, data_offsets")
        code, shape = entry["dtype"], entry["shape"]
        if type(code) is not str or code not in DTYPES:
            raise CheckpointError(f"tensor {name!r} has dtype {brief(code)}; allowed are {', '.join(DTYPES)}")
        if not _are_naturals(shape) or len(shape) > MAX_DIMENSIONS or math.prod(n or 1 for n in shape) >= MAX_BYTES:
            raise CheckpointError(f"tensor {name!r} has shape {brief(shape)}, which no array in this file can have")


def _are_naturals(value: Any) -> bool:
    return type(value) is list and all(type(n) is int and n >= 0 for n in value)


def _as_bytes(array: Array) -> memoryview:
    """Return the array in C order as bytes: its own memory, if that is in C order."""
    return array.reshape(-1).view(np.uint8).data
