"""Data that stay in a file train as those in memory do, and only blocks of them are ever in memory."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import sparse

import mlp_xp as mx
from mlp_xp.kernels.cpu import compiled
from mlp_xp.rows.csr import CsrRows
from mlp_xp.rows.opening import open_rows
from mlp_xp.rows.source import InMemory
from mlp_xp.rows.stored import BLOCK, WINDOW, StoredRows, ahead, shuffled_chunks

from .libraries import Later
from .measuring import PEAK_OF_MEMORY

h5py, zarr = Later("h5py"), Later("zarr")
CPU = mx.devices.get_device("cpu")
N, D = 2 * WINDOW + 1500, 12


class Source:
    """What a user may have: rows by slices, and nothing else."""

    def __init__(self, X):
        self.X, self.shape, self.dtype, self.longest, self.read = X, X.shape, X.dtype, 0, 0

    def __getitem__(self, rows):
        assert type(rows) is slice
        assert rows.step is None
        self.longest = max(self.longest, rows.stop - rows.start)
        self.read += rows.stop - rows.start
        return self.X[rows].copy()


class Failing(Source):
    """From some moment on, its last rows cannot be read."""

    fails = False

    def __getitem__(self, rows):
        if self.fails and rows.stop > WINDOW + BLOCK:
            raise OSError("the disk is gone")
        return super().__getitem__(rows)


def draw(dtype="uint8", n=N, zeros=0.7, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.integers(1, 256, (n, D)) * (rng.random((n, D)) >= zeros)
    return X.astype(dtype) if dtype == "uint8" else (X / 256).astype(dtype), rng.integers(0, 3, n)


def mapped(path, X):
    np.save(path, X)
    return np.load(path, mmap_mode="r")


def trained(X, y, **settings):
    model = mx.MLP([D, 9, 3], activation="tanh", seed=1)
    settings = {"epochs": 2, "optimizer": mx.SGD(lr=0.1, momentum=0.5)} | settings
    mx.fit(model, X, y, **settings)
    return model.theta


def in_chunks(epoch):
    """Return the order of rows in a file, for data in memory."""
    return shuffled_chunks(1, epoch, N)


def trained_in_order(X, y, batch_size):
    model, optimizer = mx.MLP([D, 9, 3], activation="tanh", seed=1), mx.SGD(lr=0.1, momentum=0.5)
    settings = {"epochs": 2, "batch_size": batch_size, "order": in_chunks, "plan": own_plan()}
    for _ in mx.epochs(model, X, y, optimizer=optimizer, **settings):
        pass
    return model.theta


def own_plan():
    """Return the plan that rows in a file have, for data in memory: without the compiled library, the dense one."""
    return "auto" if compiled.library() else "dense"


# ------------------------------------------------------------------------------------------------------ the same bits


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("zeros", [0, 0.7], ids=["dense", "sparse"])
@pytest.mark.parametrize("batch_size", [None, 100])
def test_a_map_trains_in_place_with_the_bits_of_an_array(tmp_path, cpu_engine, dtype, zeros, batch_size):
    X, y = draw(dtype, zeros=zeros)
    M = mapped(tmp_path / "X.npy", X)
    rows = mx.MLP([D, 9, 3]).open(M)
    assert np.shares_memory(rows.block(0, N), M)
    assert_array_equal(trained(M, y, batch_size=batch_size), trained(X, y, batch_size=batch_size, plan=own_plan()))


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", ">f4"])
def test_blocks_make_a_full_batch_with_the_bits_of_an_array(cpu_engine, dtype):
    X, y = draw(dtype)
    source = Source(X)
    assert_array_equal(trained(source, y), trained(X, y, plan=own_plan()))
    assert source.longest <= WINDOW


@pytest.mark.parametrize("batch_size", [1000, 77, WINDOW, WINDOW + 1, N])
def test_mini_batches_from_blocks_have_the_bits_of_an_array_in_their_order(cpu_engine, batch_size):
    X, y = draw()
    source = Source(X)
    assert_array_equal(trained(source, y, batch_size=batch_size), trained_in_order(X, y, batch_size))
    assert source.longest <= BLOCK


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_no_bit(threads):
    X, y = draw()
    assert_array_equal(trained(Source(X), y, threads=threads), trained(X, y, plan=own_plan()))


def test_weights_are_those_of_the_rows_in_their_order(cpu_engine):
    X, y = draw()
    weights, thetas = np.random.default_rng(1).random(len(X)), []
    for data in (Source(X), X):
        model, settings = mx.MLP([D, 3], seed=1), {"weights": weights, "plan": own_plan()}
        if data is X:
            settings["order"] = in_chunks
        for _ in mx.epochs(model, data, y, epochs=2, batch_size=300, **settings):
            pass
        thetas.append(model.theta)
    assert_array_equal(*thetas)


@pytest.mark.needs("compiled")
@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_rows_are_marked_as_they_are_taken_with_the_same_bits(monkeypatch, kind):
    X, y = draw(kind)
    for batch_size in (None, 64):
        kept = trained(X, y, batch_size=batch_size, plan="sparse")
        monkeypatch.setattr("mlp_xp.engines.compiled.MARKED", 0)
        assert_array_equal(trained(X, y, batch_size=batch_size, plan="sparse"), kept)
        monkeypatch.undo()


def test_a_model_predicts_and_scores_rows_in_a_file(tmp_path):
    X, y = draw("float64")
    model = mx.MLP([D, 9, 3], seed=1)
    for data in (mapped(tmp_path / "X.npy", X), Source(X)):
        assert_array_equal(model.predict(data), model.predict(X))
        assert model.evaluate(data, y) == model.evaluate(X, y)


@pytest.mark.parametrize("device", ["strict", "torch", "jax", "cuda"])
@pytest.mark.parametrize("batch_size", [None, 77])
def test_other_devices_have_the_bits_of_an_array(tmp_path, monkeypatch, device, batch_size):
    for name, rows in (("BLOCK", 64), ("WINDOW", 512)):
        monkeypatch.setattr(f"mlp_xp.rows.stored.{name}", rows)
    X, y = draw(n=600)
    source = Source(X)
    for data in (mapped(tmp_path / "X.npy", X), source):
        thetas = []
        for one in (data, X):
            model = mx.MLP([D, 4, 3], device=device, seed=1)
            order = {"order": lambda epoch: shuffled_chunks(1, epoch, 600)} if data is source and batch_size else {}
            for _ in mx.epochs(model, one, y, epochs=2, batch_size=batch_size, **order):
                pass
            thetas.append(model.device.to_host(model.theta))
        assert_array_equal(*thetas)


@pytest.mark.parametrize("device", ["strict", "torch"])
@pytest.mark.parametrize("batch_size", [None, 1000])
def test_a_library_on_the_processor_never_has_all_rows(monkeypatch, device, batch_size):
    monkeypatch.setattr("mlp_xp.devices.base.Device.shard_rows", 1024)
    X, y = draw("float32")
    source = Source(X)
    mx.fit(mx.MLP([D, 4, 3], device=device, seed=1), source, y, epochs=1, batch_size=batch_size)
    assert source.longest <= BLOCK


@pytest.mark.needs("h5py")
@pytest.mark.parametrize("chunks", [None, (1000, D), (7, 5)])
def test_hdf5(tmp_path, chunks):
    X, y = draw()
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file.create_dataset("X", data=X, chunks=chunks)
    with h5py.File(tmp_path / "data.h5") as file:
        assert_array_equal(trained(file["X"], y), trained(X, y, plan=own_plan()))
        assert_array_equal(trained(file["X"], y, batch_size=100), trained_in_order(X, y, 100))


@pytest.mark.needs("zarr")
@pytest.mark.usefixtures("zarr_threads")
def test_zarr(tmp_path):
    X, y = draw("float32")
    array = zarr.create_array(str(tmp_path / "X.zarr"), shape=X.shape, dtype=X.dtype, chunks=(1000, D))
    array[:] = X
    assert_array_equal(trained(array, y), trained(X, y, plan=own_plan()))
    assert_array_equal(trained(array, y, batch_size=100), trained_in_order(X, y, 100))


# ---------------------------------------------------------------------------------------------------- order, reading


@given(st.integers(1, 3 * WINDOW + 5), st.integers(0, 5), st.integers(1, 9))
def test_the_order_is_a_permutation_whose_windows_are_whole_blocks(n, seed, epoch):
    order = shuffled_chunks(seed, epoch, n)
    assert_array_equal(np.sort(order), np.arange(n))
    assert_array_equal(order, shuffled_chunks(seed, epoch, n))
    for i in range(0, n, WINDOW):
        window = np.sort(order[i : i + WINDOW])
        assert len(np.unique(window // BLOCK)) == -(-len(window) // BLOCK)
    if n > BLOCK:
        assert (order != shuffled_chunks(seed, epoch + 1, n)).any()


@given(st.integers(1, 9000), st.integers(1, 12), st.data())
def test_rows_come_in_whole_batches_in_order(batch_size, first, data):
    n = data.draw(st.integers(1, N))
    X = np.arange(n, dtype=np.float32)[:, None]
    source = Source(X)
    rows, order = StoredRows(source, 1, "float32"), shuffled_chunks(0, 1, n)
    first = min(first, (n - 1) // batch_size) * batch_size
    source.read = 0
    pieces = list(rows.in_order(order, first, batch_size))
    assert source.read <= n - first // WINDOW * WINDOW  # each block once
    assert_array_equal(np.concatenate(pieces)[:, 0], order[first:])
    assert all(len(piece) % batch_size == 0 for piece in pieces[:-1])
    assert all(len(piece) < WINDOW + batch_size for piece in pieces)


def test_any_rows_can_be_taken(rng):
    X = rng.standard_normal((3000, D)).astype(np.float32)
    rows, index = StoredRows(Source(X), D, "float32"), rng.integers(0, 3000, 500)
    assert_array_equal(rows.take(index), X[index])


@pytest.mark.parametrize("kind", ["array", "map", "source", "CSR"])
def test_a_part_is_rows_like_any_other(kind, tmp_path, rng):
    X = draw("float32", 3000)[0]
    rows = {
        "array": lambda: InMemory(X),
        "map": lambda: StoredRows(mapped(tmp_path / "X.npy", X), D, "float32"),
        "source": lambda: StoredRows(Source(X), D, "float32"),
        "CSR": lambda: CsrRows(sparse.csr_array(X), "float32"),
    }[kind]()
    part, of_part = rows.part(500, 2900), rows.part(500, 2900).part(100, 2000)
    for some, want in ((part, X[500:2900]), (of_part, X[600:2500]), (rows.part(7, 8), X[7:8])):
        assert (type(some), some.shape, some.dtype, some.pixels) == (type(rows), want.shape, "f", False)
        assert_array_equal(some.block(0, 5000), want)
        index = rng.integers(0, len(want), 50)
        assert_array_equal(some.take(index), want[index])
        assert_array_equal(some.to(CPU).block(1, 3), want[1:3])
    assert_array_equal(rows.block(0, 3000), X)


def test_the_next_item_is_made_while_one_is_in_use():
    made = [threading.Event() for _ in range(3)]

    def items():
        for i, event in enumerate(made):
            event.set()
            yield i

    reader = ahead(items())
    assert next(reader) == 0
    assert made[1].wait(10)
    assert not made[2].is_set()
    reader.close()
    assert list(ahead([])) == []


@pytest.mark.parametrize("batch_size", [None, 100])
def test_a_run_from_a_file_goes_on_in_the_middle_of_an_epoch(cpu_engine, batch_size):
    X, y = draw()
    straight = trained(Source(X), y, batch_size=batch_size)
    model = mx.MLP([D, 9, 3], activation="tanh", seed=1)
    settings = {"optimizer": mx.SGD(lr=0.1, momentum=0.5), "epochs": 2, "batch_size": batch_size}
    states = mx.epochs(model, Source(X), y, pause=lambda: True, **settings)
    snapshot = next(state for state in states if state.updates >= (90 if batch_size else 1)).snapshot()
    states.close()
    for _ in mx.epochs(model, Source(X), y, start=snapshot, **settings):
        pass
    assert_array_equal(model.theta, straight)


# ------------------------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_bad_number_in_the_last_block_is_found_before_training(tmp_path, value):
    X, y = draw("float64")
    X[-1, -1] = value
    model = mx.MLP([D, 9, 3])
    before = model.theta.copy()
    for data in (Source(X), mapped(tmp_path / "X.npy", X)):
        with pytest.raises(ValueError, match=r"NaN or infinity|do not fit float32"):
            mx.fit(model, data, y)
    assert_array_equal(model.theta, before)


@pytest.mark.parametrize("batch_size", [None, 100])
def test_a_source_that_fails_in_an_epoch_leaves_the_last_parameters(cpu_engine, batch_size):
    X, y = draw("float32")
    model, source, kept = mx.MLP([D, 9, 3], seed=1), Failing(X), []

    def fail_from_now_on(state):
        source.fails = True
        kept.append(state.model.theta.copy())

    with pytest.raises(OSError, match="the disk is gone"):
        mx.fit(model, source, y, batch_size=batch_size, plan="dense", callbacks=[fail_from_now_on])
    assert_array_equal([model.theta], kept)


def test_a_source_that_ends_too_early_is_refused():
    source = Source(draw("float32")[0])
    source.shape = (N + 5, D)
    with pytest.raises(ValueError, match="cut short"):
        mx.fit(mx.MLP([D, 3]), source, np.zeros(N + 5, int))


@pytest.mark.parametrize(
    ("announced", "convert"),
    [
        ("float32", lambda X: X.astype(np.float64)),
        ("float32", np.ndarray.tolist),
        ("float64", lambda X: X.astype(np.float32)),
        ("uint8", lambda X: X.astype(np.int64)),
    ],
)
def test_a_source_that_breaks_its_dtype_is_refused(announced, convert):
    class Liar(Source):
        def __getitem__(self, rows):
            return convert(super().__getitem__(rows))

    with pytest.raises(ValueError, match=f"rows 0 to 1024 of X came as .*, and X announces {announced}"):
        mx.MLP([D, 3]).open(Liar(draw(announced)[0]))
    if convert is not np.ndarray.tolist:
        mx.MLP([D, 3]).open(Source(convert(draw(announced)[0])))


def test_wrong_shapes_and_types_are_refused_like_those_of_arrays(tmp_path):
    model = mx.MLP([D, 3])
    for X in (np.zeros((5, D + 1)), np.zeros((5, 4, 3)), np.zeros((0, D))):
        for data in (Source(X), np.memmap(tmp_path / "X", X.dtype, "w+", shape=X.shape) if X.size else X):
            with pytest.raises(ValueError, match=r"X must have the shape \(n, 12\) with n >= 1, got"):
                model.open(data)
    with pytest.raises(ValueError, match="real numbers, got dtype complex128"):
        model.open(Source(np.zeros((5, D), complex)))
    with pytest.raises(ValueError, match="would copy rows that stay in a file"):
        mx.fit(model, Source(np.ones((5, D))), [0, 1, 2, 0, 1], plan="zero")


def test_warnings_are_those_for_arrays():
    model = mx.MLP([D, 3])
    with pytest.warns(UserWarning, match="uint8 without a value above 1"):
        model.open(Source(np.eye(D, dtype=np.uint8)))
    model.pixels = True
    with pytest.warns(UserWarning, match="trained on pixels") as caught:
        model.open(Source(np.full((3 * BLOCK, D), 7)))
    assert len(caught) == 1
    with warnings.catch_warnings():
        model.open(Source(np.eye(D, dtype=np.uint8)))


def test_a_file_that_changed_is_not_resumed(tmp_path):
    X, y = draw()
    for data in (mapped(tmp_path / "X.npy", X), Source(X)):
        folder = tmp_path / type(data).__name__
        mx.fit(mx.MLP([D, 3]), data, y, epochs=1, checkpoint=mx.Checkpoint(folder))
        mx.fit(mx.MLP([D, 3]), X, y, epochs=2, checkpoint=mx.Checkpoint(folder, resume=True))  # the same data
        changed = X.copy()
        changed[N // 2, 3] ^= 1
        with pytest.raises(ValueError, match="data"):
            mx.fit(mx.MLP([D, 3]), Source(changed), y, epochs=3, checkpoint=mx.Checkpoint(folder, resume=True))


def test_arrays_and_tables_are_not_taken_for_files(tmp_path):
    for X in (np.ones((4, D)), [[1.0] * D] * 4):
        assert not isinstance(open_rows(X, D, CPU, "float32"), StoredRows)
    fortran = np.memmap(tmp_path / "X", np.float32, "w+", shape=(50, D), order="F")
    fortran[:] = np.random.default_rng(0).random((50, D))
    rows = open_rows(fortran, D, CPU, "float32")
    assert rows.in_place is None
    assert_array_equal(rows.block(3, 9), fortran[3:9])


# ------------------------------------------------------------------------------------------------------------- memory

TRAINED = """
import sys
import numpy as np
import mlp_xp as mx

