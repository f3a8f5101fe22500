"""The loop: what a state says, what stops it, and what is left when it ends, well or badly."""

from __future__ import annotations

import csv
import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import mlp_xp as mx

pytestmark = pytest.mark.usefixtures("cpu_engine")


@pytest.fixture
def data(rng):
    X = rng.standard_normal((60, 4))
    return X, (X @ [1, -2, 0.5, 1] > 0).astype(int)


def network(**settings):
    return mx.MLP([4, 6, 2], dtype="float64", **settings)


class Recorder:
    """A callback that notes what happens to it, and can be told what to answer."""

    def __init__(self, answer=lambda state: None):
        self.answer, self.epochs, self.closed = answer, [], 0

    def __call__(self, state):
        self.epochs.append(state.epoch)
        return self.answer(state)

    def close(self):
        self.closed += 1


def test_states_count_from_one_and_carry_the_loss_before_the_update(data):
    model = network()
    for wanted in range(1, 4):
        before, gradient = model.loss_and_gradient(*data)
        if wanted == 1:
            states = mx.epochs(model, *data, epochs=3)
        state = next(states)
        assert state.epoch == wanted
        assert state.loss.shape == ()
        assert_allclose(state.loss, before, rtol=1e-12)
        squares = sum(np.sum(g * g) for g in gradient.weights + gradient.biases)
        assert_allclose(state.gradient_norm, np.sqrt(squares), rtol=1e-10)
        assert state.model is model
        assert state.lr == 0.1
        assert state.seconds > 0
    assert next(states, None) is None


@pytest.mark.usefixtures("single_updates")
@pytest.mark.parametrize("pause", [None, lambda: True])
@pytest.mark.parametrize("batch_size", [None, 25])
def test_seconds_are_those_of_one_epoch_without_the_callbacks(batch_size, pause, data, monkeypatch):
    now = 0.0

    def look():  # at a clock that a second passes at each look
        nonlocal now
        now += 1
        return now

    for engine in ("host", "compiled"):
        monkeypatch.setattr(f"mlp_xp.engines.{engine}.perf_counter", look)
    seconds = []
    for state in mx.epochs(network(), *data, epochs=3, batch_size=batch_size, pause=pause):
        if state.whole:
            seconds.append(float(state.seconds))
        now += 1000  # a slow callback
    assert 0 < seconds[0] < 100
    assert seconds == seconds[:1] * 3


def test_loss_of_an_epoch_of_mini_batches_is_the_mean_over_its_rows(data):
    model, X, y = network(), *data
    order = np.random.default_rng([0, 1]).permutation(60)
    twin, total = network(), 0.0
    for i in range(0, 60, 25):
        rows = order[i : i + 25]
        loss, gradient = twin.loss_and_gradient(X[rows], y[rows])
        total += float(loss) * len(rows)
        twin.weights = [W - 0.1 * dW for W, dW in zip(twin.weights, gradient.weights, strict=True)]
        twin.biases = [b - 0.1 * db for b, db in zip(twin.biases, gradient.biases, strict=True)]
    state = next(mx.epochs(model, X, y, batch_size=25))
    assert_allclose(state.loss, total / 60, rtol=1e-12)
    assert_allclose(model.theta, twin.theta, rtol=1e-11, atol=1e-14)


