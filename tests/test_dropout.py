"""Dropout: which units are dropped, what the pass makes of it, and that every engine drops the same ones."""

from __future__ import annotations

import itertools
from collections import UserList, deque
from contextlib import closing
from fractions import Fraction

import array_api_strict as xp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from numpy.testing import assert_allclose, assert_array_equal

import mlp_xp as mx
from mlp_xp.dropout import Dropout, _mixed, check_dropout
from mlp_xp.engines.compiled_program import program_of
from mlp_xp.estimators import MLPClassifier
from mlp_xp.kernels import GenericKernels
from mlp_xp.kernels.cpu.numpy_ import NumpyKernels
from mlp_xp.model import forward, grad_sum
from mlp_xp.runs import record
from mlp_xp.runs.checkpoint import Checkpoint

SIZES = (12, 40, 30, 3)
SIGMAS = 6  # one draw in 500 million is further off


def masks(rate, seed, epoch, samples, units=64, layer=1):
    """Return which units of a layer are kept (n, units)."""
    dropout = Dropout((0.0, *[rate] * layer, 0.0), (1, *[units] * layer, 1), seed)
    return dropout.of_rows(dropout.keys(epoch), samples, "float64")[layer] != 0


def correlation(a, b):
    return np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1]


# ------------------------------------------------------------------------------------------------ which are dropped


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.8, 0.999])
def test_the_share_that_is_dropped_is_the_rate(rate, rng):
    seed, epoch, first = (int(rng.integers(2**40)) for _ in range(3))
    kept = masks(rate, seed, epoch, range(first, first + 2000), 200)
    sigma = (rate * (1 - rate) / kept.size) ** 0.5
    assert abs(1 - rate - kept.mean()) < SIGMAS * sigma
    by_unit, by_row = kept.mean(axis=0), kept.mean(axis=1)
    for means, count in ((by_unit, 2000), (by_row, 200)):  # binomial: they scatter, and no more than that
        wanted = rate * (1 - rate) / count
        assert abs(means.var() / wanted - 1) < SIGMAS * ((2 + 1 / (rate * (1 - rate) * count)) / len(means)) ** 0.5


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_neighbors_are_dropped_independently(rate, rng):
    seed, epoch, first = (int(rng.integers(2**31)) for _ in range(3))
    rows = range(first, first + 3000)
    kept = masks(rate, seed, epoch, rows)
    others = {
        "units": (kept[:, :-1], kept[:, 1:]),
        "every other unit": (kept[:, :-2], kept[:, 2:]),
        "rows": (kept[:-1], kept[1:]),
        "rows and units": (kept[:-1, :-1], kept[1:, 1:]),
        "rows a power of two apart": (kept[:-1024], kept[1024:]),
        "rows 2^32 apart": (kept, masks(rate, seed, epoch, range(first + 2**32, first + 2**32 + 3000))),
        "epochs": (kept, masks(rate, seed, epoch + 1, rows)),
        "seeds": (kept, masks(rate, seed + 1, epoch, rows)),
        "layers": (kept, masks(rate, seed, epoch, rows, layer=2)),
        "epochs of other rows": (kept[1:], masks(rate, seed, epoch + 1, rows)[:-1]),
        "seeds and epochs": (kept, masks(rate, epoch, seed, rows)),
    }
    for name, (a, b) in others.items():
        assert abs(correlation(a, b)) < SIGMAS / a.size**0.5, name


def test_no_two_rows_leave_out_the_same_units(rng):
    kept = masks(0.5, int(rng.integers(2**31)), 1, range(4000), 128)
    assert len(np.unique(np.packbits(kept, axis=1), axis=0)) == 4000


