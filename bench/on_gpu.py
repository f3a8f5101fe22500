"""`python -m bench.on_gpu`: everything that a GPU machine is needed for, in one command and within minutes.

Parts run one after another, each in a process of its own with a limit on its time: a core of the tests for a GPU, the
ceilings of this GPU, the sweep over plans, and the comparisons. A part that fails or is too slow is recorded and the
next one begins; the exit code is 0 if none did. `on_gpu.json`, `.md` and `.png` sum up what the parts found.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from .charts import bars, color, label_of, markdown
from .compare import RESULTS
from .gpu_sweep import FILES as SWEEP
from .machine import describe, limit_threads

__all__ = ["Part", "Timing", "floor_seconds", "main", "parts", "run_part", "timings"]

ROOT = Path(__file__).parent.parent
OURS = ("ours", "ours-tf32", "ours-fp16x2")
DENSE = ("ours-dense", "ours-dense-tf32", "ours-dense-fp16x2")
REST = ("ours-bf16", "ours-float64", "torch", "jax-loop", "jax-loop-tf32")  # of the headline cases
# Of the first case, and last in it, as they are left out when time runs out: each tunes itself for a minute or two.
COMPILED = ("torch-compile", "torch-compile-tf32")
CORE = "pass_equals or epochs_equal or graphs or streamed"  # of two thousand tests
PRECISION = {"tf32": "tf32", "bf16": "bf16", "fp16x2": "fp16x2", "float64": "fp64"}  # by the end of a contender's name
BUILDING = 0.45  # share of its limit after which a comparison begins no more contenders: some take a minute to compile
# What matters most comes first: time may run out. Epochs a round are few where the judge's float64 epochs are slow.
EPOCHS = {"full-batch": 10, "mini-batch": 1, "deep": 5, "narrow": 10, "dense-random": 5, "half-dense": 5, "wide": 1}
DENSE_ANYWAY = ("mini-batch", "dense-random")  # where the plan is, as ours chooses it


@dataclass
class Part:
    """A command, the seconds it may take, and what became of it.

    Attributes
    ----------
    name : str
    command : list of str
    limit : float
    quick : bool
        Whether it also runs when time is short.
    compares : bool
        Whether it is told, by ``--seconds``, when to begin no more contenders.
    outcome : str
        ``"ok"``, or in words why not.
    seconds : float
    output : str
        The end of what it printed.
    """

    name: str
    command: list[str]
    limit: float
    quick: bool = True
    compares: bool = False
    outcome: str = "not begun"
    seconds: float = 0.0
    output: str = ""


@dataclass
class Timing:
    """A contender in one case.

    Attributes
    ----------
    case, contender : str
    seconds : float
        Best time of an epoch.
    ratio : float
        Median ratio to ours in float32.
    columns : float
        Columns of the images that take part in its products, on average over rows.
    floor : float or None
        The least time that this GPU's measured ceilings allow for its products at its precision, by its own time; None
        if that is unknown. Products that its plan leaves out are none of them.
    right : bool
        Whether the loss is float64's.
    """

    case: str
    contender: str
    seconds: float
    ratio: float
    columns: float
    floor: float | None
    right: bool


def parts(out: Path, quick: bool) -> list[Part]:
    """Return all parts, in their order; they write into `out`."""
    python = [sys.executable, "-m"]
    folder = str(out)
    # a warning of a library's that is new on this machine is to be seen, and not to take all tests with it
    tests = ["-q", "-W", "default", "-m", "gpu", "-k", CORE]
    found = [
        Part("tests", [*python, "pytest", *tests, "tests/cuda"], 60 if quick else 150),
        Part("ceilings", [*python, "bench.gpu_ceilings", "--out", folder], 45),
        Part("sweep", [*python, "bench.gpu_sweep", "--out", folder], 45, quick=False),
    ]
    for case, epochs in EPOCHS.items():
        headline = case in ("full-batch", "mini-batch")
        names: tuple[str, ...] = OURS if case in DENSE_ANYWAY else OURS + DENSE
        names += REST if headline and not quick else ("torch",)
        names += COMPILED if case == "full-batch" and not quick else ()
        command = [*python, "bench.compare", "--case", case, "--device", "cuda", "--epochs", str(epochs)]
        command += ["--rounds", "3" if quick else "5", "--contenders", ",".join(names), "--out", folder]
        found.append(Part(case, command, 170 if headline else 60, headline, compares=True))
    return [part for part in found if part.quick or not quick]


def run_part(part: Part, seconds_left: float) -> None:
    """Run a part, whatever it does, and write down in it what became of it."""
    limit = min(part.limit, seconds_left)
    if limit < 5:
        part.outcome = "no time left"
        return
    command = part.command + (["--seconds", f"{BUILDING * limit:.0f}"] if part.compares else [])
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:  # a pipe would stay open as long as any process that the part has started
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},  # what a part has printed is there when it is stopped
        )
        try:
            code = process.wait(limit)
            part.outcome = f"exit code {code}" if code else "ok"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            part.outcome = f"stopped after {limit:.0f} s"
        part.seconds = time.perf_counter() - start
        output.seek(0)
        part.output = output.read().decode(errors="replace")[-4000:]


def floor_seconds(sizes: Sequence[float], rows: int, precision: str, ceilings: dict[str, Any]) -> float:
    """Return the least time of an epoch: its products at this GPU's peak, or two sweeps over its input, if longer.

    With pairs of float16, the products with the input are twice as many, and the others are float32's.
    """
    first, *others = [2 * rows * fan_in * fan_out for fan_in, fan_out in pairwise(sizes)]
    width = {"fp64": 8, "fp16x2": 2}.get(precision, 4)
    peaks = ceilings["gemm_flops"]
    with_input, above = (peaks["fp16"] / 2, peaks["fp32"]) if precision == "fp16x2" else (peaks[precision],) * 2
    products = 2 * first / with_input + 3 * sum(others) / above
    return float(max(products, 2 * rows * sizes[0] * width / ceilings["bytes_per_second"]))


def timings(out: Path) -> list[Timing]:
    """Return what the comparisons in a folder found, by case and time."""
    ceilings = json.loads((out / "ceilings.json").read_text()) if (out / "ceilings.json").exists() else None
    found = []
    for case in EPOCHS:
        path = out / f"compare-{case}-cuda.json"
        report = json.loads(path.read_text()) if path.exists() else {"rows": []}
        for row in report["rows"]:
            if row["absent"] is not None:
                continue
            best, name, columns = min(row["seconds"]), row["contender"], row["columns"]
            floor = None
            if ceilings:
                precision = PRECISION.get(name.rpartition("-")[2], "fp32")
                floor = floor_seconds((columns, *report["sizes"][1:]), report["samples"], precision, ceilings) / best
            found.append(Timing(case, name, best, row["ratio"], columns, floor, row["right"]))
    return sorted(found, key=lambda timing: (list(EPOCHS).index(timing.case), timing.seconds))


def summary(found: Sequence[Timing], done: Sequence[Part], machine: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    rows = [
        [
            timing.case,
            timing.contender + ("" if timing.right else " WRONG"),
            f"{1e6 * timing.seconds:.1f}",
            f"{timing.ratio:.2f}",
            f"{timing.columns:.0f}",
            "" if timing.floor is None else f"{timing.floor:.0%}",
        ]
        for timing in found
    ]
    header = ["case", "contender", "µs an epoch", "/ ours", "columns", "of the floor"]
    table = markdown(
        ["part", "outcome", "seconds"], [[part.name, part.outcome, f"{part.seconds:.0f}"] for part in done]
    )
    failed = "".join(
        f"\n## {part.name}: {part.outcome}\n\n```\n{part.output[-1500:]}\n```\n"
        for part in done
        if part.outcome != "ok"
    )
    return f"# On {machine['gpu'] or 'no GPU'}\n\n{markdown(header, rows)}\n{table}{failed}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0 if every part went well, else 1."""
    parser = argparse.ArgumentParser(prog="python -m bench.on_gpu", description="All that a GPU machine is needed for.")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for everything that is written")
    parser.add_argument("--quick", action="store_true", help="the headline cases alone, in three minutes, not nine")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    end = time.perf_counter() + (180 if options.quick else 540)
    for name in ("ceilings.json", *SWEEP, *(f"compare-{case}-cuda.json" for case in EPOCHS)):
        (out / name).unlink(missing_ok=True)  # nothing of an earlier run gets into this one's report
    done = parts(out, options.quick)
    for part in done:
        run_part(part, end - time.perf_counter() - 10)  # ten seconds to sum up
        print(f"{part.name:14s} {part.outcome} ({part.seconds:.0f} s)", flush=True)
    found, machine = timings(out), describe("cuda", limit_threads(None))
    report = {"machine": machine, "timings": [asdict(x) for x in found], "parts": [asdict(x) for x in done]}
    (out / "on_gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    text = summary(found, done, machine)
    if (out / SWEEP[1]).exists():
        text += f"\n{(out / SWEEP[1]).read_text()}"
    (out / "on_gpu.md").write_text(text)
    headline = [timing for timing in found if timing.case == "full-batch" and timing.right]
    if headline:
        lengths = [
            (t.contender, t.seconds, f"{label_of(t.seconds)}   {t.ratio:.2f}x", color(t.contender)) for t in headline
        ]
        bars(out / "on_gpu.png", "full-batch: one epoch, best time", "seconds", lengths, note=machine["gpu"] or "")
    print(text)
    return int(any(part.outcome != "ok" for part in done))


if __name__ == "__main__":
    sys.exit(main())
