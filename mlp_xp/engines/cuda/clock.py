"""Time on a device, measured without waiting for it."""

from __future__ import annotations

from typing import Any

__all__ = ["Clock", "Seconds"]


class Seconds:
    """Seconds between pairs of events, added to those before; ``float`` waits for the last event.

    Parameters
    ----------
    xp : module
        ``array_api_compat.cupy``.
    before : float
    laps : tuple of (event, event)
    """

    def __init__(self, xp: Any, before: float, laps: tuple[tuple[Any, Any], ...]) -> None:
        self._xp, self._before, self._laps = xp, before, laps

    def __float__(self) -> float:
        self._laps[-1][1].synchronize()
        elapsed = (float(self._xp.cuda.get_elapsed_time(start, end)) for start, end in self._laps)
        return self._before + sum(elapsed) / 1000


class Clock:
    """Takes the time of an epoch's work by events on the current stream; it can be interrupted.

    Parameters
    ----------
    xp : module
        ``array_api_compat.cupy``.
    """

    def __init__(self, xp: Any) -> None:
        self._xp = xp
        self._before, self._laps, self._started = 0.0, list[tuple[Any, Any]](), None

    def start(self, before: float) -> None:
        """Begin an epoch that has taken so many seconds so far."""
        self._before, self._laps = before, []
        self._started = self._event()

    def go_on(self) -> None:
        """Go on after an interruption, if there was one."""
        if self._started is None:
            self._started = self._event()

    def stop(self) -> Seconds:
        """Interrupt, and return the time so far."""
        self._laps.append((self._started, self._event()))
        self._started = None
        return Seconds(self._xp, self._before, tuple(self._laps))

    def _event(self) -> Any:
        return self._xp.cuda.get_current_stream().record()
