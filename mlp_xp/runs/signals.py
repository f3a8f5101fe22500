"""Ctrl-C, SIGTERM and SIGHUP as requests to stop at a safe point."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Self

__all__ = ["Interrupted", "StopSignals"]


class Interrupted(KeyboardInterrupt):
    """A signal asked a training with a checkpoint to stop, and it did.

    Attributes
    ----------
    signal : int
        Number of the signal, such as ``signal.SIGTERM``.
    folder : str
        Where the checkpoint is.
    """

    def __init__(self, number: int, folder: str, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {where} {folder}")
        self.signal, self.folder, self._where = number, folder, where

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.signal, self.folder, self._where)


class StopSignals:
    """Note signals that ask to stop instead of dying of them: ``with StopSignals(...) as signals: signals.received``.

    A second Ctrl-C raises KeyboardInterrupt at once, as without this. A handler that is not Python's default belongs to
    the caller and stays. Outside the main thread Python allows no handlers, and nothing is done.

    Whoever sees a signal in `received` acts on it by raising a KeyboardInterrupt. If nobody did before the block ends,
    by itself or by another error, the block raises one.

    Parameters
    ----------
    names : sequence of str
        The signals to note, such as ``"SIGINT"`` for Ctrl-C. Those that the system lacks are left out.
    unheard : callable
        ``unheard(number)`` returns the error to raise if nobody acted on a signal.
    most : callable
        ``most(number)`` returns the largest of the numbers that the ranks of a distributed training have. A signal that
        one of them got while the block ended without an error is all of theirs.

    Attributes
    ----------
    received : int or None
        Number of the first signal that came.
    """

    def __init__(
        self, names: Sequence[str], unheard: Callable[[int], KeyboardInterrupt], most: Callable[[int], int] = int
    ) -> None:
        self._names, self._unheard, self._most = names, unheard, most
        self.received: int | None = None
        self._replaced: list[tuple[signal.Signals, Any]] = []
        self._leaving = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            try:
                for name in self._names:
                    self._replace(name)
            except BaseException:
                self._restore()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._restore()
        if error is None:
            self.received = self._most(self.received or 0) or None
        if self.received is not None and not isinstance(error, KeyboardInterrupt):
            raise self._unheard(self.received)

    def _replace(self, name: str) -> None:
        number = getattr(signal, name, None)  # Windows has no SIGHUP, others no SIGBREAK
        default = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
        if number is not None and signal.getsignal(number) == default:
            self._replaced.append((number, default))
            signal.signal(number, self._note)

    def _restore(self) -> None:
        self._leaving = True  # from here on a second Ctrl-C raises nothing, or it could keep handlers from their places
        while self._replaced:
            signal.signal(*self._replaced[-1])
            self._replaced.pop()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT and not self._leaving:
            raise KeyboardInterrupt
        self.received = self.received or number
