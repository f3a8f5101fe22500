"""A run finds out at its start that its folder cannot be written, or belongs to another run."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlp_xp.files import FolderLock, probe_writable, resolve

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs what only POSIX systems have")

# Before training.


def test_probe_accepts_a_folder_and_one_that_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe_writable(tmp_path, needed=1000)
    probe_writable(tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    probe_writable("new")
    assert os.listdir(tmp_path) == []


def test_probe_is_not_disturbed_by_a_writer_that_removes_stale_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = os.close

    def close_then_remove(descriptor: int) -> None:
        close(descriptor)
        for path in tmp_path.glob(".mlp_xp-*"):
            path.unlink()

    monkeypatch.setattr(os, "close", close_then_remove)
    probe_writable(tmp_path)
    assert os.listdir(tmp_path) == []


def test_probe_refuses_a_folder_in_which_nothing_may_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(PermissionError, match="nothing can be written in this folder"):
        probe_writable(tmp_path)


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


@POSIX
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

    monkeypatch.setattr("mlp_xp.files.locks.try_lock", fail)
    with pytest.warns(UserWarning, match=r"cannot be locked \(No locks available\)"), FolderLock(tmp_path):
        pass


# What else may be there under the name of the lock file.


def link_to_a_file(lock: Path, victim: Path) -> None:
    lock.symlink_to(victim)


def link_to_nothing(lock: Path, victim: Path) -> None:
    lock.symlink_to(victim.with_name("nothing"))


def link_to_a_device(lock: Path, victim: Path) -> None:
    lock.symlink_to(os.devnull)


def link_to_a_folder(lock: Path, victim: Path) -> None:
    lock.symlink_to(victim.parent)


def second_name(lock: Path, victim: Path) -> None:
    os.link(victim, lock)


def fifo(lock: Path, victim: Path) -> None:
    os.mkfifo(lock)


def folder(lock: Path, victim: Path) -> None:
    lock.mkdir()


def foreign_file(lock: Path, victim: Path) -> None:
    lock.write_text("somebody's notes")


INTRUDERS = [
    *(
        pytest.param(make, marks=POSIX)
        for make in (link_to_a_file, link_to_nothing, link_to_a_device, link_to_a_folder, fifo)
    ),
    second_name,
    folder,
    foreign_file,
]


@pytest.mark.parametrize("make", INTRUDERS)
def test_what_is_no_lock_file_is_refused_by_name_and_left_as_it_is(
    tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    (tmp_path / "run").mkdir()
    victim, lock = tmp_path / "victim", tmp_path / "run" / ".lock"
    victim.write_text("process of writing a thesis")
    make(lock, victim)
    before = os.lstat(lock)
    with pytest.raises(OSError, match=r"in the place of a lock file; remove it, or choose .*\.lock"):
        FolderLock(lock.parent).__enter__()
    assert sorted(os.listdir(tmp_path)) == ["run", "victim"]
    assert victim.read_text() == "process of writing a thesis"
    assert (before.st_ino, before.st_mode, before.st_size) == tuple(
        getattr(os.lstat(lock), name) for name in ("st_ino", "st_mode", "st_size")
    )


@POSIX
@pytest.mark.parametrize("make", [link_to_a_file, link_to_nothing, fifo])
def test_what_takes_the_place_of_the_lock_file_after_the_first_look_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, Path], None]
) -> None:
    victim, lock = tmp_path / "victim", tmp_path / ".lock"
    victim.write_text("")  # what a lock file may hold
    make(lock, victim)
    monkeypatch.setattr(os.path, "lexists", lambda path: False)
    with pytest.raises(OSError, match=r"\.lock"):
        FolderLock(tmp_path).__enter__()
    assert victim.read_text() == ""
    assert sorted(os.listdir(tmp_path)) == [".lock", "victim"]


# A lock is of a file, and a run writes to a path.


def move_the_folder(run: Path) -> None:
    run.rename(run.with_name("old"))


def remove_the_folder(run: Path) -> None:
    shutil.rmtree(run)


def put_a_file_in_the_place_of_the_folder(run: Path) -> None:
    shutil.rmtree(run)
    run.touch()


def put_another_folder_there(run: Path) -> None:
    move_the_folder(run)
    run.mkdir()
    (run / ".lock").touch()


def link_to_where_the_folder_is_not(run: Path) -> None:
    move_the_folder(run)
    (run.parent / "new").mkdir()
    run.symlink_to(run.parent / "new")


def remove_the_lock_file(run: Path) -> None:
    (run / ".lock").unlink()


def replace_the_lock_file(run: Path) -> None:
    remove_the_lock_file(run)
    (run / ".lock").touch()


def put_a_link_in_the_place_of_the_lock_file(run: Path) -> None:
    (run / ".lock").rename(run.parent / "lock")
    (run / ".lock").symlink_to(run.parent / "lock")


@POSIX  # Windows refuses all of them while the lock file is open
@pytest.mark.parametrize(
    "change",
    [
        move_the_folder,
        remove_the_folder,
        put_a_file_in_the_place_of_the_folder,
        put_another_folder_there,
        link_to_where_the_folder_is_not,
        remove_the_lock_file,
        replace_the_lock_file,
        put_a_link_in_the_place_of_the_lock_file,
    ],
)
def test_a_folder_that_is_no_longer_the_locked_one_is_noticed(tmp_path: Path, change: Callable[[Path], None]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with FolderLock(run) as lock:
        lock.check()
        change(run)
        with pytest.raises(FileNotFoundError, match=r"was moved or removed while training.*resume from.*run"):
            lock.check()


@POSIX
def test_of_two_runs_at_one_path_only_the_second_may_write(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with FolderLock(run) as first:
        run.rename(tmp_path / "old")
        run.mkdir()
        with FolderLock(run) as second:
            second.check()
            with pytest.raises(FileNotFoundError):
                first.check()


@POSIX
def test_a_lock_file_that_is_removed_while_it_is_being_locked_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock_too_late(descriptor: int) -> bool:
        (tmp_path / ".lock").unlink()
        return True

    monkeypatch.setattr("mlp_xp.files.locks.try_lock", lock_too_late)
    with pytest.raises(FileNotFoundError, match="moved or removed"):
        FolderLock(tmp_path).__enter__()
    assert os.listdir(tmp_path) == []


def test_a_change_of_directory_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "here/run", "there/run":
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    lock = FolderLock("run")
    monkeypatch.chdir(tmp_path / "there")
    with lock:
        lock.check()
        assert lock.folder == (tmp_path / "here" / "run").resolve()
    assert os.listdir(tmp_path / "there" / "run") == []


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "HOME", "USERPROFILE":
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    with FolderLock("~/run") as lock:
        assert lock.folder == resolve(tmp_path / "run")
    assert os.listdir(tmp_path) == ["run"]


def test_a_lock_that_is_not_held_says_so(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(PermissionError, match="not locked by this process"):
        lock.check()
    with lock:
        lock.check()
    with pytest.raises(PermissionError, match="not locked by this process"):
        lock.check()


# A child that was forked while the folder was locked.

FORK = """
import os, sys
from mlp_xp.files import FolderLock
with FolderLock(sys.argv[1]) as lock:
    if os.fork() == 0:
        descriptor = os.open(os.devnull, os.O_RDONLY)  # takes the number that became free
        try:
            lock.check()
        except PermissionError as error:
            refused = error.strerror
        lock.__exit__(None, None, None)
        os.fstat(descriptor)  # is not what the lock closed
        os.write(1, f"{os.getpid()} {refused}\\n".encode())
        sys.stdin.read()
        os._exit(0)
    lock.check()
    os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_does_not_keep_the_lock_of_its_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORK, str(tmp_path)]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child, _, refused = parent.stdout.readline().partition(" ")
        assert refused == "not locked by this process; a forked child does not keep the lock: save in the parent\n"
        with pytest.raises(BlockingIOError, match=f"in use by process {parent.pid} on"):
            FolderLock(tmp_path).__enter__()
        parent.kill()
        parent.wait(timeout=60)
        os.kill(int(child), 0)  # the child is alive
        with FolderLock(tmp_path) as lock:
            lock.check()
