"""Markdown tables and bar charts, in one look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

__all__ = ["FLOOR", "OURS", "PALETTE", "PEER", "bars", "color", "label_of", "markdown"]

# Okabe and Ito (2008): told apart with any form of color blindness
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
OURS, PEER, FLOOR = PALETTE[0], "#B0B0B0", "#444444"


def color(contender: str) -> str:
    """Return the color of a contender: ours, a peer or the floor."""
    if contender == "gemm":
        return FLOOR
    return OURS if contender.startswith("ours") else PEER


def label_of(seconds: float) -> str:
    """Return a time with three digits and a unit that suits it.

    Examples
    --------
    >>> label_of(0.1274), label_of(0.000045)
    ('127 ms', '45.0 µs')
    """
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 0.9995 or unit == "µs":
            number = seconds * factor
            return (f"{number:#.3g}".rstrip(".") if number < 999.5 else f"{number:,.0f}") + f" {unit}"
    raise AssertionError("unreachable")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are aligned right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def bars(
    path: Path,
    title: str,
    unit: str,
    rows: Sequence[tuple[str, float, str, str]],
    *,
    floor: float | None = None,
    note: str = "",
) -> None:
    """Draw horizontal bars, the shortest on top, and save them as a PNG.

    Parameters
    ----------
    path : Path
    title, unit : str
        Of the chart, and of its axis.
    rows : sequence of (name, length, text, color)
    floor : float, optional
        Length at which a dashed line is drawn through all bars.
    note : str
        Small print below.
    """
    rows = sorted(rows, key=lambda row: row[1], reverse=True)
    figure = Figure(figsize=(8, 1.5 + 0.42 * len(rows)), layout="constrained")
    ax = figure.subplots()
    ax.barh([row[0] for row in rows], [row[1] for row in rows], color=[row[3] for row in rows], height=0.68)
    for place, (_, length, text, _) in enumerate(rows):
        words = ax.annotate(text, (length, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)
        words.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.5})  # the line of the floor stops at words
    if floor is not None:
        ax.axvline(floor, color=FLOOR, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    ax.set_xlim(0, 1.28 * max((row[1] for row in rows), default=1.0))
    ax.set_title(title, loc="left", fontsize=11)
    ax.set_xlabel(unit, fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    if note:
        figure.supxlabel(note, fontsize=8, color="#666666", x=0.01, ha="left")
    figure.savefig(path, dpi=150)
