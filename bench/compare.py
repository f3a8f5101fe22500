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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .cases import CASES, case
from .charts import bars, color, label_of
from .contender import CONTENDERS, Contender, UnavailableError, build, check_name, early_verdict
from .machine import describe, limit_threads
from .memory import peak_megabytes
from .problem import Problem
from .rows import FLOOR, MOST_WOBBLE, Row, conclusion, table, wobble

__all__ = ["FLOOR", "MOST_WOBBLE", "Row", "compare", "conclusion", "interleave", "main", "table", "wobble"]

# seconds between turns on the CPU: the threads of OpenBLAS and OpenMP keep spinning for a while after their last work
SETTLE = 0.2
LEAST_ROUNDS = 3
TURN_FLOPS = 1e10  # about a tenth of a second at the least
RESULTS = Path(__file__).parent / "results"
DEFAULTS = {
    "cpu": "ours,ours-dense,torch,torch-compile,torch-compile-forward,jax-step,jax-loop,sklearn,textbook",
    "cuda": "ours,ours-dense,ours-tf32,ours-dense-tf32,ours-fp16x2,ours-dense-fp16x2,"
    "torch,torch-compile,torch-compile-forward,torch-compile-tf32,jax-step,jax-loop,jax-loop-tf32",
}


def interleave(
    contenders: Mapping[str, Contender],
    rounds: int,
    epochs: int,
    settle: float = SETTLE,
    limit: float = math.inf,
) -> dict[str, list[float]]:
    """Return the seconds of an epoch of each contender in each round; all of them have to be warm.

    After `limit` seconds no more rounds are begun, but for the first three.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + limit
    for done in range(rounds):
        if done >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for name, contender in contenders.items():
            time.sleep(settle)
            start = time.perf_counter()
            contender.run(epochs)
            seconds[name].append((time.perf_counter() - start) / epochs)
    return seconds


def compare(
    problem: Problem,
    names: Sequence[str],
    device: str,
    threads: int,
    rounds: int,
    epochs: int,
    baseline: str,
    seconds: float = math.inf,
    limit: float = math.inf,
) -> list[Row]:
    """Run the contenders in turns and return a row for each, the absent ones too, in the order of `names`.

    Each is made and warmed up, by as many epochs as a round has, two at least, before the first round begins. After so
    many `seconds` no more are, but for the floor and the baseline; after `limit` seconds of rounds, no more of these
    but three. One that breaks does not take the others with it.

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
            contenders[name] = _warm(row, problem, device, threads, max(2, epochs))
        except UnavailableError as reason:
            row.absent = str(reason)
        except Exception as error:
            traceback.print_exc()
            row.absent, row.failed = f"failed: {type(error).__name__}: {error}".partition("\n")[0], True
    for needed in (FLOOR, baseline):
        if needed not in contenders:
            why = rows[needed].absent if needed in rows else "not among the contenders"
            raise ValueError(f"nothing can be compared without {needed!r}, which is missing here: {why}")
    timed = interleave(contenders, rounds, epochs, SETTLE if device == "cpu" else 0.0, limit)
    for name, contender in contenders.items():
        _fill(rows[name], contender, timed[name], timed[baseline])
    return list(rows.values())


def _warm(row: Row, problem: Problem, device: str, threads: int, epochs: int) -> Contender:
    """Return a contender that has trained: the second epoch may be captured as a graph."""
    early = early_verdict(row.contender, problem, device, threads)
    row.right = early is None or early.right
    row.early_error = None if early is None else early.update_error
    contender = build(row.contender, problem, device, threads)
    contender.run(epochs)
    return contender


def _fill(row: Row, contender: Contender, times: list[float], baseline: Sequence[float]) -> None:
    """Judge a contender after its rounds, and write down everything in its row."""
    verdict = contender.verdict()
    row.settings, row.seconds = contender.settings, times
    row.ratio = statistics.median(a / b for a, b in zip(times, baseline, strict=True))
    row.gflops, row.columns = contender.problem.flops / min(times) / 1e9, contender.columns
    row.preparation_seconds, row.compile_seconds = contender.preparation_seconds, contender.compile_seconds
    if verdict is not None:
        row.right &= verdict.right
        row.loss, row.reference_loss, row.update_error = verdict.loss, verdict.reference, verdict.update_error


def epochs_a_round(problem: Problem, device: str) -> int:
    """Return how many epochs make a turn that a clock can measure: 20 on a GPU, as many as take a while on a CPU."""
    return 20 if device != "cpu" else min(100, math.ceil(TURN_FLOPS / problem.flops))


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
    parser.add_argument("--rows", type=int, help="only so many rows of the data (default: all)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--epochs", type=int, help="epochs a round (default: CPU 1, of small data more; GPU 20)")
    parser.add_argument("--device", default="cpu", choices=DEFAULTS)
    parser.add_argument("--threads", type=int, help="cores to use (default: all)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no more contenders after so many")
    parser.add_argument("--round-seconds", type=float, default=math.inf, help="nor rounds after so many of them")
    parser.add_argument("--memory", action="store_true", help="also run each alone and report its peak memory")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON, table and chart")
    options = parser.parse_args(arguments)
    names = (options.contenders or DEFAULTS[options.device]).split(",")
    baseline = options.baseline or names[0]
    names = list(dict.fromkeys([*names, FLOOR]))
    try:
        threads = limit_threads(options.threads)
        problem = case(options.case)
        if options.rows:
            problem = replace(problem, X=problem.X[: options.rows], y=problem.y[: options.rows])
        epochs = options.epochs or epochs_a_round(problem, options.device)
        rows = compare(
            problem, names, options.device, threads, options.rounds, epochs, baseline, options.seconds,
            options.round_seconds,
        )  # fmt: skip
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
        "rounds": max(len(row.seconds) for row in rows),
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
