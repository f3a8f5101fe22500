"""Builds the emulated CUDA and puts it where CuPy and nvmath-python look for NVIDIA's libraries.

CuPy's own CUDA runtime is linked into one of its extensions. That is not stripped, so each of its functions can be made
to jump to ours of that name. NVIDIA's other libraries are looked for by name, and found if they are loaded already.

Of NVIDIA only header files are needed. They are CUDA's of the major version that CuPy was built for, so that types and
signatures are the true ones.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.util
import mmap
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, NamedTuple

HERE = Path(__file__).parent
PARTS = "state", "memory", "streams", "kernels", "cublas", "nccl", "absent"
BUILD = "g++ -std=c++17 -O2 -fPIC -Wall -Wextra -Werror"
KERNEL_FLAGS = "-std=c++17 -O1 -fno-strict-aliasing -ffp-contract=off -fPIC -w -fpermissive"
JUMP = 14  # bytes: jmp *0(%rip), and the address

_library: ctypes.CDLL | None = None


class Places(NamedTuple):
    """Where the packages are, and CUDA's major version."""

    cupy: Path
    extensions: Path
    nvidia: Path
    major: int

    def headers(self) -> list[str]:
        """Return the options by which g++ finds CUDA's and CuPy's headers."""
        folders = [
            self.nvidia / ("cu13" if self.major == 13 else "cuda_runtime") / "include",
            self.nvidia / "cu13" / "include",  # crt/, which has no wheel of its own before CUDA 13
            self.cupy / "_core/include",
            *(self.cupy / "_core/include/cupy/_cccl" / name for name in ("libcudacxx", "thrust", "cub")),
        ]
        return [f"-I{folder}" for folder in folders]


def library() -> ctypes.CDLL:
    """Return the emulated CUDA's library, which :func:`install` has loaded."""
    assert _library is not None, "install() comes first"
    return _library


def install() -> None:
    """Have ``import cupy`` find the emulated CUDA, in this process and in the children that it starts.

    Raises
    ------
    RuntimeError
        If CuPy was imported before, or something that it takes is not installed.
    """
    global _library
    if _library is not None:
        return
    if "cupy_backends" in sys.modules:
        raise RuntimeError("CuPy is imported already, and has looked for its GPU; install the emulated CUDA before")
    places = _find()
    flags = " ".join(filter(None, (KERNEL_FLAGS, os.environ.get("MLP_XP_KERNEL_FLAGS"))))
    folder = _built(places, flags)
    _library, *_ = (ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL) for name in _names(places.major))
    _library.emulated_compiler(str(folder).encode(), " ".join([flags, *places.headers()]).encode())
    _library.emulated_errors.restype = ctypes.c_size_t
    _take_numpys_blas(_library)
    runtime = next((places.extensions / "cuda/api").glob("runtime.*.so"))
    ctypes.CDLL(str(runtime))
    _redirect(runtime, _library)
    os.environ.setdefault("CUPY_ACCELERATORS", "")  # CUB's library has a CUDA of its own
    os.environ["CUPY_CACHE_DIR"] = str(folder / "kernels")
    paths = [str(HERE / "site"), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))


def _find() -> Places:
    found = {name: importlib.util.find_spec(name) for name in ("cupy", "cupy_backends", "nvmath")}
    needs = [name for name in ("cupy", "nvmath") if found[name] is None]
    if shutil.which("g++") is None:
        needs.append("g++")
    if needs:
        remedy = "pip install -e '.[test,test-cuda12]', or test-cuda13, on Linux with g++"
        raise RuntimeError(f"the emulated CUDA needs {' and '.join(needs)}: {remedy}")
    cupy, extensions = (Path(found[name].submodule_search_locations[0]) for name in ("cupy", "cupy_backends"))
    major = 13 if list(cupy.parent.glob("cupy_cuda13x-*")) else 12
    places = Places(cupy, extensions, Path(sysconfig.get_paths()["purelib"]) / "nvidia", major)
    folders = [Path(option[2:]) for option in places.headers()]
    if absent := [name for name in ("cuda.h", "crt/host_defines.h") if not any((f / name).exists() for f in folders)]:
        remedy = f"pip install -e '.[test,test-cuda{major}]'"
        raise RuntimeError(f"the emulated CUDA needs {' and '.join(absent)} of CUDA {major}: {remedy}")
    return places


def _names(major: int) -> list[str]:
    """Return the names that NVIDIA's libraries are looked for by.

    The first has everything, as CuPy's extension asks for the symbols of cuBLAS by its version. The others lead there.
    """
    return [
        *(f"lib{name}.so.{major}" for name in ("cublas", "cublasLt", "cudart", "nvrtc")),
        "libcuda.so.1",
        "libnccl.so.2",
    ]


# Building.


