"""Ranks: the processes that train one model together, and what they say to one another through MPI.

Each one has the same parameters at the end of each update, bit for bit, and so decides the same from them. What does
not follow from them, such as a signal or a clock, is agreed on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cache, partial
from time import sleep
from typing import Any

import numpy as np

from ..kernels.cpu.compiled import Message

__all__ = ["Ranks", "Requests"]

_give_way = getattr(os, "sched_yield", partial(sleep, 0))


class Ranks:
    """The processes of an MPI communicator.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        Every one of its processes has to do the same calls. Messages go through a duplicate of it, and meet no others.
        It is made once, and lives as long as the communicator.

    Attributes
    ----------
    rank, size : int
        The number of this process, and how many there are.

    Raises
    ------
    ValueError
        If it is no communicator of one group of processes.
    """

    def __init__(self, comm: Any) -> None:
        if not hasattr(comm, "Get_attr"):
            raise ValueError(
                f"comm must be a communicator of mpi4py, such as MPI.COMM_WORLD, got {type(comm).__name__}"
            )
        if not comm:
            raise ValueError(
                "comm is MPI.COMM_NULL, which Split gives to processes that are in no group; leave them out"
            )
        if comm.Is_inter():
            raise ValueError("comm is an intercommunicator, between two groups of processes; give comm.Merge()")
        self.comm = comm.Get_attr(_key())
        if self.comm is None:
            self.comm = comm.Dup()
            comm.Set_attr(_key(), self.comm)
        self.rank, self.size = int(self.comm.rank), int(self.comm.size)

    def share(self, count: int, rank: int | None = None) -> range:
        """Return which of `count` things are a rank's, this one's if None: neighbors, and about as many for each."""
        rank = self.rank if rank is None else rank
        return range(count * rank // self.size, count * (rank + 1) // self.size)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        return bool(self.comm.allreduce(int(flag)))

    def of_first(self, number: int) -> int:
        """Return the number that rank 0 gives."""
        return int(self.comm.bcast(number))

    def fill(self, rows: np.ndarray[Any, Any], edges: Sequence[int]) -> None:
        """Fill in the others' rows (n, k): each rank has those of its share of the parts that `edges` bound."""
        from mpi4py import MPI

        parts = [self.share(len(edges) - 1, rank) for rank in range(self.size)]
        width = rows[0].nbytes
        starts, stops = [edges[part.start] * width for part in parts], [edges[part.stop] * width for part in parts]
        counts = [stop - start for start, stop in zip(starts, stops, strict=True)]
        self.comm.Allgatherv(MPI.IN_PLACE, [rows, counts, starts, MPI.BYTE])

    def local(self) -> int:
        """Return the number of this process among the ranks of its machine."""
        from mpi4py import MPI

        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        number = int(node.rank)
        node.Free()
        return number

    def threads(self, cores: int) -> int:
        """Return how many threads each of the ranks that share this one's cores can have: at least one."""
        from mpi4py import MPI

        own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        beside = sum(not own.isdisjoint(other) for other in node.allgather(own))
        node.Free()
        return max(1, cores // beside)


@cache
def _key() -> int:
    """Return the key under which a communicator has its duplicate."""
    from mpi4py import MPI

    return int(MPI.Comm.Create_keyval(delete_fn=lambda comm, key, duplicate: duplicate.Free()))


class Requests:
    """Messages of the compiled library, which come again and again: each list of them is prepared once.

    Parameters
    ----------
    ranks : Ranks

    Attributes
    ----------
    error : BaseException or None
        What was raised while messages were sent. The library cannot be left by an exception.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.error: BaseException | None = None
        self._ranks = ranks
        self._known: dict[int, list[Any]] = {}

    def __call__(self, key: int, messages: Any, count: int) -> int:
        """Send and receive the messages of this key."""
        from mpi4py import MPI

        try:
            if key not in self._known:
                self._known[key] = self._prepared(messages[:count])
            MPI.Prequest.Startall(self._known[key])
            while not MPI.Prequest.Testall(self._known[key]):  # MPI's own waiting would keep the core from others
                _give_way()
        except BaseException as error:
            self.error = error
            MPI.Prequest.Waitall(self._known.get(key, []))  # what has begun would write into memory that may be gone
            return 1
        return 0

    def _prepared(self, messages: Iterable[Message]) -> list[Any]:
        from mpi4py import MPI

        comm, own = self._ranks.comm, self._ranks.rank
        sends, receives = [], []
        for tag, message in enumerate(messages):
            memory = MPI.buffer.fromaddress(message.at, message.bytes), MPI.BYTE
            if message.sender == own:
                receivers = range(self._ranks.size) if message.receiver < 0 else [message.receiver]
                sends += [comm.Send_init(memory, receiver, tag) for receiver in receivers if receiver != own]
            elif message.receiver in (-1, own):
                receives.append(comm.Recv_init(memory, message.sender, tag))
        return receives + sends

    def close(self) -> None:
        """Forget what was prepared."""
        for requests in self._known.values():
            for request in requests:
                request.Free()
        self._known = {}
