"""Multilayer perceptrons on any Array API library: exact, reproducible, and fast.

>>> import mlp_xp as mx
>>> train, test = mx.datasets.mnist(digits=(0, 1))
>>> model = mx.MLP([784, 16, 2])
>>> history = mx.fit(model, train.X, train.y, epochs=20, optimizer=mx.SGD(lr=1.0))
>>> model.score(test.X, test.y) > 0.99
True
"""

from . import datasets
from .callbacks import EarlyStopping, History, Progress
from .engines.memory import estimate_memory
from .files.tensors import CheckpointError
from .fit import DivergenceError, fit
from .kernels import ACTIVATIONS
from .loop import State, epochs
from .mlp import MLP, Forward, Gradient
from .objective import OUTPUTS
from .optim import LBFGS, SGD, Adam, AdamW, CosineDecay, ExponentialDecay, Schedule, StepDecay, WarmUp
from .params import INITIALIZERS
from .runs.agreement import RankError
from .runs.checkpoint import Checkpoint
from .runs.signals import Interrupted
from .snapshot import Snapshot

__version__ = "0.1.0"

__all__ = [
    "ACTIVATIONS",
    "INITIALIZERS",
    "LBFGS",
    "MLP",
    "OUTPUTS",
    "SGD",
    "Adam",
    "AdamW",
    "Checkpoint",
    "CheckpointError",
    "CosineDecay",
    "DivergenceError",
    "EarlyStopping",
    "ExponentialDecay",
    "Forward",
    "Gradient",
    "History",
    "Interrupted",
    "Progress",
    "RankError",
    "Schedule",
    "Snapshot",
    "State",
    "StepDecay",
    "WarmUp",
    "datasets",
    "epochs",
    "estimate_memory",
    "fit",
]
