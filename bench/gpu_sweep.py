"""`python -m bench.gpu_sweep`: seconds of a full-batch epoch on a GPU by plan, rows of a block, and precision.

The first epochs of each run are checked against the losses of NumPy in float64. What is found is written after each
run, so that a sweep that is stopped leaves something behind.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mlp_xp.devices import CupyDevice, get_device

from .cases import case
from .charts import markdown
from .compare import RESULTS
from .machine import describe, limit_threads
from .peers.ours import make
from .problem import Problem

__all__ = ["FILES", "PRECISIONS", "SETTINGS", "Run", "losses", "main", "measure", "table"]

FILES = "gpu_sweep.json", "gpu_sweep.md"
SETTINGS: list[tuple[str, int | None]] = [  # (plan, rows of a block; None for the device's)
    ("dense", None),
    ("zero", None),
    *(("ragged", rows) for rows in (2048, 4096, 8192, 16_384, 32_768)),
]
PRECISIONS = {"fp32": 1e-5, "fp16x2": 1e-5, "tf32": 1e-3}  # with the largest relative error of a loss
CHECKED = 3  # epochs: an ordinary one, one that is captured, and one that is replayed
EPOCHS, TURNS = 20, 3


@dataclass
class Run:
    """One plan at one precision.

    Attributes
    ----------
    plan : str
    block_rows : int or None
        None for the device's own.
    precision : str
    columns : float or None
        Columns that take part in the products, on average over rows.
    seconds : float or None
        Of an epoch, the best mean of 20.
    error : float or None
        The largest relative error of the first losses.
    right : bool
        Whether that is one of rounding.
    failure : str or None
        Why there are no numbers.
    """

    plan: str
    block_rows: int | None
    precision: str
    columns: float | None = None
    seconds: float | None = None
    error: float | None = None
    right: bool = False
    failure: str | None = None


def losses(problem: Problem) -> list[float]:
    """Return the losses in float64 that the first epochs' gradients are computed at."""
    return [problem.initial_loss, *(problem.reference(epochs)[0] for epochs in range(1, CHECKED))]


@contextmanager
def block_rows(rows: int | None) -> Iterator[None]:
    """Have plans store blocks of so many rows; None leaves it.

    The number is a property of the device, as no user needs another. A sweep does, and puts it into the class.
    """
    if rows is None:
        yield
    else:
        with patch.object(CupyDevice, "block_rows", rows):
            yield


def measure(problem: Problem, run: Run, expected: Sequence[float]) -> None:
    """Train by the plan, compare the first losses with the expected ones, and take the time."""
    with block_rows(run.block_rows):
        contender: Any = make(problem, "cuda", 1, plan=run.plan, precision=run.precision)
    found = [float(next(contender.states).loss) for _ in expected]
    run.error = max(abs(got / want - 1) for got, want in zip(found, expected, strict=True))
    run.right = run.error <= PRECISIONS[run.precision]
    times = []
    for _ in range(TURNS):
        start = time.perf_counter()
        contender.run(EPOCHS)
        times.append((time.perf_counter() - start) / EPOCHS)
    run.seconds, run.columns = min(times), contender.columns


def table(runs: Sequence[Run]) -> str:
    """Return the runs as Markdown: a row for each plan, microseconds of an epoch at each precision."""
    cells = {(run.plan, run.block_rows, run.precision): _cell(run) for run in runs}
    columns = {(run.plan, run.block_rows): f"{run.columns:.0f}" for run in runs if run.columns is not None}
    rows = [
        [plan, "" if rows is None else str(rows), columns.get((plan, rows), "")]
        + [cells.get((plan, rows, precision), "not begun") for precision in PRECISIONS]
        for plan, rows in SETTINGS
    ]
    return markdown(["plan", "rows of a block", "columns", *(f"{name}, µs" for name in PRECISIONS)], rows)


def _cell(run: Run) -> str:
    if run.seconds is None:
        return run.failure or ""
    return f"{1e6 * run.seconds:.1f}" + ("" if run.right else " WRONG")


def save(folder: Path, header: dict[str, Any], runs: Sequence[Run]) -> None:
    """Write what is known so far."""
    report = {**header, "runs": [asdict(run) for run in runs]}
    (folder / FILES[0]).write_text(json.dumps(report, indent=1) + "\n")
    (folder / FILES[1]).write_text(f"## A full-batch epoch by plan\n\n{table(runs)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0 if all runs were right, 1 if not, 2 if there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_sweep", description="Full-batch epochs by plan.")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON and table")
    options = parser.parse_args(arguments)
    try:
        get_device("cuda")
    except ValueError as error:
        print(f"there are no plans to time here: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    problem = case("full-batch")
    header, expected = {"machine": describe("cuda", limit_threads(None))}, losses(problem)
    runs = []
    for precision in PRECISIONS:
        for plan, rows in SETTINGS:
            runs.append(run := Run(plan, rows, precision))
            try:
                measure(problem, run, expected)
            except Exception as error:  # the other runs can still be right
                traceback.print_exc()
                run.failure = f"{type(error).__name__}: {error}".partition("\n")[0]
            save(options.out, header, runs)
    print(table(runs))
    return int(not all(run.right for run in runs))


if __name__ == "__main__":
    sys.exit(main())
