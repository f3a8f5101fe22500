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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .charts import label_of, markdown
from .compare import RESULTS
from .cost_model import MNIST, Link, Work, epoch_seconds, predictions
from .machine import describe

__all__ = ["CASES", "main"]

_SIZES = [2**k for k in range(3, 23)]  # bytes of the bare messages
_EPOCHS = 3
_REPEATS = 20


CASES = {
    "full batch": Work(MNIST, (784, 196, 10)),
    "full batch, wide": Work(20_000, (784, 1024, 1024, 10)),
    "batches of 256": Work(MNIST, (784, 196, 10), 256, kept=3),
    "batches of 1024": Work(MNIST, (784, 196, 10), 1024, kept=3),
}
"""What is measured here."""


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
    from mlp_xp.engines.ranks import Ranks, Requests
    from mlp_xp.kernels.cpu.compiled import Message

    ranks, times = Ranks(comm), []
    requests = Requests(ranks)
    for size in _SIZES:
        sent, received = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
        messages = [
            Message((sent if rank == ranks.rank else received).ctypes.data, size, rank, (rank + 1) % ranks.size)
            for rank in range(ranks.size)
        ]
        taken = []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            requests(size, messages, len(messages))
            taken.append(time.perf_counter() - start)
        times.append(comm.allreduce(statistics.median(taken)) / comm.size)
        requests.close()
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
