"""Saving: a reader finds the old file or the new one, whatever happens to the writer, and nothing is left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlp_xp.files.tensors import CheckpointError, load, save

STALE = ".mlp_xp-0123456789abcdef.tmp"


def content(k: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    return {"theta": np.full(1000, k, dtype=np.float32)}, {"k": k}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a checkpoint with content 1, alone in its folder."""
    save(tmp_path / "file.safetensors", *content(1))
    return tmp_path / "file.safetensors"


def assert_holds(path: Path, k: int) -> None:
    """The file has content k, and is alone in its folder."""
    arrays, metadata = load(path)
    assert metadata == {"k": k}
    assert np.array_equal(arrays["theta"], content(k)[0]["theta"])
    assert os.listdir(path.parent) == [path.name]


def python(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], text=True, stdout=subprocess.PIPE, **options
    )


# A writer that dies.

KILLED = """
import os, random, signal, sys, time
import numpy as np
from mlp_xp.files.tensors import load, save

def write(path, k):
    save(path, {"theta": np.full(500_000, k, dtype=np.float32)}, {"k": k})

path, last, left_overs, random = sys.argv[1], 0, 0, random.Random(0)
write(path, 0)
for _ in range(50):
    victim = os.fork()
    if not victim:
        for k in range(last + 1, sys.maxsize):
            write(path, k)
    time.sleep(random.uniform(0, 0.05))
    os.kill(victim, 9)
    os.waitpid(victim, 0)
    left_overs += len(os.listdir(os.path.dirname(path))) - 1
    arrays, metadata = load(path)
    assert metadata["k"] >= last
    assert (arrays["theta"] == metadata["k"]).all()
    last = metadata["k"]
assert len(os.listdir(os.path.dirname(path))) <= 2
write(path, last + 1)
print(last, left_overs)
"""


def test_50_kills_while_overwriting(tmp_path: Path) -> None:
    with python(KILLED, tmp_path / "file") as child:
        output, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    overwritten, left_overs = map(int, output.split())
    assert overwritten > 10  # the victims did write,
    assert left_overs > 10  # and were killed while they did
    assert os.listdir(tmp_path) == ["file"]


# A system call that fails.


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), MemoryError(), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_failing_call_keeps_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(type(error)) as caught:
            save(path, *content(2))
    if isinstance(caught.value, OSError):
        assert caught.value.errno == errno.ENOSPC
        for words in str(path), f"{path.stat().st_size} bytes", "disk full":
            assert words in str(caught.value)
    assert_holds(path, 1)


def test_disk_full_half_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    written: list[int] = []

    def write_a_little(descriptor: int, data: memoryview) -> int:
        if sum(written) > 2000:
            raise OSError(errno.ENOSPC, "disk full")
        written.append(write(descriptor, data[:100]))
        return written[-1]

    monkeypatch.setattr(os, "write", write_a_little)
    with pytest.raises(OSError, match="could not be saved"):
        save(path, *content(2))
    assert len(written) > 10
    assert_holds(path, 1)


def test_short_writes_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:100]))
    save(path, *content(2))
    assert_holds(path, 2)


def test_file_size_limit(path: Path) -> None:
    code = """
import resource, sys
import numpy as np
from mlp_xp.files.tensors import save
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
save(sys.argv[1], {"theta": np.zeros(100_000)}, {})
"""
    with python(code, path, stderr=subprocess.PIPE) as child:
        _, message = child.communicate(timeout=60)
    assert child.returncode == 1
    assert re.search(rf"OSError: .* 800\d\d\d bytes could not be saved \(File too large\).*'{path}'$", message.strip())
    assert_holds(path, 1)


def test_content_that_raises_half_way(path: Path) -> None:
    class Half(dict[str, np.ndarray]):
        def items(self) -> Any:
            yield "theta", np.zeros(3)
            raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="the device is gone"):
        save(path, Half(), {})
    assert_holds(path, 1)


