"""All kernels under the compiler's sanitizers: no undefined behavior, and no access next to an array.

Their tests run once more in a process in which the emulated CUDA compiles kernels with the sanitizers of g++. A finding
ends that process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
# Stacks are the emulation's, which the sanitizer knows nothing of.
FLAGS = "-g1 -fsanitize=address,undefined -fno-sanitize-recover=all --param asan-stack=0"


@cache
def sanitizer() -> str:
    """Return the path of AddressSanitizer's library, which must be the first that a process loads."""
    command = ["g++", "-print-file-name=libasan.so"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def run_sanitized(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with sanitized kernels."""
    environment = {
        **os.environ,
        "MLP_XP_KERNEL_FLAGS": FLAGS,
        "LD_PRELOAD": sanitizer(),
        "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0",  # Python's memory, and the emulation's handler
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-c", "import os; del os.environ['LD_PRELOAD']  # from the compiler\n" + code]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_kernels_behave_as_defined(emulated: Any) -> None:
    options = ["-q", "-s", "-x", "--emulated-cuda", "-m", "gpu", "-p", "no:cacheprovider"]  # -s: reports are not lost
    options += ["tests/cuda/test_cuda_kernels.py", "-k", "not barriers and not agree"]
    done = run_sanitized(f"import pytest; raise SystemExit(pytest.main({options}))")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
    assert "Sanitizer" not in done.stderr
    assert "runtime error" not in done.stderr


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
    done = run_sanitized(FAULT.format(fault=fault, i=i))
    assert done.returncode != 0
    assert message in done.stderr


def test_what_is_right_passes(emulated: Any) -> None:
    done = run_sanitized(FAULT.format(fault="x[i] = 7;", i=9))
    assert done.returncode == 0, done.stderr
    assert "7." in done.stdout
