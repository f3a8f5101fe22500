"""`python -m bench.report FILE.json...`: pytest-benchmark's reports of one or more machines, side by side.

Ratios are of best times on the same machine, as the contenders did not take turns; `bench.compare` is stricter. As
there, a group whose bare matrix products varied by more than 30 % is marked and nothing follows from it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure

from .charts import PALETTE, label_of, markdown
from .compare import FLOOR, MOST_WOBBLE, RESULTS, wobble

__all__ = ["Result", "chart", "main", "read", "table"]


@dataclass
class Result:
    """One benchmark on one machine.

    Attributes
    ----------
    machine, group, contender : str
    absent : str or None
        Why it did not run; the numbers are then None.
    seconds, median : float or None
        Best and median time of an epoch, or of a kernel.
    gflops : float or None
        Nominal operations by the best time, in 1e9 per second.
    peak_mb : float or None
        For a benchmark of memory; its time is of no interest.
    wobble : float or None
        How far the times are apart.
    """

    machine: str
    group: str
    contender: str
    absent: str | None = None
    seconds: float | None = None
    median: float | None = None
    gflops: float | None = None
    peak_mb: float | None = None
    wobble: float | None = None


def read(path: Path) -> list[Result]:
    """Return what a report holds.

    Raises
    ------
    ValueError
        If the file is not one that pytest-benchmark wrote in `bench/`.
    """
    try:
        report = json.loads(path.read_text())
        about = report["machine_info"]["bench"]
        processor = about["cpu"] if about["device"] == "cpu" else about["gpu"]
        machine = f"{processor}, {about['threads']} threads"
        results = [Result(machine, one["group"], one["contender"], one["reason"]) for one in report["absent"]]
        for one in report["benchmarks"]:
            extra, stats = one["extra_info"], one["stats"]
            times = [seconds / extra.get("epochs", 1) for seconds in stats["data"]]
            result = Result(machine, one["group"], extra["contender"], None, min(times), statistics.median(times))
            result.gflops = extra["flops"] / min(times) / 1e9 if "flops" in extra else None
            result.peak_mb, result.wobble = extra.get("peak_mb"), wobble(times)
            results.append(result)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not a report of these benchmarks ({error!r}); "
            f"write one with: pytest bench --benchmark-json={path}"
        ) from error
    return results


def table(results: Sequence[Result], baseline: str) -> str:
    """Return the results of one group as Markdown, a column group per machine."""
    machines = list(dict.fromkeys(result.machine for result in results))
    contenders = list(dict.fromkeys(result.contender for result in _sorted(results)))
    found = {(result.machine, result.contender): result for result in results}
    header = ["", *(title for machine in machines for title in (machine, f"/ {baseline}", "GFLOP/s"))]
    body = []
    for contender in contenders:
        cells = [contender]
        for machine in machines:
            cells += _cells(found.get((machine, contender)), found.get((machine, baseline)))
        body.append(cells)
    doubts = [
        f"\n{machine}: no conclusion, as the bare matrix products varied by {floor.wobble:.0%}.\n"
        for machine in machines
        if (floor := found.get((machine, FLOOR))) and floor.wobble is not None and floor.wobble > MOST_WOBBLE
    ]
    return markdown(header, body) + "".join(doubts)


def _sorted(results: Sequence[Result]) -> list[Result]:
    return sorted(results, key=lambda result: _length(result) or float("inf"))


def _length(result: Result) -> float | None:
    return result.seconds if result.peak_mb is None else result.peak_mb


def _cells(result: Result | None, base: Result | None) -> list[str]:
    if result is None:
        return ["not run", "", ""]
    length = _length(result)
    if length is None:
        return [result.absent or "", "", ""]
    text = label_of(length) if result.peak_mb is None else f"{length:.0f} MB"
    reference = None if base is None else _length(base)
    ratio = "" if reference is None else f"{length / reference:.2f}"
    return [text, ratio, "" if result.gflops is None else f"{result.gflops:.0f}"]


def chart(path: Path, results: Sequence[Result]) -> None:
    """Draw a panel a group, a bar for each contender and machine, and save the PNG."""
    present = [result for result in results if _length(result) is not None]
    groups = list(dict.fromkeys(result.group for result in present))
    machines = list(dict.fromkeys(result.machine for result in present))
    members = [[result for result in present if result.group == group] for group in groups]
    heights = [0.9 + 0.25 * len(member) for member in members]
    figure = Figure(figsize=(9, 0.6 + 0.25 * len(machines) + sum(heights)), layout="constrained")
    axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, group, member in zip(axes, groups, members, strict=True):
        contenders = list(dict.fromkeys(result.contender for result in _sorted(member)))
        for result in member:
            length = _length(result) or 0.0
            thickness = 0.8 / len(machines)
            place = contenders.index(result.contender) + thickness * (machines.index(result.machine) + 0.5) - 0.4
            ax.barh(place, length, height=0.9 * thickness, color=PALETTE[machines.index(result.machine) % len(PALETTE)])
            text = label_of(length) if result.peak_mb is None else f"{length:.0f} MB"
            ax.annotate(text, (length, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        ax.set_yticks(range(len(contenders)), contenders, fontsize=8)
        ax.invert_yaxis()
        ax.set_xlim(0, 1.15 * max(_length(result) or 0.0 for result in member))
        ax.set_title(group, loc="left", fontsize=10)
        ax.set_xlabel("MB" if member[0].peak_mb is not None else "seconds, best", fontsize=8)
        ax.tick_params(axis="x", labelsize=8)
        ax.tick_params(axis="y", length=0)
        ax.spines[["top", "right"]].set_visible(False)
    for place, machine in enumerate(machines):
        axes[0].barh([0], [0], color=PALETTE[place % len(PALETTE)], label=machine)
    figure.legend(loc="outside upper left", fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description="Reports of several machines in one.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    parser.add_argument("--baseline", default="ours", help="the contender that ratios refer to")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON, table and chart")
    options = parser.parse_args(arguments)
    try:
        results = [result for path in options.files for result in read(path)]
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    groups = dict.fromkeys(result.group for result in results)
    sections = (
        f"## {group}\n\n{table([result for result in results if result.group == group], options.baseline)}"
        for group in groups
    )
    text = "\n".join(sections)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "report.md").write_text(f"# Benchmarks\n\n{text}")
    (options.out / "report.json").write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    chart(options.out / "report.png", results)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
