"""Callbacks: what is checked before a training, what they measure and record, and that they can be used again."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import mlp_xp as mx
from mlp_xp.callbacks import Evaluation


@pytest.fixture
def data(rng):
    X = rng.standard_normal((60, 4))
    return X, (X @ [1, -2, 0.5, 1] > 0).astype(int)


def network(**settings):
    return mx.MLP([4, 6, 2], **settings)


# Before the training.


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (None, "callbacks must be a list of callables, got None; put a single one in brackets"),
        (5, "callbacks must be a list of callables, got 5"),
        (print, "callbacks must be a list of callables, got <built-in function print>; put a single one in brackets"),
        (mx.EarlyStopping(), r"callbacks must be a list of callables, got EarlyStopping\(.*\); put a single one"),
        (mx.EarlyStopping, "callbacks must be a list of callables, got <class .*; put a single one"),
        ([None], r"callbacks\[0\] is None; give a function, or an object that can be called"),
        ([print, "print"], r"callbacks\[1\] is 'print'; give a function"),
        ("ab", r"callbacks\[0\] is 'a'; give a function"),
        ([mx.EarlyStopping], r"callbacks\[0\] is the class EarlyStopping; give an object, EarlyStopping\(\)"),
        (
            [mx.EarlyStopping(monitor="val_loss")],
            r"EarlyStopping\(.*'val_loss'\) needs 'val_loss', .*validation=\(X, y",
        ),
        ([print, mx.EarlyStopping(monitor="val_loss")], "needs 'val_loss', which no callback before it measures"),
        ([mx.EarlyStopping(monitor="val_loss"), Evaluation("val", [[0.0] * 4], [0])], "which no callback before it"),
        ([Evaluation("test", [[0.0] * 4], [0])] * 2, r"Evaluation\('test'\) measures 'test_loss', and so does"),
        ([Evaluation("test", [[0.0] * 3], [0])], r"X must have the shape \(n, 4\)"),
        ([Evaluation("test", [[0.0] * 4], [7])], "labels must lie between 0 and 1, got 7 to 7"),
    ],
)
def test_what_cannot_be_a_callback_is_refused_before_training(callbacks, message, data):
    model = network()
    before = model.theta.copy()
    with pytest.raises(ValueError, match=message) as caught:
        mx.fit(model, *data, epochs=3, callbacks=callbacks)
    assert "\n" not in str(caught.value)
    assert_array_equal(model.theta, before)


def test_callbacks_may_come_from_any_iterable(data):
    seen = []
    mx.fit(network(), *data, epochs=2, callbacks=(f for f in [seen.append]))
    assert [state.epoch for state in seen] == [1, 2]


@pytest.mark.parametrize("number", [np.int64(3), np.uint8(3), np.int16(3)])
def test_numpy_numbers_are_numbers(number):
    stop = mx.EarlyStopping(tol=np.float32(0.5), patience=number)
    assert (stop.tol, stop.patience) == (0.5, 3)
    assert repr(stop) == "EarlyStopping(tol=0.5, patience=3, monitor='loss')"
    assert mx.EarlyStopping(tol=np.int32(0)).tol == 0


@pytest.mark.parametrize("tol", [True, np.True_, -1, np.float32(-1), np.nan, np.inf, 10**400, "0.1", None, 1j, [0.1]])
def test_what_is_no_tolerance_is_refused(tol):
    with pytest.raises(ValueError, match="tol must be a finite number of at least 0, got "):
        mx.EarlyStopping(tol=tol)


@pytest.mark.parametrize("patience", [True, np.True_, 0, -5, 2.0, np.float64(2), "3", None])
def test_what_is_no_patience_is_refused_with_and_without_tol(patience, data):
    for call in (mx.EarlyStopping, lambda **given: mx.fit(network(), *data, **given)):
        with pytest.raises(ValueError, match="patience must be a whole number of at least 1, got "):
            call(patience=patience)


# What a callback answers.


@pytest.mark.parametrize("answer", [None, False, np.False_, 0, 1, 5, 0.5, "x", [True], (), {}, np.ones(3), object()])
def test_only_true_ends_the_training(answer, data):
    assert len(mx.fit(network(), *data, epochs=3, callbacks=[lambda state: answer])) == 3


def test_true_ends_the_training_whoever_says_it(data):
    assert len(mx.fit(network(), *data, epochs=3, callbacks=[lambda state: True])) == 1
    assert len(mx.fit(network(), *data, epochs=3, callbacks=[lambda state: state.loss < 1e9])) == 1
    assert len(mx.fit(network(), *data, epochs=3, callbacks=[lambda state: state.loss < 0])) == 3


@pytest.mark.parametrize("device", ["strict", "torch", "jax", "cuda"])
def test_a_comparison_on_any_device_is_an_answer(device, data):
    history = mx.fit(network(device=device), *data, epochs=3, callbacks=[lambda state: state.loss < 1e9])
    assert len(history) == 1


@pytest.fixture
def little_memory():
    """Limit what CuPy may take of the current GPU: f(bytes more than are in use)."""
    import cupy

    pool = cupy.get_default_memory_pool()
    before = pool.get_limit()

    def limit(more):
        pool.free_all_blocks()
        pool.set_limit(size=pool.used_bytes() + more)

    yield limit
    pool.set_limit(size=before)


@pytest.mark.gpu
def test_data_to_measure_that_do_not_fit_on_a_gpu_stay_on_the_host(little_memory, rng, caplog, monkeypatch):
    monkeypatch.setattr("mlp_xp.kernels.cuda.products._WORKSPACE", 4096)
    X, y = rng.random((4000, 100)).astype(np.float32), rng.integers(0, 2, 4000)
    here, there = (mx.MLP([100, 6, 2], device=device) for device in ("cpu", "cuda"))
    mx.fit(mx.MLP([100, 6, 2], device="cuda"), X[:60], y[:60], epochs=1)  # what is kept in the process is there now
    little_memory(1_500_000)  # X takes 1,600,000 bytes
    wanted, found = (mx.fit(model, X[:60], y[:60], epochs=2, validation=(X, y)).val_loss for model in (here, there))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert "cuda has no memory for the data of Evaluation('val'), which stay on the host: Out of mem" in caplog.text


# Used again.


class Counting:
    """A callback of somebody's own that has all there is."""

    measures = ("count",)

    def __init__(self):
        self.model, self.count, self.closed = None, 0, 0

    def begin(self, model):
        self.model, self.count, self.closed = model, 0, 0

    def __call__(self, state):
        self.count += 1
        state.metrics["count"] = self.count
        return self.over

    @property
    def over(self):
        return self.count == 4

    def dump(self):
        return {"count": self.count}

    def restore(self, record, model):
        self.count = record["count"]

    def close(self):
        self.closed += 1


