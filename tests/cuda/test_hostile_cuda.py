"""On a GPU where something is short, fails, or is unusual: memory, captures, libraries, strides, streams."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest

import mlp_xp as mx
from mlp_xp.devices import CupyDevice
from mlp_xp.kernels.cuda.graph import Graphs
from mlp_xp.kernels.cuda.graph import _idle as streams_of_graphs
from mlp_xp.kernels.cuda.products import load_cublas

from ..test_recipes import follow_recipes

pytestmark = pytest.mark.gpu

EPOCHS = 3
CLOSE = {"float32": 1e-5, "float64": 1e-12}


class Run(NamedTuple):
    """What a training leads to, on the host: the parameters after each epoch, and its losses and outputs."""

    thetas: list[np.ndarray[Any, Any]]
    losses: np.ndarray[Any, Any]
    outputs: np.ndarray[Any, Any]

    def check(self, want: Run, dtype: str) -> None:
        """Assert that it equals another one up to rounding."""
        for a, b in zip(
            [*self.thetas, self.losses, self.outputs], [*want.thetas, want.losses, want.outputs], strict=True
        ):
            assert np.abs(a - b).max() <= CLOSE[dtype] * np.abs(b).max()


class Problem(NamedTuple):
    """A small network and its data."""

    sizes: list[int]
    dtype: str
    X: Any
    y: Any

    def model(self, device: str = "cuda") -> mx.MLP:
        return mx.MLP(self.sizes, "tanh", dtype=self.dtype, device=device, seed=1)

    def train(self, model: mx.MLP, **options: Any) -> Run:
        """Train, and wait at the end only."""
        run = {"optimizer": mx.SGD(lr=0.1, momentum=0.9), "epochs": EPOCHS, "plan": "dense", **options}
        states = [(model.theta, state) for state in mx.epochs(model, self.X, self.y, **run)]
        outputs, host = model.outputs(self.X), model.device.to_host
        return Run(
            [host(theta) for theta, _ in states], np.asarray([float(state.loss) for _, state in states]), outputs
        )


@pytest.fixture(params=["float32", "float64"])
def problem(request, rng) -> Problem:
    """Return a problem whose hidden layer and softmax are one kernel, or several."""
    X = rng.integers(0, 256, (40, 6)).astype(np.uint8) if request.param == "float32" else rng.standard_normal((40, 6))
    return Problem([6, 4, 3], request.param, X, rng.integers(0, 3, 40))


WAYS: dict[str, dict[str, Any]] = {
    "full batch": {},
    "mini-batches": {"batch_size": 25},
    "a plan": {"plan": "ragged", "optimizer": mx.Adam(epsilon=0.01)},
}
each_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
def small(monkeypatch) -> None:
    """Have a few rows make several shards, and cuBLAS take little memory."""
    monkeypatch.setattr(CupyDevice, "shard_rows", 32)
    monkeypatch.setattr("mlp_xp.engines.cuda.memory._ENOUGH_ROWS", 16)
    monkeypatch.setattr("mlp_xp.engines.cuda.memory._LEAST_ROWS", 8)
    monkeypatch.setattr("mlp_xp.devices.base.LEAST_ROWS", 8)
    monkeypatch.setattr("mlp_xp.kernels.cuda.products._WORKSPACE", 4096)


@pytest.fixture
def streamed(monkeypatch) -> None:
    """Leave the data on the host, whatever the memory."""
    monkeypatch.setattr("mlp_xp.engines.cuda.memory._attempts", lambda rows, size, on_host: iter([(True, rows)]))


@pytest.fixture
def as_before(pytestconfig) -> Iterator[None]:
    """Assert that the current device and stream are the caller's afterwards, and that no memory is kept."""
    import cupy

    alone = pytestconfig.getoption("emulated_cuda")  # on a GPU the driver takes memory, and so do other processes

    def state() -> tuple[Any, ...]:
        gc.collect()
        pool = cupy.get_default_memory_pool()
        cupy.cuda.Device().synchronize()
        pool.free_all_blocks()
        free, _ = cupy.cuda.runtime.memGetInfo()
        return cupy.cuda.Device().id, cupy.cuda.get_current_stream().ptr, pool.used_bytes(), free if alone else None

    before = state()
    yield
    assert state() == before


