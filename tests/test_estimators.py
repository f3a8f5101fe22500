"""The drop-ins for scikit-learn's multilayer perceptrons: the same runs, and what scikit-learn's tools ask of them."""

from __future__ import annotations

import pickle
import re
import tracemalloc
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn
import sklearn.neural_network
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, make_regression
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.inspection import permutation_importance
from sklearn.linear_model import PoissonRegressor
from sklearn.metrics import log_loss, mean_absolute_error, mean_poisson_deviance, mean_squared_error
from sklearn.model_selection import GridSearchCV, cross_validate, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler, scale
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.fixes import parse_version

import mlp_xp as mx
from mlp_xp import estimators
from mlp_xp.estimators import network

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

KINDS = ("MLPClassifier", "MLPRegressor")
EXACT, BY_LBFGS = 1e-9, 1e-6  # relative; what rounding may become in some tens of epochs, or iterations


def pair(kind, **parameters):
    """Return scikit-learn's estimator and ours."""
    return [getattr(library, kind)(**parameters) for library in (sklearn.neural_network, estimators)]


def assert_same_run(theirs, ours, X, rtol=EXACT):
    """Both went the same way, and predict the same."""
    for name in ("n_iter_", "n_layers_", "n_outputs_", "out_activation_", "t_"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert_allclose(ours.loss_, theirs.loss_, rtol)
    for name in ("loss_curve_", "validation_scores_", "best_loss_", "best_validation_score_"):
        if getattr(theirs, name, None) is not None:
            assert_allclose(getattr(ours, name), getattr(theirs, name), rtol, err_msg=name)
    for a, b in zip([*ours.coefs_, *ours.intercepts_], [*theirs.coefs_, *theirs.intercepts_], strict=True):
        assert a.dtype == b.dtype
        assert a.flags.c_contiguous
        assert_allclose(a, b, rtol, rtol * np.abs(b).max())
    predicted = theirs.predict(X)
    assert ours.predict(X).dtype == predicted.dtype
    if predicted.dtype.kind == "f":
        assert_allclose(ours.predict(X), predicted, rtol, rtol * np.abs(predicted).max())
    else:
        assert_array_equal(ours.predict(X), predicted)
        assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), 100 * rtol, rtol)


# ----------------------------------------------------------------------------------------------------------------------
# The same runs


def draw_targets(rng, kind, n):
    """Return targets of any form."""
    if kind == "MLPRegressor":
        return rng.poisson(3.0, [(n,), (n, 2)][rng.integers(2)]).astype(np.float64)
    forms = [rng.integers(0, 2, n), rng.integers(0, 4, n), rng.integers(0, 2, (n, 3)), rng.choice(["b", "a", "c"], n)]
    return forms[rng.integers(len(forms))]


def draw(seed):
    """Return a kind of estimator, its parameters, samples, targets, and weights or None."""
    rng = np.random.default_rng(seed)
    kind, n = KINDS[rng.integers(2)], int(rng.integers(30, 400))
    solver = rng.choice(["adam", "sgd", "sgd", "lbfgs"])
    parameters = {
        "solver": str(solver),
        "activation": str(rng.choice(["identity", "logistic", "tanh", "relu"])),
        "hidden_layer_sizes": [(7,), (20, 5), 3, (12, 4, 6)][rng.integers(4)],
        "alpha": float(rng.choice([0.0, 1e-4, 0.3])),
        "batch_size": ["auto", 1 + int(rng.integers(n)), n][rng.integers(3)],
        "learning_rate": str(rng.choice(["constant", "invscaling", "adaptive"])),
        "learning_rate_init": float(rng.choice([1e-3, 0.02])),
        "momentum": float(rng.choice([0.0, 0.5, 0.9])),
        "nesterovs_momentum": bool(rng.integers(2)),
        "epsilon": float(rng.choice([1e-8, 1e-3])),
        "shuffle": bool(rng.integers(4)),
        "early_stopping": bool(solver != "lbfgs" and rng.integers(3) == 0),
        "n_iter_no_change": int(rng.integers(1, 8)),
        "tol": float(rng.choice([1e-4, 1e-2])),
        "max_iter": int(rng.integers(2, 40)) if solver != "lbfgs" else int(rng.integers(2, 12)),
        "random_state": int(rng.integers(1000)),
    }
    X = rng.standard_normal((n, int(rng.integers(1, 12))))
    X[rng.random(X.shape) < rng.choice([0, 0.8])] = 0
    if kind == "MLPRegressor" and rng.integers(2):
        parameters["loss"] = "poisson"
    weights = None if rng.integers(2) else rng.uniform(0.1, 3, n)
    y = draw_targets(rng, kind, n)
    if y.dtype.kind == "U":
        parameters["early_stopping"] = False  # scikit-learn before 1.9 cannot: scikit-learn#33760
    return kind, parameters, X, y, weights


@pytest.mark.filterwarnings("ignore:Got `batch_size`")
@pytest.mark.parametrize("engine", ["compiled", "numpy"])
@pytest.mark.parametrize("first", range(0, 40, 10))
def test_forty_settings_run_as_they_do_in_scikit_learn(first, engine, monkeypatch):
    if engine == "numpy":
        monkeypatch.setenv("MLP_XP_COMPILED", "0")
    for seed in range(first, first + 10):
        kind, parameters, X, y, weights = draw(seed)
        theirs, ours = (one.fit(X, y, sample_weight=weights) for one in pair(kind, **parameters))
        try:
            assert_same_run(theirs, ours, X, BY_LBFGS if parameters["solver"] == "lbfgs" else EXACT)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {kind}({parameters}), X {X.shape}, y {y.shape}") from error


@pytest.mark.parametrize("load", [load_iris, load_digits, load_breast_cancer])
def test_the_defaults_on_scikit_learns_data(load):
    """Breast cancer is not scaled: there, scikit-learn's losses are those of probabilities that it cuts off."""
    X, y = load(return_X_y=True)
    theirs, ours = (one.fit(X, y) for one in pair("MLPClassifier", max_iter=15, random_state=1))
    assert_same_run(theirs, ours, X)


