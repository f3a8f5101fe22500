"""The stand-in for CuPy shows the mistakes that it is for: each ends in wrong numbers, or in an error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlp_xp.kernels.cuda.cublas import CuBLAS

from .fake_cupy import GPU

pytestmark = pytest.mark.needs("g++")

OLD, NEW = np.full((2, 2), 1.0, np.float32), np.full((2, 2), 3.0, np.float32)
DOUBLE = """extern "C" __global__ void __launch_bounds__(1) twice(const float* x, float* y, int n) {
  for (int i = 0; i < n; ++i) y[i] = 2 * x[i];
}"""


@pytest.fixture
def gpu() -> GPU:
    return GPU()


def launch(gpu: GPU, x: Any, y: Any) -> None:
    gpu.RawKernel(DOUBLE, "twice", ())((1,), (1,), (x, y, np.int32(x.size)), shared_mem=0)


def by_operator(gpu: GPU, x: Any) -> Any:
    return 2 * x


def by_copies(gpu: GPU, x: Any) -> Any:
    y, z = x.copy(), gpu.empty(x.shape, np.float32)
    z[...] = x
    y += z
    return y


def by_kernel(gpu: GPU, x: Any) -> Any:
    y = gpu.empty(x.shape, np.float32)
    launch(gpu, x, y)
    return y


def by_product(gpu: GPU, x: Any) -> Any:
    y, factor = gpu.empty(x.shape, np.float32), gpu.asarray(np.eye(2, dtype=np.float32))
    blas = CuBLAS(gpu.current.ptr, gpu.empty(64, np.uint8), library=gpu.library)
    blas.gemm(x, factor, y, alpha=2.0)
    return y


def by_graph(gpu: GPU, x: Any) -> Any:
    y, stream = gpu.empty(x.shape, np.float32), gpu.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        launch(gpu, x, y)
        graph = stream.end_capture()
    graph.launch()
    return y


each_way = pytest.mark.parametrize("twice", [by_operator, by_copies, by_kernel, by_product, by_graph])
each_pace = pytest.mark.parametrize("slow", ["device", "bus"])


def pinned_copy(gpu: GPU, host: Any) -> Any:
    pinned = np.frombuffer(gpu.cuda.alloc_pinned_memory(host.nbytes), host.dtype, host.size).reshape(host.shape)
    pinned[...] = host
    return pinned


# ----------------------------------------------------------------------------------------------------------------------
# Streams


@pytest.mark.parametrize("waits", [True, False])
@each_pace
@each_way
def test_what_another_stream_does_is_there_after_its_event(twice: Any, slow: str, waits: bool, gpu: GPU) -> None:
    gpu.slow = slow
    x, copies, work = gpu.asarray(OLD), *(gpu.cuda.Stream(non_blocking=True) for _ in range(2))
    with copies:
        x.set(pinned_copy(gpu, NEW))
        copied = copies.record()
    with work:
        if waits:
            work.wait_event(copied)
        y = twice(gpu, x)
        np.testing.assert_array_equal(y.get(), 2 * (NEW if waits else OLD))


@pytest.mark.parametrize("waits", [True, False])
@each_way
def test_a_slow_device_reads_what_is_overwritten(twice: Any, waits: bool, gpu: GPU) -> None:
    x, copies = gpu.asarray(OLD), gpu.cuda.Stream(non_blocking=True)
    y = twice(gpu, x)
    read = gpu.current.record()
    with copies:
        if waits:
            copies.wait_event(read)
        x.set(NEW)
    gpu.current.wait_event(copies.record())
    np.testing.assert_array_equal(y.get(), 2 * (OLD if waits else NEW))


@each_pace
def test_a_slow_bus_shows_an_event_that_the_host_happens_to_wait_for(slow: str, gpu: GPU) -> None:
    gpu.slow = slow
    x, copies = gpu.asarray(OLD), gpu.cuda.Stream(non_blocking=True)
    with copies:
        x.set(pinned_copy(gpu, NEW))
    y = 2 * x  # should have waited
    copies.synchronize()
    np.testing.assert_array_equal(y.get(), 2 * (NEW if slow == "device" else OLD))


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("pinned", [True, False])
@each_pace
def test_pinned_memory_is_read_late(slow: str, pinned: bool, waits: bool, gpu: GPU) -> None:
    gpu.slow = slow
    x, host = gpu.asarray(np.zeros_like(OLD)), pinned_copy(gpu, OLD) if pinned else OLD.copy()
    x.set(host)
    if waits:
        gpu.current.record().synchronize()
    host[...] = NEW
    np.testing.assert_array_equal(x.get(), NEW if pinned and not waits else OLD)


def test_a_number_waits_for_the_current_stream_alone(gpu: GPU) -> None:
    x, other = gpu.asarray(OLD), gpu.cuda.Stream(non_blocking=True)
    total = np.add.reduce(x, axis=None)
    with other:
        assert np.isnan(float(total))  # new memory, which nothing was written to
    assert float(total) == 4


def test_the_log_has_what_was_asked_for(gpu: GPU) -> None:
    x = gpu.asarray(OLD)
    gpu.log.clear()
    y = 2 * x
    launch(gpu, x, y)
    x.set(NEW)
    assert gpu.log == ["multiply", ("twice", 1, 4), "copy from the host"]
    assert y.get()[0, 0] == 2


# ----------------------------------------------------------------------------------------------------------------------
# Graphs


def test_a_graph_keeps_no_memory_but_work_that_was_asked_for_does(gpu: GPU) -> None:
    x, y, stream = gpu.asarray(OLD), gpu.empty((2, 2), np.float32), gpu.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        launch(gpu, x, y)
        graph = stream.end_capture()
    graph.launch()
    used = gpu.used
    del x
    assert gpu.used == used - OLD.nbytes
    assert y.get().tolist() == [[2, 2], [2, 2]]
    with pytest.raises(AssertionError, match="twice works on memory that was given back"):
        graph.launch()


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.get(), lambda x: x.set(NEW), lambda x: x.copy(), lambda x: 2 * x, lambda x: x.gpu.empty(3),
        lambda x: x.gpu.zeros(3), lambda x: x.gpu.current.record(), lambda x: x.gpu.current.synchronize(),
    ],
)  # fmt: skip
def test_a_stream_that_is_captured_takes_launches_alone(work: Any, gpu: GPU) -> None:
    x, stream = gpu.asarray(OLD), gpu.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(AssertionError, match="while a stream is captured"):
            work(x)


# ----------------------------------------------------------------------------------------------------------------------
# Memory


def test_arrays_count_while_they_live(gpu: GPU) -> None:
    x = gpu.asarray(OLD)
    views = x[0], x.T, gpu.reshape(x, (4,)), gpu.asarray(x)
    assert gpu.used == 16
    others = x.copy(), 2 * x, gpu.zeros(4, dtype=np.float32), gpu.concat([x[0], x[1]]), gpu.empty((2, 2), np.float32)
    assert gpu.used == 6 * 16
    del others
    assert gpu.used == 16  # though some of them have yet to be computed
    del x
    assert gpu.used == 16
    del views
    assert gpu.used == 0


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.copy(), lambda x: 2 * x, lambda x: x.gpu.empty(256, np.uint8), lambda x: x.gpu.zeros(32),
        lambda x: x.gpu.asarray(np.zeros(32)), lambda x: x.gpu.take(x, np.arange(32)),
    ],
)  # fmt: skip
def test_no_more_memory_than_there_is(ask: Any, gpu: GPU) -> None:
    x = gpu.asarray(np.zeros(32))
    gpu.limit = 3 * x.nbytes - 1
    assert gpu.cuda.Device().mem_info == gpu.cuda.runtime.memGetInfo() == (511, 767)
    assert gpu.get_default_memory_pool().get_limit() == 767
    kept = ask(x)
    message = r"Out of memory allocating 256 bytes \(allocated so far: 512 bytes, limit set to: 767 bytes\)\."
    with pytest.raises(gpu.cuda.memory.OutOfMemoryError, match=message) as caught:
        ask(x)
    assert isinstance(caught.value, MemoryError)
    del kept
    assert ask(x).nbytes == 256


def test_a_kernel_stays_within_its_arrays(gpu: GPU) -> None:
    x, y = gpu.asarray(np.ones(4, np.float32)), gpu.empty(3, np.float32)
    launch(gpu, x[:3], y)
    assert y.get().tolist() == [2, 2, 2]
    launch(gpu, x, y)
    with pytest.raises(AssertionError, match="twice wrote beyond an array"):
        y.get()


def test_pinned_memory_may_be_larger_than_asked_for(gpu: GPU) -> None:
    memory = np.frombuffer(gpu.cuda.alloc_pinned_memory(1000), np.uint8)
    assert memory.size == 1024
    assert memory.flags.writeable
    assert gpu.used == 0


def test_memory_of_the_host_is_not_the_devices(gpu: GPU) -> None:
    x = gpu.asarray(OLD)
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(x)
    with pytest.raises(AssertionError, match="the host's memory"):
        launch(gpu, OLD, x)
