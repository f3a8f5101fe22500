"""``mlp-xp train``: presets, run folders, configuration, and one sentence for everything that is wrong."""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from time import process_time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlp_xp as mx
from mlp_xp.__main__ import main as mlp_xp_main
from mlp_xp.cli import config as config_module
from mlp_xp.cli.config import Config, parse
from mlp_xp.cli.data import load_data, split_off
from mlp_xp.cli.errors import exit_code, printable
from mlp_xp.cli.presets import PRESETS
from mlp_xp.cli.train import enough_epochs
from mlp_xp.devices import get_device
from mlp_xp.fit import DivergenceError
from mlp_xp.kernels.cpu.compiled import library
from mlp_xp.optim import OPTIMIZERS
from mlp_xp.rows.checks import as_features
from mlp_xp.runs.report import result_table
from mlp_xp.train import main

PNG = b"\x89PNG\r\n\x1a\n"
TINY = ["--hidden", "3", "--epochs", "1", "--quiet"]  # for runs of which only the way they are set up matters


def train(*arguments, **settings):
    return subprocess.run(
        [sys.executable, "-m", "mlp_xp.train", *map(str, arguments)], capture_output=True, text=True, **settings
    )


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@pytest.fixture
def digits(rng):
    """X (24, 4, 4) with the bright pixel where the label (24,) of 0, 1, 2 says."""
    y = np.arange(24, dtype=np.uint8) % 3
    X = rng.integers(0, 50, (24, 4, 4), dtype=np.uint8)
    X[np.arange(24), y, y] = 255
    return X, y


@pytest.fixture
def idx_folder(tmp_path, digits):
    folder = tmp_path / "idx"
    folder.mkdir()
    X, y = digits
    for part, rows in (("train", slice(18)), ("t10k", slice(18, None))):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(X[rows]))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(y[rows])))
    return folder


@pytest.fixture
def fails(tmp_path, fails):
    """As everywhere, and the command must leave nothing: f(words, *arguments)."""

    def check(words, *arguments):
        out = tmp_path / "must-not-appear"
        fails(words, "--out", out, *arguments)
        assert not out.exists()

    return check


def test_xor_preset_learns_and_leaves_a_run_folder(tmp_path, capsys):
    folder = tmp_path / "new" / "run"
    assert main(["--preset", "xor", "--out", str(folder)]) == 0
    printed = capsys.readouterr().out
    heading, *rows = printed.splitlines()[:12]
    assert heading.split("  ") == ["epoch", "training loss", "test loss", "test accuracy", "seconds"]
    lines = [row.split() for row in rows]
    assert [int(number) for number, *_ in lines] == [1, *range(20, 201, 20)]
    assert "training        0.0025      1.0000" in printed
    assert f"run folder: {folder}\n" in printed

    names = {".lock", "checkpoint.safetensors", "config.json", "env.json", "history.csv", "model.safetensors", "plots"}
    assert {path.name for path in folder.iterdir()} == names
    config = json.loads((folder / "config.json").read_text())
    assert config["hidden"] == [4]
    assert config["optimizer"] == "adam"
    assert config["labels"] == ["0", "1"]
    environment = json.loads((folder / "env.json").read_text())
    assert environment["versions"]["numpy"] == np.__version__
    assert environment["device"] == "cpu"
    assert environment["plan"]["kind"] == ("dense" if library() is None else "sparse")  # half of the numbers are zero
    with open(folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 201))
    assert float(rows[0]["loss"]) == pytest.approx(float(lines[0][1]), abs=1e-4)
    assert mx.MLP.load(folder / "model.safetensors").score(*mx.datasets.xor()) == 1.0
    pictures = list((folder / "plots").iterdir())
    assert {path.stem for path in pictures} == {"confusion_matrix", "decision_regions", "learning_curves"}
    assert all(path.read_bytes().startswith(PNG) for path in pictures)


