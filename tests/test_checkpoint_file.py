"""The checkpoint file: what is saved comes back, other programs read it, and some things are not saved."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from mlp_xp.files import tensors
from mlp_xp.files.tensors import CheckpointError, Contents, load, save, serialized_size

GOLDEN_FILE = Path(__file__).parent / "golden" / "checkpoint_v1.safetensors"
# Written once, by format version 1: save(GOLDEN_FILE, GOLDEN_ARRAYS, GOLDEN_METADATA)
GOLDEN_ARRAYS = {
    "theta": np.arange(-6, 6, dtype=np.float32).reshape(3, 4) / 8,
    "optimizer.m": np.array([1e-300, -0.0, 1.5]),
    "half": np.array([0.1, 65504], dtype=np.float16),
    "step": np.array(7, dtype=np.int64),
    "labels": np.array([[0, 255]], dtype=np.uint8),
    "history.loss": np.zeros((0, 2)),
}
GOLDEN_METADATA = {"name": "é", "sizes": [784, 10], "lr": 0.1, "resumed": None, "rng": {"state": {"inc": 2**127}}}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype.newbyteorder("=")), name
        assert found[name].tobytes() == array.astype(array.dtype.newbyteorder("=")).tobytes(), name


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoint") / "file.safetensors"


# What is saved comes back.


def test_golden_file_of_version_1_loads_for_ever() -> None:
    arrays, metadata = load(GOLDEN_FILE)
    assert_same(arrays, GOLDEN_ARRAYS)
    assert metadata == GOLDEN_METADATA


def test_version_1_writes_the_golden_bytes(path: Path) -> None:
    save(path, GOLDEN_ARRAYS, GOLDEN_METADATA)
    assert path.read_bytes() == GOLDEN_FILE.read_bytes()


@pytest.mark.needs("torch")
def test_torch_reads_the_golden_file() -> None:
    import safetensors.torch

    assert_same(
        {name: tensor.numpy() for name, tensor in safetensors.torch.load_file(GOLDEN_FILE).items()}, GOLDEN_ARRAYS
    )


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON = LEAVES | st.dictionaries(st.text(), LEAVES | st.lists(st.lists(LEAVES, max_size=2), max_size=2), max_size=2)
FLOATS = hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64))
INTEGERS = hnp.integer_dtypes(endianness="?") | hnp.unsigned_integer_dtypes(endianness="?")
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
FINITE = {"allow_nan": False, "allow_infinity": False}
ARRAYS = hnp.arrays(FLOATS, SHAPES, elements=FINITE) | hnp.arrays(INTEGERS, SHAPES)
NAMES = st.from_regex(r"\A[a-z0-9][a-z_]{0,5}(\.[a-z_]{1,3})?\Z")


@settings(max_examples=60)
@given(arrays=st.dictionaries(NAMES, ARRAYS, max_size=4), metadata=st.dictionaries(st.text(), JSON, max_size=3))
def test_round_trip_and_safetensors_agree(path: Path, arrays: dict[str, Any], metadata: dict[str, Any]) -> None:
    save(path, arrays, metadata)
    found, found_metadata = load(path)
    assert_same(found, arrays)
    assert found_metadata == metadata
    assert_same(safetensors.numpy.load_file(path), arrays)
    with safetensors.safe_open(path, "numpy") as file:
        assert json.loads(file.metadata()["mlp_xp"]) == metadata


def test_arrays_are_fresh_aligned_native_and_writable(path: Path) -> None:
    save(path, GOLDEN_ARRAYS | {"big_endian": np.arange(3, dtype=">f8")}, {})
    arrays, _ = load(path)
    for array in arrays.values():
        assert array.flags.writeable
        assert array.flags.aligned
        assert array.flags.c_contiguous
        assert array.dtype.isnative
    arrays["theta"][:] = 0
    assert load(path)[0]["theta"].any()


def test_strided_input_is_stored_as_it_reads(path: Path) -> None:
    W = np.arange(24, dtype=np.float32).reshape(4, 6)
    W.flags.writeable = False
    save(path, {"fortran": W.T, "reversed": W[::-1, ::2]}, {})
    arrays, _ = load(path)
    assert np.array_equal(arrays["fortran"], W.T)
    assert np.array_equal(arrays["reversed"], W[::-1, ::2])


@pytest.mark.parametrize("length", [0x280, 0x4B50], ids=["begins as a pickle", "begins as a zip"])
def test_a_header_length_that_reads_as_magic_number(path: Path, length: int) -> None:
    save(path, {}, {"padding": ""})
    shortest = len(path.read_bytes().rstrip()) - 8
    save(path, {}, {"padding": " " * (length - shortest)})
    assert path.stat().st_size == 8 + length
    assert load(path)[1]["padding"].isspace()


def test_memory_is_the_arrays_once(path: Path) -> None:
    theta = np.ones(2**22, dtype=np.float32)
    tracemalloc.start()
    try:
        save(path, {"theta": theta}, {})
        peak_of_save = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        load(path)
        peak_of_load = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_of_save < theta.nbytes / 2  # the flags of isfinite, the blocks read back
    assert peak_of_load < theta.nbytes * 1.25


# What a caller knows about a file is compared before it costs anything.


def test_a_caller_sees_the_header_before_anything_is_allocated(path: Path) -> None:
    save(path, GOLDEN_ARRAYS, GOLDEN_METADATA)
    seen: list[Contents] = []
    load(path, expect=seen.append)
    (contents,) = seen
    assert contents.metadata == GOLDEN_METADATA
    assert contents.shapes == {name: array.shape for name, array in GOLDEN_ARRAYS.items()}
    assert contents.dtypes == {name: array.dtype for name, array in GOLDEN_ARRAYS.items()}


@pytest.mark.skipif(os.name != "posix", reason="Windows would write a terabyte")
def test_a_sparse_file_that_is_not_expected_costs_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(path, {"theta": np.zeros(8)}, {"sizes": [1, 1]})
    entry, huge = b'"shape":[8],"data_offsets":[0,64]', b'"shape":[%d],"data_offsets":[0,%d]' % (2**37, 2**40)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip().replace(entry, huge)
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + 2**40)

    def expect(contents: Contents) -> None:
        assert contents.dtypes["theta"] == np.float64
        raise CheckpointError(f"theta has {contents.shapes['theta'][0]} values and should have 2")

    began = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=rf"not loaded: theta has {2**37} values and should have 2"):
            load(path, expect)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
        path.unlink()
    assert time.process_time() - began < 1


def test_no_array_is_made_before_the_digest_is_right(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theta = np.zeros(2_000_000)
    save(path, {"theta": theta}, {})
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="does not match its sha256"):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < theta.nbytes / 4
    finally:
        tracemalloc.stop()


# A file that changes while it is read.


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Do something before or after the library opens the file, the first `times` times it does."""

    def arrange(change: Callable[[], object], after: bool = False, times: int = 1) -> None:
        left = iter(range(times))

        def opening(*arguments: Any, **options: Any) -> Any:
            if not after and next(left, None) is not None:
                change()
            opened = safetensors.safe_open(*arguments, **options)
            if after and next(left, None) is not None:
                change()
            return opened

        monkeypatch.setattr("mlp_xp.files.tensors.safe_open", opening)

    return arrange


