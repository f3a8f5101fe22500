"""What a training run is: one record of plain values, from defaults, a preset, a file and the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from ..checks import check_count
from ..devices import PRECISIONS
from ..rows.plan import PLANS
from ..runs.checkpoint import check_every
from ..runs.folder import RunFolder
from ..runs.record import check_same, read
from .distributed import OPTION
from .errors import Parser, did_you_mean, printable
from .kinds import convert
from .option_files import read_options
from .presets import PRESETS

__all__ = ["DESCENT", "OWN", "Config", "flag", "parse"]

MAX_UNITS = (1 << 31) - 1  # of a layer: BLAS counts in 32 bits
# of each optimizer, for batches of 128 and a falling rate
RATES = {"sgd": 0.2, "adam": 0.005, "adamw": 0.005, "lbfgs": 1.0}
DESCENT = ("lr", "lr_bias", "schedule", "warm_up", "dropout")  # what all have that descend by a learning rate
OWN: dict[str, tuple[str, ...]] = {
    "sgd": (*DESCENT, "momentum", "nesterov"),
    "adam": DESCENT,
    "adamw": (*DESCENT, "weight_decay"),
    "lbfgs": (),
}  # options of each optimizer that not all have


def _option(
    default: Any, text: str, choices: Sequence[str] = (), metavar: str | None = None, free: bool = False
) -> Any:
    """Make a field of Config. With `free`, a run may be resumed with another value: it changes nothing done so far."""
    return field(default=default, metadata={"help": text, "choices": choices, "metavar": metavar, "free": free})


@dataclass(frozen=True)
class Config:
    """Every option of ``python -m mlp_xp.train``; the help text of each is in its field."""

    preset: str | None = _option(None, "a case of the lectures to start from", metavar="NAME")
    data: str = _option("mnist", "mnist, mnist:5,8, fashion, xor, moons, spirals, or a path", metavar="DATA")
    hidden: tuple[int, ...] = _option((196,), "units of the hidden layers, as in 128,64; '' for none", metavar="N,N")
    activation: tuple[str, ...] = _option(("relu",), "of the hidden layers: one name, or one each", metavar="G,G")
    output: str = _option(
        "softmax", "output and loss: softmax, sigmoid, identity, softmax_of_sigmoid, sigmoid_mse, perceptron"
    )
    init: str | None = _option(
        None, "law of the first weights; he_normal with relu, else xavier_normal, if not given", metavar="LAW"
    )
    device: str = _option("cpu", "cpu, cuda, cuda:N, torch, torch:DEVICE, jax or strict", metavar="DEVICE", free=True)
    precision: str = _option("fp32", "of products; the last three on cuda only", tuple(PRECISIONS))
    epochs: int | None = _option(
        None, "the most epochs to train for; 5 for MNIST, and more for less data, if not given", metavar="N", free=True
    )
    batch_size: int = _option(128, "samples per update; 0 takes all at once, as lbfgs has to", metavar="N")
    optimizer: str = _option("adam", "how parameters are updated", tuple(RATES))
    lr: float = _option(RATES["adam"], "learning rate; of sgd 0.2 (1 - momentum) if not given", metavar="ETA")
    lr_bias: float | None = _option(None, "a learning rate of their own for the biases", metavar="ETA")
    momentum: float = _option(0.0, "of sgd", metavar="MU")
    nesterov: bool = _option(False, "Nesterov's momentum, for sgd")
    l2: float = _option(0.0, "l2 / 2 times the squared weights are added to the loss", metavar="LAMBDA")
    weight_decay: float = _option(0.01, "of adamw", metavar="LAMBDA")
    dropout: tuple[float, ...] = _option(
        (0.0,), "share of hidden units that each sample leaves out in training: one rate, or one each", metavar="P,P"
    )
    schedule: str = _option("cosine", "of the learning rate", ("constant", "step", "exponential", "cosine"))
    warm_up: int = _option(0, "epochs over which the learning rate rises first", metavar="N")
    tol: float | None = _option(
        None, "stop when the validation loss has not fallen by more for --patience epochs", metavar="TOL"
    )
    patience: int = _option(10, "epochs to wait for --tol", metavar="N")
    validation: float = _option(
        0.0, "share of the training data kept for validation; with --tol, 0.1 if not given", metavar="SHARE"
    )
    plan: str = _option("auto", "how the data are stored", PLANS)
    threads: int | None = _option(None, "threads on the CPU; all cores if not given", metavar="N", free=True)
    seed: int = _option(0, "of weights, shuffles, splits and dropout", metavar="N")
    report_every: int = _option(
        0, "epochs between printed lines; 0 prints ten to twenty in all", metavar="N", free=True
    )
    out: str | None = _option(None, "run folder; a new one under runs/ if not given", metavar="DIR", free=True)
    checkpoint_every: str | None = _option(
        None, "epochs between two saves, as in 5, or seconds, as in 30s; about every 30s if not given",
        metavar="N", free=True,
    )  # fmt: skip
    resume: str | None = _option(None, "go on with the run in this folder", metavar="RUN", free=True)
    quiet: bool = _option(False, "print the final table only", free=True)
    dry_run: bool = _option(False, "check everything, say what would be done, and stop", free=True)

    def __post_init__(self) -> None:
        for part in fields(self):
            value, choices = getattr(self, part.name), part.metadata["choices"]
            if choices and value not in choices:
                hint = did_you_mean(str(value), choices)
                raise ValueError(f"{flag(part.name)} takes one of {', '.join(choices)}; got {value!r}{hint}")
            if isinstance(value, str) and not _is_unicode(value):
                raise ValueError(f"{flag(part.name)} {printable(value)} is no UTF-8, so no file can keep it; rename it")
        for name, kind in (("validation", "share"), ("momentum", "number")):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise ValueError(f"{flag(name)} takes a {kind} from 0 up to, but not including, 1; got {value!r}")
        if not all(0 <= rate < 1 for rate in self.dropout):
            raise ValueError(f"--dropout takes rates from 0 up to, but not including, 1; got {_text_of(self.dropout)}")
        for name in ("batch_size", "warm_up", "report_every"):
            check_count(flag(name), getattr(self, name), least=0)
        for name in ("epochs", "patience", "threads"):
            if getattr(self, name) is not None:
                check_count(flag(name), getattr(self, name))
        if max(self.hidden, default=0) > MAX_UNITS:
            raise ValueError(f"--hidden takes at most {MAX_UNITS} units in a layer, got {max(self.hidden)}")
        check_every(self.checkpoint_every)


def parse(arguments: Sequence[str] | None = None) -> Config:
    """Return the configuration that command-line arguments describe.

    The command line goes before the file of ``--config``, the file before the preset, the preset before the defaults.

    With ``--resume`` they all come from the run. Options that are repeated must be those it was started with, unless
    they are free: they do not change what the run has done so far.

    Raises
    ------
    ValueError
        If an option, a name or a value is not known, is not that of the run to resume, or has no effect, because the
        optimizer does not have it or nothing waits for it.
    SystemExit
        After ``--help`` or ``--version``.
    """
    given = vars(_parser().parse_args(arguments))
    path, _ = given.pop("config"), given.pop("distributed")  # which is acted on before anything is read
    chosen = {name: _convert(name, value) for name, value in given.items() if value is not None}
    chosen = (_options_of(path) if path else {}) | chosen
    if "resume" in chosen:
        return _resumed(chosen["resume"], chosen)
    preset = chosen.get("preset")
    if preset is not None and preset not in PRESETS:
        hint = did_you_mean(preset, PRESETS)
        raise ValueError(f"unknown preset {preset!r}{hint}; choose from {', '.join(PRESETS)}")
    options = _effective((PRESETS[preset] if preset else {}) | chosen, chosen)
    if options.get("optimizer") == "lbfgs":
        options = {"batch_size": 0} | options
    config = replace(Config(), **options)
    if config.tol is None and config.patience != Config.patience:
        raise ValueError("--patience has no effect without --tol, which it waits for; give both, or neither")
    return config if "lr" in options else replace(config, lr=_fitting_rate(config))


def flag(name: str) -> str:
    """Return a field's name as it is written on the command line."""
    return "--" + name.replace("_", "-")