MAKE = {
    "early stopping on loss": lambda data: mx.EarlyStopping(tol=0.02, patience=2),
    "early stopping on val_loss": lambda data: mx.EarlyStopping(patience=3, monitor="val_loss"),
    "early stopping on the gradient": lambda data: mx.EarlyStopping(tol=1e9, patience=2, monitor="gradient"),
    "history": lambda data: mx.History(),
    "evaluation": lambda data: Evaluation("test", *data),
    "progress": lambda data: mx.Progress(8, disable=False),
    "one's own": lambda data: Counting(),
}


def traces(callback):
    """Return what a callback has kept of a run, times and addresses left out."""
    kept = {name: value for name, value in vars(callback).items() if name not in ("seconds", "model", "bar")}
    if kept.get("_best_of"):
        kept["_best_of"] = kept["_best_of"][1].tobytes()
    return repr(kept) + str(getattr(getattr(callback, "bar", None), "n", ""))


@pytest.mark.parametrize("name", MAKE)
def test_a_callback_that_is_used_again_behaves_as_new(name, data, rng, capsys):
    validation = rng.standard_normal((30, 4)), rng.integers(0, 2, 30)  # nothing to be learned: the loss soon rises
    settings = {"epochs": 8, "validation": validation, "optimizer": mx.Adam(0.1)}
    again = MAKE[name](validation)
    for seed in (3, 1, 2):
        fresh, models = MAKE[name](validation), (network(seed=seed), network(seed=seed))
        one, two = (
            mx.fit(model, *data, callbacks=[callback], **settings)
            for model, callback in zip(models, (again, fresh), strict=True)
        )
        assert one.loss == two.loss
        assert_array_equal(models[0].theta, models[1].theta)
        assert traces(again) == traces(fresh)


