"""The scripts of docs/guides/distributed.md, as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV

import mlp_xp as mx
from mlp_xp.estimators import MLPClassifier
from tests.mpi.launch import MPIEXEC, ROOT

PAGE = (ROOT / "docs" / "guides" / "distributed.md").read_text(encoding="utf-8")
WITH_MPI, WITH_LOKY, WITH_DASK = re.findall(r"^``` \{ \.python \}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def printed_by(script, folder, *launcher):
    path = folder / "script.py"
    path.write_text(script)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [*launcher, sys.executable, str(path)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.needs("mpi")
def test_script_of_two_ranks(tmp_path):
    train, test = mx.datasets.mnist(digits=(5, 8))
    model = mx.MLP([784, 16, 2], seed=1)
    history = mx.fit(model, *train, epochs=3, validation=test)
    assert printed_by(WITH_MPI, tmp_path, MPIEXEC, "-n", "2") == f"{history.val_accuracy[-1]:.4f}\n"
    model.save(tmp_path / "alone")
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "alone").read_bytes()


@pytest.mark.parametrize(
    "script",
    [WITH_LOKY, pytest.param(WITH_DASK, marks=[pytest.mark.needs("distributed"), pytest.mark.slow])],
    ids=["loky", "dask"],
)
def test_searches_of_several_processes_find_what_one_finds(script, tmp_path):
    X, y = load_iris(return_X_y=True)
    mlp = MLPClassifier(solver="lbfgs", hidden_layer_sizes=8, max_iter=1000, random_state=1)
    search = GridSearchCV(mlp, {"alpha": [0.1, 1, 10]}, cv=3).fit(X, y)
    assert printed_by(script, tmp_path) == f"{search.best_params_} {round(search.best_score_, 2)}\n"
