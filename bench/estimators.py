"""`python -m bench.estimators`: the estimators beside scikit-learn's own, with the same settings and the same results.

Both fit in turns in one process. The ratio is the median over the rounds of scikit-learn's time by ours. Losses that
differ by more than rounding end in exit code 1.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .charts import markdown

__all__ = ["CASES", "main", "measure"]

_AGREE = 1e-6  # relative: what rounding may do to a loss in these runs

Data = tuple[Any, Any]


def _mnist(n: int) -> Data:
    import mlp_xp as mx

    train, _ = mx.datasets.mnist()
    return train.X[:n] / 255, train.y[:n]


def _compressed() -> Data:
    import scipy.sparse

    X = scipy.sparse.random(20_000, 5_000, 0.01, "csr", random_state=0)
    return X, np.random.default_rng(0).integers(0, 5, 20_000)


def _small(name: str) -> Data:
    from sklearn import datasets

    data: Data = getattr(datasets, f"load_{name}")(return_X_y=True)
    return data


CASES: dict[str, tuple[Callable[[], Data], dict[str, Any]]] = {
    "MNIST, adam, batch 200": (lambda: _mnist(60_000), {"max_iter": 4}),
    "MNIST, adam, all rows": (lambda: _mnist(60_000), {"max_iter": 3, "batch_size": 60_000}),
    "MNIST, lbfgs": (lambda: _mnist(10_000), {"max_iter": 10, "solver": "lbfgs"}),
    "20,000 x 5,000 compressed, 1% not zero": (_compressed, {"max_iter": 1}),
    "iris": (lambda: _small("iris"), {}),
    "iris, one epoch": (lambda: _small("iris"), {"max_iter": 1}),
    "breast cancer, early stopping": (lambda: _small("breast_cancer"), {"early_stopping": True}),
    "digits, batch 32": (lambda: _small("digits"), {"max_iter": 10, "batch_size": 32, "hidden_layer_sizes": (20, 10)}),
}
"""What is fitted: samples and targets, and settings other than the defaults."""


def measure(case: str, rounds: int) -> tuple[float, float, float]:
    """Return the median ratio of the times, our least time in seconds, and how far the losses are apart, relatively."""
    import sklearn.neural_network

    from mlp_xp import estimators

    make, settings = CASES[case]
    X, y = make()
    ratios, times = [], []
    for _ in range(rounds):
        losses, seconds = [], []
        for library in (sklearn.neural_network, estimators):
            mlp = library.MLPClassifier(random_state=0, **settings)
            start = time.perf_counter()
            mlp.fit(X, y)
            seconds.append(time.perf_counter() - start)
            losses.append(mlp.loss_)
        ratios.append(seconds[0] / seconds[1])
        times.append(seconds[1])
    return statistics.median(ratios), min(times), abs(losses[0] / losses[1] - 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.estimators", description=__doc__)
    parser.add_argument("--only", help="the cases that begin like this", default="")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    rows, right = [], True
    for case in CASES:
        if not case.startswith(options.only):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing has converged
            ratio, seconds, apart = measure(case, options.rounds)
        right = right and apart <= _AGREE
        rows.append([case, f"{ratio:.1f}", f"{1e3 * seconds:.1f}", f"{apart:.0e}"])
    print(markdown(["case", "scikit-learn's time / ours", "ours, ms", "losses differ by"], rows))
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())
