"""`python -m bench.out_of_core`: full-batch training on more rows than anybody wants in memory.

MNIST, shifted and with noise, is written once: as one `.npy`, as a folder of shards, and as a compressed Zarr array.
Training on each is compared with training on the first 60,000 of the same rows in memory. They take turns in one
process, and what counts is time per row, by the clock and of all cores. The most memory is found for each in a process
of its own: what was added since the imports, without the pages of mapped files, which the system takes back when
others need them. All three must end at the same parameters, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import mlp_xp as mx

from .charts import markdown
from .compare import RESULTS
from .machine import describe, limit_threads
from .rows import MOST_WOBBLE, wobble

__all__ = ["Found", "main", "rows_of", "table", "write"]

IN_MEMORY = 60_000
SIZES = [784, 196, 10]
SHARD = 100_000  # rows of a file
CHUNK = 1024  # rows of Zarr's
_SHIFT, _NOISE = 3, 16  # pixels, and shades of the ink
_BLOCK = 10_000  # rows that are made together, with one shift
SOURCES = ("memory", "map", "shards", "zarr")


@dataclass
class Found:
    """What was measured of a source.

    Attributes
    ----------
    source : str
    rows : int
    seconds, cpu_seconds : list of float
        Of each round, per million rows.
    peak_mb : float or None
        Memory in 1e6 bytes that was added since the imports; None for rows that are in memory anyway.
    right : bool
        Whether the parameters are those of the other files.
    """

    source: str
    rows: int
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_mb: float | None = None
    right: bool = True


def made(rows: int) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Yield so many rows and their labels, block by block: the same ones in every call."""
    (X, y), _ = mx.datasets.mnist()
    for i in range(0, rows, _BLOCK):
        rng, first = np.random.default_rng(i), i % len(X)
        images = X[first : first + _BLOCK].reshape(-1, 28, 28)
        shift = rng.integers(-_SHIFT, _SHIFT + 1, 2) if i >= len(X) else (0, 0)
        images = np.roll(images, shift, axis=(1, 2)).astype(np.int16)
        noisy = np.clip(images + rng.integers(-_NOISE, _NOISE + 1, images.shape, dtype=np.int16), 1, 255)
        block = np.where(images > 0, noisy, 0).astype(np.uint8).reshape(-1, 784)
        count = min(_BLOCK, rows - i)
        yield block[:count], y[first : first + count]


def write(folder: Path, rows: int) -> None:
    """Write the rows to `folder`, unless they are there."""
    if (folder / "complete").exists() and (folder / "complete").read_text() == str(rows):
        return
    import zarr

    (folder / "shards").mkdir(parents=True, exist_ok=True)
    X = np.lib.format.open_memmap(folder / "X.npy", "w+", np.uint8, (rows, 784))
    y = np.lib.format.open_memmap(folder / "y.npy", "w+", np.uint8, (rows,))
    Z = zarr.create_array(str(folder / "X.zarr"), shape=X.shape, dtype=X.dtype, chunks=(CHUNK, 784), overwrite=True)
    first = 0
    for block, labels in made(rows):
        X[first : first + len(block)], y[first : first + len(block)] = block, labels
        first += len(block)
    for i in range(0, rows, CHUNK * 16):
        Z[i : i + CHUNK * 16] = X[i : i + CHUNK * 16]
    for i in range(0, rows, SHARD):
        np.save(folder / "shards" / f"X-{i // SHARD:03d}.npy", X[i : i + SHARD])
    X.flush()
    y.flush()
    (folder / "complete").write_text(str(rows))


def rows_of(source: str, folder: Path) -> tuple[Any, np.ndarray[Any, Any]]:
    """Return the rows and labels of a source."""
    y = np.load(folder / "y.npy")
    if source == "shards":
        return mx.datasets.Shards(sorted((folder / "shards").glob("X-*.npy"))), y
    if source == "zarr":
        import zarr

        return zarr.open_array(str(folder / "X.zarr"), mode="r"), y
    X = np.load(folder / "X.npy", mmap_mode="r")
    return (X, y) if source == "map" else (np.array(X[:IN_MEMORY]), y[:IN_MEMORY])


