"""The CUDA kernels on a GPU, through CuPy, against NumPy in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import mlp_xp as mx
from mlp_xp.devices import PRECISIONS, CupyDevice, get_device
from mlp_xp.kernels import ACTIVATIONS, GenericKernels, kernels_for

from ..test_recipes import follow_recipes
from .comparisons import CASES, Backend, check_case, make_pass

pytestmark = pytest.mark.gpu

SMOOTH = ("sigmoid", "tanh", "identity")
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def backend(dtype: str) -> Backend:
    device = get_device("cuda")
    return Backend(kernels_for(device, dtype), device)


# the headline network's layers, and odd ones; no rows
@pytest.mark.parametrize("shape", [(1, 1, 2), (5000, 784, 196), (5000, 196, 10), (777, 33, 515), (0, 3, 4)], ids=str)
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
    make_pass(rng, [784, 196, 33, 10], activation, output, 3000, targets).check(backend(dtype))


@each_dtype
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_two_runs_have_the_same_bits(activation: str, dtype: str, rng, targets) -> None:
    problem = make_pass(rng, [784, 196, 10], activation, "softmax", 60_000, targets)
    host = get_device("cuda").to_host
    first, second = ([host(x).tobytes() for x in problem.run(backend(dtype))] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("batch_size", [None, 500])
@pytest.mark.parametrize("optimizer", [mx.SGD(lr=0.5, momentum=0.9), mx.Adam(lr=0.001)], ids=str)
def test_training_on_mnist_equals_numpys(optimizer: mx.SGD | mx.Adam, batch_size: int | None, mnist) -> None:
    X, y = (array[:5000] for array in mnist[0])
    arguments: dict[str, Any] = {"epochs": 5, "optimizer": optimizer, "batch_size": batch_size, "plan": "dense"}
    models = [mx.MLP([784, 196, 10], seed=1, device=device) for device in ("cpu", "cuda")]
    numpys, cupys = (mx.fit(model, X, y, **arguments) for model in models)
    np.testing.assert_allclose(cupys.loss, numpys.loss, rtol=1e-3)
    assert cupys.loss[-1] < 0.9 * cupys.loss[0]
    want, got = (model.outputs(X) for model in models)
    assert np.mean(want.argmax(axis=1) == got.argmax(axis=1)) > 0.99
    assert models[0].score(X, y) == pytest.approx(models[1].score(X, y), abs=0.005)


# Of the largest number, beside float64. TF32 and bfloat16 have errors of 2^-11 and 2^-8 in each factor.
@pytest.mark.parametrize(("precision", "error"), [("fp32", 3e-6), ("fp16x2", 3e-6), ("tf32", 2e-3), ("bf16", 1e-2)])
def test_precision_of_a_pass(precision: str, error: float, rng, targets) -> None:
    problem = make_pass(rng, [784, 196, 10], "sigmoid", "softmax", 3000, targets)
    host = problem._replace(theta=problem.theta.astype(np.float32).astype(float))
    want = host.run(Backend(GenericKernels(np, "float64"), get_device("cpu")))[1]
    device = get_device("cuda")
    got = device.to_host(problem.run(Backend(kernels_for(device, "float32", precision), device))[1])
    assert got.dtype == np.float32
    assert np.abs(got - want).max() <= error * np.abs(want).max()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch_size", [None, 256])
@pytest.mark.parametrize("optimizer", [mx.SGD(lr=0.5, momentum=0.9, l2=1e-4), mx.AdamW(lr=0.001)], ids=str)
def test_graphs_train_as_numpy_does(optimizer: Any, batch_size: int | None, precision: str, mnist, caplog) -> None:
    X, y = (array[:5000] for array in mnist[0])
    want, got = (
        mx.MLP([784, 196, 10], dtype=PRECISIONS[precision], seed=1, device=device, precision=own)
        for device, own in (("cpu", None), ("cuda", precision))
    )
    close = {"tf32": 1e-2, "bf16": 3e-2, "fp64": 1e-9}.get(precision, 1e-3)
    options: dict[str, Any] = {"optimizer": optimizer, "epochs": 6, "batch_size": batch_size, "plan": "dense"}
    for state, state_of_gpu in zip(mx.epochs(want, X, y, **options), mx.epochs(got, X, y, **options), strict=True):
        assert float(state_of_gpu.loss) == pytest.approx(float(state.loss), rel=close)
        assert 0 < float(state_of_gpu.seconds) < 60
    assert not caplog.records  # it was captured


@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-5), ("float64", 1e-12)])
def test_twenty_epochs_have_numpys_losses(dtype: str, close: float, mnist) -> None:
    histories = [
        mx.fit(
            mx.MLP([784, 196, 10], dtype=dtype, seed=1, device=device),
            *mnist[0], epochs=20, optimizer=mx.SGD(lr=0.5), plan="dense",
        )
        for device in ("cpu", "cuda")
    ]  # fmt: skip
    np.testing.assert_allclose(histories[1].loss, histories[0].loss, rtol=close)


def losses_and_bits(X: Any, y: Any, **options: Any) -> tuple[list[float], bytes]:
    """Return what five epochs on a GPU lead to."""
    model = mx.MLP([784, 196, 10], seed=1, device="cuda", precision=options.pop("precision", None))
    losses = [float(state.loss) for state in mx.epochs(model, X, y, epochs=5, **options)]
    return losses, model.theta.get().tobytes()


@pytest.mark.parametrize("batch_size", [None, 128])
@pytest.mark.parametrize("plan", ["dense", "ragged"])
def test_graphs_have_the_same_bits_every_time(plan: str, batch_size: int | None, mnist) -> None:
    options = {"optimizer": mx.Adam(), "plan": plan, "batch_size": batch_size}
    assert losses_and_bits(*mnist[0], **options) == losses_and_bits(*mnist[0], **options)


@pytest.mark.parametrize("precision", ["fp32", "fp16x2"])
@pytest.mark.parametrize("plan", ["zero", "ragged"])
def test_plans_have_the_losses_of_dense_data(plan: str, precision: str, mnist) -> None:
    options: dict[str, Any] = {"optimizer": mx.SGD(lr=0.5), "precision": precision}
    want, got = (losses_and_bits(*mnist[0], plan=name, **options)[0] for name in ("dense", plan))
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [None, 500])
@pytest.mark.parametrize("names", [{"activation": "softsign"}, {"output": "absolute"}], ids=["activation", "loss"])
def test_functions_without_a_kernel_train_by_their_formula(
    names: dict[str, str], batch_size, mnist, monkeypatch
) -> None:
    follow_recipes(monkeypatch)
    X, y = mnist[0].X[:5000], mnist[0].y[:5000]
    y = np.eye(10)[y] if "output" in names else y
    results = []
    for device in ("cpu", "cuda"):
        model = mx.MLP([784, 36, 10], **names, dtype="float64", device=device)
        results.append(mx.fit(model, X, y, epochs=4, batch_size=batch_size, optimizer=mx.SGD(lr=0.01)).loss)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-9)


@pytest.mark.parametrize("batch_size", [None, 500])
def test_streamed_data_have_the_bits_of_those_on_the_device(batch_size: int | None, mnist, monkeypatch) -> None:
    monkeypatch.setattr(CupyDevice, "shard_rows", 8192)
    options: dict[str, Any] = {"optimizer": mx.Adam(), "plan": "dense", "batch_size": batch_size}
    want = losses_and_bits(*mnist[0], **options)
    monkeypatch.setattr(
        "mlp_xp.engines.cuda.memory._attempts", lambda shard_rows, size, on_host: iter([(True, shard_rows)])
    )
    assert losses_and_bits(*mnist[0], **options) == want


LIMITED = """
import logging, mlp_xp as mx
logging.basicConfig()
train, _ = mx.datasets.mnist()
model = mx.MLP([784, 196, 10], seed=1, device="cuda")
for state in mx.epochs(model, *train, epochs=5, optimizer=mx.SGD(lr=0.5), plan="dense", batch_size={}):
    print(float(state.loss))
