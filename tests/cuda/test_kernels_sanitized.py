"""All kernels under the compiler's sanitizers: no undefined behavior, no access next to an array, and no races.

Their tests run once more in processes in which the emulated CUDA compiles kernels with the sanitizers of g++. Undefined
behavior and accesses out of bounds end such a process; a race is an error of the launch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from .test_cuda_kernels import BETWEEN_BLOCKS

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
# Stacks are the emulation's, which the sanitizer knows nothing of.
SANITIZED = "-g1 -fsanitize=address,undefined -fno-sanitize-recover=all --param asan-stack=0"
RACES = "-fsanitize=thread"


@cache
def address_sanitizer() -> str:
    """Return the path of AddressSanitizer's library, which must be the first that a process loads."""
    command = ["g++", "-print-file-name=libasan.so"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def python_path() -> str:
    """Return where modules are found, this project first."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def run_with(flags: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code, with kernels that are compiled with these flags."""
    environment = {**os.environ, "MLP_XP_KERNEL_FLAGS": flags, "PYTHONPATH": python_path()}
    if "address" in flags:
        environment["LD_PRELOAD"] = address_sanitizer()
        environment["ASAN_OPTIONS"] = "detect_leaks=0:handle_segv=0"  # leaks of Python; the emulation's own handler
    command = [sys.executable, "-c", "import os; os.environ.pop('LD_PRELOAD', None)  # not for the compiler\n" + code]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def run_tests(flags: str, chosen: str) -> subprocess.CompletedProcess[str]:
    """Run the kernels' tests; pytest captures nothing, so that the report of a process that ends is not lost."""
    options = ["-q", "-s", "-x", "--emulated-cuda", "-m", "gpu", "-p", "no:cacheprovider"]
    options += ["tests/cuda/test_cuda_kernels.py", "-k", f"not barriers and not agree{chosen}"]
    return run_with(flags, f"import pytest; raise SystemExit(pytest.main({options}))")


def test_kernels_behave_as_defined(emulated: Any) -> None:
    done = run_tests(SANITIZED, " and not leaky and not identity")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
    assert "Sanitizer" not in done.stderr
    assert "runtime error" not in done.stderr


def test_threads_and_blocks_do_not_race(emulated: Any) -> None:
    done = run_tests(RACES, " and not double and not many_updates and not pixels and not 196 and not 256")
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


WITHOUT_BARRIER = """
from tests.cuda import emulated
emulated.install()
import cupy, numpy, pytest
from tests.cuda.launching import Gpu, without_barrier
from tests.cuda.test_cuda_kernels import CHECKS
gpu = Gpu(emulated=True)
with pytest.MonkeyPatch.context() as patch, gpu.apart():
    without_barrier("activation", {k}, patch)
    try:
        [check(gpu, numpy.random.default_rng(0)) for check in CHECKS["activation"]]
    except cupy.cuda.runtime.CUDARuntimeError:
        print(emulated.errors())
"""


@pytest.mark.parametrize("k", [k for name, k in BETWEEN_BLOCKS if name == "activation"])
def test_barriers_between_blocks_are_needed(k: int, emulated: Any) -> None:
    """No order of blocks shows what is wrong without them."""
    done = run_with(RACES, WITHOUT_BARRIER.format(k=k))
    assert "activation_gradient: threads race" in done.stdout, done.stderr


FAULT = """
from tests.cuda import emulated
emulated.install()
import cupy as cp
from tests.cuda.launching import Gpu
kernel = cp.RawKernel('extern "C" __global__ void fault(float* x, int i) {{ {fault} }}', "fault")
with Gpu(emulated=True).apart():
    x = cp.ones(10, cp.float32)
    kernel((1,), (1,), (x, cp.int32({i})))
    print(x)
"""

FAULTS = {
    "read behind an array": ("x[0] = x[i];", 10, "AddressSanitizer"),
    "write behind an array": ("x[i] = 1;", 10, "AddressSanitizer"),
    "read before an array": ("x[0] = x[i];", -1, "AddressSanitizer"),
    "read of 16 bytes at the end": ("*(float4*)x = *(float4*)(x + i);", 8, "AddressSanitizer"),
    "off a boundary": ("*(float4*)x = *(float4*)(x + i);", 1, "misaligned address"),
    "overflow": ("x[0] = 2147483647 + i;", 1, "signed integer overflow"),
    "shift": ("x[0] = 1 << i;", 32, "shift exponent"),
    "behind an array of a thread": ("float a[3] = {}; x[0] = a[i];", 3, "out of bounds"),
    "behind shared memory": ("__shared__ float a[3]; a[i] = 1; x[0] = a[i];", 3, "out of bounds"),
    "neither true nor false": ("__shared__ bool a; x[0] = a;", 0, "not a valid value for type 'bool'"),
}


@pytest.mark.parametrize(("fault", "i", "message"), FAULTS.values(), ids=FAULTS)
def test_faults_are_found(fault: str, i: int, message: str, emulated: Any) -> None:
    done = run_with(SANITIZED, FAULT.format(fault=fault, i=i))
    assert done.returncode != 0
    assert message in done.stderr


def test_what_is_right_passes(emulated: Any) -> None:
    done = run_with(SANITIZED, FAULT.format(fault="x[i] = 7;", i=9))
    assert done.returncode == 0, done.stderr
    assert "7." in done.stdout
