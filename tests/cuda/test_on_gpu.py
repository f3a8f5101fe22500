"""The one command for a GPU machine, with little data."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlp_xp as mx
from bench import compare, gpu_ceilings, gpu_sweep, memory, on_gpu
from bench.contender import CONTENDERS
from bench.on_gpu import DENSE, EPOCHS, Part, floor_seconds, parts, run_part, summary, timings
from bench.problem import Problem
from mlp_xp.devices import CupyDevice

CEILINGS = {"gemm_flops": {"fp32": 5e13, "tf32": 4e14, "fp16": 8e14, "fp64": 5e13}, "bytes_per_second": 4e12}


@pytest.fixture
def small(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Problem:
    """Have all benchmarks measure little, with blocks of 16 rows."""
    X = rng.integers(1, 256, (100, 50)).astype(np.uint8)
    X[rng.permutation(50) >= rng.integers(0, 47, 100)[:, None]] = 0
    problem = Problem("small", X, rng.integers(0, 3, 100).astype(np.uint8), (50, 12, 3), "tanh")
    for module in (compare, gpu_sweep):
        monkeypatch.setattr(
            module, "case", lambda name: replace(problem, batch_size=32 if name == "mini-batch" else None)
        )
    monkeypatch.setattr(CupyDevice, "block_rows", 16)
    monkeypatch.setattr(gpu_sweep, "EPOCHS", 2)
    for name, value in {"SIZE": 32, "FLOATS": 64, "ROWS": 90, "INPUTS": 12, "UNITS": 4, "LAUNCHES": 3}.items():
        monkeypatch.setattr(gpu_ceilings, name, value)
    return problem


def test_parts_fit_into_their_time(tmp_path: Path) -> None:
    names = [part.name for part in parts(tmp_path, quick=False)]
    assert names == ["tests", "ceilings", "sweep", *EPOCHS]
    assert [part.name for part in parts(tmp_path, quick=True)] == ["tests", "ceilings", *names[3:5]]
    assert sum(part.limit for part in parts(tmp_path, quick=False)[:4]) < 480  # the headline is measured in any case
    comparisons = [part for part in parts(tmp_path, quick=False) if part.compares]
    assert [part.name for part in comparisons] == list(EPOCHS)
    for part in comparisons:
        contenders = part.command[part.command.index("--contenders") + 1].split(",")
        assert set(contenders) <= set(CONTENDERS)
        assert len(contenders) == len(set(contenders))
        assert contenders[0] == "ours"
        assert set(DENSE) <= set(contenders) or part.name in on_gpu.DENSE_ANYWAY


@pytest.mark.parametrize(
    ("code", "limit", "outcome"),
    [
        ("print('fine')", 60, "ok"),
        ("import sys; print('oh', flush=True); sys.exit(3)", 60, "exit code 3"),
        ("import time; print('slow', flush=True); time.sleep(60)", 5.5, "stopped after 6 s"),
        ("print('late')", 1, "no time left"),
    ],
)
def test_a_part_cannot_stop_the_others(code: str, limit: float, outcome: str) -> None:
    part = Part("one", [sys.executable, "-c", code], 600)
    run_part(part, limit)
    assert part.outcome == outcome
    assert ("print" in code and outcome != "no time left") == bool(part.output)


def test_a_comparison_is_told_when_to_begin_no_more_contenders() -> None:
    part = Part("one", [sys.executable, "-c", "import sys; print(sys.argv[1:])"], 600, compares=True)
    run_part(part, 100)
    assert part.output == "['--seconds', '45']\n"


def test_floor_is_what_takes_longer_products_or_input() -> None:
    weights = 784 * 196, 196 * 10
    flops = 2 * 60_000 * (3 * sum(weights) - weights[0])
    assert floor_seconds((784, 196, 10), 60_000, "fp32", CEILINGS) == pytest.approx(flops / 5e13)
    with_input = 4 * 60_000 * weights[0]
    halves = 2 * with_input / 8e14 + (flops - with_input) / 5e13
    assert floor_seconds((784, 196, 10), 60_000, "fp16x2", CEILINGS) == pytest.approx(halves)
    assert floor_seconds((784, 4), 60_000, "tf32", CEILINGS) == pytest.approx(2 * 60_000 * 784 * 4 / 4e12)


def test_summary_has_every_contender_and_every_failure(tmp_path: Path) -> None:
    rows = [
        {"contender": "ours", "absent": None, "seconds": [9e-4, 8e-4], "ratio": 1.0, "columns": 392.0, "right": True},
        {"contender": "ours-dense", "absent": None, "seconds": [9e-4], "ratio": 1.1, "columns": 784, "right": True},
        {"contender": "jax-loop-tf32", "absent": None, "seconds": [2e-4], "ratio": 0.2, "columns": 784, "right": False},
        {"contender": "torch", "absent": "not installed", "seconds": [], "ratio": None, "right": False},
    ]
    report = {"rows": rows, "samples": 60_000, "sizes": [784, 196, 10]}
    (tmp_path / "compare-full-batch-cuda.json").write_text(json.dumps(report))
    (tmp_path / "ceilings.json").write_text(json.dumps(CEILINGS))
    failed = Part("deep", [], 1, outcome="exit code 1", output="the reason")
    text = summary(timings(tmp_path), [failed], {"gpu": None})
    assert "| full-batch | ours | 800.0 | 1.00 | 392 | 48% |" in text  # of the products that are left
    assert "| full-batch | ours-dense | 900.0 | 1.10 | 784 | 84% |" in text
    assert "| full-batch | jax-loop-tf32 WRONG | 200.0 | 0.20 | 784 | 47% |" in text
    assert "torch" not in text
    assert "## deep: exit code 1" in text
    assert "the reason" in text


def test_without_a_gpu_everything_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    fails = Part("ceilings", [sys.executable, "-m", "bench.gpu_ceilings", "--out", str(tmp_path)], 60)
    monkeypatch.setattr(on_gpu, "parts", lambda out, quick: [fails])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("ceilings", "compare-wide-cuda", "gpu_sweep"):
        (tmp_path / f"{name}.json").write_text("of another run")
    assert on_gpu.main(["--out", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "on_gpu.json").read_text())
    assert report["parts"][0]["outcome"] == "exit code 2"
    assert "there are no ceilings to measure here" in report["parts"][0]["output"]
    assert report["timings"] == []
    assert (tmp_path / "on_gpu.md").read_text().strip() in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"on_gpu.json", "on_gpu.md"}


def test_help() -> None:
    for module in ("bench.on_gpu", "bench.gpu_ceilings", "bench.gpu_sweep"):
        subprocess.run([sys.executable, "-m", module, "--help"], check=True, capture_output=True, cwd=on_gpu.ROOT)


def run_here(part: Part, seconds_left: float) -> None:
    """Run a part in this process, with all seconds that it may take."""
    _, _, module, *arguments = part.command
    if module != "pytest":
        code = importlib.import_module(module).main(arguments)
        part.outcome = f"exit code {code}" if code else "ok"


@pytest.mark.gpu
def test_everything_on_little_data(small: Problem, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(on_gpu, "run_part", run_here)
    monkeypatch.setattr(on_gpu, "EPOCHS", {"full-batch": 1, "mini-batch": 1})
    monkeypatch.setattr(gpu_sweep, "SETTINGS", [("dense", None), ("zero", None), ("ragged", 16), ("ragged", 64)])
    on_gpu.main(["--out", str(tmp_path)])
    report = json.loads((tmp_path / "on_gpu.json").read_text())
    outcomes = {part["name"]: part["outcome"] for part in report["parts"]}
    assert (outcomes["ceilings"], outcomes["sweep"]) == ("ok", "ok")
    timed = {(timing["case"], timing["contender"]): timing for timing in report["timings"]}
    for case in on_gpu.EPOCHS:
        found = json.loads((tmp_path / f"compare-{case}-cuda.json").read_text())
        for row in found["rows"]:
            name = row["contender"]
            assert not row["failed"]
            assert row["absent"] is None or not name.startswith(("ours", "gemm"))  # the others may not be installed
            if row["absent"] is None:
                timing = timed[case, name]
                assert timing["right"]
                assert timing["floor"] > 0
                ragged = case != "mini-batch" and name.startswith("ours") and "dense" not in name
                assert (timing["columns"] < 30) if ragged else (timing["columns"] == 50)
        assert (tmp_path / f"compare-{case}-cuda.png").exists()
    assert timed["full-batch", "ours-dense-tf32"]["ratio"] > 0
    assert (tmp_path / "on_gpu.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "on_gpu.md").read_text()
    assert text in capsys.readouterr().out
    assert "| ragged | 16 |" in text


@pytest.mark.gpu
def test_sweep_is_of_the_plans_it_names(small: Problem, tmp_path: Path) -> None:
    """Blocks of fewer rows leave out more; a run that breaks and a wrong one stop no other."""
    assert gpu_sweep.SETTINGS[2:] == [("ragged", 2**i) for i in range(11, 16)]
    expected = gpu_sweep.losses(small)
    states = mx.epochs(mx.MLP([50, 12, 3], "tanh", dtype="float64"), small.X, small.y, optimizer=mx.SGD(lr=0.5))
    states.gi_frame.f_locals["model"].weights = [W for W, _ in small.initial]
    assert expected == pytest.approx([float(next(states).loss) for _ in range(3)], rel=1e-12)
    columns = []
    for rows in (4, 16, 64, None):
        gpu_sweep.measure(small, run := gpu_sweep.Run("ragged", rows, "fp16x2"), expected)
        assert run.right
        assert run.seconds > 0
        columns.append(run.columns)
    assert columns[0] < columns[1] < columns[2]
    assert columns[3] == columns[1]
    assert CupyDevice.block_rows == 16


@pytest.mark.gpu
def test_sweep_says_what_went_wrong(small: Problem, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(gpu_sweep, "SETTINGS", [("dense", None), ("nonsense", None)])
    monkeypatch.setattr(gpu_sweep, "losses", lambda problem: [1.0])
    assert gpu_sweep.main(["--out", str(tmp_path)]) == 1
    text = (tmp_path / "gpu_sweep.md").read_text()
    assert text.count(" WRONG |") == 3
    assert text.count("ValueError: unknown plan 'nonsense'") == 3


def test_sweep_needs_a_gpu(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", None)
    assert gpu_sweep.main(["--out", str(tmp_path)]) == 2
    assert "there are no plans to time here: device 'cuda' needs CuPy" in capsys.readouterr().err


@pytest.mark.gpu
def test_ceilings_of_small_products(small: Problem, tmp_path: Path) -> None:
    assert gpu_ceilings.main(["--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "ceilings.json").read_text())
    assert found["gemm_flops"].keys() == gpu_ceilings.PRODUCTS.keys()
    assert found["layer_seconds"]["fp16"].keys() == {"forward", "weight gradient"}
    assert min(*found["gemm_flops"].values(), found["bytes_per_second"], found["launch_in_a_graph_seconds"]) > 0


@pytest.mark.gpu
def test_launches_in_a_graph_are_timed_as_such(small: Problem, emulated: Any) -> None:
    cupy = importlib.import_module("cupy")
    before = emulated.counts()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        gpu_ceilings._launches(cupy, stream)
    asked = emulated.counts() - before
    assert asked.captures == 1
    assert asked.graphs == 1 + 1 + 10  # when it was captured, to warm up, and timed
    assert asked.launches == (1 + 10 + 2) * gpu_ceilings.LAUNCHES  # to warm up, timed, the first time, and captured


def test_memory_of_a_gpu_is_what_its_driver_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = subprocess.CompletedProcess([], 0, stdout="531\n4\n")
    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: printed)
    assert memory._device_used() == 535 * 2**20
