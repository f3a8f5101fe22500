"""Devices: what each offers, what it does to the process, and that nobody above them asks which library it is."""

from __future__ import annotations

import ast
import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from threadpoolctl import threadpool_limits

import mlp_xp as mx
from mlp_xp import devices, train
from mlp_xp.devices import blas_threads, get_device, numpy_
from mlp_xp.devices.blas_threads import blas_libraries, default_threads, one_blas_thread
from mlp_xp.engines import Done, Setup, make_engine
from mlp_xp.engines.host import HostEngine
from mlp_xp.kernels.cpu import blas
from mlp_xp.rows.plan import Plan

FOLDER = Path(mx.__file__).parent


def counts():
    return [library.get() for library in blas_libraries()]


@pytest.fixture
def two_threads():
    """Give BLAS two threads, on whatever machine."""
    before = counts()
    for library in blas_libraries():
        library.set(2)
    yield
    for library, threads in zip(blas_libraries(), before, strict=True):
        library.set(threads)


@pytest.fixture(params=["cpu", "torch", "jax", "cuda", "strict"])
def device(request):
    return get_device(request.param)


# ----------------------------------------------------------------------------------------------------------------------
# One class per library


def compares_libraries(source):
    """Return whether a source asks a device which library it is, by attribute or by comparing a string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node).endswith("device.library"):
            return True
        if isinstance(node, ast.Compare | ast.Match):
            words = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            if words & {*devices.DEVICES, "cupy", "array_api_strict"}:
                return True
    return False


def test_nothing_above_devices_compares_a_librarys_name():
    assert compares_libraries("if model.device.library in names: pass")
    assert compares_libraries("x = 1 if device.name.partition(':')[0] == 'cuda' else 2")
    names = {path.relative_to(FOLDER).as_posix(): path for path in FOLDER.rglob("*.py")}
    above = {name for name in names if not name.startswith("devices/")}
    assert [name for name in sorted(above) if compares_libraries(names[name].read_text("utf-8"))] == []


@pytest.mark.parametrize("name", devices.DEVICES)
def test_each_device_says_all_that_is_asked_of_it(name):
    kind = devices.DEVICES[name]
    assert kind.spellings[0] == name
    assert kind.title
    assert kind.namespace
    assert kind.remedy or name == "cpu"
    assert {"fp32", "fp64"} <= set(kind.precisions) <= set(devices.PRECISIONS)
    assert 0 < kind.block_rows <= kind.shard_rows
    assert kind.plans_on_host <= (kind.epochs_to_repay_plan is not None)


def test_a_new_device_is_a_class_and_a_line(monkeypatch):
    class Plain(devices.Device):
        spellings, title, namespace = ("plain", "plain:N"), "plain NumPy", "array_api_compat.numpy"

    monkeypatch.setitem(devices.DEVICES, "plain", Plain)
    model = mx.MLP([2, 3, 2], device="plain:3", seed=1)
    assert type(model.device) is Plain
    X, y = mx.datasets.xor()
    wanted = mx.fit(mx.MLP([2, 3, 2], seed=1), X, y, epochs=5).loss
    np.testing.assert_allclose(mx.fit(model, X, y, epochs=5).loss, wanted, rtol=1e-6)
    with pytest.raises(ValueError, match=r"choose from 'cpu', .* 'strict', 'plain' and 'plain:N'"):
        get_device("nowhere")


def test_a_device_travels_by_its_name(device):
    assert copy.copy(device) is device
    assert copy.deepcopy(device) is device
    assert pickle.loads(pickle.dumps(device)) == device


def test_arrays_come_and_go(device):
    x = np.arange(6.0).reshape(2, 3)
    with device.active():
        there = device.asarray(x)
        assert device.asarray(there) is there
        assert_array_equal(device.to_host(there), x)
        assert device.to_host(device.asarray(x, "float32")).dtype == np.float32
        assert not device.to_host(device.zeros((2,), "float32")).any()
        device.synchronize()


def test_a_number_keeps_its_shape(device):
    for number in (1.5, np.float64(1.5), np.array(1.5)):
        there = device.asarray(number, "float32")
        assert there.shape == ()
        assert float(there) == 1.5


def test_only_what_is_not_the_processor_has_a_name(device):
    assert (device.hardware() is None) == (device.name != "cuda")


def test_map_keeps_the_order(device):
    assert device.map(lambda x: x * x, range(100)) == [x * x for x in range(100)]
    assert device.map(str, []) == []


@pytest.mark.needs("jax")
def test_float64_on_jax_also_with_a_device_that_was_made_for_float32():
    code = "from mlp_xp import MLP; from mlp_xp.devices import get_device\nimport copy, pickle\n"
    code += (
        "m = MLP([2, 2], dtype='float64', device=get_device('jax'))\nprint(m.theta.dtype, m.outputs([[1, 2]]).dtype)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["float64", "float64"]


@pytest.mark.needs("jax")
def test_jax_computes_where_its_default_is():
    code = """