def test_a_fit_that_never_began_does_not_touch_the_model_of_the_one_before(data):
    stop, first, second = mx.EarlyStopping(monitor="val_loss"), network(), network(seed=1)
    mx.fit(first, *data, epochs=3, validation=data, callbacks=[stop])
    first.theta = theta = first.theta + 1
    for wrong in ({"threads": 0}, {"batch_size": 0}, {"plan": "x"}, {"validation": None}):
        with pytest.raises(ValueError, match=r"threads|batch_size|plan|needs"):
            mx.fit(second, *data, **{"validation": data, "callbacks": [stop], **wrong})
    assert_array_equal(first.theta, theta)


def test_what_has_begun_is_closed_also_if_the_training_does_not_begin(data):
    counting = Counting()
    for wrong in ({"batch_size": 0}, {"callbacks": [counting, mx.EarlyStopping(monitor="val_loss")]}):
        with pytest.raises(ValueError, match=r"batch_size|needs"):
            mx.fit(network(), *data, **{"callbacks": [counting], **wrong})
        assert (counting.count, counting.closed) == (0, 1)


def test_a_callback_of_ones_own_goes_on_when_its_run_does(data, tmp_path):
    first, second, third = Counting(), Counting(), Counting()
    mx.fit(network(), *data, epochs=2, callbacks=[first], checkpoint=mx.Checkpoint(tmp_path))
    resume = mx.Checkpoint(tmp_path, resume=True)
    history = mx.fit(network(), *data, epochs=9, callbacks=[second], checkpoint=resume)
    assert second.count == 4
    assert history.metrics["count"] == [1, 2, 3, 4]
    assert len(mx.fit(network(), *data, epochs=9, callbacks=[third], checkpoint=resume)) == 4  # it is over
    with pytest.raises(ValueError, match=r"callbacks: \['Counting'\], now \[\]"):
        mx.fit(network(), *data, epochs=9, checkpoint=resume)


# What is measured and recorded.


@pytest.mark.parametrize(
    ("output", "score"), [("softmax", "accuracy"), ("sigmoid", "accuracy"), ("identity", "r2"), ("sigmoid_mse", "r2")]
)
def test_each_score_is_called_what_it_is(output, score, rng, targets, tmp_path):
    X, model = rng.random((40, 4)), mx.MLP([4, 3, 2], output=output)
    y = targets(output, 40, 2)
    callbacks = [Evaluation("test", X[:7], y[:7])]
    history = mx.fit(model, X, y, epochs=3, validation=(X[7:], y[7:]), callbacks=callbacks)
    names = ["epoch", "loss", "val_loss", f"val_{score}", "test_loss", f"test_{score}", "lr", "seconds"]
    assert list(history.columns()) == names
    assert (history.val_loss[-1], getattr(history, f"val_{score}")[-1]) == model.evaluate(X[7:], y[7:])
    assert (history.test_loss[-1], getattr(history, f"test_{score}")[-1]) == model.evaluate(X[:7], y[:7])
    assert getattr(history, "val_r2" if score == "accuracy" else "val_accuracy") == []
    history.save(tmp_path / "history.csv")
    assert (tmp_path / "history.csv").read_text().splitlines()[0] == ",".join(names)


@pytest.mark.parametrize("name", ["", "a b", "_x", "1", 5, None, "é", "a.b"])
def test_an_evaluation_has_a_name_that_columns_can_have(name):
    with pytest.raises(ValueError, match="the name of an evaluation must be a word such as 'val' or 'test', got"):
        Evaluation(name, [[0.0]], [0])


def test_data_are_checked_once_whatever_the_number_of_epochs(data, monkeypatch):
    X, y = data
    measured = {"val": (X[:20].copy(), y[:20].copy()), "test": (X[20:].copy(), y[20:].copy())}
    checked, check = [], mx.rows.opening.as_features

    def count(array, *rest):
        checked.extend(name for name, (each, _) in measured.items() if np.array_equal(each, array))
        return check(array, *rest)

    monkeypatch.setattr(mx.rows.opening, "as_features", count)
    mx.fit(
        network(dtype="float64"), X, y, epochs=5, validation=measured["val"],
        callbacks=[Evaluation("test", *measured["test"])],
    )  # fmt: skip
    assert sorted(checked) == ["test", "val"]


