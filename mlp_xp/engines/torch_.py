"""The engine for PyTorch: the host starts each operation, and parameters, gradient and state stay where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..devices import Array
from ..kernels.torch_ import TorchKernels
from ..optim import SGD, Adam, AdamW
from ..params import GradSum, Parameters
from ..rows.batches import Shard
from .base import Done, Setup
from .host import HostEngine

__all__ = ["TorchEngine"]

_CPU_SHARD = 1024  # rows, whose activations stay in a core's cache; the bits of longer sums would depend on threads


class TorchEngine(HostEngine):
    """Updates in place: weights and biases are cut out of the vectors of parameters and gradient once.

    Parameters
    ----------
    setup : Setup
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        theta = self.model.theta
        self._own, self._slopes = torch.empty_like(theta), torch.empty_like(theta)
        self._params, self._into = (self.layout.split(vector, self.device.xp) for vector in (self._own, self._slopes))
        plain = self.optimizer.plain and not self.objective.penalizes and not self._weighted
        self._steps_backward = setup.batch_size is not None and plain
        self._number = torch.zeros((), device=theta.device)  # of updates, where Adam's kernel looks for it

    @property
    def _shard_rows(self) -> int:
        return min(_CPU_SHARD, self.device.shard_rows) if self.model.theta.is_cpu else self.device.shard_rows

    def _make_kernels(self, setup: Setup) -> TorchKernels:
        return TorchKernels(self.device.xp, self.model.dtype)

    def begin(self, theta: Array, epoch: int, lr: float, done: Done) -> None:
        super().begin(theta, epoch, lr, done)
        self._theta = self._own.copy_(self._theta)

    def _update(self, shards: Sequence[Shard], last: bool) -> tuple[Any, int]:
        if not self._steps_backward or last:  # the last update of an epoch keeps its gradient, to be looked at
            return super()._update(shards, last)
        # the backward pass takes the step on its way: no gradient is stored, none is read again
        rows = self._count(shards)
        return self._pass(shards, -self._lr / rows, self._params), rows

    def _mean_gradient(self, shards: Sequence[Shard], count: Any) -> tuple[Any, int, Array]:
        if self.groups > 1:
            return super()._mean_gradient(shards, count)
        gradient = self._slopes.zero_()
        return self._pass(shards, 1 / count, self._into), sum(shard.rows for shard in shards), gradient

    def _pass(self, shards: Sequence[Shard], scale: float, into: Parameters) -> Any:
        """Return the sum () of the losses of some shards; `scale` times their gradients is added to `into`."""
        return sum(self._grad_sum_of(shard, into, self._params, scale) for shard in shards)

    def _add_up(self, params: Parameters, shards: Sequence[Shard]) -> GradSum:
        own = torch.zeros_like(self._slopes)
        return GradSum(*self._add_to(self.layout.split(own, self.device.xp), params, shards), own)

    def _descend(self, gradient: Array) -> None:
        optimizer, theta, rate = self.optimizer, self._own, self._rates
        kind = None if torch.is_tensor(rate) else type(optimizer)  # it is one if the biases have a rate of their own
        if isinstance(optimizer, SGD) and kind is SGD:
            self._descend_by_momentum(optimizer, gradient, rate)
        elif isinstance(optimizer, Adam) and kind in (Adam, AdamW) and (theta.is_cpu or theta.is_cuda):
            self._descend_by_adam(optimizer, gradient, rate)
        else:
            theta, self._state = optimizer.update(theta, gradient, self._state, rate)
            if theta is not self._own:
                self._own.copy_(theta)

    def _descend_by_momentum(self, sgd: SGD, gradient: Array, rate: float) -> None:
        step = self._state["velocity"].mul_(sgd.momentum).add_(gradient) if sgd.momentum else gradient
        if sgd.nesterov:
            self._own.sub_(gradient, alpha=rate)
            rate *= sgd.momentum
        self._own.sub_(step, alpha=rate)

    def _descend_by_adam(self, adam: Adam, gradient: Array, rate: float) -> None:
        state = self._state
        state["updates"] += 1
        update = torch._fused_adamw_ if adam.weight_decay else torch._fused_adam_
        update(  # by torch.optim's step it would take 90 µs more
            [self._own], [gradient], [state["mean"]], [state["square"]], [], [self._number.fill_(state["updates"])],
            lr=rate, beta1=adam.beta1, beta2=adam.beta2, weight_decay=adam.weight_decay, eps=adam.epsilon,
            amsgrad=False, maximize=False,
        )  # fmt: skip
