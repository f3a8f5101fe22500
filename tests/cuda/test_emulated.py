"""The emulated CUDA finds what is wrong with a program, and finds nothing else."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

cupy: Any = pytest.importorskip("cupy")

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("emulated")]

Emulated = Any


@pytest.fixture
def error(emulated: Emulated) -> Callable[[], str]:
    """Return what takes the errors that a test expects; the suite fails a test for all others."""
    return lambda: emulated.errors().strip()


@pytest.fixture(autouse=True)
def no_pool(emulated: Emulated) -> Any:
    """Have every array allocated by CUDA, and none given back by a collection while an error stands."""
    gc.collect()
    with cupy.cuda.using_allocator(None):
        yield


def kernel(body: str) -> Any:
    """Return a kernel ``k(float* x, float* y, int n)``."""
    text = f'extern "C" __global__ void k(float* x, float* y, int n) {{\n{body}\n}}'
    return cupy.RawKernel(text, "k", ("-std=c++17",))


FILL = "for (int i = threadIdx.x; i < n; i += blockDim.x) x[i] = 7;"
COPY = "for (int i = threadIdx.x; i < n; i += blockDim.x) x[i] = y[i];"


def run(
    body: str, x: Any, y: Any = None, *, n: int | None = None, grid: int = 1, block: int = 32, shared: int = 0
) -> None:
    kernel(body)((grid,), (block,), (x, x if y is None else y, np.int32(x.size if n is None else n)), shared_mem=shared)


def refused(call: Callable[[], object]) -> str:
    """Return the error that CUDA answers with."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return str(caught.value)


# Memory.


def test_new_memory_is_nan_and_so_is_what_is_used_again() -> None:
    first = cupy.empty(100, dtype=np.float32)
    assert np.isnan(first.get()).all()
    first[...] = 1
    address = first.data.ptr
    del first
    again = [cupy.empty(100, dtype=np.float32)]
    while again[-1].data.ptr != address:
        again.append(cupy.empty(100, dtype=np.float32))
    assert np.isnan(again[-1].get()).all()


TOUCH = "import cupy, ctypes; x = cupy.zeros(10); x.get(); print(ctypes.string_at(x.data.ptr, 8))"


def test_the_host_cannot_touch_it() -> None:
    died = subprocess.run([sys.executable, "-c", TOUCH], capture_output=True, check=False)
    assert died.returncode == -11
    assert not died.stdout


@pytest.mark.parametrize("at", [0, 511])
def test_writing_behind_an_array_is_found(at: int, error: Callable[[], str]) -> None:
    x = cupy.zeros(1000, dtype=np.uint8)
    run(f"reinterpret_cast<char*>(x)[n + {at}] = 1;", x, block=1)
    assert "IllegalAddress" in refused(x.get)
    assert error() == "what ran last: wrote beyond an allocation of 1000 bytes"


def test_reading_behind_an_array_is_found_with_pages(emulated: Emulated, error: Callable[[], str]) -> None:
    with emulated.settings(pages=True):
        y, x = cupy.zeros(64, dtype=np.float32), cupy.zeros(64, dtype=np.float32)  # x is allocated behind y
    run(COPY, x, y)
    assert not x.get().any()
    run("x[0] = y[n];", x, y, block=1)
    assert "IllegalAddress" in refused(x.get)
    assert error() == "k: an access to memory that is not there"


def test_memory_that_was_given_back_is_no_memory(error: Callable[[], str]) -> None:
    x, y = cupy.zeros(64, dtype=np.float32), cupy.zeros(64, dtype=np.float32)
    k, address = kernel(COPY), np.uint64(y.data.ptr)
    del y
    k((1,), (32,), (x, address, np.int32(64)))
    assert "IllegalAddress" in refused(x.get)
    assert "parameter 1" in error()


def test_an_error_stays_until_it_is_asked_for(error: Callable[[], str]) -> None:
    x = cupy.zeros(4, dtype=np.float32)
    run("x[1 << 28] = 0;", x, block=1)
    for _ in range(2):
        assert "IllegalAddress" in refused(cupy.cuda.runtime.deviceSynchronize)
    assert "IllegalAddress" in refused(lambda: cupy.zeros(4, dtype=np.float32))
    assert error() == "k: an access to memory that is not there"
    cupy.cuda.runtime.deviceSynchronize()


