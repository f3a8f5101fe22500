"""The floor: an epoch's matrix products and nothing else."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from bench.contender import Contender, UnavailableError, Verdict
from bench.problem import Parameters, Problem, scaled


def make(problem: Problem, device: str, threads: int) -> Contender:
    """Return the bare products by NumPy's BLAS, or by cuBLAS through CuPy."""
    if device == "cpu":
        return Gemm(problem, np, threads)
    import cupy

    if not cupy.cuda.is_available():
        raise UnavailableError("not installed: a CUDA driver and a GPU")
    return Gemm(problem, cupy, threads)


class Gemm(Contender):
    """Per step: A @ W.T forward, dZ.T @ A for each weight, dZ @ W below the last layer.

    Results into arrays kept for the purpose, weights stored (n_in, n_out), the faster layout, batches cut
    from the data without a gather. No contender that multiplies every number by BLAS can be faster.
    """

    settings = "matrix products alone, out= kept arrays, weights (in, out); the floor, it does not train"

    def __init__(self, problem: Problem, xp: ModuleType, threads: int) -> None:
        super().__init__(problem)
        self.xp, self.threads = xp, threads
        self.X = xp.asarray(scaled(problem.X, problem.dtype))
        self.weights = [xp.asarray(np.ascontiguousarray(W.T)) for W, _ in problem.initial]
        self.gradients = [xp.empty_like(W) for W in self.weights]
        rows = problem.batch_size or len(problem.X)
        self.A = [xp.ones((rows, width), dtype=problem.dtype) for width in problem.sizes[1:]]
        self.controller = ThreadpoolController()

    def run(self, epochs: int) -> None:
        size = self.problem.batch_size or len(self.X)
        with self.controller.limit(limits=self.threads, user_api="blas"):
            for _ in range(epochs):
                self.epoch += 1
                for start in range(0, len(self.X), size):
                    self._step(self.X[start : start + size])
        if self.xp is not np:
            self.xp.cuda.get_current_stream().synchronize()

    def _step(self, X: Any) -> None:
        A = [X, *(buffer[: len(X)] for buffer in self.A)]
        for layer, W in enumerate(self.weights):
            self.xp.matmul(A[layer], W, out=A[layer + 1])
        for layer in reversed(range(len(self.weights))):
            self.xp.matmul(A[layer].T, A[layer + 1], out=self.gradients[layer])
            if layer > 0:
                self.xp.matmul(A[layer + 1], self.weights[layer].T, out=A[layer])

    def parameters(self) -> Parameters:
        return self.problem.initial

    def verdict(self) -> Verdict | None:
        return None