@pytest.mark.skipif(os.name != "posix", reason="Windows does not replace a file that is open")
@pytest.mark.parametrize("after", [False, True])
def test_a_file_that_is_replaced_meanwhile_is_read_anew(
    path: Path, meanwhile: Callable[..., None], after: bool
) -> None:
    save(path, {"theta": np.zeros(3)}, {"k": 1})
    meanwhile(lambda: save(path, {"theta": np.ones(4)}, {"k": 2}), after)
    arrays, metadata = load(path)
    assert metadata == {"k": 2}
    assert_same(arrays, {"theta": np.ones(4)})


@pytest.mark.skipif(os.name != "posix", reason="Windows does not replace a file that is open")
def test_a_file_that_is_replaced_for_ever_is_given_up(path: Path, meanwhile: Callable[..., None]) -> None:
    save(path, {"theta": np.zeros(3)}, {"k": 1})
    meanwhile(lambda: save(path, {"theta": np.zeros(3)}, {"k": 1}), times=100)
    with pytest.raises(CheckpointError, match="replaced again and again"):
        load(path)


def test_a_file_that_is_truncated_meanwhile_is_refused(path: Path, meanwhile: Callable[..., None]) -> None:
    save(path, {"theta": np.zeros(100_000)}, {})
    meanwhile(lambda: os.truncate(path, 4096), after=True)
    with pytest.raises(CheckpointError, match="does not match its sha256"):
        load(path)