@pytest.mark.slow
def test_scikit_learns_mnist_example_prints_its_losses():
    """examples/neural_networks/plot_mnist_filters.py, and what its page shows."""
    train, test = mx.datasets.mnist()
    X, y = np.concatenate([train.X, test.X]) / 255, np.concatenate([train.y, test.y]).astype(str)
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0, test_size=0.7)
    mlp = estimators.MLPClassifier(
        hidden_layer_sizes=(40,), max_iter=8, alpha=1e-4, solver="sgd", random_state=1, learning_rate_init=0.2
    ).fit(X_train, y_train)
    shown = "0.44139186 0.19174891 0.13983521 0.11378556 0.09443967 0.07846529 0.06506307 0.05534985"
    assert " ".join(f"{loss:.8f}" for loss in mlp.loss_curve_) == shown
    assert f"{mlp.score(X_train, y_train):f} {mlp.score(X_test, y_test):f}" == "0.986429 0.953061"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_a_random_state_of_the_callers_is_left_as_scikit_learn_leaves_it(kind, solver):
    """Also where all rows are taken at once, and nobody needs the order that is drawn."""
    X, y = load_iris(return_X_y=True)
    for parameters in ({}, {"batch_size": 20}, {"early_stopping": True}, {"shuffle": False}):
        states = [np.random.RandomState(3), np.random.RandomState(3)]
        for one, state in zip(pair(kind, solver=solver, max_iter=3, **parameters), states, strict=True):
            one.set_params(random_state=state).fit(X, y)
        assert states[0].random_sample() == states[1].random_sample()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "parameters",
    [
        {"solver": "sgd", "learning_rate": "invscaling", "momentum": 0.5},
        {"solver": "sgd", "batch_size": 13, "learning_rate_init": 0.01},
        {"solver": "adam", "batch_size": 13},
    ],
)
def test_partial_fit_and_warm_starts_go_on_as_in_scikit_learn(kind, parameters):
    X, y = load_iris(return_X_y=True)
    X = scale(X)
    theirs, ours = pair(kind, random_state=2, max_iter=4, **parameters)
    for one in (theirs, ours):
        for part in (slice(0, 100, 3), slice(50, 150, 2), slice(None)):
            one.partial_fit(X[part], y[part], **({"classes": [0, 1, 2]} if kind == "MLPClassifier" else {}))
    assert_same_run(theirs, ours, X)
    for one in (theirs, ours):
        one.set_params(warm_start=True).fit(X, y).fit(X, y)
        one.partial_fit(X, y)
    assert_same_run(theirs, ours, X)


def test_partial_fit_goes_on_after_a_copy_and_a_pickle():
    X, y = load_iris(return_X_y=True)
    first = estimators.MLPClassifier(random_state=0, max_iter=5).fit(X, y)
    again = pickle.loads(pickle.dumps(first))
    assert_array_equal(again.partial_fit(X, y).coefs_[0], first.partial_fit(X, y).coefs_[0])


FITS = [
    estimators.MLPClassifier(solver="sgd", learning_rate="invscaling", class_weight={0: 1.0, 1: 2.0, 2: 1.0}),
    estimators.MLPClassifier(early_stopping=True, random_state=np.random.RandomState(3)),
    estimators.MLPRegressor(solver="adam", batch_size=40, random_state=0),
    estimators.MLPClassifier((8, 6), batch_size=40, random_state=0, dropout=(0.5, 0.1)),
    estimators.MLPRegressor(solver="lbfgs", loss="poisson"),
]


@pytest.mark.parametrize("estimator", FITS)
def test_what_is_stored_are_arrays_numbers_and_objects_of_scikit_learn(estimator):
    """So that a file format that loads nothing else can hold it: no class of ours but the estimator's own."""
    X, y = load_iris(return_X_y=True)
    stored = pickle.dumps(clone(estimator).set_params(max_iter=3).fit(X, y))
    classes = set(re.findall(rb"mlp_xp[\w.]*", stored))
    assert classes == {type(estimator).__module__.encode()}


@pytest.mark.needs("skops")
@pytest.mark.parametrize("estimator", FITS)
def test_skops_holds_them_and_fits_go_on(estimator):
    """It trusts scikit-learn's own estimators, so that of all types only the estimator's is one to trust."""
    import skops.io

    X, y = load_iris(return_X_y=True)
    first = clone(estimator).set_params(max_iter=3).fit(X, y)
    held = skops.io.dumps(first)
    own = f"{type(first).__module__}.{type(first).__name__}"
    assert skops.io.get_untrusted_types(data=held) == [own]
    again = skops.io.loads(held, trusted=[own])
    assert_array_equal(again.predict(X), first.predict(X))
    assert again.get_params().keys() == first.get_params().keys()
    if hasattr(first, "partial_fit") and not first.early_stopping:
        assert_array_equal(again.partial_fit(X, y).coefs_[0], first.partial_fit(X, y).coefs_[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_dropout_is_that_of_the_library_and_depends_on_the_random_state(kind, solver):
    X, y = load_iris(return_X_y=True)
    settings = {"hidden_layer_sizes": (9, 7), "dropout": [0.5, 0.25], "solver": solver, "max_iter": 4}

    def curve(random_state, **more):
        return getattr(estimators, kind)(**settings | more, random_state=random_state).fit(X, y).loss_curve_

    assert curve(1) == curve(1)
    assert curve(1) != curve(2)
    assert curve(1) != curve(1, dropout=0.0) == curve(1, dropout=(0.0, 0.0))
    assert_allclose(curve(1, device="strict"), curve(1), EXACT)
    whole = estimators.MLPRegressor(**settings, random_state=1).fit(X, y)
    assert_array_equal(whole.predict(X), whole.predict(X))  # of the whole network


def test_each_fit_that_goes_on_drops_other_units():
    """Though its epochs count from 1, and a random state that is a number is the same each time."""
    X, y = load_iris(return_X_y=True)
    for dropout in (0.5, 0.0):
        mlp = estimators.MLPClassifier(
            (30,), dropout=dropout, learning_rate_init=1e-15, warm_start=True, random_state=0, max_iter=1
        )
        losses = [mlp.partial_fit(X, y, classes=[0, 1, 2]).loss_ for _ in range(3)]
        losses += [mlp.fit(X, y).loss_ for _ in range(2)]
        assert len({round(loss, 6) for loss in losses}) == (5 if dropout else 1)


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
def test_integer_weights_are_repeated_rows(solver):
    X, y = load_iris(return_X_y=True)
    counts = np.random.default_rng(0).integers(0, 4, len(X))
    how = {"solver": solver, "batch_size": 10_000, "max_iter": 20, "random_state": 0, "tol": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the batch is clipped
        weighted = estimators.MLPClassifier(**how).fit(X, y, sample_weight=counts)
        repeated = estimators.MLPClassifier(**how).fit(np.repeat(X, counts, axis=0), np.repeat(y, counts))
    assert_allclose(weighted.loss_curve_, repeated.loss_curve_, 1e-6)
    assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), 1e-3, 1e-6)


def test_poisson_is_scikit_learns_linear_model():
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (300, 3))
    y = rng.poisson(np.exp(X @ [1.0, -0.5, 0.2] + 1))
    mlp = estimators.MLPRegressor("poisson", 1, "identity", alpha=0, solver="lbfgs", tol=1e-8, random_state=0)
    assert_allclose(mlp.fit(X, y).predict(X), PoissonRegressor(alpha=0, tol=1e-9).fit(X, y).predict(X), 1e-4)


