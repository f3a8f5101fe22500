"""What a number was measured on, and how many of its cores were used."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_info

__all__ = ["describe", "limit_threads"]

_PACKAGES = ("mlp_xp", "numpy", "cupy", "torch", "jax", "scikit-learn")


def limit_threads(threads: int | None) -> int:
    """Narrow this process to `threads` cores (None: leave it) and return how many it may use.

    The only setting that every library honours: JAX on the CPU has none of its own. It must come before a library
    starts its threads. Where the system cannot do it (macOS, Windows), only JAX is left with all cores.

    Raises
    ------
    ValueError
        If there are not so many cores.
    """
    if not hasattr(os, "sched_setaffinity"):
        return threads or os.cpu_count() or 1
    cores = sorted(os.sched_getaffinity(0))
    if threads is None:
        return len(cores)
    if not 1 <= threads <= len(cores):
        raise ValueError(f"{threads} threads asked for; this process may use 1 to {len(cores)}")
    os.sched_setaffinity(0, cores[:threads])
    return threads


def describe(device: str, threads: int) -> dict[str, Any]:
    """Return the machine as data for a report: processor, GPU, BLAS, threads, load, versions, commit."""
    return {
        "device": device,
        "cpu": _cpu(),
        "gpu": _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "blas": [f"{lib['internal_api']} {lib['version']}" for lib in threadpool_info() if lib["user_api"] == "blas"],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "commit": _output("git", "describe", "--always", "--dirty", "--abbrev=40"),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    for name in (package, *(f"{package}-cuda{major}x" for major in (12, 13))):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _output(*command: str) -> str | None:
    """Return what a command prints; None where there is no such command, or nothing for it to tell."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
