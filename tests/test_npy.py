"""A folder of .npy files, and large samples that stay in their file."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import mlp_xp as mx
from mlp_xp import train
from mlp_xp.cli.data import split_off
from mlp_xp.datasets import Dataset
from mlp_xp.datasets.limits import Limits
from mlp_xp.datasets.npy import read_npy_folder

PARTS = ("x_train", "y_train", "x_test", "y_test")


@pytest.fixture
def mapped(monkeypatch):
    """Leave all samples in their files, however few they are."""
    monkeypatch.setattr("mlp_xp.datasets.maps.MAPPED", 0)


def draw(n=90, dtype="uint8", seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 8)).astype(dtype), rng.integers(0, 3, n)


def write(folder, **arrays):
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def idx(X):
    header = bytes([0, 0, 8, X.ndim]) + b"".join(size.to_bytes(4, "big") for size in X.shape)
    return header + X.astype(np.uint8).tobytes()


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", ">f4", "int64", "float16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_folder_of_npy_files_is_read_like_an_npz(tmp_path, dtype, order):
    (X, y), (X_test, y_test) = draw(90, dtype), draw(20, dtype, 1)
    arrays = dict(zip(PARTS, (np.asarray(X, order=order), y, X_test, y_test), strict=True))
    np.savez(tmp_path / "data.npz", **arrays)
    for found, expected in zip(
        mx.datasets.load(write(tmp_path / "data", **arrays)), mx.datasets.load(tmp_path / "data.npz"), strict=True
    ):
        assert type(found.X) is np.ndarray
        assert found.X.dtype == expected.X.dtype
        assert_array_equal(found.X, expected.X)
        assert_array_equal(found.y, expected.y)


def test_one_pair_is_shuffled_and_split_like_that_of_an_npz(tmp_path):
    X, y = draw()
    np.savez(tmp_path / "data.npz", X=X, y=y)
    folder = write(tmp_path / "data", X=X, y=y)
    for found, expected in zip(
        mx.datasets.load(folder, seed=3), mx.datasets.load(tmp_path / "data.npz", seed=3), strict=True
    ):
        assert_array_equal(found.X, expected.X)


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_large_samples_stay_in_their_file(tmp_path, dtype):
    X, y = draw(dtype=dtype)
    train_set, test_set = mx.datasets.load(write(tmp_path / "one", X=X, y=y))
    for part, rows in ((train_set, slice(75)), (test_set, slice(75, None))):
        assert isinstance(part.X, np.memmap)
        assert_array_equal(part.X, X[rows])
        assert_array_equal(part.y, y[rows])
        with pytest.raises(ValueError, match="read-only"):
            part.X[0] = 0
    train_set, test_set = mx.datasets.load(write(tmp_path / "two", x_train=X, y_train=y, x_test=X[:9], y_test=y[:9]))
    assert_array_equal(train_set.X, X)
    assert isinstance(test_set.X, np.memmap)


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("dtype", [">f4", "int32", "float16"])
def test_what_would_be_converted_is_read(tmp_path, dtype):
    X, y = draw(dtype=dtype)
    train_set, _ = mx.datasets.load(write(tmp_path, x_train=X, y_train=y, x_test=X, y_test=y))
    assert type(train_set.X) is np.ndarray
    assert_array_equal(train_set.X, X)


@pytest.mark.usefixtures("mapped")
def test_what_is_stored_by_columns_is_read(tmp_path):
    X, y = draw()
    train_set, _ = mx.datasets.load(write(tmp_path, x_train=np.asfortranarray(X), y_train=y, x_test=X, y_test=y))
    assert_array_equal(train_set.X, X)


@pytest.mark.usefixtures("mapped")
def test_idx_files_stay_where_they_are_unless_they_are_packed(tmp_path):
    X, y = draw()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(X.reshape(-1, 2, 4)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(y))
    train_set, test_set = mx.datasets.load(tmp_path)
    assert isinstance(train_set.X, np.memmap)
    assert_array_equal(np.concatenate([train_set.X, test_set.X]), X)
    assert type(mx.datasets.read_idx(tmp_path / "train-images-idx3-ubyte")) is np.ndarray
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(X.reshape(-1, 2, 4))[:-1])
    with pytest.raises(ValueError, match=r"announces 720 bytes of data, and 719 follow"):
        mx.datasets.load(tmp_path)


@pytest.mark.usefixtures("mapped")
def test_a_share_for_validation_is_the_end_of_the_file(tmp_path):
    X, y = draw()
    whole, _ = mx.datasets.load(write(tmp_path, x_train=X, y_train=y, x_test=X, y_test=y))
    rest, share = split_off(whole, 0.1, seed=0)
    assert isinstance(rest.X, np.memmap)
    assert_array_equal(rest.X, X[:-9])
    assert_array_equal(share.y, y[-9:])
    shuffled, _ = split_off(Dataset(X, y), 0.1, seed=0)
    assert (shuffled.X != rest.X).any()


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("change", [-1, 1, -700], ids=["short", "long", "very short"])
def test_a_file_that_is_cut_or_goes_on_is_refused_by_name(tmp_path, monkeypatch, large, change):
    if large:
        monkeypatch.setattr("mlp_xp.datasets.maps.MAPPED", 0)
    X, y = draw()
    folder = write(tmp_path, X=X, y=y)
    content = (folder / "X.npy").read_bytes()
    (folder / "X.npy").write_bytes(content[:change] if change < 0 else content + b"x")
    with pytest.raises(ValueError, match=r"X\.npy: the header announces 720 bytes"):
        mx.datasets.load(folder)


def test_files_that_do_not_make_data_are_refused(tmp_path):
    X, y = draw()
    for name, arrays, problem in (
        ("no labels", {"X": X}, "there are \\['x'\\]"),
        ("twice", {"X": X, "x": X, "y": y}, "both name x"),
        ("others", {"images": X, "labels": y}, "there are \\[\\]"),
        ("strings", {"X": np.array(["a"]), "y": y}, r"X.npy: not a plain array .* but of text \(<U1\); save numbers"),
        ("labels", {"X": X, "y": np.array(["cat"] * len(y))}, r"y.npy: not a plain array .* but of text \(<U3\)"),
        ("bytes", {"X": X, "y": np.array([b"cat"] * len(y))}, r"y.npy: not a plain array .* but of text \(\|S3\)"),
        ("objects", {"X": np.array([None]), "y": y}, r"X.npy: not a plain array .* but of objects \(\|O\)"),
        ("bool", {"X": X > 0, "y": y}, r"X.npy: not a plain array .* but of truth values \(\|b1\)"),
        ("complex", {"X": X + 1j, "y": y}, r"X.npy: not a plain array .* but of complex numbers \(<c16\)"),
        ("counts", {"X": X, "y": y[:-1]}, "90 samples but 89 labels"),
    ):
        with pytest.raises(ValueError, match=problem):
            mx.datasets.load(write(tmp_path / name, **arrays))
    with pytest.raises(ValueError, match="the model takes 9"):
        read_npy_folder(write(tmp_path / "width", X=X, y=y), Limits(9))


@pytest.mark.usefixtures("mapped")
def test_a_mapped_folder_of_another_width_is_refused(tmp_path):
    X, y = draw()
    with pytest.raises(ValueError, match=r"X\.npy: samples of 8 numbers.*the model takes 9"):
        read_npy_folder(write(tmp_path, X=X, y=y), Limits(9))


@pytest.mark.parametrize("large", [False, True])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(st.integers(0, 140), st.binary(max_size=4), st.integers(0, 900))
def test_any_bytes_are_read_or_refused_in_a_sentence(tmp_path, monkeypatch, large, at, change, cut):
    if large:
        monkeypatch.setattr("mlp_xp.datasets.maps.MAPPED", 0)
    X, y = draw()
    folder = write(tmp_path, X=X, y=y)
    content = bytearray((folder / "X.npy").read_bytes())
    content[at : at + len(change)] = change
    (folder / "X.npy").write_bytes(content[: max(cut, 300)] if cut < 500 else content)
    with suppress(ValueError):
        train_set, _ = mx.datasets.load(folder)
        assert len(train_set.X) == len(train_set.y)


@pytest.mark.usefixtures("mapped")
def test_the_command_trains_on_a_folder_that_stays_on_the_disk(tmp_path, capsys):
    X, y = draw(600)
    folder = write(tmp_path / "data", X=X, y=y)
    options = ["--data", str(folder), "--hidden", "5", "--seed", "1", "--schedule", "constant"]
    assert train.main([*options, "--epochs", "2", "--out", str(tmp_path / "run")]) == 0
    assert "the last 100 rows are the test data, in the order of the file" in capsys.readouterr().out
    assert train.main(["--resume", str(tmp_path / "run"), "--epochs", "3", "--quiet"]) == 0
    assert train.main([*options, "--epochs", "3", "--out", str(tmp_path / "straight"), "--quiet"]) == 0
    resumed, straight = (mx.MLP.load(tmp_path / name / "model.safetensors") for name in ("run", "straight"))
    assert_array_equal(resumed.theta, straight.theta)
    X[5, 3] ^= 1
    write(folder, X=X)
    assert train.main(["--resume", str(tmp_path / "run"), "--epochs", "4", "--quiet"]) != 0
    assert "data" in capsys.readouterr().err
