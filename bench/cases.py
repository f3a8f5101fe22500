"""The named problems: MNIST as people train it, and data, networks and batches on which we gain less or nothing.

The name of a newer one says what is trained, if that is not 784-196-10 on MNIST, how many rows a batch has, and the
optimizer, if it is not plain gradient descent: ``b16-adam``, ``tabular-b128-adam``, ``normal-full``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np

from .problem import Array, Problem


def _mnist(n: int = 60_000) -> tuple[Array, Array]:
    import mlp_xp as mx

    train, _ = mx.datasets.mnist()
    return train.X[:n], train.y[:n]


def _random(n: int = 60_000) -> tuple[Array, Array]:
    """Bytes 1 to 255, uniform: not one zero to skip."""
    rng = np.random.default_rng(1)
    return rng.integers(1, 256, (n, 784), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8)


def _half_dense(n: int = 60_000) -> tuple[Array, Array]:
    """Images like Fashion-MNIST's: about half zeros, a centered object whose height and width depend on its class."""
    rng = np.random.default_rng(2)
    y = rng.integers(0, 10, n, dtype=np.uint8)
    # half sides in pixels: classes differ in shape as trousers, pullovers and sandals do, rows of a class in size
    height = rng.uniform(0.75, 1.0, n) * np.linspace(14, 8, 10)[y]
    width = rng.uniform(0.75, 1.0, n) * np.linspace(9, 14, 10)[y]
    offset = np.abs(np.arange(28) - 13.5)
    inside = (offset < height[:, None])[:, :, None] & (offset < width[:, None])[:, None, :]
    X = rng.integers(1, 256, (n, 28, 28), dtype=np.uint8)
    X *= inside
    return X.reshape(n, 784), y


def _taught(X: Array, seed: int) -> tuple[Array, Array]:
    """Return X (n, d) and labels (n,): which of ten linear functions, drawn at random, is largest."""
    teacher = np.random.default_rng(seed).standard_normal((X.shape[1], 10))
    return X, (X @ teacher).argmax(axis=1).astype(np.uint8)


def _normal(n: int, d: int) -> tuple[Array, Array]:
    """Return standard normal floats: nothing to skip."""
    return _taught(np.random.default_rng(3).standard_normal((n, d), dtype=np.float32), 4)


def _one_hot(n: int = 100_000, fields: int = 10, values: int = 50) -> tuple[Array, Array]:
    """Return a table of categories: in each group of 50 columns a single one, so 2% of 500 columns."""
    X = np.zeros((n, fields, values), np.float32)
    np.put_along_axis(X, np.random.default_rng(5).integers(0, values, (n, fields, 1)), 1.0, axis=2)
    return _taught(X.reshape(n, fields * values), 6)


def _regression(n: int = 5_000) -> tuple[Array, Array]:
    """Return 20 standard normal columns, and a wave along the first of them, with noise."""
    rng = np.random.default_rng(7)
    X = rng.standard_normal((n, 20), dtype=np.float32)
    return X, np.sin(X[:, :1]) + np.float32(0.1) * rng.standard_normal((n, 1), dtype=np.float32)


_SGD: dict[str, Any] = {"learning_rate": 0.1}
_MOMENTUM: dict[str, Any] = {"optimizer": "momentum", "learning_rate": 0.02}
_ADAM: dict[str, Any] = {"optimizer": "adam", "learning_rate": 0.003}
_RELU: dict[str, Any] = {"optimizer": "adam", "learning_rate": 0.001, "activation": "relu"}
_WAVE: dict[str, Any] = {**_RELU, "output": "linear"}

# name -> data, sizes, rows of a batch, the other settings
CASES: dict[str, tuple[Callable[[], tuple[Array, Array]], tuple[int, ...], int | None, dict[str, Any]]] = {
    "full-batch": (_mnist, (784, 196, 10), None, {"learning_rate": 0.5}),
    "mini-batch": (_mnist, (784, 196, 10), 128, _SGD),
    "wide": (_mnist, (784, 1024, 1024, 10), None, {"learning_rate": 0.5}),
    "deep": (_mnist, (784, 196, 196, 196, 10), None, {"learning_rate": 0.5}),
    "narrow": (_mnist, (784, 64, 10), None, {"learning_rate": 0.5}),
    "dense-random": (_random, (784, 196, 10), None, _SGD),
    "half-dense": (_half_dense, (784, 196, 10), None, _SGD),
    **{f"b{rows}": (_mnist, (784, 196, 10), rows, _SGD) for rows in (16, 32, 64, 256, 1024)},
    **{f"b{rows}-adam": (_mnist, (784, 196, 10), rows, _ADAM) for rows in (16, 32, 64, 128, 256, 1024)},
    "b128-momentum": (_mnist, (784, 196, 10), 128, _MOMENTUM),
    "full-adam": (_mnist, (784, 196, 10), None, _ADAM),
    "wide-b128-adam": (_mnist, (784, 512, 10), 128, _RELU),
    "deep-b128-adam": (_mnist, (784, 256, 256, 256, 256, 10), 128, _RELU),
    "normal-b128": (partial(_normal, 20_000, 784), (784, 196, 10), 128, _SGD),
    "normal-full": (partial(_normal, 20_000, 784), (784, 196, 10), None, _SGD),
    "tabular-b128-adam": (partial(_normal, 100_000, 50), (50, 64, 10), 128, _RELU),
    "onehot-b128-adam": (_one_hot, (500, 64, 10), 128, _RELU),
    "onehot-full-adam": (_one_hot, (500, 64, 10), None, _RELU),
    "regression-b32-adam": (_regression, (20, 64, 64, 1), 32, _WAVE),
    "regression-full-adam": (_regression, (20, 64, 64, 1), None, _WAVE),
    "float64-b128": (partial(_mnist, 20_000), (784, 196, 10), 128, {**_SGD, "dtype": "float64"}),
    "float64-full": (partial(_mnist, 20_000), (784, 196, 10), None, {**_SGD, "dtype": "float64"}),
}


@lru_cache(maxsize=2)
def case(name: str) -> Problem:
    """Return the problem called `name`.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if name not in CASES:
        raise ValueError(f"unknown case {name!r}; choose from {', '.join(CASES)}")
    data, sizes, batch_size, settings = CASES[name]
    return Problem(name, *data(), sizes, batch_size=batch_size, **settings)
