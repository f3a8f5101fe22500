"""Files that are whole or absent: atomic replacement, and a probe before training.

One order of steps serves all platforms, the strictest: a file is closed before it is renamed or deleted, because
Windows refuses both for an open file.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from .locks import try_lock
from .opening import BINARY, GUARDED

__all__ = ["probe_writable", "replace_file"]

_TEMPORARY = re.compile(r"\.mlp_xp-[0-9a-f]{16}\.tmp")
_BUSY = 5, 32  # ERROR_ACCESS_DENIED, ERROR_SHARING_VIOLATION: what Windows says while a virus scanner reads the file
_WAITS = [0.01 * 2**k for k in range(7)]  # seconds, 1.3 in all
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def replace_file(
    path: str | os.PathLike[str],
    chunks: Sequence[memoryview],
    verify: Callable[[io.BufferedReader], None],
    follow_links: bool = True,
) -> None:
    """Make `chunks`, one after another, the content of the file at `path`, or leave that file as it is.

    The chunks go to a temporary file beside the target, which is flushed to the disk, read back by `verify`, and
    renamed over the target. Then the folder is flushed. Whatever happens on the way, a reader of `path` finds the old
    content or the new one. The file's mode follows the umask.

    A writer locks its temporary file, and a lock dies with its process. A temporary file that can be locked is
    therefore left over from a killed writer, and is removed before a new one is made. A living writer whose file was
    removed in the moments before it is locked, or between its closing and its renaming, writes it again. (On a file
    system without locks the left-overs stay, and do no harm.)

    Parameters
    ----------
    path
        The file to replace or create. Its folder must exist.
    chunks
        Bytes, one-dimensional.
    verify
        Called with the written file, open at its start. The target is replaced if it returns.
    follow_links
        If `path` is a symbolic link: True keeps the link and replaces the file that it points to, False replaces the
        link. Take False in a folder whose content may come from somebody else.

    Raises
    ------
    OSError
        If the file cannot be written; the message has the path and the number of bytes needed.
    """
    folder, name = os.path.split(os.fspath(path))
    target = os.path.realpath(path) if follow_links else os.path.join(os.path.realpath(folder), name)
    folder = os.path.dirname(target)
    try:
        if os.path.lexists(target) and stat.S_IFMT(os.lstat(target).st_mode) not in (stat.S_IFREG, stat.S_IFLNK):
            raise FileExistsError(errno.EEXIST, "there is something here that is not a file")
        _remove_stale(folder)
        while not _try_to_replace(target, chunks, verify):
            pass
    except OSError as error:
        needed = sum(map(len, chunks))
        problem = f"{needed} bytes could not be saved ({error.strerror}); {_advice(error)}"
        raise OSError(error.errno, problem, target) from error
    _flush_folder(folder)


def probe_writable(folder: str | os.PathLike[str], needed: int = 0) -> None:
    """Raise if `needed` bytes could not be written in `folder`, so that a long run fails at its start, not at its end.

    A folder that does not exist yet passes if it could be made in its parent. Nothing that is created stays.

    Parameters
    ----------
    folder
        The folder.
    needed
        Bytes that must be free. While `replace_file` replaces a file, the old one and the new one are both on the
        disk: ask for two files.

    Raises
    ------
    OSError
        If the folder and its parent are missing, one of them is a file, nothing may be written, or the disk is full.
    """
    where = Path(folder)
    if not where.exists():
        where = where.parent
    if not where.exists():
        raise FileNotFoundError(errno.ENOENT, "no folder to write in; create it, or choose another", str(where))
    if not where.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a file, where a folder is needed; choose another", str(where))
    try:
        temporary, descriptor = _create_temporary(str(where))
        os.close(descriptor)
        with suppress(FileNotFoundError):  # another writer took it for stale
            _when_free(os.unlink, temporary)
    except OSError as error:
        problem = f"nothing can be written in this folder ({error.strerror}); choose another"
        raise OSError(error.errno, problem, str(where)) from error
    free = shutil.disk_usage(where).free
    if free < needed:
        problem = f"{needed} bytes are needed, {free} are free; make room for them or choose another folder"
        raise OSError(errno.ENOSPC, problem, str(where))


def _try_to_replace(target: str, chunks: Sequence[memoryview], verify: Callable[[io.BufferedReader], None]) -> bool:
    """Write a temporary file and rename it; return False if somebody removed it before it was renamed."""
    temporary, descriptor = _create_temporary(os.path.dirname(target))
    try:
        try:
            for chunk in chunks:
                _write(descriptor, chunk)
            os.fsync(descriptor)
            with open(descriptor, "rb", closefd=False) as file:
                file.seek(0)
                verify(file)
        finally:
            os.close(descriptor)
        _when_free(os.replace, temporary, target)
    except BaseException as error:
        if isinstance(error, FileNotFoundError) and not os.path.lexists(temporary):
            return False
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return True


def _create_temporary(folder: str) -> tuple[str, int]:
    """Create a locked temporary file in `folder` and return its path and descriptor."""
    temporary = os.path.join(folder, f".mlp_xp-{os.urandom(8).hex()}.tmp")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | BINARY, 0o666)
    with suppress(OSError):  # without locks nobody removes it
        try_lock(descriptor)  # if another writer was faster, it removes the file as stale, and this one writes it again
    return temporary, descriptor


def _remove_stale(folder: str) -> None:
    """Remove the temporary files whose writers are dead."""
    for name in filter(_TEMPORARY.fullmatch, os.listdir(folder)):
        temporary = os.path.join(folder, name)
        with suppress(OSError):  # gone by now, not ours to open, or a file system without locks
            descriptor = os.open(temporary, os.O_RDWR | GUARDED | BINARY)
            try:
                stale = try_lock(descriptor)
            finally:
                os.close(descriptor)
            if stale:
                os.unlink(temporary)


def _write(descriptor: int, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[os.write(descriptor, chunk) :]


def _when_free(call: Callable[..., None], *paths: str) -> None:
    """Rename or delete a file; on Windows wait a moment for others to close it."""
    for wait in _WAITS:
        try:
            return call(*paths)
        except PermissionError as error:
            if getattr(error, "winerror", None) not in _BUSY:
                raise
        time.sleep(wait)
    return call(*paths)


def _flush_folder(folder: str) -> None:
    """Make a rename in `folder` survive a power cut."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders, and needs no flush of them
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES, errno.EPERM):  # some network file systems flush no folders
            raise
    finally:
        os.close(descriptor)


def _advice(error: OSError) -> str:
    if error.errno in _FULL:
        return "make room for them or save elsewhere"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "create the folder or save elsewhere"
    if getattr(error, "winerror", None) in _BUSY:
        return "close the program that has the file open or save elsewhere"
    return "save elsewhere"
