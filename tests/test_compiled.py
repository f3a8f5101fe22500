"""The compiled library trains as NumPy does, with the same bits on any number of threads and in pieces of any size."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import threading
from dataclasses import replace
from time import perf_counter

import numpy as np
import pytest
import scipy.sparse
from numpy.testing import assert_array_equal

import mlp_xp as mx
from mlp_xp.engines.threads import ThreadEngine
from mlp_xp.kernels.cpu import compiled
from mlp_xp.rows.csr import CsrRows
from mlp_xp.rows.plan import make_plan

from . import compiled_cases as cases

pytestmark = pytest.mark.skipif(compiled.library() is None, reason="needs the compiled library")

DOUBLE = 1e-12  # relative to the largest number; the largest deviation that was seen is 7e-15
PLANS = ("dense", "sparse")


@pytest.fixture
def shards(monkeypatch):
    """Cut full batches into shards of so many rows: f(rows)."""
    return lambda rows: monkeypatch.setattr("mlp_xp.engines.compiled.SHARD", rows)


@pytest.fixture
def each_update(monkeypatch):
    """Let the engine ask after each update, and after each round of a full batch's groups."""
    monkeypatch.setattr("mlp_xp.engines.compiled._PIECE", 1e-30)
    monkeypatch.setattr("mlp_xp.engines.compiled._UNASKED", 1e-30)


def large(seed=0, n=300, sizes=(400, 300, 130, 10), **changes):
    """Return a case with products in slices of columns and parts of rows."""
    rng = np.random.default_rng(seed)
    X, y = cases.draw_data(rng, n, sizes[0], "float64"), cases.draw_targets(rng, "softmax", n, sizes[-1], "float64")
    names = ["tanh", "sigmoid", "relu", "leaky_relu"][: len(sizes) - 2]
    case = cases.Case(list(sizes), names, "softmax", mx.SGD(lr=0.02), X, y, 150)
    return replace(case, **changes)


