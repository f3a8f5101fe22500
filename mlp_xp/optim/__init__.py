"""Optimizers over the flat parameter vector, as (init, update) pairs, and learning-rate schedules.

An ``update`` may overwrite the parameters and the state it is given, never the gradient; callers rebind both.
"""

from __future__ import annotations

from typing import Any

from .adam import Adam, AdamEpsilonHat, AdamW
from .base import Optimizer, OptimizerState
from .lbfgs import LBFGS
from .schedules import SCHEDULES, CosineDecay, ExponentialDecay, Schedule, Steered, StepDecay, WarmUp
from .sgd import SGD, SGDOfSteps

__all__ = [
    "LBFGS",
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adam",
    "AdamEpsilonHat",
    "AdamW",
    "CosineDecay",
    "ExponentialDecay",
    "Optimizer",
    "OptimizerState",
    "SGDOfSteps",
    "Schedule",
    "Steered",
    "StepDecay",
    "WarmUp",
]

OPTIMIZERS: dict[str, Any] = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "lbfgs": LBFGS}