import jax, mlp_xp as mx
first, second = jax.devices()
model = mx.MLP([4, 3, 2], device="jax")
for default, here, there in ((first, first, second), (second, second, first), ("cpu", first, second)):
    with jax.default_device(default):
        model.theta = jax.device_put(model.theta, here)
        try:
            model.theta = jax.device_put(model.theta, there)
        except TypeError as error:
            print("refused" if "on device" in str(error) else error)
"""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused"] * 3


@pytest.mark.parametrize("rows", [1, 255, 256, 257, 1000, 5000, 100_000])
def test_shards_make_up_the_rows_and_depend_on_nothing_else(device, rows, monkeypatch):
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(numpy_, "default_threads", lambda threads=threads: threads)
        monkeypatch.setattr(numpy_, "_WORTH_THREADS", 0)
        shards = []
        device.by_rows(shards.append, rows)
        found.append(sorted((shard.start, shard.stop) for shard in shards))
    assert found[0] == found[1]
    assert [i for start, stop in found[0] for i in (start, stop)][::2] == [0, *(stop for _, stop in found[0])][:-1]
    assert found[0][-1][1] == rows
    assert max(stop - start for start, stop in found[0]) <= device.shard_rows
    assert all(stop - start >= 256 for start, stop in found[0][:-1])  # with fewer, starting takes longer than the work


def test_shards_get_smaller_until_they_fit(device):
    taken = []

    def take(rows):
        if rows.stop - rows.start > 300:
            raise MemoryError
        taken.append((rows.start, rows.stop))

    device.by_rows(take, 3000)
    assert sum(stop - start for start, stop in taken) == 3000


def test_a_shard_of_the_least_rows_is_not_cut_again(device):
    tried = []

    def refuse(rows):
        tried.append(rows.stop - rows.start)
        raise MemoryError

    with pytest.raises(MemoryError):
        device.by_rows(refuse, 1024)
    assert tried[-1] == min(tried) == 256


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("device", ["cpu", "torch", "jax", "cuda", "strict"])
def test_a_model_goes_with_its_last_reference(device, trained):
    """Not when Python next looks for cycles: until then it would keep its data and workspaces on a GPU."""
    X, y = mx.datasets.moons(60, seed=1)
    model = mx.MLP([2, 4, 2], device=device)
    X, y = (model.device.asarray(part) for part in (X.astype(np.float32), y))
    gc.collect()
    gc.disable()
    try:
        if trained:
            mx.fit(model, X, y, epochs=3, validation=(X, y), tol=0.0)
            mx.fit(model, X, y, epochs=3, batch_size=20, optimizer=mx.Adam())
        model.predict(X)
        model.score(X, y)
        model.loss_and_gradient(X, y)
        gone = weakref.ref(model)
        del model
        assert gone() is None
    finally:
        gc.enable()


# ----------------------------------------------------------------------------------------------------------------------
# A GPU that is not the current one: CuPy works on the thread's current device, whatever device its arrays are on


def train_with_everything(device, batch_size, plan, folder):
    """Train in two parts with all that looks at arrays of the device; return the history and the model."""
    X, y = mx.datasets.moons(60, seed=1)
    settings = {"optimizer": mx.Adam(lr=0.05, l2=0.01), "batch_size": batch_size, "plan": plan, "validation": (X, y)}
    for epochs in (2, 4):
        model = mx.MLP([2, 4, 2], "tanh", dtype="float64", device=device, seed=1)
        watching = [mx.EarlyStopping(1e-12, monitor="gradient"), lambda state: float(state.gradient_norm) < 0]
        checkpoint = mx.Checkpoint(folder, resume=epochs > 2)
        history = mx.fit(model, X, y, epochs=epochs, callbacks=watching, tol=0.0, checkpoint=checkpoint, **settings)
    return history, model


@pytest.mark.gpu
@pytest.mark.parametrize(("batch_size", "plan"), [(None, "dense"), (None, "ragged"), (25, "zero")])
def test_a_training_on_the_second_gpu_needs_no_current_device(batch_size, plan, second_gpu, tmp_path):
    import cupy

    wanted, twin = train_with_everything("cpu", batch_size, plan, tmp_path / "cpu")
    with cupy.cuda.Device(0):
        taken = cupy.get_default_memory_pool().used_bytes()
        found, model = train_with_everything(second_gpu, batch_size, plan, tmp_path / "gpu")
        assert cupy.cuda.Device().id == 0
        assert cupy.get_default_memory_pool().used_bytes() == taken
    for name in ("loss", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-12)
    np.testing.assert_allclose(model.device.to_host(model.theta), twin.theta, rtol=1e-9, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [None, 25])
@pytest.mark.parametrize("make", [HostEngine, make_engine], ids=["host", "cuda"])
def test_every_engine_works_on_the_second_gpu(make, batch_size, second_gpu):
    X, y = mx.datasets.moons(60, seed=1)
    found = []
    for device, engine_of in ((second_gpu, make), ("cpu", make_engine)):
        model = mx.MLP([2, 4, 2], "tanh", dtype="float64", device=device, seed=1)
        plan = Plan("dense", "asked for", 2)
        setup = Setup(model, model.objective, mx.Adam(), model.open(X), model.targets(y, 60), batch_size, plan, 1)
        host = model.device.to_host
        with engine_of(setup) as engine:
            total = engine.grad_sum(model.theta)
            engine.begin(model.theta, 1, 0.001, Done())
            engine.advance(None)
            state = {name: host(value) if hasattr(value, "dtype") else value for name, value in engine.state().items()}
            engine.restore(state)
            found.append([float(total.loss), *map(host, (total.grad, engine.theta(), engine.state()["square"]))])
    for got, want in zip(*found, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-14)


@pytest.mark.gpu
def test_two_names_of_one_gpu_are_one_place(rng):
    models = [mx.MLP([2, 3, 2], device=name) for name in ("cuda", "cuda:0")]
    rows = models[0].open(models[0].device.asarray(rng.standard_normal((5, 2))))
    assert_array_equal(*(model.outputs(rows) for model in models))


@pytest.mark.gpu
def test_rows_of_another_gpu_are_refused(second_gpu, rng):
    first, second = (mx.MLP([2, 3, 2], device=name) for name in ("cuda:0", second_gpu))
    rows = first.open(first.device.asarray(rng.standard_normal((5, 2))))
    with pytest.raises(TypeError, match="the rows are on device 'cuda:0', and the model computes on 'cuda:1'; open"):
        second.open(rows)


# ----------------------------------------------------------------------------------------------------------------------
# The threads of BLAS, one number for the process


@pytest.mark.usefixtures("two_threads")
def test_blas_has_one_thread_inside_and_its_own_number_outside():
    before = counts()
    with get_device("cpu").active():
        assert set(counts()) <= {1}
        with get_device("cpu").active():
            assert set(counts()) <= {1}
        assert set(counts()) <= {1}
    assert counts() == before


@pytest.mark.usefixtures("two_threads")
def test_the_number_comes_back_whatever_the_order_in_which_users_leave():
    before = counts()
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        users = [get_device("cpu").active() for _ in order]
        for user in users:
            user.__enter__()
        for i in order:
            assert set(counts()) <= {1}
            users[i].__exit__(None, None, None)
        assert counts() == before


@pytest.mark.usefixtures("two_threads")
def test_the_number_comes_back_after_an_error():
    before = counts()
    with pytest.raises(ZeroDivisionError), one_blas_thread:
        raise ZeroDivisionError
    assert counts() == before


@pytest.mark.parametrize("batch_size", [None, 64])
@pytest.mark.usefixtures("two_threads")
def test_two_trainings_on_threads_leave_blas_as_it_was(batch_size, rng):
    before, X, y = counts(), rng.standard_normal((3000, 20)).astype("f4"), rng.integers(0, 3, 3000)

    def work(seed):
        mx.fit(mx.MLP([20, 10, 3], seed=seed), X, y, epochs=3 + seed, batch_size=batch_size, validation=(X, y))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts() == before


@pytest.mark.usefixtures("two_threads")
def test_full_batches_and_predictions_at_the_same_time_have_the_bits_they_have_alone(rng):
    X, y = rng.random((3000, 100)).astype("f4"), rng.integers(0, 3, 3000)

    def work(seed):
        model = mx.MLP([100, 200, 3], seed=seed)
        history = mx.fit(model, X, y, epochs=3 + seed, validation=(X[:300], y[:300]))
        return history.loss, history.val_loss, model.theta.tobytes()

    found, wanted = {}, [work(seed) for seed in range(4)]
    threads = [threading.Thread(target=lambda seed=seed: found.update({seed: work(seed)})) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(4)] == wanted


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.usefixtures("two_threads")
def test_suspended_trainings_closed_in_any_order_leave_blas_as_it_was(first, rng):
    before, X, y = counts(), rng.standard_normal((300, 20)), rng.integers(0, 3, 300)
    states = [mx.epochs(mx.MLP([20, 10, 3]), X, y, batch_size=64, pause=lambda: True) for _ in "ab"]
    for each in states:
        next(each)
    states[first].close()
    states[1 - first].close()
    assert counts() == before


@pytest.mark.usefixtures("two_threads")
def test_abandoned_trainings_leave_blas_as_it_was(rng):
    before, X, y = counts(), rng.standard_normal((300, 20)), rng.integers(0, 3, 300)
    for _ in range(3):
        next(mx.epochs(mx.MLP([20, 10, 3]), X, y, batch_size=64, pause=lambda: True))
    gc.collect()
    assert counts() == before


@pytest.mark.usefixtures("two_threads")
def test_many_threads_that_come_and_go_leave_blas_as_it_was():
    before, wrong = counts(), []

    def work():
        for _ in range(300):
            with one_blas_thread:
                if set(counts()) - {1}:
                    wrong.append(counts())

    threads = [threading.Thread(target=work) for _ in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    assert counts() == before


@pytest.mark.usefixtures("two_threads")
def test_predictions_leave_blas_as_it_was(rng):
    before, model, X = counts(), mx.MLP([20, 10, 3]), rng.standard_normal((3000, 20))
    model.evaluate(X, rng.integers(0, 3, 3000))
    with pytest.raises(ValueError, match="X must have the shape"):
        model.predict(X[:, :3])
    model.loss_and_gradient(X, rng.integers(0, 3, 3000))
    assert counts() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_while_others_hold_the_lock_can_train():
    code = """
