"""How an epoch's time grows with rows, width and depth, and shrinks with threads."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.cases import case
from bench.conftest import Train
from bench.machine import limit_threads

SCALED = ("ours", "torch", "gemm")
THREADS = [threads for threads in (1, 2, 4, 8, 16, 32, 64) if threads <= limit_threads(None)]

by_contender = pytest.mark.parametrize("contender", SCALED)


@by_contender
@pytest.mark.parametrize("rows", [7_500, 15_000, 30_000, 60_000])
def test_rows(train: Train, rows: int, contender: str) -> None:
    """Time more and more rows."""
    full = case("full-batch")
    train(replace(full, name=f"rows: {rows}", X=full.X[:rows], y=full.y[:rows]), contender)


@by_contender
@pytest.mark.parametrize("width", [49, 98, 196, 392, 784])
def test_width(train: Train, width: int, contender: str) -> None:
    """Time wider and wider layers."""
    train(replace(case("full-batch"), name=f"hidden units: {width}", sizes=(784, width, 10)), contender)


@by_contender
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_depth(train: Train, depth: int, contender: str) -> None:
    """Time more and more layers."""
    # tanh: the gradient of eight sigmoids is too small to tell a right epoch from a wrong one
    full = case("full-batch")
    layers = replace(full, name=f"hidden layers: {depth}", sizes=(784, *[196] * depth, 10), activation="tanh")
    train(replace(layers, learning_rate=0.1), contender)


@by_contender
@pytest.mark.parametrize("threads", THREADS)
def test_threads(train: Train, threads: int, contender: str) -> None:
    """Time more and more threads."""
    train(replace(case("full-batch"), name=f"threads: {threads}"), contender, threads)
