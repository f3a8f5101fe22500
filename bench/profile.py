"""`python -m bench.profile`: where the time of an epoch of ours goes on the CPU, operation by operation.

Each operation of the kernels is timed as it is called. The rest, up to the time of the whole update, is gathering,
adding up, the optimizer and Python. In full batch the operations run on several threads at once, and their times add up
to more than the clock's. NumPy computes: the compiled library does whole epochs in one call.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mlp_xp.kernels import Kernels
from mlp_xp.kernels.cpu.numpy_ import NumpyKernels

from .cases import CASES, case
from .charts import label_of, markdown
from .compare import RESULTS
from .contender import build
from .machine import describe, limit_threads
from .peers.ours import without_library

__all__ = ["main", "profile", "table"]

Times = dict[tuple[str, str], list[float]]


@contextmanager
def timed_operations() -> Iterator[Times]:
    """Time every call of a NumPy kernel, by operation and shape."""
    times: Times = defaultdict(list)

    def timed(name: str) -> Any:
        operation = getattr(NumpyKernels, name)

        def run(self: NumpyKernels, *arguments: Any) -> Any:
            start = time.perf_counter()
            result = operation(self, *arguments)
            seconds = time.perf_counter() - start
            times[name, _shape(name, result)].append(seconds)
            return result

        return run

    with ExitStack() as patches:
        for name in (name for name in vars(Kernels) if not name.startswith("_")):
            patches.enter_context(patch.object(NumpyKernels, name, timed(name)))
        yield times


def _shape(name: str, result: Any) -> str:
    """Return the shape of an operation's result, of a loss's gradient, in words that are the same for every batch."""
    if name in ("features", "sum"):
        return ""
    shape = (result[1] if isinstance(result, tuple) else result).shape
    return " x ".join(
        map(str, shape if "gradient" in name and name.startswith(("weight", "bias")) else ("n", *shape[1:]))
    )


def profile(name: str, contender: str, threads: int, epochs: int) -> tuple[Times, float]:
    """Return the times of all operations, and the seconds of an epoch, operations not timed."""
    problem = case(name)
    with without_library():
        plain, watched = (build(contender, problem, "cpu", threads) for _ in range(2))
    plain.run(2)
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        plain.run(1)
        seconds.append(time.perf_counter() - start)
    plain.check()
    with timed_operations() as times:
        watched.run(2)
        times.clear()
        watched.run(epochs)
    return times, statistics.median(seconds)


def table(times: Times, epochs: int, seconds: float) -> str:
    """Return the operations as Markdown, the costliest first: calls and seconds per epoch, and the median of a call."""
    rows = sorted(((sum(calls) / epochs, key, calls) for key, calls in times.items()), reverse=True)
    body = [
        [name, shape, f"{len(calls) / epochs:.0f}", label_of(statistics.median(calls)), label_of(total)]
        for total, (name, shape), calls in rows
        if total > 0.002 * seconds
    ]
    body.append(["all operations", "", "", "", label_of(sum(total for total, _, _ in rows))])
    body.append(["epoch, not watched", "", "", "", label_of(seconds)])
    return markdown(["operation", "result", "calls an epoch", "median of a call", "an epoch"], body)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description="Where an epoch's time goes.")
    parser.add_argument("--case", default="mini-batch", choices=CASES)
    parser.add_argument("--contender", default="ours", choices=["ours", "ours-dense", "ours-float64"])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--threads", type=int, help="cores to use (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the table")
    options = parser.parse_args(arguments)
    threads = limit_threads(options.threads)
    times, seconds = profile(options.case, options.contender, threads, options.epochs)
    text = table(times, options.epochs, seconds)
    options.out.mkdir(parents=True, exist_ok=True)
    where = f"{describe('cpu', threads)['cpu']}, {threads} threads"
    path = options.out / f"profile-{options.case}-{options.contender}.md"
    path.write_text(f"# {options.case}: {options.contender}, by operation\n\n{text}\n{where}\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