# Memory that is short.


class Short:
    """An allocator that has no memory for one of the requests; counted from 1."""

    def __init__(self, malloc: Callable[[int], Any], failing: int = 0) -> None:
        self.malloc, self.failing, self.requests = malloc, failing, 0

    def __call__(self, size: int) -> Any:
        from cupy.cuda.memory import OutOfMemoryError

        self.requests += 1
        if self.requests == self.failing:
            raise OutOfMemoryError(size, 0)
        return self.malloc(size)


@pytest.mark.usefixtures("small", "as_before")
@each_way
def test_training_survives_that_any_request_for_memory_fails(problem: Problem, way: str, caplog) -> None:
    import cupy

    pool = cupy.get_default_memory_pool()
    want, options = problem.train(problem.model("cpu"), **WAYS[way]), WAYS[way]

    def train(failing: int) -> Short:
        caplog.clear()
        model = problem.model()
        possible = [model.theta.get(), *want.thetas]
        short = Short(pool.malloc, failing)
        with cupy.cuda.using_allocator(short):
            try:
                problem.train(model, **options).check(want, problem.dtype)
            except MemoryError as error:
                messages.append(str(error))
                assert any(np.allclose(model.theta.get(), theta, rtol=1e-5, atol=1e-7) for theta in possible)
                outcomes.add("error")
            else:
                outcomes.add("goes on" if "goes on with" in caplog.text else "as ever")
        return short

    outcomes, messages = set[str](), list[str]()
    for i in range(train(0).requests):
        train(i + 1)
    assert all("Out of memory allocating" in message for message in messages)
    assert outcomes == {"as ever", "goes on", "error"}


@pytest.mark.usefixtures("small", "as_before")
@pytest.mark.parametrize("options", [{}, {"batch_size": 16}, {"batch_size": 16, "streamed": 1}], ids=str)
def test_training_survives_that_any_allocation_of_cuda_fails(problem, options, emulated, caplog, request) -> None:
    """Without CuPy's pool the errors are CUDA's own."""
    import cupy

    options = dict(options)
    if streams := options.pop("streamed", 0):
        request.getfixturevalue("streamed")
    want = problem.train(problem.model("cpu"), **options)

    def train(failing: int) -> int:
        model, before = problem.model(), emulated.counts()
        possible = [model.theta.get(), *want.thetas]
        with cupy.cuda.using_allocator(None), emulated.settings(failing_allocation=failing):
            try:
                problem.train(model, **options).check(want, problem.dtype)
            except (MemoryError, cupy.cuda.runtime.CUDARuntimeError) as error:
                messages.append(str(error))
                outcomes.add("error")
                assert any(np.allclose(model.theta.get(), theta, rtol=1e-5, atol=1e-7) for theta in possible)
            else:
                outcomes.add("goes on" if "goes on with" in caplog.text else "as ever")
        caplog.clear()
        return (emulated.counts() - before).allocations

    outcomes, messages = set[str](), list[str]()
    for i in range(train(0)):
        train(i + 1)
    assert all("memory" in message for message in messages)
    assert {"as ever", "error"} <= outcomes
    assert ("goes on" in outcomes) == (not streams)
    model = problem.model()
    problem.train(model, **options).check(want, problem.dtype)


