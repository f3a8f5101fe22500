"""`python -m bench.fixed_costs`: what hardly depends on the data: predictions, small fits, imports, the command.

Predictions are those of 784-196-10, from rows to labels, data on the host before and after. Rows are float32 without a
zero, or images of MNIST in bytes, of which the others make float32 in the call, with weights that were divided by 255
before. A fit takes 100 epochs of Adam over 150 rows of 4 columns. An import and the command's help are fresh processes;
the bare one is Python.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from .charts import label_of, markdown
from .compare import RESULTS, SETTLE
from .contender import UnavailableError
from .machine import describe, limit_threads
from .problem import Array, Parameters, Problem
from .rows import Row

__all__ = ["TASKS", "main", "measure", "turns"]

_TURN = 0.1  # seconds: a call that is shorter is repeated; a core that has slept takes some milliseconds to get going
_EPOCHS = 100

Call = Callable[[], Any]  # returns what is judged


def _numbers() -> Problem:
    rng = np.random.default_rng(8)
    return Problem("predict", rng.random((10_000, 784), dtype=np.float32), np.arange(10_000) % 10, (784, 196, 10))


def _images() -> Problem:
    from mlp_xp.datasets import mnist

    _, test = mnist()
    return Problem("images", test.X, test.y, (784, 196, 10))


def _layers(problem: Problem) -> Parameters:
    """Return weights that take the rows' numbers as they are."""
    (W, b), *rest = problem.initial
    return [(W / np.float32(255) if problem.X.dtype == np.uint8 else W, b), *rest]


def _ours(problem: Problem, X: Array) -> Call:
    import mlp_xp as mx

    model = mx.MLP(list(problem.sizes), problem.activation)
    model.weights, model.biases = ([layer[i] for layer in problem.initial] for i in (0, 1))
    model.pixels = X.dtype == np.uint8
    return lambda: model.predict(X)


def _numpy(problem: Problem, X: Array) -> Call:
    (W1, b1), (W2, b2) = _layers(problem)
    return lambda: ((1 / (1 + np.exp(-(np.asarray(X, np.float32) @ W1.T + b1)))) @ W2.T + b2).argmax(axis=1)


def _torch(problem: Problem, X: Array) -> Call:
    import torch

    flat = [torch.from_numpy(part) for layer in _layers(problem) for part in layer]
    linear = torch.nn.functional.linear

    @torch.inference_mode()
    def predict() -> Any:
        return linear(linear(torch.from_numpy(X).float(), *flat[:2]).sigmoid_(), *flat[2:]).argmax(dim=1).numpy()

    return predict


def _jax(problem: Problem, X: Array) -> Call:
    import jax
    import jax.numpy as jnp

    (W1, b1), (W2, b2) = jax.device_put(_layers(problem))
    labels = jax.jit(lambda X: jnp.argmax(jax.nn.sigmoid(X.astype(W1.dtype) @ W1.T + b1) @ W2.T + b2, axis=1))
    return lambda: np.asarray(labels(X))


def _sklearn(problem: Problem, X: Array) -> Call:
    from .peers.sklearn_ import Sklearn

    model = Sklearn(problem, 1).model
    for layer, (W, _) in enumerate(_layers(problem)):
        model.coefs_[layer][:] = W.T
    return lambda: model.predict(np.asarray(X, np.float32))


def _predictions(rows_of: Callable[[], Problem], n: int, threads: int) -> Iterator[tuple[str, Callable[[], Call]]]:
    problem = rows_of()
    makers = {"ours": _ours, "textbook": _numpy, "torch": _torch, "jax": _jax, "sklearn": _sklearn}
    for name, make in makers.items():
        yield name, partial(make, problem, problem.X[:n])


def _iris() -> tuple[Array, Array]:
    """150 rows of 4 columns in three clouds."""
    y = np.arange(150) % 3
    return (np.random.default_rng(9).standard_normal((150, 4)) + 3 * np.eye(3, 4)[y]).astype(np.float32), y


def _fit_ours(batch_size: int | None, threads: int) -> Call:
    import mlp_xp as mx

    X, y = _iris()

    def fit() -> Any:
        model = mx.MLP([4, 16, 3], activation="relu")
        mx.fit(model, X, y, epochs=_EPOCHS, optimizer=mx.Adam(lr=0.01), batch_size=batch_size, threads=threads)
        return model.score(X, y) > 0.9

    return fit


def _fit_sklearn(batch_size: int | None) -> Call:
    from sklearn.neural_network import MLPClassifier

    X, y = _iris()

    def fit() -> Any:
        model = MLPClassifier(
            (16,), alpha=0.0, batch_size=batch_size or len(X), learning_rate_init=0.01, max_iter=_EPOCHS, tol=0.0,
            n_iter_no_change=_EPOCHS, random_state=0,
        )  # fmt: skip
        return model.fit(X, y).score(X, y) > 0.9

    return fit


