"""The common look: one palette, Axes that are made when none are given, words in one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

# Okabe and Ito (2008), "Color Universal Design": told apart by people with any form of color blindness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
RIGHT, WRONG, INK, FAINT = PALETTE[0], PALETTE[1], "#333333", "#d9d9d9"

AxesLike = Axes | Sequence[Axes] | NDArray[Any]


def layout() -> ConstrainedLayoutEngine:
    """Return a layout that leaves room for the words, and air around everything."""
    return ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)


def panels(ax: AxesLike | None, count: int, size: tuple[float, float] = (6.0, 4.4)) -> NDArray[Any]:
    """Return `count` Axes in a row, each of `size` inches: the given ones, or those of a new figure.

    Raises
    ------
    ValueError
        If the number of Axes given is not `count`.
    """
    if ax is None:
        # Here, not above: a picture drawn on a given Figure needs neither pyplot nor its global state.
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=(count * size[0], size[1]), layout=layout())
        return np.atleast_1d(figure.subplots(1, count))
    axes = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()
    if len(axes) != count:
        raise ValueError(f"this picture has {count} panel(s) but ax holds {len(axes)} Axes; give {count}, or ax=None")
    return axes


def panel(ax: Axes | None, size: tuple[float, float] = (6.4, 4.6)) -> Axes:
    """Return the given Axes, or that of a new figure of `size` inches."""
    axes: Axes = panels(ax, 1, size)[0]
    return axes


def dress(ax: Axes, title: str, xlabel: str = "", ylabel: str = "", grid: bool = True) -> None:
    """Put title and axis labels on `ax` and take away what carries no information."""
    ax.set_title(title, loc="left", fontsize=15, color=INK, pad=10)
    ax.set_xlabel(xlabel, fontsize=13, color=INK)
    ax.set_ylabel(ylabel, fontsize=13, color=INK)
    ax.tick_params(which="both", labelsize=12, colors=INK, length=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(INK)
    if grid:
        ax.grid(color=FAINT, linewidth=0.8)
        ax.set_axisbelow(True)


def legend(ax: Axes, **options: Any) -> None:
    """Name what has a label on `ax`, without a frame."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=12, frameon=False, labelcolor=INK, **options)


def color(index: int) -> str:
    """Return the palette's color number `index`, starting again when they run out."""
    return PALETTE[index % len(PALETTE)]
