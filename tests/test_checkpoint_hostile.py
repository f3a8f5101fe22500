"""What no reader of checkpoints should believe: lies, foreign files, damage, and whatever a fuzzer thinks of."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from mlp_xp.files.tensors import CheckpointError, load, save

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs what only POSIX systems have")
GOLDEN = (Path(__file__).parent / "golden" / "checkpoint_v1.safetensors").read_bytes()
BEFORE_DIGITS = 8 + len('{"__metadata__":{"format":"1","sha256":"')
DIGITS = slice(BEFORE_DIGITS, BEFORE_DIGITS + 64)
LESS_THAN = 16 * 2**20  # bytes of memory that a bad file may cost


def seal(header: bytes, data: bytes = b"") -> bytes:
    """Return a file with this header and the digest that it should have."""
    return reseal(len(header).to_bytes(8, "little") + header + data)


def reseal(file: bytes) -> bytes:
    file = file[: DIGITS.start] + b"0" * 64 + file[DIGITS.stop :]
    return file.replace(b"0" * 64, hashlib.sha256(file).hexdigest().encode(), 1)


def forge(entries: str = "", data: bytes = b"", metadata: str = '"{}"') -> bytes:
    own = '{"format":"1","sha256":"' + "0" * 64 + '","mlp_xp":' + metadata + "}"
    return seal(('{"__metadata__":' + own + entries + "}").encode(), data)


def tensor(name: str = "a", dtype: str = '"U8"', shape: str = "[4]", offsets: str = "[0,4]", more: str = "") -> str:
    return f',"{name}":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{more}}}'


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoint") / "file.safetensors"


# Lies.


def assert_refused(path: Path, words: str) -> None:
    """The file at `path` is refused with its name and these words, fast and in little memory."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500
    started = time.process_time()
    with pytest.raises(CheckpointError):
        load(path)
    assert time.process_time() - started < 0.5
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < LESS_THAN
    finally:
        tracemalloc.stop()