import os, threading
import numpy as np
import mlp_xp as mx
from mlp_xp.devices.blas_threads import one_blas_thread
held = threading.Event()
def hold():
    with one_blas_thread._lock:
        held.set()
        threading.Event().wait(20)
threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if child == 0:
    mx.MLP([2, 2]).predict(np.zeros((3, 2)))
    os._exit(7)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60).returncode == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("inside", [False, True])
def test_a_forked_child_has_the_contexts_of_its_own_thread_alone(inside):
    """Others that were in one do not leave it in the child; whoever forks inside leaves it there, too."""
    code = f"""
import os, threading
from contextlib import ExitStack
from mlp_xp.devices.blas_threads import blas_libraries, one_blas_thread
for library in blas_libraries():
    library.set(2)
entered = threading.Event()
def stay():
    with one_blas_thread:
        entered.set()
        threading.Event().wait(20)
threading.Thread(target=stay, daemon=True).start()
entered.wait()
with ExitStack() as stack:
    if {inside}:
        stack.enter_context(one_blas_thread)
    child = os.fork()
    if child == 0:
        assert one_blas_thread._users == {int(inside)}
        assert all(library.get() == {1 if inside else 2} for library in blas_libraries())
if child == 0:
    assert all(library.get() == 2 for library in blas_libraries())
    os._exit(7)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60).returncode == 7


class OtherBlas:
    """A BLAS library as threadpoolctl presents one that is not NumPy's own OpenBLAS."""

    def __init__(self, internal_api, threads=4, layer="", symbols=()):
        self.internal_api, self.threading_layer, self.filepath = internal_api, layer, f"/usr/lib/lib{internal_api}.so"
        self.threads = threads
        self.dynlib = SimpleNamespace(**dict.fromkeys(symbols, self.get_num_threads))

    def get_num_threads(self):
        return self.threads

    def set_num_threads(self, n):
        self.threads = n


