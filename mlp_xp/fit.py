"""``fit``: the loop with callbacks on it, and what watches over a run: divergence, checkpoints, signals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NoReturn, Self

from . import loop
from .callbacks import Callback, EarlyStopping, Evaluation, History
from .callbacks.protocol import check_callbacks, check_measures, is_stateful, is_true
from .checks import check_count
from .devices.blas_threads import at_most
from .loop import State
from .mlp import MLP
from .optim import SGD, Optimizer
from .runs.agreement import Agreement
from .runs.checkpoint import Checkpoint, Unsaved
from .runs.training import Training, parameters_digest, sampled

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
    dropout: float | Sequence[float] = 0.0,
    checkpoint: Checkpoint | None = None,
    comm: Any = None,
) -> History:
    """Train, and return what happened.

    Parameters
    ----------
    model : MLP
        As for :func:`epochs`.
    X : array (n, n_0)
        As for :func:`epochs`.
    y : array
        As for :func:`epochs`.
    epochs : int
        The most epochs to train for.
    optimizer : Optimizer, optional
        As for :func:`epochs`.
    batch_size : int, optional
        As for :func:`epochs`.
    validation : (X, y), optional
        Data to measure after each epoch: ``val_loss``, and ``val_accuracy`` or, if the outputs are values, ``val_r2``.
    callbacks : sequence of callable
        Called with the :class:`State` after each epoch, in this order, between the measurement on the validation data
        and the record in the history. One that returns True ends the training; the others hear of the epoch all the
        same. What else a callback may have is in :class:`mlp_xp.callbacks.Callback`.
    tol : float, optional
        Stop when the validation loss (without validation data, the training loss) has not fallen by more than `tol`
        for `patience` epochs. With validation data the parameters of the best epoch are put back.
    patience : int
        Epochs to wait for a fall.
    threads : int, optional
        As for :func:`epochs`; measurements and callbacks obey it too.
    plan : {"auto", "dense", "sparse", "zero", "ragged"}
        As for :func:`epochs`.
    dropout : float or sequence of float
        As for :func:`epochs`: the share of hidden units that are left out of each row's network. ``loss`` is that of
        the thinned networks, so it may be above ``val_loss``, which is that of the whole network.
    checkpoint : Checkpoint, optional
        Save the run in a folder, and go on with the one that is there. Callbacks that have ``dump`` and ``restore``,
        such as :class:`EarlyStopping`, go on from where they were, any others afresh.
    comm : mpi4py.MPI.Comm, optional
        Share the work with the other processes of this communicator, which call this with the same arguments; see
        :func:`epochs`. All of them return the same history, but for the seconds, and have the same parameters. Rank 0
        alone writes checkpoints and has progress bars. A callback that ends the training on one rank, or a signal, ends
        it on all.

    Returns
    -------
    History
        Every epoch of the run, with those before it was resumed.

    Raises
    ------
    ValueError
        If an argument does not fit, the checkpoint is not of the same run, or the processes of `comm` disagree on what
        to do; the message lists how. The model is as it was. After an epoch, if callbacks have given these processes
        different parameters.
    RankError
        If another process of `comm` raised an error.
    DivergenceError
        If the loss or a parameter becomes NaN or infinite. A checkpoint is of before that.
    KeyboardInterrupt
        After Ctrl-C. The model holds the parameters of the last whole epoch.
    Interrupted
        With a checkpoint: after Ctrl-C or SIGTERM, when the state is saved.
    """
    with Agreement(comm) as ranks, ExitStack() as closing:
        share = ranks.threads()
        with ranks.together():
            check_count("epochs", epochs)
            threads = share if threads is None else check_count("threads", threads)
            optimizer = SGD() if optimizer is None else optimizer
            given = [
                each for each in check_callbacks(callbacks) if ranks.leads or not getattr(each, "of_rank_0", False)
            ]
            rates = loop.rates_of(dropout, model, optimizer)
            rows = model.open(X)
            targets = model.targets(y, rows.shape[0])
            measured = None if validation is None else Evaluation("val", *_pair(validation), comm)
            watched = "loss" if validation is None else "val_loss"
            stopping = EarlyStopping(0.0 if tol is None else tol, patience, watched)
            history = History()
            run = [*([measured] if measured else ()), *given, *([] if tol is None else [stopping]), history]
            keeper = Unsaved() if checkpoint is None else checkpoint
            closing.enter_context(at_most(threads))
            watch = closing.enter_context(_Watch(model))
            closing.enter_context(keeper)
            _begin(run, model, closing)
            stateful = [callback for callback in run[:-1] if is_stateful(callback)]
            checked = None if measured is None else measured.data
            data = rows, targets
            training = Training(model, optimizer, data, checked, batch_size, plan, rates, history, stateful)
            sketch = {}
            if ranks.size > 1:
                shared = {"callbacks with comm": _shared(given, ranks.size)}
                sketch = {**training.sketch(), **shared, "epochs": epochs, "checkpoint": checkpoint}
        ranks.compare(sketch)
        start = keeper.attach(training, ranks)
        epochs = training.last(start, epochs)
        states = loop.epochs(
            model, rows, targets, optimizer=optimizer, epochs=epochs, batch_size=batch_size, threads=threads, plan=plan,
            dropout=rates, start=start, pause=keeper.is_due, comm=comm,
        )  # fmt: skip
        keeper.begin(start)
        closing.callback(states.close)
        watch.begin()
        for state in states:
            if state.rows:  # not in the middle of the first update
                watch.look_at(state)
            final = False
            if state.whole:
                answers = [is_true(callback(state)) for callback in run]
                final = ranks.any(any(answers)) or state.done.final or state.epoch == epochs
                if ranks.size > 1 and (final or ranks.any(watch.is_replaced)):
                    ranks.compare({f"parameters after epoch {state.epoch}": parameters_digest(model)})
                watch.accept(state, final)
            keeper.after(state, final)
            if final:
                break
    return history


def _begin(run: Sequence[Any], model: MLP, closing: ExitStack) -> None:
    """Let callbacks forget the run before; each one that has begun is closed at the end."""
    for callback in run:
        if hasattr(callback, "begin"):
            callback.begin(model)
        if hasattr(callback, "close"):
            closing.callback(callback.close)
    check_measures(run)


def _shared(callbacks: Sequence[Any], size: int) -> list[str]:
    """Return what those callbacks are whose work so many ranks share."""
    return [
        f"{each!r} of {sampled(*each.data)}"
        for each in callbacks
        if isinstance(each, Evaluation) and each.data and each.ranks and each.ranks.size == size
    ]


class _Watch:
    """Ends a training that diverges, with the last parameters whose loss was finite.

    The loss of an epoch is known where the epoch began, not yet where it ended.
    """

    def __init__(self, model: MLP) -> None:
        self.model, self.untouched = model, model.theta

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.untouched is not None:  # the training never began
            self.model.theta = self.untouched

    def begin(self) -> None:
        """Go on from the parameters that the model has now."""
        self.untouched = None
        self.finite = self.before = self.model.theta

    def look_at(self, state: State) -> None:
        """Check what the loop handed out, before anybody uses it."""
        with self.model.device.active():  # once for both
            if not math.isfinite(state.loss):
                self._end(state, f"the loss is {float(state.loss)}")
            self.finite = self.before
            self._check_theta(state)

    @property
    def is_replaced(self) -> bool:
        """Whether callbacks have assigned other parameters."""
        return self.model.theta is not self.seen

    def accept(self, state: State, final: bool) -> None:
        """Check what callbacks have measured and changed; go on from here."""
        for name, value in state.metrics.items():
            if name.endswith("_loss") and not math.isfinite(value):
                self._end(state, f"{name} is {value}")
        if final or self.is_replaced:
            self._check_theta(state)
        self.before = self.model.theta

    def _check_theta(self, state: State) -> None:
        self.seen, xp = self.model.theta, self.model.device.xp
        with self.model.device.active():
            finite = bool(xp.all(xp.isfinite(self.seen)))
        if not finite:
            self._end(state, "a parameter is NaN or infinite")

    def _end(self, state: State, problem: str) -> NoReturn:
        self.model.theta = self.finite
        updates = "update 1" if state.updates == 1 else f"one of the updates 1 to {state.updates}"
        raise DivergenceError(
            f"{problem} at epoch {state.epoch}, {updates}, with learning rate {state.lr:g}; the model keeps its last "
            "finite parameters: train with a smaller learning rate, or scale the inputs"
        )


def _pair(validation: Any) -> tuple[Any, Any]:
    try:
        X, y = validation
    except (TypeError, ValueError):
        raise ValueError(f"validation must be a pair (X, y), got {type(validation).__name__}") from None
    return X, y
