"""Each kernel of the device on one shard of the headline network, its result checked against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from mlp_xp.devices import get_device
from mlp_xp.kernels import ACTIVATIONS, GenericKernels, kernels_for

D, H, K = 784, 196, 10


def _arguments(rows: int) -> dict[str, tuple[Any, ...]]:
    """Arguments by kernel; a name after a space is the case."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (rows, D), dtype=np.uint8)
    A0, A1 = rng.random((rows, D)), rng.random((rows, H))
    dZ1, dZ2 = rng.standard_normal((rows, H)), rng.standard_normal((rows, K))
    # weights and their gradients are views of transposed blocks, as in a Layout
    W1, W2 = rng.standard_normal((D, H)).T, rng.standard_normal((H, K)).T
    dW1, dW2 = np.zeros_like(W1), np.zeros_like(W2)
    activations = [name for name in ACTIVATIONS if name != "identity"]
    return {
        "features": (X,),
        "affine 784-196": (A0, W1, np.zeros(H)),
        "affine 196-10": (A1, W2, np.zeros(K)),
        **{f"activate {name}": (name, dZ1) for name in activations},
        **{f"activation_gradient {name}": (name, dZ1, A1) for name in activations},
        "weight_gradient 784-196": (dZ1, A0, dW1),
        "weight_gradient 196-10": (dZ2, A1, dW2),
        "bias_gradient": (dZ1, np.zeros(H)),
        "input_gradient": (dZ2, W2),
        "loss softmax_cross_entropy": ("softmax_cross_entropy", dZ2, rng.integers(0, K, rows)),
        "loss sigmoid_cross_entropy": ("sigmoid_cross_entropy", dZ2, rng.integers(0, 2, (rows, K)).astype(float)),
        "loss half_squared_error": ("half_squared_error", dZ2, rng.random((rows, K))),
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", _arguments(1))
def test_kernel(benchmark: Any, device: str, name: str, dtype: str) -> None:
    """Time one call, synchronised."""
    benchmark.group = f"kernels, {dtype}"
    benchmark.extra_info.update(contender=name)
    place = get_device(device, dtype)
    kernels = kernels_for(place, dtype)
    operation: Callable[..., Any] = getattr(kernels, name.split()[0])
    if operation == kernels.affine:  # CUDA adds the bias on the way through the activation
        operation = lambda *layer: kernels.activate("identity", kernels.affine(*layer))  # noqa: E731
    exact = _arguments(min(60_000, place.shard_rows))[name]
    given = [
        place.asarray(part, dtype if part.dtype.kind == "f" else None) if isinstance(part, np.ndarray) else part
        for part in exact
    ]
    empty = place.zeros((1, 1), dtype)

    def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
        # a kernel may overwrite what it is given, and its buffers last until the next call of features
        kernels.features(empty)
        place.synchronize()
        return tuple(part if isinstance(part, str) else place.xp.asarray(part, copy=True) for part in given), {}

    def call(*arguments: Any) -> Any:
        result = operation(*arguments)
        place.synchronize()
        return result

    with threadpool_limits(1, user_api="blas"):  # in a full batch, each thread has a shard and a BLAS of its own
        result = benchmark.pedantic(call, setup=setup, rounds=50, warmup_rounds=3)
    expected = getattr(GenericKernels(np, "float64"), name.split()[0])(*exact)
    pairs = zip(result, expected, strict=True) if isinstance(expected, tuple) else [(result, expected)]
    for got, right in pairs:
        error = np.abs(place.to_host(got) - right).max() / np.abs(right).max()
        assert error < (1e-5 if dtype == "float32" else 1e-12)
