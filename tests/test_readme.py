"""Every command and every line of Python in the README is run as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import mlp_xp as mx
from mlp_xp.devices import get_device

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    command.strip().removeprefix("$ ").partition("#")[0].strip()
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    for command in line.split("&&")
]
# these need the network, or are the very run that this test is part of
INSTALLS = [command for command in COMMANDS if command.startswith("pip install")]
OWN_RUN = "python -m pytest"
TRAINS = [command for command in COMMANDS if command.startswith("python -m mlp_xp.train")]


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    arguments = shlex.split(command)
    assert arguments[0] == "python"
    environment = {**os.environ, "MPLBACKEND": "agg"}
    return subprocess.run(
        [sys.executable, *arguments[1:]], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


def test_the_readme_has_no_other_commands() -> None:
    rest = set(COMMANDS) - set(INSTALLS) - set(TRAINS) - {OWN_RUN}
    assert {command.split()[2] for command in rest} == {
        "mlp_xp.predict",
        "mlp_xp.trace",
        "mlp_xp.export",
        "bench.compare",
        "bench.time_to_accuracy",
    }
    assert len(rest) == 6


def test_the_trace_command(tmp_path: Path) -> None:
    (command,) = (command for command in COMMANDS if "mlp_xp.trace" in command)
    done = shell(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "dW[1] = dZ[1]ᵀ A[0]" in done.stdout


@pytest.mark.parametrize("command", [command for command in COMMANDS if "bench.compare" in command])
def test_the_comparisons_name_what_there_is(command: str) -> None:
    from bench.cases import CASES

    words = command.split()
    assert words[3:4] in ([], ["--case"])
    assert set(words[4:]) <= set(CASES)


def test_the_time_to_accuracy_is_to_be_had() -> None:
    (command,) = (command for command in COMMANDS if "bench.time_to_accuracy" in command)
    assert "test accuracy" in shell(f"{command} --help", ROOT).stdout


@pytest.mark.parametrize("command", INSTALLS)
def test_installs_name_extras_that_there_are(command: str) -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.search(r"\[(.*)\]", command)
    assert named is not None
    assert set(named[1].split(",")) <= set(extras)


@pytest.mark.slow
def test_command_one_trains_mnist_and_its_run_folder_predicts(tmp_path: Path) -> None:
    from PIL import Image

    assert TRAINS[0] == "python -m mlp_xp.train"
    done = shell(TRAINS[0], tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    names = {path.name for path in folder.iterdir()}
    files = {"checkpoint.safetensors", "config.json", "env.json", "history.csv", "model.safetensors"}
    assert names == {".lock", "plots", *files}
    assert len(list((folder / "plots").glob("*.png"))) == 5
    _, test = mx.datasets.mnist()
    model = mx.MLP.load(folder / "model.safetensors")
    assert model.score(test.X, test.y) >= 0.975

    right = np.flatnonzero(model.predict(test.X[:100]) == test.y[:100])[0]
    Image.fromarray(test.X[right].reshape(28, 28)).save(tmp_path / "digit.png")
    command = next(command for command in COMMANDS if "predict" in command).replace("NAME", folder.name)
    said = shell(command, tmp_path)
    assert said.returncode == 0, said.stderr
    assert said.stdout.split()[1] == str(test.y[right])

    command = next(command for command in COMMANDS if "mlp_xp.export" in command).replace("NAME", folder.name)
    done = shell(command, tmp_path)
    if find_spec("onnx"):
        assert done.returncode == 0, done.stderr
        assert (folder / "model.onnx").stat().st_size > 4 * model.layout.size
    else:
        assert (done.returncode, "mlp_xp[onnx]" in done.stderr) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("command", TRAINS[1:])
def test_the_other_train_commands(command: str, tmp_path: Path) -> None:
    if "--device cuda" in command:
        try:
            get_device("cuda")
        except ValueError:
            done = shell(command, tmp_path)
            assert done.returncode == 2
            assert len(done.stderr.splitlines()) == 1
            return
    if "--help" not in command:
        command += " --epochs 2"  # one option more for speed: the last one counts
    done = shell(command, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_lines_of_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    score, *epochs = capsys.readouterr().out.splitlines()
    assert float(score) > 0.95
    assert [line.split()[0] for line in epochs] == ["1", "2"]


def test_the_table_quotes_the_code() -> None:
    package = Path(mx.__file__).parent
    source = "".join((package / name).read_text(encoding="utf-8") for name in ("model.py", "optim/sgd.py"))
    table = README[README.index("| on the slide") : README.index("What each operation computes")]
    quoted = [code for code in re.findall(r"`([^`]+)`", table) if "=" in code and " " in code]
    assert len(quoted) == 6
    for code in quoted:
        assert code in source