def test_a_device_has_the_memory_that_is_set(emulated: Emulated) -> None:
    left, total = cupy.cuda.runtime.memGetInfo()
    with emulated.settings(memory=total - left + (10 << 20)):
        arrays = [cupy.zeros(1 << 20, dtype=np.uint8) for _ in range(5)]
        free, _ = cupy.cuda.runtime.memGetInfo()
        assert 9 << 19 < free < 11 << 19
        assert "MemoryAllocation" in refused(lambda: cupy.zeros(6 << 20, dtype=np.uint8))
        del arrays
        cupy.zeros(6 << 20, dtype=np.uint8)


def test_one_allocation_fails(emulated: Emulated) -> None:
    with emulated.settings(failing_allocation=2):
        cupy.empty(10)
        assert "MemoryAllocation" in refused(lambda: cupy.empty(10))
        cupy.empty(10)


# What runs when.


def test_work_runs_when_somebody_waits_for_it() -> None:
    pinned = np.frombuffer(cupy.cuda.alloc_pinned_memory(64), np.float32, 16)
    pinned[...] = 1
    x, stream = cupy.empty(16, dtype=np.float32), cupy.cuda.Stream(non_blocking=True)
    x.set(pinned, stream=stream)
    pinned[...] = 2  # the copy has not begun
    stream.synchronize()
    assert (x.get() == 2).all()


def test_pageable_memory_is_read_at_once() -> None:
    host = np.ones(16, np.float32)
    x, stream = cupy.empty(16, dtype=np.float32), cupy.cuda.Stream(non_blocking=True)
    x.set(host, stream=stream)
    host[...] = 2
    stream.synchronize()
    assert (x.get() == 1).all()


@pytest.mark.parametrize("waits", [True, False])
def test_a_stream_waits_for_another_if_it_is_told(waits: bool) -> None:
    x, y = cupy.empty(64, dtype=np.float32), cupy.empty(64, dtype=np.float32)
    first, second = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    with first:
        run(FILL, y)
        done = first.record()
    with second:
        if waits:
            second.wait_event(done)
        run(COPY, x, y)
        got = x.get()  # waits for `second` only
    assert (got == 7).all() if waits else np.isnan(got).all()
    first.synchronize()
    assert (y.get() == 7).all()


@pytest.mark.parametrize("non_blocking", [False, True])
@pytest.mark.parametrize("default_first", [False, True])
def test_blocking_streams_and_the_default_stream_wait_for_each_other(non_blocking: bool, default_first: bool) -> None:
    x, y = cupy.empty(64, dtype=np.float32), cupy.empty(64, dtype=np.float32)
    streams = [cupy.cuda.Stream.null, cupy.cuda.Stream(non_blocking=non_blocking)][:: 1 if default_first else -1]
    with streams[0]:
        run(FILL, y)
    with streams[1]:
        run(COPY, x, y)
        got = x.get()
    assert np.isnan(got).all() if non_blocking else (got == 7).all()
    cupy.cuda.runtime.deviceSynchronize()


def test_the_first_answer_to_a_query_is_not_yet() -> None:
    x, stream = cupy.empty(4, dtype=np.float32), cupy.cuda.Stream(non_blocking=True)
    with stream:
        run(FILL, x)
        assert (stream.done, stream.done) == (False, True)
        run(FILL, x)
        event = stream.record()
        assert (event.done, event.done) == (False, True)


def test_events_tell_the_time_between_them() -> None:
    begin = cupy.cuda.get_current_stream().record()
    run(FILL, cupy.empty(100_000, dtype=np.float32))
    end = cupy.cuda.get_current_stream().record()
    end.synchronize()
    assert 0 < cupy.cuda.get_elapsed_time(begin, end) < 10_000


# Captures.


@pytest.fixture
def stream() -> Any:
    """Return a stream that is captured, and end the capture."""
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        yield stream
        with contextlib.suppress(Exception):  # if the test has ended it
            stream.end_capture()


def test_a_graph_does_what_was_captured_and_not_before(emulated: Emulated) -> None:
    x, k = cupy.zeros(32, dtype=np.float32), kernel("x[threadIdx.x] += 1;")
    k((1,), (32,), (x, x, np.int32(0)))
    before, stream = emulated.counts(), cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        for _ in range(3):
            k((1,), (32,), (x, x, np.int32(0)))
        graph = stream.end_capture()
        cupy.cuda.runtime.deviceSynchronize()
        assert (x.get() == 1).all()
        graph.launch()
        graph.launch()
    stream.synchronize()
    assert (x.get() == 7).all()
    found = emulated.counts() - before
    assert (found.captures, found.captured, found.graphs) == (1, 3, 2)


