"""What the lectures teach comes out, a test or two for each of their systems, in the lectures' own symbols."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal, assert_array_less

import mlp_xp as mx
from mlp_xp.kernels import GenericKernels
from mlp_xp.kernels.cpu.numpy_ import NumpyKernels
from mlp_xp.params import Layout


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def network(sizes, seed=1, activation="sigmoid", **settings):
    """Return a float64 network whose biases are not zero."""
    model = mx.MLP(sizes, activation, dtype="float64", seed=seed, **settings)
    model.biases = [np.linspace(-0.5, 0.5, len(b)) for b in model.biases]
    return model


def assert_gradient(gradient, weights, biases):
    for got, wanted in zip(gradient.weights + gradient.biases, weights + biases, strict=True):
        assert_allclose(got, wanted, rtol=1e-12, atol=1e-15)


def test_S1_long_and_reduced_backward_agree(rng):
    model = network([4, 5, 1], output="sigmoid")
    (W1, W2), (b1, b2) = model.weights, model.biases
    X, Y, n = rng.standard_normal((8, 4)), rng.integers(0, 2, (8, 1)), 8

    A1 = sigmoid(X @ W1.T + b1)
    A2 = sigmoid(A1 @ W2.T + b2)
    J = -np.mean(Y * np.log(A2) + (1 - Y) * np.log(1 - A2))
    dA2 = -Y / A2 + (1 - Y) / (1 - A2)
    dZ2 = dA2 * A2 * (1 - A2)
    assert_allclose(dZ2, A2 - Y, rtol=1e-12, atol=1e-14)
    dZ1 = (dZ2 @ W2) * A1 * (1 - A1)

    loss, gradient = model.loss_and_gradient(X, Y)
    assert_allclose(loss, J, rtol=1e-13)
    assert_gradient(gradient, [dZ1.T @ X / n, dZ2.T @ A1 / n], [dZ1.mean(axis=0), dZ2.mean(axis=0)])


@settings(max_examples=15)
@given(sizes=st.lists(st.integers(1, 4), min_size=3, max_size=6), seed=st.integers(0, 99))
def test_S2_any_depth_and_widths(sizes, seed):
    sizes[-1] = 1
    model = network(sizes, seed, output="sigmoid", init="lecun_normal")
    rng = np.random.default_rng(seed)
    X, y = rng.standard_normal((3, sizes[0])), rng.integers(0, 2, 3)
    _, gradient = model.loss_and_gradient(X, y)
    weights, step = model.weights, 1e-5
    for l, (W, dW) in enumerate(zip(weights, gradient.weights, strict=True)):
        sides = []
        for sign in (1, -1):
            moved = [w.copy() for w in weights]
            moved[l][-1, 0] = W[-1, 0] + sign * step
            model.weights = moved
            sides.append(model.loss_and_gradient(X, y)[0])
        assert_allclose(dW[-1, 0], (sides[0] - sides[1]) / (2 * step), rtol=1e-6, atol=1e-10)


def test_S3_mnist(mnist):
    train, test = mnist
    assert train.X.shape == (60_000, 784)
    assert test.X.shape == (10_000, 784)
    assert train.X.dtype == test.X.dtype == np.uint8
    assert train.X.max() == 255
    assert sorted(set(train.y.tolist())) == sorted(set(test.y.tolist())) == list(range(10))


def test_S4_shapes_of_five_against_eight(mnist58):
    train, test = mnist58
    assert len(train.X) == 11_272
    assert len(test.X) == 1_866
    assert set(train.y.tolist()) == {0, 1}
    model = mx.MLP([784, 196, 1], "sigmoid", output="sigmoid")
    passed = model.forward(train.X)
    assert [Z.shape for Z in passed.Z[1:]] == [(11_272, 196), (11_272, 1)]
    assert [A.shape for A in passed.A] == [(11_272, 784), (11_272, 196), (11_272, 1)]
    _, gradient = model.loss_and_gradient(train.X, train.y)
    assert [dW.shape for dW in gradient.weights] == [(196, 784), (1, 196)]
    assert [db.shape for db in gradient.biases] == [(196,), (1,)]
    assert [dZ.shape for dZ in gradient.deltas] == [(11_272, 196), (11_272, 1)]


@pytest.mark.slow
def test_S4_cost_curve_and_accuracy(mnist58):
    train, test = mnist58
    model = mx.MLP([784, 196, 1], "sigmoid", output="sigmoid", init="lecun_normal")
    history = mx.fit(model, train.X, train.y, epochs=501, optimizer=mx.SGD(lr=0.1))
    assert_allclose(history.loss[::100], [0.7055, 0.3225, 0.1940, 0.1587, 0.1429, 0.1337], rtol=0.05)
    assert model.score(test.X, test.y) >= 0.956
    assert set(model.predict(test.X[:8]).tolist()) <= {0, 1}


@pytest.mark.parametrize(("i", "w", "y"), [((1, 2), (1, -2, 3, 4, 5, -6), 7), ((0.5, -3), (2, 0, -1, 1, 0.5, 3), -2)])
def test_S5_simple_mlp_by_hand(i, w, y):
    (i1, i2), (w1, w2, w3, w4, w5, w6) = i, w
    model = mx.MLP([2, 2, 1], activation="identity", output="identity", dtype="float64")
    model.weights = [[[w1, w2], [w3, w4]], [[w5, w6]]]
    h1, h2 = w1 * i1 + w2 * i2, w3 * i1 + w4 * i2
    o = w5 * h1 + w6 * h2
    loss, gradient = model.loss_and_gradient([i], [y])
    assert loss == (o - y) ** 2 / 2
    assert_array_equal(gradient.weights[1], [[(o - y) * h1, (o - y) * h2]])
    assert_array_equal(gradient.weights[0], np.outer([w5, w6], [i1, i2]) * (o - y))


def test_S6_regression_changes_only_the_loss(rng):
    X, Y, n = rng.standard_normal((9, 4)), rng.random((9, 1)), 9
    model = network([4, 3, 1], output="sigmoid_mse")
    _, A1, A2 = model.forward(X).A
    assert_allclose(A2, sigmoid(network([4, 3, 1], output="sigmoid").forward(X).A[2]), rtol=1e-14)
    dZ2 = (A2 - Y) * A2 * (1 - A2)
    dZ1 = (dZ2 @ model.weights[1]) * A1 * (1 - A1)
    loss, gradient = model.loss_and_gradient(X, Y)
    assert_allclose(loss, np.mean((A2 - Y) ** 2) / 2, rtol=1e-13)
    assert_gradient(gradient, [dZ1.T @ X / n, dZ2.T @ A1 / n], [dZ1.mean(axis=0), dZ2.mean(axis=0)])


def test_S7_softmax_on_top_of_sigmoid(rng):
    model = network([6, 5, 10], output="softmax_of_sigmoid")
    X, y, n = rng.standard_normal((12, 6)), rng.integers(0, 10, 12), 12
    Y = np.eye(10)[y]
    _, A1, A2 = model.forward(X).A
    assert_allclose(A2, sigmoid(model.forward(X).Z[2]), rtol=1e-14)
    Z3 = softmax(A2)
    dZ2 = (Z3 - Y) * A2 * (1 - A2)
    dZ1 = (dZ2 @ model.weights[1]) * A1 * (1 - A1)
    loss, gradient = model.loss_and_gradient(X, y)
    assert_allclose(loss, -np.sum(Y * np.log(Z3)) / n, rtol=1e-13)
    assert_allclose(model.predict_proba(X), Z3, rtol=1e-13)
    assert_gradient(gradient, [dZ1.T @ X / n, dZ2.T @ A1 / n], [dZ1.mean(axis=0), dZ2.mean(axis=0)])


def test_S8_shape_walk_over_all_of_mnist(mnist):
    train, _ = mnist
    model = mx.MLP([784, 196, 10], "sigmoid", output="softmax_of_sigmoid")
    loss, gradient = model.loss_and_gradient(train.X, train.y)
    assert loss.shape == ()
    assert [dZ.shape for dZ in gradient.deltas] == [(60_000, 196), (60_000, 10)]
    assert [dW.shape for dW in gradient.weights] == [(196, 784), (10, 196)]
    assert [db.shape for db in gradient.biases] == [(196,), (10,)]


def test_S9_loop_over_samples_equals_the_matrix_form(rng):
    model = mx.MLP([3, 4, 1], "sigmoid", output="sigmoid", dtype="float64")
    model.weights = [rng.integers(-8, 9, W.shape) / 8 for W in model.weights]  # sums of eighths are exact
    model.biases = [rng.integers(-8, 9, b.shape) / 8 for b in model.biases]
    X, y = rng.integers(-8, 9, (6, 3)) / 8, rng.integers(0, 2, 6)
    passed = model.forward(X)
    (W1, _), (b1, _) = model.weights, model.biases
    for i, x in enumerate(X):
        assert_array_equal(
            passed.Z[1][i], [sum(w * v for w, v in zip(W1[j], x, strict=True)) + b1[j] for j in range(4)]
        )
        # sums of five rounded terms, which may cancel: the terms decide what rounding can do
        size = np.abs(model.weights[1]) @ passed.A[1][i] + np.abs(model.biases[1])
        assert_array_less(np.abs(passed.A[2][i] - model.forward([x]).A[2][0]), 1e-15 * size)
    _, whole = model.loss_and_gradient(X, y)
    parts = [model.loss_and_gradient([x], [label])[1] for x, label in zip(X, y, strict=True)]
    assert_gradient(
        whole,
        [np.mean([part.weights[l] for part in parts], axis=0) for l in range(2)],
        [np.mean([part.biases[l] for part in parts], axis=0) for l in range(2)],
    )


@pytest.mark.parametrize("kernels", [GenericKernels(np, "float64"), NumpyKernels("float64")], ids=["generic", "numpy"])
def test_S10_activations_and_their_derivatives(kernels):
    z = np.array([[-2.0, -0.5, 0.0, 0.5, 2.0]])
    step = np.array([[0.0, 0.0, 1.0, 1.0, 1.0]])  # 1 at zero, as the lecture has it
    a, t = sigmoid(z), np.tanh(z)
    expected = {
        "sigmoid": (a, a * (1 - a)),
        "tanh": (t, 1 - t**2),
        "relu": (z * step, step),
        "leaky_relu": (np.where(z < 0, 0.01 * z, z), np.where(z < 0, 0.01, 1)),
        "identity": (z, np.ones_like(z)),
    }
    assert set(expected) == set(mx.ACTIVATIONS)
    for name, (value, slope) in expected.items():
        kernels.features(z)
        A = kernels.activate(name, z.copy())
        assert_allclose(A, value, rtol=1e-15, err_msg=name)
        assert_allclose(kernels.activation_gradient(name, np.ones_like(z), A), slope, rtol=1e-14, err_msg=name)


def test_S11_zeros_keep_hidden_units_identical(rng):
    X, y = rng.standard_normal((20, 3)), rng.permutation(20) < 8  # as many of both would move nothing
    alike, drawn = (mx.MLP([3, 4, 1], "sigmoid", output="sigmoid", init=init) for init in ("zeros", "normal"))
    for model in (alike, drawn):
        mx.fit(model, X, y, epochs=50, optimizer=mx.SGD(lr=1.0))
    W1 = alike.weights[0]
    assert np.abs(W1).max() > 0.01
    assert_allclose(W1, np.broadcast_to(W1[0], W1.shape), rtol=1e-6)
    assert np.ptp(drawn.weights[0], axis=0).max() > 1e-3


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_S11_large_weights_saturate(activation, rng):
    X, y = rng.standard_normal((20, 50)), rng.integers(0, 2, 20)
    model = mx.MLP([50, 30, 1], activation, "sigmoid", init="normal", dtype="float64")
    assert_allclose(np.std(model.weights[0]), 0.01, rtol=0.05)
    assert not any(b.any() for b in model.biases)
    slopes = []
    for scale in (1, 10_000):
        model.weights = [model.weights[0] * scale, np.ones((1, 30))]
        slopes.append(np.abs(model.loss_and_gradient(X, y)[1].deltas[0]).mean())
    assert slopes[1] < 0.1 * slopes[0]


def test_S16_deltas_of_the_quadratic_cost(rng):
    model = network([3, 4, 2], output="sigmoid_mse")
    x, y = rng.standard_normal((1, 3)), rng.random((1, 2))
    a0, a1, a2 = (A[0] for A in model.forward(x).A)
    delta2 = -(y[0] - a2) * a2 * (1 - a2)
    delta1 = (model.weights[1].T @ delta2) * a1 * (1 - a1)
    loss, gradient = model.loss_and_gradient(x, y)
    assert_allclose(loss, np.sum((y - a2) ** 2) / 2, rtol=1e-13)
    assert_allclose(gradient.deltas[1][0], delta2, rtol=1e-12, atol=1e-14)
    assert_allclose(gradient.deltas[0][0], delta1, rtol=1e-12, atol=1e-14)
    assert_gradient(gradient, [np.outer(delta1, a0), np.outer(delta2, a1)], [delta1, delta2])


def test_S16_weights_and_biases_learn_at_their_own_rates(rng):
    model = network([3, 4, 2])
    X, y = rng.standard_normal((6, 3)), rng.integers(0, 2, 6)
    weights, biases = model.weights, model.biases
    _, gradient = model.loss_and_gradient(X, y)
    mx.fit(model, X, y, epochs=1, optimizer=mx.SGD(lr=0.5, lr_bias=0.125))
    for l in range(2):
        assert_allclose(model.weights[l], weights[l] - 0.5 * gradient.weights[l], rtol=1e-12, atol=1e-14)
        assert_allclose(model.biases[l], biases[l] - 0.125 * gradient.biases[l], rtol=1e-12, atol=1e-14)


def test_S16_parameter_counts():
    assert Layout([784, 196, 10]).size == 155_830
    assert Layout([256 * 256, 196, 10]).size == 12_847_222
    assert mx.MLP([784, 196, 10]).theta.shape == (155_830,)


def test_S17_row_form_equals_column_form(rng):
    n = 7
    model = network([10, 64, 1], output="sigmoid")
    X, Y = rng.standard_normal((n, 10)), rng.integers(0, 2, (n, 1))
    (W1, W2), (b1, b2) = model.weights, model.biases

    A1 = sigmoid(X @ W1.T + b1)
    A2 = sigmoid(A1 @ W2.T + b2)
    dZ2 = (A2 - Y) / n
    dW2, db2 = dZ2.T @ A1, dZ2.T @ np.ones(n)
    dZ1 = (dZ2 @ W2) * A1 * (1 - A1)
    dW1, db1 = dZ1.T @ X, dZ1.T @ np.ones(n)
    assert (A1.shape, A2.shape, dZ1.shape, dZ2.shape) == ((7, 64), (7, 1), (7, 64), (7, 1))
    assert (dW1.shape, dW2.shape, db1.shape, db2.shape) == ((64, 10), (1, 64), (64,), (1,))

    x, y = X.T, Y.T  # samples as columns
    a1 = sigmoid(W1 @ x + b1[:, None])
    a2 = sigmoid(W2 @ a1 + b2[:, None])
    dz2 = (a2 - y) / n
    dz1 = (W2.T @ dz2) * a1 * (1 - a1)
    _, gradient = model.loss_and_gradient(X, Y)
    assert_gradient(gradient, [dW1, dW2], [db1, db2])
    assert_gradient(gradient, [dz1 @ x.T, dz2 @ a1.T], [dz1.sum(axis=1), dz2.sum(axis=1)])
    for delta, dZ in zip(gradient.deltas, (dZ1, dZ2), strict=True):
        assert_allclose(delta / n, dZ, rtol=1e-12, atol=1e-14)


def test_S17_derivative_of_a_bilinear_form(rng):
    a, b = rng.standard_normal((3, 1)), rng.standard_normal((4, 1))
    model = mx.MLP([4, 3], output="identity", dtype="float64")
    # with W = 0 and Y = -a the loss |W b - Y|^2 / 2 has the slope (W b - Y) bT = a bT, that of aT W b
    model.weights = [np.zeros((3, 4))]
    _, gradient = model.loss_and_gradient(b.T, -a.T)
    assert_allclose(gradient.weights[0], a @ b.T, rtol=1e-14)
    X, step = rng.standard_normal((3, 4)), 0.5  # the form is linear: any step is exact
    for i, j in np.ndindex(3, 4):
        E = np.zeros((3, 4))
        E[i, j] = step
        slope = (a.T @ (X + E) @ b - a.T @ (X - E) @ b).item() / (2 * step)
        assert_allclose(slope, (a @ b.T)[i, j], rtol=1e-12, atol=1e-13)  # of numbers around ten


def test_S18_stops_on_the_loss(rng):
    X, y = rng.standard_normal((30, 2)), rng.standard_normal(30)
    model = mx.MLP([2, 1], output="identity", dtype="float64")
    history = mx.fit(model, X, y, epochs=10_000, optimizer=mx.SGD(lr=0.5), tol=1e-9, patience=3)
    assert 3 < len(history) < 1000
    assert np.abs(model.loss_and_gradient(X, y)[1].weights[0]).max() < 1e-3


def test_S18_stops_on_the_gradient_norm(rng):
    X, y = rng.standard_normal((30, 2)), rng.standard_normal(30)
    model = mx.MLP([2, 1], output="identity", dtype="float64")
    stop = mx.EarlyStopping(tol=1e-6, patience=2, monitor="gradient")
    norms = []
    mx.fit(
        model, X, y, epochs=10_000, optimizer=mx.SGD(lr=0.5),
        callbacks=[lambda state: norms.append(float(state.gradient_norm)), stop],
    )  # fmt: skip
    assert len(norms) < 1000
    assert norms[-1] <= norms[-2] <= 1e-6 < norms[-3]
