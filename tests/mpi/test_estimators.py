"""The estimators on several processes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.base import clone

import mlp_xp as mx
from mlp_xp.engines import compiled
from mlp_xp.estimators import MLPClassifier, MLPRegressor
from tests.mpi.launch import on_ranks
from tests.mpi.test_runs import attempt, data, digest, only_on

pytestmark = pytest.mark.needs("mpi")

KINDS = {
    "adam": (MLPClassifier, {"max_iter": 5, "n_iter_no_change": 9}),
    "sgd": (MLPClassifier, {"solver": "sgd", "batch_size": 300, "max_iter": 5, "n_iter_no_change": 9}),
    "early stopping": (MLPClassifier, {"early_stopping": True, "max_iter": 60, "tol": 0.01}),
    "lbfgs": (MLPRegressor, {"solver": "lbfgs", "max_iter": 5}),
}


def fitted(kind, comm=None, random_state=7):
    X, y = data()
    estimator, parameters = KINDS[kind]
    return estimator(hidden_layer_sizes=(6,), random_state=random_state, **parameters).fit(X, y, comm=comm)


def kept(folder, comm=None, resume=False, max_iter=5):
    """Fit with a checkpoint."""
    X, y = data()
    mlp = MLPClassifier(hidden_layer_sizes=(6,), random_state=7, max_iter=max_iter, n_iter_no_change=9)
    return learned(mlp.fit(X, y, checkpoint=mx.Checkpoint(folder, resume=resume), comm=comm))


def learned(mlp):
    return digest(np.concatenate([p.ravel() for p in (*mlp.coefs_, *mlp.intercepts_)])), mlp.loss_curve_


def fits(comm, folder):
    """Return what each kind of fit learns, and how those end whose ranks disagree."""
    compiled._WORTH_SENDING = 0
    same = {kind: learned(fitted(kind, comm)) for kind in KINDS}
    ours = fitted("adam", comm)
    copied = learned(pickle.loads(pickle.dumps(ours))) == learned(ours)
    X, y = data()
    one = X.copy()
    one[0, 0] = np.nan
    return {
        "same": same,
        "begun": kept(folder, comm, max_iter=2),
        "copied": copied and learned(clone(ours).fit(X, y, comm=comm)) == learned(ours),
        "drawn": learned(fitted("adam", comm, random_state=None)),
        "other": attempt(lambda: MLPClassifier(alpha=only_on(comm, 1, 0.1, 0.2)).fit(X, y, comm=comm)),
    }, attempt(lambda: MLPClassifier().fit(only_on(comm, 1, X, one), y, comm=comm))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_shared_fit_is_the_fit_of_one_process(tmp_path):
    results = on_ranks(3, fits, str(tmp_path))
    alone = {kind: learned(fitted(kind)) for kind in KINDS}
    ended = [door for _, door in results]
    assert [kind for kind, _ in ended] == ["RankError", "ValueError", "RankError"]
    assert ended[0][1] == f"rank 1: {ended[1][1]}"
    assert results[0][0] == results[1][0] == results[2][0]
    assert results[0][0]["same"] == alone
    assert results[0][0]["copied"]
    assert results[0][0]["begun"][1] == alone["adam"][1][:2]
    assert kept(tmp_path, resume=True) == alone["adam"]
    assert results[0][0]["drawn"] != alone["adam"]
    kind, text = results[0][0]["other"]
    assert (kind, text.startswith("ranks disagree: alpha is 0.1 on rank 0, 2, 0.2 on rank 1;")) == ("ValueError", True)
