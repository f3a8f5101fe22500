"""Weights of rows, orders of the caller's, objectives other than the model's: every engine minimizes the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
from numpy.testing import assert_allclose, assert_array_equal

import mlp_xp as mx
from mlp_xp.devices.blas_threads import other_blas_libraries
from mlp_xp.engines import Done, Setup
from mlp_xp.engines.host import HostEngine, as_stored
from mlp_xp.engines.threads import ThreadEngine
from mlp_xp.estimators.lbfgs import LossAndGradient, lbfgs
from mlp_xp.kernels.functions import LOSSES
from mlp_xp.objective import Objective
from mlp_xp.optim import AdamEpsilonHat, SGDOfSteps, Steered
from mlp_xp.rows.csr import CsrRows
from mlp_xp.rows.plan import make_plan

OUTPUTS = {
    "softmax": ("softmax_cross_entropy", "softmax_log_loss"),
    "sigmoid": ("sigmoid_cross_entropy", "sigmoid_log_loss"),
    "identity": ("half_squared_error", "half_mean_squared_error", "poisson_deviance", "absolute_error", "huber"),
}
RULES = [
    mx.SGD(lr=0.05),
    mx.SGD(lr=0.05, l2=0.02, momentum=0.7),
    SGDOfSteps(mx.StepDecay(0.05, every=1, factor=0.5), momentum=0.8),
    SGDOfSteps(mx.StepDecay(0.05, every=1, factor=0.5), momentum=0.8, nesterov=True, lr_bias=0.01),
    mx.Adam(lr=0.01, epsilon=1e-3),
    AdamEpsilonHat(lr=0.01, epsilon=1e-3),
]


def draw(seed):
    """Return what makes a model, samples, targets, and how to train."""
    rng = np.random.default_rng(seed)
    n, d, k = int(rng.integers(5, 90)), int(rng.integers(1, 80)), int(rng.integers(2, 5))
    output = str(rng.choice(list(OUTPUTS)))
    model = {"sizes": [d, int(rng.integers(1, 20)), k], "activation": "tanh", "output": output, "seed": seed}
    X = rng.standard_normal((n, d)) * (rng.random((n, d)) < rng.choice([0.2, 1]))
    y = {"softmax": rng.integers(0, k, n), "sigmoid": rng.integers(0, 2, (n, k)), "identity": rng.poisson(2, (n, k))}
    made = mx.MLP(**model).objective.output._replace(loss=str(rng.choice(OUTPUTS[output])))
    orders = [rng.permutation(n) for _ in range(3)]
    how = {
        "optimizer": RULES[rng.integers(len(RULES))],
        "objective": Objective(made, l2_sum=float(rng.choice([0, 0.5]))),
        "batch_size": [None, 1 + int(rng.integers(n))][rng.integers(2)],
        "weights": None if rng.integers(3) == 0 else rng.uniform(0.1, 4, n),
        "order": None if rng.integers(2) else lambda epoch: orders[epoch - 1],
    }
    return model, X, y[output], how


def train(model, X, y, how, device="cpu", **more):
    """Return losses and parameters after three epochs."""
    model = mx.MLP(**model, dtype="float64", device=device)
    losses = [float(state.loss) for state in mx.epochs(model, X, y, epochs=3, **how, **more)]
    return np.array([*losses, *model.device.to_host(model.theta)])


@pytest.mark.needs("compiled")
@pytest.mark.parametrize("first", range(0, 120, 20))
def test_engines_train_alike(first, monkeypatch):
    for seed in range(first, first + 20):
        case = draw(seed)
        want = train(*case, device="strict")
        for plan in ("dense", "sparse"):
            assert_allclose(train(*case, plan=plan, threads=2), want, 1e-9, 1e-11, err_msg=f"{seed} {plan}")
        with monkeypatch.context() as patched:
            patched.setenv("MLP_XP_COMPILED", "0")
            for plan in ("dense", "ragged"):
                assert_allclose(train(*case, plan=plan), want, 1e-9, 1e-11, err_msg=f"{seed} NumPy {plan}")


@pytest.mark.parametrize("plan", ["dense", "auto"])
def test_only_the_ratios_of_weights_count_and_rows_of_none_are_not_there(plan):
    rng = np.random.default_rng(0)
    X, y, weights = rng.standard_normal((50, 4)), rng.integers(0, 3, 50), rng.integers(0, 3, 50)
    model = {"sizes": [4, 6, 3], "seed": 1}
    for optimizer in (mx.SGD(lr=0.5), mx.Adam(lr=0.05)):
        runs = [
            train(model, *data, {"optimizer": optimizer, "weights": w}, plan=plan)
            for data, w in [
                ((X, y), weights),
                ((X, y), 7.5 * weights),
                ((X[weights > 0], y[weights > 0]), weights[weights > 0]),
                ((np.repeat(X, weights, axis=0), np.repeat(y, weights)), None),
            ]
        ]
        for run in runs[1:]:
            assert_allclose(run, runs[0], 1e-9)


def test_the_penalty_of_a_sum_is_divided_by_the_rows_of_each_update():
    """The last batch is smaller, so it counts more there; by hand for one layer without a gradient of its own."""
    X, y = np.zeros((5, 2)), np.zeros((5, 1))
    model = mx.MLP([2, 1], output="identity", dtype="float64")
    start = model.weights[0]
    objective = replace(model.objective, l2_sum=0.6)
    (state,) = mx.epochs(model, X, y, epochs=1, batch_size=3, optimizer=mx.SGD(lr=0.1), objective=objective)
    assert_allclose(model.weights[0], start * (1 - 0.1 * 0.6 / 3) * (1 - 0.1 * 0.6 / 2), 1e-12)
    first, second = np.sum(start**2), np.sum((start * (1 - 0.1 * 0.6 / 3)) ** 2)
    assert_allclose(float(state.loss_sum), 0.3 * (first + second), 1e-12)


def test_the_optimizers_penalty_is_added_to_the_objectives():
    X, y = np.ones((4, 2)), np.zeros((4, 1))
    ends = []
    for l2, own in [(0.3, 0.0), (0.1, 0.2)]:
        model = mx.MLP([2, 1], output="identity", dtype="float64")
        objective = replace(model.objective, l2=own)
        for _ in mx.epochs(model, X, y, epochs=2, optimizer=mx.SGD(lr=0.1, l2=l2), objective=objective):
            pass
        ends.append(model.theta)
    assert_allclose(ends[1], ends[0], 1e-13)


@pytest.mark.parametrize("device", ["cpu", "strict"])
def test_an_order_is_the_order_of_the_batches(device):
    X, y = np.arange(12.0)[:, None], np.zeros((12, 1))
    by_order, by_hand = (mx.MLP([1, 1], output="identity", dtype="float64", device=device) for _ in range(2))
    drawn = np.random.default_rng(0).permutation(12)
    optimizer = mx.SGD(lr=1e-3)
    for _ in mx.epochs(by_order, X, y, epochs=1, batch_size=4, optimizer=optimizer, order=lambda epoch: drawn):
        pass
    for part in np.split(drawn, 3):
        for _ in mx.epochs(by_hand, X[part], y[part], epochs=1, optimizer=optimizer):
            pass
    assert_allclose(by_order.weights, by_hand.weights, 1e-13)


@pytest.mark.parametrize(("weights", "message"), [
    ([1.0] * 4, r"X has 5 rows and weights have the shape \(4,\); give one weight per row"),
    ([1.0, 2, 3, 4, -1], "weights must be finite numbers of at least 0, got -1.0 to 4.0"),
    ([1.0, 2, 3, 4, np.nan], "weights must be finite numbers of at least 0"),
    (["a"] * 5, "weights must hold real numbers"),
])  # fmt: skip
def test_weights_are_checked_before_any_training(weights, message):
    with pytest.raises(ValueError, match=message):
        mx.epochs(mx.MLP([2, 2]), np.zeros((5, 2)), [0, 1, 0, 1, 0], weights=weights)


# ----------------------------------------------------------------------------------------------------------------------
# scikit-learn's losses and rules


@pytest.mark.parametrize(
    "name", ["absolute_error", "huber", "poisson_deviance", "sigmoid_log_loss", "softmax_log_loss"]
)
def test_slopes_are_those_of_the_losses(name, rng):
    A, h = rng.standard_normal((6, 3)), 1e-6
    y = rng.integers(0, 3, 6) if name.startswith("softmax") else rng.integers(0, 2, (6, 3)).astype(float)
    _, dA = LOSSES[name].formula(np, A, y)
    for j, e in enumerate(np.eye(3)):
        above, below = (LOSSES[name].formula(np, A + sign * h * e, y)[0] for sign in (1, -1))
        assert_allclose((above - below) / (2 * h), dA[:, j], 1e-7, 1e-8)


@pytest.mark.parametrize("device", ["cpu", "strict", "torch", "jax", "cuda"])
def test_robust_losses_at_their_kinks_and_far_away(device):
    xp, asarray = mx.devices.get_device(device, "float64").xp, mx.devices.get_device(device, "float64").asarray
    A, Y = [[3.0, 2.0, 1.5], [0.0, 2.0, -1e200]], [[2.0, 2.0, 2.0], [2.0, 0.5, 1e200]]
    for name, want, slope in (
        ("absolute_error", [1.5, 2e200], [[1, 0, -1], [-1, 1, -1]]),
        ("huber", [0.625, 2e200], [[1, 0, -0.5], [-1, 1, -1]]),
    ):
        losses, dA = LOSSES[name].formula(xp, asarray(np.array(A)), asarray(np.array(Y)))
        host = mx.devices.get_device(device).to_host
        assert_allclose(host(losses), want)
        assert_array_equal(host(dA), slope)


def test_the_mean_squared_error_is_reported_by_output_and_followed_as_a_sum(rng):
    A, Y = rng.standard_normal((4, 5)), rng.standard_normal((4, 5))
    (losses, dA), (sums, slope) = (LOSSES[f"half_{name}squared_error"].formula(np, A, Y) for name in ("mean_", ""))
    assert_allclose(5 * losses, sums)
    assert_array_equal(dA, slope)


def test_poisson_deviance_is_zero_at_its_targets():
    Y = np.array([[1.0, 2.0, 7.0]])
    losses, dA = LOSSES["poisson_deviance"].formula(np, np.log(Y), Y)
    assert_allclose([*losses, *dA[0]], 0, atol=1e-14)
    losses, _ = LOSSES["poisson_deviance"].formula(np, np.array([[0.5]]), np.zeros((1, 1)))
    assert_allclose(losses, np.exp(0.5))


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_velocity_of_steps_differs_once_the_rate_has_changed(nesterov):
    grads = np.random.default_rng(0).standard_normal((6, 3))
    thetas = []
    for kind in (mx.SGD, SGDOfSteps):
        rule, theta = kind(momentum=0.9, nesterov=nesterov), np.zeros(3)
        state, path = rule.init(theta), []
        for rate, grad in zip([0.1, 0.1, 0.1, 0.02, 0.02, 0.02], grads, strict=True):
            theta, state = rule.update(theta, grad, state, rate)
            path.append(theta.copy())
        thetas.append(path)
    gradients, steps = np.array(thetas)
    assert_allclose(steps[:3], gradients[:3], 1e-12)
    assert (np.abs(steps[3:] - gradients[3:]) > 1e-3).all()
    v, theta = np.zeros(3), np.zeros(3)  # Sutskever et al. (2013), eq. 1 to 4
    for rate, grad in zip([0.1, 0.1, 0.1, 0.02, 0.02, 0.02], grads, strict=True):
        v = 0.9 * v - rate * grad
        theta = theta + (0.9 * v - rate * grad if nesterov else v)
    assert_allclose(steps[-1], theta, 1e-12)


def test_epsilon_hat_is_kingma_and_bas_shorter_form():
    grads = np.random.default_rng(1).standard_normal((5, 4))
    rule, theta = AdamEpsilonHat(epsilon=0.1), np.zeros(4)
    state = rule.init(theta)
    m, v, want = np.zeros(4), np.zeros(4), np.zeros(4)
    for t, grad in enumerate(grads, 1):
        theta, state = rule.update(theta, grad, state, 0.01)
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        want = want - 0.01 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 0.1)
    assert_allclose(theta, want, 1e-12)
    assert state["updates"] == 5


def test_a_steered_rate_is_taken_up_by_the_next_epoch():
    rate = Steered(0.1)
    model = mx.MLP([1, 1], output="identity", dtype="float64")
    rates = []
    for state in mx.epochs(model, [[1.0]], [[1.0]], epochs=3, optimizer=mx.SGD(rate)):
        rates.append(state.lr)
        rate.steer(rate.lr / 2)
    assert rates == [0.1, 0.05, 0.025]


# ----------------------------------------------------------------------------------------------------------------------
# L-BFGS, and compressed rows


@pytest.mark.parametrize("device", ["cpu", "strict", "torch"])
def test_the_function_of_lbfgs_is_the_loss_and_its_gradient(device, rng):
    X, y = rng.standard_normal((30, 5)), rng.integers(0, 3, 30)
    model = mx.MLP([5, 7, 3], dtype="float64", device=device)
    theta = model.device.to_host(model.theta)
    loss, gradient = model.loss_and_gradient(X, y)
    with LossAndGradient(model, X, y) as function:
        function(theta + 1)  # what was computed before does not matter
        found = function(theta)
    assert_allclose(found[0], float(loss), 1e-12)
    split = model.layout.split(found[1])
    for a, b in zip([*split.W[1:], *split.b[1:]], [*gradient.weights, *gradient.biases], strict=True):
        assert_allclose(a, model.device.to_host(b), 1e-11, 1e-14)
    assert_array_equal(model.device.to_host(model.theta), theta)


def test_lbfgs_solves_least_squares():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((100, 6)), rng.standard_normal(100)
    model = mx.MLP([6, 1], output="identity", dtype="float64")
    result = lbfgs(model, LossAndGradient(model, X, y), tol=1e-9)
    least = np.linalg.lstsq(np.c_[X, np.ones(100)], y)[1][0] / 200  # half the mean of squares
    assert_allclose(result.fun, least, 1e-8)
    assert_allclose(model.evaluate(X, y)[0], least, 1e-8)
    assert result.losses == sorted(result.losses, reverse=True)
    assert len(result.losses) == result.nit


def test_scipys_blas_has_one_thread_while_it_steps():
    import scipy.linalg  # noqa: F401  loads it

    libraries = other_blas_libraries()
    if not libraries:
        pytest.skip("SciPy and NumPy share one BLAS")
    before, seen = [library.get() for library in libraries], []

    class Looked(LossAndGradient):
        def __call__(self, theta):
            seen.extend(library.get() for library in libraries)
            return super().__call__(theta)

    model = mx.MLP([2, 3, 2], dtype="float64")
    try:
        for library in libraries:
            library.set(2)
        lbfgs(model, Looked(model, *mx.datasets.xor()), max_iter=3)
        assert set(seen) == {1}
        assert {library.get() for library in libraries} == {2}
    finally:
        for library, threads in zip(libraries, before, strict=True):
            library.set(threads)


def test_compressed_rows_are_the_rows(rng):
    scipy_sparse = pytest.importorskip("scipy.sparse")
    X = rng.standard_normal((40, 130)) * (rng.random((40, 130)) < 0.1)
    rows = CsrRows(scipy_sparse.csr_array(X), "float64")
    device = mx.devices.get_device("strict")
    assert_array_equal(rows.block(3, 90), X[3:90])
    assert_array_equal(rows.take(np.array([5, 1, 5])), X[[5, 1, 5]])
    assert_array_equal(device.to_host(rows.to(device).block(0, 40)), X)
    with pytest.raises(ValueError, match="plan 'dense' is not available for rows in compressed form"):
        mx.epochs(mx.MLP([130, 2], dtype="float64"), rows, np.arange(40) % 2, plan="dense")


def test_the_hosts_engine_takes_weighted_rows_as_they_are_stored(rng):
    """Where an engine does not know of weights, the plan that it would have carried out is put aside."""
    X = np.tril(rng.integers(1, 255, (300, 40))[:, ::-1]).astype(np.uint8)
    model, y = mx.MLP([40, 6, 3], dtype="float64", seed=1), rng.integers(0, 3, 300)
    rows, weights = model.open(X), rng.random(300)
    targets = replace(model.targets(y, 300), weights=weights)
    plan = make_plan(rows, model.device, "ragged")
    setup = Setup(model, model.objective, mx.SGD(), rows, targets, None, plan, 1)
    losses, thetas = [], []
    for engine in (HostEngine(as_stored(setup)), ThreadEngine(setup)):
        engine.begin(model.theta, 1, 0.1, Done())
        losses.append(float(engine.advance(None).loss_sum))
        thetas.append(engine.theta())
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert_allclose(*thetas, rtol=1e-10, atol=1e-12)


def test_rows_in_compressed_form_are_written_where_they_are_asked_for(rng):
    X = scipy.sparse.random(20, 7, 0.4, "csr", random_state=0)
    out = np.full((3, 7), 9.0)
    CsrRows(X, "float64").take(np.array([4, 0, 4]), out=out)
    assert_array_equal(out, X.toarray()[[4, 0, 4]])


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_lbfgs_knows_whether_it_saw_pixels(dtype):
    X, y = np.arange(40).reshape(10, 4).astype(dtype), np.arange(10) % 2
    model = mx.MLP([4, 2])
    lbfgs(model, LossAndGradient(model, X, y), max_iter=1)
    assert model.pixels == (dtype == np.uint8)
