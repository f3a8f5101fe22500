"""Two models on two GPUs, from any thread: each on its own, and the caller's current device stays what it was."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from typing import Any

import numpy as np
import pytest

import mlp_xp as mx
from mlp_xp.kernels.cuda import products as cuda_products

from .fake_cupy import GPU

pytestmark = pytest.mark.needs("g++")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> GPU:
    """Return two GPUs that a device string finds."""
    gpu = GPU()
    gpu.cuda.runtime.getDeviceCount = lambda: 2
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", gpu)
    monkeypatch.setattr(cuda_products, "load_cublas", lambda: gpu.library)
    return gpu


def use(model: mx.MLP, X: Any, y: Any) -> list[Any]:
    """Return the results of everything that people can do with a model on its device."""
    host = model.device.to_host
    loss, gradient = model.loss_and_gradient(X, y)
    model.weights = [2 * W for W in model.weights]
    model.biases = [b + 1 for b in model.biases]
    model.theta = model.device.asarray(host(model.theta) / 2)
    there, labels = model.device.asarray(X), model.device.asarray(y)
    model.device.synchronize()
    return [
        host(loss), *map(host, [*gradient.weights, *gradient.deltas, *model.forward(X).A]), model.outputs(X),
        model.predict(there), model.predict_proba(X), model.evaluate(there, labels), model.score(X, y),
        copy.deepcopy(model).outputs(X), pickle.loads(pickle.dumps(model)).outputs(X)
    ]  # fmt: skip


@pytest.mark.parametrize("current", [0, 1])
def test_models_on_two_gpus_take_turns_and_leave_the_current_one_alone(gpu: GPU, rng: Any, current: int) -> None:
    X, y = rng.standard_normal((30, 6)), rng.integers(0, 2, (30, 3))
    want = use(mx.MLP([6, 5, 3], "relu", "sigmoid", seed=1), X, y)
    gpu.cuda.Device(current).use()
    names = "cuda:0", "cuda:1", "cuda:0"
    models = [mx.MLP([6, 5, 3], "relu", "sigmoid", seed=1, device=name) for name in names]
    for model in models:
        got = use(model, X, y)
        assert gpu.cuda.Device().id == current
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert model.theta.block.device == model.device.where.id
        assert model.device.hardware() == "a stand-in"


def test_a_model_on_the_second_gpu_works_in_new_threads(gpu: GPU, rng: Any) -> None:
    X = rng.standard_normal((30, 6))
    models = [mx.MLP([6, 5, 3], "relu", seed=1, device=name) for name in ("cuda:0", "cuda:1")]
    want, found = models[0].outputs(X), {}

    def work(i: int) -> None:
        found[i] = models[i % 2].outputs(X), gpu.cuda.Device().id

    for i in range(4):
        thread = threading.Thread(target=work, args=(i,))
        thread.start()
        thread.join()
    for outputs, current in found.values():
        np.testing.assert_array_equal(outputs, want)
        assert current == 0


def test_each_entry_is_a_context_of_its_own(gpu: GPU) -> None:
    """CuPy's keeps the device to go back to, and another thread, in the same one, would have it go elsewhere."""
    device = mx.devices.get_device("cuda:1")
    assert device.active() is not device.active()


def test_an_array_of_the_other_gpu_is_refused(gpu: GPU, rng: Any) -> None:
    models = [mx.MLP([6, 5, 3], device=name) for name in ("cuda:0", "cuda:1")]
    X = models[0].device.asarray(rng.standard_normal((30, 6)))
    with pytest.raises(TypeError, match="but the model computes with CuPy, on device 'cuda:1'"):
        models[1].predict(X)
    with pytest.raises(TypeError, match="on device 'cuda:1'"):
        models[1].theta = models[0].theta


def test_streams_and_devices_have_handles_and_counters_of_their_own(gpu: GPU) -> None:
    kernels: Any = mx.MLP([6, 5, 3], "relu", device="cuda").kernels
    for number in (0, 1):
        with gpu.cuda.Device(number):
            for stream in (gpu.current, gpu.cuda.Stream(non_blocking=True)):
                with stream:
                    A, W = gpu.zeros((4, 6), dtype=np.float32), gpu.zeros((5, 6), dtype=np.float32)
                    Z = kernels.activate("relu", kernels.affine(A, W, gpu.zeros(5, dtype=np.float32)))
                    kernels.activation_gradient("relu", gpu.zeros((4, 5), dtype=np.float32), Z)
    assert len(kernels._handles.by_place) == len(kernels._kept.tickets) == 4
