"""The versions that the last bits of a result depend on."""

from __future__ import annotations

import numpy as np

from ..kernels.cpu.compiled import library

__all__ = ["differences", "versions"]


def versions() -> dict[str, str]:
    """Return the versions of mlp_xp, NumPy, and NumPy's BLAS, and the instructions of the compiled library, if any."""
    blas, compiled = np.show_config(mode="dicts")["Build Dependencies"]["blas"], library()
    return {
        "mlp_xp": _own(),
        "numpy": np.__version__,
        "blas": f"{blas.get('name')} {blas.get('version')}",
        "compiled library": "None" if compiled is None else compiled.instructions,
    }


def differences(then: dict[str, str], now: dict[str, str]) -> str:
    """Return what differs, as in ``numpy 2.0.2, now 2.4.6``; empty if nothing does."""
    return "; ".join(f"{name} {then.get(name)}, now {now[name]}" for name in now if then.get(name) != now[name])


def _own() -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and few runs are saved

    try:
        return version("mlp_xp")
    except PackageNotFoundError:  # a checkout that was never installed
        return "unknown"
