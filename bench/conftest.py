"""What the pytest-benchmark files share: the device, the machine in the report, one way to time training."""

from __future__ import annotations

from typing import Any, Protocol

import pytest

from bench.contender import Contender, UnavailableError, build
from bench.machine import describe, limit_threads
from bench.problem import Problem

ROUNDS = 7
_absent: list[dict[str, str]] = []


class Train(Protocol):
    """Time epochs of a problem by a contender, and check the loss that they reached."""

    def __call__(self, problem: Problem, name: str, threads: int | None = None) -> None: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that all benchmarks share."""
    parser.addoption("--device", default="cpu", choices=["cpu", "cuda"], help="where the benchmarks run")
    parser.addoption("--threads", type=int, help="cores to use (default: all)")


def pytest_configure(config: pytest.Config) -> None:
    """Narrow the process before any library starts its threads."""
    limit_threads(config.getoption("--threads"))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add device, processor, BLAS, threads, versions and commit to the report."""
    machine_info["bench"] = describe(config.getoption("--device"), limit_threads(None))


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Add the contenders that could not run, and why."""
    output_json["absent"] = _absent


def build_or_skip(group: str, problem: Problem, name: str, device: str, threads: int) -> Contender:
    """Return a contender, or skip the benchmark and leave the reason in the report."""
    try:
        return build(name, problem, device, threads)
    except UnavailableError as reason:
        _absent.append({"group": group, "contender": name, "reason": str(reason)})
        pytest.skip(f"{name} {reason}")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Return the device that was asked for."""
    return str(request.config.getoption("--device"))


@pytest.fixture
def train(benchmark: Any, device: str) -> Train:
    """Return the one way to time training."""

    def run(problem: Problem, name: str, threads: int | None = None) -> None:
        benchmark.group = problem.name
        contender = build_or_skip(problem.name, problem, name, device, threads or limit_threads(None))
        epochs = 1 if device == "cpu" else 20
        benchmark.pedantic(contender.run, args=(epochs,), rounds=ROUNDS, warmup_rounds=1)
        verdict = contender.check()
        benchmark.extra_info.update(
            contender=name,
            settings=contender.settings,
            epochs=epochs,
            flops=problem.flops,
            preparation_seconds=contender.preparation_seconds,
            compile_seconds=contender.compile_seconds,
            **({} if verdict is None else verdict._asdict()),
        )

    return run