@pytest.mark.parametrize(
    ("forbidden", "answer"),
    [
        (lambda stream: cupy.cuda.runtime.streamSynchronize(stream.ptr), "StreamCaptureUnsupported"),
        (lambda stream: cupy.cuda.runtime.deviceSynchronize(), "StreamCaptureUnsupported"),
        (lambda stream: wait_for(stream.record()), "CapturedEvent"),
        (lambda stream: copy_from(np.ones(4, np.float32), stream), "StreamCaptureUnsupported"),
        (lambda stream: stream.wait_event(elsewhere()), "StreamCaptureIsolation"),
    ],
    ids=["stream", "device", "event", "pageable memory", "work of before"],
)
def test_what_a_capture_forbids_ends_it(forbidden: Callable[[Any], object], answer: str, stream: Any) -> None:
    assert answer in refused(lambda: forbidden(stream))
    assert "StreamCaptureInvalidated" in refused(stream.end_capture)
    assert not stream.is_capturing()


def wait_for(event: Any) -> None:
    cupy.cuda.runtime.eventSynchronize(event.ptr)


def copy_from(host: np.ndarray[Any, Any], stream: Any) -> None:
    """Copy to the device without CuPy's own check."""
    x = cupy.empty(4, np.float32)
    cupy.cuda.runtime.memcpyAsync(x.data.ptr, host.ctypes.data, 16, 1, stream.ptr)


def elsewhere() -> Any:
    """Return an event after work that waits."""
    with cupy.cuda.Stream(non_blocking=True) as other:
        run(FILL, cupy.empty(4, dtype=np.float32))
        return other.record()


def test_the_default_stream_may_not_wait_for_a_captured_one(error: Callable[[], str]) -> None:
    stream = cupy.cuda.Stream()  # a blocking one
    x = cupy.zeros(4, dtype=np.float32)
    with stream:
        stream.begin_capture()
        with cupy.cuda.Stream.null:
            assert "StreamCaptureImplicit" in refused(lambda: run(FILL, x))
        assert "StreamCaptureInvalidated" in refused(stream.end_capture)


@pytest.mark.parametrize("joins", [True, False])
def test_a_stream_that_joined_a_capture_is_joined_by_it(joins: bool, stream: Any) -> None:
    x, other = cupy.zeros(4, dtype=np.float32), cupy.cuda.Stream(non_blocking=True)
    other.wait_event(stream.record())
    with other:
        run(FILL, x)
        done = other.record()
    if joins:
        stream.wait_event(done)
        stream.end_capture().launch()
        stream.synchronize()
        assert (x.get() == 7).all()
    else:
        assert "StreamCaptureUnjoined" in refused(stream.end_capture)


def test_one_operation_of_a_capture_fails(emulated: Emulated, stream: Any) -> None:
    x = cupy.zeros(4, dtype=np.float32)
    with emulated.settings(failing_capture=2):
        run(FILL, x)
        refused(lambda: run(FILL, x))
        assert "StreamCaptureInvalidated" in refused(stream.end_capture)


def test_memory_of_the_capture_that_is_given_back_is_missed(error: Callable[[], str]) -> None:
    """A graph keeps no array alive."""
    x, stream = cupy.zeros(64, dtype=np.float32), cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        y = cupy.empty(64, dtype=np.float32)
        run(FILL, y)
        run(COPY, x, y)
        graph = stream.end_capture()
        del y
        graph.launch()
        assert "IllegalAddress" in refused(stream.synchronize)
    assert "is no memory of device 0" in error()


# Devices.


def test_memory_of_another_device_is_refused(error: Callable[[], str]) -> None:
    with cupy.cuda.Device(1):
        y = cupy.zeros(64, dtype=np.float32)
    x = cupy.zeros(64, dtype=np.float32)
    kernel(COPY)((1,), (32,), (x, np.uint64(y.data.ptr), np.int32(64)))
    assert "IllegalAddress" in refused(x.get)
    assert "is no memory of device 0" in error()


def test_a_stream_of_another_device_is_refused(error: Callable[[], str]) -> None:
    with cupy.cuda.Device(1):
        stream = cupy.cuda.Stream(non_blocking=True)
    x, k = cupy.zeros(64, dtype=np.float32), kernel(FILL)
    k.compile()
    refused(lambda: k((1,), (32,), (x, x, np.int32(64)), stream=stream))
    assert "of another device" in error()