def test_history_has_every_metric_and_gaps_where_nothing_was_measured(data, tmp_path):
    def measure(state):
        if state.epoch % 2 == 0:
            state.metrics["even"] = state.epoch
        state.metrics["worst"] = np.inf if state.epoch == 1 else np.float32(0.5)

    settings = {"callbacks": [measure], "batch_size": 17}
    straight = mx.fit(network(), *data, epochs=5, checkpoint=mx.Checkpoint(tmp_path / "a"), **settings)
    mx.fit(network(), *data, epochs=3, checkpoint=mx.Checkpoint(tmp_path / "b"), **settings)
    resumed = mx.fit(network(), *data, epochs=5, checkpoint=mx.Checkpoint(tmp_path / "b", resume=True), **settings)
    for history in (straight, resumed):
        np.testing.assert_equal(history.even, [np.nan, 2, np.nan, 4, np.nan])
        assert history.worst == [np.inf, 0.5, 0.5, 0.5, 0.5]
        assert list(history.columns()) == ["epoch", "loss", "worst", "even", "lr", "seconds"]


@pytest.mark.parametrize("name", ["epoch", "loss", "lr", "seconds"])
def test_a_metric_does_not_take_the_name_of_a_column(name, data):
    with pytest.raises(ValueError, match=f"a metric cannot be called '{name}'"):
        mx.fit(network(), *data, callbacks=[lambda state: state.metrics.update({name: 1.0})])


def test_a_whole_number_as_learning_rate_survives_a_resume(data, tmp_path):
    settings = {"optimizer": mx.SGD(1)}
    mx.fit(network(), *data, epochs=2, checkpoint=mx.Checkpoint(tmp_path), **settings)
    history = mx.fit(network(), *data, epochs=3, checkpoint=mx.Checkpoint(tmp_path, resume=True), **settings)
    assert history.lr == [1.0, 1.0, 1.0]


def test_history_prints_as_a_table(data):
    assert repr(mx.History()) == "History of 0 epochs"
    history = mx.fit(network(), *data, epochs=3, validation=data)
    head, names, *rows = repr(history).splitlines()
    assert head == "History of 3 epochs:"
    assert names.split() == list(history.columns())
    assert [float(row.split()[1]) for row in rows] == pytest.approx(history.loss, rel=1e-5)
    head, _, first, *rest = repr(mx.fit(network(), *data, epochs=300)).splitlines()
    assert head == "History of 300 epochs, the last 10:"
    assert (first.split()[0], len(rest)) == ("291", 9)


def test_history_says_what_it_does_not_have(data):
    history = mx.fit(network(), *data, epochs=1)
    with pytest.raises(AttributeError, match="no 'test_loss' was recorded; this history has epoch, loss, lr, seconds"):
        _ = history.test_loss
    for twin in (copy.deepcopy(history), pickle.loads(pickle.dumps(history))):
        assert twin.columns() == history.columns()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ["val", "test"])
def test_a_measured_loss_that_is_not_finite_is_a_divergence(name, rng):
    X, y = rng.random((20, 4)), rng.random((20, 1))
    model = mx.MLP([4, 1], output="identity")
    with pytest.raises(mx.DivergenceError, match=f"{name}_loss is inf at epoch 1"):
        mx.fit(model, X, y, epochs=3, callbacks=[Evaluation(name, X * 1e30, y)])
    assert np.isfinite(model.theta).all()


# Parameters that a callback spoils.


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("at", [1, 3])
def test_a_callback_that_spoils_the_parameters_is_a_divergence(at, in_place, data):
    def spoil(state):
        if state.epoch == at:
            if in_place:
                state.model.theta[3] = np.nan
            else:
                state.model.theta = state.model.theta * np.nan

    model = network()
    with pytest.raises(mx.DivergenceError, match=r"NaN or infinite|the loss is nan"):
        mx.fit(model, *data, epochs=3, callbacks=[spoil])
    assert np.isfinite(model.theta).all()


# The bar.


@pytest.mark.parametrize("disable", [None, False])
@pytest.mark.parametrize("stream", ["none", "closed", "closed meanwhile"])
def test_progress_is_silent_without_a_standard_error(stream, disable, data, monkeypatch):
    error = io.StringIO()
    if stream == "closed":
        error.close()
    monkeypatch.setattr(sys, "stderr", None if stream == "none" else error)
    progress = mx.Progress(3, disable=disable)
    callbacks = [progress, lambda state: error.close() if state.epoch == 2 else None]
    assert len(mx.fit(network(), *data, epochs=3, callbacks=callbacks)) == 3


def test_progress_names_the_scores_as_history_does(data, capsys):
    callbacks = [Evaluation("test", *data), mx.Progress(2, disable=False)]
    history = mx.fit(network(), *data, epochs=2, validation=data, callbacks=callbacks)
    shown = capsys.readouterr().err
    for name in ("loss", "val_accuracy", "test_accuracy"):
        assert f"{name} {history.columns()[name][-1]:.4f}" in shown


