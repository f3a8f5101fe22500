"""The CUDA kernels through CuPy, against NumPy in float64, and the network of the headline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mlp_xp as mx
from mlp_xp.devices import CupyDevice, get_device
from mlp_xp.kernels import ACTIVATIONS, GenericKernels, kernels_for

from .comparisons import CASES, Backend, check_case, make_pass

pytestmark = pytest.mark.gpu

SMOOTH = ("sigmoid", "tanh", "identity")
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def backend(dtype: str, precision: str | None = None) -> Backend:
    device = get_device("cuda")
    return Backend(kernels_for(device, dtype, precision), device)


@pytest.fixture
def few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each block of a head go over many rows, as on a GPU that is small for its data."""
    chip = get_device("cuda").xp.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"]
    monkeypatch.setattr("mlp_xp.kernels.cuda.operations.chip", lambda xp, device: (2, chip))


# the headline network's layers, and odd ones; no rows
@pytest.mark.parametrize("shape", [(1, 1, 2), (150, 784, 196), (300, 196, 10), (77, 33, 515), (0, 3, 4)], ids=str)
@each_dtype
@pytest.mark.parametrize("name", CASES)
def test_operation_equals_numpys(name: str, dtype: str, shape: tuple[int, int, int], rng) -> None:
    check_case(backend(dtype), name, rng, shape)


# In float32 the ReLUs' kink has no place here: a Z within rounding of 0 may have the other slope.
@pytest.mark.parametrize("output", mx.OUTPUTS)
@pytest.mark.parametrize(
    ("activation", "dtype"), [(a, "float64") for a in ACTIVATIONS] + [(a, "float32") for a in SMOOTH]
)
def test_pass_equals_numpys(activation: str, dtype: str, output: str, rng, targets) -> None:
    make_pass(rng, [50, 36, 17, 10], activation, output, 200, targets).check(backend(dtype))


@pytest.mark.parametrize("rows", [100, 500])
@pytest.mark.parametrize("activation", SMOOTH)
def test_pass_of_the_headline_equals_numpys(activation: str, rows: int, few_blocks, rng, targets) -> None:
    """Tiles of 32 rows and of 64, and several of them for each block."""
    make_pass(rng, [784, 196, 10], activation, "softmax", rows, targets).check(backend("float32"))


@each_dtype
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_two_runs_have_the_same_bits(activation: str, dtype: str, few_blocks, rng, targets) -> None:
    problem = make_pass(rng, [64, 36, 10], activation, "softmax", 3000, targets)
    host = get_device("cuda").to_host
    first, second = ([host(x).tobytes() for x in problem.run(backend(dtype))] for _ in range(2))
    assert first == second


# Of the largest number, beside float64. TF32 and bfloat16 have errors of 2^-11 and 2^-8 in each factor.
@pytest.mark.parametrize(("precision", "error"), [("fp32", 3e-6), ("fp16x2", 3e-6), ("tf32", 2e-3), ("bf16", 1e-2)])
def test_precision_of_a_pass(precision: str, error: float, few_blocks, rng, targets) -> None:
    problem = make_pass(rng, [784, 196, 10], "sigmoid", "softmax", 500, targets)
    host = problem._replace(theta=problem.theta.astype(np.float32).astype(float))
    want = host.run(Backend(GenericKernels(np, "float64"), get_device("cpu")))[1]
    there = backend("float32", precision)
    got = there.device.to_host(problem.run(there)[1])
    assert got.dtype == np.float32
    assert np.abs(got - want).max() <= error * np.abs(want).max()


@pytest.fixture(scope="session")
def middles(mnist) -> tuple[Any, Any]:
    """Return 2000 digits of MNIST, of which the middle 8 x 8 pixels are left."""
    X, y = mnist[0].X[:2000], mnist[0].y[:2000]
    return X.reshape(-1, 28, 28)[:, 10:18, 10:18].reshape(-1, 64), y


@pytest.mark.parametrize("batch_size", [None, 500])
@pytest.mark.parametrize("optimizer", [mx.SGD(lr=0.5, momentum=0.9), mx.Adam(lr=0.01)], ids=str)
def test_training_on_digits_equals_numpys(optimizer: Any, batch_size: int | None, few_blocks, middles) -> None:
    X, y = middles
    arguments: dict[str, Any] = {"epochs": 6, "optimizer": optimizer, "batch_size": batch_size, "plan": "dense"}
    models = [mx.MLP([64, 36, 10], "sigmoid", seed=1, device=device) for device in ("cpu", "cuda")]
    numpys, cupys = (mx.fit(model, X, y, **arguments) for model in models)
    np.testing.assert_allclose(cupys.loss, numpys.loss, rtol=1e-5)
    assert cupys.loss[-1] < 0.95 * cupys.loss[0]
    want, got = (model.outputs(X) for model in models)
    assert np.mean(want.argmax(axis=1) == got.argmax(axis=1)) > 0.99
    assert models[0].score(X, y) == pytest.approx(models[1].score(X, y), abs=0.005)


@pytest.mark.parametrize("precision", ["fp32", "fp16x2"])
@pytest.mark.parametrize("plan", ["dense", "ragged"])
def test_the_headline_trains_as_numpy_does(plan: str, precision: str, few_blocks, mnist, monkeypatch) -> None:
    monkeypatch.setattr(CupyDevice, "block_rows", 64)
    X, y = (array[:200] for array in mnist[0])
    histories = [
        mx.fit(
            mx.MLP([784, 196, 10], "sigmoid", seed=1, device=device, precision=own),
            X, y, epochs=3, optimizer=mx.SGD(lr=0.5), plan=plan if own else "dense",
        )
        for device, own in (("cpu", None), ("cuda", precision))
    ]  # fmt: skip
    np.testing.assert_allclose(histories[1].loss, histories[0].loss, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-5), ("float64", 1e-12)])
def test_twenty_epochs_have_numpys_losses(dtype: str, close: float, mnist, pytestconfig) -> None:
    rows = 1500 if pytestconfig.getoption("emulated_cuda") else 60_000
    X, y = (array[:rows] for array in mnist[0])
    histories = [
        mx.fit(
            mx.MLP([784, 196, 10], "sigmoid", dtype=dtype, seed=1, device=device),
            X, y, epochs=20, optimizer=mx.SGD(lr=0.5), plan="dense",
        )
        for device in ("cpu", "cuda")
    ]  # fmt: skip
    np.testing.assert_allclose(histories[1].loss, histories[0].loss, rtol=close)
