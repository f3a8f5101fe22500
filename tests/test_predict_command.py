"""``mlp-xp predict``: pictures, IDX, .npz and .csv files, and one sentence for everything that is wrong."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mlp_xp as mx
from mlp_xp.__main__ import main as mlp_xp_main
from mlp_xp.cli.predict import read_samples
from mlp_xp.predict import main

LINE = re.compile(r"(?P<name>\S+)  (?P<label>\S+)  (?P<p>[01]\.\d{4})  runner-up (?P<second>\S+) (?P<q>[01]\.\d{4})")


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, mnist):
    """A run that knows ten digits, from 6,000 of them."""
    folder = tmp_path_factory.mktemp("run")
    X, y = mnist[0].X[:6000], mnist[0].y[:6000]
    model = mx.MLP([784, 32, 10])
    mx.fit(model, X, y, epochs=4, batch_size=100, optimizer=mx.Adam(lr=0.01))
    model.save(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"labels": [str(digit) for digit in range(10)]}))
    return folder


@pytest.fixture
def make_run(tmp_path):
    """Make a run folder of an untrained model: f(labels, *arguments of MLP) -> path."""

    def make(labels, *arguments, pixels=None, **settings):
        folder = tmp_path / "small"
        folder.mkdir()
        model = mx.MLP(*arguments, **settings)
        model.pixels = pixels
        model.save(folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"labels": labels}))
        return folder

    return make


@pytest.fixture
def predict(capsys):
    """Run the command, which must succeed: f(*arguments) -> its lines."""

    def call(*arguments):
        assert main([str(argument) for argument in arguments]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out.splitlines()

    return call


@pytest.fixture
def png(tmp_path):
    """Write gray values (height, width) as a PNG: f(name, array) -> path."""
    Image = pytest.importorskip("PIL.Image")

    def write(name, array):
        path = tmp_path / f"{name}.png"
        Image.fromarray(array).save(path)
        return path

    return write


def test_pictures_are_classified_like_the_rows_they_came_from(run_folder, mnist, png, predict):
    X = mnist[1].X[:30]
    P = mx.MLP.load(run_folder / "model.safetensors").predict_proba(X)
    digits = X.reshape(-1, 28, 28)
    plain = [png(f"plain{i}", digit) for i, digit in enumerate(digits)]
    inverted = [png(f"inverted{i}", 255 - digit) for i, digit in enumerate(digits)]
    large = [
        png(f"large{i}", 255 - np.pad(np.kron(digit, np.ones((4, 4), np.uint8)), ((9, 40), (70, 20))))
        for i, digit in enumerate(digits)
    ]
    for paths, least in ((plain, 30), (inverted, 30), (large, 28)):
        lines = [LINE.fullmatch(line) for line in predict(run_folder, *paths)]
        assert [line["name"] for line in lines] == list(map(str, paths))
        same = sum(int(line["label"]) == p.argmax() for line, p in zip(lines, P, strict=True))
        assert same >= least
    first = LINE.fullmatch(predict(run_folder, plain[0])[0])
    ranked = np.argsort(-P[0])
    assert int(first["second"]) == ranked[1]
    assert float(first["p"]) == pytest.approx(P[0].max(), abs=1e-4)
    assert float(first["q"]) == pytest.approx(P[0, ranked[1]], abs=1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_with_labels_beside_it(packed, run_folder, mnist, tmp_path, predict):
    X, y = mnist[1].X[:50], mnist[1].y[:50]
    images = tmp_path / ("t10k-images-idx3-ubyte" + ".gz" * packed)
    content = idx(X.reshape(-1, 28, 28))
    images.write_bytes(gzip.compress(content) if packed else content)
    lines = predict(run_folder, images)
    assert len(lines) == 50
    assert [LINE.fullmatch(line)["name"] for line in lines] == [f"{images}[{i}]" for i in range(50)]

    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(y))
    *again, last = predict(run_folder, images)
    right = sum(int(LINE.fullmatch(line)["label"]) == label for line, label in zip(again, y, strict=True))
    assert again == lines
    assert right >= 40
    assert last == f"{images}: accuracy {right / 50:.4f} ({right} of 50)"


def test_npz_is_read_from_a_run_folder_and_from_a_model_file(run_folder, mnist, tmp_path, predict):
    train, test = ({"x": part.X[:20], "y": part.y[:20]} for part in mnist)
    whole, parted = tmp_path / "whole.npz", tmp_path / "parted.npz"
    np.savez(whole, **test)
    np.savez(parted, x_train=train["x"], y_train=train["y"], x_test=test["x"], y_test=test["y"])
    lines = predict(run_folder, whole)
    assert len(lines) == 21
    assert "accuracy" in lines[-1]
    for source in (run_folder, run_folder / "model.safetensors"):
        assert predict(source, parted) == [line.replace("whole", "parted") for line in lines]


def test_two_classes_from_one_unit_have_their_names(make_run, mnist, tmp_path, predict):
    """A model of fives and eights is measured by the digits that the labels name, not by 0 and 1."""
    run = make_run(["5", "8"], [784, 1], output="sigmoid")
    keep = np.isin(mnist[1].y, (5, 8))
    X, y = mnist[1].X[keep][:20], mnist[1].y[keep][:20]
    np.savez(tmp_path / "digits.npz", x=X, y=y)
    *lines, accuracy = predict(run, tmp_path / "digits.npz")
    p = mx.MLP.load(run / "model.safetensors").predict_proba(X)[:, 0]
    for line, q in zip(map(LINE.fullmatch, lines), p, strict=True):
        assert (line["label"], line["second"]) == (("8", "5") if q > 0.5 else ("5", "8"))
        assert float(line["p"]) == pytest.approx(max(q, 1 - q), abs=1e-4)
    right = np.sum(np.where(p > 0.5, 8, 5) == y)
    assert accuracy.endswith(f"accuracy {right / 20:.4f} ({right} of 20)")


def test_names_that_are_no_numbers_stand_for_0_1_2(make_run, tmp_path, predict):
    run = make_run(["cat", "dog", "owl"], [4, 3])
    X = np.eye(4)
    y = mx.MLP.load(run / "model.safetensors").predict(X)
    np.savez(tmp_path / "pets.npz", x=X, y=y)
    *lines, accuracy = predict(run, tmp_path / "pets.npz")
    assert [LINE.fullmatch(line)["label"] for line in lines] == [["cat", "dog", "owl"][label] for label in y]
    assert accuracy.endswith("accuracy 1.0000 (4 of 4)")


@pytest.mark.parametrize("device", ["strict", "cuda"])
def test_device(device, run_folder, mnist, png, predict, fails):
    path = png("digit", mnist[1].X[0].reshape(28, 28))
    assert predict(run_folder, path, "--device", device) == predict(run_folder, path)
    fails("unknown device 'tpu'", run_folder, path, "--device", "tpu")


def test_other_sizes_of_square_images(make_run, png, predict, fails):
    run = make_run(["0", "1"], [64, 2])
    assert len(predict(run, png("small", np.eye(8, dtype=np.uint8) * 255))) == 1
    assert len(predict(run, png("large", np.pad(np.eye(30, dtype=np.uint8) * 255, 5)))) == 1
    fails("7x8 pixels", run, png("tiny", np.zeros((8, 7), np.uint8)))


def test_png_needs_a_model_of_square_images(make_run, png, fails):
    run = make_run(["0", "1"], [2, 2])
    fails(
        "a picture needs a model of square images, and this one takes 2 inputs", run, png("any", np.eye(30, dtype="u1"))
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "this is none of them"),
        (b"\xff\xd8\xff\xe0 JFIF", "a damaged JPEG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a PNG file"),
        (idx(np.zeros((2, 28, 28), np.uint8))[:-1], "the file ends after 1567"),
        (idx(np.zeros((2, 28, 27), np.uint8)), "samples of 756 numbers (shape (2, 28, 27)), but the model takes 784"),
        (gzip.compress(idx(np.zeros((2, 28, 28), np.uint8)))[:-9], "damaged gzip data"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_images(content, words, run_folder, tmp_path, fails):
    path = tmp_path / "image"
    path.write_bytes(content)
    fails(words, run_folder, path)
    fails(str(path), run_folder, path)


def test_damaged_npz_and_labels(run_folder, tmp_path, fails):
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\3\4 and no more")
    fails("broken.npz", run_folder, broken)
    (tmp_path / "a-images-idx3-ubyte").write_bytes(idx(np.zeros((2, 28, 28), np.uint8)))
    (tmp_path / "a-labels-idx1-ubyte").write_bytes(idx(np.zeros(3, np.uint8)))
    fails("2 samples but 3 labels", run_folder, tmp_path / "a-images-idx3-ubyte")


# The scale of the training data


RANGES = st.tuples(st.sampled_from([-3, 0, 0, 0]), st.sampled_from([1, 126, 127, 128, 254, 255, 256, 900]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scales")


def save(folder, kind, X, y):
    """Write whole numbers and labels in a format: a path."""
    path = folder / f"later.{kind}"
    if kind == "npz":
        np.savez(path, x=X, y=y)
    elif kind == "csv":
        np.savetxt(path, np.c_[y, X], "%d", ",")
    else:
        path = folder / "later-images-idx2-ubyte"
        content = bytes([0, 0, 0x0C, 2]) + b"".join(n.to_bytes(4, "big") for n in X.shape) + X.astype(">i4").tobytes()
        path.write_bytes(content)
    return path


@pytest.mark.filterwarnings("ignore:X is uint8 without a value above 1")  # a training part of pixels may look so
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(train=RANGES, test=RANGES, later=RANGES, kind=st.sampled_from(["npz", "csv", "idx"]), seed=st.integers(0, 99))
def test_the_same_rows_have_the_same_scores_in_every_file(folder, train, test, later, kind, seed):
    """In the training part, the test part and in later files, whatever else stands in them, or they are refused."""
    rng = np.random.default_rng(seed)
    tables = [rng.integers(low, high, (5, 3), endpoint=True) for low, high in (train, test, later)]
    for X, (low, high) in zip(tables, (train, test, later), strict=True):
        X[0, :2] = low, high
    y = np.arange(5) % 2
    np.savez(folder / "table.npz", x_train=tables[0], y_train=y, x_test=tables[1], y_test=y)
    parts = mx.datasets.load(folder / "table.npz")
    model = mx.MLP([3, 4, 2], activation="tanh", seed=seed)
    mx.fit(model, *parts[0], epochs=1)
    model.save(folder / "model.safetensors")
    model = mx.MLP.load(folder / "model.safetensors")
    pixels = parts[0].X.dtype == np.uint8
    assert model.pixels == pixels

    def scores(X):  # as training scales them
        return model.predict_proba(X / np.float32(255) if pixels else X.astype(np.float32))

    for part, X in zip(parts, tables, strict=False):
        np.testing.assert_allclose(model.predict_proba(part.X), scores(X), rtol=1e-5)
    for X in tables:
        path = save(folder, kind, X, y)
        if pixels and (X.min() < 0 or X.max() > 255):
            with pytest.raises(ValueError, match="the model was trained on pixels, so samples must be whole numbers"):
                read_samples(path, 3, model.pixels)
        else:
            np.testing.assert_allclose(
                model.predict_proba(read_samples(path, 3, model.pixels)[0]), scores(X), rtol=1e-5
            )


@pytest.mark.parametrize(("pixels", "dtype"), [(True, "u1"), (False, "f4"), (None, "u1")])
def test_bytes_count_as_the_training_data_did(pixels, dtype, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([[3, 200]], np.uint8), y=[0])
    X, _ = read_samples(tmp_path / "a.npz", 2, pixels)
    assert X.dtype == dtype
    np.testing.assert_array_equal(X, [[3, 200]])


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0])
def test_numbers_that_are_no_pixels_are_refused_by_a_model_of_pixels(value, make_run, tmp_path, fails):
    run = make_run(["0", "1"], [2, 2], pixels=True)
    for dtype in (np.float32, np.float64):
        np.savez(tmp_path / "a.npz", x=np.array([[1, value]], dtype), y=[0])
        fails("row 0, column 1 of the samples (counted from 0) is", run, tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", x=np.array([[1.0, 255.0]]), y=[0])
    assert read_samples(tmp_path / "a.npz", 2, True)[0].dtype == np.uint8


def test_pictures_are_refused_by_a_model_of_numbers(make_run, png, fails):
    run = make_run(["0", "1"], [64, 2], pixels=False)
    fails(
        "trained on numbers that are no pixels, so a picture has no scale for it", run, png("a", np.eye(8, dtype="u1"))
    )


# .csv


@pytest.mark.parametrize("header", ["", "label,a,b\n", "0,1,2\n"])
def test_a_csv_with_labels(header, make_run, tmp_path, predict):
    run = make_run(["cat", "dog"], [2, 2])
    path = tmp_path / "pets.csv"
    path.write_text(header + "0,0.5,0.25\n1,-1,2\n1,3,4\n")
    *lines, accuracy = predict(run, path)
    model = mx.MLP.load(run / "model.safetensors")
    best = model.predict([[0.5, 0.25], [-1, 2], [3, 4]])
    assert [LINE.fullmatch(line)["label"] for line in lines] == [["cat", "dog"][label] for label in best]
    assert accuracy.endswith(f"({np.sum(best == [0, 1, 1])} of 3)")


@pytest.mark.parametrize("header", ["", "a,b\n", "x,y\n", "0,1\n"])
def test_a_csv_without_labels(header, make_run, tmp_path, predict):
    run = make_run(["cat", "dog"], [2, 2])
    path = tmp_path / "pets.csv"
    path.write_text(header + "0.5,0.25\n-1,2\n")
    assert len(predict(run, path)) == 2


def test_a_csv_of_another_width(make_run, tmp_path, fails):
    run = make_run(["cat", "dog"], [2, 2])
    path = tmp_path / "pets.csv"
    path.write_text("1,2,3,4\n")
    fails("4 columns, but the model takes 2, and one more may hold the labels", run, path)
    path.write_text("a,b,c\n1,2,3\n")
    fails("no column is called label", run, path)


# Files that cannot be used


def test_it_goes_on_after_a_bad_file(run_folder, png, mnist, tmp_path, capsys):
    good = [png(f"good{i}", mnist[1].X[i].reshape(28, 28)) for i in range(2)]
    bad = [png("empty", np.zeros((60, 60), np.uint8)), tmp_path / "missing.png"]
    assert main([str(run_folder), *map(str, (good[0], bad[0], bad[1], good[1]))]) == 2
    printed = capsys.readouterr()
    assert [LINE.fullmatch(line)["name"] for line in printed.out.splitlines()] == list(map(str, good))
    errors = printed.err.splitlines()
    assert len(errors) == 2
    for line, path in zip(errors, bad, strict=True):
        assert line.startswith(f"mlp-xp predict: {path}: ")


def test_names_of_files_do_not_reach_the_terminal_raw(run_folder, mnist, tmp_path, capsys):
    path = tmp_path / "a\x1b[31m.npz"
    np.savez(path, x=mnist[1].X[:1], y=mnist[1].y[:1])
    assert main([str(run_folder), str(path), str(tmp_path / "\x1b[2J.png")]) == 2
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "a\\x1b[31m.npz" in printed.out
    assert "\\x1b[2J.png" in printed.err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs are POSIX")
@pytest.mark.parametrize("what", ["fifo", "zero"])
def test_what_never_ends_is_refused_at_once(what, make_run, tmp_path, fails):
    run = make_run(["0", "1"], [784, 2])
    for path in (run / "config.json", run / "model.safetensors", tmp_path / "a.png", tmp_path / "a.csv"):
        content = path.read_bytes() if path.exists() else b""
        path.unlink(missing_ok=True)
        if what == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")
        fails(str(path), run, path if path.parent == tmp_path else "any.png")
        path.unlink()
        path.write_bytes(content)


@pytest.mark.parametrize("shape", [(1 << 28,), (1 << 18, 1024), (1 << 18, 28, 28)])
def test_a_file_of_another_width_or_packed_too_tightly_is_refused_from_its_header(shape, run_folder, tmp_path, fails):
    """256 MiB of zeros in 260 kB."""
    sizes = b"".join(n.to_bytes(4, "big") for n in shape)
    for code in (8, 9):
        path = tmp_path / "bomb.gz"
        with gzip.open(path, "wb") as file:
            file.write(bytes([0, 0, code, len(shape)]) + sizes)
            file.write(bytes(1 << 20))
        start = time.process_time()
        fails("packed bytes announce" if shape[1:] == (28, 28) else "but the model takes 784", run_folder, path)
        assert time.process_time() - start < 0.5


# --show


def test_show_draws_what_the_network_was_given(run_folder, png, mnist, tmp_path, predict):
    Image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    X, y = mnist[1].X[:6], mnist[1].y[:6]
    np.savez(tmp_path / "digits.npz", x=X, y=y)
    large = png("large", np.pad(np.kron(X[0].reshape(28, 28), np.ones((4, 4), np.uint8)), 40))
    show = tmp_path / "seen.png"
    *_, last = predict(run_folder, tmp_path / "digits.npz", large, "--show", show)
    assert last == f"drawn: {show}"
    drawn = np.asarray(Image.open(show).convert("L"))
    assert drawn.shape[0] > 300
    assert (drawn < 128).mean() > 0.01


def test_show_is_refused_before_anything_is_printed(run_folder, make_run, png, mnist, fails):
    path = png("digit", mnist[1].X[0].reshape(28, 28))
    content = path.read_bytes()
    fails("--show takes the name of a PNG to write", run_folder, path, "--show", "seen.jpg")
    fails("--show takes the name of a PNG to write", run_folder, path, "--show", path)
    assert path.read_bytes() == content
    fails("--show needs a model of square images", make_run(["0", "1"], [2, 2]), path, "--show", "seen.png")


def test_where_runs_are_is_suggested(run_folder, tmp_path, monkeypatch, fails):
    monkeypatch.chdir(tmp_path)
    fails("nowhere: no such run folder or model file; python -m mlp_xp.train leaves one in runs/", "nowhere", "a.png")
    for age, name in enumerate(["new", "older", "old", "ancient"]):
        (tmp_path / "runs" / name).mkdir(parents=True)
        os.utime(tmp_path / "runs" / name, (1e9 - age, 1e9 - age))
    fails(
        f"the newest are {', '.join(os.path.join('runs', name) for name in ('new', 'older', 'old'))}\n",
        "first",
        "a.png",
    )


def test_what_is_not_there(run_folder, tmp_path, fails):
    fails("nowhere.png: No such file or directory", run_folder, "nowhere.png")
    fails("a folder, where a file is needed", run_folder, tmp_path)
    fails("model.safetensors: No such file", tmp_path, "image.png")
    fails("the following arguments are required: FILE; --help", run_folder)
    fails("unrecognized arguments: --color", run_folder, "image.png", "--color")


def test_a_run_that_is_not_finished(tmp_path, fails):
    folder = tmp_path / "my run"
    mx.fit(mx.MLP([2, 2]), *mx.datasets.xor(), epochs=1, checkpoint=mx.Checkpoint(folder))
    fails(
        f"{folder}: this run is not finished, there is no model.safetensors yet; "
        f"go on with: python -m mlp_xp.train --resume '{folder}'\n",
        folder,
        "image.png",
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "config.json: No such file"),
        ("", "is not a JSON file of a run"),
        ("[1, 2]", "is not a JSON object"),
        ("[" * 100_000, "is not a JSON file of a run"),
        ('{"preset": "xor"}', "'labels' must be a list of printable names"),
        (" " * (1 << 20) + '{"labels": ["0", "1"]}', "1048576 are the most allowed"),
        ('{"labels": "0123456789"}', "must be a list of printable names"),
        ('{"labels": [0, 1]}', "must be a list of printable names"),
        ('{"labels": ["\\u001b[2J", "1"]}', "must be a list of printable names"),
        ('{"labels": ["0", "1", "2"]}', "there are 3 'labels', but the model has 2 classes"),
    ],
)
def test_run_folders_whose_configuration_is_wrong(config, words, make_run, fails):
    run = make_run(["0", "1"], [4, 2])
    (run / "config.json").unlink()
    if config is not None:
        (run / "config.json").write_text(config)
    fails(words, run, "image.png")


@pytest.mark.parametrize(("output", "units"), [("identity", 2), ("sigmoid_mse", 1), ("sigmoid", 3), ("perceptron", 1)])
def test_models_without_probabilities_of_classes(output, units, make_run, fails):
    run = make_run(["0", "1", "2"][: max(2, units)], [4, units], output=output)
    fails(f"{units} unit(s) with output {output!r} make no probabilities of classes; give a model", run, "image.png")


def test_damaged_model(run_folder, tmp_path, fails):
    path = tmp_path / "model.safetensors"
    path.write_bytes((run_folder / "model.safetensors").read_bytes()[:-4])
    fails("was not loaded", path, "image.png")


def test_as_a_process(run_folder, tmp_path, mnist):
    path = tmp_path / "digits.npz"
    np.savez(path, x=mnist[1].X[:3], y=mnist[1].y[:3])
    command = [sys.executable, "-m", "mlp_xp.predict", str(run_folder)]
    run = subprocess.run([*command, str(path)], capture_output=True, text=True)
    assert (run.returncode, run.stderr, run.stdout.count("\n")) == (0, "", 4)
    run = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (
        2,
        "",
        f"mlp-xp predict: {tmp_path}: a folder, where a file is needed; name a file in it\n",
    )


def test_installed_command(run_folder, tmp_path, mnist, capsys):
    path = tmp_path / "digits.npz"
    np.savez(path, x=mnist[1].X[:3], y=mnist[1].y[:3])
    assert mlp_xp_main(["predict", str(run_folder), str(path)]) == 0
    assert capsys.readouterr().out.count("\n") == 4
