"""PyTorch's operations in place compute what the generic ones say, and its engine trains as the plain one does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import mlp_xp as mx
from mlp_xp.kernels import GenericKernels, kernels_for
from mlp_xp.optim import Optimizer
from tests.libraries import Later

pytestmark = pytest.mark.needs("torch")

torch = Later("torch")
OPTIMIZERS = {
    "sgd": mx.SGD(lr=0.1),
    "l2": mx.SGD(lr=0.1, l2=0.01),
    "rates": mx.SGD(lr=0.1, momentum=0.5, lr_bias=0.03),
    "momentum": mx.SGD(lr=mx.StepDecay(0.1, every=1), momentum=0.9),
    "nesterov": mx.SGD(lr=0.1, momentum=0.9, nesterov=True),
    "adam": mx.Adam(lr=0.02, beta1=0.8, beta2=0.95, epsilon=1e-6),
    "adam rates": mx.Adam(lr=0.02, l2=0.01, lr_bias=0.01),
    "adamw": mx.AdamW(lr=mx.CosineDecay(0.01, epochs=4), weight_decay=0.1),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Products of this size gain nothing from more, and wait for each other on a machine that is not idle."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pair():
    device = mx.devices.get_device("torch")
    return GenericKernels(np, "float64"), kernels_for(device, "float64")


def there(x):
    return torch.from_numpy(np.array(x))


def assert_close(got, wanted):
    assert got.dtype == torch.float64
    size = np.abs(wanted[np.isfinite(wanted)]).max(initial=1)
    assert_allclose(got.numpy(), wanted, rtol=1e-12, atol=1e-12 * size)


@pytest.mark.parametrize(("n", "d", "h"), [(1, 1, 2), (7, 1, 2), (5, 3, 4), (63, 17, 129)])
def test_products(n, d, h, rng):
    generic, fast = pair()
    blocks = [rng.standard_normal((1 + d, h)) for _ in range(2)]
    (W, b), (into, into_b) = ((block[1:].T, block[0]) for block in blocks)
    (W_there, b_there), (dW, db) = ((block[1:, :].T, block[0, :]) for block in map(there, blocks))
    A, dZ = rng.standard_normal((n, d)), rng.standard_normal((n, h))
    A_there, dZ_there = there(A), there(dZ)
    assert_close(fast.affine(A_there, W_there, b_there), generic.affine(A, W, b))
    assert_close(fast.input_gradient(dZ_there, W_there), generic.input_gradient(dZ, W))
    assert fast.weight_gradient(dZ_there, A_there, dW) is dW
    assert fast.bias_gradient(dZ_there, db) is db
    assert_close(dW, generic.weight_gradient(dZ, A, into))
    assert_close(db, generic.bias_gradient(dZ, into_b))
    for tensor, array in ((A_there, A), (dZ_there, dZ), (W_there, W), (b_there, b)):
        assert_array_equal(tensor.numpy(), array)


@pytest.mark.parametrize("name", mx.ACTIVATIONS)
def test_activations(name, rng):
    generic, fast = pair()
    Z = 3 * rng.standard_normal((33, 17))
    Z[0, :10] = [0.0, -0.0, 1e-310, -1e-310, 1e4, -1e4, 40.0, -40.0, np.inf, -np.inf]
    with np.errstate(invalid="ignore"):
        dA, A = rng.standard_normal(Z.shape), generic.activate(name, Z)
        wanted = generic.activation_gradient(name, dA, A)
    got = fast.activate(name, there(Z))
    assert_close(got, A)
    assert_close(fast.activation_gradient(name, there(dA), got), wanted)


@pytest.mark.parametrize(("n", "k"), [(1, 2), (7, 3), (600, 10)])
def test_losses(n, k, rng, targets):
    generic, fast = pair()
    A = 5 * rng.standard_normal((n, k))
    A[0] = [-1e4, *[1e4] * (k - 1)]
    for name, output in mx.OUTPUTS.items():
        y = targets(name, n, k).astype("i4" if output.task == "classes" else "f8")
        losses, dA = fast.loss(output.loss, there(A), there(y))
        wanted, wanted_dA = generic.loss(output.loss, A, y)
        assert_close(losses, wanted)
        assert_close(dA, wanted_dA)
        assert_close(fast.sum(losses), np.asarray(generic.sum(wanted)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("batch_size", [None, 64])
def test_it_trains_as_the_plain_engine_does(batch_size, optimizer, monkeypatch, rng):
    monkeypatch.setattr("mlp_xp.engines.torch_._CPU_SHARD", 64)
    X, y = rng.integers(0, 256, (150, 6), dtype=np.uint8), rng.integers(0, 3, 150)
    runs = []
    for device in ("torch", "strict"):
        model = mx.MLP([6, 9, 5, 3], ("tanh", "relu"), dtype="float64", device=device)
        states = mx.epochs(model, X, y, epochs=3, batch_size=batch_size, optimizer=OPTIMIZERS[optimizer])
        losses = [float(state.loss_sum) for state in states]
        host, state = model.device.to_host, next(
            mx.epochs(model, X, y, epochs=1, batch_size=batch_size, optimizer=OPTIMIZERS[optimizer])
        )  # fmt: skip
        arrays = [value if isinstance(value, int) else host(value) for value in state.optimizer_state.values()]
        runs.append([host(model.theta), losses, host(state.gradient), *arrays])
        assert type(state.engine).__name__ == ("TorchEngine" if device == "torch" else "HostEngine")
    for got, wanted in zip(*runs, strict=True):
        assert_allclose(got, wanted, rtol=1e-10, atol=1e-13)


@dataclass(frozen=True)
class Fresh(Optimizer):
    """An optimizer of the user's, which returns new arrays."""

    def init(self, theta):
        return {"last": theta * 0}

    def update(self, theta, grad, state, rate):
        step = grad + 0.5 * state["last"]
        return theta - rate * step, {"last": step}


