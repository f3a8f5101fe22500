"""One file of named arrays and metadata: safetensors with a checksum, written atomically and read with suspicion.

Other programs read these files as plain safetensors. This module reads only what it wrote itself: no pickle, no zip,
no class names, and nothing is allocated, called or believed because a file says so.

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
import stat
from collections.abc import Mapping
from reprlib import repr as brief
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from .atomic import replace_file

Array: TypeAlias = npt.NDArray[Any]

FORMAT = 1
MAX_HEADER = 2**18  # bytes; what hostile JSON of this size takes when parsed stays below 16 MB
MAX_TENSORS = 2048
MAX_DIMENSIONS = 8
MAX_DEPTH = 4  # of lists and objects in the metadata, the outermost included

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1",
}  # fmt: skip
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_NAME = re.compile(r"(?=.{1,128}\Z)[A-Za-z0-9]\w*(\.\w+)*", re.ASCII)
_VERSION = re.compile(rb'\{"__metadata__":\{"format":"([0-9]{1,9})"')
_DIGEST = re.compile(_VERSION.pattern + rb',"sha256":"([0-9a-f]{64})","mlp_xp":"')
_NO_DIGEST = "0" * 64
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"?|[][{}]')
_FOREIGN = {b"\x80": "a pickle", b"PK\3\4": "a zip (.npz, .pt)", b"\x93NUMPY": "a .npy file", b"\x89HDF": "HDF5"}


class CheckpointError(ValueError):
    """A file that is damaged, foreign or untrue, or content that must not become a file."""


def save(path: str | os.PathLike[str], arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> None:
    """Write `arrays` and `metadata` to `path`, all or nothing.

    The file is complete, flushed to the disk and read back before it takes the place of an older one; see
    `mlp_xp.files.atomic.replace_file`. The same content gives the same bytes.

    Parameters
    ----------
    path
        The file to write; its folder must exist. A symbolic link is followed.
    arrays
        NumPy arrays of integers or finite floats. Names are made of letters, digits, underscores and single dots.
    metadata
        What JSON can hold: settings, not records (the header is limited to 256 KiB: a value per epoch belongs
        in an array). Tuples come back as lists.

    Raises
    ------
    CheckpointError
        If an array is not finite, or something cannot be stored. The file at `path` is as it was.
    OSError
        If the file cannot be written; the message has the path and the bytes needed.
    """
    try:
        replace_file(path, _serialise(arrays, metadata), _verify)
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)!r} was not saved: {error}") from None


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read the arrays and the metadata that `save` wrote to `path`.

    The arrays are new, aligned, writable and in the machine's byte order. They are the only large allocation, and
    are made after the header has been checked against the size of the file.

    Raises
    ------
    CheckpointError
        If the file is not exactly what `save` wrote; the message says where.
    OSError
        If there is no such file, or it cannot be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CheckpointError("it is a folder or a device")
        with open(path, "rb") as file:
            return _read(file)
    except CheckpointError as error:
        problem = f"{os.fspath(path)!r} was not loaded: {error}; give an undamaged file that mlp_xp saved"
        raise CheckpointError(problem) from None


def _serialise(arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> list[memoryview]:
    """Return the content of a file: its beginning, then each array as bytes (the array's own memory where possible)."""
    try:
        text = json.dumps(dict(metadata), allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the metadata is not JSON ({error}); use numbers, strings, lists, dicts") from error
    _parse_json(text, "the metadata")

    entries, data, end = {}, [], 0
    for name, array in sorted(_storable(arrays).items(), key=lambda item: (-item[1].itemsize, item[0])):
        begin, end = end, end + array.nbytes
        entries[name] = {"dtype": _CODES[array.dtype.str], "shape": list(array.shape), "data_offsets": [begin, end]}
        data.append(_as_bytes(array))
    _parse_entries(entries, end)

    own = {"format": str(FORMAT), "sha256": _NO_DIGEST, "mlp_xp": text}
    header = json.dumps({"__metadata__": own, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER:
        raise CheckpointError(f"the header takes {len(header)} bytes of {MAX_HEADER}; move long records into arrays")
    start = len(header).to_bytes(8, "little") + header
    digest = hashlib.sha256(start)
    for chunk in data:
        digest.update(chunk)
    start = start.replace(_NO_DIGEST.encode(), digest.hexdigest().encode(), 1)
    return [memoryview(start), *data]


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


class _Header(NamedTuple):
    """What the header of a file says, once it has been found consistent."""

    metadata: dict[str, Any]
    tensors: list[tuple[str, str, tuple[int, ...]]]  # name, dtype, shape
    digest: str
    sha256: hashlib._Hash  # of the file up to here


def _read(file: io.BufferedReader) -> tuple[dict[str, Array], dict[str, Any]]:
    header = _read_header(file)
    arrays = {}
    for name, dtype, shape in header.tensors:
        array = np.empty(shape, dtype)
        content = _as_bytes(array)
        file.readinto(content)
        header.sha256.update(content)
        arrays[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
    _check_digest(header)
    return arrays, header.metadata


def _verify(file: io.BufferedReader) -> None:
    """Check everything that `_read` does, without the memory for the arrays."""
    header = _read_header(file)
    while block := file.read(2**20):
        header.sha256.update(block)
    _check_digest(header)


def _check_digest(header: _Header) -> None:
    if header.sha256.hexdigest() != header.digest:
        raise CheckpointError("its content does not match its sha256: it is damaged, or changed while it was written")


def _read_header(file: io.BufferedReader) -> _Header:
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
        header = _parse_json(raw.decode(), "its header")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"its header is not UTF-8: {error.reason} at byte {error.start}") from None
    own = header.pop("__metadata__")
    if own.keys() != {"format", "sha256", "mlp_xp"}:
        raise CheckpointError(f"its '__metadata__' has {brief(list(own))}, and must have 'format', 'sha256', 'mlp_xp'")
    metadata = _parse_json(own["mlp_xp"], "its metadata")
    return _Header(metadata, _parse_entries(header, size - 8 - length), place[2].decode(), sha256)


def _parse_json(text: str, what: str) -> dict[str, Any]:
    """Parse a JSON object, and refuse what Python would forgive: repeated keys, NaN, infinities, deep nesting."""
    depth = 0  # counted first: the parser recurses, and a file must not choose how deep
    for token in _STRING_OR_BRACKET.finditer(text):
        depth += (token[0] in "[{") - (token[0] in "]}")
        if depth > MAX_DEPTH:
            raise CheckpointError(f"{what} is nested deeper than {MAX_DEPTH} levels")
    try:
        value = json.loads(text, object_pairs_hook=_distinct, parse_float=_finite, parse_constant=_finite)
    except ValueError as error:
        raise CheckpointError(f"{what} is not strict JSON: {error}") from None
    if type(value) is not dict:
        raise CheckpointError(f"{what} is {brief(value)}, and must be a JSON object")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {brief(key)} is there twice")
        result[key] = value
    return result


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{brief(text)} is not a finite number")
    return number


def _parse_entries(entries: dict[str, Any], data_bytes: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return (name, dtype, shape) of each tensor in the order of the data, which they must fill exactly."""
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(f"there are {len(entries)} tensors, and {MAX_TENSORS} are the most allowed")
    tensors, end = [], 0
    for name, entry in entries.items():
        if not _NAME.fullmatch(name):
            raise CheckpointError(f"the tensor name {brief(name)} is not made of letters, digits, '_' and single dots")
        if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise CheckpointError(f"tensor {name!r} is {brief(entry)}, and must have dtype, shape, data_offsets")
        code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if type(code) is not str or code not in _DTYPES:
            raise CheckpointError(f"tensor {name!r} has dtype {brief(code)}; allowed are {', '.join(_DTYPES)}")
        itemsize = np.dtype(_DTYPES[code]).itemsize
        if not _are_naturals(shape) or len(shape) > MAX_DIMENSIONS or math.prod(n or 1 for n in shape) >= 2**48:
            raise CheckpointError(f"tensor {name!r} has shape {brief(shape)}, which no array in this file can have")
        begin, end = end, end + math.prod(shape) * itemsize
        if not _are_naturals(offsets) or offsets != [begin, end]:
            raise CheckpointError(f"tensor {name!r} has data_offsets {brief(offsets)}, and must have {[begin, end]}")
        tensors.append((name, _DTYPES[code], tuple(shape)))
    if end != data_bytes:
        raise CheckpointError(f"its tensors take {end} bytes, and {data_bytes} follow the header")
    return tensors


def _are_naturals(value: Any) -> bool:
    return type(value) is list and all(type(n) is int and n >= 0 for n in value)


def _as_bytes(array: Array) -> memoryview:
    """Return the array in C order as bytes: its own memory, if that is in C order."""
    return array.reshape(-1).view(np.uint8).data