@pytest.mark.usefixtures("small", "as_before")
def test_predictions_survive_that_any_request_for_memory_fails(problem: Problem) -> None:
    import cupy

    pool, model, host = cupy.get_default_memory_pool(), problem.model(), problem.model("cpu")
    X, y = problem.X, problem.y
    calls: dict[str, Callable[[mx.MLP], Any]] = {
        "outputs": lambda model: model.outputs(X),
        "outputs of rows there": lambda model: model.outputs(model.device.asarray(X)),
        "evaluate": lambda model: np.asarray(model.evaluate(X, y)),
        "loss": lambda model: model.device.to_host(model.loss_and_gradient(X, y)[0]),
        "forward": lambda model: model.device.to_host(model.forward(X).A[-1]),
    }
    survived = set()
    for name, call in calls.items():
        want, failing, short = call(host), 0, Short(pool.malloc)
        while failing <= short.requests:
            short = Short(pool.malloc, failing)
            with cupy.cuda.using_allocator(short):
                try:
                    got = call(model)
                except MemoryError:
                    assert failing
                else:
                    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
                    survived |= {name} if failing and failing <= short.requests else set()
            failing += 1
    assert {"outputs", "evaluate"} <= survived


@pytest.mark.usefixtures("small", "as_before")
def test_fit_that_runs_out_of_memory_leaves_the_model_at_a_whole_epoch(problem: Problem, caplog) -> None:
    import cupy

    pool, options = cupy.get_default_memory_pool(), {"epochs": 2, "optimizer": mx.SGD(lr=0.1), "batch_size": 16}

    def fit(model: mx.MLP) -> None:
        mx.fit(model, problem.X, problem.y, validation=(problem.X, problem.y), **options)

    host = problem.model("cpu")
    possible = [host.theta.copy()]
    for _ in mx.epochs(host, problem.X, problem.y, **options):
        possible.append(host.theta.copy())
    failing, short, ends = 0, Short(pool.malloc), set[bool]()
    while failing <= short.requests:
        short, model = Short(pool.malloc, failing), problem.model()
        with cupy.cuda.using_allocator(short):
            try:
                fit(model)
            except MemoryError:
                ends.add(False)
            else:
                ends.add(True)
        assert any(np.allclose(model.theta.get(), theta, rtol=1e-5, atol=1e-7) for theta in possible)
        failing += 1
    assert ends == {True, False}


@pytest.mark.usefixtures("small")
def test_any_limit_on_memory_is_kept_to_or_refused(problem: Problem, emulated, caplog) -> None:
    import cupy

    want, ends = problem.train(problem.model("cpu")), []
    model = problem.model()
    start = model.theta
    for pages in range(2, 62, 6):
        gc.collect()
        cupy.get_default_memory_pool().free_all_blocks()
        free, total = cupy.cuda.runtime.memGetInfo()
        pool, left = cupy.cuda.MemoryPool(), total - free + 4096 * pages
        with cupy.cuda.using_allocator(pool.malloc), emulated.settings(memory=left):
            model.theta = start
            try:
                mx.fit(model, problem.X, problem.y, epochs=EPOCHS, optimizer=mx.SGD(lr=0.1, momentum=0.9))
                assert np.abs(model.theta.get() - want.thetas[-1]).max() <= CLOSE[problem.dtype]
            except MemoryError:
                ends.append("refused")
                possible = start.get(), *want.thetas
                assert any(np.allclose(model.theta.get(), theta, rtol=1e-5, atol=1e-7) for theta in possible)
            else:
                ends.append("trained")
    assert (ends[0], ends[-1]) == ("refused", "trained")
    assert "with the data on the host" in caplog.text


# Captures that fail.


@pytest.mark.usefixtures("as_before")
@each_way
def test_training_survives_that_capturing_fails_anywhere(problem: Problem, way: str, emulated, caplog) -> None:
    options = WAYS[way]
    want = problem.train(problem.model("cpu"), **options)
    before = emulated.counts()
    problem.train(problem.model(), **options).check(want, problem.dtype)
    captured = (emulated.counts() - before).captured
    assert captured >= 5
    for i in range(captured):
        caplog.clear()
        before = emulated.counts()
        with emulated.settings(failing_capture=i + 1):
            problem.train(problem.model(), **options).check(want, problem.dtype)
        assert [record.message[:15] for record in caplog.records] == ["no CUDA graphs,"]
        assert (emulated.counts() - before).graphs == 0
    before = emulated.counts()
    problem.train(problem.model(), **options).check(want, problem.dtype)
    assert (emulated.counts() - before).captures == 1
    assert gc.isenabled()