def columns(folder):
    """Return the columns of a run's history.csv as lists of float, by name."""
    with open(folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


@pytest.mark.parametrize("options", [[], ["--validation", "0.5"], ["--output", "identity"], ["--batch-size", "2"]])
def test_every_place_says_the_same_of_the_same_data(options, tmp_path, capsys):
    """The lines, the CSV and the table at the end name the data and the score alike, and agree on the numbers."""
    assert main(["--preset", "xor", "--epochs", "4", *options, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out.splitlines()
    titles, *rows = [re.split(r" {2,}", line.strip()) for line in printed[:5]]
    data, short = ("validation", "val") if "--validation" in options else ("test", "test")
    score, column = ("R^2", "r2") if "identity" in options else ("accuracy", "accuracy")
    assert titles == ["epoch", "training loss", f"{data} loss", f"{data} {score}", "seconds"]
    history = columns(tmp_path / "run")
    assert list(history) == ["epoch", "loss", f"{short}_loss", f"{short}_{column}", "lr", "seconds"]
    for name, shown in zip(list(history)[:4], zip(*rows, strict=True), strict=False):
        np.testing.assert_allclose([float(value) for value in shown], history[name], atol=5.1e-5)
    table = {line.split()[0]: line.split()[1:] for line in printed[5:]}
    assert table["loss"] == [score]
    np.testing.assert_allclose([float(value) for value in table[data]], [float(rows[-1][i]) for i in (2, 3)])
    assert all(len(line) <= 80 for line in printed if not line.startswith("run folder"))


@pytest.mark.parametrize("options", [[], ["--hidden", "64,32,16", "--activation", "relu,tanh,sigmoid"]])
def test_what_a_dry_run_says_fits_a_terminal(options, capsys):
    assert main(["--preset", "mnist-5v8", *options, "--dry-run"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("plan ") for line in printed)
    assert max(map(len, printed)) <= 80


@pytest.mark.parametrize("k", range(2, 40, 3))
def test_accuracies_by_class_wrap_between_classes(k):
    X, labels = np.zeros((k, 1)), [f"class{label}" for label in range(k)]
    model, data = mx.MLP([1, k]), mx.datasets.Dataset(X, np.arange(k))
    history = mx.fit(model, *data, epochs=1)
    lines = result_table(model, history, {"training": data, "test": data}, labels).splitlines()[3:]
    lines = lines[: next(i for i, line in enumerate(lines) if re.match(r"1 epoch, [\d.]+ s, ", line))]
    assert all(re.fullmatch(r"(by class|        )    (class\d+ [\d.]+%  )*class\d+ [\d.]+%", line) for line in lines)
    assert " ".join(lines).count("class") == k + 1
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_passes_a_dry_run_and_writes_nothing(preset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--preset", preset, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    *model, plan, memory, pace, samples, folder = printed.splitlines()
    assert re.fullmatch(r"MLP\(\[.*\): [\d,]+ parameters", " ".join(model))
    assert re.fullmatch(r"plan \w+: .*", plan)
    assert re.fullmatch(r"about \d+ MB of memory, beside the data and what the import takes", memory)
    assert re.fullmatch(r"about .* an epoch, .* in all, by a trial on [\d,]+ samples", pace)
    assert re.fullmatch(r"[\d,]+ training and [\d,]+ test samples", samples)
    assert re.fullmatch(rf"would write runs/\d+-\d+-{preset}", folder)
    assert not list(tmp_path.iterdir())


def test_without_arguments_ten_digits_are_learnt_under_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert parse([]) == Config()
    assert main(["--epochs", "1", "--hidden", "16"]) == 0
    assert "epoch  training loss  test loss  test accuracy  seconds\n    1" in capsys.readouterr().out
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("-mnist")
    model = mx.MLP.load(folder / "model.safetensors")
    assert (model.sizes, model.activation, model.init) == ((784, 16, 10), ("relu",), "he_normal")
    assert len(list((folder / "plots").iterdir())) == 5


def test_the_defaults_get_98_percent_of_ten_digits_right(rng, tmp_path, capsys):
    seed = int(rng.integers(10))
    assert main(["--seed", str(seed), "--quiet", "--out", str(tmp_path / "run")]) == 0
    table = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert float(table["test"][1]) >= 0.98, seed
    assert columns(tmp_path / "run")["epoch"] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_the_lectures_ten_digits_are_a_preset(tmp_path, capsys):
    """784-196-10 with sigmoids, whose loss falls for twelve epochs."""
    assert main(["--preset", "mnist-10", "--quiet", "--out", str(tmp_path / "run")]) == 0
    table = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert float(table["test"][1]) >= 0.975
    model, history = mx.MLP.load(tmp_path / "run" / "model.safetensors"), columns(tmp_path / "run")
    assert (model.sizes, model.activation, model.init) == ((784, 196, 10), ("sigmoid",), "xavier_normal")
    assert history["loss"] == sorted(history["loss"], reverse=True)
    assert history["lr"] == [0.003] * 12


@pytest.mark.parametrize(
    "options",
    [
        [],
        *(["--preset", name] for name in PRESETS),
        ["--optimizer", "sgd", "--momentum", "0.5", "--tol", "0", "--patience", "3"],
    ],
)
@pytest.mark.parametrize("optimizer", [[], *(["--optimizer", name] for name in OPTIMIZERS)])
def test_a_preset_fits_every_optimizer_and_a_config_json_repeats_it(options, optimizer, tmp_path):
    if optimizer and "sgd" in options:
        options = ["--l2", "0.1"]
    config = parse([*options, *optimizer])
    if config.optimizer == "lbfgs":
        assert (config.lr, config.schedule, config.batch_size) == (1.0, "cosine", 0)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**asdict(config), "labels": ["0"], "samples": 1}))
    assert parse(["--config", str(file)]) == config


def test_what_the_optimizer_does_not_have_is_refused_in_a_file(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('optimizer = "lbfgs"\nmomentum = 0.9\nlr = 0.5\n')
    with pytest.raises(ValueError, match=r"--optimizer lbfgs has no --lr, --momentum; leave that out, or choose sgd$"):
        parse(["--config", str(file)])
    assert parse(["--config", str(file), "--optimizer", "sgd"]).momentum == 0.9


@pytest.mark.parametrize(
    ("options", "lr"),
    [
        ([], 0.005),
        (["--optimizer", "adamw"], 0.005),
        (["--optimizer", "sgd"], 0.2),
        (["--optimizer", "sgd", "--momentum", "0.9"], 0.02),
        (["--optimizer", "sgd", "--lr", "0.5"], 0.5),
        (["--preset", "mnist-5v8"], 0.1),
        (["--preset", "xor", "--optimizer", "sgd"], 0.1),
    ],
)
def test_the_learning_rate_fits_the_optimizer_unless_it_is_given(options, lr):
    assert parse(options).lr == pytest.approx(lr)


@pytest.mark.parametrize(("momentum", "shown"), [("1", "1.0"), ("1.5", "1.5"), ("-0.5", "-0.5"), ("nan", "nan")])
def test_a_bad_momentum_is_what_is_complained_of(momentum, shown, fails):
    """And not the learning rate that was made from it."""
    words = f"--momentum takes a number from 0 up to, but not including, 1; got {shown}"
    fails(words, "--data", "xor", "--optimizer", "sgd", "--momentum", momentum)


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("xor", []),
        ("moons", []),
        ("spirals", []),
        ("moons", ["--activation", "tanh"]),
        ("spirals", ["--optimizer", "sgd", "--momentum", "0.9"]),
    ],
)
def test_small_data_are_learnt_without_any_other_option(data, options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mlp_xp.cli.train._draw", lambda *arguments: None)
    assert main(["--data", data, *options, "--quiet", "--out", str(tmp_path / "run")]) == 0
    table = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert float(table["test"][1]) >= 0.97


@given(n=st.integers(1, 10**7))
def test_less_data_are_seen_for_more_epochs(n):
    epochs = enough_epochs(n, "adam")
    assert 5 <= epochs <= 1000
    assert enough_epochs(n + 1, "adam") <= epochs
    assert n * epochs >= 240_000 or epochs == 1000


def test_what_was_chosen_for_a_run_is_written_down(tmp_path):
    """So that it is resumed, and repeated on other data, with the same."""
    np.savez(tmp_path / "data.npz", X=np.eye(600, 3), y=np.arange(600) % 2)
    options = ["--data", str(tmp_path / "data.npz"), "--hidden", "", "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*options, "--tol", "0", "--patience", "1"]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["samples"], config["epochs"]) == (450, 666)
    assert (config["init"], config["lr"]) == ("xavier_normal", 0.005)
    assert parse(["--config", str(tmp_path / "run" / "config.json"), "--data", "xor"]).epochs == 666


@pytest.mark.slow
def test_five_against_eight_falls_as_in_the_lecture(tmp_path, capsys):
    assert main(["--preset", "mnist-5v8", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    lecture = [0.7055, 0.3225, 0.1940, 0.1587, 0.1429, 0.1337]  # at iterations 0, 100, ..., 500
    table = {line.split()[0]: line.split()[1:] for line in printed.splitlines()}
    costs = [*columns(tmp_path / "run")["loss"][::100], float(table["training"][0])]
    np.testing.assert_allclose(costs, lecture, rtol=0.05)
    assert re.findall(r"^ +(\d+) ", printed, re.MULTILINE) == ["1", "100", "200", "300", "400", "500"]
    assert float(table["test"][1]) >= 0.956


def test_configuration_file_goes_before_preset_and_command_line_before_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('preset = "xor"\nlr = 0.5\nhidden = [7, 5]\nactivation = "relu,tanh"\nquiet = true\nseed = 9\n')
    config = parse(["--config", str(file), "--lr", "0.25", "--no-quiet"])
    assert (config.data, config.epochs) == ("xor", 200)
    assert (config.hidden, config.activation, config.seed) == ((7, 5), ("relu", "tanh"), 9)
    assert (config.lr, config.quiet) == (0.25, False)
    assert parse(["--config", str(file), "--preset", "mnist-5v8"]).data == "mnist:5,8"
    assert parse(["--hidden", ""]).hidden == ()
    file.write_text("dropout = 0.25\n")
    assert parse(["--config", str(file)]).dropout == (0.25,)
    file.write_text("dropout = [0.25, 0]\nhidden = [5, 6]\n")
    assert parse(["--config", str(file)]).dropout == (0.25, 0.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rate = 0.1", "unknown options learning_rate; known are activation"),
        ("epochs = 2.5", "--epochs takes a whole number; got 2.5"),
        ("epochs = true", "--epochs takes a whole number; got True"),
        ("hidden = [2.5]", "--hidden takes whole numbers with commas, as in 128,64; got [2.5]"),
        ("quiet = 1", "--quiet takes true or false; got 1"),
        ('lr = "fast"', "--lr takes a number, as in 0.01; got 'fast'"),
        ("hidden = [true]", "--hidden takes whole numbers with commas, as in 128,64; got [True]"),
        ("dropout = [false]", "--dropout takes numbers with commas, as in 0.5,0.2; got [False]"),
        ("dropout = 2", "--dropout takes rates from 0 up to, but not including, 1; got 2.0"),
        ("activation = [true]", "--activation takes names with commas, as in relu,tanh; got [True]"),
        ("seed = {}", "--seed takes a whole number; got {}"),
        ('optimizer = "adm"', "--optimizer takes one of sgd, adam, adamw, lbfgs; got 'adm', did you mean adam?"),
        ("batchsize = 3", "unknown options batchsize, did you mean batch_size?; known are"),
        ("lr" + " . a" * 65 + " = 1", "has a line with more than 64 dots"),
        ("[" + "a." * 65 + "a]", "has a line with more than 64 dots"),
        ('{"lr": 1', "is not a JSON file"),
        ('{"xyz": 1}', "unknown options xyz;"),
        ('preset = "iris"', "unknown preset 'iris'; choose from mnist-10"),
        ("lr = ", "is not a TOML file"),
        ("lr = " + "[" * 10_000, "is not a TOML file"),
        ("lr = " + "1" * 10_000, "is not a TOML file"),
    ],
)
def test_bad_configuration_files(text, words, tmp_path, fails):
    file = tmp_path / "run.toml"
    file.write_text(text)
    fails(words, "--config", file)


def test_configuration_files_are_small_enough_to_be_read_at_once(tmp_path, fails):
    file = tmp_path / "run.toml"
    file.write_text("lr = 0.5 #".ljust(2**14))
    assert parse(["--config", str(file)]).lr == 0.5
    file.write_text("lr = 0.5 #".ljust(2**14 + 1))
    fails("run.toml has more than 16384 bytes, the most allowed", "--config", file)
    fails("/dev/zero has more than 16384 bytes", "--config", "/dev/zero")
    file.write_text('{"lr": 0.5}'.ljust(2**20 + 1))
    fails("run.toml has more than 1048576 bytes", "--config", file)
    file.write_text(
        "\n".join("lr" + ".a" * 64 + f".b{i} = 1" for i in range(120))[: 2**14]
    )  # the worst that is allowed
    began = process_time()
    fails("", "--config", file)
    assert process_time() - began < 0.5


def test_configuration_files_may_begin_with_a_byte_order_mark(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("lr = 0.5", encoding="utf-8-sig")
    assert parse(["--config", str(file)]).lr == 0.5


def test_a_run_is_repeated_from_its_own_configuration(tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    options = ["--data", "moons", "--hidden", "5,4", "--activation", "tanh", "--tol", "0", "--threads", "1"]
    assert (
        main([*options, "--epochs", "3", "--nesterov", "--optimizer", "sgd", "--momentum", "0.5", "--out", str(first)])
        == 0
    )
    assert main(["--config", str(first / "config.json"), "--out", str(again)]) == 0
    assert (
        mx.MLP.load(first / "model.safetensors").theta.tolist()
        == mx.MLP.load(again / "model.safetensors").theta.tolist()
    )
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (first, again))
    assert before == {**after, "out": str(first)}
    assert parse(["--config", str(first / "config.json")]).out is None


def test_every_option_survives_its_own_way_through_a_file():
    """Each field's default, written as JSON, is read back as the same value of the same type."""
    for name, value in vars(Config()).items():
        if value is not None:
            assert config_module._convert(name, json.loads(json.dumps(value))) == value


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--xyz", "red"], "unrecognized arguments: --xyz red; --help lists the options"),
        (["--epohcs", "3"], "unrecognized arguments: --epohcs 3, did you mean --epochs?; --help lists"),
        (["--epoch", "3"], "unrecognized arguments: --epoch 3, did you mean --epochs?; --help lists"),
        (["--preset", "iris"], "unknown preset 'iris'; choose from mnist-10, mnist-5v8"),
        (["--preset", "mnist5v8"], "unknown preset 'mnist5v8', did you mean mnist-5v8?; choose from"),
        (["--data", "minst"], "unknown data 'minst', did you mean mnist?: no such path"),
        (["--data", "iris"], "unknown data 'iris': no such path"),
        (["--data", "mnist:5,x"], "mnist:5,8; got '5,x'"),
        (["--data", "mnist:5"], "at least two different whole numbers"),
        (["--hidden", "16x16"], "--hidden takes whole numbers with commas, as in 128,64; got '16x16'"),
        (["--hidden", "12,0"], "layer size"),
        (["--activation", "swishy"], "unknown activation 'swishy'; choose from 'sigmoid'"),
        (["--activation", "tanh,relu"], "2 activations for 1 hidden layers"),
        (["--output", "argmax"], "unknown output 'argmax'"),
        (["--init", "magic"], "magic"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--precision", "fp16"], "--precision takes one of fp32, fp64, tf32, bf16, fp16x2; got 'fp16'"),
        (["--epochs", "0"], "epochs must be a whole number of at least 1, got 0"),
        (["--epochs", "many"], "--epochs takes a whole number; got 'many'"),
        (["--batch-size", "-3"], "batch-size must be a whole number of at least 0, got -3"),
        (["--optimizer", "newton"], "--optimizer takes one of sgd, adam, adamw, lbfgs; got 'newton'"),
        (["--lr", "nan"], "lr must be a finite number above 0"),
        (["--optimizer", "sgd", "--nesterov"], "nesterov needs a momentum"),
        (["--momentum", "0.9"], "--optimizer adam has no --momentum; leave that out, or choose sgd"),
        (["--nesterov"], "--optimizer adam has no --nesterov; leave that out, or choose sgd"),
        (["--weight-decay", "0.1"], "--optimizer adam has no --weight-decay; leave that out, or choose adamw"),
        (["--optimizer", "sgd", "--weight-decay", "0.1"], "--optimizer sgd has no --weight-decay"),
        (["--optimizer", "adamw", "--momentum", "0.1"], "--optimizer adamw has no --momentum"),
        (["--momentum", "0.9", "--weight-decay", "0.1"], "has no --momentum, --weight-decay; leave that out"),
        (["--optimizer", "lbfgs", "--lr", "0.5"], "lbfgs has no --lr; leave that out, or choose sgd or adam or adamw"),
        (["--optimizer", "lbfgs", "--lr-bias", "0.5", "--warm-up", "3"], "lbfgs has no --lr-bias, --warm-up; leave"),
        (["--optimizer", "lbfgs", "--schedule", "constant"], "lbfgs has no --schedule; leave"),
        (["--optimizer", "lbfgs", "--dropout", "0.5"], "lbfgs has no --dropout; leave that out, or choose sgd or adam"),
        (["--dropout", "1"], "--dropout takes rates from 0 up to, but not including, 1; got 1.0"),
        (["--dropout", "0.5,nan"], "--dropout takes rates from 0 up to, but not including, 1; got 0.5,nan"),
        (["--dropout", "half"], "--dropout takes numbers with commas, as in 0.5,0.2; got 'half'"),
        (
            ["--dropout", "0.5,0.2"],
            "got 2 rates of dropout for 1 hidden layers; give one rate, or one per hidden layer",
        ),
        (["--preset", "xor", "--optimizer", "lbfgs", "--lr", "0.2"], "lbfgs has no --lr; leave"),
        (["--patience", "3"], "--patience has no effect without --tol"),
        (["--l2", "-1"], "l2 must be"),
        (["--tol", "-1"], "tol must be a finite number"),
        (["--patience", "0"], "patience must be"),
        (["--validation", "1.5"], "--validation takes a share from 0 up to, but not including, 1; got 1.5"),
        (["--validation", "0.9"], "validation 0.9 takes all 4 training samples"),
        (["--plan", "spare"], "--plan takes one of auto, dense, sparse, zero, ragged; got 'spare'"),
        (["--plan", "ragged", "--device", "strict"], "plan 'ragged' is not available on"),
        (["--plan", "zero", "--device", "strict"], "plan 'zero' is not available on"),
        (["--threads", "0"], "threads must be a whole number of at least 1, got 0"),
        (["--seed", "-1"], "seed must be a whole number of at least 0, got -1"),
        (["--report-every", "-1"], "report-every must be"),
        (["--checkpoint-every", "0"], "so many epochs, as in 5, or seconds, as in 30s; got '0'"),
        (["--checkpoint-every", "5min"], "so many epochs, as in 5, or seconds, as in 30s; got '5min'"),
        (["--config", "no\nwhere.toml"], "cannot read the configuration file no where.toml: No such file"),
        (["--config", "nowhere.toml"], "cannot read the configuration file nowhere.toml: No such file"),
        (["--hidden", "2000000000"], "llocate"),
        (["--hidden", "99999999999999999999"], "--hidden takes at most 2147483647 units in a layer"),
        (["--quiet=1"], "ignored explicit argument"),
        (["--config", "\x1b[31mred"], "configuration file \\x1b[31mred: No such file"),
        (["--out", "d\udce4t"], "--out d\\udce4t is no UTF-8, so no file can keep it; rename it"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_bad_options_are_refused_by_a_run_and_by_a_dry_run(arguments, words, dry, fails):
    preset = [] if arguments[0] in ("--data", "--preset") else ["--preset", "xor"]
    fails(words, *preset, *arguments, *dry)


def test_cuda_without_a_gpu_says_so(fails):
    try:
        mx.MLP([1, 1], output="identity", device="cuda")
    except ValueError:
        fails("device 'cuda' needs", "--preset", "xor", "--device", "cuda")
    else:
        pytest.skip("there is a GPU")


def test_data_that_do_not_fit_the_output(fails):
    fails("yes-or-no outputs need targets 0 or 1, got values from 0", "--output", "sigmoid")


def spoil_idx(folder, name, spoil):
    path = next(folder.glob(name))
    path.write_bytes(spoil(path.read_bytes()))


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        ("train-images*", lambda b: b"", "not an IDX file"),
        ("train-images*", lambda b: b[:3] + b"\x02" + b[4:], "idx3-ubyte: the header announces"),
        ("train-images*", lambda b: b[:4] + b"\xff\xff\xff\xff" + b[8:], "the header announces"),
        ("train-images*", lambda b: b[:2] + b"\x99" + b[3:], "unknown IDX type code 0x99"),
        ("train-labels*", lambda b: b[:-9], "damaged gzip data"),
        ("train-labels*", lambda b: gzip.compress(gzip.decompress(b)[:-1]), "the file ends after 17"),
        ("train-labels*", lambda b: gzip.compress(idx(np.zeros(17, np.uint8))), "18 samples but 17 labels"),
    ],
)
def test_damaged_idx_files(name, spoil, words, idx_folder, fails):
    spoil_idx(idx_folder, name, spoil)
    fails(words, "--data", idx_folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("a,b,label\n", "no row below"),
        ("a,b,label\n1,2,0\n1,nan,1\n", "line 3, column 2: 'nan' is not a finite number"),
        ("a,b,label\n1,2,0\n1,2\n", "line 3: 2 values, but the first line has 3"),
        ("a,b,label\n1,2,0\n1,2,-1\n", "'-1' is not a label"),
        ("a,b,c\n1,2,0\n", "name the column"),
    ],
)
def test_damaged_csv_files(text, words, tmp_path, fails):
    file = tmp_path / "data.csv"
    file.write_text(text)
    fails(words, "--data", file)


def test_damaged_npz_files(tmp_path, fails):
    file = tmp_path / "data.npz"
    np.savez(file, X=np.full((6, 2), np.inf), y=np.zeros(6, int))
    fails("samples must be finite", "--data", file)
    file.write_bytes(file.read_bytes()[:-30])
    fails("data.npz: ", "--data", file)
    fails("this is none of them", "--data", __file__)


@pytest.mark.parametrize("kind", ["idx", "npz", "csv"])
def test_own_data(kind, tmp_path, idx_folder, digits):
    X, y = digits
    path = idx_folder if kind == "idx" else tmp_path / f"data.{kind}"
    if kind == "npz":
        np.savez(path, x_train=X[:18], y_train=y[:18], x_test=X[18:], y_test=y[18:])
    if kind == "csv":
        np.savetxt(path, np.column_stack([y, X.reshape(24, -1)]), fmt="%d", delimiter=",")
    folder = tmp_path / "run"
    assert main(["--data", str(path), "--out", str(folder), "--hidden", "8", "--epochs", "40", "--lr", "0.05"]) == 0
    model = mx.MLP.load(folder / "model.safetensors")
    assert model.sizes == (16, 8, 3)
    assert model.score(X.reshape(24, 16), y) == 1.0
    assert json.loads((folder / "config.json").read_text())["labels"] == ["0", "1", "2"]


def test_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    for out, words in (
        (tmp_path / "file", "file is not a folder; choose another --out"),
        (tmp_path / "full", "already there and not empty; choose another --out"),
        (tmp_path / "file" / "run", "a file, where a folder is needed"),
        ("/proc/run", "/proc: nothing can be written in this folder"),
    ):
        assert main(["--preset", "xor", "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "thesis.tex"]


def test_divergence_exits_with_1(tmp_path, capsys):
    options = ["--output", "identity", "--optimizer", "sgd", "--lr", "1e30", "--quiet", "--out", str(tmp_path / "run")]
    assert main(["--preset", "xor", *options]) == 1
    error = capsys.readouterr().err
    assert (
        f"train with a smaller learning rate, or scale the inputs; nothing was saved in {tmp_path / 'run'}\n" in error
    )
    assert error.count("\n") == 1


def test_validation_share_and_early_stopping(tmp_path, capsys):
    folder = tmp_path / "run"
    options = ["--data", "moons", "--validation", "0.245", "--tol", "10", "--patience", "3", "--out", str(folder)]
    assert main([*options, "--epochs", "50", "--hidden", "4"]) == 0
    assert "4 epochs, " in capsys.readouterr().out
    assert json.loads((folder / "config.json").read_text())["samples"] == 151
    with open(folder / "history.csv", newline="") as file:
        right = [49 * float(row["val_accuracy"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(right, np.round(right))  # of 49 samples, not of the 200 for testing


def test_same_seed_gives_the_same_model(tmp_path):
    for name in ("first", "second"):
        assert main(["--preset", "xor", *TINY, "--out", str(tmp_path / name)]) == 0
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second


def test_no_hidden_layer_has_no_dropout(tmp_path, capsys):
    options = ["--data", "moons", "--hidden", "", "--quiet", "--epochs", "1", "--out", str(tmp_path / "run")]
    assert main([*options, "--dropout", "0.5"]) != 0
    assert "there is no hidden layer, got 0.5; leave it at 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*options, "--dropout", "0"]) == 0


@pytest.mark.parametrize("zeros", ["0", "0.0,0.0"])
def test_lbfgs_takes_a_dropout_of_zeros(zeros, tmp_path):
    options = ["--data", "moons", "--hidden", "4,3", "--quiet", "--optimizer", "lbfgs", "--dropout", zeros]
    run = tmp_path / "run"
    assert main([*options, "--epochs", "2", "--out", str(run)]) == 0
    assert main([*options, "--epochs", "3", "--resume", str(run)]) == 0
    assert parse(["--config", str(run / "config.json")]).optimizer == "lbfgs"


def test_dropout_reaches_the_training_and_the_run_goes_on_with_it(tmp_path):
    options = ["--data", "moons", "--hidden", "20,9", "--quiet", "--dropout", "0.5,0.2"]
    straight, parted, repeated = (tmp_path / name for name in ("straight", "parted", "repeated"))
    assert main([*options, "--epochs", "4", "--schedule", "constant", "--out", str(straight)]) == 0
    assert main([*options, "--epochs", "2", "--schedule", "constant", "--out", str(parted)]) == 0
    assert main(["--resume", str(parted), "--epochs", "4", "--dropout", "0.5,0.2"]) == 0
    assert main(["--config", str(straight / "config.json"), "--out", str(repeated)]) == 0
    assert json.loads((straight / "config.json").read_text())["dropout"] == [0.5, 0.2]
    thetas = [mx.MLP.load(folder / "model.safetensors").theta for folder in (straight, parted, repeated)]
    np.testing.assert_array_equal(thetas[1], thetas[0])
    np.testing.assert_array_equal(thetas[2], thetas[0])
    whole = tmp_path / "whole"
    assert main([*options[:-2], "--epochs", "4", "--schedule", "constant", "--out", str(whole)]) == 0
    assert (mx.MLP.load(whole / "model.safetensors").theta != thetas[0]).any()


def test_schedules_reach_the_optimizer(tmp_path):
    folder = tmp_path / "run"
    options = ["--epochs", "6", "--warm-up", "2", "--schedule", "cosine", "--lr", "0.4", "--quiet"]
    assert main(["--preset", "xor", *options, "--out", str(folder)]) == 0
    with open(folder / "history.csv", newline="") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(rates[:3], [0.2, 0.4, 0.4])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] < 0.1


def test_module_and_installed_command_are_the_same(tmp_path, capsys):
    run = train("--preset", "xor", *TINY, "--out", tmp_path / "run")
    assert (run.returncode, run.stderr) == (0, "")
    assert "run folder: " in run.stdout
    assert mlp_xp_main(["train", "--preset", "xor", "--dry-run"]) == 0
    assert mlp_xp_main(["--help"]) == 0
    assert "mlp-xp predict" in capsys.readouterr().out
    assert mlp_xp_main(["fit"]) == 2
    assert capsys.readouterr().err.startswith("mlp-xp: unknown command 'fit'; choose from train, predict, ")
    assert mlp_xp_main(["trian"]) == 2
    assert "unknown command 'trian', did you mean train?; choose from" in capsys.readouterr().err


@pytest.mark.parametrize("command", [mlp_xp_main, main])
def test_the_version_is_the_packages(command, capsys):
    with suppress(SystemExit):
        assert command(["--version"]) == 0
    assert capsys.readouterr().out == f"mlp_xp {mx.__version__}\n"


def cpu_seconds(*command):
    def used():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return used() - before


@pytest.mark.parametrize("command", ["train", "predict", "trace"])
def test_help_is_quick_and_imports_little(command):
    heavy = "{'torch', 'jax', 'matplotlib', 'sklearn', 'PIL', 'cupy', 'pooch', 'tqdm', 'numpy.f2py'}"
    code = f"import sys, mlp_xp.{command}; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
    measured = []

    def is_quick():
        measured.append((cpu_seconds("-m", f"mlp_xp.{command}", "--help"), cpu_seconds("-c", "import numpy")))
        ours, numpys = measured[-1]
        return ours < 0.4 or ours < 2.5 * numpys  # where even NumPy takes long, the machine is busy

    assert any(is_quick() for _ in range(20)), measured


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in printed for name in Config.__dataclass_fields__)
    assert all(preset in printed for preset in PRESETS)


@pytest.mark.parametrize("arguments", [["--help"], ["--preset", "xor", "--dry-run"], ["--preset", "xor"]])
def test_closed_pipe_is_quiet(arguments, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # with a buffer, Python tries once more when it exits
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mlp_xp.train", *arguments]
    run = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=tmp_path)
    os.close(writer)
    assert (run.returncode, run.stderr) == (128 + signal.SIGPIPE, b"")


def test_pictures_are_left_out_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith("mlp_xp.plots")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(mx, "plots", raising=False)
    importlib.invalidate_caches()
    assert main(["--preset", "xor", *TINY, "--out", str(tmp_path / "run")]) == 0
    assert "no pictures: mlp_xp.plots needs matplotlib" in capsys.readouterr().err
    assert (tmp_path / "run" / "model.safetensors").exists()


# Test data choose nothing.


def test_tol_without_validation_keeps_a_share_of_the_training_data(tmp_path, capsys):
    """The run is bit for bit the one with that share given: other test data cannot change the model."""
    options = ["--data", "moons", "--tol", "0", "--patience", "2", "--epochs", "40", "--lr", "0.1"]
    for name, share in (("kept", []), ("given", ["--validation", "0.1"]), ("without", None)):
        chosen = [*options, *share] if share is not None else [*options[:2], *options[6:], "--quiet"]
        assert main([*chosen, "--out", str(tmp_path / name)]) == 0
        printed = capsys.readouterr().out
        said = "--tol watches 10% of the training data, kept for validation: test data choose nothing\n"
        assert printed.startswith(said) == (name == "kept")
    kept, given, without = (
        json.loads((tmp_path / n / "config.json").read_text()) for n in ("kept", "given", "without")
    )
    assert (kept["samples"], given["samples"], without["samples"]) == (180, 180, 200)
    assert kept["validation"] == 0.1
    models = [mx.MLP.load(tmp_path / name / "model.safetensors").theta.tolist() for name in ("kept", "given")]
    assert models[0] == models[1]
    history = columns(tmp_path / "kept")
    best = int(np.argmin(history["val_loss"]))
    assert not any(name.startswith("test") for name in history)
    _, rest = split_off(mx.datasets.Dataset(*mx.datasets.moons(seed=0)), 0.1, 0)
    assert mx.MLP.load(tmp_path / "kept" / "model.safetensors").evaluate(*rest)[0] == history["val_loss"][best]


def test_the_best_epoch_is_named(tmp_path, capsys):
    assert main(["--data", "moons", "--tol", "0", "--epochs", "4", "--quiet", "--out", str(tmp_path / "run")]) == 0
    best = int(np.argmin(columns(tmp_path / "run")["val_loss"])) + 1
    assert capsys.readouterr().out.startswith(f"the parameters are those of epoch {best}, the best on validation\n")


@given(n=st.integers(2, 60), share=st.floats(1e-6, 0.999), seed=st.integers(0, 2**32))
def test_a_share_is_at_least_one_sample_and_splits_the_data(n, share, seed):
    data = mx.datasets.Dataset(np.arange(n)[:, None], np.arange(n))
    if max(1, round(share * n)) >= n:
        with pytest.raises(ValueError, match=f"takes all {n} training samples"):
            split_off(data, share, seed)
        return
    rest, part = split_off(data, share, seed)
    assert len(part.y) == max(1, round(share * n))
    assert sorted([*rest.y, *part.y]) == list(range(n))
    assert (rest.X[:, 0] == rest.y).all()
    assert split_off(data, share, seed)[1].y.tolist() == part.y.tolist()


# Classes are counted over all parts.


@pytest.fixture
def rare(tmp_path):
    """A file of 60 samples, two of which are of class 2."""
    rng = np.random.default_rng(1)
    table = np.c_[np.array([0, 1] * 29 + [2, 2]), rng.normal(size=(60, 2))]
    np.savetxt(tmp_path / "rare.csv", table, delimiter=",", fmt="%.6g")
    return tmp_path / "rare.csv"


@pytest.mark.parametrize("options", [["--seed", "23"], ["--seed", "25"], ["--seed", "24", "--validation", "0.3"]])
def test_a_rare_class_may_fall_into_any_part(options, rare, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["--data", str(rare), *options, "--hidden", "3", "--epochs", "1", "--out", str(folder)]) == 0
    assert mx.MLP.load(folder / "model.safetensors").sizes == (2, 3, 3)
    said = "1 of 3 classes have no training sample: 2\n" in capsys.readouterr().out
    assert said == (2 not in load_data(parse(["--data", str(rare), *options])).train.y)


@pytest.mark.parametrize(("quiet", "said"), [([], True), (["--quiet"], False), (["--dry-run"], True)])
def test_what_the_reader_of_a_file_logs_is_said(quiet, said, rare, tmp_path, capsys, monkeypatch):
    """Which column the labels are in, that whole numbers count as pixels; and the logger is left as it was."""
    logger = logging.getLogger("mlp_xp.datasets")
    before = (logger.level, list(logger.handlers))

    def read(path, seed):
        logger.info("%s: column %d holds the labels", path, 1)
        return mx.datasets.load(path, seed=seed)

    monkeypatch.setattr("mlp_xp.cli.data.load", read)
    assert main(["--data", str(rare), *TINY[:4], *quiet, "--out", str(tmp_path / "\x1b[31mrun")]) == 0
    assert (f"{rare}: column 1 holds the labels" in capsys.readouterr().out) == said
    assert (logger.level, list(logger.handlers)) == before


def test_labels_that_do_not_count_from_zero_are_pointed_out(tmp_path, capsys):
    (tmp_path / "data.csv").write_text("a,label\n" + "1,1\n2,10\n" * 9)
    assert main(["--data", str(tmp_path / "data.csv"), *TINY[:4], "--out", str(tmp_path / "run")]) == 0
    said = "9 of 11 classes have no training sample: 0, 2, 3, 4, 5, 6, ...; labels count from 0\n"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_a_single_class_is_refused_with_its_cause(output, tmp_path, fails):
    (tmp_path / "data.csv").write_text("0,1,2\n0,2,3\n0,5,6\n")
    words = "every label is 0, so there is one class only; is the label in another column?"
    fails(words, "--data", tmp_path / "data.csv", "--output", output)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--preset", "xor"], "xor"),
        ([], "mnist"),
        (["--preset", "mnist-10"], "mnist-10"),
        (["--preset", "mnist-5v8"], "mnist-5v8"),
        (["--data", "mnist:5,8"], "mnist-5-8"),
        (["--data", "moons"], "moons"),
        (["--preset", "xor", "--data", "spirals"], "spirals"),
    ],
)
def test_a_run_is_named_after_its_preset_or_its_data(options, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*options, "--dry-run"]) == 0
    assert re.search(rf"would write runs/\d{{8}}-\d{{6}}-{name}\n", capsys.readouterr().out)


def test_a_run_on_ones_own_file_is_named_after_it(rare, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--data", str(rare.rename(tmp_path / "my data.csv")), "--dry-run"]) == 0
    assert re.search(r"would write runs/\d+-\d+-my-data\n", capsys.readouterr().out)


def test_training_data_stay_on_the_host_until_they_are_trained_with(monkeypatch, tmp_path):
    """A GPU may be too small for all of them: to be checked they must not be brought there, nor checked twice."""
    moved, opened = [], []
    strict = type(get_device("strict"))
    monkeypatch.setattr(strict, "asarray", watch(strict.asarray, moved))
    monkeypatch.setattr("mlp_xp.rows.opening.as_features", watch(as_features, opened))
    options = ["--data", "moons", "--device", "strict", "--hidden", "3", "--quiet"]
    monkeypatch.setattr("mlp_xp.cli.train.fit", raising(DivergenceError("before anything was moved")))
    assert main([*options, "--out", str(tmp_path / "run")]) == 1
    assert [200, 2] not in moved
    assert len(opened) == 1  # the test data; fit opens the training data


def watch(function, seen):
    """Return the function, with the shapes of the first arguments that have one added to what was seen."""

    def watched(*arguments, **options):
        seen.append(next((list(each.shape) for each in arguments if hasattr(each, "shape")), None))
        return function(*arguments, **options)

    return watched


# The environment.


def test_without_standard_error_it_trains(tmp_path):
    """A service, or a program without a console."""
    command = f"{sys.executable} -m mlp_xp.train --preset xor --epochs 20 --out closed 2>&-"
    done = subprocess.run(command, shell=True, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert done.stdout.endswith("run folder: closed\n")
    assert (tmp_path / "closed" / "model.safetensors").exists()


@pytest.mark.parametrize("stream", [None, "closed"])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_streams_that_are_gone_do_not_matter(name, stream, tmp_path, monkeypatch):
    gone = None if stream is None else io.StringIO()
    if gone is not None:
        gone.close()
    monkeypatch.setattr(sys, name, gone)
    assert main(["--preset", "xor", "--epochs", "20", "--out", str(tmp_path / "run")]) == 0
    assert main(["--preset", "iris"]) == 2
    assert getattr(sys, name) is gone


@pytest.mark.parametrize("backend", ["Qt4Agg", "module://nowhere"])
def test_a_backend_that_matplotlib_does_not_know_costs_no_more_than_the_pictures(backend, tmp_path):
    done = train("--preset", "xor", *TINY, "--out", tmp_path / "run", env={**os.environ, "MPLBACKEND": backend})
    assert done.returncode == 0
    assert done.stdout.endswith(f"run folder: {tmp_path / 'run'}\n")
    assert done.stderr.count("\n") <= 1
    assert done.stderr.startswith("no pictures: ") == (not (tmp_path / "run" / "plots").exists())


def test_a_missing_latex_costs_no_more_than_the_pictures(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n", encoding="utf-8")
    environment = {**os.environ, "MPLCONFIGDIR": str(tmp_path), "PATH": str(tmp_path)}
    done = train("--preset", "xor", *TINY, "--out", tmp_path / "run", env=environment)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == f"run folder: {tmp_path / 'run'}"
    assert done.stderr.startswith("not all pictures: ")


def test_the_folder_is_named_even_if_the_pictures_cannot_be_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mlp_xp.plots.save_run_plots", raising(OSError(28, "No space left on device", "plots")))
    assert main(["--preset", "xor", *TINY, "--out", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr()
    assert printed.out.endswith(f"run folder: {tmp_path / 'run'}\n")
    assert printed.err == "mlp-xp train: plots: No space left on device\n"


@pytest.mark.parametrize(
    ("name", "kind", "cause"),
    [
        ("history.csv", "link", "a link, but a run folder must hold its own files"),
        ("plots", "link", "a link, but a run folder must hold its own files"),
        ("plots/confusion_matrix.png", "link", "a link, but a run folder must hold its own files"),
        ("model.safetensors", "folder", "no file, where a run leaves one; remove it"),
        ("plots/confusion_matrix.png", "folder", "no file, where a run leaves one; remove it"),
        ("plots", "file", "no folder, where a run leaves one; remove it"),
    ],
)
def test_what_the_end_of_a_run_cannot_replace_is_found_before_it_goes_on(name, kind, cause, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["--preset", "xor", *TINY, "--out", str(folder)]) == 0
    path = folder / name
    path.rename(tmp_path / "gone")
    if kind == "link":
        path.symlink_to(tmp_path / "gone")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"")
    before = (folder / "checkpoint.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["--resume", str(folder), "--epochs", "9"]) == 2
    assert capsys.readouterr().err.startswith(f"mlp-xp train: {path}: {cause}")
    assert (folder / "checkpoint.safetensors").read_bytes() == before


def test_an_encoding_without_the_letters_of_the_folder(tmp_path):
    folder = tmp_path / "データ"
    done = train("--preset", "xor", *TINY, "--out", folder, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\\u30c7\\u30fc\\u30bf\n")
    assert (folder / "plots").exists()


# Whose fault it was.


def raising(error):
    def fail(*arguments, **options):
        raise error

    return fail


@pytest.mark.parametrize(
    "break_it", [lambda: np.zeros(2) + np.zeros(3), lambda: int("x"), lambda: {}["a"], lambda: None.a, lambda: 1 // 0]
)
def test_a_bug_of_ours_is_not_dressed_as_the_users_mistake(break_it, capsys):
    assert exit_code("train", break_it) == 70
    error = capsys.readouterr().err
    assert error.startswith("Traceback (most recent call last)")
    assert error.endswith(
        "mlp-xp train: this is a bug of mlp_xp, not of your input; please report it with the lines above\n"
    )


def test_no_thread_is_no_bug_of_ours(capsys):
    assert exit_code("train", raising(RuntimeError("can't start new thread"))) == 2
    assert capsys.readouterr().err == "mlp-xp train: can't start new thread; use --threads 1, or end other programs\n"


def test_a_traceback_is_shown_if_it_is_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("MLP_XP_TRACEBACK", "1")
    assert main(["--preset", "iris"]) == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "Traceback (most recent call last):"
    assert last.startswith("mlp-xp train: unknown preset 'iris'")


# What reaches the terminal.


@given(st.text())
def test_printable_text_is_printable_and_says_the_same(text):
    shown = printable(text)
    assert shown.isprintable()
    assert len(text) > 1000 or shown == "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def test_long_texts_lose_their_middle():
    assert printable("a" * 900 + "b" * 900, most=500) == "a" * 300 + " ... " + "b" * 200


def test_escape_sequences_do_not_reach_the_terminal(tmp_path, capsys):
    """Of names of files, options in files, settings of a run, and the text in a lock."""
    red, toml = "\x1b[31mred", tmp_path / "run.toml"
    for words, arguments in (
        ("unknown data", ["--data", red]),
        ("unknown preset", ["--preset", red]),
        ("unrecognized", [f"--{red}"]),
        ("unknown device", ["--preset", "xor", "--device", red]),
        ("no checkpoint", ["--resume", red]),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert "\x1b" not in error
        assert words in error
    toml.write_text('"\\u001b[31mred" = 1')
    assert main(["--config", str(toml)]) == 2
    assert main(["--preset", "xor", *TINY, "--out", str(tmp_path / red)]) == 0
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert f"run folder: {tmp_path}/\\x1b[31mred\n" in printed.out


# Going on with a run; what happens when it is stopped is in test_signals.


@pytest.fixture
def xor_run(tmp_path, capsys):
    """The folder of a run of four epochs."""
    folder = tmp_path / "xor run"
    assert main(["--preset", "xor", "--epochs", "4", "--lr", "0.2", "--quiet", "--out", str(folder)]) == 0
    capsys.readouterr()
    return folder


def test_a_finished_run_goes_on(xor_run, tmp_path, capsys):
    options = ["--preset", "xor", "--lr", "0.2", "--threads", "1", "--checkpoint-every", "3", "--report-every", "2"]
    assert main(["--resume", str(xor_run), "--epochs", "6", "--no-quiet", *options]) == 0
    resumed = capsys.readouterr().out
    assert main(["--epochs", "6", *options, "--out", str(tmp_path / "straight")]) == 0
    straight = capsys.readouterr().out
    lines = [row.split()[:4] for row in straight.splitlines()[1:5]]  # epochs 1, 2, 4, 6
    assert [row.split()[:4] for row in resumed.splitlines()[1:2]] == lines[3:]
    assert "6 epochs, " in resumed
    for name in ("model.safetensors", "plots"):
        assert (xor_run / name).exists()
    model, other = (mx.MLP.load(folder / "model.safetensors") for folder in (xor_run, tmp_path / "straight"))
    np.testing.assert_array_equal(model.theta, other.theta)
    config, other = (json.loads((folder / "config.json").read_text()) for folder in (xor_run, tmp_path / "straight"))
    assert config == {**other, "out": str(xor_run)}
    with open(xor_run / "history.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == list("123456")


def test_nothing_left_to_do_gives_the_results_again(xor_run, capsys):
    before = (xor_run / "model.safetensors").read_bytes(), (xor_run / "history.csv").read_bytes()
    for name in ("model.safetensors", "history.csv"):
        (xor_run / name).unlink()
    assert main(["--resume", str(xor_run)]) == 0
    assert "4 epochs, " in capsys.readouterr().out
    assert ((xor_run / "model.safetensors").read_bytes(), (xor_run / "history.csv").read_bytes()) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--lr", "0.1", "--hidden", "5,5", "--epochs", "9"],
            "cannot be resumed with other settings than it was started with "
            "(hidden: (4,), now (5, 5); lr: 0.2, now 0.1); leave them as they were, or start a new run",
        ),
        (["--preset", "mnist-10"], "(preset: xor, now mnist-10);"),
        (["--data", "moons", "--seed", "2"], "(data: xor, now moons; seed: 1, now 2);"),
        (["--tol", "0.1"], "(tol: None, now 0.1);"),
        (["--dropout", "0.5"], "(dropout: (0.0,), now (0.5,));"),
        (["--epochs", "3"], "epochs must be at least 4, where this run is already, got 3"),
        (["--epochs", "x"], "--epochs takes a whole number; got 'x'"),
        (["--out", "elsewhere"], "goes on in that folder; leave out --out elsewhere"),
        (["--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_other_options_are_refused_with_a_list(options, words, xor_run, capsys):
    before = {path: path.read_bytes() for path in xor_run.rglob("*") if path.is_file()}
    assert main(["--resume", str(xor_run), *options]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert {path: path.read_bytes() for path in xor_run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("options", "bar"), [([], None), (["--report-every", "1"], True), (["--epochs", "10"], True)])
def test_a_bar_fills_the_time_between_lines_and_no_more(options, bar, tmp_path, monkeypatch):
    """If each epoch has a line, a bar would show each of them twice."""
    disabled = []

    def progress(total, disable):
        disabled.append(disable)
        return lambda state: None

    monkeypatch.setattr("mlp_xp.cli.train.Progress", progress)
    assert main(["--preset", "xor", *options, "--out", str(tmp_path / "run")]) == 0
    assert disabled == [bar]


def test_a_schedule_that_is_spread_over_the_epochs_keeps_them(tmp_path, capsys):
    options = ["--preset", "xor", "--schedule", "cosine", "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*options, "--epochs", "4"]) == 0
    assert main(["--resume", str(tmp_path / "run"), "--epochs", "6"]) == 2
    assert "(optimizer.lr.epochs: 4, now 6)" in capsys.readouterr().err


def test_changed_data_are_refused(tmp_path, capsys):
    file = tmp_path / "data.csv"
    file.write_text("a,b,label\n" + "1,2,0\n3,4,1\n" * 9)
    assert main(["--data", str(file), *TINY, "--schedule", "constant", "--out", str(tmp_path / "run")]) == 0
    file.write_text("a,b,label\n" + "1,2,0\n3,5,1\n" * 9)
    capsys.readouterr()
    assert main(["--resume", str(tmp_path / "run"), "--epochs", "2"]) == 2
    error = capsys.readouterr().err
    assert "(data: float32 (15, 2) and int32 (15,) with sha256 " in error
    assert error.count("\n") == 1


def test_a_folder_with_nothing_to_resume(tmp_path, capsys):
    mx.fit(mx.MLP([2, 2]), *mx.datasets.xor(), epochs=1, checkpoint=mx.Checkpoint(tmp_path / "script"))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "checkpoint.safetensors").write_bytes(b"\x80\x04K\x01.")
    for name, words in (
        ("missing", "missing holds no checkpoint.safetensors to resume from; nothing was saved there"),
        ("script", "was not saved by mlp_xp.train (KeyError('data')); resume it with the program that saved it"),
        ("damaged", "5 bytes, and 8 are the least; give an undamaged file"),
    ):
        assert main(["--resume", str(tmp_path / name)]) == 2
        printed = capsys.readouterr().err
        assert words in printed
        assert printed.count("\n") == 1


def test_a_new_run_in_a_folder(xor_run, tmp_path, capsys):
    assert main(["--preset", "xor", *TINY, "--out", str(xor_run)]) == 2
    assert f"has a run already; go on with it by --resume {xor_run}" in capsys.readouterr().err
    before_first_save = tmp_path / "killed"
    before_first_save.mkdir()
    for name in (".lock", ".mlp_xp-0123456789abcdef.tmp", "env.json", "config.json"):
        (before_first_save / name).touch()
    assert main(["--preset", "xor", *TINY, "--out", str(before_first_save)]) == 0
    someones = tmp_path / "someone's"
    someones.mkdir()
    (someones / "config.json").touch()
    assert main(["--preset", "xor", *TINY, "--out", str(someones)]) == 2
    assert [path.name for path in someones.iterdir()] == ["config.json"]


def test_checkpoint_every_from_a_file(tmp_path):
    file = tmp_path / "run.toml"
    for text, value in (("5", "5"), ('"20s"', "20s")):
        file.write_text(f"checkpoint_every = {text}\n")
        assert parse(["--config", str(file)]).checkpoint_every == value


def test_a_dry_run_of_a_resume_refuses_what_the_resume_would(tmp_path, capsys):
    file, folder = tmp_path / "data.csv", tmp_path / "run"
    file.write_text("a,b,label\n" + "1,2,0\n3,4,1\n" * 9)
    options = ["--hidden", "3", "--epochs", "3", "--schedule", "constant", "--quiet"]
    assert main(["--data", str(file), *options, "--out", str(folder)]) == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    for content, epochs, words in (
        ("a,b,label\n" + "1,2,0\n3,4,1\n" * 9, "2", "epochs must be at least 3, where this run is already, got 2"),
        (
            "a,b,label\n" + "1,2,0\n3,5,1\n" * 9,
            "9",
            "other settings than it was started with (data: float32",
        ),
    ):
        file.write_text(content)
        for dry in ([], ["--dry-run"]):
            assert main(["--resume", str(folder), "--epochs", epochs, *dry]) == 2
            printed = capsys.readouterr()
            assert words in printed.err
            assert printed.out == ""
    assert {path: path.read_bytes() for path in before} == before


def test_dry_run_of_a_resume_writes_nothing(xor_run, capsys):
    before = {path: path.read_bytes() for path in xor_run.rglob("*") if path.is_file()}
    assert main(["--resume", str(xor_run), "--epochs", "9", "--dry-run"]) == 0
    assert "4 training and 4 test samples\nwould write" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in xor_run.rglob("*") if path.is_file()} == before


def test_resume_from_a_file(xor_run, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(f'resume = "{xor_run}"\nepochs = 9\n')
    config = parse(["--config", str(file), "--epochs", "11"])
    assert (config.data, config.lr, config.epochs, config.resume) == ("xor", 0.2, 11, str(xor_run))