def test_a_penalty_counts_in_every_update(data):
    thetas = []
    for momentum in (0.0, 1e-300):  # so little momentum changes nothing but the way
        model = network()
        mx.fit(model, *data, epochs=3, batch_size=7, optimizer=mx.SGD(lr=0.1, l2=0.5, momentum=momentum))
        thetas.append(model.theta)
    assert_allclose(thetas[1], thetas[0], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("device", ["cpu", "cuda", "strict"])
def test_the_loss_of_an_epoch_has_the_penalty_in_it(device, batch_size, data):
    model = network(device=device)
    loss, _ = model.loss_and_gradient(*data)
    wanted = float(loss) + 0.25 * sum(np.sum(model.device.to_host(W) ** 2) for W in model.weights)
    state = next(mx.epochs(model, *data, batch_size=batch_size, optimizer=mx.SGD(lr=1e-12, l2=0.5)))
    assert_allclose(float(state.loss), wanted, rtol=1e-9)


def test_order_of_rows_depends_on_seed_and_epoch(data):
    def after(seed, epochs):
        model = network(seed=seed)
        model.weights = network().weights
        mx.fit(model, *data, epochs=epochs, batch_size=7)
        return model.theta

    assert_array_equal(after(1, 2), after(1, 2))
    assert (after(1, 2) != after(2, 2)).any()
    states = mx.epochs(network(), *data, optimizer=mx.SGD(lr=1e-12), batch_size=7)
    first, second = (next(states).gradient.copy() for _ in range(2))
    assert np.abs(first - second).max() > 1e-6  # another last batch, at all but the same parameters


@pytest.mark.parametrize("batch_size", [61, 10**15])
@pytest.mark.parametrize("plan", ["dense", "ragged"])
def test_a_batch_larger_than_the_data_is_the_data(plan, batch_size, data):
    whole, batch = network(), network()
    a, b = mx.fit(whole, *data, epochs=3), mx.fit(batch, *data, epochs=3, batch_size=batch_size, plan=plan)
    assert_allclose(a.loss, b.loss, rtol=1e-12)


def test_without_a_number_of_epochs_it_runs_until_stopped(data):
    states = mx.epochs(network(), *data)
    assert [state.epoch for state in itertools.islice(states, 120)] == list(range(1, 121))


def test_weights_assigned_between_epochs_are_taken_up(data):
    model, X = network(), np.abs(data[0]) * (data[0] > 0)
    for plan in ("dense", "ragged"):
        states = mx.epochs(model, X, data[1], plan=plan)
        next(states)
        model.weights = [W + np.linspace(0, 1, W.size).reshape(W.shape) for W in model.weights]
        loss, _ = model.loss_and_gradient(X, data[1])
        assert_allclose(next(states).loss, loss, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_model_remembers_whether_it_was_trained_on_pixels(dtype, rng, tmp_path):
    X, y, model = rng.integers(0, 256, (20, 4)).astype(dtype), rng.integers(0, 2, 20), network()
    states = mx.epochs(model, X, y)
    assert model.pixels is None  # nothing is decided before the first update
    next(states)
    model.save(tmp_path / "model")
    for each in (model, mx.MLP.load(tmp_path / "model")):
        assert each.pixels == (dtype == "uint8")


@pytest.mark.parametrize("device", ["cpu", "strict", "torch", "jax", "cuda"])
def test_what_was_opened_for_another_model_is_checked_again(device, data):
    X, y = data
    model, single = network(device=device), mx.MLP([4, 6, 2], device=device)
    rows, targets = model.open(X), model.targets(y, 60)
    assert (model.open(rows), model.targets(targets, 60)) == (rows, targets)
    for wrong, message in (
        (lambda: single.open(rows), "rows are of .*float64, and the model computes in float32; open them with this"),
        (lambda: mx.MLP([5, 2], device=device).open(rows), "the rows have 4 columns, and the model takes 5"),
        (lambda: mx.fit(model, X[:10], targets), r"X has 10 rows and y has the shape \(60,\)"),
        (lambda: model.targets(mx.MLP([4, 3]).targets(np.arange(60) % 3, 60), 60), "labels must lie between 0 and 1"),
        (lambda: mx.MLP([4, 3], output="identity").targets(targets, 60), r"needs y of shape \(60, 3\), got \(60,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


@pytest.mark.parametrize("device", ["strict", "torch", "jax", "cuda"])
def test_rows_of_one_device_are_not_for_a_model_on_another(device, data):
    model = network(device=device)
    rows = model.open(model.device.asarray(data[0]))
    assert model.open(rows) is rows
    with pytest.raises(TypeError, match=f"the rows are on device '{device}', and the model computes on 'cpu'; open"):
        network().open(rows)
    network().open(model.open(data[0]))  # on the host, where any model finds them


def test_nothing_is_trained_before_the_first_state(data):
    model = network()
    before = model.theta.copy()
    mx.epochs(model, *data)
    assert_array_equal(model.theta, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "sgd"}, r"optimizer must be SGD\(...\), Adam\(...\), AdamW\(...\) or LBFGS\(...\), got 'sgd'"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"epochs": 2.5}, "epochs must be a whole number of at least 1, got 2.5"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": "32"}, "batch_size must be a whole number"),
        ({"threads": 0}, "threads must be a whole number of at least 1, got 0"),
        ({"plan": "spare"}, "unknown plan 'spare'; choose from 'auto', 'dense', 'sparse', 'zero', 'ragged'"),
    ],
)
def test_bad_settings_are_refused_at_the_call(settings, message, data):
    model = network()
    before = model.theta.copy()
    for call in (mx.epochs, mx.fit):  # epochs is refused though no state was asked for
        with pytest.raises(ValueError, match=message):
            call(model, *data, **settings)
    assert_array_equal(model.theta, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": 5}, r"validation must be a pair \(X, y\), got int"),
        ({"validation": (np.zeros((3, 5)), [0, 1, 0])}, r"X must have the shape \(n, 4\) with n >= 1, got \(3, 5\)"),
        ({"validation": (np.zeros((3, 4)), [0, 1, 7])}, "labels must lie between 0 and 1, got 0 to 7"),
        ({"tol": -1}, "tol must be a finite number of at least 0, got -1"),
        ({"tol": np.nan}, "tol must be a finite number of at least 0, got nan"),
        ({"tol": True}, "tol must be a finite number of at least 0, got True"),
        ({"tol": 0.1, "patience": 0}, "patience must be a whole number of at least 1, got 0"),
        ({"patience": -5}, "patience must be a whole number of at least 1, got -5"),
        ({"epochs": None}, "epochs must be a whole number of at least 1, got None"),
    ],
)
def test_bad_settings_of_fit_are_refused_before_training(settings, message, data):
    model, seen = network(), Recorder()
    before = model.theta.copy()
    with pytest.raises(ValueError, match=message):
        mx.fit(model, *data, callbacks=[seen], **settings)
    assert seen.epochs == []
    assert_array_equal(model.theta, before)


