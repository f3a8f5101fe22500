"""The memory that a training takes is what was told before it."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import mlp_xp as mx
from mlp_xp import train

from .measuring import PEAK_OF_MEMORY

TRAINED = """
import os
import sys
import numpy as np
import mlp_xp as mx

os.chdir(sys.argv[2])
kind, n, sizes, dtype, settings = eval(sys.argv[1])
rng = np.random.default_rng(0)
X = (rng.integers(0, 256, (n, sizes[0]), dtype=np.uint8) * (rng.integers(0, 4, (n, sizes[0]), dtype=np.uint8) == 0))
X, y = X.astype(dtype, copy=False), (np.arange(n) % 10).astype(np.uint8)

class Source:
    shape, dtype = X.shape, X.dtype
    def __getitem__(self, rows):
        return X[rows].copy()

if kind in ("map", "shards"):
    parts = [X] if kind == "map" else np.array_split(X, 7)
    for i, part in enumerate(parts):
        np.save(f"X-{i}.npy", part)
data = {
    "array": lambda: X,
    "source": Source,
    "map": lambda: np.load("X-0.npy", mmap_mode="r"),
    "shards": lambda: mx.datasets.Shards([f"X-{i}.npy" for i in range(7)]),
}[kind]()
mx.fit(mx.MLP([sizes[0], 10]), X[:2000], y[:2000], epochs=1)
with Peak() as peak:
    model = mx.MLP(sizes)
    mx.fit(model, data, y, epochs=4, threads=2, **settings)
print(mx.estimate_memory(model, data, threads=2, **settings), peak.bytes)
"""

CASES = {
    "wide, full batch": ("array", 20_000, [784, 1000, 800, 10], "uint8", "{'optimizer': mx.SGD(lr=1e-4)}"),
    "MNIST's shape": ("array", 60_000, [784, 196, 10], "uint8", "{}"),
    "wide, full batch, dropout": (
        "array", 20_000, [784, 1000, 800, 10], "uint8", "{'optimizer': mx.SGD(lr=1e-4), 'dropout': 0.5}"
    ),
    "wide, Adam": (
        "array", 10_000, [784, 1000, 800, 10], "uint8", "{'batch_size': 128, 'optimizer': mx.Adam(lr=1e-4)}"
    ),
    "a file, full batch": ("source", 40_000, [784, 196, 10], "float32", "{'plan': 'dense', 'optimizer': mx.SGD(1e-6)}"),
    "a file": ("source", 40_000, [784, 196, 10], "uint8", "{'batch_size': 512, 'optimizer': mx.SGD(1e-3)}"),
    "a map": ("map", 60_000, [784, 196, 10], "uint8", "{}"),
    "shards, full batch": (
        "shards", 40_000, [784, 196, 10], "float32", "{'plan': 'dense', 'optimizer': mx.SGD(1e-6)}"
    ),
    "shards": ("shards", 40_000, [784, 196, 10], "uint8", "{'batch_size': 512, 'optimizer': mx.SGD(1e-3)}"),
}  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, which tells anonymous memory")
@pytest.mark.needs("compiled")
@pytest.mark.parametrize("case", CASES)
def test_memory_is_estimated_within_a_fifth(case, tmp_path):
    kind, n, sizes, dtype, settings = CASES[case]
    argument = f"{kind!r}, {n}, {sizes}, {dtype!r}, {settings}"
    done = subprocess.run(
        [sys.executable, "-c", PEAK_OF_MEMORY + TRAINED, argument, tmp_path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    estimate, peak = map(int, done.stdout.split())
    assert 0.8 <= peak / estimate <= 1.2, (estimate, peak)


@pytest.mark.thread_unsafe(reason="memory is traced for the whole process")
def test_first_weights_are_drawn_in_place():
    tracemalloc.start()
    try:
        model = mx.MLP([500, 400, 500])
        assert tracemalloc.get_traced_memory()[1] < 4 * model.theta.nbytes  # with half of them in float64, twice
    finally:
        tracemalloc.stop()


EVALUATED = """
import numpy as np
import mlp_xp as mx

X, y, model = np.ones((400_000, 4), np.float32), np.zeros(400_000, np.int32), mx.MLP([4, 50])
model.evaluate(X[:5000], y[:5000])
with Peak() as peak:
    model.evaluate(X, y)
print(peak.bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, which tells anonymous memory")
def test_an_evaluation_keeps_a_loss_and_a_class_of_each_row_not_all_outputs():
    done = subprocess.run(
        [sys.executable, "-c", PEAK_OF_MEMORY + EVALUATED], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 20e6  # the outputs would be 80 MB


def test_what_costs_memory_raises_the_estimate(cpu_engine):
    X = np.random.default_rng(0).integers(0, 256, (9000, 30), np.uint8)
    model, estimate = mx.MLP([30, 40, 3]), mx.estimate_memory
    few = estimate(model, X, batch_size=64, threads=1, plan="dense")
    assert estimate(model, X, threads=1, plan="dense") > few
    assert estimate(model, X, batch_size=640, threads=1, plan="dense") > few
    assert estimate(model, X, batch_size=64, threads=1, plan="dense", optimizer=mx.Adam()) > few
    assert estimate(model, X, batch_size=64, threads=1, plan="dense", dropout=0.5) > few
    assert estimate(model, X, batch_size=64, threads=1, plan="dense", dropout=[0.0]) == few
    assert estimate(mx.MLP([30, 400, 3]), X, batch_size=64, threads=1, plan="dense") > few
    converted = estimate(model, X.astype(np.float64), batch_size=64, threads=1, plan="dense")
    assert converted >= few + X.size * 4


def test_only_the_cpu_is_estimated():
    with pytest.raises(ValueError, match="on device 'cpu', and the model is on 'strict'"):
        mx.estimate_memory(mx.MLP([2, 2], device="strict"), np.zeros((3, 2)))


def test_a_dry_run_tells_the_memory(tmp_path, capsys):
    assert train.main(["--dry-run", "--out", str(tmp_path / "run")]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "of memory" in line)
    assert line == f"about {told():,.0f} MB of memory, beside the data and what the import takes"


def told():
    """Return the megabytes that are estimated for the command's default."""
    train_set, _ = mx.datasets.mnist()
    model = mx.MLP([784, 196, 10])
    return mx.estimate_memory(model, train_set.X, batch_size=128, optimizer=mx.Adam()) / 1e6