def test_a_file_that_is_truncated_after_its_digest_was_checked_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(path, {"theta": np.zeros(100_000)}, {})
    check = tensors._check_digest

    def check_then_truncate(*arguments: Any) -> None:
        check(*arguments)
        os.truncate(path, 4096)

    monkeypatch.setattr(tensors, "_check_digest", check_then_truncate)
    with pytest.raises(CheckpointError, match="do not fit together"):  # and no signal kills the process
        load(path)


def test_a_file_that_is_written_to_after_its_digest_was_checked_is_read_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(path, {"theta": np.zeros(100_000)}, {})
    check = tensors._check_digest

    def check_then_write(*arguments: Any) -> None:
        check(*arguments)
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"!")
        os.utime(path, ns=(0, 0))  # another time for certain

    monkeypatch.setattr(tensors, "_check_digest", check_then_write)
    with pytest.raises(CheckpointError, match="does not match its sha256"):
        load(path)


# What must not become a file.


@pytest.mark.parametrize(
    ("arrays", "metadata", "words"),
    [
        ({"theta": np.array([1, np.nan])}, {}, "'theta' has values that are NaN or infinite"),
        ({"theta": np.array([np.inf], np.float16)}, {}, "NaN or infinite"),
        ({"a": np.array([None])}, {}, "dtype object; use floats"),
        ({"a": np.array([1j])}, {}, "dtype complex128"),
        ({"a": np.array(["x"])}, {}, "dtype <U1"),
        ({"a": np.zeros(2, "f4,i4")}, {}, "'a' has dtype"),
        ({"a": [1, 2]}, {}, "'a' names a list"),
        ({3: np.zeros(2)}, {}, "3 names a ndarray"),
        ({"../a": np.zeros(2)}, {}, "name '../a'"),
        ({"__metadata__": np.zeros(2)}, {}, "name '__metadata__'"),
        ({"a" * 129: np.zeros(2)}, {}, "name 'aaa"),
        ({"a": np.zeros((1,) * 9)}, {}, "'a' has shape"),
        ({f"a{i}": np.zeros(0) for i in range(2049)}, {}, "2049 tensors, and 2048 are the most"),
        ({}, {"lr": float("nan")}, "metadata is not JSON"),
        ({}, {"lr": np.float32(1)}, "float32 is not JSON serializable"),
        ({}, {"a": [[[[]]]]}, "deeper than 4"),
        ({}, {1: 0, "1": 0}, "'1' is there twice"),
        ({}, {"history": "x" * 2**18}, "move long records into arrays"),
    ],
)
def test_save_refuses_and_keeps_the_old_file(
    path: Path, arrays: dict[str, Any], metadata: dict[str, Any], words: str
) -> None:
    save(path, GOLDEN_ARRAYS, GOLDEN_METADATA)
    with pytest.raises(CheckpointError) as caught:
        save(path, arrays, metadata)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == GOLDEN_FILE.read_bytes()
    with pytest.raises(CheckpointError) as found_out:  # and so it is without a file
        serialized_size(arrays, metadata)
    assert str(found_out.value) in str(caught.value)


@settings(max_examples=30)
@given(arrays=st.dictionaries(NAMES, ARRAYS, max_size=4), metadata=st.dictionaries(st.text(), JSON, max_size=3))
def test_the_size_is_known_before_it_is_saved(path: Path, arrays: dict[str, Any], metadata: dict[str, Any]) -> None:
    save(path, arrays, metadata)
    assert serialized_size(arrays, metadata) == path.stat().st_size
