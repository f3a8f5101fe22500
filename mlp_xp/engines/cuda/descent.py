"""The optimisers' updates on a GPU: one launch each, with learning rates that are read from the device."""

from __future__ import annotations

import numpy as np

from ...devices import Array
from ...kernels.cuda.operations import CudaKernels
from ...kernels.cuda.sources import THREADS, Kernel, grid_for
from ...optim import SGD, Adam, Optimizer

__all__ = ["Descent"]


class Descent:
    """The update of an optimiser as one launch, equal to its :meth:`Optimizer.update` up to rounding.

    Attributes
    ----------
    gradient : array (P,)
        That of the last update's mean loss, with the L2 term's.
    arrays : dict of str to array (P,)
        The arrays of the optimiser's state.

    Parameters
    ----------
    kernels : CudaKernels
    optimizer : Optimizer
    theta : array (P,)
        The parameters, updated in place.
    """

    def __init__(self, kernels: CudaKernels, optimizer: Optimizer, theta: Array) -> None:
        self.kernels, self.optimizer, self.theta = kernels, optimizer, theta
        xp = kernels.xp
        self.arrays: dict[str, Array] = {k: v for k, v in optimizer.init(theta).items() if k != "updates"}
        self.gradient = xp.zeros(theta.shape, dtype=kernels.dtype)
        self._rates = xp.zeros(2, dtype=kernels.dtype)
        self._lr: float | None = None

    def set_rate(self, lr: float) -> None:
        """Set the learning rate, from now on."""
        if lr != self._lr:
            own = self.optimizer.lr_bias
            bias = lr if own is None else lr * own / self.optimizer.base_lr
            self._rates.set(np.asarray([lr, bias], self.kernels.dtype))
            self._lr = lr

    def __call__(self, ranges: Array, shards: int, step: Array, rows: int) -> None:
        """Update with the mean of the gradients that `ranges`, up to `shards` of them each, sum up over so many rows.

        Parameters
        ----------
        ranges : array of bytes
            A table of :data:`~mlp_xp.kernels.cuda.sources.RANGE`.
        shards : int
        step : array of int32
            Its first entry is the number of updates before this one.
        rows : int
        """
        optimizer, theta = self.optimizer, self.theta
        real = self.kernels.dtype
        block = (32, THREADS // 32) if shards > THREADS // 32 else (THREADS, 1)
        common = np.int32(theta.size), real(1 / rows), real(optimizer.l2)
        grid = grid_for(theta.size, block[0], theta.size)
        if isinstance(optimizer, SGD):
            self.kernels.launch(
                Kernel("optimizers", "sgd", block=block), grid,
                theta, self.arrays.get("velocity"), self.gradient, ranges, self._rates, *common,
                real(optimizer.momentum), np.int32(optimizer.nesterov),
            )  # fmt: skip
            return
        assert isinstance(optimizer, Adam)
        self.kernels.launch(
            Kernel("optimizers", "adam", block=block), grid,
            theta, self.arrays["mean"], self.arrays["square"], self.gradient, ranges, self._rates, step, *common,
            real(optimizer.weight_decay), real(1 - optimizer.beta1), real(1 - optimizer.beta2), real(optimizer.epsilon),
        )  # fmt: skip
