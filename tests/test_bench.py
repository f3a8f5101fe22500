"""The benchmarks judge others, so they are judged here: the reference, the peers, the statistics, the reports."""

from __future__ import annotations

import builtins
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import (
    compare,
    cost_model,
    estimators,
    fixed_costs,
    memory,
    out_of_core,
    profile,
    report,
    scaling,
    time_to_accuracy,
)
from bench import map as whole_map
from bench.cases import CASES, case
from bench.charts import label_of
from bench.compare import Row, conclusion, epochs_a_round, interleave, table, wobble
from bench.contender import CONTENDERS, TOLERANCE, Contender, UnavailableError, build, early_verdict
from bench.map import Cell
from bench.peers.textbook import Textbook
from bench.problem import Parameters, Problem, _update
from mlp_xp.kernels.cpu import compiled

RNG = np.random.default_rng(0)
SMALL = Problem(
    "small",
    RNG.integers(0, 256, (60, 30), dtype=np.uint8),
    RNG.integers(0, 4, 60, dtype=np.uint8),
    sizes=(30, 12, 7, 4),
    learning_rate=0.5,
)
BATCHED = replace(SMALL, batch_size=16, activation="relu")  # 16, 16, 16 and the remainder, 12
FLOATS = RNG.standard_normal((60, 30), dtype=np.float32)
VALUES = RNG.standard_normal((60, 4), dtype=np.float32)
KINDS = {
    "full batch": SMALL,
    "mini-batch": BATCHED,
    "momentum": replace(BATCHED, optimizer="momentum", learning_rate=0.05, activation="tanh"),
    "Adam, one linear output": replace(
        BATCHED, X=FLOATS, y=VALUES[:, :1], sizes=(30, 12, 1), output="linear", optimizer="adam", learning_rate=0.003
    ),
    "Adam, full batch, float64": replace(SMALL, optimizer="adam", learning_rate=0.003, dtype="float64"),
    "linear outputs, float64": replace(
        BATCHED, y=VALUES.astype(float), output="linear", dtype="float64", learning_rate=0.1
    ),
}
# torch.compile takes longer than all other tests together, and is checked whenever it is benchmarked; our own
# backends have tests of their own
QUICK = [name for name in CONTENDERS if not name.startswith(("torch-compile", "ours-on")) and "tf32" not in name]


class Wrong(Contender):
    """Learns a hundredth too fast."""

    def run(self, epochs: int) -> None:
        self.epoch += epochs

    def parameters(self) -> Parameters:
        return replace(SMALL, learning_rate=1.01 * SMALL.learning_rate).reference(self.epoch)[1]