def test_arrays_travel_between_devices() -> None:
    with cupy.cuda.Device(1):
        y = cupy.arange(64, dtype=np.float32)
    x = cupy.empty(64, dtype=np.float32)
    cupy.cuda.runtime.memcpyPeer(x.data.ptr, 0, y.data.ptr, 1, x.nbytes)
    np.testing.assert_array_equal(x.get(), np.arange(64))


# Kernels.


def test_threads_meet_at_barriers_and_shuffle() -> None:
    body = """
    __shared__ float s[64];
    float sum = threadIdx.x;
    for (int mask = 16; mask; mask /= 2) sum += __shfl_xor_sync(~0u, sum, mask);
    s[threadIdx.x] = sum;
    __syncthreads();
    x[blockIdx.x * 64 + threadIdx.x] = s[63 - threadIdx.x];"""
    x = cupy.zeros(192, dtype=np.float32)
    run(body, x, grid=3, block=64)
    np.testing.assert_array_equal(x.get().reshape(3, 2, 32)[:, :, 0], [[sum(range(32, 64)), sum(range(32))]] * 3)


def test_blocks_and_threads_run_in_the_order_that_is_set(emulated: Emulated) -> None:
    body = "if (n < 0) __syncthreads(); x[int(y[0])] = 8 * blockIdx.x + threadIdx.x; y[0] += 1;"
    k, found = kernel(body), []
    for order in (0, -1, 1, 2):
        x, y = cupy.zeros(24, dtype=np.float32), cupy.zeros(1, dtype=np.float32)
        with emulated.settings(order=order):
            k((3,), (8,), (x, y, np.int32(0)))
            found.append(x.get().astype(int).tolist())
    assert found[:2] == [list(range(24)), list(range(23, -1, -1))]
    assert [sorted(order) for order in found[2:]] == [list(range(24))] * 2
    assert len(set(map(str, found))) == 4


def test_threads_that_wait_at_different_barriers(error: Callable[[], str]) -> None:
    x = cupy.zeros(4, dtype=np.float32)
    run("if (threadIdx.x < 3) __syncthreads(); else __syncwarp();", x)
    refused(x.get)
    assert error() == "k: threads of a block wait at different barriers"


def test_shared_memory_ends_where_the_launch_says(error: Callable[[], str]) -> None:
    x, body = cupy.zeros(4, dtype=np.float32), "extern __shared__ float s[]; s[n] = 1; x[0] = s[0];"
    run(body, x, n=3, block=1, shared=16)
    assert np.isnan(x.get()[0])
    run(body, x, n=4, block=1, shared=16)
    refused(x.get)
    assert error() == "k: wrote beyond its shared memory"


def test_launches_that_no_gpu_takes() -> None:
    x = cupy.zeros(4, dtype=np.float32)
    for shape in ({"block": 1025}, {"shared": 49_153}):
        assert "CUDA_ERROR_INVALID_VALUE" in refused(lambda shape=shape: run(FILL, x, **shape))
    k = kernel("extern __shared__ float s[]; s[50000 / 4] = 1;")
    with pytest.raises(Exception, match="INVALID_VALUE"):
        k.max_dynamic_shared_size_bytes = 1 << 20
    k.max_dynamic_shared_size_bytes = 51_000
    k((1,), (1,), (x, x, np.int32(4)), shared_mem=51_000)


def test_a_whole_number_divided_by_zero(error: Callable[[], str]) -> None:
    x = cupy.zeros(4, dtype=np.float32)
    run("x[0] = 5 / (n - 4);", x)
    refused(x.get)
    assert error() == "k: a whole number divided by zero"


def test_a_program_that_does_not_compile_says_why() -> None:
    message = refused(lambda: run("x[0] = unknown;", cupy.zeros(4, dtype=np.float32)))
    assert "unknown" in message
    assert "was not declared" in message


def test_what_is_not_emulated_says_its_name(capfd: pytest.CaptureFixture[str]) -> None:
    assert "NotSupported" in refused(lambda: cupy.cuda.runtime.deviceSetLimit(0, 1))
    assert "emulated CUDA: cudaDeviceSetLimit is missing" in capfd.readouterr().err


# Products.


