"""Streams of a stand-in for a GPU: what they are asked for is done as late as CUDA allows, by the thread that waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any


class Work:
    """Something that a stream was asked for.

    Attributes
    ----------
    run : callable
        None once it is done.
    after : tuple of Work
        What has to be done before.
    keeps : list
        Memory that was given back while this was the last work of its stream, which may still use it.
    """

    def __init__(self, run: Callable[[], object] | None = None, after: Iterable[Work] = ()) -> None:
        self.run, self.after = run, tuple(after)
        self.keeps: list[Any] = []

    def finish(self) -> None:
        """Do it, and nothing but what has to be done before: first other streams' work, then that of its own."""
        path = [self]
        while path:
            work = path[-1]
            if first := [other for other in work.after if other.run is not None]:
                path += first
                continue
            path.pop()
            if work.run is not None:  # it may be on the path twice
                work.run()
                work.run, work.after, work.keeps = None, (), []


class Event:
    """All that a stream was asked for so far."""

    def __init__(self, gpu: Any, work: Work) -> None:
        self.gpu, self.work, self.asked = gpu, work, perf_counter()

    def synchronize(self) -> None:
        self.gpu.request("wait for the device")
        self.work.finish()


class Stream:
    """Work in the order in which it is asked for; like any other, the default stream at 0 only waits for events."""

    def __init__(self, gpu: Any, ptr: int) -> None:
        self.gpu, self.ptr = gpu, ptr
        self.last = Work()

    def __enter__(self) -> None:
        self.before, self.gpu.current = self.gpu.current, self

    def __exit__(self, *error: object) -> None:
        self.gpu.current = self.before

    def ask(self, run: Callable[[], object], *after: Work, by_bus: bool = False) -> None:
        """Put work at the end, which also comes after other streams' work."""
        self.last = Work(run, (self.last, *after))
        ready = all(work.run is None for work in self.last.after)
        if self.gpu.slow == "bus" and ready and not by_bus:
            self.last.finish()

    def record(self) -> Event:
        self.gpu.request("event")
        return Event(self.gpu, self.last)

    def wait_event(self, event: Event) -> None:
        self.gpu.request("event")
        self.ask(lambda: None, event.work)

    def synchronize(self) -> None:
        self.gpu.request("wait for the device")
        self.last.finish()

    def begin_capture(self) -> None:
        assert self.ptr, "the default stream cannot be captured"
        assert self.gpu.captured is None
        self.gpu.captured, self.gpu.capturing = [], self

    def end_capture(self) -> Graph:
        graph, self.gpu.captured = Graph(self.gpu, self.gpu.captured), None
        return graph


class Graph:
    """Launches, each with what the log says of it."""

    def __init__(self, gpu: Any, launches: Any) -> None:
        self.gpu, self.launches = gpu, launches

    def launch(self) -> None:
        self.gpu.request("graph")
        for _, launch in self.launches:
            launch()
