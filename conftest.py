"""How the suite runs: its seed, what it skips and why, and the check that no test leaves the process changed."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from functools import cache

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

NEEDS = {  # what the marker `needs` takes: the module to look for, and what installs it
    "torch": ("torch", "pip install -e '.[torch]'"),
    "jax": ("jax", "pip install -e '.[jax]'"),
    "onnx": ("onnx", "pip install -e '.[test-onnx]'"),
    "onnxruntime": ("onnxruntime", "pip install -e '.[test-onnx]'"),
    "nvrtc": ("cuda.bindings", "pip install -e '.[test-cuda]'"),
    "skops": ("skops", "pip install -e '.[test-all]'"),
    "h5py": ("h5py", "pip install h5py"),
    "zarr": ("zarr", "pip install zarr"),
    "hatchling": ("hatchling", "pip install hatchling editables"),
    "editables": ("editables", "pip install hatchling editables"),
    "distributed": ("distributed", "pip install distributed"),
}


collect_ignore = [
    "tests/cuda/emulated",  # to import its site/sitecustomize.py is to install it
    "mlp_xp/engines/jax_.py",  # these import a library that may be missing, and takes seconds
    "mlp_xp/engines/jax_program.py",
    "mlp_xp/engines/torch_.py",
    "mlp_xp/kernels/torch_.py",
]


def pytest_addoption(parser):
    """Add --slow."""
    parser.addoption("--slow", action="store_true", help="also run the tests that take more than ten seconds")
    parser.addoption("--emulated-cuda", action="store_true", help="run the tests for a GPU on an emulated one")


def pytest_configure(config):
    """Take the suite's seed; without one, hypothesis draws the same examples in every run too."""
    if config.getoption("emulated_cuda"):
        from tests.cuda import emulated

        try:
            emulated.install()
        except RuntimeError as error:
            raise pytest.UsageError(str(error)) from None
    config.seed = int(os.environ.get("MLP_XP_SEED", "2024"))
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # `nohup python -m pytest &` begins with signals that are ignored
        if signal.getsignal(number := getattr(signal, name, signal.SIGTERM)) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
    if importlib.util.find_spec("hypothesis"):
        from hypothesis import HealthCheck, settings

        fixed = "MLP_XP_SEED" not in os.environ
        kept = {"database": None} if fixed else {}
        unchecked = [HealthCheck.too_slow]  # on a busy machine anything may be slow, so there is no deadline, either
        settings.register_profile("suite", derandomize=fixed, deadline=None, suppress_health_check=unchecked, **kept)
        settings.load_profile("suite")


def pytest_report_header(config):
    """Name the seed, so that a failure can be had again."""
    return f"MLP_XP_SEED={config.seed}"


@cache
def missing(need):
    """Return why a test that has this need cannot run here, or nothing."""
    if need == "gpu":
        from mlp_xp.devices import get_device

        try:
            get_device("cuda")
        except ValueError:
            remedy = "pip install -e '.[test,test-cuda12]', python -m pytest --emulated-cuda"
            return f"needs a GPU, or an emulated one: {remedy}"
        return ""
    if need == "compiled":
        from mlp_xp.kernels.cpu.compiled import library

        return "" if library() else "needs the compiled library, which takes a C compiler at the installation"
    if need == "mpi":
        from tests.mpi.launch import MPIEXEC

        both = importlib.util.find_spec("mpi4py") and MPIEXEC
        return "" if both else "needs mpi4py and mpiexec, which are not installed: pip install mpi4py mpich"
    if need == "g++":  # it makes of the CUDA kernels a library for Linux
        return "" if sys.platform == "linux" and shutil.which("g++") else "needs Linux with the compiler g++"
    module, remedy = NEEDS[need]
    if need == "nvrtc" and not list(importlib.metadata.distributions(name="nvidia-cuda-nvrtc")):
        return f"needs {need}, which is not installed: {remedy}"  # its bindings come with nvmath-python, too
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        found = False
    return "" if found else f"needs {need}, which is not installed: {remedy}"


