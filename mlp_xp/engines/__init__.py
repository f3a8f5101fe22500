"""Engines: where rows are, and where updates are computed."""

from __future__ import annotations

import logging
from functools import singledispatch

from ..devices import CupyDevice, Device, NumpyDevice
from ..mlp import MLP
from ..optim import Optimizer
from ..rows.plan import Plan, make_plan
from ..rows.source import Rows
from .base import Done, Engine, Setup

__all__ = ["Done", "Engine", "Setup", "choose_plan", "make_engine"]

_log = logging.getLogger(__name__)


def choose_plan(
    rows: Rows, model: MLP, optimizer: Optimizer, kind: str, epochs: int | None, batch_size: int | None
) -> Plan:
    """Return the plan for the engine that :func:`make_engine` will make; the arguments are those of ``make_plan``."""
    return make_plan(rows, model.device, kind, epochs, batch_size, _is_compiled(model, optimizer, rows))


def _is_compiled(model: MLP, optimizer: Optimizer, rows: Rows) -> bool:
    """Return whether the compiled library can train this; if not, one line in the log says why."""
    if not isinstance(model.device, NumpyDevice):
        return False
    from .compiled import why_not

    reason = why_not(model, optimizer, rows)
    if reason is not None:
        _log.info("NumPy computes, not the compiled library: %s", reason)
    return reason is None


def make_engine(setup: Setup) -> Engine:
    """Return the fastest engine for the model's device."""
    return _engine_on(setup.model.device, setup)


@singledispatch
def _engine_on(device: Device, setup: Setup) -> Engine:
    from .host import HostEngine

    return HostEngine(setup)


@_engine_on.register
def _(device: NumpyDevice, setup: Setup) -> Engine:
    if setup.plan.kind in ("dense", "sparse") and _is_compiled(setup.model, setup.optimizer, setup.rows):
        from .compiled import CompiledEngine

        return CompiledEngine(setup)
    from .threads import ThreadEngine

    return ThreadEngine(setup)


@_engine_on.register
def _(device: CupyDevice, setup: Setup) -> Engine:
    from .cuda.memory import make_cuda_engine

    return make_cuda_engine(setup)
