"""The checkpoint file: what is saved comes back, other programs read it, and some things are not saved."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from mlp_xp.files.tensors import CheckpointError, load, save

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


@settings(max_examples=60, deadline=None)
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
