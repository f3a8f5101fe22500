"""NumPy with the parts of CuPy that training on a GPU uses: kernels run on the CPU's shim, and streams can be captured.

It does the worst that CUDA allows. Work that a stream is asked for is done late, see ``fake_streams.py``; only the
functions of the array library, unlike its operators, do their work at once, after all that the current stream was asked
for. New memory holds NaNs, and ends in bytes that no kernel may change; what is copied from pinned memory is what that
holds when it is the copy's turn.

There are two devices. As CuPy's, they are current by thread, new threads begin on the first, and neither can reach the
memory of the other.

While a stream is captured nothing runs, and anything but kernels and matrix products on that stream is an error: a
wait, a copy from or to the host, an allocation, an operation of the array library. A graph keeps no array alive.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import array_api_compat.numpy as numpy_xp
import numpy as np

from .fake_streams import Event, Stream
from .kernel_build import CpuModule, check_arguments
from .test_cublas_marshalling import COMPUTE_64F, Library

_MODULES: dict[tuple[str, tuple[str, ...]], CpuModule] = {}


class Block:
    """Memory of a device, which counts as long as an array is on it, and bytes behind it that belong to nobody."""

    def __init__(self, nbytes: int, device: int) -> None:
        self.device = device
        self.memory, self.behind = np.split(np.full(nbytes + 256, 255, np.uint8), [nbytes])


class Array(np.lib.mixins.NDArrayOperatorsMixin):
    """An array on the device: what is not a view or an address is asked of the current stream.

    Attributes
    ----------
    host : np.ndarray
        The numbers, where work that is still to be done finds them; it does not keep the block.
    """

    def __init__(self, gpu: GPU, host: Any, block: Block) -> None:
        self.gpu, self.host, self.block = gpu, host, block
        self.shape, self.dtype, self.strides, self.flags = host.shape, host.dtype, host.strides, host.flags
        self.ndim, self.size, self.itemsize, self.nbytes = host.ndim, host.size, host.itemsize, host.nbytes
        self.data = SimpleNamespace(ptr=host.ctypes.data)
        self.device = gpu.cuda.Device(block.device)

    @property
    def T(self) -> Array:
        return Array(self.gpu, self.host.T, self.block)

    def get(self) -> Any:
        self.gpu.request("copy to the host", self)
        self.gpu.current.last.finish()
        return self.host.copy()

    def set(self, host: Any) -> None:
        self.gpu.request("copy from the host", self)
        assert type(host) is np.ndarray
        assert (host.dtype, host.shape) == (self.dtype, self.shape)
        assert self.flags.c_contiguous
        pinned = _find(self.gpu.pinned, host.ctypes.data) is not None
        source = host if pinned else host.copy()
        self.gpu.current.ask(partial(np.copyto, self.host, source), by_bus=pinned)

    def copy(self) -> Array:
        self.gpu.request("allocation", self)
        copy = self.gpu.new(self.shape, self.dtype)
        self.gpu.current.ask(partial(np.copyto, copy.host, self.host))
        return copy

    def astype(self, dtype: Any, copy: bool = True) -> Array:
        return self.gpu.astype(self, dtype, copy=copy)

    def tobytes(self) -> bytes:
        return self.get().tobytes()

    def __float__(self) -> float:
        return float(self.get())

    def __bool__(self) -> bool:
        return bool(self.get())

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Array:
        keys = key if isinstance(key, tuple) else (key,)
        assert all(k is None or isinstance(k, int | np.integer | slice) for k in keys if k is not ...), "not a view"
        return Array(self.gpu, self.host[keys if ... in keys else (*keys, ...)], self.block)  # never a number

    def __setitem__(self, key: Any, value: Any) -> None:
        self.gpu.request("assignment", self)
        value = value.copy() if isinstance(value, np.ndarray) else _host(value)
        self.gpu.current.ask(partial(self.host.__setitem__, key, value))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Array:
        self.gpu.request(ufunc.__name__, *(x for x in inputs if isinstance(x, Array)))
        run = partial(getattr(ufunc, method), *_host(inputs), **kwargs)
        if out is None:
            with np.errstate(all="ignore"):
                like = np.asarray(run())  # on whatever the inputs hold by now: for the shape and dtype alone
            out = (self.gpu.new(like.shape, like.dtype),)
        self.gpu.current.ask(partial(run, out=_host(out)))
        return out[0]

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_namespace__(self, api_version: str | None = None) -> GPU:
        return self.gpu


class PinnedMemory(bytearray):
    """Memory of the host that copies are made from without a buffer between."""


class FakeLibrary(Library):
    """cuBLAS that does as its stream does."""

    def __init__(self, gpu: GPU) -> None:
        super().__init__()
        self.gpu, self.streams, self.devices = gpu, {}, {}

    def create(self) -> int:
        self.gpu.request("a handle of cuBLAS")
        handle = len(self.devices) + 1
        self.devices[handle] = self.gpu.cuda.Device().id
        return handle

    def destroy(self, handle: int) -> None:
        pass

    def set_stream(self, handle: int, stream: int) -> None:
        self.gpu.request("a stream for cuBLAS")
        self.streams[handle] = stream

    def set_workspace(self, handle: int, address: int, size: int) -> None:
        self.gpu.request("a workspace for cuBLAS")

    def gemm_ex(self, handle: int, *rest: Any) -> None:
        assert self.streams[handle] == self.gpu.current.ptr, "the product is on another stream"
        assert self.devices[handle] == self.gpu.cuda.Device().id, "the product is on another device"
        ops, (m, n, k), (alpha, a, a_type, lda, b, b_type, ldb, beta, c, *last) = rest[:2], rest[2:5], rest[5:]
        scalar = ctypes.c_double if last[-2] == COMPUTE_64F else ctypes.c_float
        factor, keep = (scalar(scalar.from_address(address).value) for address in (alpha, beta))

        def run() -> None:
            operands = ctypes.addressof(factor), a, a_type, lda, b, b_type, ldb, ctypes.addressof(keep), c
            Library.gemm_ex(self, handle, *ops, m, n, k, *operands, *last)

        self.gpu.launch(("gemm", m, n, k), run, [_find(self.gpu.blocks, address) for address in (a, b, c)])


class Device:
    """One of the devices; like CuPy's, an object keeps the devices to go back to, and is not for two threads."""

    def __init__(self, gpu: GPU, number: int, multiprocessors: int) -> None:
        self.gpu, self.id, self.before = gpu, number, []
        self.attributes = {"MultiProcessorCount": multiprocessors, "MaxSharedMemoryPerBlockOptin": 227 * 1024}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return self.id

    def use(self) -> None:
        self.gpu.thread.device = self.id

    def __enter__(self) -> None:
        self.before.append(self.gpu.cuda.Device().id)
        self.use()

    def __exit__(self, *error: object) -> None:
        self.gpu.thread.device = self.before.pop()

    @property
    def mem_info(self) -> tuple[int, int]:
        """Bytes that are free, and all."""
        total = 2**40 if self.gpu.limit is None else self.gpu.limit
        return total - self.gpu.used, total