def test_messages_are_printed_as_scikit_learn_prints_them(capsys):
    X, y = load_iris(return_X_y=True)
    texts = []
    for how in (
        {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.5, "n_iter_no_change": 1, "max_iter": 50},
        {"solver": "adam", "early_stopping": True, "n_iter_no_change": 2, "tol": 0.1},
    ):
        for one in pair("MLPClassifier", verbose=True, random_state=0, **how):
            one.fit(X, y)
            texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != ""
    assert "Learning rate too small. Stopping." in texts[0]
    assert texts[2] == texts[3]
    assert "Validation score: " in texts[2]


def test_an_interrupted_fit_keeps_what_it_has(monkeypatch):
    """scikit-learn turns Ctrl-C into a warning."""
    X, y = load_iris(return_X_y=True)
    monkeypatch.setattr(estimators.MLPClassifier, "_training_improves", interrupted := Interrupt(3))
    with pytest.warns(UserWarning, match="interrupted by user"):
        mlp = estimators.MLPClassifier(random_state=0).fit(X, y)
    assert interrupted.left == 0
    assert len(mlp.loss_curve_) == 3
    assert_array_equal(mlp.coefs_[0], estimators.MLPClassifier(random_state=0, max_iter=3).fit(X, y).coefs_[0])


class Interrupt:
    """Is Ctrl-C when it is called for the last time."""

    def __init__(self, calls):
        self.left = calls

    def __call__(self):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return True


# ----------------------------------------------------------------------------------------------------------------------
# What scikit-learn's has not