def pytest_collection_modifyitems(items):
    """Mark as a GPU's what runs on the device "cuda"."""
    for item in items:
        if hasattr(item, "callspec") and str(item.callspec.params.get("device")).partition(":")[0] == "cuda":
            item.add_marker(pytest.mark.gpu)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skip what cannot run or was not asked for; all from this line, so that pytest adds up equal reasons."""
    needs = [need for marker in item.iter_markers("needs") for need in marker.args]
    if hasattr(item, "callspec") and item.callspec.params.get("device") in ("torch", "jax"):
        needs.append(item.callspec.params["device"])
    reasons = [missing(need) for need in needs]
    if item.get_closest_marker("gpu"):
        reasons.append(missing("gpu"))
    if item.get_closest_marker("slow") and not item.config.getoption("slow"):
        reasons.append("takes more than ten seconds: python -m pytest --slow")
    if reason := next(filter(None, reasons), None):
        pytest.skip(reason)


# ----------------------------------------------------------------------------------------------------------------------
# What belongs to the process is as it was after every test.

SIGNALS = sorted(signal.valid_signals())
DESCRIPTORS = next((path for path in ("/proc/self/fd", "/dev/fd") if os.path.isdir(path)), None)  # Windows has neither
PATIENCE = 2  # seconds for a thread that is ending
FOREIGN = {  # set by pytest, and by JAX, scikit-learn, PyTorch and Jupyter's debugger
    "PYTEST_CURRENT_TEST",
    "PYDEVD_USE_FRAME_EVAL",
    "TF_CPP_MIN_LOG_LEVEL",
    "TPU_SKIP_MDS_QUERY",
    "KMP_INIT_AT_FORK",
    "KMP_DUPLICATE_LIB_OK",
    "TORCHINDUCTOR_CACHE_DIR",
    "XLA_PYTHON_CLIENT_PREALLOCATE",  # the benchmarks set it
}


KEPT_OPEN = ("/mpl-data/", "/.onnxruntime/")
DRIVERS = ("/dev/nvidia", "anon_inode:", "pipe:")  # NVIDIA's opens these whenever it likes


class Pools:
    """The thread pools of BLAS and OpenMP; libraries are looked for only after an import, as that takes 1 ms."""

    def __init__(self):
        self.modules = 0

    def threads(self):
        if len(sys.modules) != self.modules:
            self.modules, self.controller = len(sys.modules), ThreadpoolController()
        return {library["filepath"]: library["num_threads"] for library in self.controller.info()}


POOLS = Pools()


def open_files():
    """Return what each open descriptor leads to; matplotlib keeps its fonts open, ONNX Runtime a database."""
    files = {}
    for number in os.listdir(DESCRIPTORS) if DESCRIPTORS else ():
        with contextlib.suppress(OSError):  # the one that lists them is closed by now
            files[number] = os.readlink(f"{DESCRIPTORS}/{number}")
    kept = (*KEPT_OPEN, *DRIVERS) if "/dev/nvidiactl" in files.values() else KEPT_OPEN
    return {number: name for number, name in files.items() if not any(part in name for part in kept)}


def process():
    """Return what a test must leave as it was, by name; tqdm's one monitor stays."""
    return {
        "threads of BLAS": POOLS.threads(),
        "open files": open_files(),
        "threads": {thread.name: thread for thread in threading.enumerate() if type(thread).__name__ != "TMonitor"},
        "signal handlers": {
            number.name: signal.getsignal(number) for number in SIGNALS if isinstance(number, signal.Signals)
        },
        "environment": {name: value for name, value in os.environ.items() if name not in FOREIGN},
        "working directory": {"": os.getcwd()},
        # comparable if nothing was imported: libraries add filters then, which pytest takes off again
        "warning filters": {len(sys.modules): list(map(str, warnings.filters))},
        "floating-point errors": np.geterr(),
    }


def changes(before, after):
    """Return what differs, a line for each; what was open or running may end, and a library may be loaded."""
    lines = []
    for name, now in after.items():
        then, keys = before[name], now.keys()
        if name in ("threads of BLAS", "warning filters"):
            keys &= then.keys()
        elif name not in ("open files", "threads"):
            keys |= then.keys()
        lines += [
            f"{name}: {key} {then.get(key)} -> {now.get(key)}"
            for key in sorted(keys, key=str)
            if then.get(key) != now.get(key)
        ]
    return lines


@pytest.fixture(autouse=True)
def leaves_the_process_as_it_was():
    """Fail a test that leaves a thread, an open file, a handler or a setting of the process behind."""
    before, deadline = process(), None
    yield
    while found := changes(before, process()):
        deadline = deadline or time.monotonic() + PATIENCE
        if time.monotonic() > deadline:
            pytest.fail("this test leaves the process changed:\n" + "\n".join(found))
        gc.collect()
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def does_nothing_wrong_on_the_emulated_cuda(request):
    """Fail a test whose programs did what a GPU would not survive."""
    yield
    if request.config.getoption("emulated_cuda"):
        from tests.cuda import emulated

        if messages := emulated.errors():
            pytest.fail(f"on the emulated CUDA:\n{messages}")


def pytest_terminal_summary(terminalreporter, config):
    """Say how much ran on the emulated CUDA."""
    if config.getoption("emulated_cuda"):
        calls = (report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ()))
        tests = sum(report.when == "call" and "gpu" in report.keywords for report in calls)
        terminalreporter.write_line(f"{tests} tests ran on the emulated CUDA")
