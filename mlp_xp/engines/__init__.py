"""Engines: where rows are, and where updates are computed."""

from __future__ import annotations

from functools import singledispatch

from ..devices import CupyDevice, Device, NumpyDevice
from .base import Done, Engine, Setup

__all__ = ["Done", "Engine", "Setup", "make_engine"]


def make_engine(setup: Setup) -> Engine:
    """Return the fastest engine for the model's device."""
    return _engine_on(setup.model.device, setup)


@singledispatch
def _engine_on(device: Device, setup: Setup) -> Engine:
    from .host import HostEngine

    return HostEngine(setup)


@_engine_on.register
def _(device: NumpyDevice, setup: Setup) -> Engine:
    from .threads import ThreadEngine

    return ThreadEngine(setup)


@_engine_on.register
def _(device: CupyDevice, setup: Setup) -> Engine:
    from .cuda.memory import make_cuda_engine

    return make_cuda_engine(setup)
