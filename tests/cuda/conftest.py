"""Fixtures for tests on a GPU, real or emulated."""

from __future__ import annotations

import pytest

from . import emulated as emulation


@pytest.fixture
def emulated(request: pytest.FixtureRequest):
    """Return the module that counts what the emulated CUDA does and changes how it behaves."""
    if not request.config.getoption("emulated_cuda"):
        pytest.skip("looks into the emulated CUDA: python -m pytest --emulated-cuda")
    return emulation