@pytest.mark.parametrize("batch_size", [None, 25])
def test_formulas_without_a_kernel_have_memory_that_lives_as_long_as_their_graph(
    problem: Problem, batch_size: int | None, monkeypatch, emulated, caplog
) -> None:
    import cupy

    follow_recipes(monkeypatch)
    models = [mx.MLP(problem.sizes, "softsign", dtype=problem.dtype, device=name) for name in ("cpu", "cuda")]
    want = problem.train(models[0], batch_size=batch_size, epochs=4)
    with cupy.cuda.using_allocator(None), emulated.settings(pages=True):
        problem.train(models[1], batch_size=batch_size, epochs=4).check(want, problem.dtype)
    assert not caplog.records


def test_garbage_waits_until_a_capture_is_over(request) -> None:
    import cupy

    class Waiting:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            cupy.cuda.Device().synchronize()

    def work() -> None:
        for _ in range(10):
            Waiting()
            x.fill(3)

    x, graphs, before = cupy.zeros(4), Graphs(cupy), gc.get_threshold()
    request.addfinalizer(lambda: gc.set_threshold(*before))
    gc.set_threshold(1, 1, 1)
    for _ in range(3):
        graphs.run("work", work)
    assert graphs._graphs["work"] is not None
    np.testing.assert_array_equal(x.get(), 3)


def test_a_model_that_goes_breaks_no_capture_of_another_one(problem: Problem) -> None:
    """To destroy a handle of cuBLAS waits for the device."""
    import cupy

    def work() -> None:
        x.fill(3)
        models.pop()
        gc.collect()

    x, graphs, models = cupy.zeros(4), Graphs(cupy), [problem.model("cuda"), problem.model("cuda")]
    for model in models:
        model.predict(problem.X)
    del model
    for _ in range(2):
        graphs.run("work", work)
    assert graphs._graphs["work"] is not None
    np.testing.assert_array_equal(x.get(), 3)


