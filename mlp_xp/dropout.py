"""Dropout: in each epoch, each sample trains a network of its own, without some of the hidden units.

Whether a unit is dropped depends on the seed, the epoch, the number of the sample, the layer and the unit, and on
nothing else: not on the device, on threads, on the order of the rows, or on what was computed before. NumPy's
``SeedSequence`` makes a key of seed, epoch and layer. A hash of 32 bits decides the rest, because a compiled loop can
compute it many times at once: the last steps of MurmurHash3 (Appleby, 2011), once for each word of the sample's number
and once for the unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

from .checks import check_numbers, shown

__all__ = ["Dropout", "Samples", "check_dropout"]

_GOLDEN = np.uint32(0x9E3779B9)  # 2^32 divided by the golden ratio, odd: multiples of it differ in all bits

Samples: TypeAlias = range | np.ndarray[Any, Any]
"""Numbers of samples (n,), from 0 to 2**63 - 1, in any integer type: which rows of the data they are."""

_Words = np.ndarray[Any, np.dtype[np.uint32]]


class Dropout:
    """Which units are dropped (Srivastava et al., 2014), and what the others are multiplied by: 1 / (1 - rate).

    Parameters
    ----------
    rates : sequence of float
        Of layers 0 to L: the share of units that are dropped, in [0, 1).
    sizes : sequence of int
        Units of layers 0 to L.
    seed : int
        Of the model.

    Attributes
    ----------
    thresholds : array (L + 1,) of uint32
        A unit is dropped if its hash is below that of its layer.
    factors : array (L + 1,) of float64
        What units that stay are multiplied by.
    """

    def __init__(self, rates: Sequence[float], sizes: Sequence[int], seed: int) -> None:
        self.rates, self.sizes, self.seed = tuple(rates), tuple(sizes), seed
        self.thresholds = np.array([min(round(rate * 2**32), 2**32 - 1) for rate in self.rates], np.uint32)
        self.factors = 1 / (1 - np.array(self.rates))

    def keys(self, epoch: int) -> _Words:
        """Return the keys (L + 1, 2) of an epoch."""
        layers = range(len(self.rates))
        return np.stack(
            [np.random.SeedSequence(self.seed, spawn_key=(epoch, layer)).generate_state(2) for layer in layers]
        )

    def of_rows(self, keys: _Words, samples: Samples, dtype: str) -> list[np.ndarray[Any, Any] | None]:
        """Return D[0] to D[L] (n, n_l) for some samples (n,); None where nothing is dropped."""
        if isinstance(samples, range):
            samples = np.arange(samples.start, samples.stop)
        numbers = samples.astype(np.uint64)
        low, high = numbers.astype(np.uint32), (numbers >> np.uint64(32)).astype(np.uint32)
        return [
            self._of_layer(layer, _mixed(_mixed(low + keys[layer, 0]) + high + keys[layer, 1]), np.dtype(dtype).type)
            if rate
            else None
            for layer, rate in enumerate(self.rates)
        ]

    def _of_layer(self, layer: int, rows: _Words, real: Any) -> np.ndarray[Any, Any]:
        units = np.arange(self.sizes[layer], dtype=np.uint32) * _GOLDEN
        kept = _mixed(rows[:, None] + units) >= self.thresholds[layer]
        factors: np.ndarray[Any, Any] = np.multiply(kept, real(self.factors[layer]), dtype=real)
        return factors


def _mixed(words: _Words) -> _Words:
    """Return new words for old ones, in their place: MurmurHash3's finalizer of 32 bits."""
    words ^= words >> np.uint32(16)
    words *= np.uint32(0x85EBCA6B)
    words ^= words >> np.uint32(13)
    words *= np.uint32(0xC2B2AE35)
    words ^= words >> np.uint32(16)
    return words


def check_dropout(dropout: Any, hidden: int) -> tuple[float, ...]:
    """Return the rates of so many hidden layers, given one for all of them or a sequence or array (hidden,).

    Raises
    ------
    ValueError
        If there are more or fewer, one is not a number from 0 up to, but not including, 1, or one is not 0 and there is
        no hidden layer.
    """
    one = _plain(dropout)
    is_sequence = isinstance(one, Sequence) and not isinstance(one, str)
    rates = [_plain(each) for each in one] if is_sequence else [one]
    if not all(map(_is_rate, rates)):
        raise ValueError(
            "dropout must be a rate from 0 up to, but not including, 1, or one for each hidden layer, got "
            f"{shown(dropout)}"
        )
    if not hidden and any(rates):
        raise ValueError(
            f"dropout leaves hidden units out, and there is no hidden layer, got {shown(dropout)}; leave it at 0, or "
            "give the network a hidden layer"
        )
    if not is_sequence:
        return (float(one),) * hidden
    if len(rates) != hidden:
        raise ValueError(
            f"got {len(rates)} rates of dropout for {hidden} hidden layers; give one rate, or one per hidden layer"
        )
    return tuple(map(float, rates))


def _plain(value: Any) -> Any:
    """Return an array as Python's number, or list of them, and all else unchanged."""
    return check_numbers("dropout", value).tolist() if hasattr(value, "__array__") else value


def _is_rate(value: Any) -> bool:
    is_number = not isinstance(value, bool) and isinstance(value, Real)
    return is_number and 0 <= value < 1 and float(value) < 1  # which one that is less may be, rounded