OTHERS = {
    "none that can be told, such as Accelerate": [],
    "MKL": [OtherBlas("mkl")],
    "OpenBLAS of the system, with OpenMP": [OtherBlas("openblas", layer="openmp")],
    "OpenBLAS without known names": [OtherBlas("openblas")],
    "BLIS, and one without a number": [OtherBlas("blis"), OtherBlas("flexiblas", threads=None)],
}


@pytest.fixture(params=OTHERS)
def other_blas(request, monkeypatch):
    """Pretend that NumPy uses another BLAS."""
    found = OTHERS[request.param]

    class Controller:
        def select(self, user_api):
            assert user_api == "blas"
            return SimpleNamespace(lib_controllers=found)

    monkeypatch.setattr(blas_threads, "ThreadpoolController", Controller)
    for function in (blas_threads.blas_libraries, blas._numpy_blas):
        function.cache_clear()
    yield found
    monkeypatch.undo()
    for function in (blas_threads.blas_libraries, blas._numpy_blas):
        function.cache_clear()


def test_a_blas_beside_numpys_own_is_left_alone(monkeypatch):
    own, beside = OtherBlas("openblas"), OtherBlas("mkl")
    own.filepath = "/site-packages/numpy.libs/libopenblas.so"
    controller = SimpleNamespace(select=lambda user_api: SimpleNamespace(lib_controllers=[beside, own]))
    monkeypatch.setattr(blas_threads, "ThreadpoolController", lambda: controller)
    assert [library.controller for library in blas_libraries.__wrapped__()] == [own]


