"""The contenders: what each can do, how it is judged, and the list of all of them."""

from __future__ import annotations

import importlib
import math
import time
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np

from .problem import Parameters, Problem

__all__ = [
    "CONTENDERS",
    "TOLERANCE",
    "Contender",
    "Tolerance",
    "UnavailableError",
    "Verdict",
    "build",
    "check_name",
    "early_verdict",
]


class Tolerance(NamedTuple):
    """The largest errors of a training that is right.

    Attributes
    ----------
    loss : float
        Relative to the loss that training has taken away so far.
    update : float
        Of :attr:`Verdict.update_error`.
    """

    loss: float
    update: float


# By the precision of the products. In a deep network's first epochs, rounding to 10 or 7 bits shows, and of the single
# parameters nothing is asked then.
TOLERANCE = {
    "float32": Tolerance(1e-3, 5e-3),
    "float64": Tolerance(1e-9, 5e-9),
    "tf32": Tolerance(1e-2, math.inf),
    "bf16": Tolerance(5e-2, math.inf),
}
EARLY_UPDATES = 10
# After more updates than that, of Adam alone, the loss may be off by so many times as much, and of the parameters
# nothing is asked: Adam divides by the root of what may be a rounding error, and trainings that differ in the last bit
# drift apart, in a deep network of ReLUs by 0.7 of their way within 1,300 updates.
DRIFT = Tolerance(20, math.inf)


class UnavailableError(Exception):
    """A contender cannot run here; the message says why and is shown in its row."""


class Verdict(NamedTuple):
    """What a contender reached, beside the same training in float64.

    Attributes
    ----------
    loss, reference : float
        Mean loss over all rows at the contender's parameters, and at the float64 ones.
    update_error : float
        Distance of the parameters from the float64 ones, relative to the distance these have moved, for those weights
        or biases of a layer for which it is largest.
    right : bool
        Whether both are within ``Contender.tolerance``.
    """

    loss: float
    reference: float
    update_error: float
    right: bool


class Contender(ABC):
    """One way to train one problem: data are prepared by the constructor, training happens in :meth:`run`.

    Attributes
    ----------
    settings : str
        The settings it runs with, and why they are its best.
    tolerance : Tolerance
        Before Adam's drift.
    columns : float
        Columns of the data that take part in its products, on average over rows.
    preparation_seconds, compile_seconds : float
        Time of the constructor (conversions, transfers, plans) and of :meth:`compile`.
    """

    settings: str = ""
    tolerance: Tolerance
    preparation_seconds: float = 0.0
    compile_seconds: float = 0.0

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.tolerance = TOLERANCE[problem.dtype]
        self.columns: float = problem.sizes[0]
        self.epoch = 0

    def compile(self) -> None:  # noqa: B027 - optional, most have nothing to compile
        """Compile ahead of the training, and leave the parameters as they are."""

    @abstractmethod
    def run(self, epochs: int) -> None:
        """Train `epochs` more epochs and return when the device has finished them."""

    @abstractmethod
    def parameters(self) -> Parameters:
        """Return the current weights and biases as host arrays, copied."""

    def verdict(self) -> Verdict | None:
        """Judge the training so far; None for a contender that does not train."""
        reference, exact = self.problem.reference(self.epoch)
        reached = self.parameters()
        loss = self.problem.loss(reached)
        error = max(
            float(np.linalg.norm(part - end) / np.linalg.norm(end - start))
            for layers in zip(reached, exact, self.problem.initial, strict=True)
            for part, end, start in zip(*layers, strict=True)
        )
        drifts = self.problem.optimizer == "adam" and self.epoch * self.problem.updates > EARLY_UPDATES
        most = [bound * (drift if drifts else 1) for bound, drift in zip(self.tolerance, DRIFT, strict=True)]
        gain = abs(self.problem.initial_loss - reference)
        return Verdict(loss, reference, error, abs(loss - reference) <= most[0] * gain and error <= most[1])

    def check(self) -> Verdict | None:
        """Return the verdict, or refuse.

        Raises
        ------
        AssertionError
            If the loss or the parameters are not those of float64: a fast wrong epoch must fail.
        """
        verdict = self.verdict()
        if verdict is not None and not verdict.right:
            raise AssertionError(
                f"after {self.epoch} epochs the loss is {verdict.loss:.6f}, in float64 {verdict.reference:.6f}, "
                f"and the update error {verdict.update_error:.1e}: this training is wrong and its time means nothing"
            )
        return verdict


# name -> module under bench/peers, arguments of its make()
CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ours": ("ours", {}),
    "ours-dense": ("ours", {"plan": "dense"}),
    "ours-numpy": ("ours", {"compiled": False}),
    "ours-float32-input": ("ours", {"floats": True}),
    "ours-float64": ("ours", {"dtype": "float64"}),
    "ours-with-callbacks": ("ours", {"callbacks": True}),
    "ours-tf32": ("ours", {"precision": "tf32"}),
    "ours-dense-tf32": ("ours", {"plan": "dense", "precision": "tf32"}),
    "ours-bf16": ("ours", {"precision": "bf16"}),
    "ours-fp16x2": ("ours", {"precision": "fp16x2"}),
    "ours-dense-fp16x2": ("ours", {"plan": "dense", "precision": "fp16x2"}),
    "ours-on-torch": ("ours", {"library": "torch"}),
    "ours-on-jax": ("ours", {"library": "jax"}),
    "torch": ("torch_", {}),
    "torch-compile": ("torch_", {"compiled": "step"}),
    "torch-compile-forward": ("torch_", {"compiled": "forward"}),
    "torch-compile-tf32": ("torch_", {"compiled": "step", "precision": "tf32"}),
    "jax-step": ("jax_", {}),
    "jax-loop": ("jax_", {"loop": True}),
    "jax-loop-in-out": ("jax_", {"loop": True, "inputs_first": True}),
    "jax-loop-tf32": ("jax_", {"loop": True, "precision": "tf32"}),
    "sklearn": ("sklearn_", {}),
    "textbook": ("textbook", {}),
    "gemm": ("gemm", {}),
}


def check_name(name: str) -> str:
    """Return the name of a contender, or raise a ValueError."""
    if name not in CONTENDERS:
        raise ValueError(f"unknown contender {name!r}; choose from {', '.join(CONTENDERS)}")
    return name


def build(name: str, problem: Problem, device: str, threads: int) -> Contender:
    """Return the contender called `name`, its data in place, compiled, ready to run.

    Raises
    ------
    ValueError
        If there is none of that name.
    UnavailableError
        If its library is not installed or cannot do this problem on this device.
    """
    module, arguments = CONTENDERS[check_name(name)]
    try:
        peer = importlib.import_module(f"bench.peers.{module}")
        start = time.perf_counter()
        contender: Contender = peer.make(problem, device, threads, **arguments)
    except ImportError as error:
        raise UnavailableError(f"not installed: {error}") from error
    prepared = time.perf_counter()
    contender.compile()
    contender.preparation_seconds = prepared - start
    contender.compile_seconds = time.perf_counter() - prepared
    return contender


def early_verdict(name: str, problem: Problem, device: str, threads: int) -> Verdict | None:
    """Return the verdict on a contender after ten updates in two epochs, before rounding errors have grown.

    None if that is no other training than the problem's own: where an epoch is one update, or where nothing grows.
    """
    if problem.optimizer != "adam" or problem.batch_size is None:
        return None
    contender = build(name, problem.early, device, threads)
    contender.run(2)
    return contender.verdict()