path, kind, batch_size = sys.argv[1], sys.argv[2], int(sys.argv[3]) or None
X, y = np.load(path, mmap_mode="r"), np.arange(260_000) % 10

class Source:
    shape, dtype = X.shape, X.dtype
    def __getitem__(self, rows):
        return X[rows].copy()

mx.fit(mx.MLP([784, 10]), X[:2000], y[:2000], epochs=1)
with Peak() as peak:
    mx.fit(mx.MLP([784, 20, 10]), X if kind == "map" else Source(), y, epochs=1, batch_size=batch_size)
print(peak.bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, which tells anonymous memory")
@pytest.mark.parametrize("batch_size", [0, 512])
def test_little_of_a_large_file_is_ever_in_memory(tmp_path, batch_size):
    X = np.lib.format.open_memmap(tmp_path / "X.npy", "w+", np.uint8, (260_000, 784))  # 204 MB
    X[:, ::3] = np.arange(262, dtype=np.uint8)
    X.flush()
    del X
    for kind in ("map", "source"):
        command = [sys.executable, "-c", PEAK_OF_MEMORY + TRAINED, tmp_path / "X.npy", kind, str(batch_size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert 1e6 < int(done.stdout) < 60e6


def test_a_run_is_not_resumed_with_rows_in_another_order(tmp_path, rng):
    """Blocks of a file are shuffled by rules of their own."""
    X, y = rng.standard_normal((300, 5)), rng.integers(0, 3, 300)
    np.save(tmp_path / "X.npy", X)
    stored = np.load(tmp_path / "X.npy", mmap_mode="r")  # float64, and the model's are float32: read in blocks
    for first, then in ((X, stored), (stored, X)):
        folder = tmp_path / ("memory" if first is X else "file")
        mx.fit(mx.MLP([5, 3]), first, y, epochs=1, batch_size=16, checkpoint=mx.Checkpoint(folder))
        with pytest.raises(ValueError, match="order: "):
            mx.fit(mx.MLP([5, 3]), then, y, epochs=2, batch_size=16, checkpoint=mx.Checkpoint(folder, resume=True))


def test_a_run_in_memory_goes_on_from_a_map(cpu_engine, tmp_path, rng):
    """Its plan would copy the file, so another one is made."""
    n, widths = 5000, rng.integers(1, 60, (5000, 1))
    X = np.where(np.arange(60) < widths, rng.standard_normal((n, 60)), 0).astype(np.float32) + 1
    np.save(tmp_path / "X.npy", X)
    y, kinds = rng.integers(0, 3, n), []
    for epochs, rows, resume in ((8, X, False), (9, np.load(tmp_path / "X.npy", mmap_mode="r"), True)):
        mx.fit(
            mx.MLP([60, 3]), rows, y, epochs=epochs, optimizer=mx.SGD(0.01),
            callbacks=[lambda state: kinds.append(state.plan.kind)],
            checkpoint=mx.Checkpoint(tmp_path / "run", resume=resume),
        )  # fmt: skip
    assert kinds == ["ragged"] * 8 + ["dense"]
