"""The one command for a GPU machine, where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import on_gpu
from bench.contender import CONTENDERS
from bench.on_gpu import EPOCHS, PRECISION, Part, floor_seconds, parts, run_part, summary, timings
from bench.problem import Problem

CEILINGS = {"gemm_flops": {"fp32": 5e13, "tf32": 4e14, "fp16": 8e14, "fp64": 5e13}, "bytes_per_second": 4e12}


def test_parts_fit_into_their_time(tmp_path: Path) -> None:
    names = [part.name for part in parts(tmp_path, quick=False)]
    assert names == ["tests", "ceilings", *EPOCHS]
    assert [part.name for part in parts(tmp_path, quick=True)] == names[:4]
    assert set(PRECISION) <= set(CONTENDERS)
    for part in parts(tmp_path, quick=False)[2:]:
        contenders = part.command[part.command.index("--contenders") + 1].split(",")
        assert set(contenders) <= set(CONTENDERS)
        assert len(contenders) == len(set(contenders))


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


def test_floor_is_what_takes_longer_products_or_input() -> None:
    weights = 784 * 196, 196 * 10
    flops = 2 * 60_000 * (3 * sum(weights) - weights[0])
    assert floor_seconds((784, 196, 10), 60_000, "fp32", CEILINGS) == pytest.approx(flops / 5e13)
    assert floor_seconds((784, 196, 10), 60_000, "fp16x2", CEILINGS) == pytest.approx(2 * flops / 8e14)
    assert floor_seconds((784, 4), 60_000, "tf32", CEILINGS) == pytest.approx(2 * 60_000 * 784 * 4 / 4e12)


def test_summary_has_every_contender_and_every_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"contender": "ours", "absent": None, "seconds": [9e-4, 8e-4], "ratio": 1.0, "right": True},
        {"contender": "ours-tf32", "absent": None, "seconds": [2e-4], "ratio": 0.2, "right": False},
        {"contender": "torch", "absent": "not installed", "seconds": [], "ratio": None, "right": False},
    ]
    (tmp_path / "compare-full-batch-cuda.json").write_text(json.dumps({"rows": rows}))
    (tmp_path / "ceilings.json").write_text(json.dumps(CEILINGS))
    problem = Problem("full-batch", range(60_000), range(60_000), (784, 196, 10))
    monkeypatch.setattr("bench.cases.case", lambda name: problem)
    failed = Part("deep", [], 1, outcome="exit code 1", output="the reason")
    text = summary(timings(tmp_path), [failed], {"gpu": None})
    assert "| full-batch | ours | 800.0 | 1.00 | 94% |" in text
    assert "| full-batch | ours-tf32 WRONG | 200.0 | 0.20 | 47% |" in text
    assert "torch" not in text
    assert "## deep: exit code 1" in text
    assert "the reason" in text


def test_without_a_gpu_everything_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    fails = Part("ceilings", [sys.executable, "-m", "bench.gpu_ceilings", "--out", str(tmp_path)], 60)
    monkeypatch.setattr(on_gpu, "parts", lambda out, quick: [fails])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert on_gpu.main(["--out", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "on_gpu.json").read_text())
    assert report["parts"][0]["outcome"] == "exit code 2"
    assert "there are no ceilings to measure here" in report["parts"][0]["output"]
    assert (tmp_path / "on_gpu.md").read_text().strip() in capsys.readouterr().out


def test_help() -> None:
    for module in ("bench.on_gpu", "bench.gpu_ceilings"):
        subprocess.run([sys.executable, "-m", module, "--help"], check=True, capture_output=True, cwd=on_gpu.ROOT)
