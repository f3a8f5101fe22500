"""Builds the library in C, if there is a compiler; a wheel with it is for one platform, and for every Python there.

Without a compiler, or with ``MLP_XP_PURE=1``, the package is pure Python.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "mlp_xp/kernels/cpu/replay"
FLAGS = ["-std=gnu11", "-O3", "-fPIC", "-Wall", "-Wextra", "-fno-math-errno", "-fno-trapping-math"]
X86 = {  # sets of instructions: vectors of so many bytes, and what the registers hold
    "v4": "-march=x86-64-v4 -mprefer-vector-width=512 -DVECTOR_BYTES=64 -DTILE_ROWS=8",
    "v3": "-march=x86-64-v3 -DVECTOR_BYTES=32 -DTILE_ROWS=4",
    "base": "-DVECTOR_BYTES=16 -DTILE_ROWS=4",
}
OTHERS = {"base": "-DVECTOR_BYTES=16 -DTILE_ROWS=4"}
REALS = {"float32": "float", "float64": "double"}


def digest(source: Path) -> str:
    """Return a digest of the sources, by which the package finds that its library is of others.

    It computes the same in ``compiled.py``, which cannot be imported here: NumPy may be missing.
    """
    return sha256(b"".join(path.read_bytes() for path in sorted(source.glob("*.[ch]")))).hexdigest()


def compile_library(source: Path, target: Path, *more: str) -> None:
    """Build the library from the folder of its sources.

    Raises
    ------
    OSError
        If there is no compiler.
    subprocess.CalledProcessError
        If it fails.
    """
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        raise FileNotFoundError("there is no C compiler")
    sets = X86 if platform.machine().lower() in ("x86_64", "amd64") else OTHERS
    with tempfile.TemporaryDirectory() as folder:
        commands = {Path(folder, "choose.o"): [f'-DSOURCES="{digest(source)}"', str(source / "choose.c")]}
        for name, flags in sets.items():
            for real, c_type in REALS.items():
                own = [*flags.split(), f"-DREAL={c_type}", f"-DSUFFIX={real}_{name}", str(source / "replay.c")]
                commands[Path(folder, f"{real}_{name}.o")] = own

        def run(command: list[str]) -> None:
            subprocess.run([*compiler.split(), *command], check=True, capture_output=True, text=True)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(run, ([*FLAGS, *more, *own, "-c", "-o", str(o)] for o, own in commands.items())))
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        run(["-shared", *FLAGS, *more, *map(str, commands), "-o", str(part), "-lm", "-lpthread"])
        part.replace(target)


class BuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the library to a wheel or to an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build it, or say why not; one that was built from other sources must not stay."""
        source = Path(self.root, FOLDER)
        target = source / ("libreplay.dll" if sys.platform == "win32" else "libreplay.so")
        if version == "editable":
            target.unlink(missing_ok=True)
        if os.environ.get("MLP_XP_PURE") == "1":
            return
        try:
            compile_library(source, target)
        except (OSError, subprocess.CalledProcessError) as error:
            detail = getattr(error, "stderr", None) or error
            self.app.display_warning(f"mlp_xp is installed without its compiled library, and is slower: {detail}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"].append(f"{FOLDER}/{target.name}")
