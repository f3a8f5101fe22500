"""One file of named arrays and metadata: safetensors with a checksum, written atomically and read with suspicion.

Other programs read these files as plain safetensors. This module reads only what it wrote itself: no pickle, no zip,
no class names, and nothing is allocated, called or believed because a file says so.

The format is described in :mod:`mlp_xp.files.header`.

What the library does
---------------------
``safetensors`` reads: it compares offsets, shapes and sizes with each other and with the file, and makes the arrays.
What it accepts is refused here: repeated keys, unknown fields, names that are paths, shapes that NumPy cannot have.
Its ``pread`` backend is used (0.8): if somebody truncates a file that is mapped into memory, the process dies of
SIGBUS. Large maps crash on Windows, and some file systems cannot map at all (issues 528, 693 and 195 of safetensors).

The header is written here. The library (tried: 0.4.5 and 0.8.0) writes the metadata in an order that changes from call
to call, so the same content would give different bytes. Besides, ``serialize`` copies all arrays, and
``serialize_file`` opens a path itself, so the file could be neither locked nor flushed.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from .atomic import replace_file
from .header import DTYPES, MAX_BYTES, Array, CheckpointError, Header, lay_out, read_header, seal
from .opening import open_regular

__all__ = ["CheckpointError", "Contents", "load", "save", "serialized_size"]


class Contents(NamedTuple):
    """What the header of a file says, before anything of the size of its arrays is read."""

    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype[Any]]


def save(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Array],
    metadata: Mapping[str, Any],
    follow_links: bool = True,
) -> None:
    """Write `arrays` and `metadata` to `path`, all or nothing.

    The file is complete, flushed to the disk and read back before it takes the place of an older one; see
    `mlp_xp.files.atomic.replace_file`. The same content gives the same bytes.

    Parameters
    ----------
    path
        The file to write; its folder must exist.
    arrays
        NumPy arrays of integers or finite floats. Names are made of letters, digits, underscores and single dots.
    metadata
        What JSON can hold: settings, not records (the header is limited to 256 KiB: a value per epoch belongs
        in an array). Tuples come back as lists.
    follow_links
        Whether a symbolic link at `path` stays, and the file that it points to is replaced, or the link is.

    Raises
    ------
    CheckpointError
        If an array is not finite, or something cannot be stored. The file at `path` is as it was.
    OSError
        If the file cannot be written; the message has the path and the bytes needed.
    """
    try:
        replace_file(path, _serialize(arrays, metadata), _verify, follow_links)
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)!r} was not saved: {error}") from None


def serialized_size(arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> int:
    """Return the bytes that `save` would write, so that what it would refuse is found out before a long run.

    Raises
    ------
    CheckpointError
        If `save` would raise it.
    """
    header, data = lay_out(arrays, metadata)
    return len(header) + sum(map(len, data))


def load(
    path: str | os.PathLike[str], expect: Callable[[Contents], object] | None = None
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read the arrays and the metadata that `save` wrote to `path`.

    The arrays are new, aligned, writable and in the machine's byte order. They are the only large allocation, and
    are made once the header and the digest have been checked.

    Parameters
    ----------
    path
        The file.
    expect
        Called with what the header says, before the digest is computed or an array is made. What it raises ends the
        loading: a header costs nothing, and a sparse file of 4 kB on the disk may hold an array of gigabytes.

    Returns
    -------
    arrays : dict
        By name, in the order of the file.
    metadata : dict
        As it was saved.

    Raises
    ------
    CheckpointError
        If the file is not exactly what `save` wrote; the message says where.
    OSError
        If there is no such file, it is not a plain file, or it cannot be read.
    """
    try:
        for _ in range(100):  # once, unless another process replaces the file meanwhile
            with open_regular(path, MAX_BYTES) as file:
                header = read_header(file)
                arrays = _read_arrays(file, os.fspath(path), header, expect)
            if arrays is not None:
                return arrays, header.metadata
        raise CheckpointError("it was replaced again and again while it was read")
    except CheckpointError as error:
        problem = f"{os.fspath(path)!r} was not loaded: {error}; give an undamaged file that mlp_xp saved"
        raise CheckpointError(problem) from None


def _serialize(arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> list[memoryview]:
    """Return the content of a file: its beginning, then each array as bytes (the array's own memory where possible)."""
    start, data = lay_out(arrays, metadata)
    return [memoryview(seal(start, data)), *data]


def _read_arrays(
    file: io.BufferedReader, path: str, header: Header, expect: Callable[[Contents], object] | None
) -> dict[str, Array] | None:
    """Return the arrays of an open file, or None if somebody replaced or changed it meanwhile.

    The library opens the path once more, so that it could be another file, and reads the data after their digest.
    """
    before = os.fstat(file.fileno())
    try:
        with safe_open(path, "numpy", backend="pread") as tensors:
            if not os.path.samestat(before, os.stat(path)):
                return None
            if expect is not None:
                shapes = {name: tuple(entry["shape"]) for name, entry in header.entries.items()}
                dtypes = {name: np.dtype(DTYPES[entry["dtype"]]) for name, entry in header.entries.items()}
                expect(Contents(header.metadata, shapes, dtypes))
            _check_digest(file, header)
            arrays = {name: tensors.get_tensor(name) for name in header.entries}
    except SafetensorError as error:
        raise CheckpointError(f"its header and its data do not fit together ({error})") from None
    after = os.fstat(file.fileno())
    return arrays if (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns) else None


def _verify(file: io.BufferedReader) -> None:
    """Check that a file that was written is what should have been written."""
    _check_digest(file, read_header(file))


def _check_digest(file: io.BufferedReader, header: Header) -> None:
    while block := file.read(2**20):
        header.sha256.update(block)
    if header.sha256.hexdigest() != header.digest:
        raise CheckpointError("its content does not match its sha256: it is damaged, or changed while it was written")