@pytest.fixture(autouse=True)
def keep_torchs_threads() -> Iterator[None]:
    """A benchmark is alone in its process and sets the number of threads for good."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    yield
    if torch:
        torch.set_num_threads(threads)


def build_or_skip(name: str, problem: Problem) -> Contender:
    try:
        return build(name, problem, "cpu", threads=1)
    except UnavailableError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("output", ["softmax", "linear"])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_reference_gradient_is_the_slope_of_the_loss(activation: str, output: str) -> None:
    problem = replace(SMALL, activation=activation, output=output, learning_rate=1.0)
    if output == "linear":
        problem = replace(problem, X=FLOATS, y=VALUES)
    start = [(W.astype(float), b.astype(float)) for W, b in problem.initial]
    gradient = [(W - new_W, b - new_b) for (W, b), (new_W, new_b) in zip(start, problem.reference(1)[1], strict=True)]
    for layer, (W, b) in enumerate(start):
        for part, slope in zip((W, b), gradient[layer], strict=True):
            part.flat[1] += 1e-6
            above = problem.loss(start)
            part.flat[1] -= 2e-6
            assert (above - problem.loss(start)) / 2e-6 == pytest.approx(slope.flat[1], rel=1e-4, abs=1e-9)
            part.flat[1] += 1e-6


def test_reference_updates_are_those_of_the_papers() -> None:
    part, m, v = (np.array([x]) for x in (1.0, 0.0, 0.0))
    _update("momentum", 0.1, 1, part, np.array([2.0]), m, v)
    _update("momentum", 0.1, 2, part, np.array([1.0]), m, v)
    assert part == pytest.approx(1 - 0.1 * 2 - 0.1 * (0.9 * 2 + 1))
    part, m, v = (np.array([x]) for x in (1.0, 0.0, 0.0))
    _update("adam", 0.1, 1, part, np.array([2.0]), m, v)
    assert part == pytest.approx(0.9, abs=1e-8)  # the first is as long as the rate
    _update("adam", 0.1, 2, part, np.array([-1.0]), m, v)
    mean, square = (0.9 * 0.2 - 0.1) / 0.19, (0.999 * 4 + 1) / 1.999
    assert part == pytest.approx(0.9 - 0.1 * mean / square**0.5, abs=1e-8)


@pytest.mark.parametrize("setting", ["optimizer", "output", "activation"])
def test_reference_refuses_what_it_does_not_know(setting: str) -> None:
    with pytest.raises(ValueError, match=f"unknown {setting} 'swish'"):
        replace(SMALL, **{setting: "swish"}).reference(1)


def test_flops_count_every_product_but_the_gradient_of_the_images() -> None:
    assert replace(SMALL, sizes=(30, 12, 4)).flops == 2 * 60 * (30 * 12 + 12 * 4 + 30 * 12 + 12 * 4 + 12 * 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", QUICK)
def test_contender_trains_as_float64_does(name: str, kind: str) -> None:
    problem = KINDS[kind]
    contender = build_or_skip(name, problem)
    for (W, b), (first_W, first_b) in zip(contender.parameters(), problem.initial, strict=True):
        assert np.array_equal(W, first_W)
        assert np.array_equal(b, first_b)
    contender.run(2)
    contender.run(1)
    verdict = contender.check()
    if name != "gemm":
        assert verdict is not None
        assert verdict.update_error < (1e-4 if problem.dtype == "float32" else 1e-11)
        assert contender.parameters()[0][0].dtype == ("float64" if name == "ours-float64" else problem.dtype)
    assert contender.epoch == 3
    assert contender.settings


def test_slightly_wrong_training_fails() -> None:
    contender = Wrong(SMALL)
    contender.run(3)
    with pytest.raises(AssertionError, match="this training is wrong"):
        contender.check()
    contender.tolerance = TOLERANCE["bf16"]
    assert contender.check() is not None


@pytest.mark.needs("torch")
@pytest.mark.parametrize("kind", KINDS)
def test_step_that_torch_compiles_is_right(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.peers.torch_._compiled", lambda function, mode=None: function)
    contender = build_or_skip("torch-compile", KINDS[kind])
    contender.run(3)
    verdict = contender.check()
    assert verdict is not None
    assert verdict.update_error < (1e-4 if KINDS[kind].dtype == "float32" else 1e-11)


ADAM = replace(SMALL, batch_size=4, optimizer="adam", learning_rate=0.003)  # 15 updates an epoch
RIGHT_UPDATE = Textbook._update


def slow_biases(self: Any, gradient: list[Any]) -> None:
    """Move the first biases nine tenths of their way."""
    before = self.layers[0][1].copy()
    RIGHT_UPDATE(self, gradient)
    self.layers[0][1][:] = 0.1 * before + 0.9 * self.layers[0][1]


def mixed_bias_gradient(self: Any, gradient: list[Any]) -> None:
    """Add to the last biases' gradient some of their neighbors'."""
    gradient[-1] = gradient[-1] + 0.1 * np.roll(gradient[-1], 1)
    RIGHT_UPDATE(self, gradient)


def no_correction(self: Any, gradient: list[Any]) -> None:
    """Update as if a hundred updates had been before."""
    self.updates = max(self.updates, 100)
    RIGHT_UPDATE(self, gradient)


@pytest.mark.parametrize("wrong", [slow_biases, mixed_bias_gradient, no_correction])
def test_wrong_update_of_adam_is_caught_before_it_drifts(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = early_verdict("textbook", ADAM, "cpu", 1)
    assert right is not None
    assert right.right
    assert right.update_error < 1e-4
    monkeypatch.setattr(Textbook, "_update", wrong)
    found = early_verdict("textbook", ADAM, "cpu", 1)
    assert found is not None
    assert not found.right
    rows = compare.compare(ADAM, ["ours", "textbook", "gemm"], "cpu", 1, rounds=1, epochs=1, baseline="ours")
    assert [row.right for row in rows] == [True, False, True]
    assert "No conclusion: textbook did not train" in conclusion(rows)[1]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_wrong_bias_gradient_is_caught(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Textbook, "_update", mixed_bias_gradient)
    contender = build("textbook", replace(SMALL, optimizer=optimizer, learning_rate=0.01), "cpu", 1)
    contender.run(2)
    with pytest.raises(AssertionError, match="this training is wrong"):
        contender.check()


def test_early_training_is_ten_updates_of_adam() -> None:
    assert early_verdict("textbook", SMALL, "cpu", 1) is None
    assert early_verdict("textbook", replace(ADAM, batch_size=None), "cpu", 1) is None
    assert early_verdict("gemm", ADAM, "cpu", 1) is None
    assert (ADAM.early.updates, len(ADAM.early.X)) == (5, 18)


def test_ours_by_numpy_leaves_the_library_to_others() -> None:
    engines = {}
    for name in ("ours-numpy", "ours"):
        contender = build(name, SMALL, "cpu", 1)
        contender.run(1)
        engines[name] = contender.settings.rpartition(" ")[2]
    assert engines["ours-numpy"] == "ThreadEngine"
    assert (engines["ours"] == "CompiledEngine") == (compiled.library() is not None)


def test_contender_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_sklearn(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("sklearn"):
            raise ModuleNotFoundError("No module named 'sklearn'")
        return real(name, *rest, **named)

    monkeypatch.delitem(__import__("sys").modules, "bench.peers.sklearn_", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    rows = compare.compare(SMALL, ["textbook", "sklearn", "gemm"], "cpu", 1, rounds=1, epochs=1, baseline="textbook")
    assert rows[1].absent == "not installed: No module named 'sklearn'"
    assert "| sklearn | not installed: No module named 'sklearn' |" in table(rows, "textbook")


@pytest.mark.needs("jax")
def test_contender_that_cannot_do_it_says_so() -> None:
    with pytest.raises(UnavailableError, match="not supported: TF32"):
        build("jax-loop-tf32", SMALL, "cpu", 1)
    with pytest.raises(UnavailableError, match="no GPU path"):
        build("sklearn", SMALL, "cuda", 1)


def test_contenders_take_turns() -> None:
    turns: list[str] = []

    class Recorder(Wrong):
        def run(self, epochs: int) -> None:
            turns.append(self.settings)

    contenders: dict[str, Contender] = {}
    for name in "AB":
        contenders[name] = Recorder(SMALL)
        contenders[name].settings = name
    seconds = interleave(contenders, rounds=2, epochs=3)
    assert "".join(turns) == "ABAB"
    assert [len(times) for times in seconds.values()] == [2, 2]


def test_rounds_end_with_their_time_but_three_there_are() -> None:
    assert len(interleave({"A": Wrong(SMALL)}, rounds=5, epochs=1, settle=0.0, limit=0.0)["A"]) == 3


def test_round_of_small_data_has_more_epochs() -> None:
    assert epochs_a_round(SMALL, "cpu") == 100
    assert epochs_a_round(SMALL, "cuda") == 20
    assert epochs_a_round(replace(SMALL, X=np.zeros((10**7, 30), np.uint8)), "cpu") == 1


def rows_of(floor: list[float], ours: list[float], right: bool = True) -> list[Row]:
    return [
        Row("ours", seconds=ours, ratio=0.5, right=right),
        Row("gemm", seconds=floor, ratio=1.0, right=True),
    ]


def test_conclusion_names_the_fastest_and_its_best_rival() -> None:
    rows = [*rows_of([1.0, 1.2], [0.5, 0.6]), Row("jax-loop", seconds=[1.0, 1.0], ratio=0.9, right=True)]
    sister = Row("ours-dense", seconds=[0.6, 0.6], ratio=0.6, right=True)
    expected = "ours is fastest: 0.55 of the time of jax-loop, the best of the others."
    assert conclusion([*rows, sister, Row("torch", absent="not installed")]) == (True, expected)


def test_small_differences_are_none() -> None:
    close = Row("jax-loop", seconds=[0.51, 0.61], ratio=0.51, right=True)
    expected = "ours and jax-loop are fastest, less than 5% apart."
    assert conclusion([*rows_of([1.0, 1.2], [0.5, 0.6]), close]) == (True, expected)


def test_no_conclusion_when_the_floor_wobbled() -> None:
    assert wobble([1.0, 1.1, 1.4]) == pytest.approx(0.4)
    conclusive, words = conclusion(rows_of([1.0, 1.4], [0.5, 0.6]))
    assert not conclusive
    assert "1.00 s to 1.40 s" in words


def test_no_conclusion_when_a_loss_is_wrong() -> None:
    conclusive, words = conclusion(rows_of([1.0, 1.0], [0.5, 0.6], right=False))
    assert not conclusive
    assert "ours did not train as float64 does" in words


def test_ratio_is_the_median_of_the_rounds_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"textbook": [1.0, 2.0, 4.0], "gemm": [2.0, 2.0, 2.0]}

    def timed(contenders: dict[str, Contender], rounds: int, epochs: int, *others: float) -> dict[str, list[float]]:
        interleave(contenders, rounds, epochs, *others)
        return times

    monkeypatch.setattr(compare, "interleave", timed)
    rows = compare.compare(SMALL, ["textbook", "gemm"], "cpu", 1, rounds=3, epochs=1, baseline="gemm")
    assert rows[0].ratio == 1.0
    assert rows[0].gflops == pytest.approx(SMALL.flops / 1e9)


def test_contender_that_breaks_does_not_take_the_others_with_it(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def break_down(self: Contender, epochs: int) -> None:
        raise MemoryError("no room\nfor anything")

    monkeypatch.setattr("bench.peers.textbook.Textbook.run", break_down)
    rows = compare.compare(SMALL, ["ours", "textbook", "gemm"], "cpu", 1, rounds=2, epochs=1, baseline="ours")
    assert [row.failed for row in rows] == [False, True, False]
    assert [len(row.seconds) for row in rows] == [2, 0, 2]
    assert rows[0].right
    assert rows[0].columns == 30
    assert "| textbook | failed: MemoryError: no room |" in table(rows, "ours")
    assert "in break_down" in capsys.readouterr().err
    assert conclusion(rows) == (False, "No conclusion: textbook failed, so nobody knows who is fastest.")


def test_no_contender_is_begun_too_late() -> None:
    names = ["textbook", "ours", "gemm"]
    rows = compare.compare(SMALL, names, "cpu", 1, rounds=1, epochs=1, baseline="textbook", seconds=0)
    assert [row.absent for row in rows] == [None, "not begun: 0 s had passed", None]
    assert [bool(row.seconds) for row in rows] == [True, False, True]


@pytest.mark.parametrize(("names", "named"), [(["ours", "nobody"], "nobody"), (["ours"], "gemm")])
def test_comparison_refuses_what_it_cannot_do(names: list[str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        compare.compare(SMALL, names, "cpu", 1, rounds=1, epochs=1, baseline="ours")


def test_compare_writes_json_table_and_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "case", lambda name: SMALL)
    code = compare.main(["--contenders", "ours,textbook", "--rounds", "2", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "compare-full-batch-cpu.json").read_text())
    assert code == (0 if found["conclusive"] else 1)
    assert [row["contender"] for row in found["rows"]] == ["ours", "textbook", "gemm"]
    assert (found["samples"], found["sizes"]) == (60, [30, 12, 7, 4])
    assert all(row["right"] and len(row["seconds"]) == 2 for row in found["rows"])
    assert {"cpu", "blas", "threads", "versions", "commit"} <= found["machine"].keys()
    assert found["conclusion"] in (tmp_path / "compare-full-batch-cpu.md").read_text()
    assert (tmp_path / "compare-full-batch-cpu.png").read_bytes().startswith(b"\x89PNG")


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    wide = replace(SMALL, X=RNG.integers(0, 256, (2000, 784), dtype=np.uint8), y=np.arange(2000) % 4, sizes=(784, 8, 4))
    float32_images = 2000 * 784 * 4 / 1e6
    assert memory.peak_megabytes("textbook", wide, "cpu", 1) > 0.9 * float32_images
    with pytest.raises(RuntimeError, match="unknown activation 'swish'"):
        memory.peak_megabytes("textbook", replace(wide, activation="swish"), "cpu", 1)


@pytest.mark.usefixtures("numpy_engine")  # it times calls of kernels
def test_profile_accounts_for_an_epoch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    X = RNG.integers(0, 256, (4000, 100), dtype=np.uint8)
    problem = replace(SMALL, X=X, y=np.arange(4000) % 4, sizes=(100, 60, 4), batch_size=500)
    monkeypatch.setattr(profile, "case", lambda name: problem)
    times, seconds = profile.profile("mini-batch", "ours", threads=1, epochs=3)
    counts = {key: len(calls) for key, calls in times.items()}
    both_layers = [
        ("affine", "n x 60"),
        ("affine", "n x 4"),
        ("weight_gradient", "60 x 100"),
        ("weight_gradient", "4 x 60"),
    ]
    assert {counts[key] for key in both_layers} == {3 * 8}
    assert seconds > 0
    assert all(second > 0 for calls in times.values() for second in calls)
    assert profile.main(["--epochs", "1", "--out", str(tmp_path)]) == 0
    assert "| affine | n x 60 | 8 |" in (tmp_path / "profile-mini-batch-ours.md").read_text()


def saved_report(path: Path, floor: list[float]) -> Path:
    def one(contender: str, seconds: list[float], **extra: Any) -> dict[str, Any]:
        return {
            "group": "full-batch",
            "stats": {"data": seconds},
            "extra_info": {"contender": contender, "epochs": 2, "flops": 3e9, **extra},
        }

    machine = {"bench": {"device": "cpu", "cpu": path.stem, "gpu": None, "threads": 2}}
    absent = [{"group": "full-batch", "contender": "torch", "reason": "not installed: torch"}]
    benchmarks = [one("ours", [2.0, 3.0]), one("gemm", floor)]
    path.write_text(json.dumps({"machine_info": machine, "absent": absent, "benchmarks": benchmarks}))
    return path


def test_report_puts_machines_side_by_side(tmp_path: Path) -> None:
    quiet, busy = saved_report(tmp_path / "quiet.json", [1.0, 1.1]), saved_report(tmp_path / "busy.json", [1.0, 2.0])
    assert report.main([str(quiet), str(busy), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| ours | 1.00 s | 1.00 | 3 | 1.00 s | 1.00 | 3 |" in text
    assert "| gemm | 500 ms | 0.50 | 6 |" in text
    assert "| torch | not installed: torch |" in text
    assert "busy, 2 threads: no conclusion" in text
    assert "quiet, 2 threads: no conclusion" not in text
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())) == 6


def test_report_refuses_another_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.json").write_text('{"machine_info": {}}')
    assert report.main([str(tmp_path / "other.json"), "--out", str(tmp_path)]) == 2
    assert "is not a report of these benchmarks" in capsys.readouterr().err


def test_time_to_accuracy_stops_at_the_last_target() -> None:
    X = np.repeat(np.eye(4, 30, dtype=np.uint8) * 255, 20, axis=0)
    y = np.repeat(np.arange(4), 20)
    easy = Problem("easy", X, y, (30, 12, 4), "tanh", learning_rate=0.5, batch_size=8)
    curve = time_to_accuracy.train(build("textbook", easy, "cpu", 1), "textbook", X / 255, y, most_epochs=50)
    assert curve.accuracy[-1] == 1.0
    assert len(curve.accuracy) < 50
    assert curve.seconds == sorted(curve.seconds)
    assert curve.time_to(0.98) == curve.seconds[-1]
    slower = replace(curve, seconds=[10 * t for t in curve.seconds])
    assert time_to_accuracy.best([slower, curve], "textbook", 0.98) is curve
    assert time_to_accuracy.best([curve], "nobody", 0.98) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.34, "12.3 s"), (1.0, "1.00 s"), (0.1274, "127 ms"), (0.9999, "1.00 s"), (4.5e-5, "45.0 µs")],
)
def test_times_read_well(seconds: float, text: str) -> None:
    assert label_of(seconds) == text


def test_cases_are_what_their_names_say() -> None:
    for name, (_, sizes, batch_size, settings) in CASES.items():
        if found := re.fullmatch(r"(?:(\w+)-)?(?:b(\d+)|full)(?:-(momentum|adam))?", name):
            assert batch_size == (int(found[2]) if found[2] else None)
            assert settings.get("optimizer", "sgd") == (found[3] or "sgd")
            assert (settings.get("dtype") == "float64") == (found[1] == "float64")
            assert (sizes[-1] == 1) == (found[1] == "regression") == (settings.get("output") == "linear")
    problem = case("regression-b32-adam")
    assert (problem.X.shape, problem.y.shape) == ((5000, 20), (5000, 1))
    assert problem.X.dtype == problem.y.dtype == "float32"


def test_table_of_categories_has_two_percent_of_ones() -> None:
    X, y = CASES["onehot-full-adam"][0](n=200)  # type: ignore[call-arg]
    assert X.shape == (200, 500)
    assert np.array_equal(X.sum(axis=1), np.full(200, 10.0))
    assert set(np.unique(X)) == {0.0, 1.0}
    assert len(np.unique(y)) > 5


def test_map_takes_the_best_of_those_that_are_right() -> None:
    cell = Cell(
        "b16",
        "ok",
        [
            Row("ours", seconds=[1.0, 4.0, 2.0], right=True),
            Row("ours-numpy", seconds=[2.0, 2.0, 4.0], right=True),
            Row("textbook", seconds=[2.0, 2.0, 4.0], right=True),
            Row("jax-loop", seconds=[0.1, 0.1, 0.1], right=False),
            Row("torch", absent="not installed: torch"),
            Row("gemm", seconds=[0.1, 0.1, 0.2], right=True),
        ],
    )
    assert cell.peer is not None
    assert cell.peer.contender == "textbook"
    assert (cell.ratio("ours"), cell.ratio("ours-numpy"), cell.ratio("torch")) == (0.5, 1.0, None)
    text = whole_map.table([cell, Cell("b32", "stopped after 5 s")])
    assert "| b16 | 0.50 | 1.00 | textbook | 2.00 s |" in text
    for note in ("unsteady", "torch: not installed: torch", "jax-loop is WRONG"):
        assert f"- **b16**: {note}" in text
    assert "- **b32**: stopped after 5 s" in text


def test_map_measures_each_case_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = ["--only", "regression-b32-adam", "--rows", "200", "--rounds", "2", "--threads", "1"]
    command += ["--contenders", "ours,ours-numpy,textbook", "--out", str(tmp_path)]
    assert whole_map.main(command) == 0
    (cell,) = json.loads((tmp_path / "map.json").read_text())["cells"]
    assert [row["contender"] for row in cell["rows"]] == ["ours", "ours-numpy", "textbook", "gemm"]
    assert all(row["right"] and len(row["seconds"]) == 2 for row in cell["rows"])
    assert "| regression-b32-adam |" in (tmp_path / "map.md").read_text()
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_map_goes_on_after_a_case_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--only", "regression-full-adam", "--contenders", "ours,nobody", "--out", str(tmp_path)]
    assert whole_map.main(command) == 1
    assert "- **regression-full-adam**: exit code 2" in (tmp_path / "map.md").read_text()
    assert "unknown contender 'nobody'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        whole_map.main(["--only", "b17"])


@pytest.mark.parametrize("task", ["predict-100", "images-100", "fit-full"])
def test_fixed_costs_are_of_right_results(task: str) -> None:
    rows = fixed_costs.measure(task, rounds=2, threads=1)
    assert rows[0].contender == "ours"
    assert rows[0].ratio == 1.0
    assert all(row.absent or (row.right and len(row.seconds) == 2) for row in rows)


def test_fixed_costs_of_wrong_results_are_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fixed_costs, "_numpy", lambda problem, X: lambda: np.zeros(len(X)))
    assert fixed_costs.main(["--only", "predict-1,predict-100", "--rounds", "1", "--out", str(tmp_path)]) == 1
    assert "| predict-100 | textbook WRONG |" in capsys.readouterr().out
    assert json.loads((tmp_path / "fixed-costs.json").read_text())["tasks"].keys() == {"predict-1", "predict-100"}


def test_process_that_lacks_a_module_has_not_failed() -> None:
    with pytest.raises(ImportError, match="No module named 'nowhere'"):
        fixed_costs._process("-c", "import nowhere")()
    assert not fixed_costs._process("-c", "1 / 0")()
    assert fixed_costs._process("-m", "mlp_xp", "train", "--help")()


def test_estimators_are_compared_on_the_same_results(monkeypatch, capsys) -> None:
    assert estimators.main(["--only", "iris", "--rounds", "1"]) == 0
    table = capsys.readouterr().out
    assert table.count("| iris") == 2
    monkeypatch.setattr(estimators, "_AGREE", -1.0)
    assert estimators.main(["--only", "iris, one epoch", "--rounds", "1"]) == 1


@pytest.mark.needs("zarr")
@pytest.mark.usefixtures("zarr_threads")
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, which tells anonymous memory")
def test_rows_in_files_train_to_the_same_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_core, "SHARD", 5000)
    options = ["--rows", "12000", "--rounds", "1", "--out", str(tmp_path)]
    assert out_of_core.main([*options, "--folder", str(tmp_path / "files")]) == 0
    first, *others = json.loads((tmp_path / "out-of-core-cpu.json").read_text())["sources"]
    assert (first["source"], first["peak_mb"]) == ("memory", None)
    assert [one["source"] for one in others] == ["map", "shards", "zarr"]
    assert all(one["right"] and one["rows"] == 12_000 and 1 < one["peak_mb"] < 250 for one in others)
    np.save(tmp_path / "files" / "shards" / "X-000.npy", np.zeros((5000, 784), np.uint8))
    monkeypatch.setattr(out_of_core, "peak_megabytes", lambda *_: 1.0)
    assert out_of_core.main([*options, "--folder", str(tmp_path / "files")]) == 1
    assert "| shards WRONG |" in (tmp_path / "out-of-core-cpu.md").read_text()


def test_cost_model_of_ranks() -> None:
    full = cost_model.Work(60_000, (784, 196, 10))
    batches, even = cost_model.Work(60_000, (784, 196, 10), 1024), cost_model.Work(60_000, (1536, 100), 1024)
    assert (full.parameters, full.updates, batches.updates) == (155_830, 1, 59)
    assert full.flops == 60_000 * 2 * (784 * 196 * 2 + 196 * 10 * 3)
    none, slow = cost_model.Link(0, 1e30), cost_model.Link(1e-3, 1e6)
    for work in (full, even):
        assert cost_model.epoch_seconds(work, 1, 8.0, slow) == (8.0, 0.0)
        assert cost_model.epoch_seconds(work, 4, 8.0, none)[0] == pytest.approx(2.0, rel=1e-6)
        seconds, exchange = cost_model.epoch_seconds(work, 2, 8.0, slow)
        assert seconds == pytest.approx(4.0 + exchange)
        assert exchange > work.updates * 2e-3
    assert cost_model.epoch_seconds(full, 3, 16.0, none)[0] == pytest.approx(6.0)  # 16 groups: 6, 5 and 5
    assert 0.53 < batches.busiest(2) < 0.54  # half of the rows, 57 % of the parameters


def test_predictions_of_the_docs_are_those_of_the_model() -> None:
    page = Path(__file__).parents[1] / "docs" / "scaling.md"
    assert cost_model.predictions() in page.read_text(encoding="utf-8")


@pytest.mark.needs("mpi")
def test_ranks_are_measured_and_compared(tmp_path: Path, capsys) -> None:
    assert scaling.main(["--ranks", "2", "--rounds", "1", "--rows", "600", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "scaling.json").read_text())["rows"]
    assert [(row["case"], row["ranks"]) for row in rows] == [
        (name, ranks) for name in scaling.CASES for ranks in (1, 2)
    ]
    assert all(row["seconds"] > 0 and row["predicted"] > 0 for row in rows)
    assert (tmp_path / "scaling.md").read_text().count("| full batch |") == 2


@pytest.mark.needs("compiled", "hatchling")
def test_the_loops_that_skip_zeros_are_measured_beside_the_peak(tmp_path: Path) -> None:
    """In a process of its own, as it keeps to one core."""
    command = [sys.executable, "-m", "bench.skipping", "--case", "narrow", "--rounds", "1", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[1])
    shares = re.findall(r"\| narrow \| \w+wards \|.* ([\d.]+)% \|", (tmp_path / "skipping.md").read_text())
    assert len(shares) == 2
    assert all(1 < float(share) < 100 for share in shares)
