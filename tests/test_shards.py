"""Many .npy files as one object, and a folder of them as a data set."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import mlp_xp as mx
from mlp_xp import train
from mlp_xp.cli.data import split_off
from mlp_xp.datasets import Shards
from mlp_xp.datasets.maps import Span

from .test_stored import D, N, draw, own_plan, trained, trained_in_order


@pytest.fixture
def mapped(monkeypatch):
    """Leave all samples in their files, however few they are."""
    monkeypatch.setattr("mlp_xp.datasets.maps.MAPPED", 0)


def write(folder, name, X, cuts, first=0):
    """Save the rows in shards that end at these cuts; return their paths."""
    folder.mkdir(exist_ok=True)
    paths = []
    for i, part in enumerate(np.split(X, cuts)):
        paths.append(folder / f"{name}-{i + first:03d}.npy")
        np.save(paths[-1], part)
    return paths


def pair(folder, cuts=(40, 41, 90), n=120, dtype="uint8"):
    """Save samples and labels in the same shards; return both."""
    X, y = draw(dtype, n)
    y = y.astype(np.uint8)
    write(folder, "X", X, cuts)
    write(folder, "y", y, cuts)
    return X, y


# --------------------------------------------------------------------------------------------------------- the object


@given(st.data())
def test_any_slice_has_the_rows_of_all_files(tmp_path_factory, data):
    n = data.draw(st.integers(0, 30))
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=5)))
    X = np.arange(n * 6, dtype=data.draw(st.sampled_from(["uint8", "<f4", ">f8", "<i2"]))).reshape(n, 3, 2)
    shards = Shards(write(tmp_path_factory.mktemp("shards"), "X", X, cuts))
    assert (shards.shape, shards.dtype, len(shards), sum(shards.rows)) == (X.shape, X.dtype, n, n)
    start, stop = (data.draw(st.none() | st.integers(-35, 35)) for _ in range(2))
    found = shards[start:stop]
    assert found.dtype == X.dtype
    assert_array_equal(found, X[start:stop])


def test_a_file_is_open_only_while_it_is_read(tmp_path):
    X = np.arange(8000, dtype=np.float32).reshape(-1, 4)
    shards = Shards(write(tmp_path, "X", X, np.arange(1, 2000)))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert_array_equal(shards[:], X)
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)


def test_threads_read_at_the_same_time(tmp_path):
    X = np.arange(8000, dtype=np.int64).reshape(-1, 4)
    shards = Shards(write(tmp_path, "X", X, [3, 700, 701, 1500]))
    with ThreadPoolExecutor(4) as pool:
        for i, block in enumerate(pool.map(lambda i: shards[i : i + 100], range(1900))):
            assert_array_equal(block, X[i : i + 100])


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("batch_size", [None, 100])
def test_shards_train_with_the_bits_of_an_array(tmp_path, cpu_engine, dtype, batch_size):
    X, y = draw(dtype)
    shards = Shards(write(tmp_path, "X", X, [10, 5000, N - 1]))
    expected = trained(X, y, plan=own_plan()) if batch_size is None else trained_in_order(X, y, batch_size)
    assert_array_equal(trained(shards, y, batch_size=batch_size), expected)


@pytest.mark.parametrize("first", [0, 1])
def test_steps_and_single_rows_are_refused(tmp_path, first):
    shards = Shards(write(tmp_path, "X", np.zeros((5, 2)), [2], first))
    with pytest.raises(ValueError, match="a step of 2"):
        shards[::2]
    with pytest.raises(ValueError, match="a step of -1"):
        Span(shards)[::-1]
    for rows in (3, [1, 2], np.array([True] * 5), (slice(2), 0)):
        for X in (shards, Span(shards)):
            with pytest.raises(TypeError, match=r"rows in files come by slices, X\[i:j\]; got X\["):
                X[rows]
    with pytest.raises(TypeError, match="read X"):
        np.asarray(shards)
    with pytest.raises(ValueError, match="at least one file"):
        Shards([])


@pytest.mark.parametrize("kind", [str, Path, str.encode])
def test_a_single_path_is_no_list_of_paths(kind):
    with pytest.raises(TypeError, match=r"takes a list of paths, got the single path b?'X-0\.npy'; write"):
        Shards(kind("X-0.npy"))


def test_a_span_reads_nothing_before_it_is_an_array(tmp_path):
    X = np.arange(60).reshape(10, 3, 2)
    paths = write(tmp_path, "X", X, [4])
    span = Span(Shards(paths))[2:9][1:-1]
    assert (span.shape, len(span), span.size) == ((5, 6), 5, 30)
    assert_array_equal(span, X[3:8].reshape(5, 6))
    assert_array_equal(span[7:3], np.empty((0, 6)))
    assert np.asarray(span, np.float32).dtype == np.float32
    paths[1].unlink()
    assert_array_equal(span[:1], X[3:4].reshape(1, 6))
    with pytest.raises(FileNotFoundError, match=r"X-001\.npy"):
        np.asarray(span)


# --------------------------------------------------------------------------------------------------------- the folder


@pytest.mark.parametrize("labels", ["shards", "one file"])
@pytest.mark.parametrize("large", [False, True])
def test_a_folder_of_shards_is_read_like_one_file(tmp_path, monkeypatch, labels, large):
    if large:
        monkeypatch.setattr("mlp_xp.datasets.maps.MAPPED", 0)
    X, y = pair(tmp_path / "shards")
    (tmp_path / "whole").mkdir()
    for name, array in (("X", X), ("y", y)):
        np.save(tmp_path / "whole" / f"{name}.npy", array)
    if labels == "one file":
        for path in (tmp_path / "shards").glob("y-*"):
            path.unlink()
        np.save(tmp_path / "shards" / "Y.npy", y)
    for found, expected in zip(
        mx.datasets.load(tmp_path / "shards", seed=3), mx.datasets.load(tmp_path / "whole", seed=3), strict=True
    ):
        assert isinstance(found.X, Span if large else np.ndarray)
        assert found.X.dtype == expected.X.dtype
        assert_array_equal(found.X, expected.X)
        assert_array_equal(found.y, expected.y)


@pytest.mark.usefixtures("mapped")
def test_a_share_for_validation_is_the_end_of_the_shards(tmp_path):
    X, y = pair(tmp_path)
    rest, share = split_off(mx.datasets.load(tmp_path)[0], 0.1, seed=0)
    assert_array_equal(rest.X, X[:90])
    assert_array_equal(share.X, X[90:100])
    assert_array_equal(share.y, y[90:100])


def test_whole_numbers_and_images_in_shards_are_converted_and_flattened(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 5))
    write(tmp_path, "x_train", images[:50], [20])
    write(tmp_path, "x_test", images[50:], [], first=1)
    for name, rows in (("train", 50), ("test", 10)):
        np.save(tmp_path / f"y_{name}.npy", np.arange(rows) % 3)
    train_set, test_set = mx.datasets.load(tmp_path)
    assert train_set.X.dtype == np.uint8
    assert_array_equal(np.concatenate([train_set.X, test_set.X]), images.reshape(60, 20))


def lose(folder):
    (folder / "X-001.npy").unlink()


def lose_labels(folder):
    (folder / "y-003.npy").unlink()


def cut(folder):
    content = (folder / "X-002.npy").read_bytes()
    (folder / "X-002.npy").write_bytes(content[:-1])


def widen(folder):
    np.save(folder / "X-002.npy", np.zeros((49, D + 1), np.uint8))


def retype(folder):
    np.save(folder / "X-001.npy", np.zeros((1, D), np.float32))


def reorder(folder):
    np.save(folder / "X-002.npy", np.asfortranarray(np.load(folder / "X-002.npy")))


def mismatch(folder):
    np.save(folder / "y-001.npy", np.zeros(2, np.uint8))


def double(folder):
    np.save(folder / "x.npy", np.zeros((2, D)))


def number_twice(folder):
    np.save(folder / "X-1.npy", np.zeros((1, D), np.uint8))


def damage(folder):
    (folder / "X-000.npy").write_bytes(b"PK\3\4")


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lose, r"shard 1 of x is missing: there is X-003\.npy, and numbers count from 0 or 1"),
        (lose_labels, r"4 shards of samples and 3 of labels"),
        (cut, r"X-002\.npy: the header announces 588 bytes of data, and 587 follow"),
        (widen, r"X-002\.npy: rows of uint8 and shape \(13,\), but those of X-000\.npy are of uint8 and shape \(12,\)"),
        (retype, r"X-001\.npy: rows of float32 and shape \(12,\), but those of X-000\.npy are of uint8"),
        (reorder, r"X-002\.npy: it is stored by columns"),
        (mismatch, r"y-001\.npy: 2 labels, but X-001\.npy has 1 samples"),
        (double, r"x\.npy and X-000\.npy both name x"),
        (number_twice, r"X-001\.npy and X-1\.npy are both shard 1"),
        (damage, r"X-000\.npy: not a plain array"),
    ],
)
def test_a_shard_that_does_not_fit_is_named(tmp_path, monkeypatch, large, change, words):
    if large:
        monkeypatch.setattr("mlp_xp.datasets.maps.MAPPED", 0)
    pair(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=words):
        mx.datasets.load(tmp_path)


def test_a_lone_file_is_told_to_bring_its_folder(tmp_path):
    np.save(tmp_path / "X.npy", np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"X\.npy: samples and labels are two files; name the folder"):
        mx.datasets.load(tmp_path / "X.npy")


# -------------------------------------------------------------------------------------------- what happens in between


@pytest.mark.parametrize("batch_size", [None, 100])
@pytest.mark.parametrize("how", ["rewritten", "cut", "removed"])
def test_a_shard_that_changes_while_it_is_trained_on_ends_the_training(tmp_path, cpu_engine, batch_size, how):
    X, y = draw("float32")
    paths, kept = write(tmp_path, "X", X, [10, 5000]), []
    model = mx.MLP([D, 9, 3], seed=1)

    def change(state):
        kept.append(state.model.theta.copy())
        if how == "removed":
            paths[1].unlink()
        else:
            content = paths[1].read_bytes()
            paths[1].write_bytes(content[: -4 if how == "cut" else None])
            os.utime(paths[1], ns=(0, 0))  # a clock of the disk's may be too coarse to tell

    folder = tmp_path / "run"
    with pytest.raises((ValueError, FileNotFoundError), match=r"X-001\.npy"):
        mx.fit(
            model, Shards(paths), y, batch_size=batch_size, plan="dense", callbacks=[change],
            checkpoint=mx.Checkpoint(folder, every=1),
        )  # fmt: skip
    assert_array_equal([model.theta], kept)
    write(tmp_path, "X", X, [10, 5000])
    # nothing is damaged: with the file as it was, the run goes on
    settings = {"batch_size": batch_size, "plan": "dense", "epochs": 2, "callbacks": [lambda state: None]}
    resumed = mx.MLP([D, 9, 3], seed=1)
    mx.fit(resumed, Shards(paths), y, checkpoint=mx.Checkpoint(folder, resume=True), **settings)
    straight = mx.MLP([D, 9, 3], seed=1)
    mx.fit(straight, Shards(paths), y, **settings)
    assert_array_equal(resumed.theta, straight.theta)


@pytest.mark.usefixtures("mapped")
def test_the_command_trains_on_shards_and_does_not_resume_with_others(tmp_path, capsys):
    X, _ = pair(tmp_path / "data", (200, 201, 450), 600)
    options = ["--data", str(tmp_path / "data"), "--hidden", "5", "--seed", "1", "--schedule", "constant"]
    assert train.main([*options, "--epochs", "2", "--out", str(tmp_path / "run")]) == 0
    assert "the last 100 rows are the test data, in the order of the file" in capsys.readouterr().out
    assert train.main(["--resume", str(tmp_path / "run"), "--epochs", "3", "--quiet"]) == 0
    assert train.main([*options, "--epochs", "3", "--out", str(tmp_path / "straight"), "--quiet"]) == 0
    resumed, straight = (mx.MLP.load(tmp_path / name / "model.safetensors") for name in ("run", "straight"))
    assert_array_equal(resumed.theta, straight.theta)
    X[5, 3] ^= 1
    write(tmp_path / "data", "X", X, (200, 201, 450))
    assert train.main(["--resume", str(tmp_path / "run"), "--epochs", "4", "--quiet"]) == 2
    assert "data" in capsys.readouterr().err


@pytest.mark.usefixtures("mapped")
def test_pictures_read_some_of_the_test_data_and_no_array_of_all(tmp_path, monkeypatch):
    run = pytest.importorskip("mlp_xp.plots.run", exc_type=ImportError)  # matplotlib may be missing
    rng = np.random.default_rng(0)
    write(tmp_path, "X", rng.integers(0, 256, (600, 8, 8), dtype=np.uint8), [100, 250])
    np.save(tmp_path / "y.npy", rng.integers(0, 3, 600))
    read, fill = [], Shards.__getitem__

    def note(self, rows):
        read.append(len(range(*rows.indices(600))))
        return fill(self, rows)

    monkeypatch.setattr("mlp_xp.plots.run.MOST_READ", 20)
    train_set, test_set = mx.datasets.load(tmp_path)
    model = mx.MLP([64, 5, 3], seed=0)
    history = mx.fit(model, *train_set, epochs=1)
    monkeypatch.setattr(Shards, "__getitem__", note)
    monkeypatch.setattr(type(model.device), "shard_rows", 64)
    if model._predictor is not None:
        monkeypatch.setattr(model._predictor, "block_rows", 64)
    run.save_run_plots(tmp_path / "plots", model, history, test_set)
    assert sorted(path.stem for path in (tmp_path / "plots").iterdir()) == [
        "confusion_matrix", "first_layer_weights", "learning_curves", "most_confidently_wrong", "samples",
    ]  # fmt: skip
    assert max(read) <= 64