LARGE = {
    "mini-batches": large(),
    "full": large(batch_size=None, n=260),
    "momentum": large(1, optimizer=mx.SGD(lr=0.02, momentum=0.5, l2=0.01)),
    "weights too many to be kept transposed": large(2, n=70, sizes=(40, 520, 530, 5), batch_size=64),
    "narrow after wide": large(3, n=200, sizes=(130, 16, 700, 12, 3), batch_size=200),
    "for BLAS": large(4, n=800, sizes=(64, 1100, 1300, 10), batch_size=768),
    "full, for BLAS": large(4, n=600, sizes=(64, 1100, 1300, 10), batch_size=None),
    "sums too long to stay in the cache": large(5, n=150, sizes=(2500, 40, 10), batch_size=128),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("first", range(0, 160, 20))
def test_it_computes_what_numpy_computes(first, plan, shards):
    for seed in range(first, first + 20):
        shards(1 + 37 * seed % 210)
        case = cases.draw(seed)
        error = cases.train(case, plan=plan, threads=1 + seed % 3).error(cases.by_numpy(case))
        assert error <= DOUBLE, (seed, error, case)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_large_products(case, plan):
    assert cases.train(case, plan=plan, threads=2).error(cases.by_numpy(case)) <= DOUBLE


EDGES = {  # of a mask's words, of columns worked on together, of a sum's vectors, of a row of 1024 bytes
    "columns": (1, 63, 64, 65, 128, 255, 256, 257, 513),
    "units": (1, 3, 4, 5, 12, 13, 26, 27, 51, 52, 53, 103, 104, 105, 112, 113, 128, 208, 209, 256),
    "rows": (1, 2, 63, 64, 65, 129),
    "used": (0.0, 0.004, 0.03, 0.3, 1.0),
}


@pytest.mark.parametrize("kind", ["bytes", "numbers", "compressed"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_zeros_are_skipped_at_every_edge(kind, dtype, rng, shards):
    for _ in range(25):
        d, h, n, used = (rng.choice(values) for values in EDGES.values())
        X = np.where(rng.random((n, d)) < used, rng.integers(1, 256, (n, d)), 0)
        X = X.astype(np.uint8) if kind == "bytes" else (X / 255).astype(dtype)
        batch_size = rng.choice([None, int(n)])
        shards(int(rng.integers(1, n + 1)))
        y = rng.integers(0, 3, n)
        case = cases.Case([int(d), int(h), 3], ["sigmoid"], "softmax", mx.SGD(lr=0.1), X, y, batch_size, dtype)
        given = replace(case, X=CsrRows(scipy.sparse.csr_array(X), dtype)) if kind == "compressed" else case
        error = cases.train(given, plan="sparse", threads=2).error(cases.by_numpy(case))
        assert error <= (DOUBLE if dtype == "float64" else 1e-4), (d, h, n, used, batch_size, error)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_row_is_no_multiple_of_1024_bytes(dtype):
    item = np.dtype(dtype).itemsize
    for numbers in (1, 16, 127, 128, 129, 250, 256, 257, 512, 4096):
        row = compiled.padded(numbers, dtype) * item
        assert numbers * item <= row <= numbers * item + 127
        assert row % 64 == 0
        assert row % 1024 != 0


@pytest.mark.parametrize("batch_size", [50, 64, None])
def test_the_gradient_is_that_of_the_last_update(batch_size, each_update):
    """Between two questions only the last update's gradient is kept: there are 3, then 1, then all of an epoch."""
    case = large(4, batch_size=batch_size, optimizer=mx.Adam(lr=1e-3, epsilon=1e-3), n=150)
    want = cases.train(case, pause=lambda: False)
    assert want.error(cases.by_numpy(case)) <= DOUBLE
    assert cases.train(case).bits() == want.bits()


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("first", range(1000, 1120, 30))
def test_float32_is_as_exact_as_numpys(first, plan, shards):
    """Without kinks, on whose two sides float32 and float64 may be."""
    for seed in range(first, first + 30):
        shards(1 + 41 * seed % 190)
        case = cases.draw(seed, "float32", smooth=True)
        want = cases.by_numpy(case)
        error, of_numpy = cases.train(case, plan=plan).error(want), cases.train(case, ThreadEngine).error(want)
        assert error <= 4 * of_numpy + 1e-6, (seed, error, of_numpy, case)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_do_not_depend_on_threads_or_on_the_run(dtype, plan, shards):
    for seed in range(2000, 2015):
        shards(1 + 29 * seed % 100)
        case = cases.draw(seed, dtype)
        bits = [cases.train(case, plan=plan, threads=threads).bits() for threads in (1, 2, 3, 1, 7)]
        assert bits[1:] == bits[:-1], (seed, case)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_bits_of_large_products_do_not_depend_on_threads(case, plan):
    bits = [cases.train(case, plan=plan, threads=threads).bits() for threads in (1, 2, 3)]
    assert bits[1:] == bits[:-1]


class Pause:
    """Pauses whenever it is asked, and counts."""

    asked = 0

    def __call__(self):
        self.asked += 1
        return True


@pytest.mark.parametrize("plan", PLANS)
def test_pieces_have_the_bits_of_whole_epochs(plan, each_update):
    for seed in range(3000, 3025):
        case = cases.draw(seed)
        pause = Pause()
        pieces = cases.train(case, plan=plan, threads=2, pause=pause)
        whole = cases.train(case, plan=plan, threads=1)
        assert pieces.bits() == whole.bits(), (seed, case)
        updates = 1 if case.batch_size is None else -(-len(case.X) // case.batch_size)
        assert pause.asked == case.epochs * (updates - 1)


@pytest.mark.usefixtures("each_update")
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("n", "rows", "rounds"), [(100, 1, 7), (96, 2, 3), (97, 2, 4), (17, 1, 2), (16, 1, 1)])
def test_rounds_of_a_full_batch_have_the_bits_of_the_whole(n, rows, rounds, plan, shards):
    """At most 16 groups, each of which adds up a shard in a round."""
    shards(rows)
    case = large(n=n, sizes=(20, 7, 10), batch_size=None, epochs=3, optimizer=mx.Adam(l2=0.01))
    whole = cases.train(case, plan=plan)
    for threads in (1, 2, 3):
        pause = Pause()
        assert cases.train(case, plan=plan, threads=threads, pause=pause).bits() == whole.bits()
        assert pause.asked == 3 * (rounds - 1)


@pytest.mark.usefixtures("each_update")
def test_a_signal_stops_a_full_batch_within_its_update(shards, tmp_path):
    shards(4)
    case = large(n=300, sizes=(20, 7, 10), batch_size=None)
    signals, settings = [3 + 4 * 4], {"epochs": 7, "optimizer": mx.Adam(), "plan": "dense"}  # 5 rounds: in the fifth

    class Stopped(mx.Checkpoint):
        def is_due(self):
            signals[0] -= 1
            if signals[0] == 0:
                signal.raise_signal(signal.SIGTERM)
            return super().is_due()

    want, model, again = case.model(), case.model(), case.model()
    mx.fit(want, case.X, case.y, **settings)
    with pytest.raises(mx.Interrupted, match="in epoch 4 after update 0"):
        mx.fit(model, case.X, case.y, checkpoint=Stopped(tmp_path, every="1000s"), **settings)
    mx.fit(again, case.X, case.y, checkpoint=mx.Checkpoint(tmp_path, resume=True), **settings)
    assert_array_equal(again.theta, want.theta)


@pytest.mark.parametrize("batch_size", [None, 1000])
def test_ctrl_c_ends_what_takes_long(batch_size):
    """Half a minute on one core; nobody is asked whether to pause."""
    case = large(n=8000, sizes=(200, 700, 700, 10), batch_size=batch_size)
    model = case.model()
    before = model.theta.copy()
    states = mx.epochs(model, np.tile(case.X, (8, 1)), np.tile(case.y, 8), batch_size=batch_size, threads=1)
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    began = perf_counter()
    with pytest.raises(KeyboardInterrupt):
        next(states)
    assert perf_counter() - began < 5
    timer.join()
    assert_array_equal(model.theta, before)


@pytest.mark.parametrize("instructions", ["base", "v3", "v4"])
def test_sets_of_instructions_agree(instructions, monkeypatch, shards):
    library = compiled.library()
    if library.instructions == "base" or instructions > library.instructions:  # "base" < "v3" < "v4"
        pytest.skip(f"needs a processor with {instructions}")
    chosen = compiled.Library(library.path, instructions)
    for seed in range(5000, 5040):
        shards(1 + 37 * seed % 210)
        case, plan = cases.draw(seed), PLANS[seed % 2]
        want = cases.train(case, plan=plan)
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "library", lambda: chosen)
            error = cases.train(case, plan=plan).error(want)
        assert error <= DOUBLE, (seed, error, case)
        assert error == 0 or instructions != library.instructions


def with_usual_values(seed, dtype="float64"):
    """Return a case whose zeros are another number in each column, as in standardized images."""
    case = cases.draw(seed, dtype)
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((150, case.sizes[0])).astype(np.float32)
    X = np.where(rng.random(X.shape) < 0.7, rng.uniform(-3, 3, X.shape[1]) * (rng.random(X.shape[1]) < 0.9), X)
    n = min(len(case.X), len(X))
    return replace(case, X=X[:n].astype(np.float32).astype(dtype), y=case.y[:n])


def test_usual_values_are_skipped_and_count_all_the_same(shards):
    seen = 0
    for seed in range(7000, 7060):
        shards(1 + 37 * seed % 110)
        case = with_usual_values(seed)
        rows = case.model().open(case.X)
        seen += make_plan(rows, case.model().device, "sparse", skips=True).background is not None
        error = cases.train(case, plan="sparse", threads=1 + seed % 3).error(cases.by_numpy(case))
        assert error <= DOUBLE, (seed, error, case)
    assert seen > 40


def test_bits_with_usual_values_do_not_depend_on_threads_or_pieces(shards, each_update):
    for seed in range(7100, 7120):
        shards(1 + 29 * seed % 100)
        case = with_usual_values(seed, "float32")
        bits = [cases.train(case, plan="sparse", threads=threads).bits() for threads in (1, 2, 3)]
        bits.append(cases.train(case, plan="sparse", threads=2, pause=Pause()).bits())
        assert bits[1:] == bits[:-1], (seed, case)


@pytest.mark.parametrize("batch_size", [None, 16])
def test_standardized_images_are_sparse(batch_size, mnist):
    X = mnist[0].X[:2000] / 255
    X = (X - X.mean(axis=0)) / (X.std(axis=0) + 0.1)
    model = mx.MLP([784, 5, 10])
    plan, plain = (
        make_plan(model.open(data), model.device, "auto", None, batch_size, skips=True)
        for data in (X, mnist[0].X[:2000])
    )
    assert (plan.kind, plain.kind) == ("sparse", "sparse")
    assert plan.mean_columns == pytest.approx(plain.mean_columns, rel=0.1)
    assert "are not the usual value of their column" in plan.reason
    assert plain.background is None


# ----------------------------------------------------------------------------------------------------------------------
# What is unusual.


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_that_begin_at_an_odd_address(dtype, plan):
    case = cases.draw(12, dtype)
    X = case.X.astype(dtype)
    memory = np.zeros(X.nbytes + 1, np.uint8)
    odd = memory[1:].view(dtype).reshape(X.shape)
    odd[:] = X
    assert odd.ctypes.data % 2 == 1
    assert cases.train(replace(case, X=odd), plan=plan).bits() == cases.train(replace(case, X=X), plan=plan).bits()


def many(n, d, batch_size, sizes):
    """Return a case with more rows or columns than 16 bits count; few numbers are not zero."""
    rng = np.random.default_rng(0)
    X = np.zeros((n, d), np.uint8)
    X[rng.integers(0, n, 4 * n), rng.integers(0, d, 4 * n)] = 200
    X[:, -1], X[-1] = 100, 50
    y = rng.integers(0, 3, n)
    return cases.Case([d, *sizes, 3], ["tanh"] * len(sizes), "softmax", mx.SGD(lr=0.3), X, y, batch_size, epochs=1)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    ("n", "d", "batch_size"), [(70_001, 3, 70_001), (66_000, 2, 65_537), (5, 65_537, 3), (4, 140_000, None)]
)
def test_more_rows_or_columns_than_16_bits_count(n, d, batch_size, plan):
    case = many(n, d, batch_size, (4,))
    assert cases.train(case, plan=plan, threads=2).error(cases.by_numpy(case)) <= DOUBLE


@pytest.mark.parametrize("plan", PLANS)
def test_columns_and_rows_that_are_zero(plan):
    case = cases.draw(3)
    for X in (np.zeros((65, 70), np.uint8), np.zeros((3, 200)), np.eye(64, 129)):
        rng = np.random.default_rng(0)
        y = rng.integers(0, 2, (len(X), 3)).astype(float)
        case = cases.Case([X.shape[1], 5, 3], ["relu"], "sigmoid", mx.SGD(lr=0.1, l2=0.1), X, y, 7)
        assert cases.train(case, plan=plan).error(cases.by_numpy(case)) <= DOUBLE


@pytest.mark.parametrize("plan", PLANS)
def test_64_layers(plan):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((40, 6)), rng.integers(0, 3, 40)
    names = [["tanh", "identity", "sigmoid", "leaky_relu"][l % 4] for l in range(63)]
    case = cases.Case([6, *[5 + l % 9 for l in range(63)], 3], names, "softmax", mx.SGD(lr=0.01), X, y, 16)
    assert cases.train(case, plan=plan, threads=3).error(cases.by_numpy(case)) <= DOUBLE


@pytest.mark.parametrize("batch_size", [None, 150])
def test_as_many_threads_as_there_can_be(batch_size):
    case = large(batch_size=batch_size, n=160, epochs=1)
    assert cases.train(case, threads=1000).bits() == cases.train(case).bits()


@pytest.mark.parametrize("plan", PLANS)
def test_a_batch_of_more_rows_than_there_are(plan):
    X, y = mx.datasets.xor()
    models = [mx.MLP([2, 4, 2], "tanh", seed=1, dtype="float64") for _ in range(2)]
    for model, batch_size in zip(models, (4, 1000), strict=True):
        mx.fit(model, X, y, epochs=3, batch_size=batch_size, plan=plan)
    assert_array_equal(models[0].theta, models[1].theta)


class WithoutBiases(mx.SGD):
    """Leaves the biases as they are."""

    def rates(self, epoch, is_bias):
        return self.rate(epoch) * (1 - is_bias)


def test_an_optimizer_with_rates_of_its_own_obeys_them():
    X, y = mx.datasets.xor()
    model = mx.MLP([2, 4, 2], "tanh", seed=1)
    mx.fit(model, X, y, epochs=3, optimizer=WithoutBiases(lr=0.5))
    assert not any(b.any() for b in model.biases)


def test_what_is_written_into_the_parameters_between_epochs_is_taken_up():
    X, y = mx.datasets.xor()
    model = mx.MLP([2, 4, 2], "tanh", seed=1)
    losses = []
    for state in mx.epochs(model, X, y, optimizer=mx.SGD(lr=0.5), epochs=3):
        losses.append(float(state.loss))
        model.theta[:] = 0
    assert losses[1:] == pytest.approx([np.log(2)] * 2)


@pytest.mark.filterwarnings("ignore:overflow")  # of the sum, in float64, to float32
@pytest.mark.parametrize("batch_size", [None, 10])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_divergence_shows_in_the_loss(dtype, batch_size, rng):
    model = mx.MLP([5, 40, 20, 3], ["relu", "tanh"], output="identity", dtype=dtype)
    X, Y = rng.standard_normal((50, 5)), rng.standard_normal((50, 3))
    with pytest.raises(mx.DivergenceError):
        mx.fit(model, X, Y, optimizer=mx.SGD(lr=1e12), batch_size=batch_size, plan="sparse")


def subnormals(vector):
    return int(((np.abs(vector) < np.finfo(vector.dtype).tiny) & (vector != 0)).sum())


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("batch_size", [1, None])
def test_means_of_gradients_that_have_become_zero_are_zero(batch_size, plan):
    """Left below the smallest normal number, they would make each update twice as long."""
    X, y = np.zeros((3000, 3), np.uint8), np.zeros(3000, int)
    X[0] = 255  # the only row that the first weights have a gradient from
    case = cases.Case([3, 4, 2], ["relu"], "softmax", mx.Adam(), X, y, 1, "float32", 1)
    if batch_size is None:  # the outputs become so right that their errors vanish
        case = replace(case, X=X[:2], y=y[:2], optimizer=mx.Adam(lr=1.0), batch_size=None, epochs=1200)
    assert subnormals(cases.train(case, ThreadEngine).state["mean"]) > 0
    assert subnormals(cases.train(case, plan=plan, threads=2).state["mean"]) == 0


def test_other_arithmetic_of_the_thread_keeps_its_small_numbers():
    cases.train(large(epochs=1), threads=2)
    assert np.finfo(np.float32).tiny / np.float32(2) > 0


def test_engines_on_two_threads_at_once():
    chosen = [cases.draw(seed) for seed in range(6000, 6030)]
    want = [cases.train(case, plan="sparse").bits() for case in chosen]
    wrong = []

    def run():
        for _ in range(3):
            got = [cases.train(case, plan="sparse", threads=2).bits() for case in chosen]
            wrong.extend(i for i, bits in enumerate(got) if bits != want[i])

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning")  # of JAX, if a test before this one has used it
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python, for any process that has threads
def test_a_child_process_trains_after_its_parent():
    case = cases.draw(7)
    want = cases.train(case, threads=2).bits()
    child = os.fork()
    if child == 0:
        os._exit(0 if cases.train(case, threads=2).bits() == want else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert cases.train(case, threads=2).bits() == want


@pytest.fixture
def built(monkeypatch, tmp_path):
    """Return a folder with the library and its sources, in which the package looks for it."""
    folder = shutil.copytree(compiled.FOLDER, tmp_path / "replay")
    monkeypatch.setattr(compiled, "FOLDER", folder)
    monkeypatch.setattr(compiled, "_found", compiled._found.__wrapped__)
    return folder


def test_a_library_of_the_sources_beside_it_is_used(built):
    assert compiled.library().path.parent == built


@pytest.mark.parametrize("name", ["replay.c", "sparse.h", "more.h"])
def test_a_library_of_other_sources_is_not_used(name, built):
    with open(built / name, "a") as file:
        file.write("// changed\n")
    with pytest.warns(UserWarning, match=r"built from other sources than .* NumPy computes .* `pip install -e \.`"):
        assert compiled.library() is None


def test_a_library_that_says_nothing_of_its_sources_is_of_others(built):
    assert not compiled._is_of_its_sources(object())


def test_a_library_without_sources_is_used(built):
    for source in built.glob("*.[ch]"):
        source.unlink()
    assert compiled.library().path.parent == built


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_2000_fits_leave_nothing_behind():
    case = large(n=64, sizes=(100, 30, 10), batch_size=16, epochs=1, optimizer=mx.Adam())
    sizes, files = [], []
    for _ in range(3):
        for _ in range(670):
            cases.train(case, plan="sparse", threads=2)
        gc.collect()
        sizes.append(resident())
        files.append(len(os.listdir("/proc/self/fd")))
    assert sizes[-1] - sizes[1] < 2e6
    assert files[0] == files[-1]


@pytest.mark.parametrize("density", [1, 0.1])
def test_rows_at_odd_addresses_are_copied(density, rng):
    """Products read full batches and samples to predict where they are, but only where numbers may lie."""
    aligned = ((rng.random((600, 40)) < density) * rng.standard_normal((600, 40))).astype(np.float32)
    odd = np.frombuffer(bytearray(aligned.nbytes + 1), np.float32, aligned.size, offset=1).reshape(aligned.shape)
    odd[:] = aligned
    assert not odd.flags.aligned
    found = []
    for X in (aligned, odd):
        model = mx.MLP([40, 20, 3], seed=0)
        mx.fit(model, X, np.arange(600) % 3, epochs=2, optimizer=mx.SGD())
        found.append((model.theta, model.outputs(X)))
    for one, other in zip(*found, strict=True):
        assert_array_equal(one, other)
