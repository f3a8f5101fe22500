"""Pictures show what they were given: the right curves, regions, digits and counts."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from mlp_xp import MLP, SGD, fit, plots  # noqa: E402

PNG = b"\x89PNG\r\n\x1a\n"
XOR = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), np.array([0, 1, 1, 0])
# The lectures' worked example of the perceptron: (w, b) at the start and after each step.
POINTS, SIGNS = np.array([[3, 3], [4, 3], [1, 1]]), np.array([1, 1, -1])
ITERATES = [((0, 0), 0), ((3, 3), 0), ((2, 2), 0), ((1, 1), -1), ((0, 0), -2), ((3, 3), -1), ((2, 2), -2), ((1, 1), -3)]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def history(n=3, **columns):
    epochs = list(range(1, n + 1))
    record = {"epoch": epochs, "loss": [1 / e for e in epochs], "val_loss": [], "val_accuracy": []}
    return SimpleNamespace(**record | columns)


def xor_network(device="cpu"):
    """Solve XOR by hand: "or" and "and" are the hidden units, and the output is "or" without "and"."""
    model = MLP([2, 2, 1], activation="sigmoid", output="sigmoid", device=device)
    model.weights = [[[20, 20], [20, 20]], [[20, -20]]]
    model.biases = [[-10, -30], [-10]]
    return model


def digit_images(n, side=8):
    """Make n images, each gray as its number, so that a picture shows which of them were drawn."""
    return np.repeat(np.arange(1, n + 1, dtype=np.uint8)[:, None], side * side, axis=1)


def grays(ax):
    """Return the gray values that were drawn, in reading order, one per image."""
    picture = np.ma.filled(ax.images[0].get_array(), np.nan)
    values = picture[~np.isnan(picture)]
    return [int(value) for value in dict.fromkeys(values.tolist())]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# learning curves


def test_learning_curve_of_a_plain_run_is_its_loss():
    (ax,) = plots.learning_curves(history())
    (line,) = ax.lines
    np.testing.assert_allclose(line.get_xydata(), [[1, 1], [2, 1 / 2], [3, 1 / 3]])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title("left")) == ("Epoch", "Mean loss", "Loss")


def test_learning_curves_name_the_data_and_give_each_kind_a_color():
    run = history(val_loss=[3, 1, 2], val_accuracy=[0, 0.1, 0.2], test_loss=[4, 3, 3], test_accuracy=[0, 0, 0.1])
    loss, score = plots.learning_curves(run)
    during, after = "(during the epoch)", "(after the epoch)"
    assert labels(loss) == [f"training {during}", f"validation {after}", "best epoch, 2", f"test {after}"]
    assert labels(score) == [f"validation {after}", f"test {after}"]
    drawn = dict(zip(labels(loss), loss.lines, strict=True))
    np.testing.assert_array_equal(drawn[f"validation {after}"].get_ydata(), [3, 1, 2])
    np.testing.assert_array_equal(drawn[f"test {after}"].get_ydata(), [4, 3, 3])
    np.testing.assert_array_equal(drawn["best epoch, 2"].get_xydata(), [[2, 1]])
    curves = [line for label, line in drawn.items() if not label.startswith("best")]
    assert len({to_hex(line.get_color()) for line in curves}) == len({line.get_linestyle() for line in curves}) == 3
    np.testing.assert_array_equal(score.lines[1].get_ydata(), [0, 0, 0.1])
    assert score.lines[1].get_color() == drawn[f"test {after}"].get_color()


def test_test_data_choose_no_epoch():
    (ax,) = plots.learning_curves(history(test_loss=[3, 1, 2]))
    assert labels(ax) == ["training (during the epoch)", "test (after the epoch)"]


@pytest.mark.parametrize(
    ("columns", "titles"),
    [
        ({}, ["Loss"]),
        ({"val_accuracy": [0, 0, 1]}, ["Loss", "Accuracy"]),
        ({"test_r2": [0, 0, 1]}, ["Loss", "Coefficient of determination"]),
        ({"lr": [0.1, 0.1, 0.1]}, ["Loss"]),
        ({"lr": [0.1, 0.1, 0.2], "test_accuracy": [0, 0, 1]}, ["Loss", "Accuracy", "Learning rate"]),
    ],
)
def test_learning_curves_have_a_panel_for_what_was_recorded_and_varies(columns, titles):
    axes = plots.learning_curves(history(**columns))
    assert [ax.get_title("left") for ax in axes] == titles
    drawn = [ax.lines[0].get_ydata().tolist() for ax in axes[1:]]
    assert drawn == [values for name, values in sorted(columns.items(), reverse=True) if len(set(values)) > 1]


def test_learning_curves_overlay_runs_in_different_colors():
    runs = {"sgd": history(val_loss=[3, 2, 1]), "adam": history(5)}
    (ax,) = plots.learning_curves(runs)
    assert labels(ax) == ["sgd, training", "sgd, validation", "sgd, best epoch, 3", "adam, training"]
    assert [len(line.get_xdata()) for line in ax.lines] == [3, 3, 1, 5]
    colors = [line.get_color() for line in ax.lines]
    assert colors[0] == colors[1] == colors[2] != colors[3]


def test_learning_curves_draw_the_loss_alone_on_a_single_axes():
    mine = plt.figure().subplots()
    (ax,) = plots.learning_curves(history(val_accuracy=[0, 1, 1]), ax=mine)
    assert ax is mine
    assert ax.get_ylabel() == "Mean loss"


def test_learning_curve_of_one_epoch_is_a_visible_point():
    (ax,) = plots.learning_curves(history(1))
    assert ax.lines[0].get_marker() == "o"


def test_wrong_number_of_axes_is_refused():
    with pytest.raises(ValueError, match=r"2 panel\(s\) but ax holds 3 Axes"):
        plots.activation_functions(ax=plt.figure().subplots(1, 3))


# other curves


def test_activation_functions_show_functions_and_derivatives():
    functions, derivatives = plots.activation_functions()
    assert labels(functions)[:4] == ["sigmoid", "tanh", "relu", "leaky relu"]
    z = functions.lines[0].get_xdata()
    expected = [1 / (1 + np.exp(-z)), np.tanh(z), np.maximum(z, 0), np.where(z < 0, 0.01 * z, z)]
    slopes = [expected[0] * (1 - expected[0]), 1 - expected[1] ** 2, (z >= 0) * 1.0, np.where(z < 0, 0.01, 1.0)]
    for i in range(4):
        np.testing.assert_allclose(functions.lines[i].get_ydata(), expected[i], atol=1e-12)
        drawn = derivatives.lines[i].get_ydata()
        np.testing.assert_allclose(drawn[~np.isnan(z)], slopes[i][~np.isnan(z)], atol=1e-12)
        assert drawn[z == 0] == [0.25, 1, 1, 1][i]


def test_delta_norms_give_each_network_a_panel_and_each_layer_a_line():
    norms = {"sigmoid": np.array([[0.1, 1, 10], [0.2, 2, 20]]), "relu": np.ones((4, 2))}
    axes = plots.delta_norms(norms)
    assert [ax.get_title("left") for ax in axes] == ["sigmoid", "relu"]
    assert [len(ax.lines) for ax in axes] == [3, 2]
    np.testing.assert_array_equal(axes[0].lines[0].get_xydata(), [[1, 0.1], [2, 0.2]])
    assert axes[0].get_yscale() == "log"
    assert axes[0].get_ylim() == axes[1].get_ylim()
    assert axes[0].get_ylim()[0] < 0.1
    assert axes[0].get_ylim()[1] > 20


def test_delta_norms_refuse_a_single_curve():
    with pytest.raises(ValueError, match=r"norms\['relu'\] has shape \(3,\)"):
        plots.delta_norms({"relu": np.ones(3)})


def test_loss_over_one_parameter_carries_the_path():
    ax = plots.loss_surface(lambda a: a * a, path=[3.0, 2.0, 1.0])
    curve, path, last = ax.lines
    np.testing.assert_allclose(curve.get_ydata(), np.square(curve.get_xdata()))
    np.testing.assert_array_equal(path.get_xydata(), [[3, 9], [2, 4], [1, 1]])
    np.testing.assert_array_equal(last.get_xydata(), [[1, 1]])


def test_loss_over_two_parameters_has_its_valley_where_the_loss_is_low():
    ax = plots.loss_surface(lambda a, b: (a - 1) ** 2 + (b + 2) ** 2, limits=[(-5, 5), (-6, 6)])
    lowest = ax.collections[0].get_paths()[0]
    assert lowest.contains_point((1, -2))
    assert not lowest.contains_point((4, 4))
    assert ax.get_xlim() == (-5, 5)
    assert ax.get_ylim() == (-6, 6)


def test_path_over_two_parameters_lies_on_the_surface():
    ax = plots.loss_surface(lambda a, b: a * a + b * b, path=[(2, 1), (1, 0)])
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[2, 1], [1, 0]])
    assert ax.get_xlim() == (0.75, 2.25)
    assert ax.get_ylim() == (-0.25, 1.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give path, limits, or both"),
        ({"path": np.ones((4, 3))}, r"over 3 parameter\(s\)"),
        ({"path": [1.0, 2.0], "limits": [(0, 1), (0, 1)]}, r"over 1 parameter\(s\) within 2"),
    ],
)
def test_loss_surface_says_what_is_missing(options, message):
    with pytest.raises(ValueError, match=message):
        plots.loss_surface(lambda *parameters: 0.0, **options)


# the plane


def region_at(ax, x, y):
    """Return the number of the class whose color the picture has at (x, y)."""
    across, up = ax.transData.transform((x, y))
    return ax.images[0].get_cursor_data(SimpleNamespace(x=across, y=up))


def test_decision_regions_agree_with_the_predictor():
    def predict(points):
        return np.where(points[:, 1] > points[:, 0] ** 2, 7, np.where(points[:, 0] > 0, -1, 3))

    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (60, 2))
    ax = plots.decision_regions(predict, X, predict(X))
    inside = X[np.abs(X[:, 1] - X[:, 0] ** 2) > 0.02]  # not within a pixel of the border
    assert [[-1, 3, 7][region_at(ax, *point)] for point in inside] == predict(inside).tolist()
    assert labels(ax) == ["class -1", "class 3", "class 7"]


def test_decision_regions_of_a_network_that_knows_xor():
    ax = plots.decision_regions(xor_network(), *XOR)
    assert [region_at(ax, *point) for point in XOR[0]] == XOR[1].tolist()
    drawn = [points.get_offsets().data.tolist() for points in ax.collections]
    assert drawn == [[[0, 0], [1, 1]], [[0, 1], [1, 0]]]
    tints = ax.images[0].cmap(ax.images[0].norm([0, 1]))
    assert to_hex(tints[0]) != to_hex(tints[1])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_pictures_of_a_trained_network(device, tmp_path):
    model = MLP([2, 8, 1], activation="tanh", output="sigmoid", seed=1, device=device)
    record = fit(model, *XOR, epochs=200, optimizer=SGD(lr=2.0), validation=XOR)
    loss, score = plots.learning_curves(record)
    assert [len(line.get_xdata()) for line in loss.lines] == [200, 200, 1]
    assert score.lines[0].get_ydata()[-1] == 1
    ax = plots.decision_regions(model, *XOR)
    assert [region_at(ax, *point) for point in XOR[0]] == XOR[1].tolist()
    plots.save_run_plots(tmp_path, model, record, XOR)
    assert saved(tmp_path) == ["confusion_matrix.png", "decision_regions.png", "learning_curves.png"]


@pytest.mark.parametrize(
    ("X", "y", "predict", "message"),
    [
        (np.ones((4, 3)), np.ones(4), np.sum, r"X has shape \(4, 3\)"),
        (XOR[0], np.ones(3), np.sum, r"y \(3,\)"),
        (*XOR, lambda points: points[:, 0], "pass a function that turns them into classes"),
    ],
)
def test_decision_regions_refuse_what_they_cannot_draw(X, y, predict, message):
    with pytest.raises(ValueError, match=message):
        plots.decision_regions(predict, X, y)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_hidden_space_shows_the_activations_and_the_line_between_them(device):
    model = xor_network(device)
    before, after = plots.hidden_space(model, *XOR)
    A1 = 1 / (1 + np.exp(-(XOR[0] @ model.weights[0].T + model.biases[0])))
    for label, inputs, hidden in zip((0, 1), before.collections, after.collections, strict=True):
        np.testing.assert_array_equal(inputs.get_offsets(), XOR[0][XOR[1] == label])
        np.testing.assert_allclose(hidden.get_offsets(), A1[XOR[1] == label], rtol=1e-5)
    border = after.lines[-1]
    np.testing.assert_allclose(border.get_xydata() @ model.weights[1][0] + model.biases[1][0], 0, atol=1e-4)
    assert labels(after) == ["the output's line", "class 0", "class 1"]


@pytest.mark.gpu
def test_arrays_of_a_gpu_are_refused_with_what_to_do():
    """Nothing comes to the host behind the back of who draws it."""
    import cupy

    X, y = map(cupy.asarray, XOR)
    for draw in (plots.decision_regions, plots.hidden_space):
        with pytest.raises(TypeError, match=r"Please use `\.get\(\)`"):
            draw(xor_network("cuda"), X, y)


def test_hidden_space_draws_the_line_where_two_outputs_are_equal():
    model = MLP([2, 2, 2], seed=3)
    border = plots.hidden_space(model, *XOR)[1].lines[-1]
    Z2 = border.get_xydata() @ model.weights[1].T + model.biases[1]
    np.testing.assert_allclose(Z2[:, 0], Z2[:, 1], atol=1e-5)


def test_hidden_space_draws_no_line_where_none_separates():
    deep = MLP([2, 2, 3, 1], output="sigmoid")
    assert labels(plots.hidden_space(deep, *XOR)[1]) == ["class 0", "class 1"]
    flat = MLP([2, 2, 2])
    flat.weights = [flat.weights[0], np.zeros((2, 2))]
    assert labels(plots.hidden_space(flat, *XOR)[1]) == ["class 0", "class 1"]


def test_hidden_space_refuses_more_than_two_hidden_units():
    with pytest.raises(ValueError, match=r"sizes \[2, 3, 1\]; hidden_space needs 2 inputs"):
        plots.hidden_space(MLP([2, 3, 1], output="sigmoid"), *XOR)


def test_perceptron_lines_draw_each_step_that_has_a_line():
    ax = plots.perceptron_lines(POINTS, SIGNS, ITERATES)
    drawn = [(np.array(w), b) for w, b in ITERATES if any(w)]
    assert len(ax.lines) == len(drawn) == 6
    for line, (w, b) in zip(ax.lines, drawn, strict=True):
        np.testing.assert_allclose(line.get_xydata() @ w + b, 0, atol=1e-9)
    assert ax.lines[-1].get_linewidth() > ax.lines[0].get_linewidth()
    assert labels(ax) == ["step 1, 2", "step 5", "step 3, 6", "step 7", "class -1", "class 1"]


def test_perceptron_lines_name_only_the_last_of_many():
    many = [((1, 1 + i), -3) for i in range(40)]
    ax = plots.perceptron_lines(POINTS, SIGNS, many)
    assert len(ax.lines) == 40
    assert labels(ax) == ["step 39", "class -1", "class 1"]


# images


def test_sample_grid_has_a_class_in_each_row_and_leaves_gaps_blank():
    y = np.array([1, 0, 1, 0, 1, 1])
    ax = plots.sample_grid(digit_images(6), y, rows=2, columns=3)
    assert grays(ax) == [2, 4, 1, 3, 5]  # the third image of class 0 does not exist
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0", "1"]


def test_sample_grid_shares_the_rows_among_few_classes():
    ax = plots.sample_grid(digit_images(8), np.array([0, 1] * 4), rows=4, columns=2)
    assert grays(ax) == [1, 3, 5, 7, 2, 4, 6, 8]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0", "0", "1", "1"]


def test_weight_images_show_the_first_units_around_zero():
    W = np.arange(1.0, 7.0)[:, None] * np.array([[1, -1, 1, -1, 1, -1]])
    ax = plots.weight_images(W, shape=(2, 3), count=4)
    picture = ax.images[0]
    shown = np.ma.filled(picture.get_array(), np.nan)
    assert np.count_nonzero(~np.isnan(shown)) == 4 * 6
    np.testing.assert_array_equal(shown[0:2, :3], W[0].reshape(2, 3))
    np.testing.assert_array_equal(shown[-2:, -3:], W[3].reshape(2, 3))
    assert picture.get_clim() == (-4, 4)
    assert texts(ax) == ["0", "1", "2", "3"]
    assert ax.get_title("left") == "Weights into hidden units (4 of 6)"
    assert plots.weight_images(W, shape=(2, 3)).get_title("left") == "Weights into hidden units (6)"


def test_one_large_weight_does_not_make_the_other_images_pale():
    W = np.random.default_rng(0).uniform(-1, 1, (25, 100))
    W[3, 7] = 1000
    assert 0.9 < plots.weight_images(W, shape=(10, 10)).images[0].get_clim()[1] < 1


def test_weights_that_are_all_zero_are_drawn():
    assert plots.weight_images(np.zeros((2, 4)), shape=(2, 2)).images[0].get_clim() == (-1, 1)


def test_weight_images_refuse_another_shape():
    with pytest.raises(ValueError, match=r"W has shape \(3, 10\); images of \(28, 28\) pixels need 784 columns"):
        plots.weight_images(np.ones((3, 10)))


def test_digit_predictions_frame_the_mistakes():
    proba = np.array([[0.9, 0.1], [0.25, 0.75], [0.4, 0.6]])
    ax = plots.digit_predictions(digit_images(3), [5, 8, 8], proba, truth=[5, 5, 8])
    assert texts(ax) == ["5\n90.0%", "8, not 5\n75.0%", "8\n60.0%"]
    (frame,) = ax.patches
    shown = np.ma.filled(ax.images[0].get_array(), np.nan)
    left, top = round(frame.get_x() + 0.5), round(frame.get_y() + 0.5)
    right, bottom = left + frame.get_width(), top + frame.get_height()
    np.testing.assert_array_equal(shown[top:bottom, left:right], np.full((8, 8), 2))  # the second image, to the pixel


def test_digit_predictions_take_the_probability_of_the_prediction_or_of_class_one():
    assert texts(plots.digit_predictions(digit_images(2), [3, 4], [0.3, 0.5])) == ["3\n30.0%", "4\n50.0%"]
    assert texts(plots.digit_predictions(digit_images(2), [0, 1], [[0.2], [0.9]])) == ["0\n80.0%", "1\n90.0%"]


def test_digit_predictions_count():
    with pytest.raises(ValueError, match=r"number \[3, 2, 2, 2\]; give one of each per image"):
        plots.digit_predictions(digit_images(3), [0, 1], [0.5, 0.5], truth=[0, 1])
    with pytest.raises(ValueError, match=r"X has shape \(2, 10\); give \(n, d\) with a square image in each row"):
        plots.digit_predictions(np.ones((2, 10)), [0, 1], [0.5, 0.5])


def test_most_confidently_wrong_are_the_surest_mistakes():
    y = np.array([0, 1, 0, 1, 0])
    proba = np.array([[0.45, 0.55], [0.99, 0.01], [0.1, 0.9], [0.2, 0.8], [1.0, 0.0]])
    ax = plots.most_confidently_wrong(digit_images(5), y, proba, count=2)
    assert grays(ax) == [2, 3]
    assert texts(ax) == ["0, not 1\n99.0%  #1", "1, not 0\n90.0%  #2"]
    assert grays(plots.most_confidently_wrong(digit_images(5), y, proba[:, 1:])) == [2, 3, 1]  # all there are


def test_most_confidently_wrong_says_when_nothing_is():
    ax = plots.most_confidently_wrong(digit_images(2), np.array([0, 1]), np.eye(2))
    assert texts(ax) == ["None of 2 samples is wrong"]


@pytest.mark.parametrize(
    ("share", "shown"),
    [(1, "100.0%"), (0.9996, "99.96%"), (0.99999, "99.999%"), (1 - 1e-12, ">99.9999%"), (0.75, "75.0%"), (0.0, "0.0%")],
)
def test_no_probability_but_certainty_is_shown_as_100_percent(share, shown):
    assert texts(plots.digit_predictions(digit_images(1), [3], [share])) == [f"3\n{shown}"]


# confusion matrix


def cells(ax, k):
    return np.array(texts(ax), dtype=int).reshape(k, k)


def test_confusion_matrix_counts():
    truth, predicted = [0, 0, 0, 1, 1, 2], [0, 0, 2, 1, 0, 2]
    ax = plots.confusion_matrix(truth, predicted)
    np.testing.assert_array_equal(cells(ax, 3), [[2, 0, 1], [1, 1, 0], [0, 0, 1]])
    mistakes = ax.images[0].get_array()
    np.testing.assert_array_equal(mistakes, [[0, 0, 1], [1, 0, 0], [0, 0, 0]])
    assert ax.get_title("left") == "4 of 6 right (66.67%)"


def test_confusion_matrix_names_its_classes():
    by_value = plots.confusion_matrix([8, 5, 5], [5, 5, 8])
    assert [tick.get_text() for tick in by_value.get_xticklabels()] == ["5", "8"]
    by_name = plots.confusion_matrix([0, 0], [0, 2], labels=["cat", "dog", "cow"])
    assert [tick.get_text() for tick in by_name.get_yticklabels()] == ["cat", "dog", "cow"]
    np.testing.assert_array_equal(cells(by_name, 3), [[1, 0, 1], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [([0, 1], [0], "2 true and 1 predicted"), ([0, 5], [0, 1], r"classes 0 to 1, but the data hold \[0, 1, 5\]")],
)
def test_confusion_matrix_refuses(truth, predicted, message):
    with pytest.raises(ValueError, match=message):
        plots.confusion_matrix(truth, predicted, labels=["a", "b"])


# values


def test_predicted_values_lie_over_the_true_ones():
    ax = plots.predicted_against_true([1, 2, 4], [[1.5], [2], [3]])
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), [[1, 1.5], [2, 2], [4, 3]])
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 1], [4, 4]])
    assert labels(ax) == ["predicted = true"]


def test_each_column_of_values_has_its_color():
    ax = plots.predicted_against_true(np.eye(2), 1 - np.eye(2))
    assert labels(ax) == ["predicted = true", "value 0", "value 1"]
    np.testing.assert_array_equal(ax.collections[1].get_offsets(), [[0, 1], [1, 0]])


@pytest.mark.parametrize(("truth", "predicted"), [([1, 2], [1]), ([], [])])
def test_predicted_values_without_their_true_ones_are_refused(truth, predicted):
    with pytest.raises(ValueError, match=rf"{len(truth)} true and {len(predicted)} predicted values; give one of each"):
        plots.predicted_against_true(truth, predicted)


# a run's folder


def saved(folder):
    return sorted(path.name for path in folder.iterdir())


IMAGE_FILES = ["confusion_matrix", "first_layer_weights", "learning_curves", "most_confidently_wrong", "samples"]


def test_save_run_plots_of_an_image_classifier(tmp_path):
    X, y = digit_images(6), np.array([0, 1, 2, 0, 1, 2])
    plots.save_run_plots(tmp_path / "plots", MLP([64, 5, 3]), history(val_accuracy=[0, 0.5, 1]), (X, y))
    assert saved(tmp_path / "plots") == [f"{name}.png" for name in IMAGE_FILES]
    assert all(path.read_bytes().startswith(PNG) for path in (tmp_path / "plots").iterdir())


@pytest.mark.parametrize(
    ("sizes", "output", "y", "files"),
    [
        ([4, 3, 1], "sigmoid", [0, 1], ["confusion_matrix.png", "learning_curves.png"]),
        ([4, 3, 2], "softmax", [[0, 1], [1, 0]], ["confusion_matrix.png", "learning_curves.png"]),
        ([4, 3, 2], "sigmoid", [[0, 1], [1, 1]], ["learning_curves.png"]),
        (
            [64, 3, 1],
            "identity",
            [0.5, 1.5],
            ["first_layer_weights.png", "learning_curves.png", "predicted_against_true.png"],
        ),
        ([2, 3, 2], "identity", [[0, 1], [1, 1]], ["learning_curves.png", "predicted_against_true.png"]),
        ([2, 3, 3], "softmax", [0, 2], ["confusion_matrix.png", "decision_regions.png", "learning_curves.png"]),
        ([2, 3, 8], "softmax", [0, 7], ["confusion_matrix.png", "learning_curves.png"]),  # more than there are colors
        ([64, 1], "perceptron", [0, 1], [f"{name}.png" for name in IMAGE_FILES if name != "most_confidently_wrong"]),
    ],
)
def test_save_run_plots_leaves_out_what_makes_no_sense(tmp_path, sizes, output, y, files):
    plots.save_run_plots(tmp_path, MLP(sizes, output=output), history(), (np.ones((2, sizes[0])), np.array(y)))
    assert saved(tmp_path) == files


def test_decision_regions_of_bytes_are_those_that_the_model_sees(tmp_path, monkeypatch):
    """Bytes count as x / 255 in a model: the plane between them has to be in the same units."""
    drawn = {}
    monkeypatch.setattr("mlp_xp.plots.run.decision_regions", lambda model, X, y, ax: drawn.update(X=X))
    X = np.array([[0, 255], [51, 0]], np.uint8)
    plots.save_run_plots(tmp_path, MLP([2, 3, 2]), history(), (X, np.array([0, 1])))
    np.testing.assert_allclose(drawn["X"], [[0, 1], [0.2, 0]])


def test_save_run_plots_works_in_a_thread_and_makes_no_pyplot_figure(tmp_path):
    job = (tmp_path, MLP([4, 3, 2]), history(), (np.ones((2, 4)), np.array([0, 1])))
    thread = threading.Thread(target=plots.save_run_plots, args=job)
    thread.start()
    thread.join()
    assert saved(tmp_path) == ["confusion_matrix.png", "learning_curves.png"]
    assert plt.get_fignums() == []


def test_each_picture_is_drawn_once(tmp_path, monkeypatch, rng):
    """As savefig does not: a figure with a layout is drawn twice there, which takes half as long again."""
    drawn, draw = [], Figure.draw

    def counting(figure, renderer):
        drawn.append(figure)
        draw(figure, renderer)

    monkeypatch.setattr(Figure, "draw", counting)
    X, y = rng.random((30, 64)), rng.integers(0, 3, 30)
    plots.save_run_plots(tmp_path, MLP([64, 3]), history(), (X, y))
    assert len(drawn) == len(set(drawn)) == len(saved(tmp_path)) == 5


@pytest.mark.parametrize("step", ["matplotlib.backends.backend_agg.FigureCanvasAgg.print_png", "os.replace"])
def test_a_failure_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch, step):
    old = tmp_path / "learning_curves.png"
    old.write_bytes(b"old")

    def fail(*arguments, **options):
        raise OSError(28, "disk full")

    monkeypatch.setattr(step, fail)
    with pytest.raises(OSError, match="disk full"):
        plots.save_run_plots(tmp_path, MLP([4, 3, 2]), history(), (np.ones((2, 4)), np.array([0, 1])))
    assert old.read_bytes() == b"old"
    assert saved(tmp_path) == ["learning_curves.png"]


# manners


def test_import_touches_neither_pyplot_nor_the_backend():
    code = (
        "import sys, mlp_xp; assert 'matplotlib' not in sys.modules;"
        "import mlp_xp.plots; assert 'matplotlib.pyplot' not in sys.modules;"
        "assert not any(name.startswith('matplotlib.backends.backend_') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_matplotlib_the_error_says_what_to_install():
    code = "import sys; sys.modules['matplotlib'] = None; import mlp_xp.plots"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'mlp_xp[plot]'" in result.stderr


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plots.decision_regions(lambda points: points[:, 0] > 0.5, *XOR, ax=ax),
        lambda ax: plots.perceptron_lines(POINTS, SIGNS, ITERATES, ax=ax),
        lambda ax: plots.loss_surface(abs, [1.0, 0.0], ax=ax),
        lambda ax: plots.sample_grid(digit_images(2), [0, 1], ax=ax),
        lambda ax: plots.weight_images(np.ones((2, 4)), (2, 2), ax=ax),
        lambda ax: plots.digit_predictions(digit_images(2), [0, 1], [1, 1], ax=ax),
        lambda ax: plots.most_confidently_wrong(digit_images(2), [0, 1], np.eye(2), ax=ax),
        lambda ax: plots.confusion_matrix([0, 1], [0, 1], ax=ax),
        lambda ax: plots.predicted_against_true([0, 1], [0, 1], ax=ax),
    ],
)
def test_drawing_on_given_axes_returns_them_and_makes_no_figure(draw):
    mine = matplotlib.figure.Figure().subplots()
    assert draw(mine) is mine
    assert plt.get_fignums() == []
    mine.figure.canvas.draw()