@pytest.mark.needs("compiled")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [{}, {"batch_size": 17}, {"solver": "lbfgs", "max_iter": 15}])
@pytest.mark.parametrize("container", [scipy.sparse.csr_array, scipy.sparse.csc_matrix])
def test_compressed_samples_train_like_the_same_in_full(kind, how, container):
    """With the same bits, where zeros are skipped in both; more than 64 columns, some of them empty."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((150, 200)) * (rng.random((150, 200)) < 0.1)
    X[5] = X[:, 64:70] = 0
    y = rng.integers(0, 3, 150)
    settings = {"max_iter": 10, "random_state": 0, **how}
    full = getattr(estimators, kind)(plan="sparse", **settings).fit(X, y)
    compressed = getattr(estimators, kind)(**settings).fit(container(X), y)
    for a, b in zip(full.coefs_, compressed.coefs_, strict=True):
        assert_array_equal(a, b)
    assert_allclose(compressed.predict(container(X)), full.predict(X), 1e-12)
    if how.get("solver") != "lbfgs":
        for one in (full, compressed):
            one.partial_fit(X if one is full else container(X), y)
        assert_array_equal(full.coefs_[0], compressed.coefs_[0])


@pytest.mark.needs("compiled")
def test_compressed_samples_with_explicit_zeros_and_duplicates():
    rng = np.random.default_rng(2)
    rows, columns = rng.integers(0, 40, 300), rng.integers(0, 90, 300)
    X = scipy.sparse.coo_array((rng.integers(-2, 3, 300).astype(float), (rows, columns)), (40, 90)).tocsr()
    y = np.arange(40) % 2
    kept = X.data.copy()
    compressed = estimators.MLPClassifier(random_state=0, max_iter=5).fit(X, y)
    full = estimators.MLPClassifier(random_state=0, max_iter=5, plan="sparse").fit(X.toarray(), y)
    assert_array_equal(compressed.coefs_[0], full.coefs_[0])
    assert_array_equal(X.data, kept)


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predictions_of_compressed_samples_take_little_memory(dtype, early_stopping):
    X = scipy.sparse.random(30_000, 50, 0.1, format="csr", dtype=dtype, random_state=0)
    y = np.arange(30_000) % 3
    mlp = estimators.MLPClassifier((1000,), max_iter=1, random_state=0, early_stopping=early_stopping)
    rows_to_stop_by = {"X_val": X, "y_val": y} if early_stopping else {}
    tracemalloc.start()
    try:
        mlp.fit(X[:200], y[:200], **rows_to_stop_by)
        P = mlp.predict_proba(X)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60e6
    assert P.dtype == dtype
    assert_allclose(P, mlp.predict_proba(X.toarray()), rtol=1e-4 if dtype == np.float32 else 1e-12)


def test_a_wide_layer_of_compressed_samples_goes_row_by_row(monkeypatch, rng):
    X = scipy.sparse.random(37, 5, 0.5, format="csr", random_state=0)
    mlp = estimators.MLPRegressor(hidden_layer_sizes=(30, 4), max_iter=2, random_state=0).fit(
        X, rng.standard_normal((37, 2))
    )
    whole = mlp.predict(X)
    for size in (1, 30 * 8 * 5):  # less than a row, and five
        monkeypatch.setattr(network, "_BYTES", size)
        assert_allclose(mlp.predict(X), whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("container", [np.asarray, pd.DataFrame, scipy.sparse.csr_array, scipy.sparse.csc_matrix])
@pytest.mark.parametrize("device", ["cpu", "strict"])
@pytest.mark.parametrize("largest", [1e39, -1e300, 4 * 10**38])
def test_samples_that_do_not_fit_the_parameters_are_refused(largest, device, container):
    X = np.random.default_rng(0).standard_normal((30, 4))
    mlp = estimators.MLPClassifier((5,), max_iter=2, random_state=0, device=device)
    mlp.fit(X.astype(np.float32), np.arange(30) % 3)
    for fits in (X, np.full((2, 4), 1e30)):
        assert mlp.predict_proba(container(fits)).dtype == np.float32
    X[17, 2] = largest
    message = f"X holds values up to {abs(largest):.4g} in size, which do not fit float32; scale them, or use float64"
    for method in (mlp.predict, mlp.predict_proba, lambda X: mlp.partial_fit(X, np.arange(30) % 3)):
        with pytest.raises(ValueError, match=re.escape(message)):
            method(container(X))


def test_compressed_samples_train_without_the_compiled_library(monkeypatch):
    monkeypatch.setenv("MLP_XP_COMPILED", "0")
    X, y = load_digits(return_X_y=True)
    theirs, ours = (one.fit(scipy.sparse.csr_array(X), y) for one in pair("MLPClassifier", max_iter=2, random_state=0))
    assert_same_run(theirs, ours, X)


@pytest.mark.parametrize(("device", "how"), [
    ("strict", {"batch_size": 40}),
    ("strict", {"solver": "sgd", "early_stopping": True}),
    ("torch", {"batch_size": 40}),
    ("torch", {"solver": "lbfgs"}),
    ("cuda", {"batch_size": 40}),
    ("cuda", {"solver": "sgd", "early_stopping": True, "learning_rate": "invscaling"}),
    ("cuda", {"solver": "lbfgs"}),
    pytest.param("jax", {"solver": "lbfgs"}, marks=pytest.mark.slow),
])  # fmt: skip
def test_other_devices_run_the_same(device, how):
    X, y = load_iris(return_X_y=True)
    X, drawn = scale(X), np.random.default_rng(0).uniform(0.5, 2, len(X))
    settings = {"hidden_layer_sizes": (5, 3), "max_iter": 4, "random_state": 0, "alpha": 0.1, **how}
    for weights in (None, drawn):
        here = estimators.MLPClassifier(**settings).fit(X, y, weights)
        there = estimators.MLPClassifier(device=device, **settings).fit(X, y, weights)
        assert_allclose(there.loss_curve_, here.loss_curve_, 1e-9)
        assert_allclose(there.predict_proba(X), here.predict_proba(X), 1e-7)


def test_lbfgs_has_a_loss_curve():
    X, y = load_iris(return_X_y=True)
    mlp = estimators.MLPClassifier(solver="lbfgs", max_iter=12, random_state=0).fit(X, y)
    assert len(mlp.loss_curve_) == mlp.n_iter_ == 12
    assert mlp.loss_curve_[-1] == mlp.loss_
    assert (np.diff(mlp.loss_curve_) < 0).all()


@pytest.mark.parametrize("loss", ["absolute_error", "huber"])
@pytest.mark.parametrize("how", [{}, {"batch_size": 200}, {"solver": "lbfgs"}])
def test_robust_losses_leave_targets_that_are_far_off_alone(loss, how, rng):
    """A line through nine in ten points, and the others at 1000."""
    X = rng.uniform(-1, 1, (200, 1))
    y = 2 * X[:, 0] + 1
    y[::10] = 1000
    settings = {
        "activation": "identity",
        "hidden_layer_sizes": 2,
        "alpha": 0,
        "max_iter": 600,
        "random_state": 0,
        "tol": 0,
    }
    near = estimators.MLPRegressor(loss, **settings, n_iter_no_change=600, learning_rate_init=0.01, **how).fit(X, y)
    assert np.abs(near.predict([[0.0], [0.5]]) - [1, 2]).max() < 0.25
    far = estimators.MLPRegressor(**settings, solver="lbfgs").fit(X, y)
    assert far.predict([[0.0]]) > 50


def test_absolute_errors_find_the_median(rng):
    y = rng.exponential(5, 301)
    mlp = estimators.MLPRegressor(
        "absolute_error", 1, alpha=0, max_iter=800, learning_rate_init=0.03, tol=0, random_state=0
    )
    mlp.set_params(n_iter_no_change=800, batch_size=301)
    assert_allclose(mlp.fit(np.zeros((301, 1)), y).predict([[0.0]]), np.median(y), atol=0.1)


def test_a_loss_of_other_outputs_than_before_is_refused():
    X, y = load_iris(return_X_y=True)
    mlp = estimators.MLPRegressor(max_iter=2, warm_start=True).fit(X, y)
    mlp.set_params(loss="huber").fit(X, y)
    with pytest.raises(ValueError, match="loss 'poisson' does not go with the outputs of the fit before"):
        mlp.set_params(loss="poisson").fit(X, y)


def draw_unbalanced(rng, form):
    """Return samples, and targets of which the first class has most, and every part has all."""
    X = rng.standard_normal((90, 4))
    codes = np.resize([0, 0, 1, 0, 0, 2, 0], 90)
    if form == "labels":
        return X, (rng.random((90, 3)) < 0.3).astype(int)
    return X, {"two": np.minimum(codes, 1), "three": codes - 1, "words": np.array(["b", "a", "c"])[codes]}[form]


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize(("form", "class_weight"), [
    ("two", "balanced"), ("two", {0: 0.5, 1: 4.0}), ("two", {1: 3}), ("three", "balanced"),
    ("three", {-1: 1, 0: 0, 1: 2}),
    ("words", {"a": 2.5, "b": 1, "c": 7}), ("words", "balanced"), ("labels", "balanced"),
    ("labels", [{0: 1, 1: 3}, {0: 1, 1: 1}, {0: 2, 1: 1}]),
])  # fmt: skip
def test_weights_of_classes_are_weights_of_their_rows(solver, form, class_weight, rng):
    X, y = draw_unbalanced(rng, form)
    per_row = compute_sample_weight(class_weight, y)
    how = {"solver": solver, "max_iter": 6, "batch_size": 45, "random_state": 0}
    for drawn in (None, rng.uniform(0.1, 2, len(X))):
        by_class = estimators.MLPClassifier(**how, class_weight=class_weight).fit(X, y, drawn)
        by_row = estimators.MLPClassifier(**how).fit(X, y, per_row if drawn is None else per_row * drawn)
        assert_array_equal(by_class.coefs_[0], by_row.coefs_[0])
    unweighted = estimators.MLPClassifier(**how).fit(X, y, drawn)
    assert np.abs(by_class.coefs_[0] - unweighted.coefs_[0]).max() > 1e-6


def test_balanced_classes_find_more_of_the_rare_one(rng):
    y = (rng.random(1000) < 0.05).astype(int)
    X = rng.standard_normal((1000, 2)) + y[:, None]
    recall = [
        estimators.MLPClassifier(solver="lbfgs", class_weight=w, random_state=0, max_iter=50)
        .fit(X, y)
        .predict(X)[y == 1]
        for w in (None, "balanced")
    ]
    assert recall[1].mean() > recall[0].mean() + 0.2


def test_partial_fit_weighs_classes_that_a_part_has_not(rng):
    X, y = draw_unbalanced(rng, "words")
    first, second = (estimators.MLPClassifier(random_state=0, class_weight={"a": 3}) for _ in range(2))
    for part in (np.flatnonzero(y == "b"), np.flatnonzero(y == "a"), np.arange(90)):
        first.partial_fit(X[part], y[part], classes=["a", "b", "c"])
        second.set_params(class_weight=None)
        second.partial_fit(X[part], y[part], np.where(y[part] == "a", 3.0, 1.0), classes=["a", "b", "c"])
    assert_array_equal(first.coefs_[0], second.coefs_[0])
    with pytest.raises(ValueError, match="'balanced' is not supported by partial_fit"):
        first.set_params(class_weight="balanced").partial_fit(X, y)


@pytest.mark.parametrize(("wrong", "message"), [
    ({5: 1.0}, r"The classes, \[0, 1\], are not in class_weight"),
    ("fair", "The 'class_weight' parameter of MLPClassifier must be"),
    ({0: -1.0}, "weights must be finite numbers of at least 0"),
    ({0: np.nan}, "weights must be finite numbers of at least 0"),
])  # fmt: skip
def test_wrong_weights_of_classes_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        estimators.MLPClassifier(class_weight=wrong).fit([[0.0], [1.0]], [0, 1])


@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("kind", "form"), [
    ("MLPClassifier", "two"), ("MLPClassifier", "three"), ("MLPClassifier", "words"), ("MLPClassifier", "labels"),
    ("MLPRegressor", "two"), ("MLPRegressor", "labels"),
])  # fmt: skip
def test_rows_given_to_stop_by_do_what_held_out_rows_do(kind, form, solver, weighted, rng, monkeypatch):
    """The rows that a fit held out, given to another: the same run, bit for bit."""
    X, y = draw_unbalanced(rng, form)
    weights = rng.uniform(0.2, 2, len(X)) if weighted else None
    X[:, 0] = np.arange(len(X)) / len(X)  # by which a row is known again
    how = {
        "solver": solver,
        "early_stopping": True,
        "shuffle": False,
        "max_iter": 8,
        "random_state": 3,
        "batch_size": 20,
    }
    make, parts = getattr(estimators, kind), []
    split = make._split
    monkeypatch.setattr(make, "_split", lambda self, data: parts.append(split(self, data)) or parts[-1])
    held_out = make(**how).fit(X, y, weights)
    train, test = (np.rint(part.X[:, 0] * len(X)).astype(int) for part in parts[0])
    own = {"sample_weight": weights[train], "sample_weight_val": weights[test]} if weighted else {}
    given = make(**how).fit(X[train], y[train], X_val=X[test], y_val=y[test], **own)
    assert len(parts) == 1
    for name in ("loss_curve_", "validation_scores_", "validation_loss_curve_"):
        assert getattr(given, name) == getattr(held_out, name), name
    assert_array_equal(given.coefs_[0], held_out.coefs_[0])


@pytest.mark.parametrize("container", [np.asarray, scipy.sparse.csr_array])
@pytest.mark.parametrize(("parameters", "form", "metric"), [
    ({}, "two", log_loss), ({}, "words", log_loss), ({}, "three", log_loss),
    ({"loss": "squared_error"}, "two", lambda y, p, **w: mean_squared_error(y, p, **w) / 2),
    ({"loss": "squared_error"}, "labels", lambda y, p, **w: mean_squared_error(y, p, **w) / 2),
    ({"loss": "poisson"}, "two", lambda y, p, **w: mean_poisson_deviance(y, p, **w) / 2),
    ({"loss": "absolute_error"}, "three", mean_absolute_error),
    ({"loss": "huber"}, "three", lambda y, p, sample_weight: np.average(
        np.where(np.abs(y - p) < 1, (y - p) ** 2 / 2, np.abs(y - p) - 0.5), weights=sample_weight)),
])  # fmt: skip
def test_the_validation_loss_is_scikit_learns_metric(parameters, form, metric, container, rng):
    """At the best epoch, whose parameters are kept; without the penalty."""
    X, y = draw_unbalanced(rng, form)
    kind = estimators.MLPRegressor if parameters else estimators.MLPClassifier
    how = {"early_stopping": True, "alpha": 5.0, "max_iter": 9, "n_iter_no_change": 100, "random_state": 0}
    part, rest, weights = slice(0, 30), slice(30, None), rng.uniform(0.1, 2, 30)
    mlp = kind(**how, **parameters)
    mlp.fit(container(X[rest]), y[rest], X_val=container(X[part]), y_val=y[part], sample_weight_val=weights)
    predicted = mlp.predict_proba(X[part]) if kind is estimators.MLPClassifier else mlp.predict(X[part])
    best = int(np.argmax(mlp.validation_scores_))
    assert len(mlp.validation_loss_curve_) == len(mlp.validation_scores_) == 9
    assert_allclose(mlp.validation_loss_curve_[best], metric(y[part], predicted, sample_weight=weights), 1e-9)
    assert_allclose(mlp.validation_scores_[best], mlp.score(X[part], y[part], weights))


@pytest.mark.parametrize("kind", KINDS)
def test_without_early_stopping_there_is_no_validation(kind):
    X, y = load_iris(return_X_y=True)
    mlp = getattr(estimators, kind)(max_iter=2).fit(X, y)
    assert mlp.validation_scores_ is mlp.validation_loss_curve_ is None


@pytest.mark.parametrize(("parameters", "given", "message"), [
    ({}, {"X_val": [[0.0]], "y_val": [1]}, "X_val and y_val are for early stopping, got .* early_stopping=False"),
    ({"early_stopping": True, "solver": "lbfgs"}, {"X_val": [[0.0]], "y_val": [1]}, "got solver='lbfgs'"),
    ({"early_stopping": True}, {"X_val": [[0.0]]}, "one of X_val and y_val was given without the other"),
    ({"early_stopping": True}, {"y_val": [0]}, "one of X_val and y_val was given without the other"),
    ({"early_stopping": True}, {"sample_weight_val": [1.0]}, "sample_weight_val was given without X_val and y_val"),
    ({"early_stopping": True}, {"X_val": [[0.0, 1.0]], "y_val": [1]}, "X has 2 features, but MLPClassifier is"),
    ({"early_stopping": True}, {"X_val": [[np.nan]], "y_val": [1]}, "Input X contains NaN"),
    ({"early_stopping": True}, {"X_val": [[0.0]], "y_val": [0, 1]}, "inconsistent numbers of samples"),
    ({"early_stopping": True}, {"X_val": [[0.0]], "y_val": [7]}, r"y_val holds the classes \[7\], and `y` holds"),
    ({"early_stopping": True}, {"X_val": [[0.0]], "y_val": [[0, 1, 1]]}, "y_val"),
])  # fmt: skip
def test_wrong_rows_to_stop_by_are_refused(parameters, given, message):
    with pytest.raises(ValueError, match=message):
        estimators.MLPClassifier(**parameters).fit([[0.0], [1.0]], [0, 1], **given)


def test_a_pipeline_transforms_the_rows_to_stop_by(rng):
    """And metadata routing hands over them and the weights."""
    X, y = draw_unbalanced(rng, "three")
    weights = rng.uniform(0.2, 2, len(X))
    mlp = estimators.MLPClassifier(early_stopping=True, max_iter=5, random_state=0)
    scaler = StandardScaler().fit(100 * X[30:])
    direct = clone(mlp).fit(
        scaler.transform(100 * X[30:]), y[30:], weights[30:], X_val=scaler.transform(100 * X[:30]), y_val=y[:30]
    )
    with sklearn.config_context(enable_metadata_routing=True):
        mlp.set_fit_request(X_val=True, y_val=True, sample_weight=True)
        pipeline = Pipeline(
            [("scale", StandardScaler().set_fit_request(sample_weight=False)), ("mlp", mlp)], transform_input=["X_val"]
        ).fit(100 * X[30:], y[30:], X_val=100 * X[:30], y_val=y[:30], sample_weight=weights[30:])
    assert pipeline[-1].validation_loss_curve_ == direct.validation_loss_curve_


# ----------------------------------------------------------------------------------------------------------------------
# scikit-learn's tools


@parametrize_with_checks([estimators.MLPClassifier(max_iter=100), estimators.MLPRegressor(max_iter=100)])
def test_estimator_checks(estimator, check):
    check(estimator)


def test_parameters_are_scikit_learns_in_its_order():
    for kind in KINDS:
        theirs, ours = pair(kind)
        names = list(theirs.get_params())
        own = ours.get_params()
        new = {"class_weight"} if kind == "MLPClassifier" else set()
        assert own.keys() - set(names) == {"init", "device", "precision", "plan", "dropout", *new}
        assert {name: own[name] for name in names} == theirs.get_params()
        assert clone(ours).get_params() == own


@pytest.mark.parametrize(("wrong", "message"), [
    ({"solver": "hadam"}, "The 'solver' parameter of MLPClassifier must be a str among"),
    ({"plan": "hasty"}, "The 'plan' parameter of MLPClassifier must be a str among"),
    ({"hidden_layer_sizes": (3, -1)}, r"hidden_layer_sizes must be > 0, got \[3, -1\]."),
    ({"device": "abacus"}, "unknown device 'abacus'"),
    ({"dropout": 1.0}, r"The 'dropout' parameter of MLPClassifier must be a float in the range \[0.0, 1.0\)"),
    ({"dropout": -0.1}, "The 'dropout' parameter of MLPClassifier must be a float"),
    ({"dropout": "half"}, "The 'dropout' parameter of MLPClassifier must be a float"),
    ({"dropout": [0.5, 0.5]}, "got 2 rates of dropout for 1 hidden layers; give one rate, or one per hidden layer"),
    ({"dropout": [2.0]}, r"dropout must be a rate from 0 up to, but not including, 1"),
    ({"dropout": 0.5, "solver": "lbfgs"}, "solver='lbfgs' and dropout=0.5; leave dropout at 0.0, or choose one of"),
])  # fmt: skip
def test_wrong_parameters_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        estimators.MLPClassifier(**wrong).fit([[0.0], [1.0]], [0, 1])


REFUSED = {
    "rates": {"dropout": [0.5, 0.5]},
    "no rate": {"dropout": [2.0]},
    "rates of lbfgs": {"dropout": 0.5, "solver": "lbfgs"},
    "activations": {"activation": ["relu", "tanh"]},
    "plan": {"plan": "zero"},
    "plan of lbfgs": {"plan": "zero", "solver": "lbfgs"},
    "device": {"device": "abacus"},
    "precision": {"precision": "tf32"},
    "unknown precision": {"precision": "fp7"},
    "law": {"init": "xavier"},
    "sizes": {"hidden_layer_sizes": (3, -1)},
    "held-out rows": {"early_stopping": True, "validation_fraction": 0.001},
}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("wrong", REFUSED)
def test_a_fit_that_is_refused_changes_nothing(wrong, trained):
    X, y = load_iris(return_X_y=True)
    mlp = estimators.MLPClassifier(6, max_iter=3, random_state=0)
    if trained:
        mlp.fit(X, y)
    mlp.set_params(**REFUSED[wrong])
    before, text = dict(vars(mlp)), pickle.dumps(mlp)
    other, fewer = scipy.sparse.csr_array(X[:100, :3]), y[:100]
    for how in ({}, {"classes": [0, 1]}):
        if how and (trained or mlp.solver == "lbfgs"):
            continue
        with pytest.raises(ValueError):  # noqa: PT011  which one is said by other tests
            (mlp.partial_fit if how else mlp.fit)(other, fewer, **how)
        assert vars(mlp).keys() == before.keys()
        assert all(value is before[name] for name, value in vars(mlp).items())
        assert pickle.dumps(mlp) == text


def test_what_is_refused_first_parameters_changes_nothing():
    X, y = load_iris(return_X_y=True)
    mlp = estimators.MLPClassifier(6, activation=["relu", "tanh"])
    before = dict(vars(mlp))
    with pytest.raises(ValueError, match="activation must be one of"):
        mlp.initialize(X, y)
    assert vars(mlp) == before


def test_a_fit_that_has_begun_is_not_taken_back():
    mlp = estimators.MLPRegressor(hidden_layer_sizes=6, max_iter=3, solver="sgd", learning_rate_init=1e300)
    with pytest.raises(ValueError, match="non-finite"), np.errstate(all="ignore"):
        mlp.fit(np.arange(8.0)[:, None], np.arange(8.0))
    assert mlp.n_iter_ == 3


def test_its_tools_take_them():
    X, y = load_iris(return_X_y=True)
    mlp = estimators.MLPClassifier((8,), max_iter=60, learning_rate_init=0.02, random_state=0)
    pipeline = make_pipeline(StandardScaler(), mlp)
    with joblib.parallel_config("threading"):  # processes would outlive the test
        search = GridSearchCV(pipeline, {"mlpclassifier__alpha": [1e-4, 0.1]}, cv=2, n_jobs=2).fit(X, y)
    assert search.best_score_ > 0.85
    assert min(cross_validate(pipeline, X, y, cv=2)["test_score"]) > 0.85
    assert CalibratedClassifierCV(pipeline, cv=2).fit(X, y).score(X, y) > 0.85
    assert VotingClassifier([("a", pipeline), ("b", clone(pipeline))], voting="soft").fit(X, y).score(X, y) > 0.85
    importances = permutation_importance(search.best_estimator_, X, y, n_repeats=2, random_state=0).importances_mean
    assert importances[2:].max() > importances[:2].max()  # petals tell more than sepals
    X, y = make_regression(100, 4, random_state=0)
    assert make_pipeline(StandardScaler(), estimators.MLPRegressor(solver="lbfgs")).fit(X, y).score(X, y) > 0.9


@pytest.mark.skipif(
    parse_version(sklearn.__version__) < parse_version("1.9"),
    reason="scikit-learn 1.7 does not route weights to the score of a pipeline",
)
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_searches_and_columns_take_what_is_new(solver, rng):
    """class_weight in a halving search, each column transformed in its way, and weights routed to fit and score."""
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401
    from sklearn.model_selection import HalvingRandomSearchCV

    y = (rng.random(200) < 0.2).astype(int)
    X = np.column_stack([rng.standard_normal(200) + 3 * y, rng.integers(0, 3, 200)])
    mlp = estimators.MLPClassifier((4,), solver=solver, max_iter=40, learning_rate_init=0.02, random_state=0)
    with sklearn.config_context(enable_metadata_routing=True):
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        columns = ColumnTransformer([("number", scaler, [0]), ("kind", OneHotEncoder(handle_unknown="ignore"), [1])])
        mlp.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        search = HalvingRandomSearchCV(
            make_pipeline(columns, mlp),
            {"mlpclassifier__class_weight": [None, "balanced", {0: 1, 1: 3}], "mlpclassifier__alpha": [1e-4, 1e-2]},
            n_candidates=4,
            min_resources=60,
            cv=2,
            random_state=0,
        ).fit(X, y, sample_weight=rng.uniform(0.5, 2, 200))
    assert search.best_score_ > 0.7
    assert search.best_estimator_[-1].class_weight in (None, "balanced", {0: 1, 1: 3})


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_before_may_hand_over_tables(kind):
    """By set_output, and the names of their columns are learnt."""
    X, y = load_iris(return_X_y=True, as_frame=True)
    mlp = getattr(estimators, kind)(max_iter=3, random_state=0)
    piped = make_pipeline(StandardScaler(), clone(mlp)).set_output(transform="pandas").fit(X, y)
    assert piped[-1].feature_names_in_.tolist() == list(X.columns)
    assert_array_equal(piped.predict(X), mlp.fit(scale(X), y).predict(scale(X)))
    assert isinstance(piped[:-1].transform(X), pd.DataFrame)


def test_a_warning_of_no_convergence_points_to_the_caller():
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached") as caught:
        estimators.MLPClassifier(max_iter=2).fit([[0.0], [1.0]], [0, 1])
    assert caught[0].filename == __file__


@pytest.mark.parametrize("compiled", ["1", "0"])
def test_partial_fit_takes_dense_and_compressed_rows_in_turns(compiled, monkeypatch, rng):
    monkeypatch.setenv("MLP_XP_COMPILED", compiled)
    X, y = rng.standard_normal((60, 5)), rng.integers(0, 3, 60)
    one, other = (estimators.MLPClassifier((4,), random_state=0) for _ in range(2))
    for _ in range(3):
        for rows in (X, X):
            one.partial_fit(rows, y, classes=range(3))
        for rows in (X, scipy.sparse.csr_array(X)):
            other.partial_fit(rows, y, classes=range(3))
    assert_allclose(one.coefs_[0], other.coefs_[0], rtol=1e-9, atol=1e-12)


def test_targets_in_compressed_form_are_those_in_full(rng):
    X, Y = rng.standard_normal((60, 5)), rng.integers(0, 2, (60, 3))
    full, compressed = (estimators.MLPClassifier((4,), max_iter=3, random_state=0) for _ in range(2))
    with pytest.warns(ConvergenceWarning):
        full.fit(X, Y)
    with pytest.warns(ConvergenceWarning):
        compressed.fit(X, scipy.sparse.csr_matrix(Y))
    assert_array_equal(full.coefs_[0], compressed.coefs_[0])
    assert_array_equal(full.predict(X), compressed.predict(X))


# ----------------------------------------------------------------------------------------------------------------------
# What scikit-learn does not have


def by_fit(mlp, X, y, optimizer, epochs, batch_size=None):
    """Return the losses of `mx.fit` from where an estimator begins."""
    model = clone(mlp).initialize(X, y).to_mlp()
    return mx.fit(model, X, y, optimizer=optimizer, epochs=epochs, batch_size=batch_size).loss


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_a_schedule_says_the_rate_of_each_epoch(solver):
    X, y = scale(load_iris().data), load_iris().target
    schedule = mx.WarmUp(0.02, epochs=3, after=mx.CosineDecay(0.02, epochs=6))
    mlp = estimators.MLPClassifier(
        5, solver=solver, learning_rate=schedule, alpha=0, batch_size=150, max_iter=12, momentum=0, random_state=0,
        nesterovs_momentum=False,
    )  # fmt: skip
    optimizer = mx.SGD(schedule) if solver == "sgd" else mx.optim.AdamEpsilonHat(schedule)
    wanted = by_fit(mlp, X, y, optimizer, 12)
    mlp.fit(X, y)
    assert_allclose(mlp.loss_curve_, wanted, rtol=1e-9)
    assert_allclose(mlp.loss_curve_[-2:], mlp.loss_curve_[-1], rtol=1e-12)  # at its end the cosine is zero
    parts = clone(mlp)
    for _ in range(12):
        parts = pickle.loads(pickle.dumps(parts.partial_fit(X, y, classes=[0, 1, 2])))
    assert_allclose(parts.loss_curve_, wanted, rtol=1e-9)


def test_an_activation_for_each_layer():
    X, y = load_iris(return_X_y=True)
    mlp = estimators.MLPClassifier((6, 5), ["tanh", "logistic"], random_state=0, max_iter=5).fit(X, y)
    assert mlp.to_mlp().activation == ("tanh", "sigmoid")
    alike = [estimators.MLPClassifier((6, 5), g, random_state=0, max_iter=5).fit(X, y) for g in ("tanh", ("tanh",) * 2)]
    assert alike[0].loss_curve_ == alike[1].loss_curve_
    logistic = clone(alike[0]).set_params(activation="logistic").initialize(X, y)
    first = clone(mlp).initialize(X, y)
    assert np.abs(first.coefs_[0]).max() > np.sqrt(2 / 10) >= np.abs(logistic.coefs_[0]).max()
    assert_array_equal(first.coefs_[2].shape, (5, 3))
    assert np.abs(first.coefs_[2]).max() <= np.sqrt(2 / 8)  # the outputs are drawn like the layer before them
    for wrong in (["tanh"], ["tanh", "relu", "relu"], ["tanh", "sigmoid"], ["tanh", ["relu"]]):
        with pytest.raises(ValueError, match="or one for each of the 2 hidden layers, got"):
            clone(mlp).set_params(activation=wrong).fit(X, y)


@pytest.mark.parametrize("init", ["he_normal", "xavier_uniform", "zeros"])
def test_first_weights_by_another_law(init):
    X, y = load_iris(return_X_y=True)
    mlp = estimators.MLPClassifier(300, init=init, random_state=3).initialize(X, y)
    assert [W.shape for W in mlp.coefs_] == [(4, 300), (300, 3)]
    assert not any(b.any() for b in mlp.intercepts_)
    spread = {"he_normal": np.sqrt(2 / 4), "xavier_uniform": np.sqrt(2 / 304), "zeros": 0}[init]
    assert_allclose(mlp.coefs_[0].std(), spread, rtol=0.1)
    assert all(W.flags.c_contiguous for W in mlp.coefs_)
    assert_array_equal(mlp.coefs_[0], clone(mlp).initialize(X, y).coefs_[0])
    assert (init == "zeros") == np.array_equal(
        mlp.coefs_[0], clone(mlp).set_params(random_state=4).initialize(X, y).coefs_[0]
    )
    with pytest.raises(ValueError, match="The 'init' parameter of MLPClassifier must be"):
        clone(mlp).set_params(init="he").fit(X, y)


def test_an_estimator_that_was_not_trained_predicts():
    X, y = load_iris(return_X_y=True)
    mlp = estimators.MLPClassifier(
        5, solver="sgd", random_state=0, max_iter=1, warm_start=True, shuffle=False
    ).initialize(X, y)
    assert mlp.predict_proba(X).shape == (150, 3)
    first = mlp.to_mlp().loss_and_gradient(X, y)[0]
    assert_allclose(mlp.set_params(batch_size=150, alpha=0).fit(X, y).loss_curve_, [float(first)], rtol=1e-9)
    many = estimators.MLPRegressor(hidden_layer_sizes=4, random_state=0).initialize(X, np.c_[y, y])
    assert many.predict(X).shape == (150, 2)
    assert len(many.partial_fit(X, np.c_[y, y]).loss_curve_) == 1
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        many.initialize(X, y[1:])
