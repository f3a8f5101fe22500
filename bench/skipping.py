"""`python -m bench.skipping`: how near the sparse products of the compiled library come to what the processor can do.

The library's own loops run on one thread, phase by phase, on batches of 128 rows: copies of the rows, the product
forwards, the product backwards. Beside them stands the peak of the processor: multiplications in registers alone. All
times are of CPU, and the least of many rounds.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlp_xp.kernels.cpu import compiled

from .cases import case
from .charts import markdown
from .compare import RESULTS
from .machine import describe, limit_threads

__all__ = ["Phases", "main", "measured", "report"]

ROWS = 128
_SAMPLE = 8192  # rows
_PHASES = ("copy of the rows", "forwards", "backwards")


class Phases(NamedTuple):
    """What was measured of a case.

    Attributes
    ----------
    units : int
        Of the first hidden layer.
    used, by_two : float
        Columns that are not zero in a row, on average, and in one of two.
    nanoseconds : tuple of float
        Of each phase, per row.
    """

    units: int
    used: float
    by_two: float
    nanoseconds: tuple[float, ...]


def _library(folder: str) -> ctypes.CDLL:
    """Build the measured loops, for this processor and float32."""
    source = Path(__file__).parents[1] / "hatch_build.py"
    spec = importlib.util.spec_from_file_location("hatch_build", source)
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(build)
    except ImportError as error:
        raise SystemExit(f"the loops are built as at the installation: pip install hatchling ({error})") from None
    found = compiled.library()
    flags = {**build.OTHERS, **build.X86}["base" if found is None else found.instructions].split()
    path, text = Path(folder, "skipping.so"), Path(__file__).with_suffix(".c")
    own = ["-DREAL=float", "-DSUFFIX=bench", f"-I{compiled.FOLDER}", "-shared", str(text), "-o", str(path)]
    subprocess.run(["cc", *build.FLAGS, *flags, *own, "-lm", "-lpthread"], check=True)
    return ctypes.CDLL(str(path))


def measured(library: Any, name: str, rounds: int) -> Phases:
    """Measure a case of bytes."""
    problem = case(name)
    X = np.ascontiguousarray(problem.X[problem.order(1)[:_SAMPLE]])
    best = [float("inf")] * len(_PHASES)
    for _ in range(rounds):
        seconds = (ctypes.c_double * len(_PHASES))()
        sizes = [ctypes.c_int64(size) for size in (*X.shape, ROWS, problem.sizes[1])]
        if not library.phases(ctypes.c_void_p(X.ctypes.data), *sizes, seconds):
            raise MemoryError("there is no memory for the loops")
        best = [min(pair) for pair in zip(best, seconds, strict=True)]
    used = X != 0
    rows = len(X) // ROWS * ROWS
    by_two = float((used[::2] | used[1::2]).sum(axis=1).mean())
    return Phases(
        problem.sizes[1], float(used.sum(axis=1).mean()), by_two, tuple(1e9 * seconds / rows for seconds in best)
    )


def report(found: dict[str, Phases], peak: float, vector_bytes: int) -> str:
    """Return the page: a table of the phases, and what follows from it. `peak` is multiplications per second."""
    lanes = vector_bytes // 4
    body = []
    fewest = max(found.values(), key=lambda phases: phases.used)
    more = 100 * (fewest.by_two / fewest.used - 1)
    for name, phases in found.items():
        filled = -(-phases.units // lanes) * lanes
        for phase, nanoseconds in zip(_PHASES, phases.nanoseconds, strict=True):
            products = phase != _PHASES[0]
            done = phases.used * filled / nanoseconds * 1e9
            body.append([
                name, phase, f"{phases.used:.0f} ({phases.by_two:.0f})",
                f"{phases.used * filled:,.0f}" if products else "", f"{nanoseconds:.0f} ns",
                f"{2e-9 * done:.0f}" if products else "", f"{100 * done / peak:.0f}%" if products else "",
            ])  # fmt: skip
    head = ["case", "phase", "columns used by a row (by two)", "multiplications", "time of a row", "GFLOP/s", "of peak"]
    return f"""{markdown(head, body)}
The peak of one core is {2e-9 * peak:.0f} GFLOP/s, in registers alone, with vectors of {vector_bytes} bytes.

A row costs one multiplication for each number that is not zero and each unit, and nothing for what another row
uses. Each of them reads a vector of the weights, where one in registers reads nothing. What a word of 64 columns
needs of the weights stays in the first cache, or what half a word needs, if rows of weights are long. The price is
a sum for each of them, whose beginning and end take as long, on a Xeon with AVX-512, as some five numbers in
between; of MNIST's numbers that are not zero, half a word has six on average. Two rows at once, over the columns
that either uses, would have half as many sums and loads, but multiply by the zeros of both: by {more:.0f}% more in
the case that has the fewest zeros.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.skipping", description="The sparse products, and the peak.")
    parser.add_argument("--case", action="append", choices=["mini-batch", "half-dense", "narrow"], help="default: all")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the page")
    options = parser.parse_args(arguments)
    limit_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        library = _library(folder)
        library.peak.restype = ctypes.c_double
        peak = max(library.peak() for _ in range(options.rounds))
        names = options.case or ["mini-batch", "half-dense", "narrow"]
        found = {name: measured(library, name, options.rounds) for name in names}
        text = report(found, peak, library.vector_bytes())
    options.out.mkdir(parents=True, exist_ok=True)
    page = (
        f"# Products that skip zeros, beside the processor's peak\n\n{text}\n{describe('cpu', 1)['cpu']}, one thread\n"
    )
    (options.out / "skipping.md").write_text(page, encoding="utf-8")
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
