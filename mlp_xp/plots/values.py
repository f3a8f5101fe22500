"""What a regression predicts."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from ._style import INK, color, dress, legend, panel

__all__ = ["predicted_against_true"]


def predicted_against_true(y_true: ArrayLike, y_pred: ArrayLike, ax: Axes | None = None) -> Axes:
    """Draw each predicted value over its true one; a perfect prediction lies on the diagonal.

    Parameters
    ----------
    y_true, y_pred : array (n,) or (n, k)
        Values and what was predicted. Each of the k columns has its own color.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If the two differ in size, or there is no value.
    """
    truth, predicted = np.asarray(y_true), np.asarray(y_pred)
    if truth.size != predicted.size or not truth.size:
        raise ValueError(f"got {truth.size} true and {predicted.size} predicted values; give one of each per sample")
    truth, predicted = truth.reshape(len(truth), -1), predicted.reshape(len(truth), -1)
    ax = panel(ax, (5.4, 5.0))
    ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
    ax.plot(ends, ends, "--", color=INK, linewidth=1.2, zorder=3, label="predicted = true")
    size, alpha = np.interp(len(truth), [50, 2000], [40, 8]), np.interp(len(truth), [50, 2000], [0.9, 0.4])
    for i, (column, guess) in enumerate(zip(truth.T, predicted.T, strict=True)):
        label = f"value {i}" if truth.shape[1] > 1 else None
        ax.scatter(column, guess, s=size, alpha=alpha, color=color(i), linewidths=0, label=label)
    dress(ax, "Predicted against true", "True value", "Predicted value")
    legend(ax)
    return ax
