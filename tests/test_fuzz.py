"""Readers of files under a fuzzer: exactly the data that are in the file, or a ValueError, in little memory.

``test_idx.py``, ``test_datasets.py`` and ``test_checkpoint_hostile.py`` have more of it, for IDX, .npz and safetensors.
"""

from __future__ import annotations

import io
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.testing import assert_array_equal

import mlp_xp as mx
from mlp_xp.datasets.limits import Limits
from mlp_xp.datasets.npz import read_npz
from mlp_xp.datasets.pictures import JPEG, PNG, read_picture
from mlp_xp.datasets.records import make_datasets
from mlp_xp.datasets.tables import read_csv
from mlp_xp.files import tensors as tensor_file

LESS_THAN = 20 * 2**20  # bytes of memory at the peak
fuzz = settings(
    max_examples=150,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def read(tmp_path):
    """Write a file and read it: f(reader, content) -> what was read, or None where it was refused."""
    path = tmp_path / "file"

    def write_and_read(reader, content):
        path.write_bytes(content)
        tracemalloc.start()
        try:
            return reader(path)
        except ValueError:
            return None
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < LESS_THAN

    return write_and_read


def npz(path):
    return make_datasets(read_npz(path, Limits()))


def csv(path):
    return make_datasets([read_csv(path, Limits())])[0]


# Bytes without a plan.


@fuzz
@given(
    lead=st.sampled_from([b"", JPEG, JPEG + b"\xe0\0\4\0\0", PNG + b"\0\0\0\rIHDR", b"PK\3\4", b"PK\5\6", b"a,y\n"]),
    rest=st.binary(max_size=99),
)
def test_any_bytes(read, lead, rest):
    assert read(npz, lead + rest) is None
    assert read(lambda path: read_picture(path, 28), lead + rest) is None
    assert read(mx.MLP.load, lead + rest) is None
    data = read(csv, lead + rest)
    assert data is None or len(data.X) == len(data.y) > 0


# .csv: cells of every kind, with an oracle that knows no more than float().

ODD = [
    "0.5", "-1", "+1", "1e3", "255", "65535", "65536", "3e38", "1e39", "1e-50", "1e999", "nan", "inf", "1_0", "0x1",
    "1d2", "1j", "'1'", '"1"', "#", "٣", "x", "label", "", " ", " 7 ", "\0", "\x0b", "\x1c", "\x85", "\u2028", "\ufeff",
]  # fmt: skip
CELLS = st.sampled_from([*map(str, range(10))] * 9 + ODD)
ROWS = st.integers(1, 3).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), min_size=1, max_size=4))


@fuzz
@given(rows=ROWS, header=st.sampled_from(["", "label,b\n", "a,y\r\n", "a,b,class\n"]))
@example(rows=[["1", "1e39"], ["0", "0"]], header="")
@example(rows=[["1", "2"], ["0", "3"], ["1"]], header="a,y\r\n")
@example(rows=[["0", "1"], ["0", "3"]], header="")
def test_csv(read, rows, header):
    lines = [",".join(row) for row in rows]
    data = read(csv, (header + "\n".join(lines)).encode())
    if data is not None:
        if not header and rows[0] == ["0", "1", "2"][: len(rows[0])] and len(rows[0]) > 1:
            lines = lines[1:]  # the numbers of the columns
        table = np.array([[float(cell) for cell in line.split(",")] for line in lines if line.strip()])
        label = {"": 0, "label,b\n": 0}.get(header, table.shape[1] - 1)
        assert_array_equal(data.y, table[:, label])
        assert_array_equal(data.X, np.delete(table, label, axis=1).astype(np.float32))


# .npz: arrays of every type and shape, and headers changed inside a zip that is right.

TYPES = (
    npst.integer_dtypes() | npst.unsigned_integer_dtypes() | npst.floating_dtypes(endianness="?", sizes=(16, 32, 64))
)


def archive(X, y, edits=()):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name, array in (("X.npy", X), ("y.npy", y)):
            content = io.BytesIO()
            np.save(content, array)
            content = bytearray(content.getvalue())
            for place, new in edits:
                content[place : place + len(new)] = new
            file.writestr(name, bytes(content))
    return packed.getvalue()


@fuzz
@given(
    X=npst.arrays(TYPES, st.just((3, 2)) | npst.array_shapes(min_dims=0, min_side=0, max_side=3)),
    y=npst.arrays(TYPES, st.sampled_from([3, (3, 1)]), elements=None, fill=st.just(0)),
)
@example(X=np.zeros((3, 2)), y=np.array([0, 1, np.inf], np.float16))
@example(X=np.array([[0], [1], [2**64 - 1]], np.uint64), y=np.array([0, 1, 2**64 - 1], np.uint64))
def test_npz_of_any_arrays(read, X, y):
    data = read(npz, archive(X, y))
    if data is not None:
        assert_array_equal(data[0].X, X.reshape(len(X), -1).astype(data[0].X.dtype))
        assert_array_equal(data[0].y, y.reshape(-1))
        assert data[0].y.max() <= 65_535


