"""Locks that die with their process: on an open file, and on the folder of a run.

They are written here, in a few lines per platform, because no library fits. ``filelock`` (tried: 4.3.1) locks a path
that it opens itself, but the temporary files of `mlp_xp.files.atomic` must be locked through the descriptor they are
written through. It locks a FIFO, or a file with a second hard link, as readily as a file of its own, and does not say
whether the path still leads to the file that it locked. Without ``flock`` it falls back to a marker file, which a
killed process leaves behind. ``portalocker`` (tried: 4.4.2) locks descriptors, but on Windows their first bytes, so
nobody could read there which process holds the lock.
"""

from __future__ import annotations

import errno
import os
import platform
import stat
import warnings
from importlib import import_module
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

from .opening import BINARY, GUARDED, resolve

__all__ = ["FolderLock", "try_lock"]


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


_fcntl, _msvcrt = _import("fcntl"), _import("msvcrt")
_LOCKED_BYTE = 2**31 - 2  # on Windows nobody else can read a byte that is locked: one that no lock file has
_NOTE = b"process "  # how the content of a lock file begins


def try_lock(descriptor: int) -> bool:
    """Lock an open file unless somebody else has locked it; return whether this was possible.

    The lock ends when the descriptor is closed, so also with the process, however that dies. The file must be open for
    writing, at its start.

    Raises
    ------
    OSError
        If the platform or the file system has no locks.
    """
    try:
        if hasattr(_fcntl, "flock"):
            _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
        elif _msvcrt is not None:
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            try:
                _msvcrt.locking(descriptor, _msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            raise OSError(errno.ENOSYS, "this platform has no locks")
    except (BlockingIOError, PermissionError):  # EAGAIN; EACCES on Windows and some file systems
        return False
    return True


class FolderLock:
    """Hold a folder for this process: ``with FolderLock(folder) as lock: ...``.

    The file ``.lock`` in the folder is locked. The lock ends with the block or with the process, however that dies.
    The file stays and means nothing by itself. A forked child does not keep the lock of its parent.

    Parameters
    ----------
    folder
        An existing folder.

    Attributes
    ----------
    folder : Path
        The folder as `mlp_xp.files.opening.resolve` returns it. Write to this path: it stays right if the process
        changes its directory.

    Raises
    ------
    BlockingIOError
        On entry, if another holder has the folder; the message names its process.
    OSError
        On entry, if ``.lock`` is something else than the lock file of a run. It is left as it is.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = resolve(folder)
        self._path = str(self.folder / ".lock")
        self._descriptor: int | None = None
        _locks.add(self)

    def __enter__(self) -> Self:
        descriptor = _open_lock_file(self._path)
        try:
            try:
                locked = try_lock(descriptor)
            except OSError as error:
                locked = True
                problem = f"{self.folder} cannot be locked ({error.strerror}): let no other run use it"
                warnings.warn(problem, stacklevel=2)
            if not locked:
                holder = os.read(descriptor, 256).decode(errors="replace")
                problem = f"in use by {holder or 'another process'}; wait until it has ended, or choose another folder"
                raise BlockingIOError(errno.EAGAIN, problem, str(self.folder))
            self._compare(descriptor)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _NOTE + f"{os.getpid()} on {platform.node()}".encode())
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def check(self) -> None:
        """Raise unless the folder at the path is still the one that was locked; call this before each save.

        A lock belongs to a file, not to its path. If the folder is moved or removed, another run can lock a new one
        at the same path, and the two would overwrite each other's files.

        Raises
        ------
        OSError
            If the folder or its ``.lock`` was moved, removed or replaced, or this process does not hold the lock.
        """
        if self._descriptor is None:
            problem = "not locked by this process; a forked child does not keep the lock: save in the parent"
            raise PermissionError(errno.EACCES, problem, str(self.folder))
        self._compare(self._descriptor)

    def _compare(self, descriptor: int) -> None:
        try:
            same = os.path.samestat(os.lstat(self._path), os.fstat(descriptor))
        except (FileNotFoundError, NotADirectoryError):
            same = False
        if not same:
            problem = (
                "this folder or the .lock in it was moved or removed while training, so nothing more is saved here; "
                "resume from where the folder is now, or start a new run"
            )
            raise FileNotFoundError(errno.ENOENT, problem, str(self.folder))

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


_locks: WeakSet[FolderLock] = WeakSet()


def _release_in_child() -> None:
    """Close what a forked child inherited; else its parent's lock would live as long as the child."""
    for lock in _locks:
        lock._close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)


def _open_lock_file(path: str) -> int:
    """Open or create a lock file, without an effect on anything else that may be there."""
    problem = "is in the place of a lock file; remove it, or choose another folder"
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise OSError(errno.EEXIST, f"a link, a folder, a FIFO or a device {problem}", path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | GUARDED | BINARY, 0o666)  # never inherited: PEP 446
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise OSError(errno.EEXIST, f"a file with a second name (a hard link) {problem}", path)
        if os.read(descriptor, len(_NOTE)) not in (b"", _NOTE):
            raise OSError(errno.EEXIST, f"a file with other content {problem}", path)
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