def _effective(options: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the optimizer has, and refuse others that were chosen.

    A preset may be for another optimizer, and a run's config.json holds the defaults of all: neither was chosen.
    """
    optimizer = options.get("optimizer", Config.optimizer)
    if optimizer not in OWN:
        return options
    missing = {name for own in OWN.values() for name in own}.difference(OWN[optimizer])
    if not any(options.get("dropout", ())):
        missing.discard("dropout")  # of zeros, which is none: all have that
    defaults = {"lr": RATES[optimizer]}
    refused = [
        name for name in sorted(missing & chosen.keys()) if chosen[name] != defaults.get(name, getattr(Config, name))
    ]
    if refused:
        those = " or ".join(other for other, own in OWN.items() if {*refused} <= {*own})
        raise ValueError(
            f"--optimizer {optimizer} has no {', '.join(map(flag, refused))}; leave that out"
            + (f", or choose {those}" if those else "")
        )
    return {name: value for name, value in options.items() if name not in missing}


def _fitting_rate(config: Config) -> float:
    """Return the learning rate for an optimizer; momentum makes steps 1 / (1 - momentum) times as long."""
    rate = RATES[config.optimizer]
    return rate * (1 - config.momentum) if config.optimizer == "sgd" else rate


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m mlp_xp.train",
        description="Train a multilayer perceptron. Without arguments: ten digits of MNIST on the CPU.",
        epilog=f"presets: {', '.join(PRESETS)}",
    )
    version = sys.modules[__name__.partition(".")[0]].__version__
    parser.add_argument("--version", action="version", version=f"mlp_xp {version}")
    parser.add_argument(
        "--config", metavar="FILE", help="a TOML file of these options, with _ for - in names, or a run's config.json"
    )
    parser.add_argument(
        OPTION, action="store_true", help="share the work with the other processes that mpiexec or srun started"
    )
    for part in fields(Config):
        text, choices = part.metadata["help"], part.metadata["choices"]
        if _types()[part.name] is bool:
            parser.add_argument(flag(part.name), action=argparse.BooleanOptionalAction, help=text)
            continue
        default = "" if part.default in (None, MISSING) else f" (default: {_text_of(part.default)})"
        metavar = f"{{{','.join(choices)}}}" if choices else part.metadata["metavar"]
        parser.add_argument(flag(part.name), metavar=metavar, help=text + default)
    return parser


def _text_of(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _resumed(folder: str, given: dict[str, Any]) -> Config:
    """Return the configuration of the run in a folder, with the options that were given beside ``--resume``."""
    path = RunFolder(folder).checkpoint
    if not path.is_file():
        raise ValueError(f"{folder} holds no {path.name} to resume from; nothing was saved there: start the run anew")
    saved = read(path).config
    try:
        saved["data"]
        then = Config(**{name: _convert(name, value) for name, value in saved.items() if value is not None})
    except (KeyError, TypeError) as error:
        problem = f"{path} was not saved by mlp_xp.train ({error!r}); resume it with the program that saved it"
        raise ValueError(problem) from None
    now = replace(then, **given)
    fixed = [part.name for part in fields(Config) if not part.metadata["free"]]
    check_same(folder, *({name: getattr(config, name) for name in fixed} for config in (then, now)))
    if "out" in given and Path(given["out"]).resolve() != Path(folder).resolve():
        raise ValueError(f"--resume {folder} goes on in that folder; leave out --out {given['out']}")
    return replace(now, out=then.out)


def _types() -> dict[str, Any]:
    """Return the type of each field, without the None of those that may be left out."""
    hints = get_type_hints(Config)
    return {name: next((t for t in get_args(hint) if NoneType in get_args(hint)), hint) for name, hint in hints.items()}


def _convert(name: str, value: Any) -> Any:
    """Turn the text, TOML or JSON value of an option into the type of its field."""
    return convert(flag(name), _types()[name], value)


def _options_of(path: str) -> dict[str, Any]:
    """Return the options that a file sets."""
    table, known = read_options(path), [part.name for part in fields(Config)]
    if unknown := sorted(set(table) - set(known)):
        hint = did_you_mean(unknown[0], known)
        raise ValueError(
            f"{path} sets unknown options {', '.join(unknown)}{hint}; known are {', '.join(sorted(known))}"
        )
    return {name: _convert(name, value) for name, value in table.items()}


def _is_unicode(text: str) -> bool:
    """Tell a proper text from one with the stand-ins that Python puts for bytes of a name that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
