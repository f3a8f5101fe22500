"""The IDX reader: what it reads, and that it refuses every lie cheaply."""

from __future__ import annotations

import gzip
import hashlib
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mlp_xp.datasets import limits, read_idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def header(code: int, *shape: int) -> bytes:
    return bytes([0, 0, code, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)


def idx(array: NDArray[np.generic]) -> bytes:
    big_endian = array.astype(array.dtype.newbyteorder(">"))
    return header(CODES[array.dtype.str[1:]], *array.shape) + big_endian.tobytes()


@contextmanager
def cheaply(seconds: float = 0.5, memory: int = 8 << 20) -> Iterator[None]:
    """Fail if the block takes more processor time or more memory at its peak than given."""
    tracemalloc.start()
    start = time.thread_time()
    try:
        yield
        assert time.thread_time() - start < seconds
        assert tracemalloc.get_traced_memory()[1] < memory
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("idx") / "some-idx"


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages name the limit, which must not depend on the machine."""
    monkeypatch.setattr(limits, "available_memory", lambda: 1 << 40)


GOOD = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("dtype", CODES)
def test_reads_every_type_in_native_byte_order(file: Path, dtype: str, packed: bool) -> None:
    array = (np.arange(24).reshape(2, 3, 4) * 5 - (0 if dtype == "u1" else 60)).astype(dtype)
    data = idx(array)
    file.write_bytes(gzip.compress(data) if packed else data)
    got = read_idx(file)
    assert got.dtype == array.dtype
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, array)


def test_reads_up_to_32_dimensions(file: Path) -> None:
    file.write_bytes(header(0x08, *[1] * 32) + b"\7")
    assert read_idx(file).shape == (1,) * 32


def test_members_of_gzip_are_read_as_one_stream(file: Path) -> None:
    file.write_bytes(gzip.compress(GOOD[:20]) + gzip.compress(GOOD[20:]))
    assert read_idx(file).sum() == sum(range(24))


def test_sha256_is_of_the_unpacked_file(file: Path) -> None:
    file.write_bytes(gzip.compress(GOOD))
    digest = hashlib.sha256(GOOD).hexdigest()
    assert read_idx(file, sha256=digest).shape == (2, 3, 4)
    for changed in (0, 5, len(GOOD) - 1):
        bad = bytearray(GOOD)
        bad[changed] ^= 1
        file.write_bytes(bad)
        with pytest.raises(ValueError, match=r"SHA-256|IDX|announces"):
            read_idx(file, sha256=digest)
    with pytest.raises(ValueError, match=f"expected {digest}"):
        read_idx(file, sha256=digest)


LIES = {
    "empty": (b"", "starts with b''"),
    "html": (b"<html>not here</html>", "starts with b'<htm'"),
    "magic": (b"\0\1" + GOOD[2:], "two zero bytes"),
    "little endian magic": (b"\3\x08\0\0" + GOOD[4:], "two zero bytes"),
    "short magic": (GOOD[:3], "not an IDX file"),
    "type 0": (header(0x00, 2) + b"ab", "type code 0x00; known are 0x08"),
    "type 10": (header(0x0A, 2) + b"ab", "type code 0x0a"),
    "type 255": (header(0xFF, 2) + b"ab", "type code 0xff"),
    "no dimension": (header(0x08) + b"a", "0 dimensions"),
    "33 dimensions": (header(0x08, *[1] * 33) + b"a", "33 dimensions"),
    "255 dimensions": (header(0x08, *[1] * 255) + b"a", "255 dimensions"),
    "header cut": (GOOD[:14], "ends within its header"),
    "size 0": (header(0x08, 3, 0), "every size must be at least 1"),
    "size 0 hides a product": (header(0x08, 0, 2**32 - 1, 2**32 - 1), "every size must be at least 1"),
    "product is 0 modulo 2^64": (header(0x08, 2**31, 2**31, 4), f"announces {2**64} bytes"),
    "product is 4 modulo 2^64": (header(0x08, 4194305, 4194305, 2**31) + b"abcd", "limit is 4294967296"),
    "32 huge dimensions": (header(0x0E, *[2**32 - 1] * 32), "limit is 4294967296"),
    "just over the limit": (header(0x0E, 2**29 + 1), "limit is 4294967296"),
    "4 GiB that are not there": (header(0x08, 2**16, 2**16) + b"abcd", "ends after 4"),
    "no data": (GOOD[:16], "announces 24 bytes of data, but the file ends after 0"),
    "data one short": (GOOD[:-1], "announces 24 bytes of data, but the file ends after 23"),
    "trailing byte": (GOOD + b"\0", "announces 24 bytes of data, but more follow"),
    "packed: 4 GiB that are not there": (gzip.compress(header(0x08, 2**16, 2**16)), "packed bytes announce 4294967296"),
    "packed: 4 MiB that are not there": (gzip.compress(header(0x08, 2**11, 2**11)), "ends after 0"),
    "packed: data one short": (gzip.compress(GOOD[:-1]), "ends after 23"),
    "packed: trailing byte": (gzip.compress(GOOD + b"\0"), "more follow"),
    "packed: second member": (gzip.compress(GOOD) + gzip.compress(b"more"), "more follow"),
    "packed: rubbish behind": (gzip.compress(GOOD) + b"rubbish", "damaged gzip data"),
    "packed: header cut": (gzip.compress(GOOD)[:6], "damaged gzip data"),
    "packed: cut": (gzip.compress(GOOD)[:-12], "damaged gzip data"),
    "packed: no trailer": (gzip.compress(GOOD)[:-8], "damaged gzip data"),
    "packed: CRC": (gzip.compress(GOOD)[:-8] + b"\0\0\0\0" + gzip.compress(GOOD)[-4:], "incorrect data check"),
    "packed: length": (gzip.compress(GOOD)[:-4] + b"\0\0\0\0", "damaged gzip data"),
    "packed: not deflate": (gzip.compress(GOOD)[:10] + b"\xff" * 30, "damaged gzip data"),
    "packed twice": (gzip.compress(gzip.compress(GOOD)), "not an IDX file"),
}


@pytest.mark.parametrize(("content", "message"), LIES.values(), ids=LIES)
def test_a_lie_is_refused_with_the_reason_and_the_file(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    with cheaply(), pytest.raises(ValueError, match=message) as caught:
        read_idx(file)
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize("start", [b"", header(0x08, 10), header(0x08, 60_000, 28, 28) + b"\1" * 1000])
def test_a_gzip_bomb_is_not_unpacked(file: Path, start: bytes) -> None:
    """1 GiB of zeros in 1 MB; the header, if there is one, bounds what is read."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    mebibyte = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    file.write_bytes(bomb + mebibyte * 1024)
    with cheaply(memory=100 << 20 if len(start) > 100 else 8 << 20), pytest.raises(ValueError, match=r"type code|more"):
        read_idx(file)


def test_a_missing_file_is_reported_as_such(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere-idx"):
        read_idx(tmp_path / "nowhere-idx")


def reads_exactly_what_is_there(file: Path, content: bytes) -> None:
    """Either `content` is refused with a ValueError, or the array is the content, no more and no less."""
    file.write_bytes(content)
    try:
        array = read_idx(file)
    except ValueError:
        return
    assert idx(array) == (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)


@settings(max_examples=300)
@given(
    lead=st.sampled_from([b"", b"\0\0", b"\0\0\x08\1", b"\0\0\x0d\2\0\0\0", b"\0\0\x08\3\0\0\0\1", b"\x1f\x8b\x08\0"]),
    rest=st.binary(max_size=64),
)
def test_fuzz_any_bytes(file: Path, lead: bytes, rest: bytes) -> None:
    reads_exactly_what_is_there(file, lead + rest)


@settings(max_examples=300)
@given(
    packed=st.booleans(),
    changes=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=3),
    length=st.integers(0, 70),
)
def test_fuzz_changed_files(file: Path, packed: bool, changes: list[tuple[int, int]], length: int) -> None:
    content = bytearray(gzip.compress(GOOD, mtime=0) if packed else GOOD)
    for place, value in changes:
        content[place % len(content)] = value
    reads_exactly_what_is_there(file, bytes(content[: max(length, 1)]))
