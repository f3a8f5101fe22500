"""The estimators on arrays of other libraries: scikit-learn's checks of that, and that samples stay where they are."""

from __future__ import annotations

import copy
import pickle

import array_api_compat as compat
import array_api_strict
import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale
from sklearn.utils import _array_api, estimator_checks

import mlp_xp as mx
from mlp_xp.devices import device_of, get_device
from mlp_xp.estimators import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

OTHERS = ["strict", "torch", pytest.param("jax", marks=pytest.mark.slow), "cuda"]  # JAX compiles each fit anew
ESTIMATORS = [
    MLPClassifier(max_iter=4),
    MLPClassifier(max_iter=4, solver="lbfgs", class_weight="balanced"),
    MLPRegressor(max_iter=4, loss="huber", solver="sgd", early_stopping=True),
    MLPRegressor(max_iter=4, loss="poisson", batch_size=7),
    MLPRegressor(max_iter=4, loss="absolute_error", batch_size=7),
]
checks_exist = pytest.mark.skipif(
    not hasattr(estimator_checks, "check_array_api_same_namespace"), reason="scikit-learn 1.9 has these checks"
)


@pytest.fixture
def dispatch(monkeypatch):
    """Have scikit-learn take arrays of all libraries as they are."""
    pytest.importorskip("scipy", "1.14")  # with older ones scikit-learn refuses to
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    with sklearn.config_context(array_api_dispatch=True):
        yield
    array_api_strict.reset_array_api_strict_flags()  # scikit-learn sets the version of the standard


def open_device(name):
    """Return a device where float64 is possible."""
    return get_device(name, "float64")


def place(device):
    """Return what makes two devices one: their names may differ, as "torch" and "torch:cpu" do."""
    return device.xp, device.where


def draw_iris(estimator):
    """Return standardized samples (150, 4), and targets that the estimator can take."""
    X, y = load_iris(return_X_y=True)
    return scale(X), y if isinstance(estimator, MLPClassifier) else y.astype(float)


# ----------------------------------------------------------------------------------------------------------------------
# scikit-learn's own checks

NAMESPACES = {"cpu": "numpy", "strict": "array_api_strict", "torch": "torch", "jax": "jax.numpy", "cuda": "cupy"}
PLACES = {"strict": "device1", "torch": "cpu"}  # what scikit-learn's checks call them; None for the others


@checks_exist
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("device", ["cpu", *OTHERS])
def test_scikit_learns_checks_of_arrays_pass(estimator, device, dispatch):
    open_device(device)
    name, where = type(estimator).__name__, (NAMESPACES[device], PLACES.get(device))
    for dtype, values in (("float64", True), ("float32", False)):
        estimator_checks.check_array_api_input(name, estimator, *where, dtype, values, check_sample_weight=values)
    for other in {"cpu", "strict", device}:
        estimator_checks.check_array_api_mixed_inputs(
            name,
            estimator,
            X_ns_and_device=_array_api.NamespaceAndDevice(*where),
            other_ns_and_device=_array_api.NamespaceAndDevice(NAMESPACES[other], PLACES.get(other)),
            check_values=True,
        )


@checks_exist
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_scikit_learns_check_of_the_namespace_of_fit_passes(estimator, dispatch):
    estimator_checks.check_array_api_same_namespace(type(estimator).__name__, estimator, "array_api_strict")
    estimator_checks.check_array_api_input(
        type(estimator).__name__, estimator, "array_api_strict", "CPU_DEVICE", "float64", True
    )


# ----------------------------------------------------------------------------------------------------------------------
# The same runs, where the samples are


def form_targets(kind, y):
    """Return labels (150,) as targets of a kind."""
    return {"codes": y, "labels": np.stack([y > 0, y != 1], 1).astype(int), "values": y * 1.5}[kind]


