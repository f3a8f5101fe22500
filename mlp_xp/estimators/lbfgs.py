"""The solver "lbfgs": SciPy's L-BFGS-B, as in scikit-learn, whose runs its steps are.

The gradients come from the engine of the model's device; the method itself is on the host and in float64. The library's
own, which stays on the device, is :class:`mlp_xp.optim.LBFGS`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import numpy as np
from scipy.optimize import minimize

from ..devices.blas_threads import default_threads, one_other_blas_thread
from ..engines import Done, Setup, choose_plan, make_engine
from ..mlp import MLP
from ..objective import Objective
from ..optim import SGD
from ..rows.checks import check_weights
from .tasks import Tasks

__all__ = ["LossAndGradient", "lbfgs"]

_Vector = np.ndarray[Any, Any]


class LossAndGradient:
    """The loss of all rows and its gradient, as a function of the parameters.

    Its engine's threads are there until it is left as a context.

    Parameters
    ----------
    model : MLP
    X, y : array
        As for :meth:`MLP.loss_and_gradient`.
    objective : Objective, optional
        What is minimized, in place of the loss of the model's output.
    weights : array (n,), optional
        How much each row counts.
    plan : str
        As for :func:`mlp_xp.loop.epochs`.
    """

    def __init__(
        self, model: MLP, X: Any, y: Any, objective: Objective | None = None, weights: Any = None, plan: str = "auto"
    ) -> None:
        self._model, optimizer, rows = model, SGD(), model.open(X)
        targets, objective = model.targets(y, rows.shape[0]), objective or model.objective
        if weights is not None:
            targets = replace(targets, weights=check_weights(weights, rows.shape[0], model.dtype))
        chosen = choose_plan(rows, model, optimizer, plan, None, None, objective=objective)
        self._lr, self.pixels = optimizer.rate(1), rows.pixels
        self._engine = make_engine(Setup(model, objective, optimizer, rows, targets, None, chosen, default_threads()))

    def __enter__(self) -> Self:
        self._engine.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._engine.__exit__(*error)

    def __call__(self, theta: _Vector) -> tuple[float, _Vector]:
        """(P,) on the host -> the loss, and its gradient (P,) in float64 on the host.

        It is that of an update by gradient descent, which starts here and whose outcome is left alone.
        """
        model, engine = self._model, self._engine
        engine.begin(model.device.asarray(theta.astype(model.dtype)), 1, self._lr, Done())
        done = engine.advance(None)
        with model.device.active():
            gradient = model.device.to_host(engine.plan.outward(engine.gradient(), model))
        return float(done.loss_sum) / done.rows, gradient.astype(np.float64)


def lbfgs(
    model: MLP,
    loss_and_gradient: LossAndGradient,
    *,
    max_iter: int = 200,
    max_evaluations: int = 15_000,
    tol: float = 1e-4,
    tasks: Tasks | None = None,
) -> Any:
    """Train by L-BFGS (Liu and Nocedal 1989), and return SciPy's result, with ``losses`` after each iteration.

    Parameters
    ----------
    model : MLP
        Its parameters are where it begins, and are replaced by those where it ends.
    loss_and_gradient : LossAndGradient
    max_iter, max_evaluations : int
        The most iterations, and the most gradients.
    tol : float
        Stop when no component of the gradient is larger.
    tasks : Tasks, optional
        Each iteration is one of them. While one that is heard ends, the model is where the iteration ended.

    Examples
    --------
    >>> import mlp_xp as mx
    >>> X, y = mx.datasets.xor()
    >>> model = mx.MLP([2, 4, 2], activation="tanh", dtype="float64", seed=1)
    >>> result = lbfgs(model, LossAndGradient(model, X, y))
    >>> model.score(X, y)
    1.0
    """
    losses: list[float] = []

    def put(theta: _Vector) -> None:
        model.theta = model.device.asarray(theta.astype(model.dtype))

    def evaluate(theta: _Vector) -> tuple[float, _Vector]:
        if tasks is not None:
            tasks.begin("iteration")
        return loss_and_gradient(theta)

    def record(*, intermediate_result: Any) -> None:
        losses.append(float(intermediate_result.fun))
        if tasks is not None and tasks.heard:
            put(intermediate_result.x)
            if tasks.end():
                raise StopIteration

    start = model.device.to_host(model.theta).astype(np.float64)
    options = {"maxiter": max_iter, "maxfun": max_evaluations, "gtol": tol}
    with loss_and_gradient, one_other_blas_thread:
        result = minimize(evaluate, start, method="L-BFGS-B", jac=True, options=options, callback=record)
    put(result.x)
    model.pixels, result.losses = loss_and_gradient.pixels, losses
    return result