def test_another_blas_trains_and_predicts_alike(other_blas, rng):
    X, y = rng.standard_normal((3000, 20)), rng.integers(0, 3, 3000)
    before, seen = [library.threads for library in other_blas], []
    model, again = (mx.MLP([20, 100, 3], dtype="float64", seed=1) for _ in "ab")
    for batch_size, same in ((None, model), (200, again)):
        mx.fit(same, X, y, epochs=3, batch_size=batch_size, callbacks=[lambda state: seen.append(state.loss) and None])
    with get_device("cpu").active():
        assert {library.threads for library in other_blas} <= {1, None}
    assert [library.threads for library in other_blas] == before
    assert np.isfinite(seen).all()
    assert model.outputs(X).shape == (3000, 3)
    if not other_blas:
        assert default_threads() >= 1


def test_threads_of_a_blas_with_openmp_are_limited_one_by_one(monkeypatch):
    library, seen = OtherBlas("openblas", layer="openmp"), []
    library.set_num_threads = lambda n: seen.append((threading.current_thread(), n))
    monkeypatch.setattr(blas_threads, "blas_libraries", lambda: (blas_threads._library(library),))
    monkeypatch.setattr(numpy_, "default_threads", lambda: 3)
    monkeypatch.setattr(numpy_, "_WORTH_THREADS", 0)
    pause = threading.Event()
    get_device("cpu").map(lambda _: pause.wait(0.05), range(7))
    assert len({thread for thread, n in seen if n == 1}) == len(seen) == 3