@pytest.mark.parametrize("device", OTHERS)
@pytest.mark.parametrize(("make", "kind"), [
    (MLPClassifier, "codes"), (MLPClassifier, "labels"), (MLPRegressor, "values"), (MLPRegressor, "labels"),
])  # fmt: skip
@pytest.mark.parametrize("how", [{}, {"solver": "sgd", "early_stopping": True, "batch_size": 40}, {"solver": "lbfgs"}])
def test_a_run_on_arrays_is_the_run_on_numpy(device, make, kind, how, rng, dispatch):
    there = open_device(device)
    X, y = load_iris(return_X_y=True)
    X, y, weights = scale(X), form_targets(kind, y), rng.uniform(0.5, 2, len(X))
    want = make(hidden_layer_sizes=(6,), max_iter=5, random_state=0, **how).fit(X, y, weights)
    got = clone(want).fit(there.asarray(X), there.asarray(y), there.asarray(weights))
    assert_allclose(got.loss_curve_, want.loss_curve_, 1e-9)
    for a, b in zip([*got.coefs_, *got.intercepts_], [*want.coefs_, *want.intercepts_], strict=True):
        assert place(device_of(a)) == place(there)
        assert_allclose(there.to_host(a), b, 1e-7, 1e-9)
    for method in ("predict", "predict_proba", "predict_log_proba"):
        if hasattr(want, method):
            result = getattr(got, method)(there.asarray(X))
            assert place(device_of(result)) == place(there)
            assert_allclose(there.to_host(result), getattr(want, method)(X), 1e-7, 1e-9)
    assert_allclose(got.score(there.asarray(X), there.asarray(y)), want.score(X, y), 1e-9)


@pytest.mark.parametrize("device", OTHERS)
@pytest.mark.parametrize("make", [MLPClassifier, MLPRegressor])
def test_samples_never_come_to_the_host(device, make, dispatch, monkeypatch):
    """Neither those to train on, nor those to stop by, nor those to predict; only other plans look at them there."""
    there, moved = open_device(device), []
    to_host = type(there).to_host
    monkeypatch.setattr(type(there), "to_host", lambda self, x: moved.append(tuple(x.shape)) or to_host(self, x))
    X, y = draw_iris(make())
    X = there.asarray(np.repeat(X, 3, axis=1))  # 12 columns, unlike anything else
    for how in ({"solver": "lbfgs"}, {"batch_size": 50}, {"early_stopping": True}):
        make(hidden_layer_sizes=5, max_iter=2, plan="dense", **how).fit(X, y).predict(X)
    make(hidden_layer_sizes=5, max_iter=2, early_stopping=True).fit(X, y, X_val=X, y_val=y)
    assert moved
    assert not [shape for shape in moved if shape[1:] == (12,)]


@pytest.mark.parametrize("device", ["strict", "torch", "jax", "cuda"])
def test_fits_go_on_where_they_were(device, dispatch):
    """partial_fit, after a copy and a pickle too, and a warm start."""
    there = open_device(device)
    X, y = draw_iris(MLPClassifier())
    want, got = (MLPClassifier((6,), max_iter=3, random_state=0, warm_start=True) for _ in range(2))
    for step in (0, 1, 2):
        want.partial_fit(X, y, classes=np.arange(3))
        got.partial_fit(there.asarray(X), there.asarray(y), classes=there.asarray(np.arange(3)))
        got = (copy.deepcopy(got), pickle.loads(pickle.dumps(got)))[step % 2]
    assert_allclose(there.to_host(got.coefs_[0]), want.coefs_[0], 1e-9, 1e-12)
    assert_allclose(got.fit(there.asarray(X), y).loss_curve_, want.fit(X, y).loss_curve_, 1e-9)


@pytest.mark.parametrize("device", OTHERS)
def test_texts_are_predicted_on_the_host(device, dispatch):
    there = open_device(device)
    X, y = draw_iris(MLPClassifier())
    mlp = MLPClassifier(max_iter=2, random_state=0).fit(there.asarray(X), np.array(["a", "b", "c"])[y])
    assert set(mlp.predict(there.asarray(X))) <= {"a", "b", "c"}
    assert place(device_of(mlp.predict_proba(there.asarray(X)))) == place(there)


@pytest.mark.parametrize(
    ("device", "asked"), [("torch", "cpu"), ("strict", "cpu"), ("torch", "strict"), ("cuda", "cpu")]
)
def test_a_device_that_is_asked_for_computes(device, asked, dispatch):
    """And what it finds goes to where the samples are."""
    there = open_device(device)
    X, y = draw_iris(MLPClassifier())
    mlp = MLPClassifier(device=asked, max_iter=3, random_state=0).fit(there.asarray(X), y)
    assert mlp.to_mlp().device.name == asked
    assert place(device_of(mlp.coefs_[0])) == place(device_of(mlp.predict(there.asarray(X)))) == place(there)
    assert_allclose(mlp.loss_curve_, MLPClassifier(max_iter=3, random_state=0).fit(X, y).loss_curve_, 1e-9)


