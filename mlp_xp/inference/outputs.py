"""Outputs of a network for rows wherever they are, block by block: nothing as large as the data is made on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from ..devices import Array, Device
from ..kernels import GenericKernels, Kernels
from ..metrics import accuracy, r_squared, read_outputs
from ..model import Network, forward
from ..objective import Objective
from ..params import Parameters
from ..rows.source import Rows
from ..rows.stored import ahead, come_in_blocks
from .compiled import Predictor

__all__ = ["Inference"]

_Host = np.ndarray[Any, Any]


class Inference(NamedTuple):
    """What computes outputs: a network with its parameters, on a device.

    With :class:`mlp_xp.engines.Ranks`, each of them computes its share of the blocks, and all return the same.

    Attributes
    ----------
    network, objective, kernels, device, dtype
        The model's.
    theta, params : array (P,), and Parameters
        The same parameters as a vector, and layer by layer.
    predictor : Predictor or None
        What is faster than the kernels, where there is such a thing.
    """

    network: Network
    objective: Objective
    theta: Array
    params: Parameters
    kernels: Kernels
    predictor: Predictor | None
    device: Device
    dtype: str

    def outputs(self, rows: Rows, units: int, ranks: Any) -> _Host:
        """Return A[L] (n, units) on the host."""
        if self.predictor is not None and ranks is None and rows.shape[0] <= self.predictor.block_rows:
            return self.predictor(self.theta, rows.block(0, rows.shape[0]))  # for one row, each step here takes time
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

        def put(A: _Host, part: slice) -> None:
            for result, value in zip(results, use(A, part), strict=True):
                result[part] = value

        def compute(part: slice) -> None:
            X = self.device.asarray(rows.block(part.start, part.stop))
            A, _ = forward(self.network, self.kernels, self.params, X)
            put(self.device.to_host(A[-1]), part)

        n, share = rows.shape[0], range if ranks is None else ranks.share
        with self.device.active():
            if self.predictor is None:
                edges = self.device.by_rows(compute, n, share)
            else:
                edges = self.predictor.edges(n)
                for part, X in _blocks(rows, [slice(*edges[i : i + 2]) for i in share(len(edges) - 1)]):
                    put(self.predictor(self.theta, X), part)
        for result in results if ranks is not None else ():
            ranks.fill(result, edges)


def _blocks(rows: Rows, parts: list[slice]) -> Iterable[tuple[slice, _Host]]:
    """Yield parts of rows of the host with their numbers; those of a file are read ahead."""
    blocks = ((part, rows.block(part.start, part.stop)) for part in parts)
    return ahead(blocks) if come_in_blocks(rows) else blocks
