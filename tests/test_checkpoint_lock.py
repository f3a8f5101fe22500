"""A run finds out at its start that its folder cannot be written, or belongs to another run."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlp_xp.files import FolderLock, probe_writable

# Before training.


def test_probe_accepts_a_folder_and_one_that_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe_writable(tmp_path, needed=1000)
    probe_writable(tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    probe_writable("new")
    assert os.listdir(tmp_path) == []


def test_probe_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="no folder to write in"):
        probe_writable(tmp_path / "missing" / "run")
    for folder in tmp_path / "file", tmp_path / "file" / "run":
        with pytest.raises(NotADirectoryError, match="a file, where a folder is needed"):
            probe_writable(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(OSError, match="11 bytes are needed, 10 are free") as caught:
        probe_writable(tmp_path, needed=11)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == ["file"]


def test_probe_refuses_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o555)
    if os.geteuid() == 0:  # root writes everywhere

        def refuse(*_: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError, match=r"nothing can be written in this folder \(Permission denied\)"):
        probe_writable(tmp_path)


# One run in a folder.

HOLD = """
import sys
from mlp_xp.files import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_lock_of_another_process_names_it_and_dies_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=rf"in use by process {holder.pid} on .*choose another folder"):
            FolderLock(tmp_path).__enter__()
        holder.kill()
        holder.wait(timeout=60)
        with FolderLock(tmp_path):
            pass


def test_lock_ends_with_its_block(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 123456789 on a machine with a long name, which has died")
    for _ in range(2):
        with FolderLock(tmp_path):
            with pytest.raises(BlockingIOError, match=f"in use by process {os.getpid()} on"), FolderLock(tmp_path):
                pass
            assert "died" not in (tmp_path / ".lock").read_text()


def test_folder_that_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.warns(UserWarning, match=r"cannot be locked \(No locks available\)"), FolderLock(tmp_path):
        pass
