"""The CUDA kernels compile for every GPU they are meant for, without spilling registers; no GPU is needed for that."""

from __future__ import annotations

import importlib
import re
from functools import cache
from typing import Any, NamedTuple

import pytest

from mlp_xp.kernels.cuda.sources import FusedHead, activations, source

pytestmark = pytest.mark.needs("nvrtc")

ACTIVATIONS = sorted(activations())

BUILDS: dict[str, tuple[str, dict[str, str | int]]] = {
    **{
        f"activation-{activation}-{real}": ("activation", {"ACTIVATION": activation, "REAL": real})
        for activation in ACTIVATIONS
        for real in ("float", "double")
    },
    **{f"softmax-{real}": ("softmax_cross_entropy", {"REAL": real}) for real in ("float", "double")},
    **{f"losses-{real}": ("losses", {"REAL": real}) for real in ("float", "double")},
    **{f"optimizers-{real}": ("optimizers", {"REAL": real}) for real in ("float", "double")},
    **{
        f"batch-{source}-{entry}-{real}": ("batch", {"INPUT": source, "ENTRY": entry, "TARGET": target, "REAL": real})
        for source, entry, target, real in (
            ("byte", "REAL", "int", "float"),
            ("byte", "REAL", "REAL", "double"),
            ("byte", "half_bits", "int", "float"),
            ("REAL", "REAL", "REAL", "float"),
        )
    },
    "halves": ("halves", {}),
    **{
        f"head-{tile}{'-halves' * halves}-{activation}": (
            "fused_head",
            {"ACTIVATION": activation, **FusedHead(196, 10, tile, halves).macros},
        )
        for activation in ACTIVATIONS
        for tile in (32, 64)
        for halves in (False, True)
    },
    "head-large-halves": ("fused_head", {"ACTIVATION": "sigmoid", **FusedHead(256, 16, 64, True).macros}),
    "head-small": ("fused_head", {"ACTIVATION": "sigmoid", **FusedHead(4, 2, 32).macros}),
    "head-large": ("fused_head", {"ACTIVATION": "sigmoid", **FusedHead(256, 16, 64).macros}),
}


class Compiled(NamedTuple):
    """What NVRTC made of a source.

    Attributes
    ----------
    ptx : str
        Its intermediate code.
    log : str
        The messages of both compilers, with a line on registers and spills for each kernel.
    """

    ptx: str
    log: str


@cache
def compiler_version() -> tuple[int, int]:
    """Return the release of NVRTC, such as (13, 5)."""
    nvrtc: Any = importlib.import_module("cuda.bindings.nvrtc")
    _, major, minor = nvrtc.nvrtcVersion()
    return major, minor


@cache
def gpu_compile(name: str, architecture: int, **macros: str | int) -> Compiled:
    """Compile ``name.cu`` for the GPUs of one compute capability, such as 90 for 9.0, down to machine code.

    Raises
    ------
    RuntimeError
        If the source does not compile; the message is the compiler's.
    """
    nvrtc: Any = importlib.import_module("cuda.bindings.nvrtc")
    defined = [f"-D{key}={value}" for key, value in macros.items()]
    options = ["-std=c++17", "-ftz=true", f"-arch=sm_{architecture}", "--ptxas-options=-v", *defined]
    raw_options = [option.encode() for option in options]
    _, program = nvrtc.nvrtcCreateProgram(source(name).encode(), f"{name}.cu".encode(), 0, None, None)
    (status,) = nvrtc.nvrtcCompileProgram(program, len(raw_options), raw_options)
    log = _text(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"{name}.cu for sm_{architecture} with {macros}: {status.name}\n{log}")
    compiled = Compiled(_text(program, nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX), log)
    nvrtc.nvrtcDestroyProgram(program)
    return compiled


def _text(program: Any, get_size: Any, get: Any) -> str:
    _, size = get_size(program)
    buffer = bytes(size)
    get(program, buffer)
    return buffer.rstrip(b"\0").decode()


TUNED_FOR = (13, 5)  # the compiler with which every kernel keeps all its numbers in registers
SPARE = 64  # bytes of a thread: another compiler may spill a few registers, 13.0 does for sm_100; an array takes more


def assert_clean(compiled: Compiled, kernels: int) -> None:
    """Assert that there was no warning, and that all kernels keep their numbers in registers."""
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", compiled.log)
    assert len(spills) >= kernels, compiled.log
    limit = 0 if compiler_version() == TUNED_FOR else SPARE
    assert max(int(size) for kernel in spills for size in kernel) <= limit, compiled.log
    assert "warning" not in compiled.log, compiled.log


@pytest.mark.parametrize("architecture", [75, 80, 90, 100, 120])
@pytest.mark.parametrize("build", BUILDS)
def test_compiles_for_every_gpu(build: str, architecture: int) -> None:
    name, macros = BUILDS[build]
    compiled = gpu_compile(name, architecture, **macros)
    assert_clean(compiled, compiled.ptx.count(".entry"))
    if macros.get("REAL") != "double":
        doubles = {kernel.split("(")[0].strip() for kernel in compiled.ptx.split(".entry")[1:] if ".f64" in kernel}
        assert doubles <= {"tick"}  # no other number became a double by accident


@pytest.mark.parametrize("build", ["activation-sigmoid-float", "activation-sigmoid-double", "head-64-sigmoid"])
def test_moves_sixteen_bytes_at_a_time(build: str) -> None:
    name, macros = BUILDS[build]
    ptx = gpu_compile(name, 90, **macros).ptx
    assert re.search(r"ld\.global\.(nc\.)?v(4\.f32|2\.f64)", ptx)


def test_refuses_widths_that_the_head_does_not_take() -> None:
    for head, message in (
        (FusedHead(198, 10, 64), "HIDDEN must be"),
        (FusedHead(196, 17, 64), "CLASSES must be"),
        (FusedHead(196, 10, 48), "TILE must be"),
    ):
        with pytest.raises(RuntimeError, match=message):
            gpu_compile("fused_head", 90, ACTIVATION="sigmoid", **head.macros)
