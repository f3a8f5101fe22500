"""What a dry run tells of time."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import numpy as np
import pytest

import mlp_xp as mx
from mlp_xp import train
from mlp_xp.cli.pace import measure_pace
from mlp_xp.datasets import Dataset


@dataclass(frozen=True)
class Slow(mx.SGD):
    """Gradient descent that waits before each update."""

    seconds: float = 0.01

    def update(self, theta, gradient, state, rates):
        time.sleep(self.seconds)
        return super().update(theta, gradient, state, rates)


@pytest.mark.parametrize(("batch_size", "rows"), [(None, 20_000), (256, 8192), (5000, 20_000), (20_000, 20_000)])
def test_the_pace_is_that_of_the_training(rng, batch_size, rows):
    data = Dataset(rng.random((20_000, 3), np.float32), rng.integers(0, 2, 20_000))
    model = mx.MLP([3, 2])
    before = model.theta.copy()
    pace = measure_pace(model, data, Slow(0.1, seconds=0.01), batch_size, "dense", 1)
    least = 0.01 / min(batch_size or pace.rows, pace.rows)
    assert least <= pace.training < 5 * least
    assert pace.rows in (rows, 2048, 20_000)  # fewer on a machine that was busy
    assert 0 < pace.evaluation < 1e-3
    assert (model.theta == before).all()
    assert model.pixels is None


def test_nothing_is_said_twice(rng):
    """Of indicators a warning has been given when the data were opened."""
    data = Dataset(rng.integers(0, 2, (10, 3), np.uint8), rng.integers(0, 2, 10))
    assert measure_pace(mx.MLP([3, 2]), data, mx.SGD(), None, "dense", 1).rows == 10


def told(capsys, *arguments):
    """Return the seconds of an epoch and of all that a dry run tells of the lecture's XOR."""
    assert train.main([*arguments, "--dry-run"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "an epoch" in line)
    found = re.fullmatch(r"about ([\d.e-]+) s an epoch, ([\d.e-]+) s in all, by a trial on 4 samples", line)
    return float(found[1]), float(found[2])


def test_a_dry_run_tells_the_time_that_is_left(tmp_path, capsys):
    run = str(tmp_path / "run")
    epoch, in_all = told(capsys, "--preset", "xor", "--epochs", "40", "--out", run)
    assert in_all == pytest.approx(40 * epoch, rel=0.15)
    assert train.main(["--preset", "xor", "--epochs", "4", "--quiet", "--out", run]) == 0
    epoch, in_all = told(capsys, "--resume", run, "--epochs", "14")
    assert in_all == pytest.approx(10 * epoch, rel=0.15)


@pytest.mark.usefixtures("numpy_engine")
def test_a_dry_run_of_a_resume_names_the_plan_of_the_run(tmp_path, capsys):
    run = str(tmp_path / "run")
    options = ["--preset", "mnist-5v8", "--epochs", "1", "--schedule", "constant", "--hidden", "2", "--quiet"]
    assert train.main([*options, "--out", run]) == 0
    assert train.main(["--resume", run, "--epochs", "99", "--dry-run"]) == 0
    assert "\nplan dense: " in capsys.readouterr().out
