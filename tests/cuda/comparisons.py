"""What the CUDA kernels have to be equal to: the generic ones in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import mlp_xp as mx
from mlp_xp.devices import Device
from mlp_xp.kernels import ACTIVATIONS, GenericKernels, Kernels
from mlp_xp.model import grad_sum

Array = np.ndarray[Any, Any]

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


class Backend(NamedTuple):
    """Kernels under test, and the device of their arrays."""

    kernels: Kernels
    device: Device

    @property
    def dtype(self) -> str:
        return np.dtype(self.kernels.dtype).name

    def put(self, x: Array) -> Any:
        """Copy to the device; numbers in the kernels' dtype."""
        return self.device.xp.asarray(self.device.asarray(x, self.dtype if x.dtype.kind == "f" else None), copy=True)

    def assert_close(self, got: Any, want: Array) -> None:
        """Assert that the dtype is the kernels' and the error is small beside the largest number."""
        assert got.dtype == self.kernels.dtype
        host = self.device.to_host(got)
        assert host.shape == want.shape
        assert np.isfinite(host).all()
        error = np.max(np.abs(host - want), initial=0)
        assert error <= TOLERANCE[self.dtype] * max(1.0, np.max(np.abs(want), initial=0))


class Case(NamedTuple):
    """An operation, together with the one that it leaves something to, and its arguments."""

    run: Callable[..., Any]
    arguments: tuple[Array, ...]


def cases(rng: np.random.Generator, n: int, d: int, h: int) -> dict[str, Case]:
    """Return a case for each operation on n rows of d inputs and h units."""
    X = rng.integers(0, 256, (n, d)).astype(np.uint8)
    A, Z, dZ, Y = (rng.standard_normal(shape) for shape in ((n, d), (n, h), (n, h), (n, h)))
    block = rng.standard_normal((1 + d, h)) / d**0.5  # as in a Layout: b, then W transposed
    y = rng.integers(0, h, n)

    def layer(name: str) -> Case:
        return Case(lambda k, A, block: k.activate(name, k.affine(A, block[1:].T, block[0])), (A, block))

    def slope(name: str) -> Case:
        def run(k: Kernels, dA: Any, A: Any, db: Any) -> tuple[Any, Any]:
            dZ = k.activation_gradient(name, dA, A)
            return dZ, k.bias_gradient(dZ, db)

        return Case(run, (dZ, GenericKernels(np, "float64").activate(name, Z), block[0]))

    def loss(name: str, y: Array, scale: float = 1.0) -> Case:
        return Case(lambda k, A, y: k.loss(name, A, y), (scale * Z, y))

    return {
        "features of bytes": Case(lambda k, X: k.features(X), (X,)),
        "features of numbers": Case(lambda k, X: k.features(X), (A,)),
        "affine with columns missing": Case(
            lambda k, A, block: k.activate("tanh", k.affine(A, block[1:].T, block[0])), (A[:, : (d + 1) // 2], block)
        ),
        **{f"affine, {name}": layer(name) for name in ACTIVATIONS},
        **{f"{name} alone": Case(lambda k, Z, name=name: k.activate(name, Z), (Z,)) for name in ACTIVATIONS},
        **{f"slope of {name}, sum": slope(name) for name in ACTIVATIONS},
        "bias_gradient alone": Case(lambda k, dZ, db: k.bias_gradient(dZ, db), (dZ, block[0])),
        "weight_gradient": Case(lambda k, dZ, A, block: k.weight_gradient(dZ, A, block[1:].T), (dZ, A, block)),
        "weight_gradient with columns missing": Case(
            lambda k, dZ, A, block: k.weight_gradient(dZ, A, block[1:].T), (dZ, A[:, : (d + 1) // 2], block)
        ),
        "input_gradient": Case(lambda k, dZ, block: k.input_gradient(dZ, block[1:].T), (dZ, block)),
        "softmax_cross_entropy": loss("softmax_cross_entropy", y),
        "softmax_cross_entropy of large logits": loss("softmax_cross_entropy", y, 1e4),
        "sigmoid_cross_entropy": loss("sigmoid_cross_entropy", (Y > 0).astype(float)),
        "half_squared_error": loss("half_squared_error", Y),
        "perceptron_criterion": loss("perceptron_criterion", (Y > 0).astype(float)),
        "sum": Case(lambda k, losses: k.sum(losses), (Z[:, 0],)),
    }


CASES = list(cases(np.random.default_rng(0), 1, 1, 1))


def check_case(backend: Backend, name: str, rng: np.random.Generator, shape: tuple[int, int, int]) -> None:
    """Assert that an operation on random input of a shape (n, d, h) is the generic one."""
    run, arguments = cases(rng, *shape)[name]
    given = [x.astype(backend.dtype).astype(float) if x.dtype.kind == "f" else x for x in arguments]
    want = run(GenericKernels(np, "float64"), *given)
    got = run(backend.kernels, *map(backend.put, given))
    for g, w in zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]:
        backend.assert_close(g, w)


class Pass(NamedTuple):
    """A network, its parameters and data: what a pass over all rows, in two shards, is made of."""

    model: mx.MLP
    theta: Array
    X: Array
    y: Array

    def run(self, backend: Backend) -> tuple[Any, Any]:
        """Return the sum of losses () and of gradients (P,)."""
        xp, layout = backend.device.xp, self.model.layout
        params = layout.split(backend.put(self.theta), xp)
        into = layout.split(backend.put(np.zeros_like(self.theta)), xp)
        X, y, cut, loss = backend.put(self.X), backend.put(self.y), len(self.X) // 3, 0
        for rows in (slice(0, cut), slice(cut, len(self.X))):
            loss = grad_sum(self.model.network, backend.kernels, params, X[rows], y[rows], into)[0] + loss
        return loss, layout.join(into, xp)

    def check(self, backend: Backend) -> None:
        """Assert that the pass is that of the generic kernels."""
        host = self._replace(theta=self.theta.astype(backend.dtype).astype(float))
        want = host.run(Backend(GenericKernels(np, "float64"), mx.devices.get_device("cpu")))
        for g, w in zip(self.run(backend), want, strict=True):
            backend.assert_close(g, np.asarray(w))


def make_pass(
    rng: np.random.Generator, sizes: list[int], activation: str, output: str, rows: int, targets: Any
) -> Pass:
    """Return a pass over random bytes, at random parameters that leave no unit saturated."""
    model = mx.MLP(sizes, activation, output)
    theta = model.theta + 0.1 * rng.standard_normal(model.layout.size)
    X = rng.integers(0, 256, (rows, sizes[0])).astype(np.uint8)
    y = model.targets(targets(output, rows, sizes[-1]), rows).y
    return Pass(model, theta, X, y)
