"""MNIST, which comes with the package."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .idx import read_idx_pair
from .limits import Limits
from .records import Dataset, make_datasets

# Of the unpacked files: packing them again changes the .gz files and not these.
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def mnist(digits: Iterable[int] | None = None) -> tuple[Dataset, Dataset]:
    """Load MNIST: 60,000 training and 10,000 test images of 28x28 pixels, ``X`` (n, 784) and ``y`` (n,), ``uint8``.

    The files are unpacked, and their SHA-256 checked, once in a process. The arrays are read-only, because every
    call returns the same ones; ``X.copy()`` can be written to.

    Parameters
    ----------
    digits
        Keep only the images of these digits and number the classes in the order given: with ``(5, 8)`` a five has
        the label 0 and an eight the label 1. By default all images, each labelled with its digit.

    Returns
    -------
    The training data and the test data.

    Raises
    ------
    ValueError
        If `digits` are not at least two different whole numbers from 0 to 9, or the files are damaged.

    References
    ----------
    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition",
    Proceedings of the IEEE 86(11), 1998.

    Examples
    --------
    >>> train, test = mnist()
    >>> train.X.shape, train.X.dtype, test.X.shape
    ((60000, 784), dtype('uint8'), (10000, 784))
    >>> train.y[:5]
    array([5, 0, 4, 1, 9], dtype=uint8)
    >>> train58, test58 = mnist(digits=(5, 8))
    >>> train58.X.shape, test58.X.shape, train58.y[:5]
    ((11272, 784), (1866, 784), array([0, 0, 1, 1, 0], dtype=uint8))
    """
    train, test = _published()
    if digits is None:
        return train, test
    chosen: list[Any] = list(digits) if isinstance(digits, Iterable) else [digits]
    whole = [digit for digit in chosen if isinstance(digit, int | np.integer) and not isinstance(digit, bool)]
    known = [digit for digit in whole if 0 <= digit <= 9]
    if len(chosen) < 2 or len(set(known)) < len(chosen):
        raise ValueError(
            f"digits is {digits!r}; expected at least two different whole numbers from 0 to 9, such as (5, 8)"
        )
    return _only(train, chosen), _only(test, chosen)


@functools.cache
def _published() -> tuple[Dataset, Dataset]:
    folder, limits = Path(__file__).parent / "mnist", Limits()
    train, test = make_datasets([read_idx_pair(folder, part, limits, SHA256) for part in ("train", "t10k")])
    return _read_only(train), _read_only(test)


def _only(data: Dataset, digits: list[int]) -> Dataset:
    keep = np.isin(data.y, digits)
    label_of = np.zeros(10, np.uint8)
    label_of[digits] = range(len(digits))
    return _read_only(Dataset(data.X[keep], label_of[data.y[keep]]))


def _read_only(data: Dataset) -> Dataset:
    for array in data:
        array.flags.writeable = False
    return data