@pytest.mark.parametrize("devices", [(0, 0), (0, 1)])
def test_one_thread_at_a_time_launches_on_a_device(devices: tuple[int, int]) -> None:
    import cupy

    if cupy.cuda.runtime.getDeviceCount() <= max(devices):
        pytest.skip("this machine has one GPU")
    meeting, met = threading.Barrier(2, timeout=1 if devices == (0, 0) else 60), []

    def work() -> None:
        try:
            meeting.wait()
        except threading.BrokenBarrierError:
            met.append(False)
        else:
            met.append(True)

    def launch(device: int) -> None:
        with cupy.cuda.Device(device):
            Graphs(cupy).call(work)

    threads = [threading.Thread(target=launch, args=(device,)) for device in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met == [devices == (0, 1)] * 2


def test_work_on_the_default_stream_does_not_disturb_a_capture() -> None:
    import cupy

    def work() -> None:
        x.fill(3)
        with cupy.cuda.Stream.null:
            cupy.add(y, 1, out=y)

    x, y, graphs = cupy.zeros(4), cupy.zeros(4), Graphs(cupy)
    for _ in range(2):
        graphs.run("work", work)
    assert graphs._graphs["work"] is not None
    np.testing.assert_array_equal(y.get(), 2)


@each_way
def test_a_model_on_the_second_gpu_trains_whatever_the_current_one_is(problem: Problem, way: str) -> None:
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("this machine has one GPU")
    want = problem.train(problem.model("cpu"), **WAYS[way])
    problem.train(problem.model("cuda:1"), **WAYS[way]).check(want, problem.dtype)
    with cupy.cuda.Device(1):
        problem.train(problem.model("cuda:0"), **WAYS[way]).check(want, problem.dtype)
        assert cupy.cuda.Device().id == 1
    model = problem.model("cuda:1")
    history = mx.fit(model, problem.X, problem.y, epochs=2, validation=(problem.X, problem.y), tol=0.0, **WAYS[way])
    assert history.loss[0] == pytest.approx(want.losses[0], rel=1e-5)
    for state in mx.epochs(model, problem.X, problem.y, epochs=1, **WAYS[way]):
        assert float(state.gradient_norm) > 0
        state.snapshot()
    assert cupy.cuda.Device().id == 0


# Libraries that are missing, or differ.


@pytest.fixture
def without_nvmath(monkeypatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "nvmath.bindings.cublas", None)
    load_cublas.cache_clear()
    yield
    load_cublas.cache_clear()


@pytest.mark.usefixtures("without_nvmath")
@each_way
def test_without_nvmath_cupy_multiplies_and_the_log_says_so_once(problem: Problem, way: str, caplog) -> None:
    want = problem.train(problem.model("cpu"), **WAYS[way])
    problem.train(problem.model(), **WAYS[way]).check(want, problem.dtype)
    assert len(caplog.records) == 1
    assert "no CUDA graphs, so every step is launched by the host: NotImplementedError" in caplog.text


@pytest.mark.usefixtures("without_nvmath", "streamed")
def test_without_nvmath_data_are_streamed(problem: Problem, caplog) -> None:
    problem.train(problem.model()).check(problem.train(problem.model("cpu")), problem.dtype)
    assert not caplog.records


@pytest.mark.usefixtures("without_nvmath")
@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16x2"])
def test_without_nvmath_there_are_no_other_precisions(precision: str) -> None:
    with pytest.raises(ValueError, match="needs nvmath-python"):
        mx.MLP([6, 4, 3], device="cuda", precision=precision)


@pytest.mark.parametrize("accelerators", [[], ["cub"]], ids=str)
@each_way
def test_reductions_may_be_cupys_or_cubs(problem: Problem, way: str, accelerators: list[str], request) -> None:
    from cupy import _core

    if accelerators and request.config.getoption("emulated_cuda"):
        pytest.skip("CUB's kernels have PTX that no compiler for a CPU knows")
    before = _core.get_routine_accelerators(), _core.get_reduction_accelerators()
    try:
        _core.set_routine_accelerators(accelerators)
        _core.set_reduction_accelerators(accelerators)
        got = problem.train(problem.model(), **WAYS[way])
    finally:
        _core.set_routine_accelerators(before[0])
        _core.set_reduction_accelerators(before[1])
    got.check(problem.train(problem.model("cpu"), **WAYS[way]), problem.dtype)


# Strides.


def unaligned(x: Any) -> Any:
    """Return a view of x that begins one entry after a boundary."""
    import cupy

    room = cupy.empty(x.size + 1, dtype=x.dtype)
    room[1:] = x.ravel()
    return room[1:].reshape(x.shape)


def cut_out(x: Any) -> Any:
    import cupy

    room = cupy.full([2 * n + 1 for n in x.shape], 77, dtype=x.dtype)
    view = room[tuple(slice(1, None, 2) for _ in x.shape)]
    view[...] = x
    return view


VIEWS: dict[str, Callable[[Any], Any]] = {
    "in F order": lambda x: x.T.copy().T,
    "backwards": lambda x: x[::-1].copy()[::-1],
    "mirrored": lambda x: x[..., ::-1].copy()[..., ::-1],
    "cut out": cut_out,
    "on no boundary": unaligned,
}


@pytest.mark.parametrize("view", VIEWS)
@each_way
def test_arrays_there_may_have_any_strides(problem: Problem, way: str, view: str) -> None:
    make, model, host = VIEWS[view], problem.model(), problem.model("cpu")
    y = np.eye(3)[problem.y]
    theirs = problem._replace(X=make(model.device.asarray(problem.X)), y=make(model.device.asarray(y)))
    theta = make(model.device.asarray(np.linspace(-1, 1, model.layout.size), problem.dtype))
    model.theta = theta
    host.theta = theta.get().copy()
    ours = problem.train(host, **WAYS[way])
    before = theirs.X.get(), theirs.y.get(), theta.get()
    theirs.train(model, **WAYS[way]).check(ours, problem.dtype)
    for x, was in zip((theirs.X, theirs.y, theta), before, strict=True):
        np.testing.assert_array_equal(x.get(), was)
    loss, gradient = model.loss_and_gradient(theirs.X, theirs.y)
    same, same_gradient = host.loss_and_gradient(problem.X, problem.y)
    np.testing.assert_allclose(loss.get(), same, rtol=1e-5)
    np.testing.assert_allclose(gradient.weights[0].get(), same_gradient.weights[0], rtol=1e-4, atol=1e-6)


@each_way
def test_arrays_there_may_repeat_their_entries(problem: Problem, way: str) -> None:
    import cupy

    model, host = problem.model(), problem.model("cpu")
    rows = np.repeat(problem.X[:1], 40, axis=0), np.repeat(problem.y[:1], 40)
    xp_rows = cupy.broadcast_to(cupy.asarray(problem.X[0]), (40, 6)), cupy.broadcast_to(cupy.asarray(problem.y[0]), 40)
    model.theta = cupy.broadcast_to(cupy.asarray(0.1, dtype=problem.dtype), model.layout.size)
    host.theta = np.full(model.layout.size, 0.1, problem.dtype)
    want = problem._replace(X=rows[0], y=rows[1]).train(host, **WAYS[way])
    problem._replace(X=xp_rows[0], y=xp_rows[1]).train(model, **WAYS[way]).check(want, problem.dtype)


def test_weights_may_have_any_strides(problem: Problem) -> None:
    for name in ("in F order", "backwards", "mirrored"):
        model, host, make = problem.model(), problem.model("cpu"), VIEWS[name]
        host.weights, host.biases = [2 * W for W in host.weights], [b + 1 for b in host.biases]
        model.weights, model.biases = list(map(make, host.weights)), list(map(make, host.biases))
        np.testing.assert_array_equal(model.theta.get(), host.theta)


@pytest.mark.parametrize("shape", [(), (6,), (40, 6, 1)], ids=str)
def test_other_numbers_of_axes_are_refused(problem: Problem, shape: tuple[int, ...]) -> None:
    import cupy

    model = problem.model()
    with pytest.raises(ValueError, match="must have the shape"):
        model.outputs(cupy.zeros(shape))
    with pytest.raises(ValueError, match=r"one target per row|labels of shape"):
        mx.fit(model, problem.X, cupy.zeros(shape))
    with pytest.raises(ValueError, match="theta"):
        model.theta = cupy.zeros(shape, dtype=problem.dtype)


# Streams of the caller.


def stream(kind: str) -> Any:
    import cupy

    return {
        "default": lambda: cupy.cuda.Stream.null,
        "per thread": lambda: cupy.cuda.Stream.ptds,
        "blocking": cupy.cuda.Stream,
        "non-blocking": lambda: cupy.cuda.Stream(non_blocking=True),
    }[kind]()


each_stream = pytest.mark.parametrize("kind", ["default", "per thread", "blocking", "non-blocking"])


@each_stream
@each_way
def test_work_of_the_callers_stream_comes_before_and_after(problem: Problem, way: str, kind: str) -> None:
    """X is written by work that waits on the stream, and the results are used by more work, before anybody waits."""
    import cupy

    host = problem.model("cpu")
    want = problem.train(host, **WAYS[way])
    half, room = cupy.asarray(problem.X // 2 if problem.dtype == "float32" else problem.X / 2), cupy.empty_like
    rest = cupy.asarray(problem.X) - half
    cupy.cuda.Device().synchronize()
    own = stream(kind)
    with own:
        X, model = room(half), problem.model()
        cupy.add(half, rest, out=X)
        run = {"optimizer": mx.SGD(lr=0.1, momentum=0.9), "epochs": EPOCHS, "plan": "dense", **WAYS[way]}
        sums = [model.theta + state.loss for state in mx.epochs(model, X, problem.y, **run)]
        X[...] = 0  # comes after all
        got = model.theta * 2
        assert cupy.cuda.get_current_stream() == own
        for theta, loss, total in zip(want.thetas, want.losses, sums, strict=True):
            np.testing.assert_allclose(total.get(), theta + loss, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got.get(), 2 * want.thetas[-1], rtol=1e-5, atol=1e-6)


@each_way
def test_two_streams_in_turn_that_the_caller_orders(problem: Problem, way: str) -> None:
    import cupy

    want, model = problem.train(problem.model("cpu"), **WAYS[way]), problem.model()
    run = {"optimizer": mx.SGD(lr=0.1, momentum=0.9), "epochs": EPOCHS, "plan": "dense", **WAYS[way]}
    one, other = stream("non-blocking"), stream("non-blocking")
    one.wait_event(cupy.cuda.get_current_stream().record())
    with one:
        states = mx.epochs(model, problem.X, problem.y, **run)
    seen = []
    for _ in range(EPOCHS):
        other.wait_event(one.record())
        one, other = other, one
        with one:
            next(states)
            seen.append(model.theta)
    with one:
        for theta, expected in zip(seen, want.thetas, strict=True):
            np.testing.assert_allclose(theta.get(), expected, rtol=1e-5, atol=1e-6)


# Allocators.


@contextmanager
def allocator(name: str) -> Iterator[None]:
    import cupy

    cuda = cupy.cuda
    made = {
        "no pool": lambda: None,
        "asynchronous": lambda: cuda.malloc_async,
        "asynchronous pool": lambda: cuda.MemoryAsyncPool().malloc,
        "managed": lambda: cuda.malloc_managed,
        "pool of managed memory": lambda: cuda.MemoryPool(cuda.malloc_managed).malloc,
    }[name]()
    cuda.set_allocator(made)
    try:
        yield
    finally:
        gc.collect()
        cuda.set_allocator(cupy.get_default_memory_pool().malloc)


ALLOCATORS = "no pool", "asynchronous", "asynchronous pool", "managed", "pool of managed memory"


@pytest.mark.parametrize("name", ALLOCATORS)
@each_way
def test_memory_may_come_from_any_allocator(problem: Problem, way: str, name: str, caplog) -> None:
    import cupy

    want = problem.train(problem.model("cpu"), **WAYS[way])
    with allocator(name):
        problem.train(problem.model(), **WAYS[way]).check(want, problem.dtype)
        theirs = problem._replace(X=cupy.asarray(problem.X))
        theirs.train(problem.model(), **WAYS[way]).check(want, problem.dtype)
    assert not caplog.records


@each_way
def test_memory_that_is_freed_in_the_order_of_its_stream_outlives_the_work(problem: Problem, way: str) -> None:
    want = problem.train(problem.model("cpu"), **WAYS[way])
    options = {"epochs": EPOCHS, "optimizer": mx.SGD(lr=0.1, momentum=0.9), "plan": "dense", **WAYS[way]}
    with allocator("asynchronous"):
        model = problem.model()
        for _ in mx.epochs(model, problem.X, problem.y, **options):
            pass
        del _  # the engine goes, and nobody has waited
        for own in streams_of_graphs[0]:
            own.synchronize()  # it may have done all that it was asked for by now
        np.testing.assert_allclose(model.theta.get(), want.thetas[-1], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("small", "streamed")
@pytest.mark.parametrize("batch_size", [None, 3, 16])
def test_streamed_chunks_come_one_after_another(problem: Problem, batch_size: int | None, monkeypatch) -> None:
    monkeypatch.setattr(CupyDevice, "shard_rows", 4)
    want = problem.train(problem.model("cpu"), batch_size=batch_size)
    problem.train(problem.model(), batch_size=batch_size).check(want, problem.dtype)


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("name", ALLOCATORS)
def test_streams_work_with_any_allocator(problem: Problem, name: str) -> None:
    want = problem.train(problem.model("cpu"), batch_size=16)
    with allocator(name):
        problem.train(problem.model(), batch_size=16).check(want, problem.dtype)
