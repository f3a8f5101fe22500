"""Two models on two GPUs, from any thread: each on its own, and the caller's current device stays what it was."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mlp_xp as mx

pytestmark = pytest.mark.gpu

N = 100
each_current = pytest.mark.parametrize("current", [0, 1])


@pytest.fixture(autouse=True)
def cuda() -> Any:
    """Return CuPy's module of two GPUs, the first of which is current before and after the test."""
    cuda = mx.devices.get_device("cuda").xp.cuda
    if cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two GPUs")
    with cuda.Device(0):
        yield cuda


@pytest.fixture
def data(rng: Any) -> tuple[Any, Any]:
    return rng.integers(0, 256, (N, 20)).astype(np.uint8), rng.integers(0, 3, N)


def make(device: str, seed: int = 1) -> mx.MLP:
    return mx.MLP([20, 12, 3], "tanh", seed=seed, device=device)


def in_threads(*jobs: Callable[[], Any]) -> list[Any]:
    """Return what the jobs return, each run in a thread of its own, all at once."""
    found: dict[int, Any] = {}
    barrier = threading.Barrier(len(jobs))

    def run(i: int) -> None:
        barrier.wait()
        try:
            found[i] = jobs[i]()
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in found.values():
        if isinstance(result, Exception):
            raise result
    return [found[i] for i in range(len(jobs))]


def use(model: mx.MLP, X: Any, y: Any) -> list[Any]:
    """Return the results of everything that people can do with a model on its device, except train it."""
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


@each_current
def test_models_on_two_gpus_take_turns_and_leave_the_current_one_alone(cuda: Any, rng: Any, current: int) -> None:
    X, y = rng.standard_normal((30, 6)), rng.integers(0, 2, (30, 3))
    want = use(mx.MLP([6, 5, 3], "relu", "sigmoid", seed=1), X, y)
    cuda.Device(current).use()
    names = "cuda:0", "cuda:1", "cuda:0"
    models = [mx.MLP([6, 5, 3], "relu", "sigmoid", seed=1, device=name) for name in names]
    for model in models:
        got = use(model, X, y)
        assert cuda.Device().id == current
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert model.theta.device == model.device.where
        name = cuda.runtime.getDeviceProperties(model.device.where.id)["name"]
        assert model.device.hardware() == name.decode()


def test_a_model_on_the_second_gpu_works_in_new_threads(cuda: Any, rng: Any) -> None:
    X = rng.standard_normal((30, 6))
    models = [mx.MLP([6, 5, 3], "relu", seed=1, device=name) for name in ("cuda:0", "cuda:1")]
    want = models[0].outputs(X)
    jobs = [lambda model=model: (model.outputs(X), cuda.Device().id) for model in 2 * models]
    for job in (*jobs, None):  # one after another, and all at once
        for outputs, current in in_threads(*([job] if job else jobs)):
            np.testing.assert_array_equal(outputs, want)
            assert current == 0


def test_each_entry_is_a_context_of_its_own() -> None:
    """CuPy's keeps the device to go back to, and another thread, in the same one, would have it go elsewhere."""
    device = mx.devices.get_device("cuda:1")
    assert device.active() is not device.active()


def test_an_array_of_the_other_gpu_is_refused(rng: Any) -> None:
    models = [mx.MLP([6, 5, 3], device=name) for name in ("cuda:0", "cuda:1")]
    X = models[0].device.asarray(rng.standard_normal((30, 6)).astype(np.float32))
    with pytest.raises(TypeError, match="but the model computes with CuPy, on device 'cuda:1'"):
        models[1].predict(X)
    with pytest.raises(TypeError, match="on device 'cuda:1'"):
        models[1].theta = models[0].theta
    with pytest.raises(TypeError, match="the rows are on device 'cuda:0', and the model computes on 'cuda:1'"):
        models[1].predict(models[0].open(X))


def test_streams_and_devices_have_handles_and_counters_of_their_own(cuda: Any) -> None:
    kernels: Any = mx.MLP([6, 5, 3], "relu", device="cuda").kernels
    xp = kernels.xp
    for number in (0, 1):
        with cuda.Device(number):
            for stream in (cuda.get_current_stream(), cuda.Stream(non_blocking=True)):
                with stream:
                    A, W = xp.zeros((4, 6), dtype=np.float32), xp.zeros((5, 6), dtype=np.float32)
                    Z = kernels.activate("relu", kernels.affine(A, W, xp.zeros(5, dtype=np.float32)))
                    kernels.activation_gradient("relu", xp.zeros((4, 5), dtype=np.float32), Z)
                stream.synchronize()
    assert len(kernels._handles.by_place) == len(kernels._kept.tickets) == 4


# ----------------------------------------------------------------------------------------------------------------------
# Training

WAYS: dict[str, dict[str, Any]] = {
    "full batch": {"optimizer": mx.SGD(lr=0.5, momentum=0.9)},
    "mini-batches": {"batch_size": 32, "optimizer": mx.Adam(lr=0.01)},
    "ragged": {"plan": "ragged", "optimizer": mx.Adam(lr=0.01)},
}


