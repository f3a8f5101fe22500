"""scikit-learn's callbacks hear of the estimators' trainings."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlp_xp.estimators import MLPClassifier, MLPRegressor

pytest.importorskip("sklearn.callback")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, y = load_iris(return_X_y=True)
SETTINGS = {"sgd": {"solver": "sgd"}, "adam": {"batch_size": 150}, "lbfgs": {"solver": "lbfgs", "alpha": 0.1}}


class Listener:
    """Writes down what it hears; asks to end the training after so many epochs."""

    def __init__(self, most=1000):
        self.heard, self.most = [], most

    def setup(self, estimator, context):
        self.heard.append(("setup", context.task_name, context.max_subtasks))

    def teardown(self, estimator, context):
        self.heard.append(("teardown",))

    def on_fit_task_begin(self, estimator, context, *, fitted_estimator=None):
        self.heard.append(("begin", context.task_name, context.task_id, fitted_estimator))

    def on_fit_task_end(self, estimator, context, *, X=None, y=None, metadata=None, fitted_estimator=None):
        self.heard.append(("end", context.task_name, context.task_id, fitted_estimator))
        self.given = X, y, metadata
        return context.task_id + 1 >= self.most

    def of(self, what):
        return [entry for entry in self.heard if entry[0] == what and entry[1] in ("epoch", "iteration")]


def trained(solver, listener=None, **settings):
    mlp = MLPClassifier(5, max_iter=8, random_state=0, **SETTINGS[solver], **settings)
    return (mlp if listener is None else mlp.set_callbacks(listener)).fit(X, y)


@pytest.mark.parametrize("solver", SETTINGS)
def test_each_epoch_is_a_task_of_the_fit(solver):
    listener = Listener()
    mlp, plain = trained(solver, listener), trained(solver)
    name = "iteration" if solver == "lbfgs" else "epoch"
    assert [entry[:3] for entry in listener.heard] == [
        ("setup", "fit", 8),
        ("begin", "fit", 0),
        *((what, name, i) for i in range(8) for what in ("begin", "end")),
        ("end", "fit", 0),
        ("teardown",),
    ]
    for ours, theirs in zip(mlp.coefs_, plain.coefs_, strict=True):
        assert_array_equal(ours, theirs)
    begun, ended = ([entry[3] for entry in listener.of(what)] for what in ("begin", "end"))
    for before, after in zip(ended, begun[1:], strict=False):
        assert_array_equal(before.coefs_[0], after.coefs_[0])
    assert np.any(begun[0].coefs_[0] != ended[0].coefs_[0])
    assert_allclose(ended[-1].predict_proba(X), mlp.predict_proba(X))
    assert listener.heard[-2][3] is not mlp
    assert_array_equal(listener.given[1], y)


@pytest.mark.parametrize("solver", SETTINGS)
def test_a_callback_ends_the_training_without_a_warning(solver):
    listener = Listener(most=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mlp = trained(solver, listener)
    assert mlp.n_iter_ == len(mlp.loss_curve_) == len(listener.of("end")) == len(listener.of("begin")) == 3
    assert_array_equal(listener.of("end")[-1][3].coefs_[0], mlp.coefs_[0])
    assert listener.heard[-1] == ("teardown",)


@pytest.mark.parametrize("early", [False, True])
def test_the_estimators_own_end_is_theirs(early):
    listener = Listener()
    mlp = trained("sgd", listener, tol=10.0, n_iter_no_change=2, early_stopping=early)
    assert mlp.n_iter_ == len(listener.of("end")) == len(listener.of("begin")) < 8


def test_an_iteration_that_makes_no_step_ends():
    listener = Listener()
    mlp = MLPRegressor(hidden_layer_sizes=(), solver="lbfgs", tol=0.01, warm_start=True, random_state=0)
    mlp.fit(X, y).set_callbacks(listener).fit(X, y)
    assert mlp.n_iter_ == 0
    assert [entry[:2] for entry in listener.heard[2:-2]] == [("begin", "iteration"), ("end", "iteration")]
    assert [entry[0] for entry in listener.heard[-2:]] == ["end", "teardown"]


def test_weights_partial_fit_and_more_than_one_output():
    listener, weights = Listener(), np.ones(150)
    mlp = MLPRegressor(hidden_layer_sizes=3, random_state=0).set_callbacks(listener)
    for count in (1, 2):
        mlp.partial_fit(X, np.c_[y, y], sample_weight=weights)
        assert len(listener.of("end")) == count
        assert listener.heard[0 if count == 1 else 6] == ("setup", "partial_fit", 1)
    assert_array_equal(listener.given[2]["sample_weight"], weights)
    assert listener.of("end")[0][3].predict(X).shape == (150, 2)


def test_a_refused_fit_tears_down_what_was_set_up():
    listener = Listener()
    mlp = MLPClassifier(3, max_iter=2).set_callbacks(listener)
    with pytest.raises(ValueError, match="NaN"):
        mlp.fit(X * np.nan, y)
    assert listener.heard == []
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="non-finite parameter weights"):
        clone(mlp).set_params(solver="sgd", learning_rate_init=1e300).fit(X * 1e100, y)
    assert listener.heard[0][0] == "setup"
    assert listener.heard[-1] == ("teardown",)


def test_a_pipeline_hands_its_callbacks_down():
    class Propagated(Listener):
        max_propagation_depth = None

    listener = Propagated()
    pipeline = make_pipeline(StandardScaler(), MLPClassifier(3, max_iter=4, random_state=0)).set_callbacks(listener)
    pipeline.fit(X, y)
    assert len(listener.of("end")) == 4


OWN = """
import importlib.util
import sklearn.callback
from sklearn.datasets import load_iris
from mlp_xp.estimators import MLPClassifier

X, y = load_iris(return_X_y=True)
monitor = sklearn.callback.ScoringMonitor(scoring="accuracy")
mlp = MLPClassifier(5, max_iter=8, random_state=0).set_callbacks(monitor).fit(X, y)
scores = [entry["accuracy"] for entry in monitor.get_logs().data if entry["task_name"] == "epoch"]
assert len(scores) == 8 and scores[-1] == mlp.score(X, y), scores
if importlib.util.find_spec("rich"):
    mlp.set_callbacks(sklearn.callback.ProgressBar()).fit(X, y)
"""


def test_scikit_learns_own_callbacks():
    """In a process of their own: they leave a thread that listens for ever."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", OWN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not importlib.util.find_spec("rich") or "MLPClassifier - fit" in done.stdout
