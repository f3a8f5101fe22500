"""`python -m bench.scaling`: several ranks beside one, each with one thread, and what a cost model says of them.

Ranks are started by ``mpiexec``, one number after another and then again, so that what slows the machine slows all. The
model is fitted to ranks that train at the same time without one another, and to bare messages. What it says of ranks
that share the work is a prediction, and held against the measurement. docs/scaling.md derives it, and uses it for
machines that are not here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .charts import label_of, markdown
from .compare import RESULTS
from .machine import describe

__all__ = ["CASES", "CLUSTERS", "WORKS", "Cluster", "Link", "Work", "epoch_seconds", "main"]

GROUPS = 16  # of the shards of a full batch, as in mlp_xp/engines/reduce.py
_SIZES = [2**k for k in range(3, 23)]  # bytes of the bare messages
_EPOCHS = 3
_REPEATS = 20


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
        return sum((1 + a) * b for a, b in zip(self.sizes[:-1], self.sizes[1:], strict=True))

    @property
    def updates(self) -> int:
        """Of an epoch."""
        return 1 if self.batch_size is None else -(-self.rows // self.batch_size)

    @property
    def flops(self) -> float:
        """Operations of the products of an epoch: two passes backward but for the first layer, one forward."""
        products = [2 * a * b for a, b in zip(self.sizes[:-1], self.sizes[1:], strict=True)]
        return self.rows * (3.0 * sum(products) - products[0])

    def bytes_in(self, ranks: int) -> list[float]:
        """Return what comes in at each rank in an update: one number for each exchange.

        Sums of groups, or the rows' activations and errors that weight gradients are made of; then parameters.
        """
        others, vector = 1 - 1 / ranks, self.itemsize * self.parameters
        if self.batch_size is None:
            return [max(GROUPS, ranks) / ranks * others * vector, others * vector]
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
    parts = GROUPS if work.batch_size is None else max(1, work.batch_size // 32)
    busiest = -(-max(parts, ranks) // ranks) / max(parts, ranks)  # the share of the rank that has most
    computing = alone * busiest
    exchange = work.updates * sum(map(link.seconds, work.bytes_in(ranks)))
    exchange += link.seconds((1 - 1 / ranks) * work.itemsize * work.parameters * work.kept)
    return computing + exchange, exchange


MNIST = 60_000
CASES = {
    "full batch": Work(MNIST, (784, 196, 10)),
    "full batch, wide": Work(20_000, (784, 1024, 1024, 10)),
    "batches of 256": Work(MNIST, (784, 196, 10), 256, kept=3),
    "batches of 1024": Work(MNIST, (784, 196, 10), 1024, kept=3),
}
"""What is measured here."""


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
        hops = 2 * max(1, int(np.ceil(np.log2(self.ranks))))
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


# ------------------------------------------------------------------------------------------------- on each rank


@contextmanager
def _timed() -> Iterator[list[float]]:
    """Count the seconds of exchanges."""
    from mlp_xp.engines import compiled
    from mlp_xp.engines.ranks import Requests

    seconds = [0.0]

    class Timed(Requests):
        def __call__(self, *arguments: Any) -> int:
            start = time.perf_counter()
            answer = super().__call__(*arguments)
            seconds[0] += time.perf_counter() - start
            return answer

    compiled.Requests = Timed  # type: ignore[misc]
    try:
        yield seconds
    finally:
        compiled.Requests = Requests  # type: ignore[misc]


def _link(comm: Any) -> Link:
    """Return what messages cost, by least squares of relative errors over sizes from 8 bytes to 4 MB."""
    from mpi4py import MPI

    times = []
    for size in _SIZES:
        sent, received = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
        right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        requests = [comm.Recv_init(received, left), comm.Send_init(sent, right)]
        taken = []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            MPI.Prequest.Startall(requests)
            MPI.Prequest.Waitall(requests)
            taken.append(time.perf_counter() - start)
        for request in requests:
            request.Free()
        times.append(comm.allreduce(statistics.median(taken)) / comm.size)
    weights = 1 / np.array(times)
    terms = np.stack([np.ones(len(_SIZES)), np.array(_SIZES, float)], axis=1)
    latency, per_byte = np.linalg.lstsq(terms * weights[:, None], np.ones(len(times)), rcond=None)[0]
    return Link(max(float(latency), 0.0), 1 / max(float(per_byte), 1e-15))


def _measure(rows: int | None) -> dict[str, Any]:
    """Return the times of this number of ranks; they are those of rank 0."""
    from mpi4py import MPI

    import mlp_xp as mx

    comm = MPI.COMM_WORLD
    train, _ = mx.datasets.mnist()
    found: dict[str, Any] = {}
    for name, work in CASES.items():
        n = min(rows or work.rows, work.rows)
        shared = _train(work, train.X[:n], train.y[:n], comm, comm)
        alone = shared if comm.size == 1 else _train(work, train.X[:n], train.y[:n], None, comm)
        found[name] = {**shared, "alone": alone["seconds"]}
    return {"ranks": comm.size, "link": asdict(_link(comm)) if comm.size > 1 else None, "cases": found}


def _train(work: Work, X: Any, y: Any, comm: Any, beside: Any) -> dict[str, float]:
    """Return the least time of an epoch, the mean of its exchange, and the last loss, while all ranks do the same."""
    import mlp_xp as mx

    model = mx.MLP(list(work.sizes), "sigmoid", seed=1)
    optimizer = mx.SGD(lr=0.5) if work.batch_size is None else mx.Adam(lr=0.005)
    with _timed() as exchange:
        states = mx.epochs(model, X, y, optimizer=optimizer, batch_size=work.batch_size, threads=1, comm=comm)
        next(states)
        exchange[0], seconds = 0.0, []
        for _ in range(_EPOCHS):
            beside.Barrier()
            start = time.perf_counter()
            state = next(states)
            beside.Barrier()
            seconds.append(time.perf_counter() - start)
        states.close()
    return {"seconds": min(seconds), "exchange": exchange[0] / _EPOCHS, "loss": float(state.loss)}


# --------------------------------------------------------------------------------------------------- from outside


def _run(ranks: int, rows: int | None) -> dict[str, Any]:
    """Measure with so many ranks."""
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if mpiexec is None:
        raise SystemExit("there is no mpiexec: pip install mpi4py mpich")
    command = [mpiexec, "-n", str(ranks), sys.executable, "-m", "bench.scaling", "--measure"]
    command += ["--rows", str(rows)] if rows else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def _table(runs: Sequence[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Return the measurements beside the predictions, as Markdown and as data."""
    counts = sorted({run["ranks"] for run in runs})
    body, data = [], []
    for name, work in CASES.items():
        alone = min(run["cases"][name]["seconds"] for run in runs if run["ranks"] == 1)
        for ranks in counts:
            own = [run for run in runs if run["ranks"] == ranks]
            best = min((run["cases"][name] for run in own), key=lambda case: case["seconds"])
            link = Link(0, 1) if ranks == 1 else Link(
                *(statistics.median(run["link"][part] for run in own) for part in ("latency", "bandwidth"))
            )  # fmt: skip
            predicted, _ = epoch_seconds(work, ranks, min(run["cases"][name]["alone"] for run in own), link)
            row = {
                "case": name, "ranks": ranks, **best, "speedup": alone / best["seconds"], "predicted": predicted,
                "link": asdict(link),
            }  # fmt: skip
            data.append(row)
            body.append([
                name, f"{ranks}", label_of(best["seconds"]), f"{row['speedup']:.2f}",
                f"{best['exchange'] / best['seconds']:.0%}", label_of(predicted),
                f"{predicted / best['seconds'] - 1:+.0%}",
            ])  # fmt: skip
    header = ["case", "ranks", "an epoch", "speedup", "exchange", "predicted", "off by"]
    return markdown(header, body), data


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description="Ranks beside one rank, on a CPU.")
    parser.add_argument("--ranks", default="1,2,4", help="numbers with commas between; 1 is among them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, help="only so many rows of the data, for a first look")
    parser.add_argument(
        "--measure", action="store_true", help="be one of the ranks, and let rank 0 print what it found"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON and table")
    options = parser.parse_args(arguments)
    if options.measure:
        found = _measure(options.rows)
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == 0:
            print(json.dumps(found))
        return 0
    counts = sorted({1, *map(int, options.ranks.split(","))})
    machine = describe("cpu", 1)
    runs = [_run(ranks, options.rows) for _ in range(options.rounds) for ranks in counts]
    losses = [{run["cases"][name]["loss"] for run in runs} for name in CASES]
    text, data = _table(runs)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "scaling.json").write_text(json.dumps({"machine": machine, "rows": data}, indent=1) + "\n")
    where = f"{machine['cpu']}, {machine['cores']} cores, one thread a rank"
    text = f"{text}\n{where}\n\nPredicted for machines that are not here:\n\n{predictions()}"
    (options.out / "scaling.md").write_text(f"# Ranks\n\n{text}")
    print(text)
    if any(len(found) > 1 for found in losses):
        print("the losses differ between numbers of ranks", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
