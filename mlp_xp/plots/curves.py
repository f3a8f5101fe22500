"""Curves over a parameter, an input or the epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ..devices import get_device
from ..kernels import ACTIVATIONS
from ._style import INK, WRONG, AxesLike, color, dress, legend, panel, panels

__all__ = ["activation_functions", "curve_panels", "delta_norms", "learning_curves", "loss_surface"]

_TITLES = {
    "loss": ("Loss", "Mean loss"),
    "accuracy": ("Accuracy", "Share of samples that are right"),
    "r2": ("Coefficient of determination", "R²"),
    "lr": ("Learning rate", ""),
}
# of each kind of data: what its columns of a history begin with, when it is measured, the style of its line
_ROLES = (
    ("", "training", "during the epoch", "-"),
    ("val_", "validation", "after the epoch", "--"),
    ("test_", "test", "after the epoch", ":"),
)


def learning_curves(history: Any, ax: AxesLike | None = None) -> NDArray[Any]:
    """Draw the loss, epoch by epoch, and the score and the learning rate if there is something to see.

    The training loss is the mean over an epoch, while the parameters change; validation and test data are measured
    after it. The epoch with the least validation loss is marked. Test data choose nothing, so they have no best epoch.
    Of one run, training, validation and test have a color each; of several runs, each run has its color, and
    validation is dashed and test dotted.

    Parameters
    ----------
    history : History or mapping of str to History
        What `fit` returns, or several of them by name.
    ax : Axes or sequence of Axes, optional
        One for the loss, one for the score if it was recorded, one for the learning rate if it varies. Fewer Axes get
        the first of these.

    Returns
    -------
    ndarray of Axes
        The panels, in this order.
    """
    runs = history if isinstance(history, Mapping) else {"": history}
    quantities = curve_panels(*runs.values())
    if ax is not None:
        quantities = quantities[: np.size(np.asarray(ax, dtype=object))]
    axes = panels(ax, len(quantities))
    for target, quantity in zip(axes, quantities, strict=True):
        title, ylabel = _TITLES[quantity]
        for i, (name, run) in enumerate(runs.items()):
            _draw_run(target, run, quantity, name, None if len(runs) == 1 else color(i))
        dress(target, title, "Epoch", ylabel)
        target.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(target)
    axes[0].set_ylim(bottom=0)
    return axes


def _draw_run(ax: Axes, run: Any, quantity: str, name: str, shade: str | None) -> None:
    """Draw one quantity of a run, of all the data that it was recorded for; `shade` is its color among others."""
    for i, (prefix, role, when, style) in enumerate(_ROLES):
        values = getattr(run, prefix + quantity, ())
        if not len(values):
            continue
        look: dict[str, Any] = {"color": shade or color(i), "linewidth": np.interp(len(values), [50, 400], [2, 1])}
        role = "" if quantity == "lr" else role if shade else f"{role} ({when})"
        label = ", ".join(part for part in (name, role) if part)
        ax.plot(run.epoch, values, style, marker="o" if len(values) == 1 else "", label=label, **look)
        if prefix == "val_" and quantity == "loss":
            best = int(np.argmin(values))
            where = f"best epoch, {run.epoch[best]}"
            ax.plot(
                run.epoch[best], values[best], "*", color=look["color"], markersize=14, markeredgecolor="white",
                label=f"{name}, {where}" if name else where,
            )  # fmt: skip


def curve_panels(*histories: Any) -> list[str]:
    """Return what there is to draw of runs: what was recorded of any data, and the learning rate if it varies."""

    def recorded(quantity: str) -> bool:
        return any(len(getattr(run, prefix + quantity, ())) for run in histories for prefix, *_ in _ROLES)

    varies = any(len(set(getattr(run, "lr", ()))) > 1 for run in histories)
    return ["loss", *filter(recorded, ("accuracy", "r2")), *["lr"] * varies]


def activation_functions(ax: AxesLike | None = None) -> NDArray[Any]:
    """Draw the activations and their derivatives, as the library computes them.

    Parameters
    ----------
    ax : sequence of two Axes, optional
        One for the functions, one for the derivatives.

    Returns
    -------
    ndarray of Axes
        Both panels.
    """
    axes = panels(ax, 2)
    xp = get_device("cpu").xp
    z = np.concatenate([np.linspace(-4, -0.01, 400), [np.nan], np.linspace(0, 4, 401)])  # NaN: no line up a step
    for i, g in enumerate(g for g in ACTIVATIONS.values() if g.line):
        A = g.value(xp, z)
        look = {"color": color(i), "linestyle": g.line, "linewidth": 2.5, "label": g.name.replace("_", " ")}
        axes[0].plot(z, A, **look)
        axes[1].plot(z, g.gradient(xp, np.ones_like(z), A), **look)
    axes[0].set_ylim(-1.25, 2.05)
    dress(axes[0], "Activation functions", "z", "g(z)")
    dress(axes[1], "Their derivatives", "z", "g′(z)")
    legend(axes[0], loc="upper left")
    return axes


def delta_norms(norms: Mapping[str, ArrayLike], ax: AxesLike | None = None) -> NDArray[Any]:
    """Draw the size of delta in each layer while networks train: if it shrinks toward the input, gradients vanish.

    Parameters
    ----------
    norms : mapping of str to array (epochs, layers)
        For each network the norm of delta by epoch and layer, the layer next to the input first.
    ax : sequence of Axes, optional
        One for each network.

    Returns
    -------
    ndarray of Axes
        One panel for each network, with the same scale.

    Raises
    ------
    ValueError
        If an array is not (epochs, layers).
    """
    tables = {name: np.asarray(values) for name, values in norms.items()}
    for name, table in tables.items():
        if table.ndim != 2:
            raise ValueError(f"norms[{name!r}] has shape {table.shape}; give a row per epoch and a column per layer")
    axes = panels(ax, len(tables), (5.2, 4.4))
    for target, (name, table) in zip(axes, tables.items(), strict=True):
        layers = table.shape[1]
        for layer, column in enumerate(table.T, start=1):
            shade = colormaps["viridis"](0.85 * (layer - 1) / max(layers - 1, 1))
            target.plot(np.arange(1, len(table) + 1), column, color=shade, linewidth=2.5, label=f"layer {layer}")
        target.set_yscale("log")
        dress(target, name, "Epoch", "Norm of delta")
        target.xaxis.set_major_locator(MaxNLocator(integer=True))
    lows, highs = zip(*(target.get_ylim() for target in axes), strict=True)
    for target in axes:
        target.set_ylim(min(lows), max(highs))
    legend(axes[-1], loc="center left", bbox_to_anchor=(1, 0.5))
    return axes


def loss_surface(
    loss: Callable[..., float],
    path: ArrayLike | None = None,
    limits: Sequence[tuple[float, float]] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a loss over its one or two parameters, and the way that gradient descent took on it.

    Parameters
    ----------
    loss : callable
        ``loss(a)`` or ``loss(a, b)``, called with one float for each parameter.
    path : array (steps,) or (steps, parameters), optional
        The parameters step by step.
    limits : sequence of (low, high), optional
        The range of each parameter; without it, what the path covers and half as much again.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If there is neither a path nor limits, or the parameters are not one or two.
    """
    steps = None if path is None else np.asarray(path, dtype=float).reshape(len(np.asarray(path)), -1)
    if limits is None:
        if steps is None:
            raise ValueError("nothing says where to draw the loss; give path, limits, or both")
        low, high = steps.min(axis=0), steps.max(axis=0)
        margin = np.where(high > low, 0.25 * (high - low), 1.0)
        limits = list(zip(low - margin, high + margin, strict=True))
    if len(limits) not in (1, 2) or (steps is not None and steps.shape[1] != len(limits)):
        found = len(limits) if steps is None else steps.shape[1]
        raise ValueError(f"cannot draw a loss over {found} parameter(s) within {len(limits)} range(s); use one or two")
    ax = panel(ax)
    (_curve if len(limits) == 1 else _contours)(ax, loss, limits)
    if steps is not None:
        heights = [float(loss(*step)) for step in steps] if len(limits) == 1 else steps[:, 1]
        size = np.interp(len(steps), [20, 200], [5, 2])
        ax.plot(steps[:, 0], heights, "o-", color=WRONG, markersize=size, linewidth=1.5, label="gradient descent")
        ax.plot(steps[-1, 0], heights[-1], "*", color=WRONG, markersize=18, markeredgecolor="white", label="last step")
        legend(ax, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    return ax


def _curve(ax: Axes, loss: Callable[..., float], limits: Sequence[tuple[float, float]]) -> None:
    a = np.linspace(*limits[0], 400)
    ax.plot(a, [float(loss(value)) for value in a], color=color(0), linewidth=2.5)
    dress(ax, "Loss", "Parameter", "Loss")


def _contours(ax: Axes, loss: Callable[..., float], limits: Sequence[tuple[float, float]]) -> None:
    a, b = np.linspace(*limits[0], 80), np.linspace(*limits[1], 80)
    heights = np.array([[float(loss(x, y)) for x in a] for y in b])
    # Levels that enclose equal areas show a flat valley as well as steep walls.
    levels = np.unique(np.quantile(heights, np.linspace(0, 1, 22)))
    ax.contourf(a, b, heights, levels, cmap="Blues", norm=BoundaryNorm(levels, 256), alpha=0.8)
    ax.contour(a, b, heights, levels, colors=INK, linewidths=0.4)
    dress(ax, "Loss: darker is higher", "First parameter", "Second parameter", grid=False)
