"""Outputs of a network for rows wherever they are, block by block: nothing as large as the data is made on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .devices import Device
from .kernels import GenericKernels, Kernels
from .metrics import accuracy, r_squared, read_outputs
from .model import Network, forward
from .objective import Objective
from .params import Parameters
from .rows.source import Rows

__all__ = ["Inference"]

_Host = np.ndarray[Any, Any]


class Inference(NamedTuple):
    """What computes outputs: a network with its parameters, on a device.

    With :class:`mlp_xp.engines.Ranks`, each of them computes its share of the blocks, and all return the same.
    """

    network: Network
    objective: Objective
    params: Parameters
    kernels: Kernels
    device: Device
    dtype: str

    def outputs(self, rows: Rows, units: int, ranks: Any) -> _Host:
        """Return A[L] (n, units) on the host."""
        result = np.empty((rows.shape[0], units), self.dtype)
        self._fill([result], rows, lambda A, part: (A,), ranks)
        return result

    def evaluate(self, rows: Rows, targets: _Host, units: int, ranks: Any) -> tuple[float, float]:
        """Return the mean loss, and the accuracy or R^2, of the targets (n, ...) on the host."""
        n, k, task = rows.shape[0], GenericKernels(np, self.dtype), self.objective.output.task
        none = read_outputs(np.empty((0, units), self.dtype), task)
        losses, predicted = np.empty(n, self.dtype), np.empty((n, *none.shape[1:]), none.dtype)

        def look_at(A: _Host, part: slice) -> tuple[_Host, _Host]:
            return self.objective.losses(k, A, targets[part])[0], read_outputs(A, task)

        self._fill([losses, predicted], rows, look_at, ranks)
        score = r_squared if task == "values" else accuracy
        return float(np.mean(losses, dtype=np.float64)), score(targets.reshape(predicted.shape), predicted)

    def _fill(self, results: list[_Host], rows: Rows, use: Callable[[_Host, slice], Any], ranks: Any) -> None:
        """Fill arrays (n, ...) with what `use` makes of A[L] of each block of rows, in several threads perhaps."""

        def compute(part: slice) -> None:
            X = self.device.asarray(rows.block(part.start, part.stop))
            outputs, _ = forward(self.network, self.kernels, self.params, X)
            A = self.device.to_host(outputs[-1])
            for result, value in zip(results, use(A, part), strict=True):
                result[part] = value

        with self.device.active():
            edges = self.device.by_rows(compute, rows.shape[0], range if ranks is None else ranks.share)
        for result in results if ranks is not None else ():
            ranks.fill(result, edges)
