"""What every device has in common: an array library, where its arrays live, and how they get there and back."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Self, TypeVar

import array_api_compat as compat
import numpy as np

from ..checks import check_choice

__all__ = ["LEAST_ROWS", "PRECISIONS", "Array", "Device", "check_precision", "is_foreign", "library_of"]

Array = Any  # an array of any conforming library; the standard has no common type to name
_In = TypeVar("_In")
_Out = TypeVar("_Out")

LEAST_ROWS = 256
"""Rows that are worth a device's time."""
PRECISIONS = {"fp32": "float32", "fp64": "float64", "tf32": "float32", "bf16": "float32", "fp16x2": "float32"}
"""How products are computed, and the dtype of everything else. Sums always have all digits of that dtype.

``fp32``, ``fp64``: with all digits of the dtype. ``tf32``, ``bf16``: with factors rounded to 10 or 7 bits of mantissa.
``fp16x2``: as exactly as ``fp32``, computed with pairs of float16. For byte images.
"""


@dataclass(frozen=True)
class Device:
    """One array library on one of its devices. Each library has a subclass of its own.

    Attributes
    ----------
    name : str
        The string it was asked for by, such as ``"cpu"`` or ``"cuda:1"``.
    xp : module
        The library's Array API namespace.
    where : object or None
        The library's own device object. None stands for its default.
    spellings : tuple of str
        The device strings that the subclass answers to, such as ``("cuda", "cuda:N")``.
    title, namespace, remedy : str
        The library's name, the module with its Array API namespace, and how to install it.
    packages : tuple of str
        Distributions whose versions a run depends on.
    precisions : tuple of str
        Keys of :data:`PRECISIONS` that are available.
    shard_rows : int
        Rows to work on at a time: enough to fill a GPU, or as many as fit into the cache of a CPU core.
    block_rows : int
        Rows that a plan stores with one width: few enough to be narrow, and enough to occupy the device.
    epochs_to_repay_plan : int or None
        From how many epochs on sorting the data pays off. None: there are no plans but the dense one.
    plans_on_host : bool
        Whether plans are carried out in the host's memory, where they also pay off for mini-batches and may subtract a
        background.
    """

    name: str
    xp: Any
    where: Any = None

    spellings: ClassVar[tuple[str, ...]]
    title: ClassVar[str]
    namespace: ClassVar[str]
    remedy: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ()
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp64")
    shard_rows: ClassVar[int] = 65_536
    block_rows: ClassVar[int] = 65_536
    epochs_to_repay_plan: ClassVar[int | None] = None
    plans_on_host: ClassVar[bool] = False

    @classmethod
    def open(cls, name: str) -> Self:
        """Return the device of this name, one of the class's spellings.

        Raises
        ------
        ValueError
            If the library is not installed, or the machine has no such device.
        """
        try:
            xp = importlib.import_module(cls.namespace)
        except ImportError as error:
            remedy = f"device {name!r} needs {cls.title}, which is not installed ({error}): {cls.remedy}"
            raise ValueError(remedy) from None
        return cls(name, xp, cls._place(name.partition(":")[2], xp))

    def of_process(self, number: int) -> Self:
        """Return the device for one of several processes on a machine, which are numbered from 0.

        Where there are several GPUs, and the name does not say which, each process has another one.
        """
        return self

    @classmethod
    def holding(cls, x: Array) -> Self:
        """Return the device that an array of this library is on."""
        return cls.open(cls._name_for(x))

    @classmethod
    def _name_for(cls, x: Array) -> str:
        """Return the string to ask for an array's device by."""
        return cls.spellings[0]

    @classmethod
    def _place(cls, index: str, xp: Any) -> Any:
        """Return the library's object for the device after the colon, or None for its default."""
        return None

    def __reduce__(self) -> Any:
        # a module cannot be pickled, so a device travels as its name and is opened again where it arrives
        return type(self).open, (self.name,)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def prepare(self, dtype: str) -> None:
        """Prepare the library for arrays of this dtype, if it has to be told in advance."""

    def active(self) -> AbstractContextManager[object]:
        """Return a context in which all work on the device has to be done.

        It can be entered again inside itself and from any thread, and leaves the process as it found it.
        """
        return nullcontext()

    def map(self, function: Callable[[_In], _Out], items: Iterable[_In]) -> list[_Out]:
        """Return the function's results in the order of the items. Where that is faster, threads compute them."""
        return [function(item) for item in items]

    def by_rows(self, function: Callable[[slice], object], n: int, share: Callable[[int], range] = range) -> list[int]:
        """Call the function for shards that make up `n` rows, and for smaller ones if the memory is too short for one.

        Parameters
        ----------
        function : callable
        n : int
        share : callable, optional
            Which of so many shards to call it for; all, if not given.

        Returns
        -------
        list of int
            Where shards begin, and n.

        Raises
        ------
        MemoryError
            If there is not even room for a shard of a few hundred rows.
        """
        edges = [*range(0, n, self._step(n)), n]
        shards = [slice(*edge) for edge in pairwise(edges)]
        self.map(partial(_halve_until_it_fits, function), [shards[i] for i in share(len(shards))])
        return edges

    def _step(self, n: int) -> int:
        """Return how many of n rows to work on at a time. It must not depend on the number of threads."""
        return self.shard_rows

    def asarray(self, x: Any, dtype: str | None = None) -> Array:
        """Return `x` as an array of this device. Copy only what comes from the host, and only if necessary.

        Parameters
        ----------
        x : array of this library, NumPy array or array-like
        dtype : str, optional
            Name of the dtype to convert to, such as ``"float32"``. None keeps that of `x`.

        Raises
        ------
        TypeError
            If `x` is an array of another library or device: nothing is moved between devices behind your back.
        """
        if is_foreign(x):
            if compat.array_namespace(x) is not self.xp or not self._is_here(x):
                raise TypeError(
                    f"got a {type(x).__module__}.{type(x).__qualname__} on device '{compat.device(x)}' of its library, "
                    f"but the model computes with {self.title}, on device {self.name!r}; pass a NumPy array, or move "
                    "it there yourself"
                )
            x = self._plain(x)
            return x if dtype is None else self.xp.astype(x, getattr(self.xp, dtype), copy=False)
        return self._from_host(np.asarray(x, dtype=dtype))

    def _is_here(self, x: Array) -> bool:
        """Return whether an array of this library is on this device."""
        return self.where is None or compat.device(x) == self.where

    def _plain(self, x: Array) -> Array:
        """Return an array of this device without anything that its library has attached to it."""
        return x

    def _from_host(self, host: np.ndarray[Any, Any]) -> Array:
        return self.xp.asarray(host, device=self.where) if self.where is not None else self.xp.asarray(host)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Return a new array of zeros with this shape and dtype name."""
        return self.xp.zeros(shape, dtype=getattr(self.xp, dtype), device=self.where)

    def assemble(self, blocks: Iterable[np.ndarray[Any, Any]], shape: tuple[int, ...], dtype: str) -> Array:
        """Return a new array (n, ...) of blocks of its rows that come from the host, one after another."""
        X, first = self.zeros(shape, dtype), 0
        for block in blocks:
            X[first : first + len(block), ...] = self.asarray(block)
            first += len(block)
        return X

    def to_host(self, x: Array) -> np.ndarray[Any, Any]:
        """Return `x` as a NumPy array, after waiting for the device if necessary. A NumPy array is not copied."""
        return x if type(x) is np.ndarray else np.asarray(x)

    def dot(self, x: Array, y: Array) -> float:
        """(P,), (P,) -> their scalar product, with products and sums in float64 if the device has it."""
        wide = getattr(self.xp, self.widest)
        return float(self.xp.sum(self.xp.astype(x, wide, copy=False) * self.xp.astype(y, wide, copy=False)))

    @property
    def widest(self) -> str:
        """The name of the widest floating dtype that the device computes in."""
        return "float64"

    def synchronize(self) -> None:
        """Wait until the device has done everything that it was asked for."""

    def hardware(self) -> str | None:
        """Return what the device is called by its maker, or None if that is the processor."""
        return None


def _halve_until_it_fits(function: Callable[[slice], object], rows: slice) -> None:
    """Call the function for these rows, or, where the memory is too short, for each half of them."""
    # not within `by_rows`: a function that holds itself is a cycle, and would keep all that `function` holds
    try:
        function(rows)
        return
    except MemoryError:
        if rows.stop - rows.start <= LEAST_ROWS:
            raise
    # outside of the except clause, whose traceback keeps the arrays that took the memory
    middle = (rows.start + rows.stop) // 2
    _halve_until_it_fits(function, slice(rows.start, middle))
    _halve_until_it_fits(function, slice(middle, rows.stop))


def is_foreign(x: Any) -> bool:
    """Return whether `x` is an array of a library other than NumPy."""
    # the first test is only there to save most calls the time of the others
    return type(x) is not np.ndarray and bool(compat.is_array_api_obj(x)) and not compat.is_numpy_array(x)


def library_of(x: Array) -> Any:
    """Return the library of an array, for functions that all have under one name, such as ``sqrt``.

    For all others, a :class:`Device` has its namespace.
    """
    if isinstance(x, np.ndarray):  # for which array-api-compat may import its own, longer than a training takes
        return np
    return compat.array_namespace(x, use_compat=False)


def check_precision(precision: str | None, dtype: str, device: Device) -> str:
    """Return a precision that goes with the dtype and is available on the device. None means all digits."""
    if precision is None:
        return {"float32": "fp32", "float64": "fp64"}[dtype]
    check_choice("precision", precision, PRECISIONS)
    if PRECISIONS[precision] != dtype:
        raise ValueError(f"precision {precision!r} goes with dtype {PRECISIONS[precision]!r}, got dtype {dtype!r}")
    if precision not in device.precisions:
        raise ValueError(
            f"device {device.name!r} has the precisions {' and '.join(map(repr, device.precisions))}, got "
            f"{precision!r}; use one of them, or device 'cuda'"
        )
    return precision