def test_a_mask_depends_on_the_number_of_the_sample_alone(rng):
    dropout = Dropout((0.0, 0.5, 0.3, 0.0), (2, 33, 7, 2), 5)
    keys = dropout.keys(3)
    numbers = np.concatenate([rng.integers(0, 2**63, 50), [0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1]])
    whole = dropout.of_rows(keys, numbers, "float32")
    order = rng.permutation(len(numbers))
    for part in np.array_split(order, 5):
        got = dropout.of_rows(keys, numbers[part].astype(np.uint64), "float32")
        for layer in (1, 2):
            assert_array_equal(got[layer], whole[layer][part])
    assert whole[0] is whole[3] is None
    small = [
        dropout.of_rows(keys, each, "float32")[1] for each in (range(9), np.arange(9, dtype=np.int32), np.arange(9))
    ]
    assert_array_equal(small[0], small[1])
    assert_array_equal(small[0], small[2])
    longer = Dropout((0.0, 0.5, 0.3, 0.0), (2, 50, 7, 2), 5)  # more units change nothing of the others
    assert_array_equal(longer.of_rows(keys, numbers, "float32")[1][:, :33], whole[1])


def test_masks_are_those_of_all_versions():
    """Runs go on bit for bit: whoever changes the hash breaks the runs that people have."""
    assert _mixed(np.array([0, 1, 2**32 - 1], np.uint32)).tolist() == [0, 0x514E28B7, 0x81F16F39]  # Appleby's
    dropout = Dropout((0.0, 0.5, 0.0), (1, 16, 1), 7)
    kept = dropout.of_rows(dropout.keys(2), np.array([0, 1, 2**40]), "float64")[1] > 0
    assert np.packbits(kept, axis=1).tolist() == [[1, 100], [97, 252], [205, 141]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rate", [0.0, 1e-12, 1 / 3, 0.5, 0.9, 1 - 1e-9, np.nextafter(1, 0)])
def test_what_stays_is_divided_by_its_share(rate, dtype):
    dropout = Dropout((0.0, rate, 0.0), (1, 3000, 1), 1)
    (D,) = (D for D in dropout.of_rows(dropout.keys(1), range(10), dtype) if D is not None) if rate else [None]
    if D is not None:
        assert D.dtype == dtype
        assert set(np.unique(D)) <= {0, np.dtype(dtype).type(1 / (1 - rate))}


@pytest.mark.parametrize("bad", [
    1, 1.0, -0.1, float("nan"), 10**400, Fraction(10**20 - 1, 10**20), "0.5", None, True, [0.1, 1.0], [0.5, "a"], {0.5},
    0.5j, np.zeros((2, 1)),
])  # fmt: skip
def test_a_rate_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="dropout must be a rate from 0 up to, but not including, 1"):
        check_dropout(bad, 2)
    with pytest.raises(ValueError, match="dropout must be a rate"):
        mx.fit(mx.MLP([2, 3, 3, 2]), np.zeros((4, 2)), np.zeros(4, int), dropout=bad)


def test_there_are_as_many_rates_as_hidden_layers():
    assert check_dropout(0.5, 3) == check_dropout((0.5,) * 3, 3) == check_dropout(np.full(3, 0.5), 3) == (0.5,) * 3
    assert check_dropout(0.0, 0) == check_dropout([], 0) == ()
    for rates in ([], [0.1], [0.1] * 3):
        with pytest.raises(ValueError, match=f"got {len(rates)} rates of dropout for 2 hidden layers; give one rate"):
            check_dropout(rates, 2)


@pytest.mark.parametrize("one", [
    0.5, np.float32(0.5), np.array(0.5), Fraction(1, 2), xp.asarray(0.5),
    pytest.param("torch", marks=pytest.mark.needs("torch")),
], ids=repr)  # fmt: skip
def test_an_array_without_dimensions_is_a_number(one):
    if isinstance(one, str):
        import torch

        one = torch.tensor(0.5)
    assert check_dropout(one, 3) == check_dropout([one] * 3, 3) == (0.5,) * 3


@pytest.mark.parametrize("make", [list, tuple, np.array, np.float32, pd.Series, xp.asarray, deque, UserList])
def test_rates_may_be_in_any_array_of_one_dimension(make):
    rates = check_dropout(make([0.5, 0.25]), 2)
    assert rates == (0.5, 0.25)
    assert {type(rate) for rate in rates} == {float}


