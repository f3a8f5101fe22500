"""Choose an engine that fits into the device's memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

from ...devices import Device
from ...rows.stored import StoredRows
from ..base import Setup
from .engine import CudaEngine
from .share import share_of

__all__ = ["make_cuda_engine"]

_log = logging.getLogger(__name__)

_SHORTAGE = "MemoryAllocation", "OUT_OF_MEMORY", "ALLOC_FAILED"  # what CUDA, its driver and cuBLAS say of it
_LEAST_ROWS = 256  # of a shard; with fewer a GPU is no faster than a CPU
_ENOUGH_ROWS = 8192  # of a shard: rather than use fewer, data are left on the host


def make_cuda_engine(setup: Setup) -> CudaEngine:
    """Return an engine for a GPU.

    If the memory does not suffice for shards of the usual size, they get smaller, and then data that came from the host
    stay there. Smaller shards round differently; the log says what was chosen, and what did not fit.

    Raises
    ------
    MemoryError
        If not even the smallest shards fit.
    """
    device, reason = setup.model.device, ""
    size, on_host = setup.batch_size or setup.rows.shape[0], setup.rows.home is None
    with device.active():
        share = share_of(setup)
        rows = setup.rows if share is None else share.setup.rows
        any_rank = bool if share is None else share.any  # the parameters' order is that of the plan, on all ranks
        in_vain = any_rank(isinstance(rows, StoredRows) and not _has_room(device, rows))
        for streamed, shard_rows in _attempts(device.shard_rows, size, on_host):
            if in_vain and not streamed:  # to find out would read the file
                continue
            what = f"shards of {shard_rows} rows, with the data on the {'host' if streamed else 'device'}"
            engine = None
            try:
                engine = CudaEngine(setup, shard_rows, streamed, share).take_memory()
            except Exception as error:
                if not isinstance(error, MemoryError) and not any(word in str(error) for word in _SHORTAGE):
                    raise
                reason = str(error)
                _log.warning("%s has no memory for %s: %s", device.name, what, reason)
            failed = any_rank(engine is None)
            if engine is not None and not failed:
                if reason:
                    _log.warning("%s goes on with %s", device.name, what)
                return engine
            engine, reason = None, reason or "another rank has too little memory."
            device.xp.get_default_memory_pool().free_all_blocks()
    raise MemoryError(
        f"device {device.name!r} has too little memory even for {_LEAST_ROWS} rows at a time and "
        f"{setup.model.layout.size} parameters: {reason} Use smaller layers, or device 'cpu'"
    )


def _has_room(device: Device, rows: StoredRows) -> bool:
    """Return whether the device's free memory would hold the rows."""
    pool, free = device.xp.get_default_memory_pool(), device.xp.cuda.runtime.memGetInfo()[0]
    room = min(free + pool.free_bytes(), (pool.get_limit() or math.inf) - pool.used_bytes())
    return bool(math.prod(rows.shape) * rows.dtype.itemsize < room)


def _attempts(shard_rows: int, size: int, on_host: bool) -> Iterator[tuple[bool, int]]:
    """Yield what to try for batches of some size: whether to leave the data on the host, and the rows of a shard."""
    for streamed in (False, True) if on_host else (False,):
        yield streamed, shard_rows
        rows, least = shard_rows // 2, _ENOUGH_ROWS if on_host and not streamed else _LEAST_ROWS
        while rows >= least:
            if streamed or rows < size:  # on the device, no shard is larger than a batch
                yield streamed, rows
            rows //= 2
