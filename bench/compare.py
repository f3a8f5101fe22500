"""`python -m bench.compare`: contenders take turns in one process (A B C A B C), so that they share the same weather.

A round is one turn of each. The result is the median over the rounds of the ratio to a baseline of the same round, and
the best time. The bare matrix products always take part: where their own time varied by more than 30 %, somebody else
used the machine, and no conclusion is drawn.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .cases import CASES, case
from .charts import bars, color, label_of, markdown
from .contender import CONTENDERS, Contender, UnavailableError, build, check_name
from .machine import describe, limit_threads
from .memory import peak_megabytes
from .problem import Problem

__all__ = ["FLOOR", "MOST_WOBBLE", "Row", "compare", "conclusion", "interleave", "main", "table", "wobble"]

FLOOR = "gemm"
MOST_WOBBLE = 0.30
# seconds between turns on the CPU: the threads of OpenBLAS and OpenMP keep spinning for a while after their last work
SETTLE = 0.2
NOISE = 0.05  # medians of ratios come back within this on a quiet machine
RESULTS = Path(__file__).parent / "results"
DEFAULTS = {
    "cpu": "ours,ours-dense,torch,torch-compile,torch-compile-forward,jax-step,jax-loop,sklearn,textbook",
    "cuda": "ours,ours-dense,ours-tf32,ours-dense-tf32,ours-fp16x2,ours-dense-fp16x2,"
    "torch,torch-compile,torch-compile-forward,torch-compile-tf32,jax-step,jax-loop,jax-loop-tf32",
}


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
        Columns of the images that took part in its products, on average over rows.
    preparation_seconds, compile_seconds : float
        Time before the first epoch: conversions, transfers, plans; and compilation.
    loss, reference_loss, update_error : float or None
        See :class:`bench.contender.Verdict`.
    right : bool
        Whether the loss is float64's; the floor, which does not train, counts as right.
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
    right: bool = False
    peak_mb: float | None = None


def interleave(
    contenders: Mapping[str, Contender], rounds: int, epochs: int, settle: float = SETTLE
) -> dict[str, list[float]]:
    """Return the seconds of an epoch of each contender in each round; all of them have to be warm."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            time.sleep(settle)
            start = time.perf_counter()
            contender.run(epochs)
            seconds[name].append((time.perf_counter() - start) / epochs)
    return seconds


def wobble(seconds: Sequence[float]) -> float:
    """Return by how much the slowest of some times exceeds the fastest, as a fraction."""
    return max(seconds) / min(seconds) - 1


def compare(
    problem: Problem,
    names: Sequence[str],
    device: str,
    threads: int,
    rounds: int,
    epochs: int,
    baseline: str,
    seconds: float = math.inf,
) -> list[Row]:
    """Run the contenders in turns and return a row for each, the absent ones too, in the order of `names`.

    Each is made and warmed up, by as many epochs as a round has, two at least, before the first round begins. After so
    many `seconds` no more are, but for the floor and the baseline. One that breaks does not take the others with it.

    Raises
    ------
    ValueError
        If a name is unknown, or the floor or the baseline cannot run here.
    """
    contenders: dict[str, Contender] = {}
    rows = {check_name(name): Row(name) for name in names}
    end = time.perf_counter() + seconds
    for name, row in rows.items():
        if time.perf_counter() > end and name not in (FLOOR, baseline):
            row.absent = f"not begun: {seconds:.0f} s had passed"
            continue
        try:
            contender = build(name, problem, device, threads)
            contender.run(max(2, epochs))  # the second epoch may be captured as a graph
            contenders[name] = contender
        except UnavailableError as reason:
            row.absent = str(reason)
        except Exception as error:
            traceback.print_exc()
            row.absent, row.failed = f"failed: {type(error).__name__}: {error}".partition("\n")[0], True
    for needed in (FLOOR, baseline):
        if needed not in contenders:
            why = rows[needed].absent if needed in rows else "not among the contenders"
            raise ValueError(f"nothing can be compared without {needed!r}, which is missing here: {why}")
    timed = interleave(contenders, rounds, epochs, SETTLE if device == "cpu" else 0.0)
    for name, contender in contenders.items():
        row, times = rows[name], timed[name]
        verdict = contender.verdict()
        row.settings, row.seconds = contender.settings, times
        row.ratio = statistics.median(a / b for a, b in zip(times, timed[baseline], strict=True))
        row.gflops, row.columns = problem.flops / min(times) / 1e9, contender.columns
        row.preparation_seconds, row.compile_seconds = contender.preparation_seconds, contender.compile_seconds
        row.right = verdict is None or verdict.right
        if verdict is not None:
            row.loss, row.reference_loss, row.update_error = verdict.loss, verdict.reference, verdict.update_error
    return list(rows.values())


