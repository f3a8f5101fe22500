"""The contenders: what each can do, how it is judged, and the list of all of them."""

from __future__ import annotations

import importlib
import time
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np

from .problem import Parameters, Problem

__all__ = ["CONTENDERS", "TOLERANCE", "Contender", "UnavailableError", "Verdict", "build", "check_name"]

# Of the loss, by the precision of the products: in a deep network's first epochs, rounding to 10 or 7 bits shows.
TOLERANCE = {"float32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}


class UnavailableError(Exception):
    """A contender cannot run here; the message says why and is shown in its row."""


class Verdict(NamedTuple):
    """What a contender reached, beside the same training in float64.

    Attributes
    ----------
    loss, reference : float
        Mean loss over all rows at the contender's parameters, and at the float64 ones.
    update_error : float
        Distance of the parameters from the float64 ones, relative to the distance these have moved.
    right : bool
        Whether the loss is off by no more than ``Contender.tolerance`` of what training has gained.
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
    tolerance : float
        Largest error of the loss, relative to the loss that training has taken away so far.
    columns : float
        Columns of the images that take part in its products, on average over rows.
    preparation_seconds, compile_seconds : float
        Time of the constructor (conversions, transfers, plans) and of :meth:`compile`.
    """

    settings: str = ""
    tolerance: float = TOLERANCE["float32"]
    preparation_seconds: float = 0.0
    compile_seconds: float = 0.0

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
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
        start, end, here = (_flat(parameters) for parameters in (self.problem.initial, exact, reached))
        error = float(np.linalg.norm(here - end) / np.linalg.norm(end - start))
        gain = abs(self.problem.initial_loss - reference)
        return Verdict(loss, reference, error, abs(loss - reference) <= self.tolerance * gain)

    def check(self) -> Verdict | None:
        """Return the verdict, or refuse.

        Raises
        ------
        AssertionError
            If the loss is not that of float64: a fast wrong epoch must fail.
        """
        verdict = self.verdict()
        if verdict is not None and not verdict.right:
            raise AssertionError(
                f"after {self.epoch} epochs the loss is {verdict.loss:.6f}, in float64 {verdict.reference:.6f}: "
                f"this training is wrong and its time means nothing"
            )
        return verdict


def _flat(parameters: Parameters) -> Any:
    return np.concatenate([part.ravel() for layer in parameters for part in layer]).astype(np.float64)


# name -> module under bench/peers, arguments of its make()
CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ours": ("ours", {}),
    "ours-dense": ("ours", {"plan": "dense"}),
    "ours-float32-input": ("ours", {"pixels": "float32"}),
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
