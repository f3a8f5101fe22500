"""The training loop: ``epochs`` yields a state after each epoch and does nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, SupportsFloat

import numpy as np

from .checks import check_count, shown
from .devices import Array
from .devices.blas_threads import default_threads
from .dropout import Dropout, check_dropout
from .engines import Done, Engine, Ranks, Setup, choose_plan, make_engine
from .mlp import MLP
from .objective import Objective
from .optim import LBFGS, SGD, Optimizer, OptimizerState
from .rows.checks import check_weights
from .rows.plan import Plan
from .snapshot import Snapshot, check_snapshot

__all__ = ["State", "epochs", "rates_of"]


@dataclass(eq=False)
class State:
    """What is known after an epoch, or in the middle of one if that was asked for.

    Attributes
    ----------
    epoch : int
        Counted from 1.
    whole : bool
        Whether the epoch is over.
    done : Done
        Updates of this epoch up to here, the rows that they saw, the sum of their losses, and the time they took.
    lr : float
        Learning rate of the epoch.
    model : MLP
        Its parameters are those after the last update.
    engine : Engine
    metrics : dict of str to float
        What callbacks measured after this epoch, such as ``val_loss``.
    """

    epoch: int
    whole: bool
    done: Done
    lr: float
    model: MLP
    engine: Engine
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def updates(self) -> int:
        """Updates in this epoch, up to here."""
        return self.done.updates

    @property
    def rows(self) -> int:
        """Rows that these updates saw."""
        return self.done.rows

    @property
    def loss_sum(self) -> SupportsFloat:
        """Sum of the losses of these rows, with the penalty, if there is one."""
        return self.done.loss_sum

    @property
    def seconds(self) -> SupportsFloat:
        """Time that the epoch took, callbacks left out. On a GPU it is known once ``float`` has waited for it."""
        return self.done.seconds

    @cached_property
    def loss(self) -> Array:
        """Mean training loss () that the epoch's gradients were computed at, on the device; NaN before any update."""
        with self.model.device.active():
            mean: Any = self.done.loss_sum / self.done.rows if self.rows else math.nan  # type: ignore[operator]
            return self.model.device.asarray(mean, self.model.dtype)[()]

    @property
    def gradient(self) -> Array | None:
        """Gradient (P,) of the epoch's last update, in the plan's order; valid until the next epoch.

        In the middle of an epoch it is that of some update before, or None: plain gradient descent on mini-batches
        keeps none.
        """
        return self.engine.gradient()

    @property
    def gradient_norm(self) -> Array:
        """Euclidean norm () of the gradient of the epoch's last update."""
        xp, gradient = self.model.device.xp, self.engine.gradient()
        assert gradient is not None, "no gradient is kept in the middle of an epoch of plain gradient descent"
        with self.model.device.active():
            return xp.sqrt(xp.sum(gradient * gradient))

    @property
    def optimizer_state(self) -> OptimizerState:
        """The optimizer's arrays (P,) in the plan's order, and numbers; valid until the next epoch."""
        return self.engine.state()

    @property
    def plan(self) -> Plan:
        """How the data are stored."""
        return self.engine.plan

    def snapshot(self) -> Snapshot:
        """Return what :func:`epochs` can go on from; nothing that happens afterwards changes it."""
        model, host = self.model, self.model.device.to_host
        with model.device.active():
            arrays = {
                name: value if isinstance(value, int | float) else host(self.plan.outward(value, model))
                for name, value in self.optimizer_state.items()
            }
            theta = host(model.theta).copy()
        if self.whole:
            return Snapshot(self.epoch, 0, 0, 0.0, 0.0, theta, arrays, self.plan.kind)
        done = self.updates, self.rows, float(self.loss_sum), float(self.seconds)
        return Snapshot(self.epoch - 1, *done, theta, arrays, self.plan.kind)


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
    dropout: float | Sequence[float] = 0.0,
    start: Snapshot | None = None,
    pause: Callable[[], bool] | None = None,
    objective: Objective | None = None,
    weights: Any = None,
    order: Callable[[int], np.ndarray[Any, Any]] | None = None,
    comm: Any = None,
) -> Generator[State, None, None]:
    """Train epoch by epoch, and hand out the state after each.

    Parameters
    ----------
    model : MLP
        Its parameters are replaced after each epoch; what the caller assigns to them in between is taken up.
    X, y : array
        As for :meth:`MLP.loss_and_gradient`. They are looked at once, at the call, and must not change while the
        training goes on: where zeros are, for instance, is noted then.
    optimizer : Optimizer, optional
        ``SGD(lr=0.1)`` if None, the lectures' gradient descent. ``Adam(lr=0.003)`` with a `batch_size` of 128 is sooner
        there.
    epochs : int, optional
        How many; None goes on until the caller stops.
    batch_size : int, optional
        Rows per update; None takes all rows at once. The order of rows depends on (model.seed, epoch) alone.
    threads : int, optional
        Threads on the CPU of each process; None takes all cores, or an equal share of them if there is a `comm`. The
        result does not depend on it.
    plan : {"auto", "dense", "sparse", "zero", "ragged"}
        How the data are stored, see :func:`mlp_xp.rows.plan.make_plan`.
    dropout : float or sequence of float
        The share of hidden units that each row of the data leaves out, in each epoch others, for all hidden layers or
        one for each, in [0, 1); see :mod:`mlp_xp.dropout`. The units that stay count 1 / (1 - rate) times as much, so
        predictions need no scaling: they see the whole network. The loss is that of the thinned networks. What is left
        out depends on (model.seed, epoch, row, unit) alone.
    start : Snapshot, optional
        Go on from here, bit for bit: a :meth:`State.snapshot` of a run with the same arguments (of these, `epochs`,
        `threads` and the device may be others). `epochs` counts from the beginning of that run.
    pause : callable, optional
        Asked after each update but an epoch's last, on a GPU after every few hundred, and by the compiled library every
        tenth of a second of an update of all rows. If it returns True, the state in the middle of the epoch is handed
        out, to be looked at: what is assigned to the model then is not taken up. In the middle of the first update it
        is the state before that.
    objective : Objective, optional
        What is minimized, in place of the loss of the model's output; the optimizer's `l2` is added to it.
    weights : array (n,), optional
        How much each row counts: what is minimized is the mean Σ w loss / Σ w over an update's rows.
    order : callable, optional
        ``order(epoch)`` is the order of the rows, an array (n,) of the host, in an epoch of mini-batches.
    comm : mpi4py.MPI.Comm, optional
        Share the work with the other processes of this communicator, which call this with the same arguments. The
        states that come are the same in all of them, and the same bits as without it; on GPUs, up to rounding. Unlike
        :func:`mlp_xp.fit`, this compares nothing: a process whose model, data or arguments differ gets wrong results,
        or waits forever. All processes have to leave the loop after the same state, or the others wait forever.

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
        raise ValueError(f"optimizer must be SGD(...), Adam(...), AdamW(...) or LBFGS(...), got {optimizer!r}")
    if epochs is not None:
        check_count("epochs", epochs)
    ranks = None if comm is None else Ranks(comm)
    count = _default_threads(ranks) if threads is None else check_count("threads", threads)
    rows = model.open(X)
    targets, objective = model.targets(y, rows.shape[0]), objective or model.objective
    if weights is not None:
        targets = replace(targets, weights=check_weights(weights, rows.shape[0], model.dtype))
    if batch_size is not None:
        if isinstance(optimizer, LBFGS):
            raise ValueError(f"LBFGS takes all rows at once, got batch_size {batch_size!r}; leave it out")
        batch_size = min(check_count("batch_size", batch_size), rows.shape[0])
    rates = rates_of(dropout, model, optimizer)
    if start is not None:
        check_snapshot(start, model, optimizer, rows.shape[0], batch_size)
        begun = start.epoch + (start.update > 0)
        if epochs is not None and epochs < begun:
            raise ValueError(f"epochs must be at least {begun}, where this run is already, got {epochs}")
    before = None if start is None else start.plan
    chosen = choose_plan(rows, model, optimizer, plan, epochs, batch_size, before, objective)
    objective = replace(objective, l2=objective.l2 + optimizer.l2)
    dropped = Dropout((0.0, *rates, 0.0), model.sizes, model.seed) if any(rates) else None
    engine = make_engine(
        Setup(model, objective, optimizer, rows, targets, batch_size, chosen, count, order, ranks, dropped)
    )
    states = _run(engine, model, optimizer, rows.pixels, epochs, start, _agreed(pause, ranks))
    if start is not None:
        model.theta = model.device.asarray(start.theta.copy())
    return states


def rates_of(dropout: float | Sequence[float], model: MLP, optimizer: Optimizer) -> tuple[float, ...]:
    """Return the rates of dropout of a model's hidden layers, checked.

    Raises
    ------
    ValueError
        If they do not fit, or the optimizer cannot have any.
    """
    rates = check_dropout(dropout, len(model.sizes) - 2)
    if any(rates) and isinstance(optimizer, LBFGS):
        raise ValueError(
            f"LBFGS searches for the least of one loss, and dropout makes another one in each epoch, got dropout "
            f"{shown(dropout)}; leave it out, or train with SGD(...) or Adam(...)"
        )
    return rates


def _default_threads(ranks: Ranks | None) -> int:
    """Return how many threads each process has if nobody says."""
    return default_threads() if ranks is None else ranks.threads(default_threads())


def _agreed(pause: Callable[[], bool] | None, ranks: Ranks | None) -> Callable[[], bool] | None:
    """Return a question that all ranks answer alike: whether any of them is to pause."""
    if pause is None or ranks is None:
        return pause
    return lambda: ranks.any(pause())


def _run(
    engine: Engine,
    model: MLP,
    optimizer: Optimizer,
    pixels: bool,
    last: int | None,
    start: Snapshot | None,
    pause: Callable[[], bool] | None,
) -> Generator[State, None, None]:
    epoch, done, final = 0, Done(), False
    if start is not None:
        epoch, done = start.epoch, Done(start.update, start.rows, start.loss_sum, start.seconds)
        engine.restore(start.optimizer)
        final = optimizer.is_over(start.optimizer)
    model.pixels = pixels
    with engine:
        while not final and (last is None or epoch < last):
            epoch += 1
            lr = optimizer.rate(epoch)
            engine.begin(model.theta, epoch, lr, done)
            while done.updates < engine.updates:
                with model.device.active():  # once for both
                    done = engine.advance(pause)
                    model.theta = engine.theta()
                yield State(epoch, done.updates == engine.updates, done, lr, model, engine)
            done, final = Done(), done.final
