"""The library in C that replays programs of operations: what it is given, and where it is found.

It is built when the package is installed, if there is a compiler; see ``replay/`` for its text. It has no Python in it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import warnings
from ctypes import c_double, c_int32, c_int64, c_void_p
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..recording import Program

__all__ = [
    "MOST_THREADS", "ROW_BYTES", "Exchange", "Instruction", "Library", "Message", "Piece", "Setup", "instructions_of",
    "library", "padded",
]  # fmt: skip

_log = logging.getLogger(__name__)

OPERATIONS = (
    "features", "affine", "activate", "dropout", "loss", "activation_gradient", "input_gradient", "weight_gradient",
    "bias_gradient",
)  # fmt: skip
FUNCTIONS = {
    "": 0, "identity": 0, "sigmoid": 1, "tanh": 2, "relu": 3, "leaky_relu": 4,
    "softmax_cross_entropy": 0, "sigmoid_cross_entropy": 1, "half_squared_error": 2, "perceptron_criterion": 3,
    "softmax_log_loss": 4, "sigmoid_log_loss": 5, "half_mean_squared_error": 6, "poisson_deviance": 7,
    "absolute_error": 8, "huber": 9,
}  # fmt: skip
"""The numbers of activations and of losses, as in ``replay.h``."""
DESCENT, MOMENTUM, ADAM, MOMENTUM_OF_STEPS, ADAM_EPSILON_HAT = range(5)
"""The numbers of the optimizers' rules, likewise."""
FOLDER = Path(__file__).parent / "replay"
ROW_BYTES = 64
"""Where rows of parameters and of buffers begin: at multiples of this."""
MOST_THREADS = 256
"""That one call may ask for, as in ``replay.c``."""
_UNEVEN = 1024  # bytes: rows so far apart, or a multiple of it, would share a few lines of the first cache


def padded(numbers: int, dtype: Any) -> int:
    """Return how many numbers a row of so many takes: ``padded`` of ``replay.c``."""
    item = int(np.dtype(dtype).itemsize)
    row = -(-numbers * item // ROW_BYTES) * ROW_BYTES
    return (row if row % _UNEVEN else row + ROW_BYTES) // item


class Instruction(ctypes.Structure):
    """``Instruction`` of ``replay.h``."""

    _fields_ = [(name, c_int32) for name in ("operation", "function", "layer", "source", "other", "target")]


def instructions_of(program: Program) -> ctypes.Array[Instruction]:
    """Return the program as the library takes it."""
    return (Instruction * len(program.instructions))(
        *(
            Instruction(OPERATIONS.index(operation), FUNCTIONS[name], layer, source, other, target)
            for operation, name, layer, source, other, target in program.instructions
        )
    )


class Message(ctypes.Structure):
    """``Message`` of ``replay.h``."""

    _fields_ = [(name, c_int64) for name in ("at", "bytes", "sender", "receiver")]


Exchange = ctypes.CFUNCTYPE(c_int64, c_int64, ctypes.POINTER(Message), c_int64)
"""``Exchange`` of ``replay.h``."""


class Setup(ctypes.Structure):
    """``Setup`` of ``replay.h``."""

    _fields_ = [
        *((name, c_int64) for name in ("layers", "buffers", "instructions")),
        *((name, c_void_p) for name in ("sizes", "widths", "program", "gemm")),
        ("long_integers", c_int64),
        *((name, c_void_p) for name in ("X", "starts", "columns", "y", "weights")),
        *((name, c_int64) for name in ("rows", "bytes", "labels", "sparse", "marked")),
        *((name, c_void_p) for name in ("background", "thresholds", "factors")),
        *((name, c_void_p) for name in ("theta", "gradient", "first", "second")),
        *((name, c_int64) for name in ("optimizer", "nesterov")),
        *((name, c_double) for name in ("momentum", "beta1", "beta2", "epsilon", "decay", "l2", "l2_sum")),
        *((name, c_int64) for name in ("batch", "shard", "groups", "threads", "rank", "ranks")),
        ("exchange", c_void_p),
        ("words", c_int64),
    ]


class Piece(ctypes.Structure):
    """``Piece`` of ``replay.h``."""

    _fields_ = [
        *((name, c_void_p) for name in ("order", "X")),
        ("first", c_int64),
        ("keys", c_void_p),
        *((name, c_int64) for name in ("update", "last", "done")),
        *((name, c_double) for name in ("rate", "bias_rate")),
        ("keep_gradient", c_int64),
        ("loss", c_double),
    ]


class Library(NamedTuple):
    """The functions for one set of instructions of the processor.

    Attributes
    ----------
    path : Path
    instructions : str
        One of those that the library was built for, such as ``"v3"`` for x86-64-v3.
    """

    path: Path
    instructions: str

    def function(self, name: str, dtype: Any) -> Any:
        """Return ``mlp_xp_{name}`` for float32 or float64."""
        function = _load(self.path)[f"mlp_xp_{name}_{np.dtype(dtype).name}_{self.instructions}"]
        function.restype = c_void_p if name == "new" else None
        if name == "predict":
            function.argtypes = c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p
        return function


@cache
def _load(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


def library() -> Library | None:
    """Return the library for this processor, or None if it was not built or ``MLP_XP_COMPILED`` is 0.

    Warns
    -----
    UserWarning
        Once, if it was built from other sources than those that lie beside it. It is not used then.

    Raises
    ------
    ValueError
        If ``MLP_XP_COMPILED`` is neither 0 nor 1.
    """
    wanted = os.environ.get("MLP_XP_COMPILED") or "1"
    if wanted not in ("0", "1"):
        raise ValueError(f"the environment variable MLP_XP_COMPILED must be 0 or 1, got {wanted!r}")
    return None if wanted == "0" else _found()


@cache
def _found() -> Library | None:
    for path in FOLDER.glob("libreplay.*"):
        try:
            loaded = _load(path)
        except OSError as error:
            _log.warning("the compiled library cannot be loaded: %s", error)
            return None
        if not _is_of_its_sources(loaded):
            warnings.warn(
                f"{path} was built from other sources than those beside it, so NumPy computes instead, more slowly; "
                "build it anew: `pip install -e .` in the checkout",
                stacklevel=2,
            )
            return None
        return Library(path, _text(loaded.mlp_xp_instructions))
    return None


def _is_of_its_sources(loaded: ctypes.CDLL) -> bool:
    """Return whether the library was built from the sources in the folder, or there are none."""
    sources = sorted(FOLDER.glob("*.[ch]"))
    if not sources:
        return True
    digest = sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()  # as in hatch_build.py
    return hasattr(loaded, "mlp_xp_sources") and _text(loaded.mlp_xp_sources) == digest


def _text(function: Any) -> str:
    function.restype = ctypes.c_char_p
    return str(function().decode())
