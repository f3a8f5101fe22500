"""How many threads NumPy's BLAS has, for the whole process, and how many threads are worth starting."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from threadpoolctl import ThreadpoolController

__all__ = [
    "Library",
    "at_most",
    "blas_libraries",
    "default_threads",
    "limit_this_thread",
    "one_blas_thread",
    "one_other_blas_thread",
    "other_blas_libraries",
]


class Library(NamedTuple):
    """A BLAS library whose number of threads can be read and set.

    Attributes
    ----------
    controller : threadpoolctl.LibController
        What threadpoolctl knows about it.
    get, set : callable
    """

    controller: Any
    get: Callable[[], int]
    set: Callable[[int], object]


@cache
def blas_libraries() -> tuple[Library, ...]:
    """Return the BLAS that came with NumPy, or else every BLAS that is loaded: NumPy uses one of them.

    Finding them takes a few milliseconds. There are none if NumPy uses one that cannot be told, like Accelerate.
    """
    found = ThreadpoolController().select(user_api="blas").lib_controllers
    own = [controller for controller in found if "numpy" in controller.filepath]
    libraries = [_library(controller) for controller in own or found]
    return tuple(library for library in libraries if library.get() is not None)


@cache
def other_blas_libraries() -> tuple[Library, ...]:
    """Return every other BLAS that is loaded at the first call, such as SciPy's."""
    own = {library.controller.filepath for library in blas_libraries()}
    found = ThreadpoolController().select(user_api="blas").lib_controllers
    return tuple(_library(controller) for controller in found if controller.filepath not in own)


def _library(controller: Any) -> Library:
    if controller.internal_api == "openblas" and getattr(controller, "threading_layer", "") != "openmp":
        # threadpoolctl looks the functions up in each call, and 3.8 obeys only the first thread that sets a number
        for prefix, suffix in product(("scipy_", ""), ("64_", "_64", "")):
            get = getattr(controller.dynlib, f"{prefix}openblas_get_num_threads{suffix}", None)
            set_ = getattr(controller.dynlib, f"{prefix}openblas_set_num_threads{suffix}", None)
            if get is not None and set_ is not None:
                return Library(controller, get, set_)
    return Library(controller, controller.get_num_threads, controller.set_num_threads)


class _Entered(threading.local):
    """How often a thread is in a context."""

    times = 0


class _OneThread:
    """A context that keeps NumPy's BLAS, or every other one, at one thread as long as anybody is in it.

    The number is the process's, so the users are counted: the first one saves and limits it, and the last one restores
    it, whatever the order in which they leave. Each user setting back what it found would leave the process at one
    thread as soon as two of them overlap (joblib/threadpoolctl#205).
    """

    def __init__(self, other: bool = False) -> None:
        self._other, self._users, self._own = other, 0, _Entered()
        self._before: list[tuple[Library, int]] = []
        self._new_lock()

    def _new_lock(self) -> None:
        # reentrant, as the garbage collector may close an abandoned generator, which leaves, while this thread enters
        self._lock = threading.RLock()

    def forget_others(self) -> None:
        """Go on in a forked child, which has this thread alone: the others will neither leave nor release the lock."""
        self._new_lock()
        others = self._users > self._own.times
        self._users = self._own.times
        if others and not self._users:
            self._restore()

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            self._own.times += 1
            if self._users == 1:
                self._before = [(library, library.get()) for library in self._libraries()]
                for library, _ in self._before:
                    library.set(1)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            self._own.times -= 1
            if self._users == 0:
                self._restore()

    def _restore(self) -> None:
        for library, threads in self._before:
            library.set(threads)

    def _libraries(self) -> tuple[Library, ...]:
        return other_blas_libraries() if self._other else blas_libraries()

    def before(self) -> list[int]:
        """Return how many threads each library has while nobody is here."""
        with self._lock:
            return [n for _, n in self._before] if self._users else [library.get() for library in self._libraries()]


one_blas_thread = _OneThread()
"""The context for NumPy's BLAS, one for the process."""
one_other_blas_thread = _OneThread(other=True)
"""The context for SciPy's, whose threads wait for each other longer than they work on vectors."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=one_blas_thread.forget_others)
    os.register_at_fork(after_in_child=one_other_blas_thread.forget_others)


def limit_this_thread() -> None:
    """Limit BLAS in a new thread that works for somebody in the context: with OpenMP each thread has its own number."""
    for library in blas_libraries():
        if getattr(library.controller, "threading_layer", "") == "openmp":
            library.set(1)


_asked: ContextVar[tuple[int, ...]] = ContextVar("_asked", default=())


@contextmanager
def at_most(threads: int | None) -> Iterator[None]:
    """Limit :func:`default_threads` in this block and thread, so that what measures a training obeys its `threads`."""
    token = _asked.set(_asked.get() if threads is None else (threads,))
    try:
        yield
    finally:
        _asked.reset(token)


def default_threads() -> int:
    """Return how many threads to use if nobody says: one per core that this process may use, or fewer where asked for.

    That is the least of the cores it may run on, the quota of its control group, what :func:`at_most` says, and the
    number of threads that BLAS had before it was limited here, from OPENBLAS_NUM_THREADS, OMP_NUM_THREADS or
    ``threadpool_limits``.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *_quota(), *(one_blas_thread.before() or _from_environment()), *_asked.get()]))


def _from_environment() -> list[int]:
    """Return the number that OpenMP was told, for a BLAS that cannot be asked."""
    number = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # "4,2": by level of nesting
    return [int(number)] if number.isdecimal() else []


@cache
def _quota(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> tuple[int, ...]:
    """Return the cores' worth of time that each control group around this process allows, on Linux; at least one.

    A container limits time (``docker run --cpus 2``) and not the cores, which the affinity would show.

    Parameters
    ----------
    root : Path
        Where control groups are mounted.
    groups : Path
        Lists this process's own, as ``ID:CONTROLLERS:PATH``.
    """
    try:
        lines = [line.split(":", 2) for line in groups.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return ()
    found = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "cpu" if controllers else root  # version 1 has a tree per controller, version 2 has one
        own = Path(path.lstrip("/"))
        found += [_allowed(mount / group) for group in (own, *own.parents)]
    return tuple(max(1, ceil(cores)) for cores in found if cores is not None)


def _allowed(group: Path) -> float | None:
    """Return the cores' worth of time that a control group allows, or None if it has no limit."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = (
                (group / f"cpu.cfs_{what}_us").read_text(encoding="ascii").strip() for what in ("quota", "period")
            )
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # "max", or a file of some other kernel
        return None