"""


@pytest.mark.parametrize("batch_size", [None, 500])
def test_a_limit_on_memory_is_kept(batch_size: int | None, mnist) -> None:
    limit = str(80 * 2**20)  # the workspace of cuBLAS, and all of the pixels but room for nothing else
    process = subprocess.run(
        [sys.executable, "-c", LIMITED.format(batch_size)], env={**os.environ, "CUPY_GPU_MEMORY_LIMIT": limit},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Out of memory allocating" in process.stderr
    assert "with the data on the host" in process.stderr
    want = losses_and_bits(*mnist[0], optimizer=mx.SGD(lr=0.5), plan="dense", batch_size=batch_size)[0]
    np.testing.assert_allclose(list(map(float, process.stdout.split())), want, rtol=1e-5)


@each_dtype
def test_dtype_never_drifts(dtype: str, mnist) -> None:
    model = mx.MLP([784, 36, 10], dtype=dtype, device="cuda")
    X, y = (array[:1000] for array in mnist[0])
    for optimizer in (mx.SGD(lr=0.1, momentum=0.9, l2=1e-4), mx.Adam(), mx.AdamW()):
        for state in mx.epochs(model, X, y, optimizer=optimizer, epochs=2, batch_size=400):
            vectors = [value for value in state.optimizer_state.values() if hasattr(value, "dtype")]
            assert {x.dtype.name for x in (state.gradient, model.theta, *vectors)} == {dtype}