def conclusion(rows: Sequence[Row]) -> tuple[bool, str]:
    """Return whether anything follows from the rows, and what, in words."""
    wrong = [row.contender for row in rows if row.absent is None and not row.right]
    if wrong:
        return False, f"No conclusion: {', '.join(wrong)} did not reach the loss of float64, so the time means nothing."
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
    error = "" if row.update_error is None else f"{row.update_error:.1e}"
    before = [f"{row.preparation_seconds:.2f}", f"{row.compile_seconds:.2f}"]
    cells = [row.contender, *times, f"{row.ratio:.2f}", f"{row.gflops:.0f}", *before, loss, error]
    return cells + ["" if row.peak_mb is None else f"{row.peak_mb:.0f}"] * memory


def save(folder: Path, stem: str, header: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write `stem`.json, .md and .png into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.json").write_text(json.dumps({**header, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    machine, baseline = header["machine"], header["baseline"]
    processor = machine["cpu"] if machine["device"] == "cpu" else machine["gpu"]
    where = f"{processor}, {machine['threads']} threads, {header['rounds']} rounds"
    text = f"# {header['case']} on {machine['device']}\n\n{header['conclusion']}\n\n{table(rows, baseline)}\n{where}\n"
    (folder / f"{stem}.md").write_text(text)
    present = [row for row in rows if row.absent is None and row.right]
    title = f"{header['case']}: one epoch, best of {header['rounds']} rounds"
    floor = next(row for row in rows if row.contender == FLOOR)
    bars(
        folder / f"{stem}.png",
        title if header["conclusive"] else f"{title} (NO CONCLUSION)",
        "seconds",
        [
            (row.contender, min(row.seconds), f"{label_of(min(row.seconds))}   {row.ratio:.2f}x", color(row.contender))
            for row in present
        ],
        floor=min(floor.seconds),
        note=f"x: median ratio to {baseline}; dashed: bare matrix products\n{where}",
    )


def _peak(name: str, problem: Problem, device: str, threads: int) -> float | None:
    """Return a contender's peak memory, or print why there is none: the times are not lost with it."""
    try:
        return peak_megabytes(name, problem, device, threads)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0 if a conclusion was drawn, 1 if not, 2 if nothing could be compared."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description="Contenders in turns, in one process.")
    parser.add_argument("--case", default="full-batch", choices=CASES)
    parser.add_argument("--contenders", help=f"names with commas between, of: {', '.join(CONTENDERS)}")
    parser.add_argument("--baseline", help="the contender that ratios refer to (default: the first)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--epochs", type=int, help="epochs a round (default: 1 on the CPU, 20 on a GPU)")
    parser.add_argument("--device", default="cpu", choices=DEFAULTS)
    parser.add_argument("--threads", type=int, help="cores to use (default: all)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no more contenders after so many")
    parser.add_argument("--memory", action="store_true", help="also run each alone and report its peak memory")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON, table and chart")
    options = parser.parse_args(arguments)
    names = (options.contenders or DEFAULTS[options.device]).split(",")
    baseline = options.baseline or names[0]
    names = list(dict.fromkeys([*names, FLOOR]))
    epochs = options.epochs or (1 if options.device == "cpu" else 20)
    try:
        threads = limit_threads(options.threads)
        problem = case(options.case)
        rows = compare(problem, names, options.device, threads, options.rounds, epochs, baseline, options.seconds)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.memory:
        for row in rows:
            if row.absent is None:
                row.peak_mb = _peak(row.contender, problem, options.device, threads)
    conclusive, words = conclusion(rows)
    header = {
        "case": options.case,
        "samples": len(problem.X),
        "sizes": problem.sizes,
        "rounds": options.rounds,
        "epochs_per_round": epochs,
        "baseline": baseline,
        "conclusive": conclusive,
        "conclusion": words,
        "machine": describe(options.device, threads),
    }
    save(options.out, f"compare-{options.case}-{options.device}", header, rows)
    print(f"{table(rows, baseline)}\n{words}")
    return 0 if conclusive else 1


if __name__ == "__main__":
    sys.exit(main())
