"""What a training run is: one record of plain values, from defaults, a preset, a TOML file and the command line."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..checks import check_count
from ..devices import PRECISIONS
from ..runs.checkpoint import check_every, check_same
from ..runs.record import FILE, read
from .errors import Parser

__all__ = ["PRESETS", "Config", "parse"]

MAX_BYTES = 1 << 20  # of a configuration file
FREE = ("device", "epochs", "threads", "checkpoint_every", "report_every", "out", "quiet", "dry_run")  # see parse


def _option(default: Any, text: str, choices: Sequence[str] = (), metavar: str | None = None) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices or None, "metavar": metavar})


@dataclass(frozen=True)
class Config:
    """Every option of ``python -m mlp_xp.train``; the help text of each is in its field."""

    preset: str = _option("mnist-10", "a case of the lectures to start from", metavar="NAME")
    data: str = _option("mnist", "mnist, mnist:5,8, fashion, xor, moons, spirals, or a path", metavar="DATA")
    hidden: tuple[int, ...] = _option((196,), "units of the hidden layers, as in 128,64; '' for none", metavar="N,N")
    activation: tuple[str, ...] = _option(("sigmoid",), "of the hidden layers: one name, or one each", metavar="G,G")
    output: str = _option(
        "softmax", "output and loss: softmax, sigmoid, identity, softmax_of_sigmoid, sigmoid_mse, perceptron"
    )
    init: str = _option("xavier_normal", "law of the first weights", metavar="LAW")
    device: str = _option("cpu", "cpu, cuda, cuda:N, torch, torch:DEVICE, jax or strict", metavar="DEVICE")
    precision: str = _option("fp32", "of products; the last three on cuda only", tuple(PRECISIONS))
    epochs: int = _option(12, "the most epochs to train for", metavar="N")
    batch_size: int = _option(128, "samples per update; 0 takes all at once", metavar="N")
    optimizer: str = _option("adam", "how parameters are updated", ("sgd", "adam", "adamw"))
    lr: float = _option(0.003, "learning rate", metavar="ETA")
    lr_bias: float | None = _option(None, "a learning rate of their own for the biases", metavar="ETA")
    momentum: float = _option(0.0, "of sgd", metavar="MU")
    nesterov: bool = _option(False, "Nesterov's momentum, for sgd")
    l2: float = _option(0.0, "l2 / 2 times the squared weights are added to the loss", metavar="LAMBDA")
    weight_decay: float = _option(0.01, "of adamw", metavar="LAMBDA")
    schedule: str = _option("constant", "of the learning rate", ("constant", "step", "exponential", "cosine"))
    warm_up: int = _option(0, "epochs over which the learning rate rises first", metavar="N")
    tol: float | None = _option(None, "stop when the validation loss has not fallen by more for --patience epochs")
    patience: int = _option(10, "epochs to wait for --tol", metavar="N")
    validation: float = _option(0.0, "share of the training data kept for validation", metavar="SHARE")
    plan: str = _option("auto", "how the data are stored", ("auto", "dense", "zero", "ragged"))
    threads: int | None = _option(None, "threads on the CPU; all cores if not given", metavar="N")
    seed: int = _option(0, "of weights, shuffles and splits", metavar="N")
    report_every: int = _option(0, "epochs between printed lines; 0 prints ten in all", metavar="N")
    out: str | None = _option(None, "run folder; a new one under runs/ if not given", metavar="DIR")
    checkpoint_every: str | None = _option(
        None, "epochs between two saves, as in 5, or seconds, as in 30s; about every 30s if not given", metavar="N"
    )
    resume: str | None = _option(None, "go on with the run in this folder", metavar="RUN")
    quiet: bool = _option(False, "print the final table only")
    dry_run: bool = _option(False, "check everything, say what would be done, and stop")

    def __post_init__(self) -> None:
        for part in fields(self):
            value, choices = getattr(self, part.name), part.metadata["choices"]
            if choices and value not in choices:
                raise ValueError(f"{part.name} must be one of {', '.join(choices)}, got {value!r}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must be a share in [0, 1), got {self.validation!r}")
        for name in ("batch_size", "warm_up", "report_every"):
            check_count(name, getattr(self, name), least=0)
        check_every(self.checkpoint_every)


PRESETS: dict[str, dict[str, Any]] = {
    "mnist-10": {},
    "mnist-5v8": {
        "data": "mnist:5,8", "output": "sigmoid", "init": "lecun_normal",
        "optimizer": "sgd", "lr": 0.1, "batch_size": 0, "epochs": 500, "report_every": 100,
    },
    "softmax-of-sigmoid": {
        "output": "softmax_of_sigmoid", "optimizer": "sgd", "lr": 2.0, "batch_size": 0, "epochs": 100,
    },
    "regression": {
        "data": "mnist:5,8", "output": "sigmoid_mse", "init": "lecun_normal",
        "optimizer": "sgd", "lr": 1.0, "batch_size": 0, "epochs": 500, "report_every": 100,
    },
    "xor": {
        "data": "xor", "hidden": (4,), "activation": ("tanh",), "output": "sigmoid",
        "lr": 0.1, "batch_size": 0, "epochs": 200, "seed": 1,
    },
}  # fmt: skip
"""The lectures' cases: S7's data with softmax, S4, S7, S6 and S15."""


def parse(arguments: Sequence[str] | None = None) -> Config:
    """Return the configuration that command-line arguments describe.

    The command line goes before the file of ``--config``, the file before the preset, the preset before the defaults.

    With ``--resume`` they all come from the run. Options that are repeated must be those it was started with, but for
    the ones that do not change what it has done so far: `FREE`.

    Raises
    ------
    ValueError
        If an option, a name or a value is not known, or is not that of the run to resume.
    SystemExit
        After ``--help``.
    """
    parser = Parser(
        prog="python -m mlp_xp.train",
        description="Train a multilayer perceptron. Without arguments: ten digits of MNIST on the CPU.",
        epilog=f"presets: {', '.join(PRESETS)}",
    )
    parser.add_argument("--config", metavar="FILE", help="a TOML file of these options, with _ for - in names")
    for part in fields(Config):
        _add(parser, part)
    given = vars(parser.parse_args(arguments))
    path = given.pop("config")
    chosen = {name: _convert(name, value) for name, value in given.items() if value is not None}
    chosen = (_read(path) if path else {}) | chosen
    if "resume" in chosen:
        return _resumed(chosen["resume"], chosen)
    preset = chosen.get("preset", "mnist-10")
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose from {', '.join(PRESETS)}")
    return replace(Config(), **{**PRESETS[preset], **chosen})


def _resumed(folder: str, given: dict[str, Any]) -> Config:
    """Return the configuration of the run in a folder, with the options that were given beside ``--resume``."""
    path = Path(folder, FILE)
    if not path.is_file():
        raise ValueError(f"{folder} holds no {FILE} to resume from; nothing was saved there: start the run anew")
    saved = read(path).config
    try:
        saved["data"]
        then = Config(**{name: _convert(name, value) for name, value in saved.items() if value is not None})
    except (KeyError, TypeError) as error:
        problem = f"{path} was not saved by mlp_xp.train ({error!r}); resume it with the program that saved it"
        raise ValueError(problem) from None
    now = replace(then, **given)
    fixed = [part.name for part in fields(Config) if part.name not in (*FREE, "resume")]
    check_same(folder, *({name: getattr(config, name) for name in fixed} for config in (then, now)))
    if "out" in given and Path(given["out"]).resolve() != Path(folder).resolve():
        raise ValueError(f"--resume {folder} goes on in that folder; leave out --out {given['out']}")
    return replace(now, out=then.out)


def _add(parser: argparse.ArgumentParser, part: Any) -> None:
    flag = "--" + part.name.replace("_", "-")
    default = "" if part.default in (None, False, MISSING) else f" (default: {_as_text(part.default)})"
    if part.type == "bool":
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=part.metadata["help"])
    else:
        parser.add_argument(
            flag, choices=part.metadata["choices"], metavar=part.metadata["metavar"],
            help=part.metadata["help"] + default,
        )  # fmt: skip


def _as_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _convert(name: str, value: Any) -> Any:
    """Turn the text or TOML value of an option into the type of its field."""
    kind = {part.name: str(part.type) for part in fields(Config)}[name]
    items = value if isinstance(value, list) else [item.strip() for item in str(value).split(",") if item.strip()]
    try:
        if kind.startswith("tuple[int") and not any(isinstance(item, float | bool) for item in items):
            return tuple(int(item) for item in items)
        if kind.startswith("tuple[str"):
            return tuple(str(item) for item in items)
        if kind.startswith("int") and not isinstance(value, float | bool):
            return int(value)
        if kind.startswith("float") and not isinstance(value, bool):
            return float(value)
        if kind == "bool" and isinstance(value, bool):
            return value
        if kind.startswith("str") and isinstance(value, str | int) and not isinstance(value, bool):
            return str(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"--{name.replace('_', '-')} takes {kind.removesuffix(' | None')}, got {value!r}")


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot read the configuration file {path}: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise ValueError(
            f"{path} has more than {MAX_BYTES} bytes, the most allowed; --config takes a few lines of TOML"
        )
    try:
        table = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from None
    known = {part.name for part in fields(Config)}
    if unknown := sorted(set(table) - known):
        raise ValueError(f"{path} sets unknown options {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return {name: _convert(name, value) for name, value in table.items()}
