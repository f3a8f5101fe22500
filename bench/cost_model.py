"""What an epoch costs on several ranks, by a model that docs/scaling.md derives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mlp_xp.engines.reduce import groups_of
from mlp_xp.params import Layout

from .charts import label_of, markdown

__all__ = ["CLUSTERS", "MNIST", "WORKS", "Cluster", "Link", "Work", "epoch_seconds", "predictions"]

MNIST = 60_000  # rows
_SHARD, _PART, _SLICE = 512, 32, 64  # rows of a full batch, and of a mini-batch, that stay together; inputs of a layer


@dataclass(frozen=True)
class Link:
    """What it costs a rank to exchange messages with the others, all of them at the same time.

    Attributes
    ----------
    latency : float
        Seconds of an exchange, however little is sent.
    bandwidth : float
        Bytes per second that come in at a rank.
    """

    latency: float
    bandwidth: float

    def seconds(self, size: float) -> float:
        """Return the time of an exchange in which `size` bytes come in."""
        return self.latency + size / self.bandwidth


@dataclass(frozen=True)
class Work:
    """An epoch.

    Attributes
    ----------
    rows : int
    sizes : tuple of int
        Units of the layers.
    batch_size : int or None
        Rows of an update; None for all.
    kept : int
        Vectors as long as the parameters that are gathered after an epoch: the gradient, and the optimizer's.
    itemsize : int
        Bytes of a number.
    """

    rows: int
    sizes: tuple[int, ...]
    batch_size: int | None = None
    kept: int = 1
    itemsize: int = 4

    @property
    def parameters(self) -> int:
        """All weights and biases."""
        return Layout(self.sizes).size

    @property
    def updates(self) -> int:
        """Of an epoch."""
        return 1 if self.batch_size is None else -(-self.rows // self.batch_size)

    @property
    def flops(self) -> int:
        """Operations of an epoch's products, as :attr:`bench.problem.Problem.flops` counts them."""
        return self.rows * (self._row_flops + 2 * sum(map(math.prod, pairwise(self.sizes))))

    @property
    def _row_flops(self) -> int:
        """Of a row, those of the products that are dealt out by rows: forward, and the inputs' gradients."""
        products = [2 * a * b for a, b in pairwise(self.sizes)]
        return 2 * sum(products) - products[0]

    def busiest(self, ranks: int) -> float:
        """Return the share of the computing that the rank with most of it does."""
        if self.batch_size is None:
            return _largest(groups_of(-(-self.rows // _SHARD)), ranks)
        rows = _largest(max(1, self.batch_size // _PART), ranks)
        by_rows = self._row_flops / (self.flops / self.rows)
        return by_rows * rows + (1 - by_rows) * _largest_slices(self.sizes, ranks)

    def bytes_in(self, ranks: int) -> list[float]:
        """Return what comes in at each rank in an update: one number for each exchange.

        Sums of groups, or the rows' activations and errors that weight gradients are made of; then parameters.
        """
        others, vector = 1 - 1 / ranks, self.itemsize * self.parameters
        if self.batch_size is None:
            return [groups_of(-(-self.rows // _SHARD)) / ranks * others * vector, others * vector]
        hidden, outputs = sum(self.sizes[1:-1]), self.sizes[-1]
        return [others * self.itemsize * self.batch_size * (2 * hidden + outputs), others * vector]


def epoch_seconds(work: Work, ranks: int, alone: float, link: Link) -> tuple[float, float]:
    """Return the time of an epoch, and the part of it that is exchange.

    Parameters
    ----------
    work : Work
    ranks : int
    alone : float
        Seconds of the whole epoch on one rank, while the others do one of their own.
    link : Link
    """
    if ranks == 1:
        return alone, 0.0
    computing = alone * work.busiest(ranks)
    exchange = work.updates * sum(map(link.seconds, work.bytes_in(ranks)))
    exchange += link.seconds((1 - 1 / ranks) * work.itemsize * work.parameters * work.kept)
    return computing + exchange, exchange


def _largest(pieces: int, ranks: int) -> float:
    """Return the share of the rank that has most of some equal pieces."""
    return -(-pieces // ranks) / pieces


def _largest_slices(sizes: Sequence[int], ranks: int) -> float:
    """Return the share of the parameters that the rank with most of them updates: slices stay whole."""
    slices = []
    for inputs, units in pairwise(sizes):
        count = 1 if inputs < 128 else min(16, inputs // 96)
        cuts = [min(inputs, -(-inputs * i // count // _SLICE) * _SLICE) for i in range(count)] + [inputs]
        slices += [(stop - start) * units for start, stop in pairwise(cuts)]
    shares, done, total = [0] * ranks, 0, sum(slices)
    for size in slices:  # to whoever has the middle of it
        shares[(2 * done + size) * ranks // (2 * total)] += size
        done += size
    return max(shares) / total


@dataclass(frozen=True)
class Cluster:
    """A machine that is not here: assumptions, to be replaced by measurements.

    Attributes
    ----------
    ranks : int
    flops : float
        Operations per second of a rank on large products.
    link : Link
        Of an all-reduce as a ring: what is sent passes each rank twice.
    """

    ranks: int
    flops: float
    link: Link

    def seconds(self, work: Work) -> tuple[float, float]:
        """Return the time of an epoch by gradients that are added up in a ring, and the part that is exchange."""
        size = 2 * (1 - 1 / self.ranks) * work.itemsize * work.parameters
        hops = 2 * max(1, math.ceil(math.log2(self.ranks)))
        exchange = work.updates * (hops * self.link.latency + size / self.link.bandwidth) if self.ranks > 1 else 0.0
        return work.flops / self.flops / self.ranks + exchange, exchange


CLUSTERS = {
    "1 GPU": Cluster(1, 4.0e13, Link(0, 1)),
    "8 GPUs, NVLink": Cluster(8, 4.0e13, Link(5e-6, 3.0e11)),
    "1,000 nodes, 100 Gb/s": Cluster(1000, 2.0e12, Link(3e-6, 1.0e10)),
    "1,000 GPUs, 400 Gb/s each": Cluster(1000, 4.0e13, Link(8e-6, 4.0e10)),
}
"""For predictions only."""
WORKS = {
    "MNIST, full batch": Work(MNIST, (784, 196, 10)),
    "MNIST, batches of 128": Work(MNIST, (784, 196, 10), 128),
    "10⁹ × 784, full batch": Work(10**9, (784, 196, 10)),
    "10⁹ × 784, batches of 65,536": Work(10**9, (784, 196, 10), 65_536),
    "10⁹ × 784, 4096-4096, batches of 65,536": Work(10**9, (784, 4096, 4096, 10), 65_536),
}


def predictions() -> str:
    """Return what the model says of machines that are not here, as Markdown."""
    body = []
    for name, work in WORKS.items():
        cells = [name]
        for cluster in CLUSTERS.values():
            seconds, exchange = cluster.seconds(work)
            cells.append(f"{label_of(seconds)} ({exchange / seconds:.0%})")
        body.append(cells)
    return markdown(["an epoch (exchange)", *CLUSTERS], body)
