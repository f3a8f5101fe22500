"""Files work where there is no POSIX: Windows and platforms without locks are simulated, by what they refuse.

The simulation is in what the modules are given: no ``fcntl``, an ``msvcrt`` of ours, no POSIX flags, and functions of
`os` that refuse what Windows refuses. It asks the kernel whether a file is open, so it is not fooled by who opened it.
"""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import mlp_xp

pytestmark = pytest.mark.skipif(os.name != "posix", reason="simulates other platforms on a POSIX system")

GOLDEN = Path(__file__).parent / "golden" / "checkpoint_v1.safetensors"
POSIX_ONLY = ["O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "register_at_fork", "fork", "mkfifo", "geteuid"]
O_BINARY = 0x8000
MODULES = ["opening", "locks", "atomic", "strict_json", "header", "tensors"]
STALE = ".mlp_xp-0123456789abcdef.tmp"


def fresh(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import `mlp_xp.files` anew, as `os` and `sys.modules` are now; put the old modules back at the end."""
    monkeypatch.setattr(mlp_xp, "files", mlp_xp.files)
    for name in ["mlp_xp.files", *(f"mlp_xp.files.{name}" for name in MODULES)]:
        monkeypatch.delitem(sys.modules, name)
    for name in MODULES:
        importlib.import_module(f"mlp_xp.files.{name}")
    return importlib.import_module("mlp_xp.files")


def are_open(path: Any) -> list[int]:
    """Return the descriptors of this process that lead to the file at `path`."""
    descriptors = []
    status = os.lstat(path)
    for descriptor in range(256):
        try:
            if os.path.samestat(os.fstat(descriptor), status):
                descriptors.append(descriptor)
        except OSError:
            pass
    return descriptors


class Msvcrt(ModuleType):
    """Byte locks as of Windows: of a descriptor, from the file's position on, gone when it is closed."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        super().__init__("msvcrt")
        self.locked: dict[tuple[int, int, int], int] = {}

    def locking(self, descriptor: int, mode: int, count: int) -> None:
        assert (mode, count) == (self.LK_NBLCK, 1)
        status, position = os.fstat(descriptor), os.lseek(descriptor, 0, os.SEEK_CUR)
        assert position > status.st_size  # or others could not read what is there
        byte = status.st_dev, status.st_ino, position
        try:
            held = os.path.samestat(os.fstat(self.locked[byte]), status)
        except (KeyError, OSError):
            held = False
        if held and self.locked[byte] != descriptor:
            raise PermissionError(errno.EACCES, "Permission denied")
        self.locked[byte] = descriptor


def refuse(path: Any, number: int = 32) -> None:
    error = PermissionError(errno.EACCES, "The process cannot access the file", os.fspath(path))
    error.winerror = number  # type: ignore[attr-defined]  # on Windows every OSError has it
    raise error


@pytest.fixture
def windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Return `mlp_xp.files` as it is on Windows; pytest makes `tmp_path` before."""
    for name in POSIX_ONLY:
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(os, "O_BINARY", O_BINARY, raising=False)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", Msvcrt())
    true_open, replace, unlink = os.open, os.replace, os.unlink

    def open_(path: Any, flags: int, *mode: int) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        assert flags & O_BINARY, "text mode would change the bytes"  # so no `Path.touch` here
        return true_open(path, flags & ~O_BINARY, *mode)

    def replace_(source: Any, target: Any) -> None:
        if are_open(source) or (os.path.exists(target) and are_open(target)):
            refuse(target)
        replace(source, target)

    def unlink_(path: Any) -> None:
        if are_open(path):
            refuse(path)
        unlink(path)

    for name, function in {"open": open_, "replace": replace_, "unlink": unlink_, "remove": unlink_}.items():
        monkeypatch.setattr(os, name, function)
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    files = fresh(monkeypatch)
    files.waits = waits  # type: ignore[attr-defined]
    yield files
    descriptors = [number for name in os.listdir("/dev/fd") if (number := int(name)) > 2]
    assert not [number for number in descriptors if "mlp_xp-" in os.path.realpath(f"/dev/fd/{number}")]


def content(k: int) -> tuple[dict[str, Any], dict[str, int]]:
    return {"theta": np.full(1000, k, dtype=np.float32)}, {"k": k}


# Windows.


def test_the_simulation_refuses_what_windows_refuses(windows: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    with path.open() as file:
        for call in os.unlink, lambda path: os.replace(path, tmp_path / "new"), lambda path: os.replace(GOLDEN, path):
            with pytest.raises(PermissionError):
                call(path)
        locks = sys.modules["msvcrt"]
        os.lseek(file.fileno(), 100, os.SEEK_SET)
        locks.locking(file.fileno(), locks.LK_NBLCK, 1)
        with path.open() as other:
            os.lseek(other.fileno(), 100, os.SEEK_SET)
            with pytest.raises(PermissionError):
                locks.locking(other.fileno(), locks.LK_NBLCK, 1)
    assert sys.modules["mlp_xp.files.locks"]._fcntl is None
    assert sys.modules["mlp_xp.files.opening"].GUARDED == 0


def test_files_are_saved_replaced_and_loaded(windows: ModuleType, tmp_path: Path) -> None:
    tensors = windows.tensors
    for k in range(3):
        tensors.save(tmp_path / "file", *content(k))
        arrays, metadata = tensors.load(tmp_path / "file")
        assert (metadata, arrays["theta"][0]) == ({"k": k}, k)
    assert os.listdir(tmp_path) == ["file"]
    arrays, metadata = tensors.load(GOLDEN)
    tensors.save(tmp_path / "file", arrays, metadata)
    assert (tmp_path / "file").read_bytes() == GOLDEN.read_bytes()
    assert windows.waits == []


def test_what_fails_leaves_the_old_file_and_nothing_else(
    windows: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    windows.tensors.save(tmp_path / "file", *content(1))
    for name in "write", "fsync", "replace":
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match=r"could not be saved.*make room"):
                windows.tensors.save(tmp_path / "file", *content(2))
        assert os.listdir(tmp_path) == ["file"]
        assert windows.tensors.load(tmp_path / "file")[1] == {"k": 1}


@pytest.mark.parametrize("number", [5, 32])
def test_a_virus_scanner_is_waited_for(
    windows: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    replace, tries = os.replace, []

    def scanned(source: Any, target: Any) -> None:
        tries.append(source)
        if len(tries) <= 5:
            refuse(target, number)
        replace(source, target)

    monkeypatch.setattr(os, "replace", scanned)
    windows.tensors.save(tmp_path / "file", *content(1))
    assert windows.tensors.load(tmp_path / "file")[1] == {"k": 1}
    assert len(windows.waits) == 5
    assert sum(windows.waits) < 1


def test_a_program_that_keeps_the_file_open_is_named_as_the_reason(windows: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "file"
    windows.tensors.save(path, *content(1))
    with path.open("rb"), pytest.raises(PermissionError, match=r"close the program that has the file open"):
        windows.tensors.save(path, *content(2))
    assert 1 < sum(windows.waits) < 2
    assert os.listdir(tmp_path) == ["file"]
    assert windows.tensors.load(path)[1] == {"k": 1}


def test_a_refusal_that_will_not_pass_is_not_waited_for(
    windows: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", lambda *_: refuse("file", 1))
    with pytest.raises(PermissionError, match="could not be saved"):
        windows.tensors.save(tmp_path / "file", *content(1))
    assert windows.waits == []
    assert os.listdir(tmp_path) == []


def test_only_the_temporary_files_of_the_dead_are_removed(windows: ModuleType, tmp_path: Path) -> None:
    dead, alive, held = (tmp_path / STALE.replace("0", digit) for digit in "012")
    for path in dead, alive, held:
        path.write_bytes(b"")
    with alive.open("r+b") as writing, held.open("r+b"):
        assert windows.locks.try_lock(writing.fileno())
        windows.tensors.save(tmp_path / "file", *content(1))
        assert sorted(os.listdir(tmp_path)) == sorted(["file", alive.name, held.name])
    windows.tensors.save(tmp_path / "file", *content(2))
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_is_probed(windows: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows.probe_writable(tmp_path, needed=1000)
    assert os.listdir(tmp_path) == []
    unlink, tries = os.unlink, []

    def scanned(path: Any) -> None:
        tries.append(path)
        if len(tries) <= 3:
            refuse(path)
        unlink(path)

    monkeypatch.setattr(os, "unlink", scanned)
    windows.probe_writable(tmp_path)
    assert os.listdir(tmp_path) == []


def test_one_run_holds_a_folder(windows: ModuleType, tmp_path: Path) -> None:
    for _ in range(2):
        with windows.FolderLock(tmp_path) as lock:
            lock.check()
            with pytest.raises(BlockingIOError, match=rf"in use by process {os.getpid()} on .*; wait"):
                windows.FolderLock(tmp_path).__enter__()
            lock.check()
    assert os.listdir(tmp_path) == [".lock"]


def test_the_lock_file_is_not_a_link(windows: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"")
    (tmp_path / ".lock").symlink_to("victim")
    with pytest.raises(OSError, match="in the place of a lock file"):
        windows.FolderLock(tmp_path).__enter__()
    assert (tmp_path / "victim").read_bytes() == b""


def test_a_link_that_takes_the_place_of_the_lock_file_is_not_written_through(
    windows: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "victim").write_bytes(b"")
    (tmp_path / ".lock").symlink_to("victim")
    monkeypatch.setattr(os.path, "lexists", lambda path: False)  # it was not there yet
    with pytest.raises(FileNotFoundError, match="moved or removed"):
        windows.FolderLock(tmp_path).__enter__()
    assert (tmp_path / "victim").read_bytes() == b""


def test_readers_refuse_folders_and_devices(windows: ModuleType, tmp_path: Path) -> None:
    for path in tmp_path, os.devnull:
        with pytest.raises(OSError, match="where a file is needed"):
            windows.open_regular(path, 10)


# Between the two: file systems that flush no folders, and platforms without any locks.


def test_a_folder_that_may_not_be_flushed_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def files_only(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), os.stat(tmp_path)):
            raise PermissionError(errno.EACCES, "Permission denied")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    mlp_xp.files.tensors.save(tmp_path / "file", *content(1))
    assert mlp_xp.files.tensors.load(tmp_path / "file")[1] == {"k": 1}


@pytest.mark.parametrize("fcntl", [None, ModuleType("fcntl")], ids=["no fcntl", "fcntl without flock"])
def test_without_locks_the_user_is_warned_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fcntl: ModuleType | None
) -> None:
    for name in "fcntl", "msvcrt":
        monkeypatch.setitem(sys.modules, name, fcntl if name == "fcntl" else None)
    files = fresh(monkeypatch)
    (tmp_path / STALE).touch()
    lock = files.FolderLock(tmp_path)
    with pytest.warns(UserWarning, match=r"cannot be locked \(this platform has no locks\): let no other run use it"):
        lock.__enter__()
    files.tensors.save(tmp_path / "file", *content(1))
    lock.check()
    lock.__exit__(None, None, None)
    assert files.tensors.load(tmp_path / "file")[1] == {"k": 1}
    assert sorted(os.listdir(tmp_path)) == sorted([".lock", "file", STALE])  # whether its writer lives is not known


@pytest.mark.parametrize("name", ["fcntl", "msvcrt"])
def test_a_lock_that_fails_is_told_from_one_that_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    module = ModuleType(name)
    vars(module).update(flock=fail, locking=fail, LOCK_EX=2, LOCK_NB=4, LK_NBLCK=2)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, name, module)
    files = fresh(monkeypatch)
    with pytest.warns(UserWarning, match=r"cannot be locked \(No locks available\)"), files.FolderLock(tmp_path):
        pass


# The whole package.

WITHOUT = """
import os, sys
sys.modules["fcntl"] = None
for name in {missing}:
    if hasattr(os, name):
        delattr(os, name)
"""


def test_the_module_imports_without_fcntl() -> None:
    source = WITHOUT.format(missing=POSIX_ONLY) + "import mlp_xp.files.atomic"
    subprocess.run([sys.executable, "-c", source], check=True)


TRAINS = """
import mlp_xp as mx, numpy as np, warnings
warnings.simplefilter("ignore")
X, y = np.arange(40.).reshape(20, 2) / 40, np.arange(20) % 2
for epochs, resume in (2, False), (4, True):
    model = mx.MLP([2, 4, 2])
    mx.fit(model, X, y, epochs=epochs, threads=1, checkpoint=mx.Checkpoint(sys.argv[1], resume=resume))
straight = mx.MLP([2, 4, 2])
mx.fit(straight, X, y, epochs=4, threads=1)
assert (model.theta == straight.theta).all()
model.save(os.path.join(sys.argv[1], "model"))
assert (mx.MLP.load(os.path.join(sys.argv[1], "model")).theta == model.theta).all()
"""


def test_a_run_is_saved_and_resumed_without_posix(tmp_path: Path) -> None:
    source = WITHOUT.format(missing=POSIX_ONLY) + TRAINS
    subprocess.run([sys.executable, "-c", source, str(tmp_path / "run")], check=True)
