"""Arrays of other libraries than NumPy, which scikit-learn takes as they are while ``array_api_dispatch`` is on.

Samples stay where they are. Targets, weights and outputs, which are narrow, go by way of the host.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import get_config

from ..devices import Array, Device, device_of, is_foreign

__all__ = ["dispatches", "float_dtypes", "home_of", "like", "on_host", "take"]


def dispatches() -> bool:
    """Return whether scikit-learn takes arrays of other libraries as they are."""
    return bool(get_config()["array_api_dispatch"])


def home_of(x: Any) -> Device | None:
    """Return the device of an array that is taken as it is; None for all that becomes an array of NumPy's."""
    return device_of(x) if dispatches() and is_foreign(x) else None


def on_host(x: Any) -> Any:
    """Return an array that is taken as it is on the host, and all else unchanged."""
    home = home_of(x)
    return x if home is None else home.to_host(x)


def like(x: Any, host: NDArray[Any]) -> Array:
    """Return an array of the host where `x` is, if that is taken as it is. Texts stay: only NumPy has them."""
    home = home_of(x)
    return host if home is None or host.dtype.kind not in "biuf" else home.asarray(host)


def float_dtypes(x: Any) -> tuple[Any, Any]:
    """Return what float64 and float32 are called where `x` is."""
    home = home_of(x)
    xp = np if home is None else home.xp
    return xp.float64, xp.float32


def take(x: Any, rows: NDArray[Any]) -> Any:
    """Return these rows of an array of any library, or of a sparse one."""
    if not is_foreign(x):
        return x[rows]
    home = device_of(x)
    return home.xp.take(x, home.asarray(rows), axis=0)
