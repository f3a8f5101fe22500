"""``python -m mlp_xp.train --distributed`` in several processes: one command, one folder, the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest

from mlp_xp import train
from mlp_xp.runs.folder import RunFolder
from mlp_xp.runs.record import read
from tests.mpi.launch import MPIEXEC, ROOT
from tests.mpi.test_runs import ranks_of

pytestmark = pytest.mark.needs("mpi")

COMMAND = [sys.executable, "-m", "mlp_xp.train", "--distributed"]


def start(folder, *options, ranks=3):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    command = [MPIEXEC, "-n", str(ranks), *COMMAND, *map(str, options)]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(folder, *options, ranks=3):
    """Return the exit code, and what was printed on standard output and on standard error."""
    launched = start(folder, *options, ranks=ranks)
    printed = launched.communicate(timeout=60)
    return launched.returncode, *printed


@pytest.fixture
def table(tmp_path, rng):
    """Return a file of 400 samples in two classes."""
    X = rng.standard_normal((400, 3))
    path = tmp_path / "points.csv"
    labels = (X.sum(axis=1) > 0).astype(int)
    path.write_text("".join(f"{label},{','.join(map(str, x))}\n" for label, x in zip(labels, X, strict=True)))
    return path


def columns(folder):
    """Return what history.csv has, but for the seconds, which are the machine's."""
    lines = (folder / "history.csv").read_text().splitlines()
    return [line.rpartition(",")[0] for line in lines]


def test_several_processes_leave_the_run_folder_of_one(table, tmp_path, capsys):
    options = ["--data", str(table), "--epochs", "4", "--hidden", "8", "--tol", "1e-9", "--seed", "2"]
    assert train.main([*options, "--out", str(tmp_path / "one")]) == 0
    alone = capsys.readouterr().out
    code, out, err = run(tmp_path, *options, "--out", "several")
    assert (code, err) == (0, "")
    assert [line.split()[:4] for line in out.splitlines()[:-2]] == [
        line.split()[:4] for line in alone.splitlines()[:-2]
    ]
    one, several = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "several")
    assert several.model.read_bytes() == one.model.read_bytes()
    assert columns(several.path) == columns(one.path)
    assert {path.name for path in several.path.rglob("*")} == {path.name for path in one.path.rglob("*")}
    configs = [json.loads(each.config.read_text()) for each in (one, several)]
    assert configs[0] | {"out": None} == configs[1] | {"out": None}
    assert read(several.checkpoint).settings == read(one.checkpoint).settings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--nope"], "unrecognized arguments: --nope"),
        (["--data", "nowhere.csv"], "unknown data 'nowhere.csv'"),
        (["--data", "moons", "--out", "points.csv"], "not a folder"),
        (["--data", "moons", "--lr", "1e30", "--optimizer", "sgd"], "the loss is"),
        (["--resume", "nowhere"], "nowhere holds no checkpoint"),
    ],
)
def test_an_error_is_one_line_and_one_exit_code(options, words, table, tmp_path):
    code, _, err = run(tmp_path, *options, "--quiet", ranks=2)
    assert code == (1 if "1e30" in options else 2)
    assert err.startswith("mlp-xp train: ")
    assert (words in err, err.count("\n")) == (True, 1), err


def test_help_and_what_a_dry_run_finds_are_printed_once(tmp_path):
    code, out, err = run(tmp_path, "--help", ranks=2)
    assert (code, out.count("usage: "), err) == (0, 1, "")
    code, out, err = run(tmp_path, "--data", "moons", "--dry-run", ranks=2)
    assert (code, out.count("would write"), err) == (0, 1, "")
    assert os.listdir(tmp_path) == []


def test_an_error_of_another_rank_is_told_by_the_first(table, tmp_path):
    """As of a node that does not see the file."""
    options = ["--data", "points.csv", "--epochs", "1", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [MPIEXEC, "-wdir", str(tmp_path), "-n", "1", *COMMAND, *options]
    command += [":", "-wdir", str(elsewhere), "-n", "1", *COMMAND, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("mlp-xp train: rank 1: unknown data 'points.csv'")
    assert done.stderr.count("\n") == 1
    assert os.listdir(elsewhere) == []


def test_options_that_end_a_run_are_for_all_ranks(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [MPIEXEC, "-n", "1", *COMMAND, "--dry-run", ":", "-n", "1", *COMMAND, "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    for what in ("--help is missing on rank 0, given on rank 1", "--dry-run is given on rank 0, missing on rank 1"):
        assert what in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_was_preempted_goes_on_to_the_same_bits(number, table, tmp_path, monkeypatch):
    """The launcher passes the signal on to all, as a scheduler does."""
    monkeypatch.setattr("mlp_xp.cli.train._draw", mock.Mock())
    options = ["--data", table, "--hidden", "8", "--batch-size", "16", "--epochs", "1000", "--lr", "0.001"]
    launched = start(tmp_path, *options, "--report-every", "1", "--out", "run", ranks=2)
    while not launched.stdout.readline().strip().startswith("20 "):
        assert launched.poll() is None
    launched.send_signal(number)
    _, err = launched.communicate(timeout=60)
    assert launched.returncode == 128 + number
    said = [line for line in err.splitlines() if line.startswith("mlp-xp")]
    assert len(said) == 1, err
    assert f"stopped by {number.name} in epoch" in said[0]
    stopped = read(tmp_path / "run" / "checkpoint.safetensors").snapshot.epoch
    assert 19 <= stopped < 1000
    assert train.main(["--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert train.main([*map(str, options), "--quiet", "--out", str(tmp_path / "whole")]) == 0
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert models[0] == models[1]


def test_a_signal_may_reach_each_rank_at_another_time(tmp_path):
    launched = start(tmp_path, "--data", "moons", "--epochs", "100000", "--report-every", "1", "--out", "run", ranks=2)
    while not launched.stdout.readline().strip().startswith("5 "):
        assert launched.poll() is None
    for rank in ranks_of(launched):
        os.kill(rank, signal.SIGTERM)
        time.sleep(0.05)  # for the first one it is over by then
    _, err = launched.communicate(timeout=60)
    assert launched.returncode == 143
    assert (err.count("stopped by SIGTERM"), err.count("\n")) == (1, 1), err


def test_other_data_than_it_was_started_with_are_refused(tmp_path, rng):
    X, y = rng.standard_normal((300, 3)).astype(np.float32), rng.integers(0, 2, 300)
    path = tmp_path / "points.npz"
    np.savez(path, X=X, y=y)
    options = ["--data", "points.npz", "--epochs", "2", "--schedule", "constant", "--quiet"]
    assert run(tmp_path, *options, "--out", "run", ranks=2)[0] == 0
    before = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    X[150, 1] += 1
    np.savez(path, X=X, y=y)
    for words in ("data: ", "points.npz"):  # other bytes, and too few
        code, _, err = run(tmp_path, "--resume", "run", "--epochs", "4", ranks=2)
        assert (code, words in err, err.count("\n")) == (2, True, 1), err
        path.write_bytes(path.read_bytes()[:1000])
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == before


def test_without_mpiexec_it_is_one_rank(table, tmp_path):
    options = ["--data", "points.csv", "--epochs", "1", "--quiet", "--out", "run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*COMMAND, *options], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "run folder: run" in done.stdout


def test_without_mpi4py_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert train.main(["--distributed", "--data", "moons"]) == 2
    assert "pip install 'mlp_xp[mpi]'" in capsys.readouterr().err
