"""What the processes of a distributed training agree on, so that they go the same way, and end together."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from time import monotonic, sleep
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from ..checks import brief
from ..devices.blas_threads import default_threads
from ..engines import Ranks

__all__ = ["Agreement", "RankError"]

_PATIENCE = 5.0  # seconds that a rank in trouble waits for the others to be in the same trouble
_POLL = 0.0002
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # in the repr of a function: another one in each process
_HASH = re.compile(r"( with[a-z ]* sha256 [0-9a-f]{12})[0-9a-f]{52}")

_T = TypeVar("_T")


class RankError(RuntimeError):
    """Something went wrong on another rank.

    Attributes
    ----------
    rank : int
        Where.
    foreseen : bool
        Whether it was the input, a file, a library, or memory, and no bug.
    """

    def __init__(self, rank: int, problem: str, foreseen: bool) -> None:
        super().__init__(f"rank {rank}: {problem}")
        self.rank, self.foreseen = rank, foreseen


class _Problem(NamedTuple):
    """What a rank says of its error."""

    text: str
    foreseen: bool


class Agreement:
    """The processes of a communicator, who ask one another: ``with Agreement(comm) as ranks: ...``.

    If an error leaves the block on some ranks and within a few seconds the others do not leave it too, because they
    wait for these in the middle of an update, its traceback is printed and all processes are ended. Otherwise those
    that have no error of their own raise a :class:`RankError`.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        Without one, or with a single process, there is nobody to ask.

    Attributes
    ----------
    comm : mpi4py.MPI.Comm or None
        The one that was given.
    rank, size : int
        The number of this process, and how many there are.
    leads : bool
        Whether this is rank 0, which prints and writes for all.
    """

    def __init__(self, comm: Any = None) -> None:
        self.comm, self.rank, self.size, self._over = comm, 0, 1, False
        if comm is not None:
            self._ranks = Ranks(comm)
            self.rank, self.size = self._ranks.rank, self._ranks.size
            self._arrivals = comm.Dup()  # an error is no answer to what others were asked
        self.leads = self.rank == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._over:
                self._meet(error, inf if error is None else _PATIENCE, last=True)
        finally:
            if self.comm is not None:
                self._arrivals.Free()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        return any(self._gather(flag))

    def most(self, number: int) -> int:
        """Return the largest of the numbers that the ranks have."""
        return max(self._gather(number))

    def first(self, make: Callable[[], _T]) -> _T:
        """Return what `make` returns on rank 0, the only one to call it; an error of it is raised everywhere."""
        if self.size == 1:
            return make()
        made: Any = None
        with self.together():
            if self.leads:
                made = make()
        return self._ranks.comm.bcast(made)  # type: ignore[no-any-return]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let each rank do something by itself. None goes on unless all succeed; nobody is asked anything meanwhile."""
        try:
            yield
        except BaseException as error:
            self._meet(error)
            raise
        self._meet(None)

    def threads(self) -> int | None:
        """Return how many threads this process should have if nobody says, beside those that share its cores."""
        return None if self.size == 1 else self._ranks.threads(default_threads())

    def local(self) -> int:
        """Return the number of this process among those of its machine."""
        return 0 if self.size == 1 else self._ranks.local()

    def compare(self, described: Mapping[str, Any]) -> None:
        """Raise the same ValueError on all ranks if they do not describe themselves alike."""
        mine = {name: _ADDRESS.sub("", str(value)) for name, value in described.items()}
        everyones = self._gather(mine)
        problems = []
        for name in dict.fromkeys(name for each in everyones for name in each):
            said = [each.get(name, "missing") for each in everyones]
            if len(set(said)) > 1:
                holders: dict[str, list[str]] = {}
                for rank, value in enumerate(_shortened(said)):
                    holders.setdefault(value, []).append(str(rank))
                who = [f"{brief(value)} on rank {brief(', '.join(ranks))}" for value, ranks in holders.items()]
                problems.append(f"{name} is {', '.join(who)}")
        if problems:
            raise ValueError(f"ranks disagree: {'; '.join(problems)}; give all of them the same")

    def _gather(self, value: _T) -> list[_T]:
        return [value] if self.size == 1 else self._ranks.comm.allgather(value)

    def _meet(self, error: BaseException | None, patience: float = inf, last: bool = False) -> None:
        """Wait for all ranks; raise a RankError if one of them has an error and this one has none.

        If one of them leaves, this is the last time.
        """
        if self.size == 1:
            return
        arrival, deadline = self._arrivals.Ibarrier(), monotonic() + patience
        while not arrival.Test():
            if monotonic() > deadline:
                self._abort()
            sleep(_POLL)
        said = self._arrivals.allgather((last, None if error is None else _described(error)))
        self._over = any(leaves for leaves, _ in said)
        for rank, (_, problem) in enumerate(said):
            if error is None and problem is not None:
                raise RankError(rank, *problem)

    def _abort(self) -> None:
        """Print the error that is being handled and end all processes."""
        if sys.stdout is not None:
            sys.stdout.flush()
        if sys.__stderr__ is not None:  # the one of ranks above 0 may be silenced
            print(f"mlp_xp: rank {self.rank} ends all {self.size} ranks, for:", file=sys.__stderr__)
            traceback.print_exc(file=sys.__stderr__)
            sys.__stderr__.flush()
        self._arrivals.Abort(1)


def _shortened(said: list[str]) -> list[str]:
    """Return texts that differ without their hashes if they still do, or else with the first digits of them."""
    plain = [_HASH.sub("", text) for text in said]
    return plain if len(set(plain)) > 1 else [_HASH.sub(r"\1", text) for text in said]


def _described(error: BaseException) -> _Problem:
    foreseen = isinstance(error, ValueError | OSError | ImportError | MemoryError)
    text = str(error) if isinstance(error, ValueError) else "".join(traceback.format_exception_only(error)).strip()
    return _Problem(text, foreseen)
