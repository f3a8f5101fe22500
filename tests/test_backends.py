"""The same text on every library: same numbers, and nothing drifts to another dtype, device or namespace."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import array_api_compat as compat
import array_api_strict
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import mlp_xp as mx
from mlp_xp.devices import DEVICES, NumpyDevice, get_device

OPTIMIZERS = {
    "sgd": mx.SGD(lr=0.1, l2=0.01),
    "momentum": mx.SGD(lr=0.1, momentum=0.9),
    "nesterov": mx.SGD(lr=0.1, momentum=0.9, nesterov=True, lr_bias=0.05),
    "adam": mx.Adam(lr=0.01, l2=0.01, lr_bias=0.02),
    "adamw": mx.AdamW(lr=mx.CosineDecay(0.01, epochs=10)),
    "numpy scalars": mx.SGD(lr=np.float64(0.1), momentum=np.float64(0.5), l2=np.float64(0.01), lr_bias=np.float64(0.2)),
}


class ReadOnly(NumpyDevice):
    """NumPy whose arrays can be read only: whoever writes to what was handed in is found out."""

    spellings = ("readonly",)

    def _from_host(self, host):
        if not host.flags.writeable:
            return host
        view = host.view()
        view.flags.writeable = False
        return view


VERSIONS = ["2023.12", "2024.12", "2025.12"]  # of the standard


def set_strictest(version):
    """Have array-api-strict refuse all it can refuse."""
    array_api_strict.set_array_api_strict_flags(
        api_version=version, boolean_indexing=False, data_dependent_shapes=False
    )


@pytest.fixture(params=VERSIONS)
def strictest(request):
    set_strictest(request.param)
    yield
    array_api_strict.reset_array_api_strict_flags()


@pytest.fixture(params=["cpu", "torch", "jax", "cuda", "strict", "readonly", "strictest"])
def device(request, monkeypatch):
    """Return a device string: of a library, of NumPy with read-only arrays, or of the standard and nothing more."""
    monkeypatch.setitem(DEVICES, "readonly", ReadOnly)
    if request.param == "strictest":
        set_strictest(VERSIONS[0])
    yield request.param.removesuffix("est")
    array_api_strict.reset_array_api_strict_flags()


@pytest.fixture
def data(rng):
    X = rng.integers(0, 256, (96, 12), dtype=np.uint8)
    X[:, 5] = 0
    return X, rng.integers(0, 4, 96)


def losses(device, X, y, n=20, **settings):
    model = mx.MLP([12, 8, 4], ["tanh"], dtype="float64", device=device, seed=7)
    history = mx.fit(model, X, y, epochs=n, optimizer=mx.Adam(lr=0.05), **settings)
    return history.loss


@pytest.mark.parametrize("batch_size", [None, 40])
def test_same_seed_gives_the_same_losses(device, batch_size, data):
    wanted = losses("cpu", *data, batch_size=batch_size)
    assert wanted[-1] < wanted[0] - 0.1
    assert_allclose(losses(device, *data, batch_size=batch_size), wanted, rtol=1e-10)


def assert_home(model, *arrays):
    """Assert that arrays have the dtype, the device and the namespace that the model was asked for."""
    home = compat.array_namespace(model.device.zeros((1,), model.dtype))
    for array in arrays:
        assert compat.array_namespace(array) is home
        assert array.dtype == getattr(home, model.dtype)
        if model.device.where is not None:
            assert compat.device(array) == model.device.where


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("output", mx.OUTPUTS)
def test_nothing_drifts_in_a_gradient(device, dtype, output, rng, targets):
    model = mx.MLP([12, 8, 4], ["leaky_relu"], output, dtype=dtype, device=device)
    X, y = rng.standard_normal((20, 12)), targets(output, 20, 4)
    loss, gradient = model.loss_and_gradient(X, y)
    passed = model.forward(X)
    assert loss.shape == ()
    assert_home(model, model.theta, loss, *gradient.weights, *gradient.biases, *gradient.deltas)
    assert_home(model, *passed.Z[1:], *passed.A)
    assert model.outputs(X).dtype == dtype


@pytest.mark.parametrize(
    ("optimizer", "batch_size"), [*((name, size) for name in OPTIMIZERS for size in (None, 40)), ("lbfgs", None)]
)
def test_nothing_drifts_in_training(device, optimizer, batch_size, data):
    model, optimizer = mx.MLP([12, 8, 4], device=device), {**OPTIMIZERS, "lbfgs": mx.LBFGS(l2=0.01)}[optimizer]
    for state in mx.epochs(model, *data, optimizer=optimizer, epochs=2, batch_size=batch_size):
        arrays = [value for value in state.optimizer_state.values() if compat.is_array_api_obj(value)]
        assert_home(model, state.loss, state.gradient, state.gradient_norm, model.theta, *arrays)
        assert state.loss.shape == ()
        assert model.theta.shape == (model.layout.size,)


@pytest.mark.parametrize("output", mx.OUTPUTS)
@pytest.mark.parametrize("batch_size", [None, 40])
@pytest.mark.usefixtures("strictest")
def test_strictest_array_api(output, batch_size, data, targets):
    X, y = data[0], targets(output, 96, 4)
    for activation in mx.ACTIVATIONS:
        model = mx.MLP([12, 8, 4], activation, output, device="strict")
        mx.fit(model, X, y, epochs=1, batch_size=batch_size, optimizer=mx.Adam(l2=0.1), validation=(X, y))
        assert np.isfinite(model.score(X, y))
        assert np.isfinite(float(model.loss_and_gradient(X / 255, y)[0]))


@pytest.mark.parametrize("output", mx.OUTPUTS)
@pytest.mark.parametrize("plan", ["dense", "ragged"])
@pytest.mark.parametrize("batch_size", [None, 40])
def test_inputs_are_never_written_to(output, plan, batch_size, rng, targets):
    X, y = rng.standard_normal((96, 12)), targets(output, 96, 4)
    for as_given in (X, X.astype(np.float32), rng.integers(0, 256, X.shape, dtype=np.uint8)):
        before, y_before = as_given.copy(), y.copy()
        as_given.flags.writeable = y.flags.writeable = False
        for activation in ("identity", "relu"):
            model = mx.MLP([12, 4], (), output)
            deep = mx.MLP([12, 8, 4], activation, output)
            for each in (model, deep):
                each.theta.flags.writeable = False
                mx.fit(each, as_given, y, epochs=2, plan=plan, batch_size=batch_size, validation=(as_given, y))
                each.loss_and_gradient(as_given, y)
                each.predict(as_given)
        assert_array_equal(as_given, before)
        assert_array_equal(y, y_before)


def test_arrays_of_the_device_are_taken_as_they_are(device, data):
    X, y = data
    model = mx.MLP([12, 8, 4], device=device)
    X_there, y_there = model.device.asarray(X), model.device.asarray(y)
    assert type(model.open(X_there).block(0, 2)) is type(X_there)
    wanted = mx.MLP([12, 8, 4]).loss_and_gradient(X, y)[0]
    assert_allclose(float(model.loss_and_gradient(X_there, y_there)[0]), wanted, rtol=1e-6)
    assert_array_equal(model.device.to_host(X_there), X)


def after_one_more(X):
    """Return a copy of X in C order whose first element comes right after another."""
    room = X.reshape(-1)[:1].repeat(X.size + 1)
    room[1:] = X.reshape(-1)
    return room[1:].reshape(X.shape)


FORMS = {  # of an array of the device, made of one in C order
    "C order": lambda X: X,
    "Fortran order": lambda X: X.T.copy().T,
    "every other row": lambda X: X.repeat(2, axis=0)[::2],
    "backwards": lambda X: X[::-1].copy()[::-1],
    "every third column": lambda X: X.repeat(3, axis=1)[:, ::3],
    "cut out": lambda X: X.repeat(3, axis=0).reshape(len(X), -1)[:, X.shape[1] : 2 * X.shape[1]],
    "not on a boundary": after_one_more,
}


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [None, 40])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("form", FORMS)
def test_arrays_of_a_gpu_train_in_every_form(form, dtype, batch_size, data):
    X, y = data if dtype == "uint8" else ((data[0] / 255).astype(dtype), data[1])
    real = "float64" if dtype == "float64" else "float32"
    here, there = (mx.MLP([12, 8, 4], "tanh", dtype=real, device=device) for device in ("cpu", "cuda"))
    formed, labels = FORMS[form](there.device.asarray(X)), there.device.asarray(y)
    assert_array_equal(formed.get(), X)
    settings = {"epochs": 3, "batch_size": batch_size, "optimizer": mx.SGD(lr=0.01, momentum=0.9), "plan": "dense"}
    wanted = mx.fit(here, X, y, validation=(X, y), **settings)
    found = mx.fit(there, formed, labels, validation=(formed, labels), **settings)
    close = 1e-12 if dtype == "float64" else 1e-5
    assert_allclose(found.loss, wanted.loss, rtol=close)
    assert_allclose(found.val_loss, wanted.val_loss, rtol=close)
    assert_allclose(there.evaluate(formed, labels), here.evaluate(X, y), rtol=close)
    assert_array_equal(there.predict(formed), here.predict(X))
    assert_array_equal(formed.get(), X)


@pytest.mark.needs("torch", "jax")
def test_arrays_of_another_library_are_refused():
    import torch

    for device in ("cpu", "strict", "jax"):
        with pytest.raises(
            TypeError, match=rf"torch\.Tensor on device 'cpu' of its library, .* on device '{device}'; pass"
        ):
            mx.MLP([2, 2], device=device).predict(torch.zeros(3, 2))
    with pytest.raises(
        TypeError, match=r"array_api_strict.* on device .*CPU_DEVICE.* of its library, .*array-api-strict, on"
    ):
        mx.MLP([2, 2], device="strict").predict(array_api_strict.zeros((3, 2)))
    with pytest.raises(TypeError, match="computes with NumPy, on device 'cpu'; pass a NumPy array, or"):
        mx.MLP([2, 2]).loss_and_gradient(np.zeros((3, 2)), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("name", ["gpu", "cpu:1", "jax:0", "strict:1", "cuda:", "torch:", "", None, 3])
def test_unknown_device(name):
    with pytest.raises(ValueError, match=r"unknown device .*; choose from 'cpu', 'cuda', 'cuda:N', 'torch'"):
        mx.MLP([2, 2], device=name)


@pytest.mark.parametrize(
    ("name", "module", "remedy"),
    [
        ("cuda", "array_api_compat.cupy", "cuda13"),
        ("torch", "array_api_compat.torch", "torch"),
        ("jax", "jax.numpy", "jax"),
    ],
)
def test_missing_library(name, module, remedy, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"device '{name}' needs .*, which is not installed .*pip install .*{remedy}"):
        get_device(name)


def cupy_with(count):
    def get_device_count():
        if count is None:
            raise RuntimeError("cudaErrorNoDevice")
        return count

    current = []
    runtime = SimpleNamespace(getDeviceCount=get_device_count)
    cuda = SimpleNamespace(runtime=runtime, current=current)
    cuda.Device = lambda number: SimpleNamespace(id=number, use=lambda: current.append(number))
    return SimpleNamespace(cuda=cuda)


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("cuda", None, "needs an NVIDIA GPU with its driver, and none answered here .*use device 'cpu'"),
        ("cuda", 0, "this machine has 0 GPU"),
        ("cuda:2", 2, "device 'cuda:2' was asked for, but this machine has 2 GPU"),
        ("cuda:x", 2, "after the colon comes the number of the GPU"),
        ("cuda:-1", 2, "after the colon comes the number of the GPU"),
    ],
)
def test_no_such_gpu(name, count, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", cupy_with(count))
    with pytest.raises(ValueError, match=message):
        get_device(name)


def test_cuda_takes_the_gpu_that_was_asked_for(monkeypatch):
    cupy = cupy_with(2)
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", cupy)
    assert [get_device(name).where.id for name in ("cuda", "cuda:1")] == [0, 1]
    assert cupy.cuda.current == []  # the caller's device is left as it was


@pytest.mark.needs("torch")
def test_no_such_torch_device():
    with pytest.raises(ValueError, match=r"device 'torch:warp' cannot be used here .*use 'torch' for the CPU"):
        get_device("torch:warp")


def test_no_device_changes_what_it_is_given(device, rng, targets):
    for output in mx.OUTPUTS:
        X, y = rng.integers(0, 256, (96, 12), dtype=np.uint8), targets(output, 96, 4)
        model = mx.MLP([12, 8, 4], "relu", output, device=device)
        before = [X.copy(), y.copy(), model.device.to_host(model.theta).copy()]
        model.loss_and_gradient(X, y)
        model.evaluate(X, y)
        theta = model.theta
        for batch_size in (None, 40):
            mx.fit(model, X, y, epochs=2, batch_size=batch_size, validation=(X, y), optimizer=mx.Adam(l2=0.1))
        for now, then in zip((X, y, model.device.to_host(theta)), before, strict=True):
            assert_array_equal(now, then)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("kind", ["a graph", "inference mode"])
def test_torch_keeps_no_graph(kind):
    import torch

    y = torch.arange(60) % 3
    with torch.inference_mode(kind == "inference mode"):
        X = torch.rand(60, 5, requires_grad=kind == "a graph") * 1
        model = mx.MLP([5, 4, 3], device="torch")
        mx.fit(model, X, y, epochs=2)
    if kind == "a graph":
        model.theta = torch.rand(model.layout.size, requires_grad=True)
    for batch_size in (None, 20):
        mx.fit(model, X, y, epochs=2, batch_size=batch_size, optimizer=mx.Adam(), validation=(X, y))
    loss, gradient = model.loss_and_gradient(X, y)
    passed = model.forward(X)
    for array in (model.theta, loss, *gradient.weights, *gradient.biases, *gradient.deltas, *passed.Z[1:], *passed.A):
        assert not array.requires_grad
        assert array.grad_fn is None
