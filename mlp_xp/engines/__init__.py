"""Engines: where rows are, and where updates are computed."""

from __future__ import annotations

from functools import singledispatch

from ..devices import CupyDevice, Device, NumpyDevice
from .base import Done, Engine, Training

__all__ = ["Done", "Engine", "Training", "make_engine"]


def make_engine(training: Training) -> Engine:
    """Return the fastest engine for the model's device."""
    return _engine_on(training.model.device, training)


@singledispatch
def _engine_on(device: Device, training: Training) -> Engine:
    from .host import HostEngine

    return HostEngine(training)


@_engine_on.register
def _(device: NumpyDevice, training: Training) -> Engine:
    from .threads import ThreadEngine

    return ThreadEngine(training)


@_engine_on.register
def _(device: CupyDevice, training: Training) -> Engine:
    from .cuda.memory import make_cuda_engine

    return make_cuda_engine(training)
