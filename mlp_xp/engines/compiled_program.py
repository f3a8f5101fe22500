"""What the compiled library is told: the text's program, and the optimizer's rule."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ..kernels.cpu import compiled
from ..kernels.cpu.blas import gemm_address
from ..kernels.cpu.compiled import (
    ADAM,
    ADAM_EPSILON_HAT,
    DESCENT,
    FUNCTIONS,
    MOMENTUM,
    MOMENTUM_OF_STEPS,
    padded,
)
from ..kernels.recording import Program, RecordingKernels, symbols
from ..mlp import MLP
from ..model import Network, grad_sum
from ..objective import Objective
from ..optim import LBFGS, SGD, Adam, AdamEpsilonHat, Optimizer, SGDOfSteps
from ..rows.csr import CsrRows
from ..rows.source import InMemory, Rows
from ..rows.stored import StoredRows

__all__ = ["buffer_widths", "constants_of", "program_of", "why_not"]

_OPTIMIZERS = (SGD, SGDOfSteps, Adam, AdamEpsilonHat, LBFGS)  # the last one asks for gradients alone
_RULE = ("init", "update", "rates")  # what makes an optimizer one of these


def why_not(model: MLP, optimizer: Optimizer, rows: Rows, objective: Objective) -> str | None:
    """Return why the compiled library cannot train this, in words, or None if it can."""
    if compiled.library() is None:
        return "it was not built, or MLP_XP_COMPILED is 0"
    if gemm_address(model.dtype) is None:
        return "NumPy's BLAS is not one that it knows"
    kind = type(optimizer)
    if not any(all(getattr(kind, name) is getattr(known, name) for name in _RULE) for known in _OPTIMIZERS):
        return f"it does not know the update of {kind.__name__}"
    names = {instruction.name for instruction in program_of(model.sizes, model.network.g, objective).instructions}
    if unknown := sorted(names - FUNCTIONS.keys()):
        return f"it does not know {' or '.join(unknown)}"
    if type(rows) in (CsrRows, StoredRows):
        return None
    if type(rows) is not InMemory or rows.home is not None:
        return "the rows are not in the host's memory"
    return None if rows.block(0, rows.shape[0]).flags.c_contiguous else "the rows do not lie one behind another"


@lru_cache
def program_of(
    sizes: tuple[int, ...], g: tuple[str, ...], objective: Objective, rates: tuple[float, ...] | None = None
) -> Program:
    """Return what the text does with a block of rows, given dropout's rates of layers 0 to L, if there is any."""
    recorded = RecordingKernels(sizes)
    kernels: Any = recorded
    layers = symbols(len(sizes) - 1)
    dropped: Any = None if rates is None else [D if rate else None for D, rate in zip(layers.W, rates, strict=True)]
    grad_sum(Network(g, objective), kernels, layers, None, None, layers, D=dropped)
    return recorded.program


def buffer_widths(model: MLP, sparse: bool, rows: Rows, rates: tuple[float, ...] | None = None) -> list[int]:
    """Return the columns of the buffers for a block of rows; a sparse product takes these as they are."""
    columns = program_of(model.sizes, model.network.g, model.objective, rates).columns
    widths = [padded(width, model.dtype) for width in columns]
    if sparse and isinstance(rows, CsrRows):
        widths[0] = 0
    elif sparse:
        widths[0] = padded(-(-columns[0] * rows.dtype.itemsize // np.dtype(model.dtype).itemsize), model.dtype)
    return widths


def constants_of(optimizer: Optimizer) -> dict[str, Any]:
    """Return what the library has to know of an optimizer."""
    if isinstance(optimizer, Adam):
        kind = ADAM_EPSILON_HAT if isinstance(optimizer, AdamEpsilonHat) else ADAM
        return {
            "optimizer": kind, "beta1": optimizer.beta1, "beta2": optimizer.beta2, "epsilon": optimizer.epsilon,
            "decay": optimizer.weight_decay,
        }  # fmt: skip
    assert isinstance(optimizer, SGD)
    kind = MOMENTUM_OF_STEPS if isinstance(optimizer, SGDOfSteps) else MOMENTUM
    nesterov = bool(optimizer.nesterov)  # it may be a flag of NumPy
    return {
        "optimizer": kind if optimizer.momentum > 0 else DESCENT, "momentum": optimizer.momentum, "nesterov": nesterov,
    }  # fmt: skip
