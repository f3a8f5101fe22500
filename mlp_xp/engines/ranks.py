"""Ranks: the processes that train one model together, and what they say to one another through MPI.

Each one has the same parameters at the end of each update, bit for bit, and so decides the same from them. What does
not follow from them, such as a signal or a clock, is agreed on.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Ranks"]


class Ranks:
    """The processes of an MPI communicator.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        Every one of its processes has to do the same calls. Messages go through a duplicate of it, and meet no others.

    Attributes
    ----------
    rank, size : int
        The number of this process, and how many there are.
    """

    def __init__(self, comm: Any) -> None:
        try:
            self.comm = comm.Dup()
        except AttributeError:
            raise ValueError(
                f"comm must be a communicator of mpi4py, such as MPI.COMM_WORLD, got {type(comm).__name__}"
            ) from None
        self.rank, self.size = int(self.comm.rank), int(self.comm.size)

    def share(self, count: int, rank: int | None = None) -> range:
        """Return which of `count` things are a rank's, this one's if None: neighbours, and about as many for each."""
        rank = self.rank if rank is None else rank
        return range(count * rank // self.size, count * (rank + 1) // self.size)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        return bool(self.comm.allreduce(int(flag)))