UNFIT = "header and its data do not fit together"
MANY = "".join(f',"{i:x}":0' for i in range(22_000))
LIES = {
    "shape product wraps to 4 in 64 bits": (tensor(shape="[4194305,4194305,211106198978564]"), "'a' has shape"),
    "shape with a hidden overflow": (tensor(shape="[0,4611686018427387904,4]", offsets="[0,0]"), "'a' has shape"),
    "negative dimensions": (tensor(shape="[-2,-2]"), "'a' has shape [-2, -2]"),
    "fractional dimension": (tensor(shape="[4.0]"), "'a' has shape [4.0]"),
    "boolean dimension": (tensor(shape="[true,4]"), "'a' has shape [True, 4]"),
    "shape is a number": (tensor(shape="4"), "'a' has shape 4"),
    "nine dimensions": (tensor(shape="[4,1,1,1,1,1,1,1,1]"), "'a' has shape"),
    "huge dimension": (tensor(shape=f"[{'9' * 4000}]"), "'a' has shape"),
    "size is not shape times dtype": (tensor(dtype='"F32"'), UNFIT),
    "offsets beyond the file": (tensor(shape="[8]", offsets="[0,8]"), UNFIT),
    "offsets short of the file": (tensor(shape="[3]", offsets="[0,3]"), UNFIT),
    "data without tensors": ("", UNFIT),
    "hole before the first": (tensor(shape="[3]", offsets="[1,4]"), UNFIT),
    "overlap": (tensor() + tensor("b"), UNFIT),
    "negative offset": (tensor(offsets="[-4,0]"), UNFIT),
    "reversed offsets": (tensor(offsets="[4,0]"), UNFIT),
    "boolean offset": (tensor(offsets="[false,4]"), UNFIT),
    "huge offset": (tensor(offsets=f"[0,{'9' * 4000}]"), UNFIT),
    "three offsets": (tensor(offsets="[0,4,8]"), UNFIT),
    "dtype unknown": (tensor(dtype='"F8_E4M3"'), "dtype 'F8_E4M3'; allowed are F64"),
    "dtype is a list": (tensor(dtype="[]"), "dtype []"),
    "entry with a fourth field": (tensor(more=',"code":"x"'), "must have dtype, shape, data_offsets"),
    "entry is a list": (',"a":[]', "'a' is []"),
    "name climbs": (tensor("../a"), "name '../a'"),
    "name with NUL": (tensor("a\\u0000"), r"name 'a\x00'"),
    "name with a newline at its end": (tensor("a\\n"), r"name 'a\n'"),
    "name is empty": (tensor(""), "name ''"),
    "name is not ASCII": (tensor("aé"), "name 'aé'"),
    "name too long": (tensor("a" * 200_000), "name 'aaa"),
    "same name twice": (tensor() + tensor(), "'a' is there twice"),
    "same field twice": (tensor(more=',"shape":[4]'), "'shape' is there twice"),
    "__metadata__ twice": (',"__metadata__":{}', "'__metadata__' is there twice"),
    "NaN": (tensor(offsets="[0,NaN]"), "'NaN' is not a finite number"),
    "Infinity": (tensor(offsets="[0,-Infinity]"), "'-Infinity' is not a finite number"),
    "1e999": (tensor(offsets="[0,1e999]"), "'1e999' is not a finite number"),
    "number of 100,000 digits": (tensor(offsets=f"[0,{'9' * 100_000}]"), "header is not strict JSON"),
    "deep nesting": (',"a":' + "[" * 100_000, "header is nested deeper than 4"),
    "brackets in strings do not close": (',"a":["]]]]\\"]",[[[[', "header is nested deeper than 4"),
    "unclosed strings": (',"a":"' + '\\"' * 100_000, "header is not strict JSON"),
    "22,000 entries": (MANY, "22000 tensors, and 2048 are the most"),
    "250 kB of empty lists": (',"a":[' + "[]," * 83_000 + "[]]", "'a' is [[], []"),
    "two values": ("} {", "header is not strict JSON"),
    "control character": (tensor("a\n"), "header is not strict JSON"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lie_in_the_header(path: Path, lie: str) -> None:
    entries, words = LIES[lie]
    path.write_bytes(forge(entries, b"data"))
    assert_refused(path, words)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ("{}", "does not go on with"),
        (r'"{\"lr\":NaN}"', "metadata is not strict JSON: 'NaN'"),
        (r'"{\"lr\":1e999}"', "metadata is not strict JSON: '1e999'"),
        (r'"{\"a\":1,\"a\":2}"', "metadata is not strict JSON: the key 'a'"),
        (r'"{\"a\":[[[[]]]]}"', "metadata is nested deeper than 4"),
        ('"[]"', "metadata is [], and must be a JSON object"),
        ('"{}","sha256":"0"', "'sha256' is there twice"),
        ('"{}","pickle":"x"', "'__metadata__' has"),
    ],
)
def test_lie_in_the_metadata(path: Path, metadata: str, words: str) -> None:
    path.write_bytes(forge(metadata=metadata))
    assert_refused(path, words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it has 0 bytes"),
        (b"1234567", "it has 7 bytes"),
        (bytes(8), "does not begin with the 'format'"),
        ((2**63).to_bytes(8, "little") + b"{}", "header length is 9223372036854775808"),
        ((3).to_bytes(8, "little") + b"{}", "header length is 3, and 2 is the most"),
        ((2**18 + 8).to_bytes(8, "little") + b" " * 2**19, "262144 is the most"),
        (seal(b"[]" + b" " * 200), "does not begin with the 'format'"),
        (seal(b'\xef\xbb\xbf{"__metadata__":{}}'), "does not begin with the 'format'"),
        (forge().replace(b'"sha256":"', b'"sha256":"X', 1), "does not go on with"),
        (forge().replace(b'"format":"1"', b'"format":"2"'), "format version 2, and this mlp_xp reads 1"),
        (forge().replace(b'"format":"1"', b'"format":"0"'), "format version 0, and this mlp_xp reads 1"),
        (seal(forge()[8:-1] + b',"\xff":0}'), "header is not UTF-8"),
        (forge()[:-1] + b" ", "header is not strict JSON"),
        (safetensors.numpy.save({"a": np.zeros(2)}, {"format": "pt"}), "another program wrote it"),
    ],
)
def test_lie_at_the_beginning(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    assert_refused(path, words)


@POSIX  # Windows would write it
def test_a_file_of_a_terabyte_costs_nothing(path: Path) -> None:
    path.write_bytes(forge())
    os.truncate(path, 2**40)
    assert_refused(path, UNFIT)
    path.unlink()


@POSIX
def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="a folder, where a file is needed"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for path in tmp_path / "pipe", Path(os.devnull):
        with pytest.raises(OSError, match=f"a FIFO or a device.*{path.name}"):
            load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing")


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["pickle 0", "pickle 2", "pickle 4", "pickle 5", "npy", "npz", "zip bomb", "gzip"])
def test_what_can_run_code_or_explode_is_not_opened(tmp_path: Path, kind: str) -> None:
    path, canary = tmp_path / "file", tmp_path / "canary"
    objects = np.array([Canary(canary)], dtype=object)
    words = "header length"
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps(Canary(canary), protocol=int(kind[-1])))
        words = words if kind == "pickle 0" else "looks like a pickle"
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, objects, allow_pickle=True)
        words = "looks like a .npy"
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, a=objects)
        words = "looks like a zip"
    elif kind == "gzip":
        path.write_bytes(gzip.compress(bytes(2**24)))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.npy", bytes(2**26))
        words = "looks like a zip"
    assert_refused(path, words)
    assert not canary.exists()