def _fits(batch_size: int | None, threads: int) -> Iterator[tuple[str, Callable[[], Call]]]:
    yield "ours", partial(_fit_ours, batch_size, threads)
    yield "sklearn", partial(_fit_sklearn, batch_size)


def _process(*arguments: str) -> Call:
    """Return a call that starts Python with these arguments, and is right if that succeeds."""
    command = [sys.executable, *arguments]

    def start() -> bool:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
        if "No module named" in done.stderr:
            raise ImportError(done.stderr.strip().splitlines()[-1])
        return done.returncode == 0

    return start


def _imports(threads: int) -> Iterator[tuple[str, Callable[[], Call]]]:
    modules = {"ours": "mlp_xp", "numpy": "numpy", "sklearn": "sklearn.neural_network", "torch": "torch", "jax": "jax"}
    yield "python", partial(_process, "-c", "pass")
    for name, module in modules.items():
        yield name, partial(_process, "-c", f"import {module}")


def _command(threads: int) -> Iterator[tuple[str, Callable[[], Call]]]:
    yield "python", partial(_process, "-c", "pass")
    yield "ours", partial(_process, "-m", "mlp_xp", "train", "--help")


TASKS: dict[str, Callable[[int], Iterator[tuple[str, Callable[[], Call]]]]] = {
    "predict-1": partial(_predictions, _numbers, 1),
    "predict-100": partial(_predictions, _numbers, 100),
    "predict-10000": partial(_predictions, _numbers, 10_000),
    "images-1": partial(_predictions, _images, 1),
    "images-100": partial(_predictions, _images, 100),
    "images-10000": partial(_predictions, _images, 10_000),
    "fit-b32": partial(_fits, 32),
    "fit-full": partial(_fits, None),
    "import": _imports,
    "command": _command,
}


def turns(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of a call in each round; contenders take turns, each of enough calls for the clock.

    Before each turn there is a pause, in which the threads of the one before stop spinning.
    """
    counts = {}
    for name, call in calls.items():
        start = time.perf_counter()
        call()
        counts[name] = max(1, int(_TURN / (time.perf_counter() - start)))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(SETTLE)
            start = time.perf_counter()
            for _ in range(counts[name]):
                call()
            seconds[name].append((time.perf_counter() - start) / counts[name])
    return seconds


def measure(task: str, rounds: int, threads: int) -> list[Row]:
    """Return a row for each contender; right is one whose labels are those of the first, or whose call says so."""
    rows, calls, expected = [], {}, None
    with threadpool_limits(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, that it has not converged
        for name, make in TASKS[task](threads):
            rows.append(row := Row(name))
            try:
                call = make()
                found = np.asarray(call())
            except (ImportError, UnavailableError) as error:
                row.absent = f"not installed: {error}"
                continue
            except Exception as error:
                traceback.print_exc()
                row.absent, row.failed = f"failed: {type(error).__name__}: {error}".partition("\n")[0], True
                continue
            expected = found if expected is None else expected
            row.right = bool(np.mean(found == expected) > 0.999) if found.ndim else bool(found)
            calls[name] = call
        timed = turns(calls, rounds)
    for row in rows:
        row.seconds = timed.get(row.contender, [])
        if row.seconds and timed.get("ours"):
            row.ratio = statistics.median(a / b for a, b in zip(row.seconds, timed["ours"], strict=True))
    return rows


def table(found: Mapping[str, Sequence[Row]]) -> str:
    """Return all rows as Markdown."""
    return markdown(
        ["what", "contender", "min", "median", "/ ours"],
        [
            [task, row.contender + ("" if row.right else " WRONG"), row.absent, "", ""]
            if row.absent
            else [
                task,
                row.contender + ("" if row.right else " WRONG"),
                label_of(min(row.seconds)),
                label_of(statistics.median(row.seconds)),
                f"{row.ratio:.2f}",
            ]
            for task, rows in found.items()
            for row in rows
        ],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 1 if a contender was wrong or broke."""
    parser = argparse.ArgumentParser(prog="python -m bench.fixed_costs", description="What small data cost.")
    parser.add_argument("--only", default=",".join(TASKS), help="names with commas between")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, help="cores to use (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON and table")
    options = parser.parse_args(arguments)
    threads = limit_threads(options.threads)
    found = {task: measure(task, options.rounds, threads) for task in options.only.split(",")}
    options.out.mkdir(parents=True, exist_ok=True)
    tasks = {task: [asdict(row) for row in rows] for task, rows in found.items()}
    report = {"machine": describe("cpu", threads), "rounds": options.rounds, "tasks": tasks}
    (options.out / "fixed-costs.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / "fixed-costs.md").write_text(f"# Fixed costs\n\n{table(found)}")
    print(table(found))
    return int(any(row.failed or not (row.absent or row.right) for rows in found.values() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