# ----------------------------------------------------------------------------------------------------------------------
# How many threads


def forbid(*_, **__):
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("items", [0, 1, 5])
def test_no_thread_is_started_for_one_item_or_where_one_is_allowed(items, monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", forbid)
    monkeypatch.setattr(numpy_, "_WORTH_THREADS", 0)
    monkeypatch.setattr(numpy_, "default_threads", lambda: 8 if items < 2 else 1)
    assert get_device("cpu").map(abs, range(items)) == list(range(items))


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(blas_threads, "blas_libraries", lambda: ())
    monkeypatch.setattr(blas_threads, "_quota", lambda: ())
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.fixture
def eight_cores_without_threads(eight_cores, monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", forbid)
    monkeypatch.setattr(numpy_, "_WORTH_THREADS", 0)


@pytest.mark.usefixtures("eight_cores_without_threads", "numpy_engine")
@pytest.mark.parametrize("batch_size", [None, 500])
def test_no_thread_is_started_in_a_training_with_one(batch_size, rng):
    """Neither by its updates nor by what measures it; afterwards the machine has its cores again."""
    X, y = rng.random((3000, 4)), rng.integers(0, 2, 3000)
    model = mx.MLP([4, 3, 2])
    measured = [mx.callbacks.Evaluation("test", X, y), lambda state: state.model.score(X, y) > 2]
    mx.fit(model, X, y, epochs=2, batch_size=batch_size, threads=1, validation=(X, y), callbacks=measured)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        model.score(X, y)


@pytest.mark.usefixtures("eight_cores_without_threads")
def test_no_thread_is_started_by_a_command_that_is_told_one(tmp_path, rng):
    np.savez(tmp_path / "data.npz", X=rng.random((3000, 4)), y=rng.integers(0, 2, 3000))
    options = ["--data", str(tmp_path / "data.npz"), "--hidden", "3", "--epochs", "2", "--out", str(tmp_path / "run")]
    assert train.main([*options, "--threads", "1", "--quiet"]) == 0


@pytest.mark.usefixtures("eight_cores")
def test_a_limit_on_threads_ends_with_its_block():
    with blas_threads.at_most(3):
        with blas_threads.at_most(None):
            assert default_threads() == 3
        with suppress(ZeroDivisionError), blas_threads.at_most(1):
            assert default_threads() == 1
            raise ZeroDivisionError
        assert default_threads() == 3
    assert default_threads() == 8


def test_no_thread_is_started_for_little_work(monkeypatch, rng):
    monkeypatch.setattr(threading.Thread, "start", forbid)
    monkeypatch.setattr(numpy_, "_WORTH_THREADS", 3600)
    assert mx.MLP([4, 3, 2]).outputs(rng.random((5000, 4))).shape == (5000, 2)


def test_much_work_is_shared(monkeypatch):
    monkeypatch.setattr(numpy_, "_WORTH_THREADS", 0)
    monkeypatch.setattr(numpy_, "default_threads", lambda: 3)
    pause = threading.Event()
    names = get_device("cpu").map(lambda _: (pause.wait(0.02), threading.current_thread().name)[1], range(12))
    assert len(set(names[1:])) == 3
    with pytest.raises(ZeroDivisionError):
        get_device("cpu").map(lambda i: 1 / (5 - i), range(12))


def number_of_threads(**environment):
    code = "from mlp_xp.devices.blas_threads import default_threads; print(default_threads())"
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=kept | environment
    )
    return int(done.stdout)


def test_the_environment_is_heeded():
    if not blas_libraries():
        pytest.skip("NumPy's BLAS cannot be asked for its threads here")
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        assert number_of_threads(**{name: "1"}) == 1
    assert number_of_threads() <= (os.cpu_count() or 1)


@pytest.mark.usefixtures("two_threads")
def test_a_limit_from_before_is_heeded_also_while_we_have_one(monkeypatch):
    if not blas_libraries():
        pytest.skip("NumPy's BLAS cannot be asked for its threads here")
    monkeypatch.setattr(blas_threads, "_quota", lambda: ())
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    with one_blas_thread:
        assert default_threads() == 2
    assert default_threads() == 2
    with threadpool_limits(1):
        assert default_threads() == 1
        with one_blas_thread:
            assert default_threads() == 1


@pytest.mark.parametrize(("text", "threads"), [("3", 3), ("2,4", 2), ("", 8), ("many", 8), ("0", 1), ("99", 8)])
def test_openmps_variable_counts_where_blas_cannot_be_asked(text, threads, monkeypatch):
    monkeypatch.setattr(blas_threads, "blas_libraries", lambda: ())
    monkeypatch.setattr(blas_threads, "_quota", lambda: ())
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert default_threads() == threads


def test_the_affinity_counts(monkeypatch):
    monkeypatch.setattr(blas_threads, "_quota", lambda: (64,))
    monkeypatch.setattr(blas_threads, "blas_libraries", lambda: ())
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6}, raising=False)
    assert default_threads() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # Windows and macOS have none
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert default_threads() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_threads() == 1