# Damage.


def test_truncation_at_every_offset(path: Path) -> None:
    path.write_bytes(GOLDEN)
    for size in reversed(range(len(GOLDEN))):
        os.truncate(path, size)
        with pytest.raises(CheckpointError):
            load(path)


def test_something_appended(path: Path) -> None:
    path.write_bytes(GOLDEN + b"\0")
    assert_refused(path, UNFIT)


def test_every_bit_of_the_header_and_500_of_the_data(path: Path) -> None:
    save(path, {"theta": np.random.default_rng(0).random(500)}, {"epoch": 3})
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    bits = [*range(8 * begin), *np.random.default_rng(1).choice(range(8 * begin, 8 * len(whole)), 500, replace=False)]
    with path.open("r+b", buffering=0) as file:
        for byte, bit in (divmod(int(position), 8) for position in bits):
            file.seek(byte)
            file.write(bytes([whole[byte] ^ 1 << bit]))
            with pytest.raises(CheckpointError):
                load(path)
            file.seek(byte)
            file.write(whole[byte : byte + 1])
    load(path)


# Anything else: a file loads or is refused, whatever is in it.


def loads_or_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        arrays, _ = load(path)
    except CheckpointError:
        return
    assert sum(array.nbytes for array in arrays.values()) < len(content)


@settings(max_examples=200)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(GOLDEN) - 1), st.binary(max_size=3)), max_size=4),
    end=st.none() | st.integers(DIGITS.stop, len(GOLDEN)),
)
def test_fuzz_edits_under_a_right_digest(path: Path, edits: list[tuple[int, bytes]], end: int | None) -> None:
    content = bytearray(GOLDEN[:end])
    for position, new in edits:
        content[position : position + len(new)] = new
    loads_or_is_refused(path, reseal(bytes(content)))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**65) | st.floats() | st.sampled_from(["U8", "F64", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dtype", "shape", "a"]), inner),
    max_leaves=5,
)
ENTRY = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["U8", "F16"]) | VALUES, "shape": st.lists(st.integers(0, 3), max_size=3) | VALUES}
    | {"data_offsets": st.lists(st.integers(0, 9), min_size=2, max_size=2) | VALUES}
)


@settings(max_examples=200)
@given(entries=st.dictionaries(st.just("a") | st.text(), ENTRY | VALUES, max_size=3), data=st.binary(max_size=9))
def test_fuzz_entries(path: Path, entries: dict[str, Any], data: bytes) -> None:
    loads_or_is_refused(path, forge("".join(f",{json.dumps(n)}:{json.dumps(e)}" for n, e in entries.items()), data))


@settings(max_examples=200)
@given(content=st.binary() | st.text().map(lambda text: forge(text.encode(errors="replace").decode())))
def test_fuzz_bytes(path: Path, content: bytes) -> None:
    loads_or_is_refused(path, content)
