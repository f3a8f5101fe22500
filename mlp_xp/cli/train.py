"""``python -m mlp_xp.train``: train a network from the command line and leave a run folder.

What is in the folder is up to :class:`mlp_xp.runs.folder.RunFolder`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from textwrap import fill
from typing import Any, NoReturn

import numpy as np

from ..callbacks import Evaluation, History, Progress
from ..devices import PRECISIONS, NumpyDevice, get_device
from ..devices.blas_threads import at_most
from ..engines import choose_plan
from ..engines.memory import estimate_memory
from ..files import probe_writable
from ..fit import DivergenceError, fit
from ..loop import State
from ..mlp import MLP
from ..objective import OUTPUTS
from ..optim import LBFGS, OPTIMIZERS, SCHEDULES, CosineDecay, Optimizer, WarmUp
from ..runs.agreement import Agreement
from ..runs.checkpoint import Checkpoint
from ..runs.folder import RunFolder
from ..runs.record import Record, check_same, read
from ..runs.report import WIDTH, environment, result_table
from ..snapshot import Snapshot
from .config import DESCENT, OWN, Config, parse
from .data import Data, load_data
from .distributed import run_on_ranks
from .errors import printable
from .pace import duration, measure_pace
from .presets import PRESETS
from .report import Report

__all__ = ["main", "run"]

SHARE = 0.1  # of the training data, kept for --tol to watch if --validation says nothing else


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments

    def command(ranks: Agreement) -> None:
        with ranks.together():
            config = parse(given)
        run(config, ranks)

    return run_on_ranks("train", given, command)


def run(config: Config, ranks: Agreement | None = None) -> Path | None:
    """Train as configured and return the run folder; None after a dry run.

    Of several ranks each has to call it. Rank 0 alone prints and writes.

    Raises
    ------
    ValueError, OSError
        If anything does not fit; before any training, and with nothing written.
    """
    ranks, notes = ranks or Agreement(), []
    if config.tol is not None and not config.validation:
        config = replace(config, validation=SHARE)
        notes = [f"--tol watches {SHARE:.0%} of the training data, kept for validation: test data choose nothing"]
    local = ranks.local()
    with ranks.together():
        data = load_data(config)
        notes += data.notes
        epochs = config.epochs or enough_epochs(len(data.train.X), config.optimizer)
        model, optimizer = make_model(config, data, local), make_optimizer(config, epochs)
        config = replace(config, epochs=epochs, init=model.init)  # a run says what was chosen for it
        model.targets(data.test.y, model.open(data.test.X).shape[0])  # with validation data, fit never sees these
    path = ranks.first(lambda: _choose_path(config))
    with at_most(config.threads), RunFolder(path) as folder:
        if config.dry_run:
            rehearsal = Rehearsal(folder, resume=config.resume is not None)
            with suppress(Ready):
                _train(config, epochs, data, notes, model, optimizer, rehearsal, ranks)
            if ranks.leads:
                print(*_outlook(config, data, model, optimizer, path, rehearsal.start), sep="\n")
            return None
        kept = asdict(replace(config, resume=None))
        checkpoint = Checkpoint(folder, config.checkpoint_every, config.resume is not None, kept)
        history = _train(config, epochs, data, notes, model, optimizer, checkpoint, ranks)
        if ranks.leads:
            _conclude(config, folder, path, model, history, data)
    return path


def enough_epochs(samples: int, optimizer: str) -> int:
    """Return how many epochs to train for: 5 with MNIST's 60,000 samples, and with fewer as many as see no fewer.

    By L-BFGS it is 100, for an epoch is one step there, and it ends by itself.
    """
    return min(1000, max(100 if optimizer == "lbfgs" else 5, 300_000 // samples))


class Ready(Exception):  # noqa: N818 - nothing went wrong
    """A training could begin now."""


class Rehearsal(Checkpoint):
    """What a dry run has in the place of a checkpoint: all is made ready for a training, and nothing is written."""

    start: Snapshot | None = None

    def _saved(self) -> Record | None:
        """Look at the run to resume without locking its folder."""
        if not self.resume:
            return None
        record = read(self.folder.checkpoint)
        check_same(self.folder, record.settings, self._training.settings())
        return record

    def begin(self, start: Snapshot | None) -> NoReturn:
        """End the rehearsal."""
        self.start = start
        raise Ready


def _train(
    config: Config,
    epochs: int,
    data: Data,
    notes: Sequence[str],
    model: MLP,
    optimizer: Optimizer,
    checkpoint: Checkpoint,
    ranks: Agreement,
) -> History:
    folder, begun = checkpoint.folder, False

    def note(state: State) -> None:
        """After the first epoch, when nothing can be wrong with the input any more."""
        nonlocal begun
        if not begun:
            found = {"labels": data.labels, "samples": len(data.train.X)}
            folder.note({**checkpoint.config, **found}, environment(model, config.threads, state.plan))
            begun = True

    measured = [] if data.validation else [Evaluation("test", *data.test, ranks.comm)]
    report = Report(epochs, config.report_every, "validation" if data.validation else "test", notes)
    shown: list[Any] = [report, Progress(epochs, disable=True if report.every == 1 else None)]
    said = [note, *(shown if not config.quiet else [])] if ranks.leads else []
    try:
        return fit(
            model,
            *data.train,
            epochs=epochs,
            optimizer=optimizer,
            batch_size=config.batch_size or None,
            validation=data.validation,
            callbacks=[*measured, *said],
            tol=config.tol,
            patience=config.patience,
            threads=config.threads,
            plan=config.plan,
            dropout=rates_of(config),
            checkpoint=checkpoint,
            comm=ranks.comm,
        )
    except DivergenceError as error:
        left = "what was saved before is in" if folder.checkpoint.exists() else "nothing was saved in"
        raise DivergenceError(f"{error}; {left} {folder}") from None


def _outlook(
    config: Config, data: Data, model: MLP, optimizer: Optimizer, path: Path, start: Snapshot | None
) -> list[str]:
    """Return what a run would do, from the beginning or from where it was."""
    rows, batch_size = model.open(data.train.X), config.batch_size or None
    begun, before = (0, None) if start is None else (start.epoch, start.plan)
    plan = choose_plan(rows, model, optimizer, config.plan, config.epochs, batch_size, before)
    memory = []
    if isinstance(model.device, NumpyDevice):
        size = estimate_memory(
            model, rows, batch_size=batch_size, optimizer=optimizer, plan=plan.kind, threads=config.threads,
            dropout=rates_of(config),
        )  # fmt: skip
        memory = [f"about {size / 1e6:,.0f} MB of memory, beside the data and what the import takes"]
    pace = measure_pace(model, data.train, optimizer, batch_size, plan.kind, config.threads, rates_of(config))
    epoch = len(data.train.X) * pace.training + len((data.validation or data.test).X) * pace.evaluation
    in_all = duration(((config.epochs or 0) - begun) * epoch)
    counts = [f"{len(part.X):,} {name}" for name, part in data.parts().items()]
    return [
        fill(f"{model}", WIDTH),
        fill(f"plan {plan.kind}: {plan.reason}", WIDTH),
        *memory,
        f"about {duration(epoch)} an epoch, {in_all} in all, by a trial on {pace.rows:,} samples",
        f"{', '.join(counts[:-1])} and {counts[-1]} samples",
        f"would write {printable(path)}",
    ]


def _choose_path(config: Config) -> Path:
    """Return the path of the run's folder, once it is sure that it is free and that there can be files in it.

    A new one is named after the preset, or after the data if there is none, or if they are not the preset's.
    """
    name = config.preset
    if name is None or config.data != PRESETS[name].get("data", Config.data):
        name = re.sub(r"[^\w.-]+", "-", Path(config.data).stem) or "data"
    path = Path(config.resume or config.out or f"runs/{datetime.now():%Y%m%d-%H%M%S}-{name}")
    folder = RunFolder(path)
    if config.resume is None:
        folder.check_unused()
    else:
        folder.check_replaceable()
    probe_writable(next(parent for parent in (path, *path.parents) if parent.exists()))
    return path


def make_model(config: Config, data: Data, local: int) -> MLP:
    """Return the untrained model of a configuration, as wide as the data need, for a process of this machine."""
    outputs = len(data.labels) if OUTPUTS.get(config.output, OUTPUTS["softmax"]).task == "classes" else 1
    return MLP(
        [data.train.X.shape[1], *config.hidden, outputs],
        activation=config.activation[0] if len(config.activation) == 1 else config.activation,
        output=config.output,
        init=config.init,
        dtype=PRECISIONS[config.precision],
        precision=config.precision,
        device=get_device(config.device).of_process(local),
        seed=config.seed,
    )


def rates_of(config: Config) -> float | tuple[float, ...]:
    """Return the rate of dropout, or one for each hidden layer."""
    return config.dropout[0] if len(config.dropout) == 1 else config.dropout


def make_optimizer(config: Config, epochs: int) -> Optimizer:
    """Return the optimizer of a configuration, with its schedule over so many epochs."""
    if config.optimizer == "lbfgs":
        return LBFGS(l2=config.l2)
    schedule = SCHEDULES[config.schedule]
    spread = {"epochs": max(1, epochs - config.warm_up)} if schedule is CosineDecay else {}
    if schedule is SCHEDULES["step"]:
        spread = {"every": max(1, epochs // 3)}
    lr: Any = schedule(config.lr, **spread) if config.schedule != "constant" else config.lr
    if config.warm_up:
        lr = WarmUp(config.lr, epochs=config.warm_up, after=lr if config.schedule != "constant" else None)
    own: dict[str, Any] = {name: getattr(config, name) for name in OWN[config.optimizer] if name not in DESCENT}
    optimizer: Optimizer = OPTIMIZERS[config.optimizer](lr=lr, l2=config.l2, lr_bias=config.lr_bias, **own)
    return optimizer


def _conclude(config: Config, folder: RunFolder, path: Path, model: MLP, history: History, data: Data) -> None:
    """Write, print and draw what there is at the end."""
    folder.finish(model, history)
    if config.tol is not None:
        print(f"the parameters are those of epoch {1 + int(np.argmin(history.val_loss))}, the best on validation")
    for line in result_table(model, history, data.parts(), data.labels).splitlines():
        print(printable(line))
    try:
        _draw(folder, model, history, data)
    finally:
        print(f"run folder: {printable(path)}")


def _draw(folder: RunFolder, model: MLP, history: History, data: Data) -> None:
    try:
        from ..plots import save_run_plots
    except (ImportError, ValueError) as error:  # there is no matplotlib, or MPLBACKEND names what it does not know
        print(f"no pictures: {printable(error)}", file=sys.stderr)
        return
    plots = folder.plots_folder()
    try:
        save_run_plots(plots, model, history, data.test)
    except RuntimeError as error:  # of matplotlib, if a matplotlibrc asks for LaTeX and there is none
        print(f"not all pictures: {printable(error)}", file=sys.stderr)
