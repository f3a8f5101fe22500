"""Rows of pixels as the pictures they are."""

from __future__ import annotations

from math import ceil, isqrt
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from ._style import INK, WRONG, dress, panel

__all__ = ["digit_predictions", "most_confidently_wrong", "sample_grid", "weight_images"]


def sample_grid(X: ArrayLike, y: ArrayLike, rows: int = 10, columns: int = 10, ax: Axes | None = None) -> Axes:
    """Draw samples of each class, one class in a row.

    If there are fewer classes than rows, a class takes several. If there are more, the first are drawn.

    Parameters
    ----------
    X : array (n, d)
        A square image in each row.
    y : array (n,)
        The class of each image.
    rows, columns : int
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If the rows of `X` are not square images.
    """
    images, y = _square_images(X), np.asarray(y).ravel()
    classes = np.unique(y)[:rows]
    labels = [classes[row * len(classes) // rows] for row in range(rows)]
    found = {label: iter(np.flatnonzero(y == label)) for label in classes}
    picked = [next(found[label], None) for label in labels for _ in range(columns)]
    blank = np.full(images.shape[1:], np.nan)
    tiles = np.stack([blank if i is None else images[i] for i in picked])

    ax = panel(ax, (max(4.0, 0.6 * columns + 0.6), 0.6 * rows + 0.6))
    _, corners = _tile(ax, tiles, columns, cmap="gray_r")
    dress(ax, "Samples of each class", grid=False)
    ax.set_yticks(corners[::columns, 1] + images.shape[1] / 2, [str(label) for label in labels], fontsize=13)
    return ax


def weight_images(W: ArrayLike, shape: tuple[int, int] = (28, 28), count: int = 25, ax: Axes | None = None) -> Axes:
    """Draw the weights of the first units of a layer as images: red excites, blue inhibits, white is zero.

    Each image has the number of its unit above it, counted from 0. The images share one scale, which the strongest
    hundredth of the weights exceeds: a single large weight does not make all else pale.

    Parameters
    ----------
    W : array (h, height * width)
        The weights of the first layer.
    shape : (height, width)
    count : int
        How many units to draw.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If the rows of `W` are not images of this shape.
    """
    W = np.asarray(W)
    if W.ndim != 2 or W.shape[1] != shape[0] * shape[1]:
        raise ValueError(f"W has shape {W.shape}; images of {shape} pixels need {shape[0] * shape[1]} columns")
    images = W[:count].reshape(-1, *shape)
    columns = ceil(len(images) ** 0.5)
    ax = panel(ax, (max(5.0, columns + 1.2), ceil(len(images) / columns) + 0.5))
    reach = np.quantile(np.abs(images), 0.99) or 1.0
    picture, corners = _tile(ax, images, columns, band=0.25, cmap="RdBu_r", vmin=-reach, vmax=reach)
    for unit, (left, top) in enumerate(corners):
        look: dict[str, Any] = {"ha": "left", "va": "bottom", "fontsize": 9, "color": INK}
        ax.text(left, top - 0.04 * shape[0], str(unit), **look, in_layout=False)  # the layout need not measure each
    extend = "both" if np.abs(images).max() > reach else "neither"
    bar = ax.figure.colorbar(picture, ax=ax, shrink=0.6, panchor=False, pad=0.02, extend=extend)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=11, colors=INK, length=0)
    number = f"{len(W)}" if len(images) == len(W) else f"{len(images)} of {len(W)}"
    dress(ax, f"Weights into hidden units ({number})", grid=False)
    return ax


def digit_predictions(
    X: ArrayLike,
    predictions: ArrayLike,
    probabilities: ArrayLike,
    truth: ArrayLike | None = None,
    numbers: ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw images with the class predicted for them and its probability; mistakes are framed.

    Parameters
    ----------
    X : array (n, d)
        A square image in each row.
    predictions : array (n,)
    probabilities : array (n,) or (n, k)
        The probability of the predicted class, or those of all classes.
    truth : array (n,), optional
        The true classes.
    numbers : array (n,), optional
        The row that each image has in its data, to look it up by.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If the rows of `X` are not square images, or the number of predictions, probabilities or true classes differs.
    """
    images, predicted = _square_images(X), np.asarray(predictions).ravel()
    probability = np.asarray(probabilities)
    if probability.ndim == 2:
        probability = _class_probabilities(probability).max(axis=1)
    actual = predicted if truth is None else np.asarray(truth).ravel()
    lengths = [len(part) for part in (images, predicted, probability, actual)]
    if len(set(lengths)) > 1:
        raise ValueError(f"images, predictions, probabilities and truth number {lengths}; give one of each per image")

    columns = min(4, len(images))
    ax = panel(ax, (max(5.0, 1.7 * columns), 2.2 * ceil(len(images) / columns) + 0.4))
    _, height, width = images.shape
    _, corners = _tile(ax, images, columns, band=0.4, cmap="gray_r")
    rows = [""] * len(images) if numbers is None else [f"  #{number}" for number in np.asarray(numbers).ravel()]
    for (left, top), guess, chance, label, row in zip(corners, predicted, probability, actual, rows, strict=True):
        wrong = guess != label
        caption = f"{guess}, not {label}" if wrong else f"{guess}"
        ax.text(
            left + width / 2,
            top - 0.06 * height,
            f"{caption}\n{_percent(chance)}{row}",
            ha="center",
            va="bottom",
            fontsize=12,
            color=WRONG if wrong else INK,
        )
        if wrong:
            ax.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=WRONG, linewidth=2, clip_on=False))
    dress(ax, "Predicted class and its probability", grid=False)
    return ax


def most_confidently_wrong(
    X: ArrayLike, y: ArrayLike, proba: ArrayLike, count: int = 12, ax: Axes | None = None
) -> Axes:
    """Draw the misclassified images that the model was surest about, the surest first, with their rows in `X`.

    Parameters
    ----------
    X : array (n, d)
        A square image in each row.
    y : array (n,)
        The true classes 0, 1, ....
    proba : array (n, k), (n, 1) or (n,)
        What `predict_proba` returns; a single column is the probability of class 1.
    count : int
        How many images to draw.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If the rows of `X` are not square images.
    """
    X, y, proba = np.asarray(X), np.asarray(y).ravel(), _class_probabilities(np.asarray(proba))
    predicted, confidence = proba.argmax(axis=1), proba.max(axis=1)
    wrong = np.flatnonzero(predicted != y)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    if len(worst):
        ax = digit_predictions(X[worst], predicted[worst], confidence[worst], y[worst], worst, ax=ax)
    else:
        ax = panel(ax, (4.0, 1.5))
        ax.set_axis_off()
        ax.text(0.5, 0.5, f"None of {len(X):,} samples is wrong", ha="center", va="center", fontsize=13, color=INK)
    dress(ax, "Most confidently wrong", grid=False)
    return ax


def _percent(share: float) -> str:
    """Return a share as in "75.0%", with as many digits as tell it from 100%, up to four."""
    for digits in range(1, 5):
        text = f"{share:.{digits}%}"
        if share >= 1 or not text.startswith("100"):
            return text
    return ">99.9999%"


def _square_images(X: ArrayLike) -> NDArray[Any]:
    """(n, d) -> (n, side, side)."""
    X = np.asarray(X)
    side = isqrt(X.shape[-1])
    if X.ndim != 2 or side * side != X.shape[1] or not X.size:
        raise ValueError(f"X has shape {X.shape}; give (n, d) with a square image in each row, such as (n, 784)")
    return X.reshape(-1, side, side)


def _class_probabilities(proba: NDArray[Any]) -> NDArray[Any]:
    """(n, k) as it is; (n,) or (n, 1), the probability of class 1 -> (n, 2)."""
    if proba.ndim == 2 and proba.shape[1] > 1:
        return proba
    positive = proba.reshape(-1, 1)
    return np.hstack([1 - positive, positive])


def _tile(
    ax: Axes, images: NDArray[Any], columns: int, band: float = 0.0, **look: Any
) -> tuple[AxesImage, NDArray[Any]]:
    """Draw images (n, height, width) side by side, above each a free band, as a share of the height.

    Returns the picture and the left upper corner (x, y) of each image.
    """
    count, height, width = images.shape
    gap, band_height = ceil(0.1 * width), round(band * height)
    rows = ceil(count / columns)
    pitch = (width + gap, band_height + height + gap)
    canvas = np.full((rows * pitch[1] - gap, columns * pitch[0] - gap), np.nan)
    corners = []
    for i, image in enumerate(images):
        left, top = i % columns * pitch[0], i // columns * pitch[1] + band_height
        canvas[top : top + height, left : left + width] = image
        corners.append((left - 0.5, top - 0.5))
    picture = ax.imshow(canvas, interpolation="nearest", **look)
    ax.set(xticks=[], yticks=[], anchor="NW")  # a narrow picture stays under the left end of its title
    ax.spines[:].set_visible(False)
    return picture, np.array(corners)
