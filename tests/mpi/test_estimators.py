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
    "dropout": (MLPClassifier, {"dropout": 0.3, "max_iter": 5, "n_iter_no_change": 9}),
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

    def fit(y=y, validation=(None, None), X=X, **parameters):
        mlp = MLPClassifier(hidden_layer_sizes=parameters.pop("hidden", 6), max_iter=2, random_state=0, **parameters)
        return attempt(lambda: mlp.fit(X, y, X_val=validation[0], y_val=validation[1], comm=comm))

    held = {"solver": "adam", "early_stopping": True}
    return {
        "same": same,
        "begun": kept(folder, comm, max_iter=2),
        "copied": copied and learned(clone(ours).fit(X, y, comm=comm)) == learned(ours),
        "drawn": learned(fitted("adam", comm, random_state=None)),
        "other": {
            "alpha": fit(alpha=only_on(comm, 1, 0.1, 0.2)),
            "alpha ": fit(alpha=only_on(comm, 1, 0.1, 0.2), solver="lbfgs"),
            "data": fit(y=only_on(comm, 1, y, 1 - y), solver="lbfgs"),
            "validation": fit(validation=(X[:50], only_on(comm, 1, y, 1 - y)[:50]), **held),
            "validation ": fit(validation=(X[: 50 + comm.rank], y[: 50 + comm.rank]), **held),
            "checkpoint": attempt(
                lambda: MLPClassifier(random_state=0).fit(
                    X, y, checkpoint=only_on(comm, 1, None, mx.Checkpoint(folder)), comm=comm
                )
            ),
        },
    }, {
        "data": fit(X=only_on(comm, 1, X, one)),
        "parameter": fit(alpha=only_on(comm, 1, 0.1, -1)),
        "sizes": fit(hidden=only_on(comm, 1, 6, (6, 0))),
    }


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_shared_fit_is_the_fit_of_one_process(tmp_path):
    results = on_ranks(3, fits, str(tmp_path))
    alone = {kind: learned(fitted(kind)) for kind in KINDS}
    for door in ("data", "parameter", "sizes"):
        ended = [doors[door] for _, doors in results]
        assert [kind for kind, _ in ended] == ["RankError", ended[1][0], "RankError"]
        assert ended[1][0] in ("ValueError", "InvalidParameterError")
        assert ended[0][1] == f"rank 1: {ended[1][1]}"
    assert results[0][0] == results[1][0] == results[2][0]
    assert results[0][0]["same"] == alone
    assert results[0][0]["copied"]
    assert results[0][0]["begun"][1] == alone["adam"][1][:2]
    assert kept(tmp_path, resume=True) == alone["adam"]
    assert results[0][0]["drawn"] != alone["adam"]
    for name, (kind, text) in results[0][0]["other"].items():
        assert (kind, text.startswith(f"ranks disagree: {name.strip()} is ")) == ("ValueError", True)
    assert "alpha is 0.1 on rank 0, 2, 0.2 on rank 1;" in results[0][0]["other"]["alpha"][1]
