"""``fit``: the loop with callbacks on it, and what watches over a run: divergence, checkpoints, signals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from . import loop
from .callbacks import Callback, EarlyStopping, History
from .checks import check_count
from .devices import Array
from .loop import State
from .mlp import MLP
from .optim import SGD, Optimizer
from .runs.checkpoint import Checkpoint, describe

__all__ = ["DivergenceError", "fit"]


class DivergenceError(ArithmeticError):
    """The loss or a parameter became NaN or infinite. The model holds the last parameters whose loss was finite."""


def fit(
    model: MLP,
    X: Any,
    y: Any,
    *,
    epochs: int = 100,
    optimizer: Optimizer | None = None,
    batch_size: int | None = None,
    validation: tuple[Any, Any] | None = None,
    callbacks: Sequence[Callback | Callable[[State], Any]] = (),
    tol: float | None = None,
    patience: int = 10,
    threads: int | None = None,
    plan: str = "auto",
    checkpoint: Checkpoint | None = None,
) -> History:
    """Train, and return what happened.

    Parameters
    ----------
    model, X, y, optimizer, batch_size, threads, plan
        As for :func:`epochs`.
    epochs : int
        The most epochs to train for.
    validation : (X, y), optional
        Data whose loss and score are recorded after each epoch.
    callbacks : sequence of callable
        Called with the :class:`State` after each epoch, in this order; one that returns True ends the training. A
        callback that has ``close`` is closed at the end, whatever happens.
    tol : float, optional
        Stop when the validation loss (without validation data, the training loss) has not fallen by more than `tol`
        for `patience` epochs. With validation data the parameters of the best epoch are put back.
    patience : int
    checkpoint : Checkpoint, optional
        Save the run in a folder, and go on with the one that is there. Of the callbacks, :class:`EarlyStopping` goes on
        from where it was, any other afresh.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        If an argument does not fit, or the checkpoint is not of the same run.
    DivergenceError
        If the loss or a parameter becomes NaN or infinite; what is saved is of before.
    Interrupted
        With a checkpoint: after a SIGTERM or Ctrl-C, when the state is saved.
    """
    check_count("epochs", epochs)
    optimizer = SGD() if optimizer is None else optimizer
    X = model.check_features(X, move=False)
    y = model.check_targets(y, X.shape[0], move=False)
    validation = None if validation is None else _checked(model, validation)
    history = History(validation)
    run: list[Any] = [history, *callbacks]
    if tol is not None:
        run.append(EarlyStopping(tol, patience, "loss" if validation is None else "val_loss"))
    with ExitStack() as closing:
        start = pause = None
        if checkpoint is not None:
            closing.callback(checkpoint.close)
            stoppings = [callback for callback in run if isinstance(callback, EarlyStopping)]
            settings = describe(model, X, y, optimizer, batch_size, plan, validation, stoppings)
            start, pause = checkpoint.attach(settings, model, optimizer, history, stoppings), checkpoint.is_due
            if start is not None and any(stopping.over for stopping in stoppings):
                epochs = start.epoch
        states = loop.epochs(
            model, X, y, optimizer=optimizer, epochs=epochs, batch_size=batch_size, threads=threads, plan=plan,
            start=start, pause=pause,
        )  # fmt: skip
        closing.callback(states.close)
        for callback in run:
            if hasattr(callback, "close"):
                closing.callback(callback.close)
        if checkpoint is not None:
            checkpoint.begin(model)
        finite = before = model.theta
        for state in states:
            if not math.isfinite(state.loss):
                model.theta = finite
                raise _diverged(state, f"the loss is {float(state.loss)}")
            finite = before  # the loss is known where the epoch began, not yet where it ended
            if not model.device.xp.all(model.device.xp.isfinite(model.theta)):
                model.theta = finite
                raise _diverged(state, "a parameter is NaN or infinite")
            final = False
            if state.whole:
                answers = [callback(state) for callback in run]
                if not math.isfinite(state.metrics.get("val_loss", 0.0)):
                    raise _diverged(state, f"the validation loss is {state.metrics['val_loss']}")
                before, final = model.theta, any(answers) or state.epoch == epochs
            if checkpoint is not None:
                checkpoint.after(state, final)
            if final:
                break
    return history


def _checked(model: MLP, validation: tuple[Any, Any]) -> tuple[Array, Array]:
    try:
        X, y = validation
    except (TypeError, ValueError):
        raise ValueError(f"validation must be a pair (X, y), got {type(validation).__name__}") from None
    X = model.check_features(X)
    return X, model.check_targets(y, X.shape[0], move=False)


def _diverged(state: State, problem: str) -> DivergenceError:
    updates = "update 1" if state.updates == 1 else f"one of the updates 1 to {state.updates}"
    return DivergenceError(
        f"{problem} at epoch {state.epoch}, {updates}, with learning rate {state.lr:g}; the model keeps its last "
        "finite parameters: train with a smaller learning rate, or scale the inputs"
    )
