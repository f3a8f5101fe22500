"""NumPy with the parts of CuPy that training on a GPU uses: kernels run on the CPU's shim, and streams can be captured.

While a stream is captured nothing runs, and anything but kernels and matrix products on that stream is an error: a
wait, a copy from or to the host, an allocation, an operation of the array library. A graph keeps no array alive.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import array_api_compat.numpy as numpy_xp
import numpy as np

from .kernel_build import CpuModule, check_arguments
from .test_cublas_marshalling import Library

_MODULES: dict[tuple[str, tuple[str, ...]], CpuModule] = {}


class Array(np.ndarray):
    """An array on the device: what is not a view or an address goes through :meth:`GPU.work`."""

    gpu: GPU

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.ctypes.data)

    def get(self) -> Any:
        return self.gpu.work("copy to the host", lambda: np.array(self.view(np.ndarray)))

    def set(self, host: Any) -> None:
        def copy() -> None:
            self.view(np.ndarray)[...] = host

        assert type(host) is np.ndarray
        assert (host.dtype, host.shape) == (self.dtype, self.shape)
        self.gpu.work("copy from the host", copy)

    def copy(self) -> Any:
        return self.gpu.work("allocation", lambda: self.gpu.array(self.view(np.ndarray).copy()))

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return found if isinstance(found, np.ndarray) else super().__getitem__((key, ...))  # never a number of the host

    def __setitem__(self, key: Any, value: Any) -> None:
        self.gpu.work("assignment", lambda: super(Array, self).__setitem__(key, value))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        def plain(x: Any) -> Any:
            return x.view(np.ndarray) if isinstance(x, Array) else x

        if out is not None:
            kwargs["out"] = tuple(map(plain, out))
        result = self.gpu.work(ufunc.__name__, lambda: getattr(ufunc, method)(*map(plain, inputs), **kwargs))
        return out[0] if out is not None else self.gpu.array(result)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return self.gpu.work(
            function.__name__, lambda: super(Array, self).__array_function__(function, types, args, kwargs)
        )

    def __float__(self) -> float:
        return float(self.get())


class Stream:
    def __init__(self, gpu: GPU, ptr: int) -> None:
        self.gpu, self.ptr = gpu, ptr

    def __enter__(self) -> None:
        self.before, self.gpu.current = self.gpu.current, self

    def __exit__(self, *error: object) -> None:
        self.gpu.current = self.before

    def record(self) -> Any:
        return self.gpu.work("event", lambda: self)

    def wait_event(self, event: Any) -> None:
        self.gpu.work("event", lambda: None)

    def synchronize(self) -> None:
        self.gpu.work("wait for the device", lambda: None)

    def begin_capture(self) -> None:
        assert self.ptr, "the default stream cannot be captured"
        assert self.gpu.captured is None
        self.gpu.captured, self.gpu.capturing = [], self

    def end_capture(self) -> Graph:
        graph, self.gpu.captured = Graph(self.gpu, self.gpu.captured), None
        return graph


class Graph:
    def __init__(self, gpu: GPU, launches: Any) -> None:
        self.gpu, self.launches = gpu, launches

    def launch(self) -> None:
        self.gpu.log.append("graph")
        for _, launch in self.launches:
            launch()


class FakeLibrary(Library):
    """cuBLAS that does as its stream does."""

    def __init__(self, gpu: GPU) -> None:
        super().__init__()
        self.gpu, self.streams = gpu, {}

    def create(self) -> int:
        return self.gpu.work("a handle of cuBLAS", lambda: len(self.streams) + 1)

    def destroy(self, handle: int) -> None:
        pass

    def set_stream(self, handle: int, stream: int) -> None:
        self.gpu.work("a stream for cuBLAS", lambda: self.streams.__setitem__(handle, stream))

    def set_workspace(self, handle: int, address: int, size: int) -> None:
        self.gpu.work("a workspace for cuBLAS", lambda: None)

    def gemm_ex(self, handle: int, *rest: Any) -> None:
        assert self.streams[handle] == self.gpu.current.ptr, "the product is on another stream"
        m, n, k = rest[2:5]
        self.gpu.work("gemm", lambda: Library.gemm_ex(self, handle, *rest), ("gemm", m, n, k))


class GPU:
    """Stands for the module ``cupy``; ``log`` says what was asked for, kernels by name."""

    def __init__(self, multiprocessors: int = 2) -> None:
        self.log: list[Any] = []
        self.captured: list[Any] | None = None
        self.capturing: Stream | None = None
        self.current = Stream(self, 0)
        self.streams = 0
        self.array_type = type("Array", (Array,), {"gpu": self})
        self.library = FakeLibrary(self)
        device = SimpleNamespace(
            id=0, attributes={"MultiProcessorCount": multiprocessors, "MaxSharedMemoryPerBlockOptin": 227 * 1024}
        )
        self.cuda = SimpleNamespace(
            Stream=self._stream, Device=lambda *_: device, get_current_stream=lambda: self.current,
            MemoryPool=lambda: SimpleNamespace(malloc=None), using_allocator=self._allocator,
        )  # fmt: skip

    def array(self, x: Any) -> Any:
        return np.asarray(x).view(self.array_type)

    def work(self, kind: str, run: Callable[[], Any], entry: Any = None) -> Any:
        """Run, or put off, what the device is asked for."""
        if self.captured is None:
            self.log.append(entry or kind)
            return run()
        assert kind in ("kernel", "gemm"), f"{kind} while a stream is captured"
        assert self.current is self.capturing, f"{kind} beside the captured stream"
        return self.captured.append((entry, run))

    def _stream(self, non_blocking: bool) -> Stream:
        assert non_blocking
        self.streams += 1
        return Stream(self, self.streams)

    @contextlib.contextmanager
    def _allocator(self, malloc: Any) -> Iterator[None]:
        yield

    def RawKernel(self, code: str, name: str, options: tuple[str, ...]) -> Any:
        if (code, options) not in _MODULES:
            macros = dict(option.removeprefix("-D").split("=") for option in options if option.startswith("-D"))
            _MODULES[code, options] = CpuModule(code, macros)
        return _Function(self, _MODULES[code, options], name)

    def __getattr__(self, name: str) -> Any:
        found = getattr(numpy_xp, name)
        if isinstance(found, type) or not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            views = name in ("reshape",)
            result = found(*args, **kwargs) if views else self.work(name, lambda: found(*args, **kwargs))
            return self.array(result)

        return call


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
        owners = [weakref.ref(_owner(x)) for x in arguments if isinstance(x, np.ndarray)]
        values = [_address(x) if isinstance(x, np.ndarray) else x for x in arguments]

        def run() -> None:
            assert all(owner() is not None for owner in owners), f"{self.name} works on memory that was given back"
            self.module.launch(self.name, grid[0], (columns, lanes), *values, shared=shared_mem)

        numbers = [int(x) for x in arguments if isinstance(x, np.integer)]
        self.gpu.work("kernel", run, (self.name, grid[0], *numbers))


def _owner(x: Any) -> Any:
    while isinstance(x.base, np.ndarray):
        x = x.base
    return x


def _address(x: Any) -> Any:
    """Return what stands for an array in a launch, and does not keep it."""
    return SimpleNamespace(ctypes=SimpleNamespace(data=x.ctypes.data))
