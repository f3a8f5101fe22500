"""The training loop: ``epochs`` yields a state after each epoch and does nothing else; ``fit`` puts callbacks on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from .arrays import Array
from .batches import make_batches
from .callbacks import Callback, EarlyStopping, History
from .mlp import MLP
from .optim import SGD, Optimizer
from .params import GradSum
from .plan import Plan, make_plan
from .shards import make_executor
from .validation import check_count

__all__ = ["DivergenceError", "State", "epochs", "fit"]


class DivergenceError(ArithmeticError):
    """The loss became NaN or infinite. The model holds the parameters of the last epoch whose loss was finite."""


@dataclass
class State:
    """What is known after an epoch.

    Attributes
    ----------
    epoch : int
        Counted from 1.
    loss : 0-d array of the device
        Mean training loss (with the L2 term, where there is one) that the epoch's gradients were computed at.
    lr : float
        Learning rate of the epoch.
    seconds : float
        Time that the epoch took, callbacks left out.
    model : MLP
        Its parameters are those after the epoch.
    gradient : array (P,)
        Gradient of the epoch's last update, in the plan's order; valid until the next epoch.
    optimizer_state : dict
        Arrays (P,) in the plan's order, and numbers.
    plan : Plan
    metrics : dict of str to float
        What callbacks measured after this epoch, such as ``val_loss``.
    """

    epoch: int
    loss: Array
    lr: float
    seconds: float
    model: MLP
    gradient: Array
    optimizer_state: dict[str, Any]
    plan: Plan
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def gradient_norm(self) -> Array:
        """Euclidean norm () of the gradient of the epoch's last update."""
        return self.model.device.xp.sqrt(self.model.device.xp.sum(self.gradient * self.gradient))


def epochs(
    model: MLP,
    X: Any,
    y: Any,
    *,
    optimizer: Optimizer | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    plan: str = "auto",
) -> Iterator[State]:
    """Train epoch by epoch, and hand out the state after each.

    Parameters
    ----------
    model : MLP
        Its parameters are replaced after each epoch; what the caller assigns to them in between is taken up.
    X, y : array
        As for :meth:`MLP.loss_and_gradient`.
    optimizer : Optimizer, optional
        ``SGD(lr=0.1)`` if None.
    epochs : int, optional
        How many; None goes on until the caller stops.
    batch_size : int, optional
        Rows per update; None takes all rows at once. The order of rows depends on (model.seed, epoch) alone.
    threads : int, optional
        Threads on the CPU; None takes all cores. The result does not depend on it.
    plan : {"auto", "dense", "zero", "ragged"}
        How the data are stored, see :func:`mlp_xp.shards.make_plan`.

    Yields
    ------
    State

    Raises
    ------
    ValueError
        If an argument does not fit; at the call, before any training.

    Examples
    --------
    >>> import mlp_xp as mx
    >>> X, y = mx.datasets.xor()
    >>> model = mx.MLP([2, 4, 2], activation="tanh", seed=1)
    >>> for state in mx.epochs(model, X, y, optimizer=mx.Adam(lr=0.1)):
    ...     if model.score(X, y) == 1.0:
    ...         break
    """
    optimizer = SGD() if optimizer is None else optimizer
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"optimizer must be SGD(...), Adam(...) or AdamW(...), got {optimizer!r}")
    if epochs is not None:
        check_count("epochs", epochs)
    X = model.check_features(X)
    y = model.check_targets(y, X.shape[0])
    if batch_size is not None:
        batch_size = min(check_count("batch_size", batch_size), X.shape[0])
    chosen = make_plan(X, model, plan, epochs, batch_size)
    executor = make_executor(model, chosen, threads, 1 if batch_size else -(-X.shape[0] // model.device.shard_rows))
    batches = make_batches(X, y, chosen, model.device, model.seed, batch_size)
    return _run(model, optimizer, executor, chosen, batches, epochs)


def _run(
    model: MLP, optimizer: Optimizer, executor: Any, plan: Plan, batches: Any, last: int | None
) -> Iterator[State]:
    xp = model.device.xp
    bias = model.device.asarray(model.layout.is_bias().astype(model.dtype))
    state = optimizer.init(model.theta)
    descends = optimizer.descends and executor.descends
    epoch = 0
    try:
        while last is None or epoch < last:
            start, epoch = perf_counter(), epoch + 1
            theta = plan.inward(model.theta, model)
            lr = optimizer.rate(epoch)
            rate = lr if optimizer.lr_bias is None else lr * (1 + bias * (optimizer.lr_bias / optimizer.base_lr - 1))
            loss, count = 0, 0
            with executor:
                for update, shards in enumerate(batches(epoch), 1):
                    if descends and update < batches.updates:
                        part, rows = executor.descend(theta, shards[0], lr)
                        loss, count = part + loss, count + rows
                        continue
                    total = executor.grad_sum(theta, shards)
                    grad, penalty = _mean(total, theta, optimizer.l2, bias, xp)
                    theta, state = optimizer.update(theta, grad, state, rate)
                    loss, count = total.loss + penalty * total.rows + loss, count + total.rows
            model.theta = plan.outward(theta, model)
            yield State(epoch, loss / count, lr, perf_counter() - start, model, grad, state, plan)
    finally:
        executor.close()


def _mean(total: GradSum, theta: Array, l2: float, bias: Array, xp: Any) -> tuple[Array, Array | float]:
    """Return the gradient of the mean loss (P,), with the L2 term's, and the L2 term itself."""
    grad = total.grad
    grad *= 1 / total.rows
    if not l2:
        return grad, 0.0
    weights = theta * (1 - bias)
    grad += l2 * weights
    return grad, l2 / 2 * xp.sum(weights * weights)


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

    Returns
    -------
    History

    Raises
    ------
    ValueError
        If an argument does not fit.
    DivergenceError
        If the loss becomes NaN or infinite.
    """
    check_count("epochs", epochs)
    history = History(validation=None if validation is None else _checked(model, validation))
    run: list[Any] = [history, *callbacks]
    if tol is not None:
        run.append(EarlyStopping(tol, patience, "loss" if validation is None else "val_loss"))
    states = _epochs(model, X, y, optimizer=optimizer, epochs=epochs, batch_size=batch_size, threads=threads, plan=plan)
    with ExitStack() as closing:
        closing.callback(states.close)  # type: ignore[attr-defined]
        for callback in run:
            if hasattr(callback, "close"):
                closing.callback(callback.close)
        finite = before = model.theta
        for state in states:
            if not math.isfinite(float(state.loss)):
                model.theta = finite
                raise DivergenceError(
                    f"the loss is {float(state.loss)} at epoch {state.epoch} with learning rate {state.lr:g}; the "
                    "model keeps its last finite parameters: train with a smaller learning rate, or scale the inputs"
                )
            finite = before  # the loss is known where the epoch began, not yet where it ended
            stops = [callback(state) for callback in run]
            if any(stops):
                break
            before = model.theta
    return history


_epochs = epochs  # the name that fit's argument of the same name hides


def _checked(model: MLP, validation: tuple[Any, Any]) -> tuple[Array, Array]:
    try:
        X, y = validation
    except (TypeError, ValueError):
        raise ValueError(f"validation must be a pair (X, y), got {type(validation).__name__}") from None
    X = model.check_features(X)
    return X, model.check_targets(y, X.shape[0])
