"""A rank's share of the updates that several ranks compute together, each on its GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, TypeAlias

import numpy as np

from ...devices import Array, Device, get_device
from ...kernels.cuda.nccl import Nccl, new_id, why_no_nccl
from ...params import GradSum
from ..base import Setup
from ..ranks import Ranks
from ..reduce import AcrossRanks

__all__ = ["Share", "share_of"]

_log = logging.getLogger(__name__)

_Vector: TypeAlias = np.ndarray[Any, Any]


class Share:
    """Which rows of an update are this rank's, and what adds up the sums over all ranks' rows.

    Of all rows it is a part that lies together, and the others need not be on this GPU. Of a mini-batch it is as many.

    Parameters
    ----------
    setup : Setup
        With ranks, and at least as many rows in a batch.

    Attributes
    ----------
    setup : Setup
        With this rank's rows, if it is a full batch; as it was given, if not.
    captures : bool
        Whether a CUDA graph can stand for :meth:`add_up`.
    """

    def __init__(self, setup: Setup) -> None:
        assert setup.ranks is not None
        self._ranks, self._device = setup.ranks, setup.model.device
        self.setup = setup if setup.batch_size else _part(setup, self.rows(setup.rows.shape[0]))
        size = setup.model.layout.size + 1  # the loss comes last
        nccl = _nccl(setup.ranks, self._device)
        self.captures = nccl is not None
        self._add_up = _through_host(setup, size) if nccl is None else nccl.add_up

    def rows(self, count: int) -> range:
        """Return which of `count` rows are this rank's: neighbors, and of fewer rows no more."""
        each, more = divmod(count, self._ranks.size)
        first = each * self._ranks.rank + min(more, self._ranks.rank)
        return range(first, first + each + (self._ranks.rank < more))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        return self._ranks.any(flag)

    def order(self, order: _Vector, batch_size: int) -> _Vector:
        """Return the part of an order of all rows (n,) that this rank takes, batch after batch."""
        whole = len(order) // batch_size * batch_size
        parts = []
        for batches in (order[:whole].reshape(-1, batch_size), order[None, whole:]):
            own = self.rows(batches.shape[1])
            parts.append(batches[:, own.start : own.stop].reshape(-1))
        return np.concatenate(parts)

    def add_up(self, vector: Array) -> None:
        """Replace a vector (P + 1,) by its sum over all ranks, as work for the current stream."""
        self._add_up(vector, self._device.xp.cuda.get_current_stream())


def share_of(setup: Setup) -> Share | None:
    """Return this rank's share; None if there is no other rank, or if a batch has fewer rows than there are ranks."""
    size = 1 if setup.ranks is None else setup.ranks.size
    if not 1 < size <= (setup.batch_size or setup.rows.shape[0]):
        return None
    with setup.model.device.active():
        return Share(setup)


def _part(setup: Setup, part: range) -> Setup:
    """Return the setup for some of the rows, all of them at once."""
    rows, extents = slice(part.start, part.stop), setup.plan.extents
    return replace(
        setup,
        rows=setup.rows.part(part.start, part.stop),
        targets=replace(setup.targets, y=setup.targets.y[rows]),
        plan=setup.plan if extents is None else replace(setup.plan, extents=extents[rows]),
    )


def _through_host(setup: Setup, size: int) -> Callable[[Array, Any], None]:
    """Return a function that replaces a vector by its sum over all ranks, added in their order on the host."""
    ranks = setup.ranks
    assert ranks is not None
    total = AcrossRanks(ranks, ranks.size, size, get_device("cpu"), setup.model.dtype)
    return lambda vector, stream: vector.set(total.reduce([GradSum(0.0, 0, vector.get())]).grad)


def _nccl(ranks: Ranks, device: Device) -> Nccl | None:
    """Return what connects the ranks' GPUs, or None if there is nothing; made once for a communicator and its GPUs."""
    from mpi4py import MPI

    lacking = why_no_nccl()
    properties = device.xp.cuda.runtime.getDeviceProperties(device.where.id)
    place = tuple(properties[f"pci{name}ID"] for name in ("Domain", "Bus", "Device"))
    places = ranks.comm.allgather(None if lacking else (MPI.Get_processor_name(), place))
    if None in places or len(set(places)) < ranks.size:
        reason = lacking or ("a rank has no NCCL" if None in places else "ranks have the same GPU")
        _log.warning("rank %d: gradients go through the host, not from GPU to GPU: %s", ranks.rank, reason)
        return None
    known: dict[Any, Nccl] | None = ranks.comm.Get_attr(_key())
    if known is None:
        known = {}
        ranks.comm.Set_attr(_key(), known)
    if tuple(places) not in known:
        unique_id = ranks.comm.bcast(new_id() if ranks.rank == 0 else None)
        known[tuple(places)] = Nccl(ranks.size, ranks.rank, unique_id)
    return known[tuple(places)]


@cache
def _key() -> int:
    """Return the key under which a communicator has what connects its GPUs."""
    from mpi4py import MPI

    return int(MPI.Comm.Create_keyval())
