"""`python -m bench.time_to_accuracy`: seconds of training until 95, 97 and 98 % of the test images are right.

Every contender trains the same network (784-196-10, ReLU, plain gradient descent) by each setting of a small grid of
batch sizes and learning rates, and for each target its best setting counts: who is fast at small batches may use them.
Preparation counts; compilation ahead of the training does not and is given apart. The test images are looked at
between epochs, with the clock stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from .charts import PALETTE, label_of, markdown
from .compare import RESULTS
from .contender import CONTENDERS, Contender, UnavailableError, build
from .machine import describe, limit_threads
from .problem import Array, Problem, activate, scaled

__all__ = ["GRID", "TARGETS", "Curve", "best", "main", "train"]

TARGETS = (0.95, 0.97, 0.98)
GRID = ((32, 0.1), (64, 0.2), (128, 0.5), (256, 0.8), (512, 1.2))  # (batch size, learning rate)
DEFAULT = "ours,torch,torch-compile,jax-step,jax-loop,sklearn,textbook"


@dataclass
class Curve:
    """Test accuracy over time, by one contender with one setting.

    Attributes
    ----------
    contender : str
    batch_size : int
    learning_rate : float
    seconds : list of float
        Time of training at the end of each epoch, the preparation included.
    accuracy : list of float
        Share of the test images that are right, then.
    compile_seconds : float
        Not part of `seconds`.
    """

    contender: str
    batch_size: int
    learning_rate: float
    seconds: list[float]
    accuracy: list[float]
    compile_seconds: float

    def time_to(self, target: float) -> float | None:
        """Return when the accuracy was first reached; None if it never was."""
        return next((t for t, a in zip(self.seconds, self.accuracy, strict=True) if a >= target), None)


def train(contender: Contender, name: str, X: Array, y: Array, most_epochs: int) -> Curve:
    """Train until the last target is reached on the test images X (n, d), y (n,), or `most_epochs` have passed.

    Raises
    ------
    AssertionError
        If the loss reached is not that of float64.
    """
    times: list[float] = []
    accuracy: list[float] = []
    while len(times) < most_epochs and (not accuracy or accuracy[-1] < TARGETS[-1]):
        start = time.perf_counter()
        contender.run(1)
        times.append(time.perf_counter() - start)
        accuracy.append(_accuracy(contender, X, y))
    contender.check()
    ends = (contender.preparation_seconds + np.cumsum(times)).tolist()
    problem = contender.problem
    size = problem.batch_size or len(problem.X)
    return Curve(name, size, problem.learning_rate, ends, accuracy, contender.compile_seconds)


def _accuracy(contender: Contender, X: Array, y: Array) -> float:
    *hidden, last = contender.parameters()
    for W, b in hidden:
        X = activate(contender.problem.activation, X @ W.T + b)
    W, b = last
    return float(np.mean((X @ W.T + b).argmax(axis=1) == y))


def best(curves: Sequence[Curve], contender: str, target: float) -> Curve | None:
    """Return the contender's curve that reaches the target first; None if none does."""
    reaching = [(t, curve) for curve in curves if curve.contender == contender and (t := curve.time_to(target))]
    return min(reaching, key=lambda pair: pair[0])[1] if reaching else None


def table(curves: Sequence[Curve], absent: dict[str, str]) -> str:
    """Return the best times of each contender as Markdown, then the absent ones and why."""
    body = []
    for name in dict.fromkeys(curve.contender for curve in curves):
        cells = [name]
        for target in TARGETS:
            curve = best(curves, name, target)
            time_to = curve and curve.time_to(target)
            cells.append(
                f"{label_of(time_to)} (batch {curve.batch_size}, lr {curve.learning_rate:g})"
                if curve and time_to
                else "not reached"
            )
        compiling = max(curve.compile_seconds for curve in curves if curve.contender == name)
        body.append([*cells, label_of(compiling)])
    body += [[name, reason, *[""] * len(TARGETS)] for name, reason in absent.items()]
    return markdown(["contender", *(f"to {target:.0%}" for target in TARGETS), "compilation, apart"], body)


def chart(path: Path, curves: Sequence[Curve]) -> None:
    """Draw each contender's best curve, its test error on a logarithmic scale of time, and save the PNG."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    ax = figure.subplots()
    for place, name in enumerate(dict.fromkeys(curve.contender for curve in curves)):
        curve = next((found for target in TARGETS[::-1] if (found := best(curves, name, target))), None)
        if curve is None:
            continue
        error = [1 - accuracy for accuracy in curve.accuracy]
        label = f"{name} (batch {curve.batch_size}, lr {curve.learning_rate:g})"
        ax.plot(curve.seconds, error, marker="o", markersize=4, color=PALETTE[place % len(PALETTE)], label=label)
    for target in TARGETS:
        ax.axhline(1 - target, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        ax.text(0.01, 1 - target, f"{target:.0%} right", transform=ax.get_yaxis_transform(), fontsize=9, va="bottom")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_yticks([0.02, 0.03, 0.05, 0.1], ["2 %", "3 %", "5 %", "10 %"])
    ax.set_ylim(0.015, 0.12)
    ax.minorticks_off()
    ax.set_xlabel("seconds of training, compilation left out")
    ax.set_ylabel("test error")
    ax.set_title("Time to accuracy, each contender at its best setting", loc="left", fontsize=11)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.time_to_accuracy", description="Seconds to test accuracy.")
    parser.add_argument("--contenders", default=DEFAULT, help=f"names with commas between, of: {', '.join(CONTENDERS)}")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="cores to use (default: all)")
    parser.add_argument("--epochs", type=int, default=30, help="most epochs per setting")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON, table and chart")
    options = parser.parse_args(arguments)
    threads = limit_threads(options.threads)
    import mlp_xp as mx

    images, test = mx.datasets.mnist()
    X = scaled(test.X)
    curves: list[Curve] = []
    absent: dict[str, str] = {}
    for batch_size, rate in GRID:
        problem = Problem("time-to-accuracy", images.X, images.y, (784, 196, 10), "relu", rate, batch_size)
        for name in options.contenders.split(","):
            try:
                contender = build(name, problem, options.device, threads)
            except UnavailableError as reason:
                absent[name] = str(reason)
                continue
            curves.append(train(contender, name, X, test.y, options.epochs))
            print(f"{name}, batch {batch_size}: {curves[-1].accuracy[-1]:.2%} after {curves[-1].seconds[-1]:.2f} s")
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"time-to-accuracy-{options.device}"
    about: dict[str, Any] = {"machine": describe(options.device, threads), "absent": absent}
    stem.with_suffix(".json").write_text(json.dumps({**about, "curves": [asdict(c) for c in curves]}, indent=1) + "\n")
    stem.with_suffix(".md").write_text(f"# Time to accuracy on {options.device}\n\n{table(curves, absent)}")
    chart(stem.with_suffix(".png"), curves)
    print(table(curves, absent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