def epoch_of(source: str, folder: Path, threads: int) -> tuple[int, Callable[[], mx.State]]:
    """Return the rows of a source, and a function that trains on them for an epoch."""
    X, y = rows_of(source, folder)
    model = mx.MLP(SIZES, seed=0)
    states = mx.epochs(model, X, y, optimizer=mx.SGD(lr=0.5), threads=threads)
    return len(y), lambda: next(states)


def measure(folder: Path, rounds: int, threads: int) -> list[Found]:
    """Return the times and the memory of all sources; the first round warms up."""
    found, epochs = [], {}
    for source in SOURCES:
        rows, epochs[source] = epoch_of(source, folder, threads)
        found.append(Found(source, rows))
    most, thetas = max(one.rows for one in found), {}
    for turn in range(rounds + 1):
        for one in found:
            began, began_cpu = time.perf_counter(), time.process_time()
            count = -(-most // one.rows)
            for _ in range(count):
                state = epochs[one.source]()
            if turn:
                millions = count * one.rows / 1e6
                one.seconds.append((time.perf_counter() - began) / millions)
                one.cpu_seconds.append((time.process_time() - began_cpu) / millions)
            thetas[one.source] = state.model.theta.copy()
    for one in found[1:]:
        one.right = bool(np.isfinite(thetas["map"]).all() and (thetas[one.source] == thetas["map"]).all())
        one.peak_mb = peak_megabytes(one.source, folder, threads)
    return found


def peak_megabytes(source: str, folder: Path, threads: int) -> float:
    """Return the memory in MB (1e6 bytes) that two epochs added in a process of their own."""
    command = [sys.executable, "-m", "bench.out_of_core", "--folder", str(folder), "--child", source]
    command += ["--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return float(done.stdout.splitlines()[-1])


def _anonymous() -> int:
    """Return the bytes of memory that no file stands behind."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))


def _child(source: str, folder: Path, threads: int) -> None:
    """Do in this process what :func:`peak_megabytes` asks for, and print the megabytes."""
    if source == "zarr":
        import zarr  # noqa: F401 - imports do not count
    before, most, over = _anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.002):
            most = max(most, _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, epoch = epoch_of(source, folder, threads)
    for _ in range(2):
        epoch()
    over.set()
    watcher.join()
    print((most - before) / 1e6)


def table(found: Sequence[Found]) -> str:
    """Return the sources as Markdown, with their speed relative to rows in memory."""
    memory = found[0]

    def speed(name: str, one: Found) -> str:
        return f"{statistics.median(a / b for a, b in zip(getattr(memory, name), getattr(one, name), strict=True)):.0%}"

    busy = wobble(memory.seconds) > MOST_WOBBLE
    note = "\nThe machine was not ours alone: only the CPU time means something.\n" if busy else ""
    text = markdown(
        ["source", "rows", "s per million rows", "CPU s", "speed", "by CPU time", "peak MB"],
        [
            [
                one.source + ("" if one.right else " WRONG"),
                f"{one.rows:,}",
                f"{statistics.median(one.seconds):.2f}",
                f"{statistics.median(one.cpu_seconds):.2f}",
                speed("seconds", one),
                speed("cpu_seconds", one),
                "" if one.peak_mb is None else f"{one.peak_mb:.0f}",
            ]
            for one in found
        ],
    )
    return text + note


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 1 if a source led to other parameters."""
    parser = argparse.ArgumentParser(prog="python -m bench.out_of_core", description="Rows that stay in files.")
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--folder", type=Path, help="where the files are, or are written and kept (default: deleted)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="cores to use (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON and table")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    threads = limit_threads(options.threads)
    if options.child:
        _child(options.child, options.folder, threads)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        write(folder, options.rows)
        found = measure(folder, options.rounds, threads)
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"machine": describe("cpu", threads), "sizes": SIZES, "sources": [asdict(one) for one in found]}
    (options.out / "out-of-core-cpu.json").write_text(json.dumps(report, indent=1) + "\n")
    text = (
        f"# Rows that stay in files\n\n{SIZES[0]}-{SIZES[1]}-{SIZES[2]}, full batch, {threads} threads, files in the "
        f"system's cache; speed relative to {found[0].rows:,} of the same rows in memory.\n\n{table(found)}"
    )
    (options.out / "out-of-core-cpu.md").write_text(text)
    print(table(found))
    return int(not all(one.right for one in found))


if __name__ == "__main__":
    sys.exit(main())
