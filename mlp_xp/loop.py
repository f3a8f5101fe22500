"""The training loop: ``epochs`` yields a state after each epoch and does nothing else."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from time import perf_counter
from typing import Any, SupportsFloat

import numpy as np

from .checks import check_count
from .devices import Array
from .engines.cuda.epochs import CudaEpochs, Watch, make_epochs
from .engines.shards import make_executor
from .mlp import MLP
from .optim import SGD, Optimizer
from .params import GradSum
from .rows.batches import FullBatch, MiniBatches, make_batches, shuffled_rows
from .rows.plan import Plan, make_plan

__all__ = ["Snapshot", "State", "epochs"]


@dataclass(frozen=True)
class Snapshot:
    """Where a training run is: arrays of the host, in the order of the data, and numbers.

    Attributes
    ----------
    epoch : int
        Epochs that are over.
    update : int
        Updates done of the epoch after these.
    rows, loss_sum, seconds : int, float, float
        Rows that these updates saw, the sum of their losses, and the time they took.
    theta : array (P,)
    optimizer : dict of str to array (P,) or number
        State of the optimiser.
    plan : str
        Kind of the plan, as it was chosen.
    """

    epoch: int
    update: int
    rows: int
    loss_sum: float
    seconds: float
    theta: np.ndarray[Any, Any]
    optimizer: dict[str, Any]
    plan: str


@dataclass
class State:
    """What is known after an epoch, or in the middle of one where it was asked for.

    Attributes
    ----------
    epoch : int
        Counted from 1.
    whole : bool
        Whether the epoch is over.
    updates : int
        How many there were in this epoch, up to here.
    rows, loss_sum : int, 0-d array of the device
        Rows that these updates saw, and the sum of their losses, with the L2 term, where there is one.
    lr : float
        Learning rate of the epoch.
    seconds : float
        Time that the epoch took, callbacks left out. On a GPU it is what ``float`` makes that of, having waited.
    model : MLP
        Its parameters are those after the last update.
    gradient : array (P,)
        Gradient of the epoch's last update, in the plan's order; valid until the next epoch. In the middle of an epoch
        it is of some update before, or None: plain gradient descent on mini-batches keeps none.
    optimizer_state : dict
        Arrays (P,) in the plan's order, and numbers.
    plan : Plan
    metrics : dict of str to float
        What callbacks measured after this epoch, such as ``val_loss``.
    """

    epoch: int
    whole: bool
    updates: int
    rows: int
    loss_sum: Array
    lr: float
    seconds: SupportsFloat
    model: MLP
    gradient: Array
    optimizer_state: dict[str, Any]
    plan: Plan
    metrics: dict[str, float] = field(default_factory=dict)

    @cached_property
    def loss(self) -> Array:
        """Mean training loss () that the epoch's gradients were computed at, on the device."""
        return self.loss_sum / self.rows

    @property
    def gradient_norm(self) -> Array:
        """Euclidean norm () of the gradient of the epoch's last update."""
        return self.model.device.xp.sqrt(self.model.device.xp.sum(self.gradient * self.gradient))

    def snapshot(self) -> Snapshot:
        """Return what :func:`epochs` can go on from; nothing that happens afterwards changes it."""
        model, host = self.model, self.model.device.to_host
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
    start: Snapshot | None = None,
    pause: Callable[[], bool] | None = None,
) -> Generator[State, None, None]:
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
        How the data are stored, see :func:`mlp_xp.rows.plan.make_plan`.
    start : Snapshot, optional
        Go on from here, to the bit: a :meth:`State.snapshot` of a run with the same arguments (of these, `epochs`,
        `threads` and the device may be others). `epochs` counts from the beginning of that run.
    pause : callable, optional
        Asked after each update but an epoch's last, on a GPU after some hundred; where it returns True, the state in
        the middle of the epoch is handed out, to be looked at: what is assigned to the model then is not taken up.

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
    X = model.check_features(X, move=False)
    y = model.check_targets(y, X.shape[0], move=False)
    if batch_size is not None:
        batch_size = min(check_count("batch_size", batch_size), X.shape[0])
    if start is not None:
        _check_start(start, model, epochs)
        if plan == "auto" and model.device.library in ("cpu", "cuda"):
            plan = start.plan
    chosen = make_plan(X, model, plan, epochs, batch_size)
    if model.device.library == "cuda":
        run = make_epochs(model, optimizer, X, y, batch_size, chosen)
        states = _run_on_gpu(run, optimizer, X.shape[0], batch_size, epochs, start, pause)
    else:
        shards = 1 if batch_size else -(-X.shape[0] // model.device.shard_rows)
        executor = make_executor(model, chosen, threads, shards)
        X, y = model.device.asarray(X), model.device.asarray(y)
        batches = make_batches(X, y, chosen, model.device, model.seed, batch_size)
        states = _run(model, optimizer, executor, chosen, batches, epochs, start, pause)
    if start is not None:
        model.theta = model.device.asarray(start.theta.copy())
    return states


def _check_start(start: Snapshot, model: MLP, epochs: int | None) -> None:
    if start.theta.shape != (model.layout.size,):
        raise ValueError(f"start has {start.theta.size} parameters, and the model {model.layout.size}; use the same")
    begun = start.epoch + (start.update > 0)
    if epochs is not None and epochs < begun:
        raise ValueError(f"epochs must be at least {begun}, where this run is already, got {epochs}")


def _run(
    model: MLP,
    optimizer: Optimizer,
    executor: Any,
    plan: Plan,
    batches: FullBatch | MiniBatches,
    last: int | None,
    start: Snapshot | None,
    pause: Callable[[], bool] | None,
) -> Generator[State, None, None]:
    xp = model.device.xp
    bias = model.device.asarray(model.layout.is_bias().astype(model.dtype))
    state = optimizer.init(model.theta)
    descends = optimizer.descends and executor.descends
    grad = None
    epoch, updates, rows, seconds = 0, 0, 0, 0.0
    loss: Any = 0.0
    if start is not None:
        epoch, updates, rows, loss, seconds = start.epoch, start.update, start.rows, start.loss_sum, start.seconds
        for name, value in start.optimizer.items():
            state[name] = value if isinstance(value, int | float) else plan.inward(model.device.asarray(value), model)
    try:
        while last is None or epoch < last:
            began, epoch = perf_counter(), epoch + 1
            theta = plan.inward(model.theta, model)
            lr = optimizer.rate(epoch)
            rate = lr if optimizer.lr_bias is None else lr * (1 + bias * (optimizer.lr_bias / optimizer.base_lr - 1))
            with executor:
                for shards in islice(batches(epoch), updates, None):
                    updates += 1
                    if descends and updates < batches.updates:
                        part, count = executor.descend(theta, shards[0], lr)
                    else:
                        total = executor.grad_sum(theta, shards)
                        grad, penalty = _mean(total, theta, optimizer.l2, bias, xp)
                        theta, state = optimizer.update(theta, grad, state, rate)
                        part, count = total.loss + penalty * total.rows, total.rows
                    loss, rows = part + loss, rows + count
                    if pause is not None and updates < batches.updates and pause():
                        model.theta = plan.outward(theta, model)
                        seconds += perf_counter() - began
                        yield State(epoch, False, updates, rows, loss, lr, seconds, model, grad, state, plan)
                        began = perf_counter()
            model.theta = plan.outward(theta, model)
            seconds += perf_counter() - began
            yield State(epoch, True, updates, rows, loss, lr, seconds, model, grad, state, plan)
            updates, rows, loss, seconds = 0, 0, 0.0, 0.0
    finally:
        executor.close()


def _run_on_gpu(
    run: CudaEpochs,
    optimizer: Optimizer,
    n: int,
    batch_size: int | None,
    last: int | None,
    start: Snapshot | None,
    pause: Callable[[], bool] | None,
) -> Generator[State, None, None]:
    model, epoch, updates, seconds = run.model, 0, 0, 0.0
    if start is not None:
        epoch, updates, seconds = start.epoch, start.update, start.seconds
        run.resume(start.optimizer, updates, start.loss_sum)
    while last is None or epoch < last:
        watch, epoch = Watch(model.device.xp, seconds), epoch + 1
        lr = optimizer.rate(epoch)
        order = None if batch_size is None else shuffled_rows(model.seed, epoch, n)
        for done in run.run_epoch(model.theta, lr, order, updates):
            whole = done == run.updates
            if whole or (pause is not None and pause()):
                model.theta, rows = run.copy_theta(), n if batch_size is None else min(n, done * batch_size)
                state = watch.stop(), model, run.gradient, run.state, run.plan
                yield State(epoch, whole, done, rows, run.loss_sum, lr, *state)
                if not whole:
                    watch = Watch(model.device.xp, watch)
        updates, seconds = 0, 0.0


def _mean(total: GradSum, theta: Array, l2: float, bias: Array, xp: Any) -> tuple[Array, Array | float]:
    """Return the gradient of the mean loss (P,), with the L2 term's, and the L2 term itself."""
    grad = total.grad
    grad *= 1 / total.rows
    if not l2:
        return grad, 0.0
    weights = theta * (1 - bias)
    grad += l2 * weights
    return grad, l2 / 2 * xp.sum(weights * weights)
