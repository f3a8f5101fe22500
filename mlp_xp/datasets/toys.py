"""Small data sets in the plane that a straight line cannot separate.

Legend: ``n`` rows, 2 columns. ``X`` is float32 (n, 2), ``y`` is uint8 (n,).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import check_count, check_seed
from .records import Dataset


def xor() -> Dataset:
    """Make the four points of exclusive or: ``X`` (4, 2), ``y`` (4,) is 1 where exactly one coordinate is 1.

    Examples
    --------
    >>> X, y = xor()
    >>> X
    array([[0., 0.],
           [0., 1.],
           [1., 0.],
           [1., 1.]], dtype=float32)
    >>> y
    array([0, 1, 1, 0], dtype=uint8)
    """
    X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    return Dataset(X, np.array([0, 1, 1, 0], np.uint8))


def spirals(n: int = 300, classes: int = 2, noise: float = 0.02, seed: int = 0) -> Dataset:
    """Make two or three spiral arms that wind around the origin once: ``X`` (n, 2), ``y`` (n,) is the arm.

    Parameters
    ----------
    n
        Number of points. They are dealt out to the arms in turn, so the labels run 0, 1, 0, 1, …
    classes
        Number of arms, 2 or 3.
    noise
        Standard deviation of the normal noise on each coordinate; the arms reach out to radius 1.
    seed
        Seed of the noise.

    Raises
    ------
    ValueError
        If `n` is below `classes`, `classes` is neither 2 nor 3, `noise` is negative or not finite, or `seed` is not a
        whole number of at least 0.

    Examples
    --------
    >>> X, y = spirals(6, classes=3, noise=0)
    >>> y
    array([0, 1, 2, 0, 1, 2], dtype=uint8)
    >>> np.hypot(X[:, 0], X[:, 1])
    array([0.5, 0.5, 0.5, 1. , 1. , 1. ], dtype=float32)
    """
    if isinstance(classes, bool) or classes not in (2, 3):
        raise ValueError(f"classes is {classes!r}; spirals have 2 or 3 arms")
    _check(n, noise, at_least=classes)
    place, arm = np.divmod(np.arange(n), classes)
    radius = (place + 1) / (place[-1] + 1)
    angle = 2 * np.pi * (radius + arm / classes)
    return _noisy(radius * np.cos(angle), radius * np.sin(angle), arm, noise, seed)


def moons(n: int = 200, noise: float = 0.1, seed: int = 0) -> Dataset:
    """Make two half circles of radius 1 that reach into each other: ``X`` (n, 2), ``y`` (n,) is 0 above, 1 below.

    Parameters
    ----------
    n
        Number of points, dealt out to the moons in turn.
    noise
        Standard deviation of the normal noise on each coordinate.
    seed
        Seed of the noise.

    Raises
    ------
    ValueError
        If `n` is below 2, `noise` is negative or not finite, or `seed` is not a whole number of at least 0.

    Examples
    --------
    >>> X, y = moons(4, noise=0)
    >>> X.round(2) + 0
    array([[ 1. ,  0. ],
           [ 0. ,  0.5],
           [-1. ,  0. ],
           [ 2. ,  0.5]], dtype=float32)
    >>> y
    array([0, 1, 0, 1], dtype=uint8)
    """
    _check(n, noise, at_least=2)
    place, moon = np.divmod(np.arange(n), 2)
    angle = np.pi * place / max(1, place[-1])
    upper = moon == 0
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle))
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
    return _noisy(x, y, moon, noise, seed)


def _check(n: int, noise: Any, at_least: int) -> None:
    check_count("n", n, at_least)
    if (
        isinstance(noise, bool)
        or not isinstance(noise, int | float | np.integer | np.floating)
        or not 0 <= noise < np.inf
    ):
        raise ValueError(f"noise is {noise!r}; expected a standard deviation, 0 or more")


def _noisy(x: NDArray[np.float64], y: NDArray[np.float64], label: NDArray[np.int_], noise: float, seed: int) -> Dataset:
    X = np.stack([x, y], axis=1)
    X += float(noise) * np.random.default_rng(check_seed(seed)).standard_normal(X.shape)
    return Dataset(X.astype(np.float32), label.astype(np.uint8))
