"""``python -m mlp_xp.train``: train a network from the command line and leave a run folder.

The folder holds ``config.json``, ``env.json``, ``history.csv``, ``model.safetensors``, ``plots/*.png``, and
``checkpoint.safetensors``, from which ``--resume`` goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ..callbacks import History, Progress
from ..datasets import Dataset, fashion_mnist, load, mnist, moons, spirals, xor
from ..devices import PRECISIONS
from ..files.atomic import probe_writable
from ..fit import fit
from ..loop import State
from ..mlp import MLP
from ..objective import OUTPUTS
from ..optim import OPTIMIZERS, SCHEDULES, CosineDecay, Optimizer, WarmUp
from ..runs.checkpoint import Checkpoint
from ..runs.record import FILE, read
from ..runs.report import environment, result_table, write_json
from .config import Config, parse
from .errors import exit_code

__all__ = ["main", "run"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return exit_code("train", lambda: run(parse(arguments)))


def run(config: Config) -> Path | None:
    """Train as configured and return the run folder; None after a dry run.

    Raises
    ------
    ValueError, OSError
        If anything does not fit; before any training, and with nothing written.
    """
    train, test, labels = load_data(config.data, config.seed)
    train, validation = _split(train, config)
    model = make_model(config, train)
    optimizer = make_optimizer(config)
    for part in (train, test):
        model.check_targets(part.y, model.check_features(part.X).shape[0])
    folder = Path(config.resume or config.out or f"runs/{datetime.now():%Y%m%d-%H%M%S}-{config.preset}")
    if config.resume is None:
        _check_unused(folder)
    probe_writable(next(path for path in (folder, *folder.parents) if path.exists()))
    if config.dry_run:
        print(f"{model}\n{len(train.X)} training and {len(test.X)} test samples; would write {folder}")
        return None

    kept = asdict(replace(config, resume=None))
    begun = False

    def begin_folder(state: State) -> None:
        """After the first epoch, when nothing can be wrong with the input any more."""
        nonlocal begun
        if not begun:
            write_json(folder / "env.json", environment(model, config.threads, state.plan))
            write_json(folder / "config.json", {**kept, "labels": labels, "samples": len(train.X)})
            begun = True

    watched = validation or test
    shown: list[Any] = []
    if not config.quiet:
        past = read(folder / FILE).history["val_accuracy"].tolist() if config.resume else []
        score = past[-1] if past else model.score(*watched)
        shown = [Report(config, train, score), Progress(config.epochs)]
    history = fit(
        model,
        *train,
        epochs=config.epochs,
        optimizer=optimizer,
        batch_size=config.batch_size or None,
        validation=watched,
        callbacks=[begin_folder, *shown],
        tol=config.tol,
        patience=config.patience,
        threads=config.threads,
        plan=config.plan,
        checkpoint=Checkpoint(folder, config.checkpoint_every, resume=config.resume is not None, config=kept),
    )
    history.save(folder / "history.csv")
    model.save(folder / "model.safetensors")
    print(result_table(model, history, train, test, labels))
    _draw(folder / "plots", model, history, test)
    print(f"run folder: {folder}")
    return folder


def _check_unused(folder: Path) -> None:
    """Raise a ValueError if a folder has anything but what a run leaves that was killed before its first save."""
    if (folder / FILE).exists():
        raise ValueError(f"{folder} has a run already; go on with it by --resume {folder}, or choose another --out")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is already there and not a folder; choose another --out")
    names = {path.name for path in folder.glob("*") if not path.match(".mlp_xp-*.tmp")}
    if names - {".lock", "env.json"} - ({"config.json"} if "env.json" in names else set()):
        raise ValueError(f"{folder} is already there and not empty; choose another --out, or remove it")


class Report:
    """Prints a line now and then.

    With all samples at once, the cost at iteration i is the one that update i led to, as the lectures print it; with
    mini-batches it is the mean over the epoch.
    """

    def __init__(self, config: Config, train: Dataset, score: float) -> None:
        self.config, self.train = config, train
        self.every = config.report_every or max(1, config.epochs // 10)
        self.score = score

    def __call__(self, state: State) -> None:
        before, self.score = self.score, state.metrics["val_accuracy"]
        if self.config.batch_size:
            self._print("epoch", state.epoch, float(state.loss), self.score, state)
            return
        self._print("iteration", state.epoch - 1, float(state.loss), before, state)
        if state.epoch == self.config.epochs:
            squares = sum(float((W * W).sum()) for W in state.model.weights)
            cost = state.model.evaluate(*self.train)[0] + self.config.l2 / 2 * squares
            self._print("iteration", state.epoch, cost, self.score, state)

    def _print(self, unit: str, number: int, cost: float, score: float, state: State) -> None:
        if number % self.every and number != self.config.epochs:
            return
        from tqdm import tqdm

        with tqdm.external_write_mode():
            print(f"{unit} {number:5d}  cost {cost:.4f}  score {score:.4f}  {float(state.seconds):.2f} s", flush=True)


def load_data(name: str, seed: int) -> tuple[Dataset, Dataset, list[str]]:
    """Return training data, test data and the names of the classes for the value of ``--data``."""
    kind, _, rest = name.partition(":")
    if kind == "mnist":
        digits = _digits(rest) if rest else None
        return *mnist(digits), [str(digit) for digit in digits or range(10)]
    if name == "fashion":
        clothes = "T-shirt,trousers,pullover,dress,coat,sandal,shirt,sneaker,bag,ankle boot"
        return *fashion_mnist(), clothes.split(",")
    if name == "xor":
        return xor(), xor(), ["0", "1"]
    if name in ("moons", "spirals"):
        make = moons if name == "moons" else spirals
        return make(seed=seed), make(seed=seed + 1), ["0", "1"]
    if not Path(name).exists():
        known = "mnist, mnist:5,8, fashion, xor, moons, spirals"
        raise ValueError(f"unknown data {name!r}: no such path, and not one of {known}")
    train, test = load(name, seed=seed)
    return train, test, [str(label) for label in range(int(max(train.y.max(), test.y.max())) + 1)]


def _digits(text: str) -> list[int]:
    try:
        return [int(digit) for digit in text.split(",")]
    except ValueError:
        raise ValueError(f"--data mnist: takes digits with commas, as in mnist:5,8; got {text!r}") from None


def _split(train: Dataset, config: Config) -> tuple[Dataset, Dataset | None]:
    """Keep a share of the training data for validation, chosen by the seed."""
    import numpy as np

    kept = round(config.validation * len(train.X))
    if not kept:
        return train, None
    if kept == len(train.X):
        raise ValueError(f"validation {config.validation} takes all {kept} training samples; keep some to train with")
    order = np.random.default_rng(config.seed).permutation(len(train.X))
    rest, part = np.sort(order[kept:]), np.sort(order[:kept])
    return Dataset(train.X[rest], train.y[rest]), Dataset(train.X[part], train.y[part])


def make_model(config: Config, train: Dataset) -> MLP:
    """Return the untrained model of a configuration, as wide as the data need."""
    outputs = int(train.y.max()) + 1 if OUTPUTS.get(config.output, OUTPUTS["softmax"]).task == "classes" else 1
    return MLP(
        [train.X.shape[1], *config.hidden, outputs],
        activation=config.activation[0] if len(config.activation) == 1 else config.activation,
        output=config.output,
        init=config.init,
        dtype=PRECISIONS[config.precision],
        precision=config.precision,
        device=config.device,
        seed=config.seed,
    )


def make_optimizer(config: Config) -> Optimizer:
    """Return the optimiser of a configuration, its schedule included."""
    schedule = SCHEDULES[config.schedule]
    spread = {"epochs": max(1, config.epochs - config.warm_up)} if schedule is CosineDecay else {}
    if schedule is SCHEDULES["step"]:
        spread = {"every": max(1, config.epochs // 3)}
    lr: Any = schedule(config.lr, **spread) if config.schedule != "constant" else config.lr
    if config.warm_up:
        lr = WarmUp(config.lr, epochs=config.warm_up, after=lr if config.schedule != "constant" else None)
    own: dict[str, Any] = {
        "sgd": {"momentum": config.momentum, "nesterov": config.nesterov},
        "adam": {},
        "adamw": {"weight_decay": config.weight_decay},
    }[config.optimizer]
    optimizer: Optimizer = OPTIMIZERS[config.optimizer](lr=lr, l2=config.l2, lr_bias=config.lr_bias, **own)
    return optimizer


def _draw(folder: Path, model: MLP, history: History, test: Dataset) -> None:
    try:
        from ..plots import save_run_plots
    except ModuleNotFoundError as error:
        print(f"no pictures: {error}", file=sys.stderr)
        return
    save_run_plots(folder, model, history, test)
