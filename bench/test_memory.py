"""The most memory that two epochs take, each contender alone in a fresh process; the time is that of the process."""

from __future__ import annotations

from typing import Any

import pytest

from bench.cases import case
from bench.conftest import build_or_skip
from bench.contender import CONTENDERS
from bench.machine import limit_threads
from bench.memory import peak_megabytes


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("name", ["full-batch", "mini-batch"])
def test_memory(benchmark: Any, device: str, name: str, contender: str) -> None:
    """Measure one contender."""
    problem, threads = case(name), limit_threads(None)
    benchmark.group = f"memory, {name}"
    build_or_skip(benchmark.group, problem, contender, device, threads)
    peak = benchmark.pedantic(peak_megabytes, args=(contender, problem, device, threads))
    benchmark.extra_info.update(contender=contender, peak_mb=peak)
