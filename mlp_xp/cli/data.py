"""The data of a run: what ``--data`` names, in three parts, and what their owner should be told about them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..datasets import Dataset, fashion_mnist, load, mnist, moons, spirals, xor
from ..datasets.maps import in_file
from .config import Config
from .errors import did_you_mean

__all__ = ["Data", "load_data", "split_off"]

NAMES = ("mnist", "mnist:5,8", "fashion", "xor", "moons", "spirals")
SHOWN = 6  # classes that a note lists


@dataclass(frozen=True)
class Data:
    """What a run learns from (`train`), chooses by (`validation`) and is judged by (`test`).

    Attributes
    ----------
    labels : list of str
        The names of the classes 0, 1, ... over all parts.
    notes : list of str
        Lines on how the data were read, and on what is probably not as their owner thinks.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset
    labels: list[str]
    notes: list[str]

    def parts(self) -> dict[str, Dataset]:
        """Return the parts that there are, by name."""
        parts = {"training": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}


def load_data(config: Config) -> Data:
    """Return the data that a configuration names, with the share for validation taken off.

    Raises
    ------
    ValueError
        If the data are not known or damaged, have one class only, or the share leaves nothing to train with.
    """
    with _log_of("mlp_xp.datasets") as notes:
        train, test, labels = _load(config.data, config.seed)
    train, validation = split_off(train, config.validation, config.seed)
    missing = np.setdiff1d(np.arange(len(labels)), train.y)
    if len(missing):
        names = ", ".join(labels[label] for label in missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        hint = "; labels count from 0" if missing[0] == 0 else ""
        notes.append(f"{len(missing)} of {len(labels)} classes have no training sample: {names}{hint}")
    return Data(train, validation, test, labels, notes)


@contextmanager
def _log_of(name: str) -> Iterator[list[str]]:
    """Collect what a logger says, from its ordinary messages on."""
    notes: list[str] = []
    logger, handler = logging.getLogger(name), logging.Handler(logging.INFO)
    handler.emit = lambda record: notes.append(record.getMessage())  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield notes
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _load(name: str, seed: int) -> tuple[Dataset, Dataset, list[str]]:
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
        hint = did_you_mean(name, NAMES)
        raise ValueError(f"unknown data {name!r}{hint}: no such path, and not one of {', '.join(NAMES)}")
    train, test = load(name, seed=seed)
    classes = int(max(train.y.max(), test.y.max())) + 1
    if classes == 1:
        raise ValueError(f"{name}: every label is 0, so there is one class only; is the label in another column?")
    return train, test, [str(label) for label in range(classes)]


def _digits(text: str) -> list[int]:
    try:
        return [int(digit) for digit in text.split(",")]
    except ValueError:
        raise ValueError(f"--data mnist: takes digits with commas, as in mnist:5,8; got {text!r}") from None


def split_off(train: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """Return the training data without a share of at least one sample, and that share, chosen by the seed.

    Of samples that stay in a file it is the last ones.
    """
    if not share:
        return train, None
    kept = max(1, round(share * len(train.X)))
    if kept >= len(train.X):
        raise ValueError(f"--validation {share} takes all {len(train.X)} training samples; keep some to train with")
    if in_file(train.X):
        return Dataset(train.X[:-kept], train.y[:-kept]), Dataset(train.X[-kept:], train.y[-kept:])
    order = np.random.default_rng(seed).permutation(len(train.X))
    rest, part = np.sort(order[kept:]), np.sort(order[:kept])
    return Dataset(train.X[rest], train.y[rest]), Dataset(train.X[part], train.y[part])
