"""CUDA graphs: work that is handed to the GPU once, and then started again with a single call."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

__all__ = ["Graphs"]

_log = logging.getLogger(__name__)

_idle: dict[int, list[Any]] = {}  # by device, streams that no graphs use any more
_turns: dict[int, threading.Lock] = {}  # by device, whose turn it is to capture or to launch


class Graphs:
    """Functions that launch work on a GPU, each from its second call on as a CUDA graph.

    The first call of a function is an ordinary one: it compiles kernels and makes the arrays that later calls use
    again. The second is captured on a stream of our own. What it allocates comes from a pool of our own that lives as
    long as the graphs, because a graph keeps no array alive and writes where it wrote, whoever owns that memory by then
    (cupy/cupy#9655). If capturing fails, as it does without nvmath-python (CuPy's products cannot be captured,
    cupy/cupy#6290), all calls are ordinary ones; the log says so once.

    Of several threads that train on a device, one at a time captures or launches: what an ordinary call does for the
    first time, such as loading kernels, can break a capture of another thread.

    Work runs after everything that the caller's current stream was asked for before, and before what it is asked for
    next. The stream is handed on when the graphs are gone: CuPy's pool keeps memory for the stream that it was first
    asked for on, so with a new stream each training would take new memory.

    Parameters
    ----------
    xp : module
        ``array_api_compat.cupy``.
    captures : bool
        Whether to capture at all.
    """

    def __init__(self, xp: Any, captures: bool = True) -> None:
        self.xp = xp
        device = xp.cuda.Device().id
        idle, self._turn = _idle.setdefault(device, []), _turns.setdefault(device, threading.Lock())
        self.stream = idle.pop() if idle else xp.cuda.Stream(non_blocking=True)  # the default one cannot be captured
        weakref.finalize(self, idle.append, self.stream)
        self._pool = xp.cuda.MemoryPool()
        self._graphs: dict[Hashable, Any] = {}  # None after the first call
        self._captures = captures

    def run(self, key: Hashable, function: Callable[[], object]) -> None:
        """Run the function that `key` stands for, which must launch the same work on the same arrays each time."""
        if self._captures and key in self._graphs and self._graphs[key] is None:
            self._graphs[key] = self._capture(function)
        graph = self._graphs.setdefault(key, None)
        self.call(function if graph is None else graph.launch)

    def call(self, function: Callable[[], object]) -> None:
        """Run the function on the stream of the graphs."""
        caller = self.xp.cuda.get_current_stream()
        with self._turn:
            self.stream.wait_event(caller.record())
            try:
                with self.stream:
                    function()
            finally:  # if memory runs out, what was launched before may still use arrays that are given back now
                caller.wait_event(self.stream.record())

    def _capture(self, function: Callable[[], object]) -> Any:
        """Return the graph of what the function launches, without running it; None if capturing fails."""
        try:
            with self._turn, _no_collection, self.stream, self.xp.cuda.using_allocator(self._pool.malloc):
                self.stream.begin_capture()
                try:
                    function()
                except BaseException:
                    with suppress(Exception):  # it may say again that the capture is broken; what broke it matters
                        self.stream.end_capture()
                    raise
                return self.stream.end_capture()
        except Exception as error:  # of whichever library refused; nothing was run, so an ordinary call can follow
            self._captures = False
            reason = f"{type(error).__name__}: {error}"  # a record with the error itself would keep its frames alive
            _log.warning("no CUDA graphs, so every step is launched by the host: %s", reason)
            return None


class _NoCollection:
    """While any thread is inside, collects no garbage: a finalizer may wait for the device, which a capture forbids."""

    def __init__(self) -> None:
        self._lock, self._inside, self._enabled = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._enabled = gc.isenabled()
                gc.disable()
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._enabled:
                gc.enable()


_no_collection = _NoCollection()
