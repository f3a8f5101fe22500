"""`python -m bench.map`: all cases, each in a process and within a limit of its own, and the fixed costs: one chart.

For each case the ratio of our time to that of the best peer, by rounds in which they took turns, with the compiled
library and without it. A case that is stopped or breaks is recorded, and the next one begins; what was found is
written after each. The exit code is 1 if a training was wrong, or a case or a contender failed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .cases import CASES
from .charts import OURS, PALETTE, label_of, markdown
from .compare import RESULTS
from .machine import describe, limit_threads
from .on_gpu import Part, run_part
from .rows import FLOOR, MOST_WOBBLE, Row, wobble

__all__ = ["Cell", "chart", "main", "table"]

# Those that compile longest come last: after 45% of the limit none is begun.
CONTENDERS = "ours,ours-numpy,jax-loop,jax-loop-in-out,textbook,sklearn,torch,torch-compile"
_COLORS = {"ours": OURS, "ours-numpy": PALETTE[4]}


@dataclass
class Cell:
    """One case of the map.

    Attributes
    ----------
    case : str
    outcome : str
        Of its process.
    rows : list of Row
        A row for each contender; empty if there was no outcome.
    """

    case: str
    outcome: str
    rows: list[Row] = field(default_factory=list)

    @property
    def timed(self) -> dict[str, Row]:
        """The contenders whose times mean something."""
        return {row.contender: row for row in self.rows if row.right and row.seconds}

    @property
    def peer(self) -> Row | None:
        """The fastest of the others; None if there is none."""
        peers = [row for name, row in self.timed.items() if name != FLOOR and not name.startswith("ours")]
        return min(peers, key=lambda row: statistics.median(row.seconds), default=None)

    @property
    def steady(self) -> bool:
        """Whether the bare products, if they took part, took about the same time in all rounds."""
        floor = self.timed.get(FLOOR)
        return floor is None or wobble(floor.seconds) <= MOST_WOBBLE

    def ratio(self, name: str) -> float | None:
        """Return the median over the rounds of a contender's time by the best peer's; None if either is missing."""
        row, peer = self.timed.get(name), self.peer
        if row is None or peer is None:
            return None
        return statistics.median(a / b for a, b in zip(row.seconds, peer.seconds, strict=True))

    @property
    def notes(self) -> list[str]:
        """What is to be known beside the numbers."""
        found = [] if self.steady else ["unsteady: the bare products varied by more than 30 %"]
        found += [] if self.rows else [self.outcome]
        found += [f"{row.contender}: {row.absent}" for row in self.rows if row.absent]
        return found + [f"{row.contender} is WRONG" for row in self.rows if row.seconds and not row.right]


def measure(case: str, options: argparse.Namespace, folder: Path) -> list[Cell]:
    """Measure a case, or all fixed costs, in a process of its own."""
    fixed = case == "fixed-costs"
    command = [sys.executable, "-m", "bench.fixed_costs" if fixed else "bench.compare", "--out", str(folder)]
    command += ["--threads", str(options.threads)] if options.threads else []
    if not fixed:
        command += ["--case", case, "--contenders", options.contenders, "--rounds", str(options.rounds)]
        command += ["--round-seconds", str(options.round_seconds)]
        command += ["--rows", str(options.rows)] if options.rows else []
    part = Part(case, command, options.limit, compares=not fixed)
    run_part(part, options.limit)
    print(f"{case:22s} {part.outcome} ({part.seconds:.0f} s)", flush=True)
    path = folder / ("fixed-costs.json" if fixed else f"compare-{case}-cpu.json")
    if not path.exists():
        print(part.output, file=sys.stderr)
        return [Cell(case, part.outcome)]
    report = json.loads(path.read_text())
    found = report["tasks"] if fixed else {case: report["rows"]}
    return [Cell(name, part.outcome, [Row(**row) for row in rows]) for name, rows in found.items()]


def table(cells: Sequence[Cell]) -> str:
    """Return the ratios as Markdown, then the median times of all contenders, then the notes."""
    header = ["case", "ours / best peer", "by NumPy", "best peer", "its time"]
    body = [
        [
            cell.case,
            *("" if (ratio := cell.ratio(name)) is None else f"{ratio:.2f}" for name in _COLORS),
            *(("", "") if cell.peer is None else (cell.peer.contender, label_of(statistics.median(cell.peer.seconds)))),
        ]
        for cell in cells
    ]
    names = list(dict.fromkeys(row.contender for cell in cells for row in cell.rows))
    times = [
        [
            cell.case,
            *(label_of(statistics.median(row.seconds)) if (row := cell.timed.get(name)) else "" for name in names),
        ]
        for cell in cells
    ]
    notes = "".join(f"- **{cell.case}**: {note}\n" for cell in cells for note in cell.notes)
    return f"{markdown(header, body)}\n{markdown(['median', *names], times)}\n{notes}"


def chart(path: Path, cells: Sequence[Cell], where: str) -> None:
    """Draw a line a case with our ratios to the best peer, on a logarithmic scale, and save the PNG."""
    figure = Figure(figsize=(9, 1.6 + 0.27 * len(cells)), layout="constrained")
    ax = figure.subplots()
    ax.axvline(1, color="#444444", linewidth=1)
    for name, marker, label in (("ours-numpy", "o", "ours by NumPy"), ("ours", "D", "ours")):
        points = [(ratio, place) for place, cell in enumerate(cells) if (ratio := cell.ratio(name)) is not None]
        if points:
            ax.scatter(*zip(*points, strict=True), marker=marker, s=36, color=_COLORS[name], label=label, zorder=3)
    for place, cell in enumerate(cells):
        assert cell.peer is not None
        ends = [ratio for name in _COLORS if (ratio := cell.ratio(name)) is not None]
        ax.plot([min(ends), max(ends)], [place, place], color="#CCCCCC", linewidth=2, zorder=1)
        text = f"{cell.ratio('ours'):.2f}  of {cell.peer.contender}" + ("" if cell.steady else "  (unsteady)")
        ax.text(1.01, place, text, transform=ax.get_yaxis_transform(), fontsize=8, va="center")
    ax.set_yticks(range(len(cells)), [cell.case for cell in cells], fontsize=9)
    ax.invert_yaxis()
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.grid(axis="x", color="#EEEEEE", zorder=0)
    ax.set_xlabel("our time by the best peer's: left of the line we are faster", fontsize=9)
    ax.set_title("The whole map", loc="left", fontsize=11)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, reverse=True)
    figure.supxlabel(where, fontsize=8, color="#666666", x=0.01, ha="left")
    figure.savefig(path, dpi=150)


def save(folder: Path, machine: dict[str, Any], cells: Sequence[Cell]) -> None:
    """Write map.json, map.md and map.png into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine, "cells": [asdict(cell) for cell in cells]}
    (folder / "map.json").write_text(json.dumps(report, indent=1) + "\n")
    where = f"{machine['cpu']}, {machine['threads']} threads"
    (folder / "map.md").write_text(f"# The whole map\n\n{table(cells)}\n{where}\n")
    drawn = [cell for cell in cells if cell.ratio("ours") is not None]
    if drawn:
        chart(folder / "map.png", drawn, where)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.map", description="All cases, and the fixed costs, on a CPU."
    )
    parser.add_argument("--only", default=",".join([*CASES, "fixed-costs"]), help="cases with commas between")
    parser.add_argument("--contenders", default=CONTENDERS)
    parser.add_argument("--rows", type=int, help="only so many rows of the data, for a first look")
    parser.add_argument("--rounds", type=int, default=7, help="most rounds of a case")
    parser.add_argument("--round-seconds", type=float, default=40, help="begin no more rounds after so many seconds")
    parser.add_argument("--limit", type=float, default=600, help="most seconds of a case, all in all")
    parser.add_argument("--threads", type=int, help="cores to use (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON, table and chart")
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    if unknown := set(names) - {*CASES, "fixed-costs"}:
        parser.error(f"unknown case {', '.join(sorted(unknown))}; choose from {', '.join([*CASES, 'fixed-costs'])}")
    machine = describe("cpu", options.threads or limit_threads(None))
    cells: list[Cell] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            cells += measure(name, options, Path(folder))
            save(options.out, machine, cells)
    print(table(cells))
    failed = any(row.failed or (row.seconds and not row.right) for cell in cells for row in cell.rows)
    return int(failed or any(not cell.rows for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
