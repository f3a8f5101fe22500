"""Saving: a reader finds the old file or the new one, whatever happens to the writer, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlp_xp.files import atomic
from mlp_xp.files.locks import try_lock
from mlp_xp.files.tensors import CheckpointError, load, save

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs what only POSIX systems have")
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

path, random = sys.argv[1], random.Random(0)
folder = os.path.dirname(path)
reader, writer = os.pipe()
CALLS = ["open", "write", "fsync", "close", "replace"]  # what a save asks the system for

def write(k):
    save(path, {"theta": np.full(50_000, k, dtype=np.float32)}, {"k": k})

def stop():
    os.write(writer, b"!")
    signal.pause()

def count_calls():
    calls = []
    def record(call, name):
        def recorded(*arguments, **options):
            calls.append(name)
            return call(*arguments, **options)
        return recorded
    for name in CALLS:
        setattr(os, name, record(getattr(os, name), name))
    write(0)
    return calls

def stop_at(number, after):
    seen = 0
    def stop_there(call, name):
        def stopping(*arguments, **options):
            nonlocal seen
            seen += 1
            if seen - 1 == number:
                if after:
                    call(*arguments, **options)
                elif name == "write":
                    call(arguments[0], arguments[1][:random.randrange(len(arguments[1]))])  # a part of it
                stop()
            return call(*arguments, **options)
        return stopping
    for name in CALLS:
        setattr(os, name, stop_there(getattr(os, name), name))

def kill(begin, wait):
    victim = os.fork()
    if not victim:
        begin()
        os._exit(1)  # the victim lived on
    assert os.read(reader, 1) == b"!"
    time.sleep(wait)
    os.kill(victim, signal.SIGKILL)
    assert os.waitpid(victim, 0)[1] == signal.SIGKILL
    arrays, metadata = load(path)
    assert (arrays["theta"] == metadata["k"]).all()
    return metadata["k"], len(os.listdir(folder)) - 1

write(0)
rest, counter = os.pipe()
if not os.fork():
    os.write(counter, " ".join(count_calls()).encode())
    os._exit(0)
os.wait()
calls = os.read(rest, 10_000).decode().split()
assert calls == "open write write fsync close replace open fsync close".split(), calls

last = kills = 0
for number, name in enumerate(calls):  # before, in the middle of, and after each call
    for after in False, True:
        write(last)  # removes what the last victim left
        assert len(os.listdir(folder)) == 1
        def begin():
            stop_at(number, after)
            write(last + 1)
        k, left_over = kill(begin, wait=0)
        replaced = number > calls.index("replace") or (name == "replace" and after)
        exists = not replaced and (number > 0 or after)
        assert k == last + replaced, (number, name, after)
        assert left_over == exists, (number, name, after)
        last, kills = k, kills + 1
while kills < 50:  # at any instant after a save was complete
    def begin():
        write(last + 1)
        os.write(writer, b"!")
        for k in range(last + 2, sys.maxsize):
            write(k)
    k, left_over = kill(begin, wait=random.uniform(0, 0.01))
    assert k > last
    assert left_over <= 1
    last, kills = k, kills + 1
write(last + 1)
print(kills, last)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_50_kills_while_overwriting(tmp_path: Path) -> None:
    with python(KILLED, tmp_path / "file") as child:
        output, _ = child.communicate(timeout=300)
    assert child.returncode == 0
    kills, overwritten = map(int, output.split())
    assert kills == 50
    assert overwritten >= 32 + 4  # once by each victim at the end, and by those that were killed after the renaming
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


@POSIX
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


@POSIX
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


@POSIX
def test_folder_that_cannot_be_flushed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync
    for number in errno.EINVAL, errno.EACCES, errno.EPERM, errno.EIO:

        def fail_for_folders(descriptor: int, number: int = number) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(number, "folder")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", fail_for_folders)
        if number != errno.EIO:
            save(path, *content(2))
        else:
            with pytest.raises(OSError, match="folder"):
                save(path, *content(3))


@POSIX
def test_mode_follows_the_umask(path: Path) -> None:
    old = os.umask(0o027)
    try:
        save(path, *content(2))
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


# Where the file goes.


@POSIX
def test_symbolic_link_stays_and_its_file_is_replaced(path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("links") / "link"
    link.symlink_to(path)
    save(link, *content(2))
    assert link.is_symlink()
    assert_holds(path, 2)
    assert os.listdir(link.parent) == ["link"]


@pytest.mark.parametrize("follow_links", [True, False])
def test_relative_path_without_a_usable_tmpdir(path: Path, monkeypatch: pytest.MonkeyPatch, follow_links: bool) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.chdir(path.parent)
    save(path.name, *content(2), follow_links=follow_links)
    assert_holds(path, 2)


@pytest.mark.parametrize(
    "name", ["a b", "größe", *(pytest.param(n, marks=POSIX) for n in ("n" * 255, os.fsdecode(b"\xff")))]
)
def test_unusual_names(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, *content(2))
    assert_holds(tmp_path / name, 2)


@POSIX
def test_target_that_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for target in tmp_path, tmp_path / "pipe":
        with pytest.raises(FileExistsError, match="not a file"):
            save(target, *content(1))
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.parametrize(
    ("name", "error", "advice"),
    [
        ("missing/file", FileNotFoundError, "create the folder or save elsewhere"),
        pytest.param("file/file", NotADirectoryError, "create the folder or save elsewhere", marks=POSIX),
        ("folder", FileExistsError, "not a file.; save elsewhere"),
    ],
)
def test_the_advice_fits_the_problem(tmp_path: Path, name: str, error: type[OSError], advice: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    problem = rf"^\[Errno \d+\] 4\d{{3}} bytes could not be saved .*{advice}: .*{re.escape(Path(name).name)}'$"
    with pytest.raises(error, match=problem):
        save(tmp_path / name, *content(1))


@POSIX
@pytest.mark.parametrize("kind", ["link", "dangling link", "link to a folder", "second name", "file", "nothing"])
def test_where_links_are_not_followed_they_are_replaced(path: Path, tmp_path: Path, kind: str) -> None:
    victim, target = path, tmp_path / "run" / "target"
    target.parent.mkdir()
    if kind == "second name":
        os.link(victim, target)
    elif kind == "file":
        save(target, *content(3))
    elif kind != "nothing":
        target.symlink_to({"link": victim, "dangling link": tmp_path / "absent", "link to a folder": tmp_path}[kind])
    save(target, *content(2), follow_links=False)
    assert not target.is_symlink()
    assert_holds(target, 2)
    assert load(victim)[1] == {"k": 1}
    assert sorted(os.listdir(tmp_path)) == ["file.safetensors", "run"]


@POSIX
def test_links_above_the_file_are_followed_always(path: Path) -> None:
    (path.parent / "run").mkdir()
    (path.parent / "link").symlink_to("run")
    save(path.parent / "link" / "target", *content(2), follow_links=False)
    assert_holds(path.parent / "run" / "target", 2)


@POSIX
def test_where_links_are_not_followed_a_fifo_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="not a file"):
        save(tmp_path / "pipe", *content(1), follow_links=False)
    assert os.listdir(tmp_path) == ["pipe"]


# Other writers, dead and alive.


@POSIX
def test_only_dead_temporary_files_are_removed(path: Path) -> None:
    others = [".mlp_xp-alive.tmp", "file.tmp", STALE.replace("0", "1")]
    for name in others:
        path.with_name(name).touch()
    path.with_name(STALE).write_bytes(b"half a file")
    path.with_name(STALE.replace("0", "2")).symlink_to(path)
    with path.with_name(others[-1]).open("r+") as alive:
        assert try_lock(alive.fileno())
        save(path, *content(2))
        assert load(path)[1] == {"k": 2}
        assert sorted(os.listdir(path.parent)) == sorted([path.name, *others, STALE.replace("0", "2")])


@POSIX
@pytest.mark.parametrize("taken", ["before", "while"])
def test_temporary_file_taken_for_dead_before_it_is_locked(
    path: Path, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    lock = atomic.try_lock
    removed: list[Path] = []

    def remove_first(descriptor: int) -> bool:
        if not removed:
            removed.extend(path.parent.glob(".mlp_xp-*"))
            removed[0].unlink()
            if taken == "while":
                return False
        return lock(descriptor)

    monkeypatch.setattr(atomic, "try_lock", remove_first)
    save(path, *content(2))
    assert len(removed) == 1
    assert_holds(path, 2)


def test_temporary_file_taken_for_dead_before_it_is_renamed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace
    removed: list[str] = []

    def remove_first(source: str, target: str) -> None:
        if len(removed) < 3:
            atomic._remove_stale(str(path.parent))  # as another writer does
            removed.append(source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", remove_first)
    save(path, *content(2))
    assert len(set(removed)) == 3
    assert_holds(path, 2)


@POSIX
def test_a_folder_that_is_removed_before_the_renaming_ends_the_save(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def remove_then(source: str, target: str) -> None:
        shutil.rmtree(path.parent)
        replace(source, target)

    monkeypatch.setattr(os, "replace", remove_then)
    with pytest.raises(FileNotFoundError, match="could not be saved"):
        save(path, *content(2))


def test_file_system_without_locks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic, "try_lock", fail)
    save(path, *content(2))
    assert_holds(path, 2)
    path.with_name(STALE).touch()
    save(path, *content(3))
    assert path.with_name(STALE).exists()


@POSIX
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
