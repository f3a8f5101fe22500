"""Sums over the GPUs of several processes by NCCL, from GPU to GPU."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

from ...devices import Array

__all__ = ["Nccl", "new_id", "why_no_nccl"]


@cache
def why_no_nccl() -> str:
    """Return why CuPy has no NCCL, in words, or nothing if it has."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        from cupy.cuda import nccl
    if nccl.available:
        return ""
    return " ".join(str(told[0].message).split()) if told else "CuPy cannot load NCCL"


def new_id() -> Any:
    """Return what the processes of one communicator have to know: one of them makes it, and tells the others."""
    from cupy.cuda import nccl

    return nccl.get_unique_id()


class Nccl:
    """The GPUs of several processes, each the current one of its process.

    All of them have to make it, with the same `unique_id`, and none goes on before all have.

    Parameters
    ----------
    size, rank : int
        How many processes there are, and the number of this one.
    unique_id
        What :func:`new_id` returned in one of them.
    """

    def __init__(self, size: int, rank: int, unique_id: Any) -> None:
        from cupy.cuda import nccl

        self._communicator = nccl.NcclCommunicator(size, unique_id, rank)
        self._sum, self._types = nccl.NCCL_SUM, {"float32": nccl.NCCL_FLOAT32, "float64": nccl.NCCL_FLOAT64}

    def add_up(self, vector: Array, stream: Any) -> None:
        """Replace a vector by its sum over all processes, the same bits in each: work for the stream, not for now."""
        at, kind = vector.data.ptr, self._types[vector.dtype.name]
        self._communicator.allReduce(at, at, vector.size, kind, self._sum, stream.ptr)
