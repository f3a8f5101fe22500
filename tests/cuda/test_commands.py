"""The commands on a GPU, as processes and in this one, and the notebook that shows the devices."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

from mlp_xp.devices import PRECISIONS, get_device
from mlp_xp.predict import main as predict
from mlp_xp.runs.record import FILE, read
from mlp_xp.train import main as train

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parent.parent.parent
QUICK = ["--hidden", "5", "--epochs", "3", "--quiet"]


def start(*arguments: Any, module: str = "mlp_xp.train") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def run(*arguments: Any, module: str = "mlp_xp.train") -> str:
    """Run a command as a process, and return what it prints."""
    process = start(*arguments, module=module)
    output, error = process.communicate(timeout=100)
    assert (process.returncode, error) == (0, "")
    return output


def here(*arguments: Any) -> None:
    """Train in this process."""
    assert train([str(argument) for argument in arguments]) == 0


def history(folder: Path) -> dict[str, list[float]]:
    """Return the columns of a run's history, times left out."""
    with open(folder / "history.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0] if name != "seconds"}


def assert_same_history(folder: Path, other: Path, close: float = 1e-5) -> None:
    found, wanted = history(folder), history(other)
    assert found.keys() == wanted.keys()
    for name, column in wanted.items():
        np.testing.assert_allclose(found[name], column, rtol=close, err_msg=name)


def environment(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "env.json").read_text()))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of pictures of 4 x 4, and the classes of the brightest pixel on the diagonal."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "pictures.npz"
    X, y = rng.integers(0, 50, (60, 4, 4), dtype=np.uint8), np.arange(60) % 3
    X[np.arange(60), y, y] = 255
    np.savez(path, X=X.reshape(60, 16), y=y)
    return path


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes longest, and is the same on every device."""
    monkeypatch.setattr("mlp_xp.cli.train._draw", lambda *_: None)


@pytest.fixture(scope="module")
def runs(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the same run on "cpu" and on "cuda"."""
    folder = tmp_path_factory.mktemp("runs")
    options = ["--data", pictures, "--hidden", "5", "--batch-size", "16", "--epochs", "4"]
    here(*options, "--out", folder / "cpu")
    printed = run(*options, "--device", "cuda", "--out", folder / "cuda")
    assert re.search(r"4 epochs, .* samples/s, .* in fp32\n", printed)
    return folder


def test_a_run_on_a_gpu_is_that_on_the_cpu(runs: Path) -> None:
    assert_same_history(runs / "cuda", runs / "cpu")
    found = environment(runs / "cuda")
    assert (found["device"], found["dtype"], found["precision"]) == ("cuda", "float32", "fp32")
    assert found["gpu"] == get_device("cuda").hardware()
    assert re.match(r"\d+\.\d+", next(v for name, v in found["versions"].items() if "cupy" in name and v))
    assert environment(runs / "cpu")["gpu"] is None
    assert {path.name for path in (runs / "cuda").iterdir()} == {path.name for path in (runs / "cpu").iterdir()}


