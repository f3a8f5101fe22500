"""HDF5 files and Zarr folders as data sets."""

from __future__ import annotations

import gc
import json
import shutil
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import mlp_xp as mx
from mlp_xp import predict, train
from mlp_xp.datasets.maps import Span

from .libraries import Later
from .test_npy import PARTS, draw

h5py, zarr = Later("h5py"), Later("zarr")
KINDS = [pytest.param(kind, marks=pytest.mark.needs({"h5": "h5py"}.get(kind, kind))) for kind in ("h5", "zarr")]
pytestmark = pytest.mark.usefixtures("zarr_threads")


def save(path, zarr_format=3, chunks=30, **arrays):
    """Write arrays in chunks of so many rows."""
    if path.suffix == ".zarr":
        group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
        for name, X in arrays.items():
            array = group.create_array(name, shape=X.shape, dtype=X.dtype, chunks=(chunks, *X.shape[1:]))
            array[:] = X
    else:
        with h5py.File(path, "w") as file:
            for name, X in arrays.items():
                file.create_dataset(name, data=X, chunks=(min(chunks, len(X)), *X.shape[1:]), compression="gzip")
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", ">f4", "int64"])
def test_it_is_read_like_an_npz(tmp_path, monkeypatch, kind, large, dtype):
    if large:
        monkeypatch.setattr("mlp_xp.datasets.maps.MAPPED", 0)
    (X, y), (X_test, y_test) = draw(90, dtype), draw(20, dtype, 1)
    arrays = dict(zip(PARTS, (X.reshape(-1, 2, 4), y, X_test.reshape(-1, 2, 4), y_test), strict=True))
    np.savez(tmp_path / "data.npz", **arrays)
    for found, expected in zip(
        mx.datasets.load(save(tmp_path / f"data.{kind}", **arrays)),
        mx.datasets.load(tmp_path / "data.npz"),
        strict=True,
    ):
        if dtype in ("uint8", "float32", "float64"):
            assert isinstance(found.X, Span if large else np.ndarray)
        assert (found.X.dtype, found.X.dtype.isnative) == (expected.X.dtype, True)
        assert_array_equal(found.X, expected.X)
        assert_array_equal(found.y, expected.y)


@pytest.mark.needs("zarr")
def test_the_older_format_of_zarr_is_read(tmp_path):
    X, y = draw()
    train_set, _ = mx.datasets.load(save(tmp_path / "a.zarr", 2, x_train=X, y_train=y, x_test=X, y_test=y))
    assert_array_equal(train_set.X, X)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_number_is_found_where_it_is(tmp_path, monkeypatch, kind, value):
    monkeypatch.setattr("mlp_xp.datasets.maps.MAPPED", 0)
    X, y = draw(dtype="float32")
    X[77, 3] = value
    path = save(tmp_path / f"data.{kind}", X=X, y=y)
    with pytest.raises(ValueError, match=r"row 77, column 3 of the samples \(counted from 0\) is (nan|inf)"):
        mx.datasets.load(path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_make_data_is_refused(tmp_path, monkeypatch, kind):
    X, y = draw()
    for i, (arrays, problem) in enumerate(
        (
            ({"X": X}, r"there are \['x'\]"),
            ({"X": X, "x": X, "y": y}, "both name x"),
            ({"X": X.astype(bool), "y": y}, "X: not an array of integers or floats, but of bool"),
            ({"X": X, "y": y[:-1]}, "90 samples but 89 labels"),
        )
    ):
        with pytest.raises(ValueError, match=problem):
            mx.datasets.load(save(tmp_path / f"{i}.{kind}", **arrays))
    monkeypatch.setattr("mlp_xp.datasets.chunked.MAPPED", 239)
    with pytest.raises(ValueError, match="chunks of 240 bytes"):
        mx.datasets.load(save(tmp_path / f"data.{kind}", X=X, y=y))


@pytest.mark.needs("h5py")
def test_hdf5_reads_no_other_file(tmp_path):
    X, y = draw()
    other = save(tmp_path / "other.h5", X=X, y=y)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["y"] = y
        file["X"] = h5py.ExternalLink(str(other), "X")
    with pytest.raises(ValueError, match=r"there are \['y'\]"):
        mx.datasets.load(tmp_path / "link.h5")
    layout = h5py.VirtualLayout(X.shape, X.dtype)
    layout[:] = h5py.VirtualSource(str(other), "X", X.shape)
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file["y"] = y
        file.create_virtual_dataset("X", layout)
    with pytest.raises(ValueError, match="the data of X are in other files"):
        mx.datasets.load(tmp_path / "virtual.h5")


@pytest.mark.needs("zarr")
def test_zarr_runs_no_codec_that_is_not_known(tmp_path):
    X, y = draw()
    path = save(tmp_path / "data.zarr", 2, X=X, y=y)
    about = path / "X" / ".zarray"
    content = json.loads(about.read_text())
    for codec, words in (("pickle", "pickle|Pickle"), ("crc32", "X is packed by CRC32; save it")):
        about.write_text(json.dumps(content | {"filters": [{"id": codec}]}))
        with pytest.raises(ValueError, match=words):
            mx.datasets.load(path)


@pytest.mark.needs("h5py")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(st.data())
def test_any_bytes_of_an_hdf5_file_are_read_or_refused_in_a_sentence(tmp_path, data):
    content = bytearray(save(tmp_path / "data.h5", X=draw()[0], y=draw()[1]).read_bytes())
    at = data.draw(st.integers(0, len(content)))
    content[at : at + 4] = data.draw(st.binary(max_size=4))
    (tmp_path / "data.h5").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with suppress(ValueError):
        train_set, _ = mx.datasets.load(tmp_path / "data.h5")
        assert len(train_set.X) == len(train_set.y)


@pytest.mark.needs("zarr")
@pytest.mark.parametrize("damage", ["{", "{}", '{"zarr_format": 3}'])
def test_damaged_descriptions_of_a_zarr_are_refused(tmp_path, damage):
    path = save(tmp_path / "data.zarr", X=draw()[0], y=draw()[1])
    (path / "X" / "zarr.json").write_text(damage)
    with pytest.raises(ValueError, match=r"data\.zarr: damaged Zarr"):
        mx.datasets.load(path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_commands_train_and_predict(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setattr("mlp_xp.datasets.maps.MAPPED", 0)
    X, y = draw(600)
    path = save(tmp_path / f"data.{kind}", X=X, y=y)
    options = ["--data", str(path), "--hidden", "5", "--seed", "1", "--schedule", "constant", "--out"]
    assert train.main([*options, str(tmp_path / "run"), "--epochs", "2"]) == 0
    assert "the last 100 rows are the test data" in capsys.readouterr().out
    assert train.main(["--resume", str(tmp_path / "run"), "--epochs", "3", "--quiet"]) == 0
    if kind == "h5":
        capsys.readouterr()
        assert predict.main([str(tmp_path / "run"), str(path)]) == 0
        assert "of 600)" in capsys.readouterr().out
    else:
        shutil.rmtree(path)
    gc.collect()  # HDF5 does not replace a file that is open
    save(path, X=X ^ 1, y=y)
    assert train.main(["--resume", str(tmp_path / "run"), "--epochs", "4", "--quiet"]) == 2
    assert "data" in capsys.readouterr().err