def test_a_progress_that_nobody_began_begins_itself(data, capsys):
    progress = mx.Progress(2, disable=False)
    progress.close()
    for state in mx.epochs(network(), *data, epochs=2):
        progress(state)
    assert progress.bar.n == 2


def test_a_gradient_has_to_stay_small():
    stop = mx.EarlyStopping(tol=0.5, patience=2, monitor="gradient")
    norms = [3.0, 0.5, 0.6, 0.1, 0.7, 0.2, 0.5]
    assert [stop(SimpleNamespace(gradient_norm=norm)) for norm in norms] == [False] * 6 + [True]


def test_early_stopping_in_a_loop_of_ones_own_says_what_it_needs(data):
    stop = mx.EarlyStopping(monitor="val_loss")
    state = next(mx.epochs(network(), *data))
    with pytest.raises(
        ValueError, match=r"needs 'val_loss' in state.metrics; call an Evaluation\('val', X, y\) before"
    ):
        stop(state)
    Evaluation("val", *data)(state)
    assert stop(state) is False


# Records.


def dumped(callback, data, **settings):
    mx.fit(network(), *data, epochs=3, validation=data, callbacks=[callback], **settings)
    return callback.dump()


SPOILT_STOPPING = [
    {"best": 10**400}, {"best": True}, {"best": None}, {"best": "1"}, {"best": np.inf}, {"best": 1},
    {"best_epoch": -1}, {"best_epoch": 2**60}, {"best_epoch": 1.0}, {"best_epoch": True}, {"best_epoch": 0},
    {"waited": -1}, {"waited": 10**400}, {"waited": None}, {"waited": [1]}, {"more": 1},
    {"theta": np.zeros(3, "f4")}, {"theta": np.zeros(44)}, {"theta": 5}, {"theta": np.full(44, np.nan, "f4")},
]  # fmt: skip


@pytest.mark.parametrize("change", SPOILT_STOPPING, ids=str)
def test_early_stopping_takes_only_a_record_of_its_own(change, data):
    record = dumped(mx.EarlyStopping(monitor="val_loss"), data)
    stop = mx.EarlyStopping(monitor="val_loss")
    stop.restore(record, network())
    assert (stop.best, stop.waited) == (record["best"], record["waited"])
    with pytest.raises(mx.CheckpointError, match="early stopping"):
        stop.restore({**record, **change}, network())
    for name in record:
        with pytest.raises(mx.CheckpointError, match="early stopping"):
            stop.restore({other: value for other, value in record.items() if other != name}, network())
    assert (stop.best, stop.waited) == (record["best"], record["waited"])


def test_parameters_are_no_record_of_a_stopping_without_validation(data):
    record = dumped(mx.EarlyStopping(), data)
    with pytest.raises(mx.CheckpointError, match="early stopping"):
        mx.EarlyStopping().restore({**record, "theta": network().theta}, network())


SPOILT_HISTORY = [
    {"order": None}, {"order": []}, {"order": ["val_loss"]}, {"order": [["val_loss"]]}, {"order": "val_loss"},
    {"order": ["val_loss", "val_loss"]}, {"order": ["val_loss", "loss"]}, {"more": np.zeros(3)},
    {"epoch": np.array([1, 2, 4])}, {"epoch": np.array([1.0, 2.0, 3.0])}, {"epoch": 3}, {"epoch": np.array([])},
    {"epoch": np.array(3)},
    {"loss": np.zeros(2)}, {"loss": np.zeros((3, 1))}, {"loss": np.zeros(3, "f4")}, {"loss": [0.0, 0.0, 0.0]},
    {"loss": np.full(3, np.nan).view("i8")}, {"lr": None}, {"seconds": np.full(3, np.inf).view("i8")},
    {"val_loss": np.zeros(4)},
]  # fmt: skip


@pytest.mark.parametrize("change", SPOILT_HISTORY, ids=str)
def test_history_takes_only_a_record_of_its_own(change, data):
    record = dumped(mx.History(), data)
    history = mx.History()
    history.restore(record)
    before = history.columns()
    with pytest.raises(mx.CheckpointError, match="its history"):
        history.restore({**record, **change})
    for name in record:
        with pytest.raises(mx.CheckpointError, match="its history"):
            history.restore({other: value for other, value in record.items() if other != name})
    assert history.columns() == before