QUOTAS = {
    "none": ("0::/\n", {}, ()),
    "of a container": ("0::/\n", {"cpu.max": "150000 100000\n"}, (2,)),
    "no limit": ("0::/\n", {"cpu.max": "max 100000\n"}, ()),
    "of a group": ("0::/jobs/one\n", {"jobs/one/cpu.max": "50000 100000\n", "jobs/cpu.max": "max 100000\n"}, (1,)),
    "of a group around it": (
        "0::/jobs/one\n",
        {"jobs/one/cpu.max": "max 100000\n", "jobs/cpu.max": "400000 100000"},
        (4,),
    ),
    "version 1": (
        "4:memory:/x\n3:cpu,cpuacct:/x\n",
        {"cpu/x/cpu.cfs_quota_us": "300000\n", "cpu/x/cpu.cfs_period_us": "100000\n"},
        (3,),
    ),
    "version 1, no limit": (
        "3:cpu,cpuacct:/\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        (),
    ),
    "version 1 in a container, which sees its own group as the root": (
        "3:cpu,cpuacct:/docker/abc\n",
        {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        (2,),
    ),
    "something else": ("nonsense\n0::/\n", {"cpu.max": "a lot of it\n"}, ()),
    "no time at all": ("0::/\n", {"cpu.max": "100 0\n"}, ()),
    "no such file": (None, {"cpu.max": "100000 100000\n"}, ()),
}


@pytest.mark.parametrize("case", QUOTAS)
def test_quotas_of_control_groups(case, tmp_path):
    own, files, wanted = QUOTAS[case]
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    if own is not None:
        (tmp_path / "own").write_text(own)
    assert blas_threads._quota(tmp_path / "fs", tmp_path / "own") == wanted


def test_a_quota_counts(monkeypatch):
    monkeypatch.setattr(blas_threads, "_quota", lambda: (2, 5))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(blas_threads, "blas_libraries", lambda: ())
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert default_threads() == 2


# ----------------------------------------------------------------------------------------------------------------------
# What is kept


def test_shapes_of_products_are_not_kept_for_ever(monkeypatch, rng):
    if not blas._numpy_blas() or not blas._numpy_blas().function("gemm_batch", "d"):
        pytest.skip("NumPy's BLAS has no batches of products")
    monkeypatch.setattr(blas, "_MOST_SHAPES", 3)
    blas._batches.known.clear()
    for m in range(128, 138):
        A, B, C = rng.standard_normal((m, 100)), rng.standard_normal((100, 200)), np.zeros((m, 200))
        with one_blas_thread:
            blas.add_tiles(A, B, C, tiles := blas.column_tiles(m, 200), [100] * len(tiles), 1)
        np.testing.assert_allclose(C, A @ B, rtol=1e-10, atol=1e-10)
        assert 0 < len(blas._batches.known) <= 3