@pytest.mark.needs("torch")
def test_a_pipeline_on_tensors(dispatch):
    import torch

    X, y = draw_iris(MLPClassifier())
    pipeline = make_pipeline(StandardScaler(), MLPClassifier(solver="lbfgs", max_iter=30, random_state=0))
    predicted = pipeline.fit(torch.asarray(X), torch.asarray(y)).predict(torch.asarray(X))
    assert (predicted == torch.asarray(y)).double().mean() > 0.95
    assert isinstance(pipeline[-1].to_mlp(), mx.MLP)


# ----------------------------------------------------------------------------------------------------------------------
# What does not fit


@pytest.mark.needs("torch")
def test_inputs_of_another_library_than_those_of_fit_are_refused(dispatch):
    import torch

    X, y = draw_iris(MLPClassifier())
    mlp = MLPClassifier(max_iter=2, early_stopping=True, random_state=0).fit(torch.asarray(X), y)
    for call in (mlp.predict, mlp.predict_proba, mlp.predict_log_proba):
        with pytest.raises(
            ValueError, match=rf"MLPClassifier\.{call.__name__}\(\) must use the same namespace .*'torch"
        ):
            call(X)
    with pytest.raises(ValueError, match=r"MLPClassifier\.partial_fit\(\) must use the same namespace"):
        mlp.partial_fit(X, y)
    with pytest.raises(ValueError, match="X_val must use the same namespace and the same device as X"):
        mlp.fit(torch.asarray(X), y, X_val=X, y_val=y)


@checks_exist
@pytest.mark.needs("torch")
def test_an_estimator_moves_to_another_library(dispatch):
    import torch

    X, y = draw_iris(MLPClassifier())
    here = MLPClassifier(max_iter=3, random_state=0).fit(X, np.array(["a", "b", "c"])[y])
    there = _array_api.move_estimator_to(here, compat.array_namespace(torch.asarray(X)), "cpu")
    assert torch.is_tensor(there.coefs_[0])
    assert_array_equal(there.predict(torch.asarray(X)), here.predict(X))
    back = _array_api.move_estimator_to(there, np, None)
    words = here.classes_[y]
    assert_array_equal(back.partial_fit(X, words).coefs_[0], here.partial_fit(X, words).coefs_[0])


def test_without_dispatch_arrays_are_made_numpys_or_refused():
    """As in scikit-learn."""
    X, y = draw_iris(MLPClassifier())
    strict = open_device("strict")
    with pytest.raises(RuntimeError, match="Can't convert array"):
        MLPClassifier(max_iter=2).fit(strict.asarray(X), y)


@pytest.mark.needs("torch")
def test_without_dispatch_tensors_are_made_numpys():
    import torch

    X, y = draw_iris(MLPClassifier())
    mlp = MLPClassifier(max_iter=2, random_state=0).fit(torch.asarray(X), torch.asarray(y))
    assert type(mlp.predict(torch.asarray(X))) is type(mlp.coefs_[0]) is np.ndarray
    assert mlp.to_mlp().device.name == "cpu"


@pytest.mark.needs("torch")
def test_an_estimator_of_tensors_takes_numpys_arrays_once_dispatch_is_off(monkeypatch):
    import torch

    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    X, y = draw_iris(MLPClassifier())
    with sklearn.config_context(array_api_dispatch=True):
        mlp = MLPClassifier(max_iter=2, random_state=0).fit(torch.asarray(X), y)
        want = mlp.predict(torch.asarray(X)).numpy()
    assert_array_equal(mlp.predict(X), want)


@pytest.mark.parametrize("device", ["cpu", "strict", "torch", "jax", "cuda"])
def test_an_array_says_where_it_is(device):
    there = open_device(device)
    found = device_of(there.asarray(np.zeros(3)))
    assert place(found) == place(there) == place(get_device(found.name))


def test_array_api_stricts_devices_are_told_apart():
    found = [
        device_of(array_api_strict.zeros(2, device=array_api_strict.Device(name))) for name in ("CPU_DEVICE", "device1")
    ]
    assert found[0] != found[1] == get_device("strict")
