"""What a run says about itself: the machine it ran on, and how well and how fast it did."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from ..callbacks import History, accuracy_by_class
from ..datasets import Dataset
from ..devices.blas_threads import default_threads
from ..kernels.cpu.compiled import library
from ..mlp import MLP
from ..objective import OUTPUTS
from ..rows.plan import Plan

__all__ = ["WIDTH", "environment", "epoch_flops", "result_table"]

WIDTH = 80  # columns of a terminal


def environment(model: MLP, threads: int | None, plan: Plan) -> dict[str, Any]:
    """Return what the result and its speed depend on, as plain data."""
    compiled = library()
    return {
        "versions": {name: _version(name) for name in ("mlp_xp", "numpy", "array-api-compat", *model.device.packages)},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": default_threads() if threads is None else threads,
        "blas": [{key: blas[key] for key in ("internal_api", "version")} for blas in threadpool_info()],
        "compiled": None if compiled is None else compiled.instructions,
        "device": model.device.name,
        "gpu": model.device.hardware(),
        "dtype": model.dtype,
        "precision": model.precision,
        "plan": {"kind": plan.kind, "reason": plan.reason, "mean_columns": round(plan.mean_columns, 1)},
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # slow to import: --help need not wait for it

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def epoch_flops(sizes: Sequence[int], samples: int) -> int:
    """Return the floating-point operations of the matrix products of one epoch, forward and backward.

    Each layer takes 2 n n_l n_{l-1} for Z, as many for dW, and, but for the first, as many for dA.
    """
    products = [fan_in * fan_out for fan_in, fan_out in pairwise(sizes)]
    return 2 * samples * (3 * sum(products) - products[0])


def result_table(model: MLP, history: History, parts: Mapping[str, Dataset], labels: Sequence[str]) -> str:
    """Return the table at the end of a run: loss and score of each part, accuracy by class, speed.

    Parameters
    ----------
    model : MLP
        With its final parameters.
    history : History
    parts : mapping of str to Dataset
        By name, with ``"training"`` and ``"test"``.
    labels : sequence of str
        Names of the classes.
    """
    task, train, test = OUTPUTS[model.output].task, parts["training"], parts["test"]
    score = "R^2" if task == "values" else "accuracy"
    lines = [f"{'':12s}{'loss':>10s}{score:>12s}"]
    for name, data in parts.items():
        loss, value = model.evaluate(*data)
        lines.append(f"{name:12s}{loss:10.4f}{value:12.4f}")
    if task != "values":
        by_class = accuracy_by_class(test.y, model.predict(test.X))
        shares = [f"{labels[label]}\N{NO-BREAK SPACE}{100 * share:.1f}%" for label, share in by_class.items()]
        wrapped = fill("  ".join(shares), WIDTH, initial_indent=f"{'by class':12s}", subsequent_indent=" " * 12)
        lines.append(wrapped.replace("\N{NO-BREAK SPACE}", " "))
    seconds = float(np.median(history.seconds))
    flops = epoch_flops(model.sizes, len(train.X)) / seconds / 1e9
    speed = f"{len(train.X) / seconds:,.0f} samples/s, {flops:,.1f} GFLOP/s in {model.precision}"
    epochs = "1 epoch, " if len(history) == 1 else f"{len(history)} epochs, "
    each = f"{seconds:.4f} s" + (" each (median)" if len(history) > 1 else "")
    lines.append(fill(f"{epochs}{each}, {speed}", WIDTH))
    return "\n".join(lines)