def _built(places: Places, flags: str) -> Path:
    """Return the folder with what is built from these sources for this CuPy. It is built at most once."""
    sources = sorted(path for path in HERE.iterdir() if path.suffix in (".cpp", ".h", ".py"))
    key = hashlib.sha256(repr((places, flags)).encode())
    for path in sources:
        key.update(path.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlp_xp/emulated-cuda"
    folder = cache / key.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            _build(places, flags, folder)
            (folder / "done").touch()
    return folder


def _build(places: Places, flags: str, folder: Path) -> None:
    headers, name = places.headers(), _names(places.major)[0]
    for path in HERE.glob("*.h"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "absent.cpp").write_text(_absent(places))
    (folder / "exports.map").write_text(f"{name} {{ global: cu*; nvrtc*; nccl*; emulated_*; local: *; }};\n")
    objects = [str(folder / f"{part}.o") for part in PARTS]
    sources = [*(HERE / f"{part}.cpp" for part in PARTS[:-1]), folder / "absent.cpp"]
    commands = [
        [*BUILD.split(), f"-I{HERE}", *headers, "-c", str(source), "-o", target]
        for source, target in zip(sources, objects, strict=True)
    ] + [
        ["g++", *flags.split(), *headers, "-x", "c++-header", f"{folder}/{header}", "-o", f"{folder}/{header}.gch"]
        for header in ("with_cupy.h", "device.h")
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, commands))
    exports = f"-Wl,-soname,{name},--version-script={folder}/exports.map"
    _run(["g++", "-shared", *objects, exports, "-o", f"{folder}/{name}"])
    near = ["-Wl,-rpath,$ORIGIN,--no-as-needed", f"-L{folder}", f"-l:{name}"]
    for other in _names(places.major)[1:]:
        _run(["g++", "-shared", "-x", "c++", "/dev/null", f"-Wl,-soname,{other}", *near, "-o", f"{folder}/{other}"])


def _absent(places: Places) -> str:
    """Return the text of functions for the names that CuPy's extensions want to find, and nobody has emulated.

    Their answer is CUBLAS_STATUS_NOT_SUPPORTED, or ncclInternalError.
    """
    texts = ['#include "emulator.h"\nAPI int emulated_missing(const char*);\n']
    for part, status in (("cublas", 15), ("nccl", 3)):
        extensions = (path.read_bytes() for path in (places.extensions / "cuda/libs").glob(f"{part}.*.so"))
        name = re.compile(rb"\0(%b[A-Z]\w+)(?=\0)" % part.encode())
        wanted = {match.decode() for extension in extensions for match in name.findall(extension)}
        own = set(re.findall(rf"({part}\w+)\(", (HERE / f"{part}.cpp").read_text()))
        report = 'API int {0}() {{ emulated_missing("{0}"); return {1}; }}\n'
        texts += [report.format(name, status) for name in sorted(wanted - own)]
    return "".join(texts)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"the emulated CUDA could not be built:\n{' '.join(command)}\n{done.stdout}")


# Loading.


def _take_numpys_blas(library: ctypes.CDLL) -> None:
    import numpy as np

    path = next((Path(np.__file__).parents[1] / "numpy.libs").glob("libscipy_openblas64_*"))
    blas = ctypes.CDLL(str(path))
    library.emulated_blas(*(ctypes.cast(blas[f"scipy_{kind}gemm_64_"], ctypes.c_void_p) for kind in "sd"))


def _redirect(path: Path, library: ctypes.CDLL) -> None:
    """Have the functions of CUDA in a loaded extension jump to those of the same names in the library."""
    functions = {name: at for name, at in _functions(path).items() if re.fullmatch(r"cuda[A-Z]\w*", name)}
    absent = _Absent(library, functions)
    base = _loaded_at(path)
    first, last = base + min(functions.values()), base + max(functions.values()) + JUMP
    page = first & -mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(last - page), 7):
        raise RuntimeError(f"{path} cannot be changed in memory: {os.strerror(ctypes.get_errno())}")
    for name, at in functions.items():
        target = ctypes.cast(library[name], ctypes.c_void_p).value if hasattr(library, name) else absent.address(name)
        ctypes.memmove(base + at, b"\xff\x25\0\0\0\0" + struct.pack("<Q", target), JUMP)


class _Absent:
    """Code that says which function is missing; it lives as long as the process."""

    kept: ClassVar[list[object]] = []

    def __init__(self, library: ctypes.CDLL, names: dict[str, int]) -> None:
        self._memory = mmap.mmap(-1, 32 * len(names), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._report = ctypes.cast(library.emulated_missing, ctypes.c_void_p).value
        self._used = 0
        self.kept.append(self._memory)

    def address(self, name: str) -> int:
        """Return the address of code that reports this name."""
        text = ctypes.create_string_buffer(name.encode())
        self.kept.append(text)
        code = b"\x48\xbf" + struct.pack("<Q", ctypes.addressof(text))  # mov rdi, text
        code += b"\x48\xb8" + struct.pack("<Q", self._report) + b"\xff\xe0"  # mov rax, report; jmp rax
        at, self._used = self._used, self._used + 32
        self._memory[at : at + len(code)] = code
        return self._start + at


def _functions(path: Path) -> dict[str, int]:
    """Return the address of each function in an ELF file's symbol tables."""
    data = path.read_bytes()
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]
    found = {}
    for _, kind, _, _, offset, length, link, *_ in sections:
        if kind not in (2, 11):  # SHT_SYMTAB, SHT_DYNSYM
            continue
        names = sections[link][4]
        for at in range(offset, offset + length, 24):
            name, info, _, _, value, _ = struct.unpack_from("<IBBHQQ", data, at)
            if info & 15 == 2 and value:  # STT_FUNC
                found[data[names + name : data.index(b"\0", names + name)].decode()] = value
    return found


def _loaded_at(path: Path) -> int:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return min(int(line.partition("-")[0], 16) for line in lines if line.endswith(str(path.resolve())))