class OutOfMemoryError(MemoryError):
    def __init__(self, size: int, total: int, limit: int) -> None:
        sizes = f"allocated so far: {total:,} bytes, limit set to: {limit:,} bytes"
        super().__init__(f"Out of memory allocating {size:,} bytes ({sizes}).")


class GPU:
    """Stands for the module ``cupy``.

    Attributes
    ----------
    log : list
        What was asked for, in this order, whenever it is done; kernels and products with their names and sizes.
    limit, used : int
        Bytes of memory, None for any number, and how many of them arrays are on.
    slow : {"device", "bus"}
        What is late: all work; or copies from pinned memory and what comes after them, while the rest is done at once.
        A missing event shows with one or the other.
    """

    def __init__(self, multiprocessors: int = 2) -> None:
        self.log: list[Any] = []
        self.limit: int | None = None
        self.used = 0
        self.slow = "device"
        self.captured: list[Any] | None = None
        self.capturing: Stream | None = None
        self.thread = threading.local()
        self.streams = [Stream(self, 0), Stream(self, 0)]  # the default streams of both devices
        self._current = list(self.streams)
        self.blocks: weakref.WeakValueDictionary[range, Block] = weakref.WeakValueDictionary()
        self.pinned: weakref.WeakValueDictionary[range, PinnedMemory] = weakref.WeakValueDictionary()
        self.library = FakeLibrary(self)
        self.device = Device(self, 0, multiprocessors)
        self.cuda = SimpleNamespace(
            Stream=self._stream, Device=self._device, get_current_stream=lambda: self.current,
            MemoryPool=lambda: SimpleNamespace(malloc=None), using_allocator=self._allocator,
            alloc_pinned_memory=self._pinned, memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            get_elapsed_time=_elapsed_time, runtime=SimpleNamespace(
                memGetInfo=lambda: self.device.mem_info, getDeviceProperties=lambda number: {"name": b"a stand-in"}
            ),
        )  # fmt: skip

    @property
    def current(self) -> Stream:
        """The current stream of the current device."""
        return self._current[self.cuda.Device().id]

    @current.setter
    def current(self, stream: Stream) -> None:
        self._current[self.cuda.Device().id] = stream

    def _device(self, number: int | None = None) -> Device:
        if number is None:
            number = getattr(self.thread, "device", 0)
        return Device(self, number, self.device.attributes["MultiProcessorCount"])

    def request(self, what: str, *arrays: Array) -> None:
        """Log what is asked for; a stream that is captured takes nothing but launches."""
        assert self.captured is None, f"{what} while a stream is captured"
        self._check_device(what, [array.block for array in arrays])
        self.log.append(what)

    def _check_device(self, what: str, blocks: list[Block]) -> None:
        here = self.cuda.Device().id
        assert all(block.device == here for block in blocks), f"{what} on device {here}, and its memory is elsewhere"

    def launch(self, entry: tuple[Any, ...], run: Callable[[], None], blocks: list[Block]) -> None:
        """Ask the current stream, or the graph that is captured from it, for work on memory."""
        assert None not in blocks, f"{entry[0]} works on memory that is not the device's"
        self._check_device(entry[0], blocks)
        owners, behind = list(map(weakref.ref, blocks)), [block.behind for block in blocks]

        def run_within() -> None:
            run()
            assert all((part == 255).all() for part in behind), f"{entry[0]} wrote beyond an array"

        def launch() -> None:
            assert all(owner() is not None for owner in owners), f"{entry[0]} works on memory that was given back"
            self.current.ask(run_within)

        if self.captured is None:
            self.log.append(entry)
            launch()
        else:
            assert self.current is self.capturing, f"{entry[0]} beside the captured stream"
            self.captured.append((entry, launch))

    def new(self, shape: Any, dtype: Any) -> Array:
        """Return an array on memory of its own."""
        shape, dtype = (shape,) if isinstance(shape, int) else tuple(shape), np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if self.limit is not None and self.used + size > self.limit:
            gc.collect()  # as CuPy does
            if self.used + size > self.limit:
                raise OutOfMemoryError(size, self.used, self.limit)
        block = Block(size, self.cuda.Device().id)
        self.used += size
        weakref.finalize(block, self._give_back, block.memory).atexit = False
        self.blocks[_place(block.memory)] = block
        return Array(self, np.ndarray(shape, dtype, block.memory), block)

    def _give_back(self, memory: Any) -> None:
        """Count memory no more; work that was asked for may still use it: CuPy's pool hands it on in that order."""
        self.used -= memory.nbytes
        for stream in self.streams:
            if stream.last.run is not None:
                stream.last.keeps.append(memory)

    def get_default_memory_pool(self) -> Any:
        return SimpleNamespace(
            free_all_blocks=lambda: self.log.append("the pool is emptied"), get_limit=lambda: self.limit or 0
        )

    def _pinned(self, nbytes: int) -> PinnedMemory:
        memory = PinnedMemory(1 << max(nbytes - 1, 0).bit_length())  # a power of two
        self.pinned[_place(np.frombuffer(memory, np.uint8))] = memory
        return memory

    def _stream(self, non_blocking: bool) -> Stream:
        assert non_blocking
        self.streams.append(Stream(self, len(self.streams)))
        return self.streams[-1]

    @contextlib.contextmanager
    def _allocator(self, malloc: Any) -> Iterator[None]:
        yield

    def RawKernel(self, code: str, name: str, options: tuple[str, ...]) -> Any:
        if (code, options) not in _MODULES:
            macros = dict(option.removeprefix("-D").split("=") for option in options if option.startswith("-D"))
            _MODULES[code, options] = CpuModule(code, macros)
        return _Function(self, _MODULES[code, options], name)

    # The array library.

    def empty(self, shape: Any, dtype: Any = np.float64, device: Any = None) -> Array:
        self.request("empty")
        return self.new(shape, dtype)

    def reshape(self, x: Array, shape: Any) -> Array:
        found = x.host.reshape(shape)
        return Array(self, found, x.block) if np.may_share_memory(found, x.host) else self._call("reshape", x, shape)

    def __getattr__(self, name: str) -> Any:
        found = getattr(numpy_xp, name)
        return found if isinstance(found, type) or not callable(found) else partial(self._call, name)

    def _call(self, name: str, *args: Any, device: Any = None, **kwargs: Any) -> Array:
        assert device in (None, self.cuda.Device()), "CuPy allocates on the current device, whatever device= says"
        self.request(name, *(x for x in (*args, *kwargs.values()) if isinstance(x, Array)))
        self.current.last.finish()
        result = np.asarray(getattr(numpy_xp, name)(*_host(args), **{key: _host(x) for key, x in kwargs.items()}))
        if block := _find(self.blocks, result.ctypes.data):
            return Array(self, result, block)
        array = self.new(result.shape, result.dtype)
        array.host[...] = result
        return array


