"""The named problems: MNIST as people train it, and data on which our plans gain less or nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from .problem import Array, Problem


def _mnist() -> tuple[Array, Array]:
    import mlp_xp as mx

    train, _ = mx.datasets.mnist()
    return train.X, train.y


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


def _problem(name: str, data: Callable[[], tuple[Array, Array]], hidden: tuple[int, ...], rate: float) -> Problem:
    return Problem(name, *data(), sizes=(784, *hidden, 10), learning_rate=rate)


def _mini_batch() -> Problem:
    return Problem("mini-batch", *_mnist(), sizes=(784, 196, 10), learning_rate=0.1, batch_size=128)


CASES: dict[str, Callable[[], Problem]] = {
    "full-batch": lambda: _problem("full-batch", _mnist, (196,), 0.5),
    "mini-batch": _mini_batch,
    "wide": lambda: _problem("wide", _mnist, (1024, 1024), 0.5),
    "deep": lambda: _problem("deep", _mnist, (196, 196, 196), 0.5),
    "narrow": lambda: _problem("narrow", _mnist, (64,), 0.5),
    "dense-random": lambda: _problem("dense-random", _random, (196,), 0.1),
    "half-dense": lambda: _problem("half-dense", _half_dense, (196,), 0.1),
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
    return CASES[name]()