def losses(model: mx.MLP, X: Any, y: Any, here: bool = False, **options: Any) -> list[list[float]]:
    """Return what `fit` records, the norms of gradients included."""
    if here:
        X, y = model.device.asarray(X), model.device.asarray(y)
    norms: list[float] = []
    history = mx.fit(
        model, X, y, epochs=4, validation=(X, y), tol=0.0,
        callbacks=[lambda state: norms.append(float(state.gradient_norm))], **options,
    )  # fmt: skip
    return [history.loss, history.val_loss, norms]


@pytest.mark.parametrize("here", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("way", WAYS)
@each_current
def test_training_needs_no_current_device(cuda: Any, data: Any, current: int, way: str, here: bool) -> None:
    options = WAYS[way]
    want = losses(make("cpu"), *data, **options)
    cuda.Device(current).use()
    for name in ("cuda:0", "cuda:1"):
        got = losses(make(name), *data, here=here, **options)
        assert cuda.Device().id == current
        np.testing.assert_allclose(got, want, rtol=1e-5)
        (got,) = in_threads(lambda name=name: losses(make(name), *data, here=here, **options))
        np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("names", [("cuda:0", "cuda:1"), ("cuda:1", "cuda:1", "cuda:1")], ids=["two GPUs", "one"])
@pytest.mark.parametrize("way", WAYS)
def test_trainings_at_once_do_not_meet(data: Any, way: str, names: tuple[str, ...]) -> None:
    models = [make(name, seed) for seed, name in enumerate(names)]
    found = in_threads(*(lambda model=model: losses(model, *data, **WAYS[way]) for model in models))
    for seed, (model, got) in enumerate(zip(models, found, strict=True)):
        alone = make(names[seed], seed)
        assert got == losses(alone, *data, **WAYS[way])  # bit for bit
        np.testing.assert_array_equal(model.theta.get(), alone.theta.get())


def test_epochs_of_both_gpus_in_turns(cuda: Any, data: Any) -> None:
    runs = [mx.epochs(make(name), *data, **WAYS["mini-batches"]) for name in ("cpu", "cuda:0", "cuda:1")]
    for _ in range(4):
        want, *states = (next(run) for run in runs)
        for state in states:
            assert float(state.loss) == pytest.approx(float(want.loss), rel=1e-5)
            assert float(state.loss_sum) == pytest.approx(float(want.loss_sum), rel=1e-5)
            assert float(state.seconds) > 0
            np.testing.assert_allclose(state.snapshot().theta, want.model.theta, atol=1e-5)
        assert cuda.Device().id == 0


@each_current
def test_a_training_that_fails_leaves_the_current_device_alone(cuda: Any, data: Any, current: int) -> None:
    def fail(state: Any) -> None:
        if state.epoch == 3:
            raise RuntimeError("of a callback")

    cuda.Device(current).use()
    stream = cuda.get_current_stream()
    for number in (0, 1):
        model = make(f"cuda:{number}")
        with pytest.raises(RuntimeError, match="of a callback"):
            mx.fit(model, *data, epochs=4, batch_size=32, callbacks=[fail])
        with pytest.raises(ValueError, match="give one target per row"):
            mx.fit(model, data[0], data[1][:50])
        with pytest.raises(mx.DivergenceError):
            mx.fit(
                mx.MLP([20, 12, 3], "relu", "identity", device=model.device),
                data[0],
                np.ones((N, 3)),
                optimizer=mx.SGD(lr=1e20),
            )
        assert cuda.Device().id == current
        assert cuda.get_current_stream() == stream


def test_a_model_on_the_second_gpu_is_saved_and_travels(data: Any, tmp_path: Any) -> None:
    model = make("cuda:1")
    mx.fit(model, *data, epochs=2)
    model.save(tmp_path / "model.safetensors")
    copies = [mx.MLP.load(tmp_path / "model.safetensors", device=name) for name in ("cpu", "cuda:0", "cuda:1")]
    copies += [pickle.loads(pickle.dumps(model)), copy.deepcopy(model)]
    for other in copies:
        np.testing.assert_array_equal(other.device.to_host(other.theta), model.theta.get())
        np.testing.assert_allclose(other.outputs(data[0]), model.outputs(data[0]), rtol=1e-5, atol=1e-6)
    assert [other.theta.device for other in copies[3:]] == 2 * [model.theta.device]


def test_a_run_on_one_gpu_goes_on_on_the_other(data: Any, tmp_path: Any) -> None:
    want = mx.fit(make("cuda:0"), *data, epochs=6, optimizer=mx.Adam(lr=0.01), batch_size=32).loss
    for name, epochs in (("cuda:0", 3), ("cuda:1", 6)):
        history = mx.fit(
            make(name), *data, epochs=epochs, optimizer=mx.Adam(lr=0.01), batch_size=32,
            checkpoint=mx.Checkpoint(tmp_path / "run", resume=epochs == 6),
        )  # fmt: skip
    assert history.loss == want