class _Function:
    max_dynamic_shared_size_bytes = 48 * 1024

    def __init__(self, gpu: GPU, module: CpuModule, name: str) -> None:
        self.gpu, self.module, self.name = gpu, module, name

    def __call__(
        self, grid: tuple[int], block: tuple[int, ...], arguments: tuple[Any, ...], *, shared_mem: int
    ) -> None:
        check_arguments(self.module.parameters[self.name], arguments)
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        columns, lanes = (*block, 1)[:2]
        assert not any(isinstance(x, np.ndarray) for x in arguments), f"{self.name} works on the host's memory"
        values = [_address(x) if isinstance(x, Array) else x for x in arguments]
        run = partial(self.module.launch, self.name, grid[0], (columns, lanes), *values, shared=shared_mem)
        numbers = [int(x) for x in arguments if isinstance(x, np.integer)]
        self.gpu.launch((self.name, grid[0], *numbers), run, [x.block for x in arguments if isinstance(x, Array)])


def _elapsed_time(start: Event, end: Event) -> float:
    """Return milliseconds, as if each of the two were a moment that all streams share."""
    assert start.work.run is end.work.run is None, "the device is not there yet"
    return 1000 * (end.asked - start.asked)


def _host(x: Any) -> Any:
    """Return an array's numbers, also of arrays in a tuple or list; anything else as it is."""
    if isinstance(x, tuple | list):
        return type(x)(map(_host, x))
    return x.host if isinstance(x, Array) else x


def _address(x: Array) -> Any:
    """Return what stands for an array in a launch, and does not keep it."""
    return SimpleNamespace(ctypes=SimpleNamespace(data=x.data.ptr))


def _place(memory: Any) -> range:
    return range(memory.ctypes.data, memory.ctypes.data + memory.nbytes)


def _find(blocks: weakref.WeakValueDictionary[range, Any], address: int) -> Any:
    """Return the block that an address is in, or None."""
    return next((block for place, block in blocks.items() if address in place), None)