@pytest.mark.parametrize("batch_size", [None, 20])
def test_an_optimizer_that_returns_new_arrays(batch_size, rng):
    X, y = rng.random((50, 6)), rng.integers(0, 3, 50)
    thetas = []
    for device in ("torch", "strict"):
        model = mx.MLP([6, 4, 3], dtype="float64", device=device)
        mx.fit(model, X, y, epochs=3, batch_size=batch_size, optimizer=Fresh(lr=0.1))
        thetas.append(model.device.to_host(model.theta))
    assert_allclose(thetas[0], thetas[1], rtol=1e-12, atol=1e-14)


def test_what_was_handed_out_stays(rng):
    X, y = rng.random((50, 6)), rng.integers(0, 3, 50)
    model, kept = mx.MLP([6, 4, 3], device="torch"), []
    kept.append((model.theta, model.theta.clone()))
    for _ in mx.epochs(model, X, y, batch_size=20, epochs=3, optimizer=mx.Adam()):
        kept.append((model.theta, model.theta.clone()))
    for theta, then in kept:
        assert torch.equal(theta, then)
    assert not torch.equal(kept[0][0], kept[-1][0])


def test_updates_take_no_memory_for_vectors(rng, monkeypatch):
    """Neither parameters nor a gradient are cut, joined or copied but at an epoch's ends."""
    X, y = rng.random((200, 6)), rng.integers(0, 3, 200)
    calls = []
    layout = type(mx.MLP([6, 4, 3]).layout)
    split, join = layout.split, layout.join
    monkeypatch.setattr(layout, "split", lambda self, *given: calls.append("split") or split(self, *given))
    monkeypatch.setattr(layout, "join", lambda self, *given: calls.append("join") or join(self, *given))
    counts = []
    for batch_size in (100, 2):
        model = mx.MLP([6, 4, 3], device="torch")
        calls.clear()
        for _ in mx.epochs(model, X, y, batch_size=batch_size, epochs=2, optimizer=mx.Adam()):
            pass
        counts.append(len(calls))
    assert counts[0] == counts[1]


def test_trainings_on_threads_at_once(rng):
    X, y = rng.random((300, 6)), rng.integers(0, 3, 300)

    def train(seed):
        torch.set_num_threads(1)  # each thread has a number of its own
        model = mx.MLP([6, 4, 3], device="torch", seed=seed)
        mx.fit(model, X, y, epochs=3, batch_size=20, optimizer=mx.Adam(), validation=(X, y))
        return model.theta

    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(train, range(4)))
    for seed, theta in enumerate(at_once):
        assert torch.equal(theta, train(seed))
