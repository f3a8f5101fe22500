"""The confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import ArrayLike

from ._style import INK, RIGHT, WRONG, dress, panel

__all__ = ["confusion_matrix"]

MISTAKES = LinearSegmentedColormap.from_list("mistakes", ["white", WRONG])
ABSENT = "#bbbbbb"


def confusion_matrix(
    y_true: ArrayLike, y_pred: ArrayLike, labels: Sequence[object] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw how often each class was taken for each other; the more mistakes, the darker the cell.

    Parameters
    ----------
    y_true, y_pred : array (n,)
        The classes and what was predicted.
    labels : sequence, optional
        Names of the classes 0, 1, ...; without it, each class that occurs stands under its own value.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If the two differ in length, or a class has no name in `labels`.
    """
    truth, predicted = np.asarray(y_true).ravel(), np.asarray(y_pred).ravel()
    if len(truth) != len(predicted) or not len(truth):
        raise ValueError(f"got {len(truth)} true and {len(predicted)} predicted classes; give one of each per sample")
    found = np.unique(np.concatenate([truth, predicted]))
    classes = found if labels is None else np.arange(len(labels))
    if not np.isin(found, classes).all():
        raise ValueError(f"labels names the classes 0 to {len(classes) - 1}, but the data hold {found.tolist()}")
    k = len(classes)
    counts = np.zeros((k, k), dtype=int)
    np.add.at(counts, (np.searchsorted(classes, truth), np.searchsorted(classes, predicted)), 1)

    ax = panel(ax, matrix_size(k))
    mistakes = np.where(np.eye(k, dtype=bool), 0, counts)
    ax.imshow(mistakes, cmap=MISTAKES, vmin=0, vmax=max(1, 1.3 * mistakes.max()), aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        shade = RIGHT if row == column else INK if count else ABSENT
        weight = "bold" if row == column else "normal"
        ax.text(
            column, row, str(count), ha="center", va="center", fontsize=11, color=shade, fontweight=weight,
            in_layout=False,  # which need not measure each of them
        )  # fmt: skip
    names = [str(name) for name in (classes if labels is None else labels)]
    ax.set_xticks(range(k), names)
    ax.set_yticks(range(k), names)
    right = np.trace(counts)
    title = f"{right:,} of {len(truth):,} right ({right / len(truth):.2%})"
    dress(ax, title, "Predicted class", "True class", grid=False)
    ax.spines[:].set_visible(False)
    return ax


def matrix_size(k: int) -> tuple[float, float]:
    """Return the inches that k classes need."""
    return max(4.8, 1.4 + 0.62 * k), max(3.8, 1.2 + 0.58 * k)