@pytest.mark.parametrize(("precision", "digits"), [("tf32", 11), ("bf16", 8), ("fp32", 24)])
def test_factors_are_rounded_as_tensor_cores_do(precision: str, digits: int, rng: Any) -> None:
    from mlp_xp.kernels.cuda.cublas import CuBLAS

    def rounded(x: Any) -> Any:
        fraction, exponent = np.frexp(x.astype(float))
        return np.ldexp(np.rint(fraction * 2**digits), exponent - digits)

    A, B = rng.standard_normal((5, 1)).astype(np.float32), rng.standard_normal((1, 7)).astype(np.float32)
    C = cupy.empty((5, 7), dtype=np.float32)
    library = CuBLAS(cupy.cuda.get_current_stream().ptr, cupy.empty(1024, dtype=np.uint8), precision=precision)
    library.gemm(cupy.asarray(A), cupy.asarray(B), C)
    np.testing.assert_allclose(C.get(), rounded(A) * rounded(B), rtol=1e-7)


def test_a_factor_on_another_device(error: Callable[[], str]) -> None:
    from mlp_xp.kernels.cuda.cublas import CuBLAS

    with cupy.cuda.Device(1):
        A = cupy.ones((2, 2), dtype=np.float32)
    B, C = cupy.ones((2, 2), dtype=np.float32), cupy.empty((2, 2), dtype=np.float32)
    library = CuBLAS(cupy.cuda.get_current_stream().ptr, cupy.empty(1024, dtype=np.uint8))
    library.gemm(A, B, C)
    refused(C.get)
    assert error() == "gemm: a factor is not on the device"


# Races, which kernels compiled for it report.

LAST = """
    x[32 * blockIdx.x + threadIdx.x] = 1;
    {}
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) last = atomicInc(reinterpret_cast<unsigned*>(y), gridDim.x - 1) == gridDim.x - 1;
    {}
    if (last) x[500 + threadIdx.x] = x[threadIdx.x] + x[32 + (threadIdx.x ^ 5)];"""
SHARED = "__shared__ float s[64]; s[threadIdx.x] = 1;"
RACES = {  # and whether they are
    "own elements": ("x[blockIdx.x * blockDim.x + threadIdx.x] = 1;", False),
    "one element": ("x[threadIdx.x / 2] = 1;", True),
    "one element of two blocks": ("x[threadIdx.x] = 1;", True),
    "an element that is read": ("if (blockIdx.x == 0) x[32 + threadIdx.x] = x[33 + threadIdx.x];", True),
    "all read one": ("x[64 * blockIdx.x + threadIdx.x] = y[0];", False),
    "the block's barrier": (SHARED + "__syncthreads(); x[64 * blockIdx.x + threadIdx.x] = s[63 - threadIdx.x];", False),
    "no barrier": (SHARED + "x[64 * blockIdx.x + threadIdx.x] = s[63 - threadIdx.x];", True),
    "the warp's barrier": (SHARED + "__syncwarp(); x[64 * blockIdx.x + threadIdx.x] = s[threadIdx.x ^ 5];", False),
    "the other warp's": (SHARED + "__syncwarp(); x[64 * blockIdx.x + threadIdx.x] = s[threadIdx.x ^ 32];", True),
    "written while it may be read": (
        SHARED + "__syncthreads(); const float r = s[63 - threadIdx.x]; s[threadIdx.x] = r;", True,
    ),
    "the last block": (LAST.format("__threadfence();", "__syncthreads();"), False),
    "the last block without a fence": (LAST.format("", "__syncthreads();"), True),
    "the last block without a barrier": (LAST.format("__threadfence();", ""), True),
    "written after the ticket": (
        LAST.format("__threadfence();", "x[32 * blockIdx.x + threadIdx.x] = 2; __syncthreads();"), True,
    ),
}  # fmt: skip
SCRIPT = """
import cupy, numpy as np
from tests.cuda import emulated
from tests.cuda.test_emulated import RACES, run
for name, (body, _) in RACES.items():
    x = cupy.zeros(1000, dtype=np.float32)
    run(body, x, cupy.zeros(4, dtype=np.float32), grid=2, block=64 if "64" in body else 32)
    try:
        x.get()
    except Exception:
        pass
    print(name, emulated.errors().strip(), sep=";")
"""


@pytest.mark.slow
def test_races_are_found() -> None:
    environment = {**os.environ, "MLP_XP_KERNEL_FLAGS": "-fsanitize=thread"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    found = dict(line.split(";") for line in done.stdout.splitlines())
    assert found == {name: "k: threads race" * races for name, (_, races) in RACES.items()}
