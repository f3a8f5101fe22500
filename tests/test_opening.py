"""A reader opens plain files of a bounded size, and nothing that it would wait for, or that never ends."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from mlp_xp.files import open_regular, resolve

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs what only POSIX systems have")


def test_a_file_of_exactly_the_size_that_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345\r\n\x1a9")
    with open_regular(path, 9) as file:
        assert file.read() == b"12345\r\n\x1a9"
    with open_regular(str(path), 9) as file:
        assert file.read(4) == b"1234"
        file.seek(-1, os.SEEK_END)
        assert file.read() == b"9"
    with pytest.raises(OSError, match="the file has 9 bytes, and 8 are the most allowed") as caught:
        open_regular(path, 8)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))


@POSIX
def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    with open_regular(tmp_path / "link", 10) as file:
        assert file.read() == b"content"


def make_folder(path: Path) -> None:
    path.mkdir()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def link_to(target: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.symlink_to(target)

    make.__name__ = f"link to {target}"
    return make


OTHERS = [
    make_folder,
    *(
        pytest.param(make, marks=POSIX, id=make.__name__)
        for make in (make_fifo, make_socket, link_to("/dev/zero"), link_to("/dev/null"), link_to("/dev/tty"))
    ),
]


@pytest.mark.parametrize("make", OTHERS)
def test_what_is_no_file_is_refused_by_name_and_not_even_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    make(Path("it"))
    monkeypatch.setattr(os, "open", None)
    with pytest.raises(OSError, match=r"where a file is needed.*'it'"):
        open_regular("it", 10)


@POSIX
def test_a_fifo_that_takes_the_place_of_the_file_meanwhile_does_not_stall_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, stat, closed = tmp_path / "file", os.stat, []
    path.touch()

    def replace_then(name: str) -> os.stat_result:
        status = stat(name)
        path.unlink()
        os.mkfifo(path)
        return status

    close = os.close
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", replace_then)
        patch.setattr(os, "close", lambda descriptor: closed.append(close(descriptor)))
        with pytest.raises(OSError, match="a FIFO or a device, where a file is needed"):
            open_regular(path, 10)
    assert closed == [None]


@pytest.mark.parametrize("grown", [11, 50_000])
@pytest.mark.parametrize(
    "read",
    [
        lambda file: file.read(),
        lambda file: file.read(1000),
        lambda file: file.readinto(bytearray(1000)),
        lambda file: [file.read(1) for _ in range(11)],
        lambda file: list(file),
    ],
)
def test_a_file_that_grows_is_not_read_beyond_the_bound(
    tmp_path: Path, read: Callable[[object], object], grown: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    with open_regular(path, 10) as file:
        with path.open("ab") as growing:
            growing.write(b"6" * (grown - 5))
        with pytest.raises(OSError, match="grew beyond the 10 bytes") as caught:
            read(file)
    assert caught.value.filename == str(path)


@POSIX
@pytest.mark.skipif(not os.path.isfile("/proc/cpuinfo"), reason="needs Linux's /proc")
def test_a_file_that_says_that_it_is_empty_is_bounded_too() -> None:
    with open_regular("/proc/cpuinfo", 10) as file, pytest.raises(OSError, match="grew beyond the 10 bytes"):
        file.read()


def test_a_path_is_resolved_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "HOME", "USERPROFILE":
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in "run", "./a/../run", "~/run", tmp_path / "run":
        assert resolve(path) == Path(os.path.realpath(tmp_path)) / "run"
