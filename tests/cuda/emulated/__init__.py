"""Interim: forwards to a sketch outside of the project until the real one is here. The names are final."""

import os
import sys
from contextlib import contextmanager
from typing import NamedTuple


class Counts(NamedTuple):
    launches: int
    graphs: int
    copies: int
    products: int
    allocations: int
    captures: int
    compilations: int
    waits: int


def install():
    """Have `import cupy` find an emulated CUDA in this process and its children."""
    sys.path.insert(0, "/tmp/proto")
    import emu

    emu.install()
    os.environ["EMU"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, ("/tmp/proto/scripts", os.environ.get("PYTHONPATH"))))


def counts() -> Counts:
    import emu

    return Counts(*emu.counts().values())


@contextmanager
def settings(*, memory=None, pages=None, order=None, failing_allocation=None, failing_capture=None):
    """Change how CUDA behaves, for a time. NOT IN THE SKETCH: it does nothing yet.

    memory: bytes that each device has (cudaMalloc fails beyond; CuPy's pool must be emptied before).
    pages: each allocation ends at a page that nobody may touch.
    order: 0 blocks and threads in their order, -1 in reverse, N > 0 permuted by this seed.
    failing_allocation: the number, from 1, of the cudaMalloc from now on that fails (once).
    failing_capture: the number, from 1, of the operation of the captures from now on that breaks its capture (once).
    """
    yield
