"""What is minimized: the mean over rows of a loss of the outputs, and a penalty on the weights.

An output is the last layer's activation, the loss on it, and how it is read. The loss and its slope come together, from
linear outputs where that is what keeps them stable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .checks import check_choice
from .devices import Array, Device, library_of
from .kernels import Kernels
from .rows.checks import as_targets
from .rows.source import Digest
from .rows.weights import Weighted

__all__ = ["OUTPUTS", "Objective", "Output", "Targets", "check_output"]


class Output(NamedTuple):
    """An output by name: the activation of the last layer, the loss on it, and how it is read."""

    activation: str
    loss: str
    task: str  # "classes": one of n_L; "labels": each of n_L yes or no; "values": n_L numbers
    probability: str = ""  # what makes probabilities of A[L]: "softmax" or "sigmoid"; "": nothing does


OUTPUTS = {
    "softmax": Output("identity", "softmax_cross_entropy", "classes", "softmax"),
    "sigmoid": Output("identity", "sigmoid_cross_entropy", "labels", "sigmoid"),
    "identity": Output("identity", "half_squared_error", "values"),
    "softmax_of_sigmoid": Output("sigmoid", "softmax_cross_entropy", "classes", "softmax"),
    "sigmoid_mse": Output("sigmoid", "half_squared_error", "values"),
    "perceptron": Output("identity", "perceptron_criterion", "labels"),
}
"""The outputs: four losses, on linear or on sigmoid units."""


def check_output(name: str, units: int) -> Output:
    """Return the output of this name if it is one and can have so many units, else raise a ValueError."""
    output = OUTPUTS[check_choice("output", name, OUTPUTS)]
    if output.task == "classes" and units < 2:
        raise ValueError(f"output {name!r} needs at least 2 output units, got {units}; use 'sigmoid' for two classes")
    return output


@dataclass(frozen=True, eq=False)
class Targets:
    """What the rows should come out as, checked once.

    Attributes
    ----------
    y : array
        On the host: labels (n,) of int32 for classes, numbers (n, n_L) for all other outputs.
    checked_for : (task, rows, units, dtype)
    weights : array (n,), optional
        How much each row counts, on the host and of the model's dtype. None counts all the same.
    """

    y: np.ndarray[Any, Any]
    checked_for: tuple[str, int, int, str]
    weights: np.ndarray[Any, Any] | None = None

    def on(self, device: Device) -> Array | Weighted:
        """Return the targets where a device computes."""
        y = device.asarray(self.y)
        return y if self.weights is None else Weighted(y, device.asarray(self.weights))

    def fingerprint(self, digest: Digest) -> str:
        """Add all targets to a digest, and their weights, and return dtype and shape in words."""
        for part in (self.y,) if self.weights is None else (self.y, self.weights):
            digest.update(np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("<")).data)
        return f"{self.y.dtype} {self.y.shape}"


@dataclass(frozen=True)
class Objective:
    """The mean over an update's rows of an output's loss, and a penalty on the weights, not the biases.

    Rows that have weights count by them: the mean is Σ w loss / Σ w.

    Attributes
    ----------
    output : Output
    l2 : float
        Adds l2/2 |W|² to the mean.
    l2_sum : float
        Adds l2_sum/2 |W|² to the sum that the mean is made of, so that the penalty counts less the more rows there are:
        scikit-learn's alpha.
    """

    output: Output
    l2: float = 0.0
    l2_sum: float = 0.0

    def targets(self, y: Any, rows: int, units: int, device: Device, dtype: str) -> Targets:
        """Check the targets of so many rows; what was checked before, for the same, is returned as it is.

        Raises
        ------
        ValueError
            If there are not as many as rows, a label is out of range, or a value is NaN or infinite.
        """
        wanted = self.output.task, rows, units, dtype
        if isinstance(y, Targets):
            if y.checked_for == wanted:
                return y
            y = y.y
        return Targets(as_targets(y, self.output.task, rows, units, device, dtype), wanted)

    def losses(self, k: Kernels, A: Array, y: Array) -> tuple[Array, Array]:
        """(n, n_L) and targets -> each row's loss (n,), and its derivative dA (n, n_L)."""
        if isinstance(y, Weighted):
            losses, dA = k.loss(self.output.loss, A, y.y)
            return losses * y.weights, dA * y.weights[:, None]
        return k.loss(self.output.loss, A, y)

    def l2_of(self, count: float | Array) -> Any:
        """Return what stands for `l2` in an update whose sum is divided by `count`."""
        return self.l2 + self.l2_sum / count

    @property
    def penalizes(self) -> bool:
        """Whether there is a penalty."""
        return self.l2 > 0 or self.l2_sum > 0

    def penalty(self, theta: Array, is_bias: Array, count: float | Array) -> tuple[Array, Array]:
        """Return the penalty () on parameters (P,), and its gradient (P,).

        Parameters
        ----------
        theta, is_bias : array (P,)
            `is_bias` is 1 at biases, else 0.
        count : float or 0-d array
            What the sum over an update's rows is divided by: their number, or the sum of their weights.
        """
        l2, weights = self.l2_of(count), theta * (1 - is_bias)
        return l2 / 2 * library_of(theta).sum(weights * weights), l2 * weights
