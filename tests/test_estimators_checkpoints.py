"""A fit of an estimator that was stopped and resumed is the fit that was not stopped, bit for bit."""

from __future__ import annotations

import re
import signal

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.preprocessing import scale

import mlp_xp as mx
from mlp_xp.estimators import MLPClassifier, MLPRegressor
from mlp_xp.runs.record import FILE, read, write

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, y = load_iris(return_X_y=True)
X = scale(X)
RUNS = {
    "adam": MLPClassifier(5, max_iter=9),
    "full batch": MLPClassifier(5, max_iter=9, batch_size=150, class_weight={0: 2.0, 1: 1.0, 2: 1.0}),
    "momentum": MLPRegressor(hidden_layer_sizes=5, solver="sgd", max_iter=9, learning_rate="invscaling"),
    "adaptive": MLPClassifier(5, solver="sgd", learning_rate="adaptive", tol=0.05, n_iter_no_change=1, max_iter=12),
    "early stopping": MLPClassifier(5, early_stopping=True, n_iter_no_change=2, learning_rate_init=0.02),
    "plateau": MLPClassifier(5, tol=0.05, n_iter_no_change=2, learning_rate_init=0.02),
    "schedule": MLPClassifier(5, learning_rate=mx.WarmUp(0.02, 3, mx.CosineDecay(0.02, 4)), max_iter=9),
    "dropout": MLPClassifier(5, dropout=0.3, max_iter=9),
    "as they come": MLPClassifier(5, shuffle=False, init="he_normal", max_iter=9),
}


class Stopped(mx.Checkpoint):
    """A checkpoint of a fit that gets a signal in an epoch."""

    def __init__(self, folder, epoch, **settings):
        super().__init__(folder, **settings)
        self.epoch = epoch

    def after(self, state, final):
        if state.epoch == self.epoch:
            signal.raise_signal(signal.SIGTERM)
        super().after(state, final)


def made(name, **parameters):
    mlp = clone(RUNS[name]).set_params(random_state=3, **parameters)
    return mlp if name == "full batch" else mlp.set_params(batch_size=40)


def assert_same(one, other):
    for name, value in vars(other).items():
        if name.endswith("_") and name not in ("coefs_", "intercepts_"):
            assert_array_equal(getattr(one, name), value, err_msg=name)
    for a, b in zip([*one.coefs_, *one.intercepts_], [*other.coefs_, *other.intercepts_], strict=True):
        assert_array_equal(a, b)


@pytest.mark.usefixtures("cpu_engine")
@pytest.mark.parametrize("name", RUNS)
def test_stopped_and_resumed_equals_straight(name, tmp_path):
    straight = made(name).fit(X, y)
    assert straight.n_iter_ > 4
    for epoch in (1, 4, straight.n_iter_):
        folder = tmp_path / str(epoch)
        with pytest.raises(mx.Interrupted, match=f"in epoch {epoch}"):
            made(name).fit(X, y, checkpoint=Stopped(folder, epoch))
        assert read(folder / FILE).snapshot.epoch == epoch
        assert_same(made(name).fit(X, y, checkpoint=mx.Checkpoint(folder, resume=True)), straight)
    again = made(name).fit(X, y, checkpoint=mx.Checkpoint(folder, resume=True))  # it was over
    assert_same(again, straight)


def test_a_finished_fit_goes_on_with_more_epochs(tmp_path):
    made("adam").fit(X, y, checkpoint=mx.Checkpoint(tmp_path))
    more = made("adam", max_iter=15).fit(X, y, checkpoint=mx.Checkpoint(tmp_path, resume=True))
    assert_same(more, made("adam", max_iter=15).fit(X, y))


def test_rows_to_stop_by_and_their_weights_are_given_again(tmp_path):
    how = {"sample_weight": np.linspace(1, 2, 100), "X_val": X[::3], "y_val": y[::3]}
    rows = np.arange(150) % 3 > 0
    straight = made("early stopping").fit(X[rows], y[rows], **how)
    with pytest.raises(mx.Interrupted):
        made("early stopping").fit(X[rows], y[rows], **how, checkpoint=Stopped(tmp_path, 3))
    resume = mx.Checkpoint(tmp_path, resume=True)
    assert_same(made("early stopping").fit(X[rows], y[rows], **how, checkpoint=resume), straight)
    with pytest.raises(ValueError, match="cannot be resumed with other settings"):
        made("early stopping").fit(X[rows], y[rows], **how | {"sample_weight": None}, checkpoint=resume)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"solver": "lbfgs"}, "got 'lbfgs', False and 3"),
        ({"random_state": None}, "got 'adam', False and None"),
        ({"warm_start": True}, "got 'adam', True and 3"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_written(parameters, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        made("adam").set_params(**parameters).fit(X, y, checkpoint=mx.Checkpoint(tmp_path / "run"))
    with pytest.raises(ValueError, match="plan 'zero' is not available"):
        made("adam", plan="zero", device="strict").fit(X, y, checkpoint=mx.Checkpoint(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("parameters", [{"tol": 0.1}, {"alpha": 1.0}, {"n_iter_no_change": 3}, {"random_state": 4}])
def test_other_parameters_are_another_run(parameters, tmp_path):
    with pytest.raises(mx.Interrupted):
        made("adam").fit(X, y, checkpoint=Stopped(tmp_path, 2))
    with pytest.raises(ValueError, match="cannot be resumed with other settings"):
        made("adam").set_params(**parameters).fit(X, y, checkpoint=mx.Checkpoint(tmp_path, resume=True))


@pytest.mark.parametrize(("then", "now"), [(0.3, 0.0), (0.0, 0.3), (0.3, 0.2)])
def test_another_dropout_is_named_and_nothing_else(then, now, tmp_path):
    with pytest.raises(mx.Interrupted):
        made("adam", dropout=then).fit(X, y, checkpoint=Stopped(tmp_path, 2))
    names = [[rate] if rate else 0.0 for rate in (then, now)]
    changed = re.escape(f"started with (dropout: {names[0]}, now {names[1]}); leave")
    with pytest.raises(ValueError, match=changed):
        made("adam", dropout=now).fit(X, y, checkpoint=mx.Checkpoint(tmp_path, resume=True))


CHANGES = {
    "nothing": lambda record: record.clear(),
    "no score": lambda record: record.pop("score"),
    "another length": lambda record: record.update(score=record["score"][1:]),
    "fewer epochs": lambda record: record.update(
        {name: record[name][1:] for name in ("loss", "score", "held_out_loss")}
    ),
    "floats": lambda record: record.update(loss=record["loss"].view(np.float64)),
    "a matrix": lambda record: record.update(loss=record["loss"][:, None]),
    "a number": lambda record: record.update(loss=1.0),
    "other parameters": lambda record: record.update(coef0=record["coef0"].T.copy()),
    "more": lambda record: record.update(coef9=record["coef0"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_record_that_no_fit_can_have_is_refused(change, tmp_path):
    with pytest.raises(mx.Interrupted):
        made("early stopping").fit(X, y, checkpoint=Stopped(tmp_path, 3))
    record = read(tmp_path / FILE)
    CHANGES[change](record.callbacks[0])
    write(tmp_path / FILE, record)
    with pytest.raises(mx.CheckpointError, match=r"cannot have|its fit has 2 epochs, and the run 3"):
        made("early stopping").fit(X, y, checkpoint=mx.Checkpoint(tmp_path, resume=True))
