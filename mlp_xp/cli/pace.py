"""How long a training will take: some of its rows are tried on a copy of the model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from ..datasets import Dataset
from ..loop import epochs
from ..mlp import MLP
from ..optim import Optimizer

__all__ = ["Pace", "duration", "measure_pace"]

_FEWEST = 2048  # rows to try first; then four times as many, and so on
_ENOUGH = 0.2  # seconds of an epoch that tell enough


@dataclass(frozen=True)
class Pace:
    """Seconds that a row takes, and the rows that told.

    Attributes
    ----------
    training, evaluation : float
        Seconds for a row of an epoch, and for one that is only looked at.
    rows : int
    """

    training: float
    evaluation: float
    rows: int


def measure_pace(
    model: MLP, data: Dataset, optimizer: Optimizer, batch_size: int | None, plan: str, threads: int | None,
    dropout: float | Sequence[float] = 0.0,
) -> Pace:  # fmt: skip
    """Return how fast such a training is, after some two seconds of it. Nothing changes.

    Parameters
    ----------
    model, optimizer, batch_size, threads, dropout
        As for :func:`mlp_xp.fit`.
    data : Dataset
        The training data, of which the first rows are tried.
    plan : str
        The kind that was chosen.
    """
    rows, n = max(_FEWEST, batch_size or 0), len(data.X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the data have been looked at
        while True:
            rows, trial = min(rows, n), copy.deepcopy(model)
            part = Dataset(data.X[:rows], data.y[:rows])
            states = epochs(
                trial, *part, optimizer=optimizer, batch_size=batch_size, plan=plan, threads=threads, dropout=dropout,
                epochs=2,
            )  # fmt: skip
            seconds = [float(state.seconds) for state in states][-1]  # the first epoch warms up
            if seconds > _ENOUGH or rows == n:
                began = perf_counter()
                trial.evaluate(*part)
                return Pace(seconds / rows, (perf_counter() - began) / rows, rows)
            rows *= 4


def duration(seconds: float) -> str:
    """Return a time in words, to two digits.

    Examples
    --------
    >>> duration(0.0123), duration(47.2), duration(300), duration(20_000)
    ('0.012 s', '47 s', '5 min', '5.6 h')
    """
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
