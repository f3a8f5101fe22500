"""What a classifier makes of the points of a plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from numpy.typing import ArrayLike, NDArray

from ._style import FAINT, INK, MARKERS, PALETTE, AxesLike, dress, legend, panel, panels

__all__ = ["decision_regions", "hidden_space", "perceptron_lines"]

Points = NDArray[Any]
Box = tuple[float, float, float, float]  # left, right, bottom, top


def decision_regions(model: Any, X: ArrayLike, y: ArrayLike, ax: Axes | None = None) -> Axes:
    """Color the plane by the class that is predicted there, with the samples on top.

    Parameters
    ----------
    model : object with ``predict``, or callable
        Takes points (n, 2), returns classes (n,).
    X : array (n, 2)
    y : array (n,)
        The class of each sample.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If the samples are not points of a plane, or there are more classes than colors.
    """
    X, y = _points(X, y)
    left, right, bottom, top = box = _box(X)
    middles = (np.arange(300) + 0.5) / 300
    grid = np.meshgrid(left + middles * (right - left), bottom + middles * (top - bottom))
    predict = getattr(model, "predict", model)
    predicted = np.asarray(predict(np.stack(grid, axis=-1).reshape(-1, 2))).reshape(300, 300)
    classes = _classes(y, predicted)
    ax = panel(ax, (6.4, 5.0))
    tints = ListedColormap([tuple(0.3 * c + 0.7 for c in to_rgb(shade)) for shade in PALETTE[: len(classes)]])
    ax.imshow(
        np.searchsorted(classes, predicted),
        cmap=tints,
        vmin=-0.5,
        vmax=len(classes) - 0.5,
        extent=box,
        origin="lower",
        interpolation="nearest",
        aspect="auto",
    )
    _scatter(ax, X, y, classes)
    dress(ax, "Decision regions", "First input", "Second input", grid=False)
    return ax


def hidden_space(model: Any, X: ArrayLike, y: ArrayLike, ax: AxesLike | None = None) -> NDArray[Any]:
    """Draw the samples before and after the first hidden layer, with the grid that the layer bends.

    A network with one hidden layer and one or two outputs separates the classes of the hidden space by a line,
    which is drawn too.

    Parameters
    ----------
    model : MLP
        With two inputs and two units in its first hidden layer.
    X : array (n, 2)
    y : array (n,)
        The class of each sample.
    ax : sequence of two Axes, optional
        Before and after.

    Returns
    -------
    ndarray of Axes
        Both panels.

    Raises
    ------
    ValueError
        If the samples are not points of a plane, or the first hidden layer does not take them to one.
    """
    X, y = _points(X, y)
    if len(model.sizes) < 3 or tuple(model.sizes[:2]) != (2, 2):
        raise ValueError(f"model has sizes {list(model.sizes)}; hidden_space needs 2 inputs and 2 units next to them")

    def hidden(points: Points) -> Points:
        return np.asarray(model.device.to_host(model.forward(points).A[1]))

    classes = _classes(y)
    box = _box(X)
    axes = panels(ax, 2, (5.4, 5.0))
    for line in _grid_lines(box):
        axes[0].plot(*line.T, color=FAINT, linewidth=1)
        axes[1].plot(*hidden(line).T, color=FAINT, linewidth=1)
    w, b = _output_line(model)
    if np.any(w):
        view: Box = (*axes[1].get_xlim(), *axes[1].get_ylim())
        axes[1].plot(*_segment(w, b, view).T, color=INK, linewidth=2, label="the output's line")
        axes[1].set(xlim=view[:2], ylim=view[2:])
    _scatter(axes[0], X, y, classes)
    _scatter(axes[1], hidden(X), y, classes)
    axes[0].get_legend().remove()
    dress(axes[0], "Before: the inputs", "First input", "Second input", grid=False)
    dress(axes[1], "After: the first hidden layer", "First hidden unit", "Second hidden unit", grid=False)
    return axes


def perceptron_lines(
    X: ArrayLike, y: ArrayLike, iterates: Sequence[tuple[ArrayLike, float]], ax: Axes | None = None
) -> Axes:
    """Draw the line w·x + b = 0 after each step of the perceptron, from light to dark, the last one bold.

    Parameters
    ----------
    X : array (n, 2)
    y : array (n,)
        The class of each sample.
    iterates : sequence of (w, b)
        Weights (2,) and bias at the start and after each step. Where w = 0 there is no line.
    ax : Axes, optional

    Returns
    -------
    Axes
    """
    X, y = _points(X, y)
    box = _box(np.vstack([X, np.zeros(2)]))  # the first lines pass through the origin, or near it
    ax = panel(ax, (7.2, 5.0))
    lines = [(step, np.asarray(w, dtype=float), float(b)) for step, (w, b) in enumerate(iterates) if np.any(w)]
    steps_of: dict[tuple[float, ...], list[int]] = {}  # a line may come back: the legend names it once
    for step, w, b in lines:
        steps_of.setdefault(_direction(w, b), []).append(step)
    for i, (step, w, b) in enumerate(lines):
        last = i == len(lines) - 1
        steps = steps_of[_direction(w, b)]
        named = step == steps[-1] and (last or len(steps_of) <= 10)
        ax.plot(
            *_segment(w, b, box).T,
            color="black" if last else colormaps["Grays"](0.3 + 0.5 * i / len(lines)),
            linewidth=4 if last else 2,
            label=f"step {', '.join(map(str, steps))}" if named else None,
        )
    _scatter(ax, X, y, _classes(y))
    ax.set(xlim=box[:2], ylim=box[2:])
    dress(ax, "The perceptron's line, step by step", "First input", "Second input", grid=False)
    return ax


def _points(X: ArrayLike, y: ArrayLike) -> tuple[Points, NDArray[Any]]:
    """Return (n, 2) and (n,) arrays, or say what is wrong with them."""
    X, y = np.asarray(X), np.asarray(y)
    if X.ndim != 2 or X.shape[1] != 2 or y.size != len(X) or not len(X):
        raise ValueError(f"X has shape {X.shape} and y {y.shape}; give points (n, 2) and one class for each")
    return X, y.ravel()


def _box(X: Points) -> Box:
    """Return the smallest box around the points, with a margin of a quarter on each side."""
    low, high = X.min(axis=0), X.max(axis=0)
    margin = np.where(high > low, 0.25 * (high - low), 1.0)
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    return left, right, bottom, top


def _classes(*labels: NDArray[Any]) -> NDArray[Any]:
    classes = np.unique(np.concatenate([part.ravel() for part in labels]))
    if len(classes) > len(PALETTE):
        raise ValueError(
            f"got {len(classes)} different classes, and at most {len(PALETTE)} can be told apart by color; "
            "if predict returns numbers, pass a function that turns them into classes"
        )
    return classes


def _scatter(ax: Axes, X: Points, y: NDArray[Any], classes: NDArray[Any]) -> None:
    """Draw each class in its own color and shape, large where the points are few."""
    size = np.interp(len(X), [10, 1000], [130, 18])
    for label, shade, marker in zip(classes, PALETTE, MARKERS, strict=False):
        rows = y == label
        ax.scatter(
            X[rows, 0], X[rows, 1], s=size, c=shade, marker=marker, edgecolors="white", label=f"class {label}", zorder=3
        )
    legend(ax, loc="center left", bbox_to_anchor=(1, 0.5))


def _grid_lines(box: Box) -> list[Points]:
    """Return upright and level lines across the box, each as points close enough together to be bent."""
    left, right, bottom, top = box
    t = np.linspace(0, 1, 100)
    upright = [np.stack([np.full(100, x), bottom + t * (top - bottom)], axis=1) for x in np.linspace(left, right, 13)]
    level = [np.stack([left + t * (right - left), np.full(100, h)], axis=1) for h in np.linspace(bottom, top, 13)]
    return upright + level


def _output_line(model: Any) -> tuple[NDArray[Any], float]:
    """Return (w, b) of the line between the classes in the plane of one hidden layer; w = 0 if there is none."""
    if len(model.sizes) > 3 or model.sizes[2] > 2:
        return np.zeros(2), 0.0
    W, b = model.weights[1], model.biases[1]
    return (W[0], float(b[0])) if len(W) == 1 else (W[1] - W[0], float(b[1] - b[0]))


def _direction(w: NDArray[Any], b: float) -> tuple[float, ...]:
    """Return the same numbers for all multiples of (w, b): for the same line."""
    return tuple(np.round(np.array([*w, b]) / np.linalg.norm(w), 9).tolist())


def _segment(w: NDArray[Any], b: float, box: Box) -> Points:
    """Return the two ends of a piece of the line w·x + b = 0 that reaches across the box."""
    left, right, bottom, top = box
    center = np.array([left + right, bottom + top]) / 2
    foot = center - (w @ center + b) / (w @ w) * w
    along = np.array([-w[1], w[0]]) / np.linalg.norm(w)
    reach = np.hypot(right - left, top - bottom)
    return np.stack([foot - reach * along, foot + reach * along])
