"""Ctrl-C and SIGTERM as requests to stop at a safe point."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

__all__ = ["Interrupted", "StopSignals"]

_DEFAULTS: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class Interrupted(KeyboardInterrupt):
    """A signal asked the training to stop, and it did, after it had saved its state.

    Attributes
    ----------
    signal : int
        Number of the signal, such as ``signal.SIGTERM``.
    folder : str
        Where the checkpoint is.
    """

    def __init__(self, number: int, folder: str, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {where}; all up to here is saved in {folder}")
        self.signal, self.folder = number, folder


class StopSignals:
    """Note SIGINT and SIGTERM instead of dying of them: ``with StopSignals() as signals: ... signals.received``.

    A second Ctrl-C raises KeyboardInterrupt at once, as without this. A handler that is not Python's default belongs
    to the caller and stays. Outside the main thread Python allows no handlers, and nothing is done.

    Attributes
    ----------
    received : int or None
        Number of the first signal that came.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._replaced: list[signal.Signals] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number, default in _DEFAULTS.items():
                if signal.getsignal(number) == default:
                    signal.signal(number, self._note)
                    self._replaced.append(number)
        return self

    def __exit__(self, *error: object) -> None:
        while self._replaced:
            number = self._replaced.pop()
            signal.signal(number, _DEFAULTS[number])

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number
