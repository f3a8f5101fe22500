"""Optional libraries in tests: imported when first used, so that collecting takes seconds, and done without."""

from __future__ import annotations

import importlib
from typing import Any


class Later:
    """Stands for a library: `torch = Later("torch")`, together with the marker `needs("torch")`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # pytest looks for marks and wrappers on all that a module has
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)