def test_a_model_of_a_gpu_predicts_anywhere(runs: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict([str(runs / "cuda"), str(pictures)]) == 0
    wanted = capsys.readouterr().out
    assert len(wanted.splitlines()) == 61
    assert run(runs / "cuda", pictures, "--device", "cuda", module="mlp_xp.predict") == wanted


@pytest.mark.needs("onnx")
def test_a_model_of_a_gpu_is_exported(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    assert "int64[n] label" in run(runs / "cuda", "--onnx", "--out", out, module="mlp_xp.export")
    assert out.stat().st_size > 0


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(("first", "second"), [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
def test_a_run_goes_on_on_another_device(first: str, second: str, pictures: Path, tmp_path: Path) -> None:
    options = ["--data", pictures, *QUICK, "--batch-size", "16", "--optimizer", "adamw", "--schedule", "constant"]
    here(*options, "--epochs", "6", "--out", tmp_path / "straight")
    here(*options, "--device", first, "--out", tmp_path / "moved")
    here("--resume", tmp_path / "moved", "--device", second, "--epochs", "6")
    assert_same_history(tmp_path / "moved", tmp_path / "straight")
    found = environment(tmp_path / "moved")
    assert [each["device"] for each in (*found["before"], found)] == [first, second]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_on_a_gpu_is_stopped_and_goes_on(number: signal.Signals, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["--data", pictures, "--device", "cuda", "--hidden", "5", "--batch-size", "16"]
    options += ["--schedule", "constant", "--quiet"]
    process = start(*options, "--epochs", "100000", "--out", folder)
    while not (folder / "config.json").exists():
        assert process.poll() is None, process.communicate()
        threading.Event().wait(0.01)
    process.send_signal(number)
    output, error = process.communicate(timeout=60)
    assert (process.returncode, output) == (128 + number, "")
    assert re.fullmatch(
        rf"mlp-xp train: stopped by {number.name} in epoch \d.*; go on with: python -m .* --resume \S+\n", error
    )
    epochs = read(folder / FILE).snapshot.epoch + 2
    here("--resume", folder, "--epochs", epochs, "--quiet")
    here(*options, "--epochs", epochs, "--out", tmp_path / "straight")
    assert_same_history(folder, tmp_path / "straight", close=0)
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "straight" / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_an_option(precision: str, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    options = ["--data", pictures, *QUICK, "--batch-size", "0", "--optimizer", "sgd"]
    here(*options, "--out", tmp_path / "cpu", "--precision", "fp64")
    here(*options, "--out", tmp_path / "run", "--device", "cuda", "--precision", precision)
    assert f"GFLOP/s in {precision}" in capsys.readouterr().out
    assert environment(tmp_path / "run")["precision"] == precision
    close = {"fp64": 1e-12, "tf32": 1e-2, "bf16": 3e-2}.get(precision, 1e-5)
    np.testing.assert_allclose(history(tmp_path / "run")["loss"], history(tmp_path / "cpu")["loss"], rtol=close)


CASES = {
    "xor": ["--preset", "xor", "--epochs", "5"],
    "logistic regression": ["--data", "moons", "--hidden", "", "--output", "sigmoid", "--optimizer", "sgd"],
    "softmax regression": ["--data", "spirals", "--hidden", "", "--batch-size", "0", "--l2", "0.01"],
    "the perceptron": ["--data", "moons", "--hidden", "", "--output", "perceptron", "--optimizer", "sgd"],
    "regression": ["--data", "moons", "--hidden", "4,3", "--activation", "tanh,relu", "--output", "sigmoid_mse"],
    "early stopping": ["--data", "moons", "--hidden", "4", "--tol", "0.1", "--patience", "1", "--epochs", "9"],
}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_run_is_that_on_the_cpu(case: str, tmp_path: Path, capsys: Any) -> None:
    options = ["--epochs", "3", "--quiet", "--precision", "fp64", *CASES[case]]
    printed = []
    for device in ("cpu", "cuda"):
        here(*options, "--device", device, "--out", tmp_path / device)
        printed.append(capsys.readouterr().out.splitlines()[:-2])  # then come times and the folder
    assert_same_history(tmp_path / "cuda", tmp_path / "cpu", close=1e-10)
    assert printed[1] == printed[0]


@pytest.mark.usefixtures("no_pictures")
def test_the_second_gpu_is_an_option(second_gpu: str, pictures: Path, tmp_path: Path) -> None:
    options = ["--data", pictures, *QUICK]
    here(*options, "--out", tmp_path / "cpu")
    here(*options, "--device", second_gpu, "--out", tmp_path / "run")
    assert_same_history(tmp_path / "run", tmp_path / "cpu")
    assert environment(tmp_path / "run")["device"] == second_gpu


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cuda:99", r"device 'cuda:99' was asked for, but this machine has \d GPU\(s\), numbered from 0"),
        ("cuda:one", "unknown device 'cuda:one'; after the colon comes the number of the GPU, as in 'cuda:1'"),
        ("cuda:", "unknown device 'cuda:'; choose from 'cpu', 'cuda', 'cuda:N', .*"),
    ],
    ids=["99", "one", "none"],
)
def test_a_gpu_that_is_not_there_is_one_line(device: str, words: str, tmp_path: Path, capsys: Any) -> None:
    assert train(["--preset", "xor", "--device", device, "--out", str(tmp_path / "run")]) == 2
    assert re.fullmatch(rf"mlp-xp train: {words}\n", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


# The memory of the GPU.

LIMITED = """
import sys
import mlp_xp.cli.train
import mlp_xp.kernels.cuda.products
mlp_xp.cli.train._draw = lambda *_: None
mlp_xp.kernels.cuda.products._WORKSPACE = 4096
sys.exit(mlp_xp.cli.train.main(sys.argv[1:]))
"""


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Train as a process that may take so many bytes of the GPU: f(bytes, *arguments)."""
    rng = np.random.default_rng(0)
    X, y = rng.integers(1, 256, (19_200, 50), dtype=np.uint8), rng.integers(0, 3, 19_200)
    np.savez(tmp_path / "wide.npz", X=X, y=y)
    monkeypatch.setenv("CUPY_GPU_MEMORY_LIMIT", "0")

    def train_with(limit: int, *arguments: Any) -> subprocess.CompletedProcess[str]:
        monkeypatch.setenv("CUPY_GPU_MEMORY_LIMIT", str(limit))
        command = [sys.executable, "-c", LIMITED, "--data", tmp_path / "wide.npz", *QUICK, "--device", "cuda"]
        done = subprocess.run([*map(str, [*command, *arguments])], capture_output=True, text=True, cwd=ROOT)
        monkeypatch.setenv("CUPY_GPU_MEMORY_LIMIT", "0")
        return done

    return train_with


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("batch_size", [0, 1000])
def test_data_that_do_not_fit_are_streamed(batch_size: int, limited: Any, tmp_path: Path) -> None:
    options = ["--batch-size", batch_size, "--epochs", "2", "--plan", "dense"]
    here("--data", tmp_path / "wide.npz", *QUICK, *options, "--out", tmp_path / "cpu")
    done = limited(780_000, *options, "--out", tmp_path / "run")  # the data take 0.8 MB, others 0.2
    assert done.returncode == 0, done.stderr
    assert "Out of memory allocating" in done.stderr
    assert re.search(r"cuda goes on with shards of \d+ rows, with the data on the host\n", done.stderr)
    assert "come from the host" in environment(tmp_path / "run")["plan"]["reason"]
    assert_same_history(tmp_path / "run", tmp_path / "cpu")


def test_a_gpu_without_room_for_anything_is_one_line(limited: Any, tmp_path: Path) -> None:
    done = limited(100_000, "--out", tmp_path / "run")
    assert done.returncode == 2
    words = r"mlp-xp train: out of memory \(.*Out of memory allocating [\d,]+ bytes .*; use fewer samples"
    assert re.match(words, done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr


# The notebook.


def test_the_notebook_shows_the_gpu(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells on a few images and small layers, without a kernel of Jupyter's."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    notebook = nbformat.read(ROOT / "notebooks" / "07_backends_and_speed.ipynb", as_version=4)
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    for old, new in {"[:10_000]": "[:300]", "[:2000]": "[:200]", "196": "6", "784, 64": "784, 5", "0.05": "0"}.items():
        assert old in source
        source = source.replace(old, new)
    with pyplot.rc_context():
        exec(source, {})
    pyplot.close("all")
    printed = capsys.readouterr().out
    assert "CuPy (CUDA)        device='cuda'\n" in printed
    for rows in (r"CuPy \(CUDA\) +\d\.\d{7} .*e-\d\d +\d\.\d{14}", r"CuPy \(CUDA\) +\d+\.\d{4} +\d+\.\d{4} "):
        assert re.search(rows, printed), printed
