"""Unpack gzip at a cost that the bytes which come out bound.

Python's own reader goes byte by byte through file names and padding, and starts over for each empty member, so that a
small file can keep it busy for minutes. Here zlib reads members whole, and much that unpacks to little is refused.
"""

from __future__ import annotations

import zlib
from typing import BinaryIO

from .limits import CHUNK

__all__ = ["GzipStream"]

BLOCK = 1 << 14  # packed bytes that are read at a time
IDLE = 1 << 16  # packed bytes, beyond those of the data, that may unpack to nothing
GZIP = 31  # zlib's code for a header and checksum of gzip


class GzipStream:
    """The bytes that a gzip file unpacks to, its members one after another.

    Raises
    ------
    ValueError
        On reading, if much is packed that unpacks to little: empty members, padding, long names.
    zlib.error, EOFError
        On reading, if the data are damaged or cut short.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._member = zlib.decompressobj(GZIP)
        self._rest = b""
        self._taken = self._given = 0

    def read(self, size: int = CHUNK, /) -> bytes:
        """Return `size` bytes, or fewer at the end."""
        parts = []
        while size and (part := self._next(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _next(self, size: int) -> bytes:
        """Return 1 to `size` bytes, or none at the end."""
        while True:
            packed = self._rest or self._take()
            at_end = not packed
            if self._member.eof:
                if at_end:
                    return b""
                packed = packed.lstrip(b"\0")  # gzip allows padding behind a member
                if packed:
                    self._member = zlib.decompressobj(GZIP)
            data = self._member.decompress(packed, size) if packed or at_end else b""
            self._rest = self._member.unused_data or self._member.unconsumed_tail if packed else b""
            self._given += len(data)
            if data:
                return data
            if at_end and not self._member.eof:
                raise EOFError("it ends within its packed data")

    def _take(self) -> bytes:
        packed = self._file.read(BLOCK)
        self._taken += len(packed)
        # deflate never makes data longer by a tenth
        if self._taken > IDLE + self._given * 11 // 10:
            raise ValueError(f"{self._taken} packed bytes unpack to {self._given}; pack the file again, as one member")
        return packed