def test_npz_of_good_arrays_is_read(read):
    """So that the test above does not pass because everything is refused."""
    for dtype in ("u1", "<i2", ">i4", "<u8", "<f2", ">f4", "<f8"):
        X, y = np.arange(6, dtype=dtype).reshape(3, 2), np.arange(3, dtype=dtype)
        assert_array_equal(read(npz, archive(X, y))[0].X, X)


@fuzz
@given(edits=st.lists(st.tuples(st.integers(0, 127), st.binary(min_size=1, max_size=3)), min_size=1, max_size=3))
@example(edits=[(60, b"(99999999, 2)")])
@example(edits=[(60, b"(0, 99999999)")])
def test_npz_with_other_headers(read, edits):
    """What is read is what NumPy reads."""
    content = archive(np.zeros((3, 2), np.uint8), np.zeros(3, np.uint8), edits)
    data = read(npz, content)
    if data is not None:
        with np.load(io.BytesIO(content)) as file:
            assert_array_equal(data[0].X, file["X"].reshape(3, 2))
            assert_array_equal(data[0].y, file["y"])


# PNG: chunks with right sums, in wrong places, with anything in them.


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


CHUNKS = st.tuples(
    st.sampled_from(
        [b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"gAMA", b"iCCP", b"acTL", b"fcTL", b"fdAT", b"iTXt", b"eXIf"]
    ),
    st.binary(max_size=30),
)
SIZES = st.sampled_from([28] * 9 + [30] * 9 + [0, 27, 4096, 4097, 2**31, 2**32 - 1])


@fuzz
@given(
    sizes=st.tuples(SIZES, SIZES),
    mode=st.tuples(*[st.sampled_from(values) for values in ([8, 1, 2, 4, 16, 3], [0, 2, 3, 4, 6, 1], [0, 1])]),
    interlace=st.sampled_from([0, 1, 2]),
    chunks=st.lists(CHUNKS, max_size=2),
    pixels=st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).bytes(4000)),
)
def test_png(read, sizes, mode, interlace, chunks, pixels):
    header = b"".join(size.to_bytes(4, "big") for size in sizes) + bytes([mode[0], mode[1], 0, mode[2], interlace])
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    image = read(lambda path: read_picture(path, 28), PNG + b"".join(chunk(*part) for part in parts))
    assert image is None or (image.shape == (784,) and image.dtype == np.uint8)


# A model: any configuration beside sound tensors.

CONFIG = mx.MLP([2, 3, 2], "tanh").config
SCALARS = st.sampled_from([None, True, -1, 0, 2, 3, 2.0, 10**9, "softmax", "sigmoid", "float64", "zeros", "x"])
VALUES = SCALARS | st.lists(SCALARS | st.lists(SCALARS, max_size=1), max_size=3) | st.fixed_dictionaries({"a": SCALARS})
KEYS = st.sampled_from([*CONFIG, "device", "self", "more"])


@fuzz
@given(
    changes=st.dictionaries(KEYS, VALUES, max_size=2),
    shape=st.sampled_from([(3, 2), (3, 2), (2, 3), (3,), (), (0, 2)]),
    value=st.sampled_from([1.0, 1e300]),
    dtype=st.sampled_from(["float32", "float64", "int8"]),
    odd=st.sampled_from([None, "layers.0.weight", "layers.0.bias", "layers.1.bias"]),
)
@example(changes={"sizes": [10**9, 10**9, 2]}, shape=(3, 2), value=1.0, dtype="float32", odd=None)
@example(changes={"sizes": [0, 2**40, 2]}, shape=(2**40, 0), value=1.0, dtype="float32", odd="layers.0.weight")
@example(changes={}, shape=(3,), value=1e300, dtype="float64", odd="layers.0.bias")
def test_model(tmp_path, read, changes, shape, value, dtype, odd):
    model = mx.MLP([2, 3, 2], "tanh")
    tensors = {}
    for i, (W, b) in enumerate(zip(model.weights, model.biases, strict=True)):
        tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"] = W, b
    if odd:
        tensors[odd] = np.full(shape, value if dtype == "float64" else 1, dtype)
    tensor_file.save(tmp_path / "sound", tensors, {"kind": "model", "model": CONFIG | changes})
    again = read(mx.MLP.load, (tmp_path / "sound").read_bytes())
    if again is not None:
        assert again.sizes == (2, 3, 2)
        for i, (W, b) in enumerate(zip(again.weights, again.biases, strict=True)):
            assert_array_equal(W, tensors[f"layers.{i}.weight"])
            assert_array_equal(b, tensors[f"layers.{i}.bias"])
