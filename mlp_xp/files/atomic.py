"""Files that are whole or absent: atomic replacement, a probe before training, a lock against a second writer.

Everything here needs a POSIX system (``flock``, ``rename`` over an open file, ``fsync`` of a folder).
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import platform
import re
import shutil
import stat
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_TEMPORARY = re.compile(r"\.mlp_xp-[0-9a-f]{16}\.tmp")


def replace_file(
    path: str | os.PathLike[str], chunks: Sequence[memoryview], verify: Callable[[io.BufferedReader], None]
) -> None:
    """Make `chunks`, one after another, the content of the file at `path`, or leave that file as it is.

    The chunks go to a temporary file beside the target, which is flushed to the disk, read back by `verify` and
    renamed over the target; then the folder is flushed. Whatever happens on the way, a reader of `path` finds
    the old content or the new one. The file's mode follows the umask. If `path` is a symbolic link, the link
    stays and the file that it points to is replaced.

    A writer holds an ``flock`` on its temporary file, and a lock dies with its process. A temporary file that
    can be locked is therefore left over from a killed writer, and is removed before a new one is made. (On a
    file system without locks the left-overs stay, and do no harm.)

    Parameters
    ----------
    path
        The file to replace or create. Its folder must exist.
    chunks
        Bytes, one-dimensional.
    verify
        Called with the written file, open at its start. The target is replaced if it returns.

    Raises
    ------
    OSError
        If the file cannot be written; the message has the path and the number of bytes needed.
    """
    target = os.path.realpath(path)
    try:
        if os.path.exists(target) and not stat.S_ISREG(os.stat(target).st_mode):
            raise FileExistsError(errno.EEXIST, "there is something here that is not a file")
        _remove_stale(os.path.dirname(target))
        temporary, descriptor = _create_temporary(os.path.dirname(target))
        try:
            for chunk in chunks:
                _write(descriptor, chunk)
            os.fsync(descriptor)
            with open(descriptor, "rb", closefd=False) as file:
                file.seek(0)
                verify(file)
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(descriptor)
    except OSError as error:
        needed = sum(map(len, chunks))
        problem = f"{needed} bytes could not be saved ({error.strerror}); make room for them or save elsewhere"
        raise OSError(error.errno, problem, target) from error
    _flush_folder(os.path.dirname(target))


def probe_writable(folder: str | os.PathLike[str], needed: int = 0) -> None:
    """Raise if `needed` bytes could not be written in `folder`, so that a long run fails at its start, not at its end.

    A folder that does not exist yet passes if it could be made in its parent. Nothing that is created stays.

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
        os.unlink(temporary)
    except OSError as error:
        problem = f"nothing can be written in this folder ({error.strerror}); choose another"
        raise OSError(error.errno, problem, str(where)) from error
    free = shutil.disk_usage(where).free
    if free < needed:
        problem = f"{needed} bytes are needed, {free} are free; make room for them or choose another folder"
        raise OSError(errno.ENOSPC, problem, str(where))


class RunLock:
    """Hold a folder for this process: ``with RunLock(folder): ...``.

    The lock is an ``flock`` on the file ``.lock`` in the folder. It ends with the block or with the process, however
    that dies; the file stays and means nothing by itself.

    Raises
    ------
    BlockingIOError
        On entry, if another holder has the folder; the message names its process.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder, ".lock")

    def __enter__(self) -> Self:
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._descriptor, 256).decode(errors="replace")
            os.close(self._descriptor)
            problem = f"in use by {holder or 'another process'}; wait until it has ended, or choose another folder"
            raise BlockingIOError(error.errno, problem, str(self.path.parent)) from None
        except OSError as error:
            problem = f"{self.path.parent} cannot be locked ({error.strerror}): let no other run use it"
            warnings.warn(problem, stacklevel=2)
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"process {os.getpid()} on {platform.node()}".encode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def _create_temporary(folder: str) -> tuple[str, int]:
    """Create a locked temporary file in `folder` and return its path and descriptor."""
    while True:
        temporary = os.path.join(folder, f".mlp_xp-{os.urandom(8).hex()}.tmp")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.exists(temporary):
            return temporary, descriptor
        os.close(descriptor)  # another writer took it for stale before it was locked


def _remove_stale(folder: str) -> None:
    """Remove the temporary files whose writers are dead."""
    for name in filter(_TEMPORARY.fullmatch, os.listdir(folder)):
        temporary = os.path.join(folder, name)
        with suppress(OSError):  # gone by now, not ours to open, or locked: alive
            descriptor = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(temporary)
            finally:
                os.close(descriptor)


def _write(descriptor: int, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[os.write(descriptor, chunk) :]


def _flush_folder(folder: str) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)
