"""Compile the CUDA kernels without a GPU: for this CPU with g++ and the shim, and for GPUs with NVRTC."""

from __future__ import annotations

import ctypes
import importlib
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlp_xp.kernels.cuda.sources import source

SHIM = Path(__file__).with_name("shim.h")

Macros = Mapping[str, str | int]


def _flags(macros: Macros) -> list[str]:
    return [f"-D{name}={value}" for name, value in macros.items()]


# ----------------------------------------------------------------------------------------------------------------------
# On the CPU.

_KERNEL = re.compile(r'extern "C" __global__ void __launch_bounds__\([^)]*\)\s+(\w+)\(([^)]*)\)')
_SCALARS: dict[str, type[ctypes._SimpleCData[Any]]] = {
    "int": ctypes.c_int,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}


_DTYPES = {
    "int": np.int32, "unsigned": np.uint32, "float": np.float32, "double": np.float64, "byte": np.uint8,
    "half_bits": np.float16, "Range": np.uint8,
}  # fmt: skip


def check_arguments(types: Sequence[str], arguments: Sequence[Any]) -> None:
    """Assert that arguments have the types of a C signature: arrays with contiguous rows, and NumPy's scalars."""
    for type_, argument in zip(types, arguments, strict=True):
        if not type_.endswith("*"):
            assert type(argument) is _DTYPES[type_]
        elif argument is not None:
            assert argument.dtype == _DTYPES[type_.rstrip("*")]
            assert argument.ndim == 0 or argument.flags.c_contiguous or argument[0].flags.c_contiguous


class CpuModule:
    """The kernels of one source text as functions on NumPy arrays.

    Attributes
    ----------
    parameters : dict of str to list of str
        C types of each kernel's parameters, such as ``["float*", "int"]``.
    """

    def __init__(self, text: str, macros: Macros) -> None:
        self.parameters: dict[str, list[str]] = {}
        entries = []
        for kernel, parameters in _KERNEL.findall(text):
            declarations = [re.sub(r"\bconst\b|__restrict__", "", p).split() for p in parameters.split(",")]
            types = [_spelled_out(" ".join(words[:-1]), {"REAL": "float", **macros}) for words in declarations]
            self.parameters[kernel] = types
            entries.append(_entry(kernel, types))
        if not entries:
            raise ValueError("found no kernel in the source; does it begin as _KERNEL expects?")
        with tempfile.TemporaryDirectory() as folder:
            cpp, library = Path(folder, "kernels.cpp"), Path(folder, "kernels.so")
            cpp.write_text("\n".join([f'#include "{SHIM}"', text.replace("__restrict__", ""), *entries]))
            # fortified, longjmp refuses to go to another stack
            options = ["-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-Wno-unknown-pragmas"]
            command = ["g++", *options, *_flags(macros)]
            subprocess.run([*command, "-o", str(library), str(cpp)], check=True)
            self._library = ctypes.CDLL(str(library))

    def launch(
        self,
        kernel: str,
        grid: int,
        block: int | tuple[int, int],
        *arguments: Any,
        shared: int = 0,
        reverse: bool = False,
    ) -> None:
        """Run one kernel; an array is passed as its address, None as a null pointer."""
        columns, lanes = block if isinstance(block, tuple) else (block, 1)
        types = self.parameters[kernel]
        if len(types) != len(arguments):
            raise TypeError(f"{kernel} takes {len(types)} arguments ({', '.join(types)}), not {len(arguments)}")
        values = [
            ctypes.c_void_p(None if value is None else value.ctypes.data) if "*" in type_ else _SCALARS[type_](value)
            for type_, value in zip(types, arguments, strict=True)
        ]
        shape = (ctypes.c_uint(grid), ctypes.c_uint(columns), ctypes.c_uint(lanes), ctypes.c_size_t(shared))
        getattr(self._library, f"cpu_{kernel}")(*shape, ctypes.c_bool(reverse), *values)


def _spelled_out(type_: str, macros: Macros) -> str:
    """Return a C type without macros, nor the name that depends on one."""
    type_ = type_.replace("Gradient", "half_bits" if str(macros.get("HALVES")) == "1" else "float")
    for name in ("INPUT", "ENTRY", "TARGET", "REAL"):  # the last may be what the others stand for
        type_ = re.sub(rf"\b{name}\b", str(macros.get(name, name)), type_)
    return type_


def _entry(kernel: str, types: list[str]) -> str:
    """Return a C function that runs `kernel` in the shim and takes its launch shape, then its arguments."""
    members = " ".join(f"{t} a{i};" for i, t in enumerate(types))
    parameters = ", ".join(f"{t} a{i}" for i, t in enumerate(types))
    fields = ", ".join(f"p->a{i}" for i in range(len(types)))
    values = ", ".join(f"a{i}" for i in range(len(types)))
    return f"""
struct {kernel}_arguments {{ {members} }};
static void {kernel}_body(void* q) {{ auto* p = static_cast<{kernel}_arguments*>(q); {kernel}({fields}); }}
extern "C" void cpu_{kernel}(unsigned grid, unsigned columns, unsigned lanes, size_t shared, bool reversed,
                             {parameters}) {{
  {kernel}_arguments all = {{{values}}};
  shim::launch({{grid, 1}}, {{columns, lanes}}, shared, reversed, {kernel}_body, &all);
}}"""


@cache
def cpu_module(name: str, **macros: str | int) -> CpuModule:
    """Return the kernels of ``name.cu`` for the CPU, compiled once for each set of macros."""
    return CpuModule(source(name), macros)


# ----------------------------------------------------------------------------------------------------------------------
# For GPUs.


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
    options = ["-std=c++17", "-ftz=true", f"-arch=sm_{architecture}", "--ptxas-options=-v", *_flags(macros)]
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