def test_history_records_what_was_measured(data, tmp_path):
    model = network()
    history = mx.fit(model, *data, epochs=3, validation=data)
    assert history.epoch == [1, 2, 3]
    assert len(history) == len(history.loss) == len(history.seconds) == 3
    assert history.lr == [0.1] * 3
    assert (history.val_loss[-1], history.val_accuracy[-1]) == model.evaluate(*data)
    assert_allclose(history.val_loss[:2], history.loss[1:], rtol=1e-12)  # after an epoch is before the next one
    history.save(tmp_path / "history.csv")
    with open(tmp_path / "history.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "loss", "val_loss", "val_accuracy", "lr", "seconds"]
    assert [float(row["val_loss"]) for row in rows] == history.val_loss


def test_history_without_validation(data):
    history = mx.fit(network(), *data, epochs=2)
    assert history.val_loss == history.val_accuracy == []
    assert list(history.columns()) == ["epoch", "loss", "lr", "seconds"]


def test_a_callback_that_returns_true_stops(data):
    stop, after = Recorder(lambda state: state.epoch == 3), Recorder()
    history = mx.fit(network(), *data, epochs=100, callbacks=[stop, after])
    assert stop.epochs == after.epochs == history.epoch == [1, 2, 3]  # those behind it still hear of the epoch
    assert stop.closed == after.closed == 1


def test_callbacks_are_closed_when_one_fails(data):
    def fail(state):
        raise OSError("disk full")

    first, last = Recorder(), Recorder()
    with pytest.raises(OSError, match="disk full"):
        mx.fit(network(), *data, callbacks=[first, fail, last])
    assert first.epochs == [1]
    assert last.epochs == []
    assert first.closed == last.closed == 1


def test_tol_stops_when_the_loss_stalls(data):
    history = mx.fit(network(), *data, epochs=1000, tol=1e9, patience=4)
    assert len(history) == 5  # the first epoch falls from infinity
    history = mx.fit(network(), *data, epochs=30, optimizer=mx.SGD(lr=0.5), tol=0.0, patience=2)
    assert len(history) == 30  # a loss that falls all the time never stops


class Validation(Recorder):
    """Pretends to measure these validation losses."""

    measures = ("val_loss",)

    def __init__(self, losses):
        super().__init__()
        self.losses, self.thetas = losses, []

    def __call__(self, state):
        state.metrics["val_loss"] = self.losses[state.epoch - 1]
        self.thetas.append(state.model.theta.copy())


def test_early_stopping_puts_the_best_parameters_back(data):
    measured = Validation([5, 3, 4, 2, 6, 7, 8, 1])
    stop = mx.EarlyStopping(tol=0.0, patience=3, monitor="val_loss")
    model = network()
    history = mx.fit(model, *data, epochs=8, callbacks=[measured, stop])
    assert len(history) == 7
    assert (stop.best, stop.best_epoch) == (2, 4)
    assert_array_equal(model.theta, measured.thetas[3])
    assert (measured.thetas[3] != measured.thetas[6]).any()


@pytest.mark.parametrize("fall", [0.125, 0.5])
def test_early_stopping_counts_falls_by_no_more_than_tol_as_none(fall, data):
    measured = Validation([5, 5 - fall, 5 - 2 * fall, 5 - 3 * fall, 1])
    stop = mx.EarlyStopping(tol=0.5, patience=3, monitor="val_loss")
    assert len(mx.fit(network(), *data, epochs=5, callbacks=[measured, stop])) == 4
    assert stop.best == 5 - 3 * fall


def test_fit_with_validation_keeps_the_best(data, rng):
    X, y = data
    noise = rng.standard_normal((40, 4)), rng.integers(0, 2, 40)  # nothing to be learnt: the loss soon rises
    model = network()
    history = mx.fit(model, X, y, epochs=200, optimizer=mx.Adam(lr=0.05), validation=noise, tol=0.0, patience=5)
    best = int(np.argmin(history.val_loss))
    assert len(history) == best + 1 + 5 < 200
    assert model.evaluate(*noise)[0] == history.val_loss[best]


def test_the_best_come_back_after_an_error_too(data):
    measured = Validation([2, 1, 3, 4])
    stop = mx.EarlyStopping(monitor="val_loss")
    model = network()
    interrupt = Recorder(lambda state: 1 / 0 if state.epoch == 4 else None)
    with pytest.raises(ZeroDivisionError):
        mx.fit(model, *data, callbacks=[measured, stop, interrupt])
    assert_array_equal(model.theta, measured.thetas[1])


def test_early_stopping_knows_its_monitors():
    with pytest.raises(ValueError, match="unknown monitor 'accuracy'; choose from 'loss', 'val_loss', 'gradient'"):
        mx.EarlyStopping(monitor="accuracy")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's own words about the overflow
@pytest.mark.parametrize("batch_size", [None, 20])
@pytest.mark.parametrize("device", ["cpu", "cuda", "strict"])
def test_divergence_leaves_finite_parameters(batch_size, device, rng):
    X, y = rng.standard_normal((60, 4)), rng.standard_normal((60, 1))
    model = mx.MLP([4, 6, 1], "identity", "identity", device=device)
    losses, closed = [], Recorder(lambda state: losses.append(float(state.loss)))
    with pytest.raises(mx.DivergenceError, match=r"the loss is (inf|nan) at epoch \d+, .*update.* 10;"):
        mx.fit(model, X, y, epochs=50, optimizer=mx.SGD(lr=10.0), batch_size=batch_size, callbacks=[closed])
    assert closed.closed == 1
    assert np.isfinite(losses).all()
    outputs = model.outputs(X).astype(np.float64)  # of which float32 may have no room for the squares
    assert np.isfinite(outputs).all()
    if losses and batch_size is None:
        assert_allclose(np.mean((outputs - y) ** 2) / 2, losses[-1], rtol=1e-4)


def test_progress_bar_counts_and_is_quiet_without_a_terminal(data, capsys):
    progress = mx.Progress(total=3, disable=False)
    mx.fit(network(), *data, epochs=3, validation=data, callbacks=[progress])
    shown = capsys.readouterr()
    assert progress.bar.n == 3
    assert "accuracy" in shown.err
    assert shown.out == ""
    mx.fit(network(), *data, epochs=3, callbacks=[mx.Progress(total=3)])
    assert capsys.readouterr().err == ""


def test_progress_bar_of_a_resumed_run_begins_where_it_was(data, tmp_path, capsys):
    mx.fit(network(), *data, epochs=3, checkpoint=mx.Checkpoint(tmp_path))
    progress = mx.Progress(total=5, disable=False)
    mx.fit(network(), *data, epochs=5, callbacks=[progress], checkpoint=mx.Checkpoint(tmp_path, resume=True))
    assert (progress.bar.initial, progress.bar.n) == (3, 5)


def test_training_in_two_halves_of_full_batches_equals_one_run(data):
    once, twice = network(), network()
    mx.fit(once, *data, epochs=6)
    mx.fit(twice, *data, epochs=3)
    mx.fit(twice, *data, epochs=3)
    assert_array_equal(once.theta, twice.theta)
