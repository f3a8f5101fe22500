"""The interface of callbacks, and what is checked about them before a training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

__all__ = ["Callback", "check_callbacks", "check_measures", "is_stateful", "is_true"]


class Callback(Protocol):
    """Anything that can be called with a :class:`mlp_xp.loop.State`; only an answer of True ends the training.

    A callback may have more, and :func:`mlp_xp.fit` uses what it finds:

    ``begin(model)``
        Called at the start of each ``fit``. It forgets the run before, so that a callback can be used again.
    ``dump() -> dict``, ``restore(record, model)``
        What the callback has seen, as numbers, texts and NumPy arrays by name, and how to go on from there. A
        checkpoint saves the record of each callback that has both. ``restore`` raises a
        :class:`mlp_xp.CheckpointError` if the record is not one of its own. A class that defines ``__repr__`` should
        show its settings there: a run is not resumed with others.
    ``over``
        Whether it would end the training again, so that a run that it has ended is not resumed.
    ``close()``
        Called at the end of each ``fit`` that called ``begin``, whatever happened.
    ``measures``
        Names that the callback puts into ``state.metrics``.
    ``needs``
        Names that it reads from there. A callback before it must measure them.
    ``of_rank_0``
        Whether it is for rank 0 alone in a distributed training, as one that prints or writes. What it measures, the
        other ranks do not know.
    """

    def __call__(self, state: Any) -> bool | None:
        """Look at a state; return True to end the training."""
        ...


def check_callbacks(callbacks: Any) -> list[Any]:
    """Return the callbacks as a list, or raise a ValueError that says which one cannot be called.

    Parameters
    ----------
    callbacks : iterable of callable

    Raises
    ------
    ValueError
        If it is not an iterable of objects that can be called with a state.
    """
    if callable(callbacks) or not isinstance(callbacks, Iterable):
        raise ValueError(f"callbacks must be a list of callables, got {callbacks!r}; put a single one in brackets")
    run = list(callbacks)
    for i, callback in enumerate(run):
        if isinstance(callback, type):
            raise ValueError(f"callbacks[{i}] is the class {callback.__name__}; give an object, {callback.__name__}()")
        if not callable(callback):
            raise ValueError(f"callbacks[{i}] is {callback!r}; give a function, or an object that can be called")
    return run


def check_measures(run: Sequence[Any]) -> None:
    """Raise a ValueError unless each metric has one callback that measures it, before those that need it.

    Call it after the callbacks have begun: what is measured may depend on the model.
    """
    measured: set[str] = set()
    for callback in run:
        for name in getattr(callback, "needs", ()):
            if name not in measured:
                raise ValueError(
                    f"{callback!r} needs {name!r}, which no callback before it measures; pass fit(..., "
                    f"validation=(X, y)) for 'val_loss', or name it in the 'measures' of a callback before this one"
                )
        for name in getattr(callback, "measures", ()):
            if name in measured:
                raise ValueError(f"{callback!r} measures {name!r}, and so does a callback before it; rename one")
            measured.add(name)


def is_stateful(callback: Any) -> bool:
    """Tell whether a checkpoint saves the record of this callback."""
    return hasattr(callback, "dump") and hasattr(callback, "restore")


def is_true(answer: Any) -> bool:
    """Tell whether a callback answered True: the object itself, or an array () that holds it, as `loss < 0.1` makes."""
    if isinstance(answer, bool):
        return answer
    return getattr(answer, "shape", None) == () and "bool" in str(getattr(answer, "dtype", "")) and bool(answer)
