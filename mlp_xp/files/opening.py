"""Opening files that somebody else named: what is not a plain file is refused without waiting for it."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

__all__ = ["BINARY", "GUARDED", "open_regular", "resolve"]

BINARY = getattr(os, "O_BINARY", 0)  # Windows would turn every newline byte into two
# For a file that others may have replaced by a link or a FIFO. Windows has neither flag, and needs neither.
GUARDED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def resolve(path: str | os.PathLike[str]) -> Path:
    """Return the path with ``~`` expanded and links resolved, which stays right after a change of directory.

    Examples
    --------
    >>> resolve("~/run") == Path.home().resolve() / "run"
    True
    """
    return Path(os.path.realpath(os.path.expanduser(path)))


def open_regular(path: str | os.PathLike[str], max_bytes: int) -> io.BufferedReader:
    """Open a plain file for reading bytes; refuse everything that could block, never end, or be too large.

    A link is followed. A device is not even opened, because opening some of them has effects.

    Parameters
    ----------
    path
        The file.
    max_bytes
        The most bytes the file may have. A file that grows past them while it is read raises then.

    Returns
    -------
    io.BufferedReader
        The file, open at its start; a context manager.

    Raises
    ------
    OSError
        If there is no such file, it cannot be read, it is a folder, a FIFO, a socket or a device, or it is larger than
        `max_bytes`. The message names the path.
    """
    name = os.fspath(path)
    _check(os.stat(name), name, max_bytes)
    descriptor = os.open(name, os.O_RDONLY | BINARY | getattr(os, "O_NONBLOCK", 0))
    try:
        _check(os.fstat(descriptor), name, max_bytes)  # again: it may have been replaced in between
        return io.BufferedReader(_Bounded(descriptor, name, max_bytes))
    except BaseException:
        os.close(descriptor)
        raise


def _check(status: os.stat_result, path: str, max_bytes: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a folder, where a file is needed; name a file in it", path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "a FIFO or a device, where a file is needed; copy its content to a file", path)
    if status.st_size > max_bytes:
        problem = f"the file has {status.st_size} bytes, and {max_bytes} are the most allowed; give a smaller one"
        raise OSError(errno.EFBIG, problem, path)


class _Bounded(io.FileIO):
    """A file that raises instead of handing out a byte beyond a limit, whatever its size was when it was opened."""

    def __init__(self, descriptor: int, path: str, max_bytes: int) -> None:
        super().__init__(descriptor)
        self._path, self._max_bytes = path, max_bytes

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]  # typeshed: positional only
        count = super().readinto(buffer)
        if self.tell() > self._max_bytes:
            problem = f"the file grew beyond the {self._max_bytes} bytes that are allowed while it was read"
            raise OSError(errno.EFBIG, problem, self._path)
        return count

    def read(self, size: int | None = -1, /) -> bytes:
        return io.RawIOBase.read(self, -1 if size is None else size) or b""  # this and the next go through `readinto`

    def readall(self) -> bytes:
        return io.RawIOBase.readall(self)