@pytest.mark.parametrize("bad", [
    np.full((40, 3), 0.25), np.array(1.0), np.array("0.5"), np.array([True, False]),
    np.ma.array([0.5, 0.5], mask=[0, 1]), np.array([0.5, None]),
    pd.Series([0.5, 2.0]), pd.DataFrame({"a": [0.5, 0.25]}), [np.zeros(2), 0.5], {0: 0.5},
])  # fmt: skip
def test_other_arrays_are_refused_in_one_line(bad):
    with pytest.raises(ValueError, match=r"^dropout ") as caught:
        check_dropout(bad, 2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", [0.5, [0.5], np.array(1e-300)])
def test_a_network_without_hidden_layers_has_none(rate):
    with pytest.raises(ValueError, match=r"there is no hidden layer, got .*; leave it at 0, or give the network"):
        mx.fit(mx.MLP([2, 2]), np.zeros((4, 2)), np.zeros(4, int), dropout=rate)
    with pytest.raises(ValueError, match="there is no hidden layer"):
        MLPClassifier((), dropout=rate).fit(np.zeros((4, 2)), np.arange(4) % 2)
    for none in (0.0, np.array(0), ()):
        mx.fit(mx.MLP([2, 2]), np.zeros((4, 2)), np.zeros(4, int), epochs=1, dropout=none)
        MLPClassifier((), dropout=none, tol=9, n_iter_no_change=1).fit(np.zeros((4, 2)), np.arange(4) % 2)


def test_lbfgs_has_none():
    model, X, y = mx.MLP([2, 3, 2]), np.ones((4, 2)), np.arange(4) % 2
    for train in (mx.fit, mx.epochs):
        with pytest.raises(ValueError, match=r"got dropout 0.5; leave it out, or train with SGD\(...\) or Adam\(...\)"):
            train(model, X, y, optimizer=mx.LBFGS(), dropout=0.5)
    mx.fit(model, X, y, optimizer=mx.LBFGS(), dropout=0.0, epochs=1)


# ---------------------------------------------------------------------------------------------------------- the pass


def thinned_loss(model, kernels, X, y, D):
    zeros = model.layout.split(np.zeros(model.layout.size))
    y = model.targets(y, len(X)).y
    loss, _ = grad_sum(model.network, kernels, model.layout.split(model.theta), X, y, zeros, D=D)
    return float(loss), model.layout.join(zeros)


@pytest.mark.parametrize(
    "kernels", [GenericKernels(np, "float64"), NumpyKernels("float64", 1)], ids=["generic", "numpy"]
)
@pytest.mark.parametrize("output", mx.OUTPUTS)
@pytest.mark.parametrize("activation", mx.ACTIVATIONS)
def test_gradients_are_those_of_the_thinned_network(activation, output, kernels, rng, targets):
    model = mx.MLP([4, 7, 6, 3], activation, output, dtype="float64", seed=int(rng.integers(1000)))
    model.biases = [rng.standard_normal(b.shape) for b in model.biases]
    X, y = rng.standard_normal((9, 4)), targets(output, 9, 3)
    dropout = Dropout((0.0, 0.5, 0.3, 0.0), model.sizes, int(rng.integers(1000)))
    D = dropout.of_rows(dropout.keys(1), range(9), "float64")
    _, gradient = thinned_loss(model, kernels, X.copy(), y, D)
    theta, step = model.theta.copy(), 1e-6
    # Kinks: where two steps of different length disagree, one of them is beside a kink.
    slopes = []
    for width in (step, step / 2):
        slopes.append(np.empty(len(theta)))
        for i in range(len(theta)):
            sides = []
            for sign in (1, -1):
                model.theta = theta.copy()
                model.theta[i] += sign * width
                sides.append(thinned_loss(model, kernels, X.copy(), y, D)[0])
            slopes[-1][i] = (sides[0] - sides[1]) / (2 * width)
    smooth = np.abs(slopes[0] - slopes[1]) < 1e-6 * (1 + np.abs(slopes[0]))
    assert smooth.mean() > 0.8
    assert_allclose(gradient[smooth], slopes[1][smooth], rtol=1e-5, atol=1e-6)


def test_a_dropped_unit_is_not_there(rng):
    """A row's loss and gradient are those of the network without the unit, whose others count more."""
    model = mx.MLP([5, 4, 2], "tanh", dtype="float64", seed=1)
    X, y = rng.standard_normal((1, 5)), np.array([1])
    D = [None, np.array([[2.0, 0.0, 2.0, 0.0]]), None]
    small = mx.MLP([5, 2, 2], "tanh", dtype="float64")
    small.weights = [model.weights[0][::2], 2 * model.weights[1][:, ::2]]
    small.biases = [model.biases[0][::2], model.biases[1]]
    loss, gradient = thinned_loss(model, GenericKernels(np, "float64"), X, y, D)
    wanted, slopes = small.loss_and_gradient(X, y)
    assert_allclose(loss, wanted, rtol=1e-13)
    got = model.layout.split(gradient)
    assert_allclose(got.W[1][::2], slopes.weights[0], rtol=1e-12, atol=1e-14)
    assert_allclose(got.W[2][:, ::2], 2 * slopes.weights[1], rtol=1e-12, atol=1e-14)
    assert not got.W[1][1::2].any()
    assert not got.b[1][1::2].any()
    assert not got.W[2][:, 1::2].any()


def test_what_is_left_is_on_average_all(rng):
    model = mx.MLP(SIZES, "sigmoid", dtype="float64")
    X, k = rng.standard_normal((5, 12)), GenericKernels(np, "float64")
    dropout = Dropout((0.0, 0.4, 0.7, 0.0), SIZES, int(rng.integers(1000)))
    draws = 3000
    total = 0.0
    for epoch in range(draws):
        A, H = forward(
            model.network,
            k,
            model.layout.split(model.theta),
            X,
            dropout.of_rows(dropout.keys(epoch), range(5), "float64"),
        )
        assert H[0] is A[0]
        assert H[3] is A[3]
        total = total + H[1]
    sigma = A[1] * (0.4 / 0.6 / draws) ** 0.5
    assert (np.abs(total / draws - A[1]) < SIGMAS * sigma).all()


@pytest.mark.parametrize(
    "kernels", [GenericKernels(np, "float64"), NumpyKernels("float64", 1)], ids=["generic", "numpy"]
)
def test_the_operation_leaves_its_arguments(kernels, rng):
    kernels.features(np.zeros((3, 2)))
    A, D = rng.standard_normal((3, 4)), rng.integers(0, 2, (3, 4)) * 2.0
    A0, D0 = A.copy(), D.copy()
    assert_array_equal(kernels.dropout(A, D), A0 * D0)
    assert_array_equal(A, A0)
    assert_array_equal(D, D0)
    assert kernels.dropout(A, None) is A


# ------------------------------------------------------------------------------------------------------- the engines


def problem(rng, n=300, d=SIZES[0], dtype="float64"):
    X = (rng.standard_normal((n, d)) * (rng.random((n, d)) < 0.4)).astype(dtype)
    return X, rng.integers(0, SIZES[-1], n)


def trained(X, y, dropout=(0.5, 0.2), *, device="cpu", dtype="float64", epochs=3, seed=3, **settings):
    """Return losses and parameters."""
    model = mx.MLP(SIZES, "tanh", seed=seed, dtype=dtype, device=device)
    settings = {"optimizer": mx.Adam(lr=0.01, epsilon=1e-3), **settings}
    losses = [float(state.loss) for state in mx.epochs(model, X, y, epochs=epochs, dropout=dropout, **settings)]
    return np.array([*losses, *model.device.to_host(model.theta)])


BATCHES = pytest.mark.parametrize("batch_size", [None, 64, 7])
DEVICES = [
    "strict",
    pytest.param("torch", marks=pytest.mark.needs("torch")),
    pytest.param("jax", marks=pytest.mark.needs("jax")),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


@pytest.mark.parametrize("batch_size", [None, 64, 17])
@pytest.mark.parametrize("device", DEVICES)
def test_every_device_drops_the_same_units(device, batch_size, rng):
    X, y = problem(rng, 80)
    weights = rng.uniform(0.5, 2, len(X)) if rng.random() < 0.3 else None
    how = {"batch_size": batch_size, "weights": weights}
    assert_allclose(trained(X, y, device=device, **how), trained(X, y, **how), rtol=1e-8, atol=1e-10)


@BATCHES
def test_every_plan_drops_the_same_units(batch_size, cpu_engine, rng):
    X, y = problem(rng, 2500 if batch_size is None else 300)  # shards of 512 rows, of 1024, of more
    want = trained(X, y, device="strict", batch_size=batch_size)
    for plan in ["dense", "sparse"] if cpu_engine == "compiled" else ["dense", "zero", "ragged"]:
        got = trained(X, y, batch_size=batch_size, plan=plan)
        assert_allclose(got, want, rtol=1e-8, atol=1e-10, err_msg=plan)


@BATCHES
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_change_no_bit(dtype, batch_size, cpu_engine, rng):
    X, y = problem(rng, 2500 if batch_size is None else 600, dtype=dtype)
    plans = ["dense", "sparse"] if cpu_engine == "compiled" else ["dense", "ragged"]
    for plan in plans:
        runs = [trained(X, y, dtype=dtype, batch_size=batch_size, plan=plan, threads=threads) for threads in (1, 2, 3)]
        assert_array_equal(runs[1], runs[0])
        assert_array_equal(runs[2], runs[0])


class Blocks:
    """Rows by slices."""

    def __init__(self, X):
        self.X, self.shape, self.dtype = X, X.shape, X.dtype

    def __getitem__(self, rows):
        return self.X[rows]


def test_rows_in_a_file_have_the_bits_of_rows_in_memory(cpu_engine, rng, tmp_path):
    X, y = problem(rng, 2500)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    for batch_size in (None, 64):
        want = trained(X, y, batch_size=batch_size, plan="dense")
        assert_array_equal(trained(mapped, y, batch_size=batch_size, plan="dense"), want)
    assert_array_equal(trained(Blocks(X), y, plan="dense"), trained(X, y, plan="dense"))
    assert_allclose(  # in the same order of their own
        trained(Blocks(X), y, batch_size=64, plan="dense"),
        trained(Blocks(X), y, batch_size=64, device="strict"), rtol=1e-8, atol=1e-10,
    )  # fmt: skip


def test_rows_of_an_estimator_in_compressed_form_drop_the_same_units(cpu_engine, rng):
    X, y = problem(rng)
    fits = [
        MLPClassifier((20, 8), dropout=(0.5, 0.1), max_iter=30, random_state=1, tol=10.0).fit(data, y)
        for data in (X, scipy.sparse.csr_array(X))
    ]
    assert_allclose(fits[1].loss_curve_, fits[0].loss_curve_, rtol=1e-9)


@pytest.mark.usefixtures("single_updates")
@BATCHES
@pytest.mark.parametrize("device", ["cpu", "strict"])
def test_a_run_goes_on_in_the_middle_of_an_epoch(device, batch_size, cpu_engine, rng):
    X, y = problem(rng)
    settings = {"batch_size": batch_size, "optimizer": mx.Adam(lr=0.01), "dropout": 0.5, "plan": "dense"}

    def network():
        return mx.MLP(SIZES, dtype="float64", seed=2, device=device)

    whole = network()
    for _ in mx.epochs(whole, X, y, epochs=3, **settings):
        pass
    model, snapshots = network(), []
    with closing(mx.epochs(model, X, y, epochs=3, pause=lambda: True, **settings)) as states:
        snapshots = [state.snapshot() for state in states]
    host = model.device.to_host
    assert_array_equal(host(model.theta), host(whole.theta))
    for snapshot in (snapshots[len(snapshots) // 2], snapshots[len(snapshots) // 3 + 1]):
        again = network()
        for _ in mx.epochs(again, X, y, epochs=3, start=snapshot, **settings):
            pass
        assert_array_equal(host(again.theta), host(whole.theta))


@BATCHES
@pytest.mark.parametrize("device", ["cpu", "strict"])
@pytest.mark.parametrize("none", [0, 0.0, (0.0, 0.0), [0, 0]])
def test_a_rate_of_zero_is_no_dropout(none, device, batch_size, cpu_engine, rng):
    X, y = problem(rng)
    settings = {"device": device, "batch_size": batch_size}
    model = mx.MLP(SIZES, "tanh", seed=3, dtype="float64", device=device)
    optimizer = mx.Adam(lr=0.01, epsilon=1e-3)
    losses = []
    for state in mx.epochs(model, X, y, epochs=3, batch_size=batch_size, optimizer=optimizer):
        losses.append(float(state.loss))
        assert state.engine.__dict__.get("_dropout_keys") is None
    assert_array_equal(trained(X, y, none, **settings), [*losses, *model.device.to_host(model.theta)])


def test_where_nothing_is_dropped_nothing_is_done():
    objective, g = mx.MLP(SIZES).objective, ("", "tanh", "tanh", "identity")
    plain = program_of(SIZES, g, objective)
    assert plain == program_of(SIZES, g, objective, (0.0,) * 4)
    assert "dropout" not in {instruction.operation for instruction in plain.instructions}
    one = program_of(SIZES, g, objective, (0.0, 0.5, 0.0, 0.0))
    assert [i.layer for i in one.instructions if i.operation == "dropout"] == [1, 1]
    assert len(one.columns) == len(plain.columns) + 2


def test_a_layer_of_rate_zero_stays_whole(cpu_engine, rng):
    X, y = problem(rng)
    model = mx.MLP(SIZES, "tanh", dtype="float64", seed=1)
    state = next(mx.epochs(model, X[:1], y[:1], dropout=(0.0, 0.9), optimizer=mx.SGD(lr=0.1)))
    W2 = model.layout.split(state.gradient).W[2]
    W3 = model.layout.split(state.gradient).W[3]
    dropped = ~W3.any(axis=0)  # units of layer 2
    assert dropped.mean() > 0.5
    assert not W2[dropped].any()
    assert W2[~dropped].all()  # by every unit of layer 1


@BATCHES
def test_the_seed_and_the_epoch_decide(batch_size, cpu_engine, rng):
    """At all but the same parameters, losses differ from epoch to epoch and from seed to seed, and come again."""
    X, y = problem(rng)
    theta = mx.MLP(SIZES, "tanh", dtype="float64").theta

    def losses(seed):
        model = mx.MLP(SIZES, "tanh", dtype="float64", seed=seed)
        model.theta = theta.copy()
        settings = {"batch_size": batch_size, "optimizer": mx.SGD(lr=1e-12), "dropout": 0.5}
        return [float(state.loss) for state in mx.epochs(model, X, y, epochs=4, **settings)]

    assert losses(1) == losses(1)
    assert len({round(loss, 6) for loss in losses(1) + losses(2)}) == 8


@pytest.mark.parametrize("device", ["cpu", "strict", pytest.param("torch", marks=pytest.mark.needs("torch"))])
def test_losses_of_others_are_those_of_the_whole_network(device, cpu_engine, rng):
    """Validation, evaluation and the engine's sum over all rows."""
    X, y = problem(rng)
    model = mx.MLP(SIZES, "tanh", dtype="float64", device=device)
    history = mx.fit(model, X, y, epochs=2, batch_size=50, dropout=0.5, validation=(X, y), optimizer=mx.Adam())
    assert history.val_loss[-1] == model.evaluate(X, y)[0]
    states = mx.epochs(model, X, y, batch_size=50, dropout=0.5, optimizer=mx.SGD(lr=1e-9))
    for state in itertools.islice(states, 2):
        total = state.engine.grad_sum(model.theta)
        assert_allclose(float(total.loss) / len(X), model.evaluate(X, y)[0], rtol=1e-9)
    again = next(states)  # asking changed nothing of the masks
    assert abs(float(again.loss) - model.evaluate(X, y)[0]) > 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-5), ("fp16x2", 1e-5), ("tf32", 1e-2), ("bf16", 5e-2)])
def test_every_precision_drops_the_same_units(precision, error, rng, caplog):
    caplog.set_level("INFO", "mlp_xp")
    X, y = rng.integers(0, 256, (90, SIZES[0])).astype(np.uint8), rng.integers(0, SIZES[-1], 90)
    thetas = []
    for where in ({"device": "cpu"}, {"device": "cuda", "precision": precision}):
        model = mx.MLP(SIZES, "tanh", seed=3, **where)
        mx.fit(model, X, y, epochs=2, batch_size=32, dropout=(0.5, 0.2), optimizer=mx.SGD(lr=0.2))
        thetas.append(model.device.to_host(model.theta))
    assert_allclose(thetas[1], thetas[0], rtol=error, atol=error)
    assert "the GPU computes operation by operation, not in graphs: units are dropped" in caplog.messages


@pytest.mark.needs("jax")
def test_the_log_says_why_jax_does_not_compile(caplog):
    caplog.set_level("INFO", "mlp_xp")
    model = mx.MLP([2, 3, 2], device="jax")
    next(mx.epochs(model, np.ones((4, 2)), np.zeros(4, int), dropout=0.5))
    assert "JAX computes operation by operation, not compiled: units are dropped" in caplog.messages


# ------------------------------------------------------------------------------------------------- runs and their files


def test_a_run_goes_on_with_its_own_dropout_only(tmp_path, rng):
    X, y = problem(rng)

    def run(epochs, dropout, resume):
        model = mx.MLP(SIZES, dtype="float64")
        checkpoint = Checkpoint(tmp_path / "run", every=1, resume=resume)
        history = mx.fit(model, X, y, epochs=epochs, batch_size=50, dropout=dropout, checkpoint=checkpoint)
        return history.loss, model.theta

    whole = mx.MLP(SIZES, dtype="float64")
    wanted = mx.fit(whole, X, y, epochs=4, batch_size=50, dropout=(0.5, 0.5)).loss
    run(2, 0.5, resume=False)
    for other in (0.0, 0.25, (0.5, 0.0)):
        with pytest.raises(ValueError, match=r"dropout: \[0.5, 0.5\], now"):
            run(4, other, resume=True)
    losses, theta = run(4, [0.5, 0.5], resume=True)
    assert_array_equal(losses, wanted)
    assert_array_equal(theta, whole.theta)


def test_a_run_from_before_there_was_dropout_has_none(tmp_path, rng):
    X, y = problem(rng)

    def run(dropout, resume):
        checkpoint = Checkpoint(tmp_path / "run", every=1, resume=resume)
        mx.fit(mx.MLP(SIZES), X, y, epochs=2 + resume, dropout=dropout, checkpoint=checkpoint)

    run(0.0, resume=False)
    path = tmp_path / "run" / record.FILE
    saved = record.read(path)
    del saved.settings["dropout"]
    record.write(path, saved)
    with pytest.raises(ValueError, match=r"dropout: 0.0, now \[0.5, 0.5\]"):
        run(0.5, resume=True)
    run(0.0, resume=True)


def test_a_wide_network_of_few_samples_generalizes_better(mnist):
    train, test = mnist
    accuracies = []
    for dropout in (0.0, 0.5):
        models = [mx.MLP([784, 512, 512, 10], seed=seed) for seed in (0, 1)]
        for model in models:
            settings = {"epochs": 40, "batch_size": 50, "optimizer": mx.Adam(lr=0.001), "dropout": dropout}
            mx.fit(model, train.X[:500], train.y[:500], **settings)
        accuracies.append(np.mean([model.score(test.X, test.y) for model in models]))
    assert accuracies[1] > accuracies[0] + 0.002, accuracies  # 0.8717 and 0.8621
