"""What does not fit is refused in one sentence that says what came and what is allowed, and changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import mlp_xp as mx

X = np.zeros((4, 3))
Y = [0, 1, 2, 1]
NOT_FINITE = "X holds NaN or infinity; clean or impute"


def with_one(value):
    spoilt = X.copy()
    spoilt[3, 2] = value
    return spoilt


FEATURES = {
    "narrow": (X[:, :2], r"X must have the shape \(n, 3\) with n >= 1, got \(4, 2\)"),
    "wide": (np.zeros((4, 5)), r"\(n, 3\) with n >= 1, got \(4, 5\)"),
    "empty": (X[:0], r"\(n, 3\) with n >= 1, got \(0, 3\)"),
    "empty list": ([], r"\(n, 3\) with n >= 1, got \(0,\)"),
    "one row as a vector": (X[0], r"\(n, 3\) with n >= 1, got \(3,\)"),
    "a number": (1.0, r"\(n, 3\) with n >= 1, got \(\)"),
    "images": (np.zeros((4, 3, 1)), r"\(n, 3\) with n >= 1, got \(4, 3, 1\)"),
    "ragged": ([[1, 2, 3], [1, 2]], "X is not a rectangular array of numbers"),
    "NaN": (with_one(np.nan), NOT_FINITE),
    "infinity": (with_one(-np.inf), NOT_FINITE),
    "too large for float32": (with_one(1e300), NOT_FINITE),
    "complex": (X.astype(complex), "X must hold real numbers, got dtype complex128"),
    "object": (X.astype(object), "X must hold real numbers, got dtype object"),
    "text": (X.astype(str), "X must hold real numbers, got dtype <U"),
    "dates": (X.astype("M8[s]"), "X must hold real numbers, got dtype datetime64"),
    "None": (None, r"got \(\)|must hold real numbers, got dtype object"),
}

LABELS = {
    "too few": ([0, 1, 2], r"X has 4 rows and y has the shape \(3,\); give one target per row"),
    "a number": (1, r"X has 4 rows and y has the shape \(\)"),
    "empty": ([], r"X has 4 rows and y has the shape \(0,\)"),
    "out of range": ([0, 1, 2, 3], "labels must lie between 0 and 2, got 0 to 3; are there 3 classes?"),
    "negative": ([0, 1, 2, -1], "labels must lie between 0 and 2, got -1 to 2"),
    "float": ([0.0, 1.0, 2.0, 1.0], r"must be whole numbers from 0 to 2, got dtype float64; .*y\.astype\(int\)"),
    "NaN": ([0, 1, np.nan, 1], "labels must be whole numbers from 0 to 2, got dtype float64"),
    "object": (np.array(Y, object), "y must hold real numbers, got dtype object"),
    "text": (["a", "b", "c", "b"], "y must hold real numbers, got dtype <U1"),
    "complex": (np.array(Y, complex), "y must hold real numbers, got dtype complex128"),
    "a column": (np.array(Y)[:, None], r"labels of shape \(n,\) or one-hot rows of shape \(n, 3\), got \(4, 1\)"),
    "one-hot of other classes": (np.eye(4)[Y], r"one-hot rows of shape \(n, 3\), got \(4, 4\)"),
    "two hot": (np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]), "each row a single 1 among zeros"),
    "none hot": (np.zeros((4, 3)), "each row a single 1 among zeros"),
    "soft": (np.full((4, 3), 1 / 3), "each row a single 1 among zeros"),
    "3-D": (np.zeros((4, 3, 1), int), r"one-hot rows of shape \(n, 3\), got \(4, 3, 1\)"),
    "ragged": ([[1, 0, 0], [1], [1], [1]], "y is not a rectangular array of numbers"),
}

VALUES = {
    "wrong units": (np.zeros((4, 2)), r"an output of 3 unit\(s\) needs y of shape \(4, 3\), got \(4, 2\)"),
    "a vector": (np.zeros(4), r"an output of 3 unit\(s\) needs y of shape \(4, 3\), got \(4,\)"),
    "NaN": (with_one(np.nan), "y holds NaN or infinity; targets must be finite numbers"),
    "infinity": (with_one(np.inf), "y holds NaN or infinity"),
    "too large for float32": (with_one(1e300), "y holds NaN or infinity"),
}


def refuses(model, X, y, message):
    """Assert that every way in refuses these data, and leaves the model alone."""
    before = model.theta.copy()
    for call in (
        model.loss_and_gradient,
        model.evaluate,
        model.score,
        lambda X, y: mx.epochs(model, X, y),
        lambda X, y: mx.fit(model, X, y, epochs=1),
        lambda X, y: mx.fit(model, X, y, epochs=1, batch_size=2),
    ):
        with pytest.raises(ValueError, match=message):
            call(X, y)
    assert_array_equal(model.theta, before)


@pytest.mark.parametrize("case", FEATURES)
def test_features(case):
    bad, message = FEATURES[case]
    model = mx.MLP([3, 5, 3])
    refuses(model, bad, Y, message)
    for call in (model.predict, model.predict_proba, model.forward):
        with pytest.raises(ValueError, match=message):
            call(bad)


@pytest.mark.parametrize("output", ["softmax", "softmax_of_sigmoid"])
@pytest.mark.parametrize("case", LABELS)
def test_labels(case, output):
    bad, message = LABELS[case]
    refuses(mx.MLP([3, 5, 3], output=output), X, bad, message)


@pytest.mark.parametrize("output", ["sigmoid", "identity", "sigmoid_mse"])
@pytest.mark.parametrize("case", VALUES)
def test_values(case, output):
    bad, message = VALUES[case]
    refuses(mx.MLP([3, 5, 3], output=output), X, bad, message)


def test_yes_or_no_targets():
    half, wide = with_one(0.5), np.zeros((4, 2))
    refuses(mx.MLP([3, 3], output="sigmoid"), X, half, "need targets 0 or 1, got values from 0.0 to 0.5")
    refuses(mx.MLP([3, 1], output="sigmoid"), X, wide, r"needs y of shape \(4, 1\) or \(4,\), got \(4, 2\)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": [3]}, r"the units per layer.* as in \[784, 196, 10\]; got \[3\]"),
        ({"sizes": 3}, "the units per layer.*; got 3"),
        ({"sizes": "ab"}, "the units per layer.*; got 'ab'"),
        ({"sizes": [3, 0, 2]}, "a layer size must be a whole number of at least 1, got 0"),
        ({"sizes": [3, 2.5, 2]}, "a layer size must be a whole number of at least 1, got 2.5"),
        ({"sizes": [3, True, 2]}, "a layer size must be a whole number of at least 1, got True"),
        ({"activation": "swish"}, "unknown activation 'swish'; choose from 'sigmoid', 'tanh', .*, 'identity'"),
        ({"activation": 5}, "unknown activation 5; choose from"),
        ({"activation": ["tanh", "relu"]}, "got 2 activations for 1 hidden layer.*one per hidden layer"),
        ({"activation": ["selu"]}, "unknown activation 'selu'; choose from"),
        ({"output": "linear"}, "unknown output 'linear'; choose from 'softmax', 'sigmoid', 'identity'"),
        ({"output": ["softmax"]}, r"unknown output \['softmax'\]; choose from"),
        ({"sizes": [3, 4, 1]}, "output 'softmax' needs at least 2 output units.* got 1; use 'sigmoid' for two classes"),
        ({"init": "orthogonal"}, "unknown initialiser 'orthogonal'; choose from .*xavier_normal"),
        ({"init": None}, "unknown initialiser None; choose from"),
        ({"dtype": "float16"}, "unknown dtype 'float16'; choose from 'float32', 'float64'"),
        ({"dtype": "foo"}, "unknown dtype 'foo'; choose from"),
        ({"dtype": None}, "unknown dtype 'None'; choose from"),
        ({"dtype": np.int32}, "unknown dtype 'int32'; choose from"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"seed": 1.5}, "seed must be a whole number of at least 0, got 1.5"),
        ({"device": "tpu"}, "unknown device 'tpu'; choose from"),
    ],
)
def test_arguments_of_a_model(arguments, message):
    with pytest.raises(ValueError, match=message):
        mx.MLP(**{"sizes": [3, 4, 2], **arguments})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weights", [np.zeros((4, 3))], r"weights have the shapes \[\(4, 3\), \(2, 4\)\], got \[\(4, 3\)\]"),
        ("weights", [np.zeros((3, 4)), np.zeros((4, 2))], r"got \[\(3, 4\), \(4, 2\)\]"),
        ("weights", [np.full((4, 3), np.nan), np.zeros((2, 4))], "weights must be finite, got NaN or infinity"),
        ("biases", [np.zeros(4), np.zeros(3)], r"biases have the shapes \[\(4,\), \(2,\)\], got \[\(4,\), \(3,\)\]"),
        ("biases", [np.zeros(4), [np.inf, 0]], "biases must be finite"),
        ("biases", [np.zeros(4), ["a", "b"]], "could not convert"),
    ],
)
def test_assigned_parameters(name, value, message):
    model = mx.MLP([3, 4, 2])
    before = model.theta.copy()
    with pytest.raises(ValueError, match=message):
        setattr(model, name, value)
    assert_array_equal(model.theta, before)
