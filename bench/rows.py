"""What a comparison found: a row for each contender, what follows from them, and how they are shown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from .charts import label_of, markdown

__all__ = ["FLOOR", "MOST_WOBBLE", "Row", "conclusion", "table", "wobble"]

FLOOR = "gemm"
MOST_WOBBLE = 0.30
NOISE = 0.05  # medians of ratios come back within this on a quiet machine


@dataclass
class Row:
    """One contender's result.

    Attributes
    ----------
    contender : str
    absent : str or None
        Why it did not run; everything below is then empty.
    failed : bool
        Whether it was there to run, and broke.
    settings : str
    seconds : list of float
        Time of an epoch in each round.
    ratio : float
        Median over the rounds of its time by the baseline's.
    gflops : float
        Nominal operations by the best time, in 1e9 per second.
    columns : float
        Columns of the data that took part in its products, on average over rows.
    preparation_seconds, compile_seconds : float
        Time before the first epoch: conversions, transfers, plans; and compilation.
    loss, reference_loss, update_error : float or None
        See :class:`bench.contender.Verdict`.
    early_error : float or None
        The update error after ten updates, for Adam on mini-batches, whose rounding errors grow.
    right : bool
        Whether the training is float64's; the floor, which does not train, counts as right.
    peak_mb : float or None
        Most memory beyond the imports and the images, if it was asked for.
    """

    contender: str
    absent: str | None = None
    failed: bool = False
    settings: str = ""
    seconds: list[float] = field(default_factory=list)
    ratio: float | None = None
    gflops: float | None = None
    columns: float | None = None
    preparation_seconds: float | None = None
    compile_seconds: float | None = None
    loss: float | None = None
    reference_loss: float | None = None
    update_error: float | None = None
    early_error: float | None = None
    right: bool = False
    peak_mb: float | None = None


def wobble(seconds: Sequence[float]) -> float:
    """Return by how much the slowest of some times exceeds the fastest, as a fraction."""
    return max(seconds) / min(seconds) - 1


def conclusion(rows: Sequence[Row]) -> tuple[bool, str]:
    """Return whether anything follows from the rows, and what, in words."""
    wrong = [row.contender for row in rows if row.absent is None and not row.right]
    if wrong:
        return False, f"No conclusion: {', '.join(wrong)} did not train as float64 does, so the time means nothing."
    failed = [row.contender for row in rows if row.failed]
    if failed:
        return False, f"No conclusion: {', '.join(failed)} failed, so nobody knows who is fastest."
    floor = next(row for row in rows if row.contender == FLOOR)
    if wobble(floor.seconds) > MOST_WOBBLE:
        return False, (
            f"No conclusion: the bare matrix products took {label_of(min(floor.seconds))} to "
            f"{label_of(max(floor.seconds))}, more than {MOST_WOBBLE:.0%} apart, so the machine was not ours alone. "
            f"Close what else runs and measure again."
        )
    fastest, *others = sorted(
        (row for row in rows if row.absent is None and row.contender != FLOOR), key=lambda row: row.ratio or 0
    )
    rivals = [row for row in others if _library(row) != _library(fastest)]
    if not rivals:
        return True, f"{fastest.contender} is fastest."
    ratio = statistics.median(a / b for a, b in zip(fastest.seconds, rivals[0].seconds, strict=True))
    if ratio > 1 - NOISE:
        return True, f"{fastest.contender} and {rivals[0].contender} are fastest, less than {NOISE:.0%} apart."
    return (
        True,
        f"{fastest.contender} is fastest: {ratio:.2f} of the time of {rivals[0].contender}, the best of the others.",
    )


def _library(row: Row) -> str:
    return row.contender.partition("-")[0]


def table(rows: Sequence[Row], baseline: str) -> str:
    """Return the rows as Markdown, then each contender's settings, then who was absent and why."""
    header = [
        "contender",
        "min",
        "median",
        f"/ {baseline}",
        "GFLOP/s",
        "prepare s",
        "compile s",
        "loss",
        "update error",
    ]
    memory = any(row.peak_mb is not None for row in rows)
    present = sorted((row for row in rows if row.absent is None), key=lambda row: row.ratio or 0)
    body = [_cells(row, memory) for row in present]
    body += [[row.contender, row.absent or "", *[""] * (len(header) - 2 + memory)] for row in rows if row.absent]
    settings = "".join(f"- **{row.contender}**: {row.settings}\n" for row in present)
    return f"{markdown(header + ['peak MB'] * memory, body)}\n{settings}"


def _cells(row: Row, memory: bool) -> list[str]:
    times = [label_of(min(row.seconds)), label_of(statistics.median(row.seconds))]
    loss = "not trained" if row.loss is None else f"{row.loss:.6f}" + ("" if row.right else " WRONG")
    errors = [error for error in (row.early_error, row.update_error) if error is not None]
    before = [f"{row.preparation_seconds:.2f}", f"{row.compile_seconds:.2f}"]
    error = " ".join(f"{error:.1e}" for error in errors)
    cells = [row.contender, *times, f"{row.ratio:.2f}", f"{row.gflops:.0f}", *before, loss, error]
    return cells + ["" if row.peak_mb is None else f"{row.peak_mb:.0f}"] * memory
