"""Engines: where rows are, and where updates are computed."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import singledispatch

from ..devices import CupyDevice, Device, JaxDevice, NumpyDevice, TorchDevice
from ..mlp import MLP
from ..objective import Objective
from ..optim import LBFGS, SGD, Optimizer
from ..rows.plan import Plan, make_plan
from ..rows.source import InMemory, Rows
from ..rows.stored import StoredRows
from .base import Done, Engine, Setup
from .ranks import Ranks

__all__ = ["Done", "Engine", "Ranks", "Setup", "choose_plan", "make_engine"]

_log = logging.getLogger(__name__)


def choose_plan(
    rows: Rows,
    model: MLP,
    optimizer: Optimizer,
    kind: str,
    epochs: int | None,
    batch_size: int | None,
    before: str | None = None,
    objective: Objective | None = None,
) -> Plan:
    """Return the plan for the engine that :func:`make_engine` will make.

    Parameters
    ----------
    rows, model, optimizer
        What will be trained.
    kind, epochs, batch_size
        As for :func:`mlp_xp.rows.plan.make_plan`.
    before : str, optional
        The kind of plan of a run that goes on. ``"auto"`` keeps it, if it is available here.
    objective : Objective, optional
        What will be minimized, if it is not the model's own.
    """
    reason = _why_not_compiled(model, optimizer, rows, objective or model.objective)
    if reason is not None and isinstance(model.device, NumpyDevice):
        _log.info("NumPy computes, not the compiled library: %s", reason)
    if kind == "auto" and before is not None and _has(rows, model.device, before, reason is None):
        kind = before
    return make_plan(rows, model.device, kind, epochs, batch_size, reason is None)


def _has(rows: Rows, device: Device, kind: str, skips: bool) -> bool:
    """Return whether rows on a device can have a plan of this kind."""
    if kind == "sparse":
        return skips
    kept = InMemory if kind in ("zero", "ragged") else (InMemory, StoredRows)
    return device.epochs_to_repay_plan is not None and isinstance(rows, kept)


def _why_not_compiled(model: MLP, optimizer: Optimizer, rows: Rows, objective: Objective) -> str | None:
    """Return why the compiled library cannot train this, in words, or None if it can."""
    if not isinstance(model.device, NumpyDevice):
        return f"device {model.device.name!r} computes"
    from .compiled_program import why_not

    return why_not(model, optimizer, rows, objective)


def _why_no_graphs(setup: Setup) -> str | None:
    """Return why the kernels of whole epochs on a GPU cannot train this, in words, or None if they can."""
    if setup.targets.weights is not None:
        return "the rows have weights"
    return None if setup.dropout is None else "units are dropped"


def make_engine(setup: Setup) -> Engine:
    """Return the fastest engine for the model's device."""
    optimizer, ranks = setup.optimizer, setup.ranks
    gradients = replace(setup, optimizer=SGD()) if isinstance(optimizer, LBFGS) else setup
    engine = _engine_on(setup.model.device, gradients)
    if ranks is not None:
        what = "its share of each update" if engine.shared else "whole updates"
        _log.info("rank %d of %d does %s; threads: %d", ranks.rank, ranks.size, what, setup.threads)
    if not isinstance(optimizer, LBFGS):
        return engine
    from .lbfgs import LbfgsEngine

    return LbfgsEngine(setup.model, optimizer, engine, leads=ranks is None or ranks.rank == 0)


@singledispatch
def _engine_on(device: Device, setup: Setup) -> Engine:
    from .host import HostEngine

    return HostEngine(setup)


@_engine_on.register
def _(device: NumpyDevice, setup: Setup) -> Engine:
    reason = _why_not_compiled(setup.model, setup.optimizer, setup.rows, setup.objective)
    if setup.plan.kind in ("dense", "sparse") and reason is None:
        from .compiled import CompiledEngine

        return CompiledEngine(setup)
    from .threads import ThreadEngine

    return ThreadEngine(setup)


@_engine_on.register
def _(device: JaxDevice, setup: Setup) -> Engine:
    from .host import HostEngine
    from .jax_ import JaxEngine, why_not

    reason = why_not(setup)
    if reason is None:
        return JaxEngine(setup)
    _log.info("JAX computes operation by operation, not compiled: %s", reason)
    return HostEngine(setup)


@_engine_on.register
def _(device: TorchDevice, setup: Setup) -> Engine:
    from .torch_ import TorchEngine

    return TorchEngine(setup)


@_engine_on.register
def _(device: CupyDevice, setup: Setup) -> Engine:
    reason = _why_no_graphs(setup)
    if reason is not None:
        from .cuda.by_operations import make_host_engine

        _log.info("the GPU computes operation by operation, not in graphs: %s", reason)
        return make_host_engine(setup)
    from .cuda.memory import make_cuda_engine

    return make_cuda_engine(setup)