def test_a_disk_that_stores_something_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data).replace(b"@", b"A")))
    with pytest.raises(CheckpointError, match="does not match its sha256"):
        save(path, *content(2))  # 2.0 is 00 00 00 @
    assert_holds(path, 1)


# What the system is told, in which order.


def test_write_flush_verify_replace_flush_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def record(name: str) -> None:
        original = getattr(os, name)

        def recorded(*arguments: Any) -> Any:
            folder = name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
            calls.append(name + " folder" * folder)
            return original(*arguments)

        monkeypatch.setattr(os, name, recorded)

    for name in "write", "fsync", "replace":
        record(name)
    monkeypatch.setattr("mlp_xp.files.tensors._verify", lambda file: calls.append(f"verify from {file.tell()}"))
    save(path, *content(2))
    assert calls == ["write", "write", "fsync", "verify from 0", "replace", "fsync folder"]


def test_folder_that_cannot_be_flushed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync
    for number in errno.EINVAL, errno.EIO:

        def fail_for_folders(descriptor: int, number: int = number) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(number, "folder")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", fail_for_folders)
        if number == errno.EINVAL:
            save(path, *content(2))
        else:
            with pytest.raises(OSError, match="folder"):
                save(path, *content(3))


def test_mode_follows_the_umask(path: Path) -> None:
    old = os.umask(0o027)
    try:
        save(path, *content(2))
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


# Where the file goes.


def test_symbolic_link_stays_and_its_file_is_replaced(path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("links") / "link"
    link.symlink_to(path)
    save(link, *content(2))
    assert link.is_symlink()
    assert_holds(path, 2)
    assert os.listdir(link.parent) == ["link"]


def test_relative_path_without_a_usable_tmpdir(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.chdir(path.parent)
    save(path.name, *content(2))
    assert_holds(path, 2)


@pytest.mark.parametrize("name", ["a b", "größe", "n" * 255, os.fsdecode(b"\xff")])
def test_unusual_names(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, *content(2))
    assert_holds(tmp_path / name, 2)


def test_target_that_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for target in tmp_path, tmp_path / "pipe":
        with pytest.raises(FileExistsError, match="not a file"):
            save(target, *content(1))
    with pytest.raises(FileNotFoundError, match="could not be saved"):
        save(tmp_path / "missing" / "file", *content(1))
    assert os.listdir(tmp_path) == ["pipe"]


# Other writers, dead and alive.


def test_only_dead_temporary_files_are_removed(path: Path) -> None:
    others = [".mlp_xp-alive.tmp", "file.tmp", STALE.replace("0", "1")]
    for name in others:
        path.with_name(name).touch()
    path.with_name(STALE).write_bytes(b"half a file")
    path.with_name(STALE.replace("0", "2")).symlink_to(path)
    with path.with_name(others[-1]).open() as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        save(path, *content(2))
        assert load(path)[1] == {"k": 2}
        assert sorted(os.listdir(path.parent)) == sorted([path.name, *others, STALE.replace("0", "2")])


def test_temporary_file_taken_for_dead_before_it_is_locked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock
    removed: list[Path] = []

    def remove_first(descriptor: int, operation: int) -> None:
        if not removed:
            removed.extend(path.parent.glob(".mlp_xp-*"))
            removed[0].unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    save(path, *content(2))
    assert len(removed) == 1
    assert_holds(path, 2)


def test_file_system_without_locks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    save(path, *content(2))
    assert_holds(path, 2)
    path.with_name(STALE).touch()
    save(path, *content(3))
    assert path.with_name(STALE).exists()


def test_writers_at_the_same_time(path: Path) -> None:
    failures: list[BaseException] = []

    def write(first: int) -> None:
        try:
            for k in range(first, first + 25):
                save(path, *content(k))
                load(path)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(first,)) for first in (100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert_holds(path, load(path)[1]["k"])
