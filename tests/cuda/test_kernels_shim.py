"""The CUDA kernels, run on the CPU, against NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mlp_xp.kernels import GenericKernels
from mlp_xp.kernels.cuda.sources import RANGE, FusedHead, activations, fused_head, kernels_of, source
from mlp_xp.optim import SGD, Adam, AdamW, Optimizer
from mlp_xp.params import Layout, Parameters, initial_theta

from .kernel_build import CpuModule, cpu_module

pytestmark = pytest.mark.needs("g++")

Array = np.ndarray[Any, Any]

ACTIVATIONS = sorted(activations())
REALS = {"float": np.float32, "double": np.float64}
TOLERANCE = {"float": 1e-6, "double": 1e-14}
THREADS = 256

each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
each_real = pytest.mark.parametrize("real", REALS)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def assert_close(got: Array, want: Array, real: str) -> None:
    """Assert that the error is small beside the largest number, and that nothing was left unwritten."""
    assert got.shape == want.shape
    assert np.isfinite(got).all()
    assert np.max(np.abs(got - want), initial=0) <= TOLERANCE[real] * max(1.0, np.max(np.abs(want), initial=0))


def in_both_orders(run: Callable[[bool], tuple[Array, ...]]) -> tuple[Array, ...]:
    """Return what `run` makes with threads and blocks in ascending order, the same bits as in descending order."""
    ascending, descending = run(False), run(True)
    for a, b in zip(ascending, descending, strict=True):
        assert a.tobytes() == b.tobytes()
    return ascending


def activate(name: str, Z: Array) -> Array:
    match name:
        case "sigmoid":
            return np.asarray(1 / (1 + np.exp(-Z)))
        case "tanh":
            return np.asarray(np.tanh(Z))
        case "relu":
            return np.where(Z < 0, 0, Z)
        case "leaky_relu":
            return np.where(Z < 0, 0.01 * Z, Z)
        case _:
            return Z


def slope(name: str, Z: Array) -> Array:
    A = activate(name, Z)
    match name:
        case "sigmoid":
            return np.asarray(A * (1 - A))
        case "tanh":
            return np.asarray(1 - A * A)
        case "relu":
            return np.where(Z < 0, 0.0, 1.0)
        case "leaky_relu":
            return np.where(Z < 0, 0.01, 1.0)
        case _:
            return np.ones_like(Z)


def softmax_cross_entropy(Z: Array, y: Array) -> tuple[Array, Array]:
    """Return losses (n,) and gradient (n, k)."""
    shifted = Z - Z.max(axis=1, keepdims=True)
    E = np.exp(shifted)
    total = E.sum(axis=1)
    rows = np.arange(len(y))
    gradient = E / total[:, None]
    gradient[rows, y] -= 1
    return np.log(total) - shifted[rows, y], gradient


# ----------------------------------------------------------------------------------------------------------------------
# activation.cu


# one number; a single column; rows that are no multiple of 16 bytes, then more of them than threads; wide packs, a tail
# of idle threads; more packs than threads
SHAPES = [(1, 1), (301, 1), (37, 10), (3, 515), (333, 196), (3, 2052)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@each_real
@each_activation
def test_bias_activation(activation: str, real: str, shape: tuple[int, int], rng: np.random.Generator) -> None:
    module = cpu_module("activation", ACTIVATION=activation, REAL=real)
    rows, units = shape
    Z, b = 3 * rng.standard_normal(shape).astype(REALS[real]), rng.standard_normal(units).astype(REALS[real])

    def run(reverse: bool) -> tuple[Array, ...]:
        with_bias, without = Z.copy(), Z.copy()
        module.launch("bias_activation", 3, THREADS, with_bias, b, rows, units, reverse=reverse)
        module.launch("bias_activation", 3, THREADS, without, None, rows, units, reverse=reverse)
        return with_bias, without

    with_bias, without = in_both_orders(run)
    assert_close(with_bias, activate(activation, (Z + b).astype(np.float64)), real)
    assert_close(without, activate(activation, Z.astype(np.float64)), real)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@each_real
@each_activation
def test_activation_gradient(activation: str, real: str, shape: tuple[int, int], rng: np.random.Generator) -> None:
    module = cpu_module("activation", ACTIVATION=activation, REAL=real)
    rows, units = shape
    blocks = 4
    Z, dA = (rng.standard_normal(shape).astype(REALS[real]) for _ in range(2))
    A = Z.copy()
    module.launch("bias_activation", 1, THREADS, A, None, rows, units)

    def run(reverse: bool) -> tuple[Array, ...]:
        dZ, db, partial = dA.copy(), *(np.full(s, np.nan, REALS[real]) for s in (units, (blocks, units)))
        ticket = np.zeros(1, np.uint32)
        arguments = (dZ, A, partial, db, ticket, rows, units)
        module.launch("activation_gradient", blocks, THREADS, *arguments, reverse=reverse)
        assert ticket[0] == 0  # ready for the next launch
        return dZ, db

    dZ, db = in_both_orders(run)
    want = dA * slope(activation, Z.astype(np.float64))
    assert_close(dZ, want, real)
    assert_close(db, want.sum(axis=0), real)


@each_real
def test_slope_at_zero_is_one_for_both_relus(real: str) -> None:
    Z = np.array([[-1.0, -0.0, 0.0, 1.0]], REALS[real])
    for activation, below in (("relu", 0.0), ("leaky_relu", 0.01)):
        module = cpu_module("activation", ACTIVATION=activation, REAL=real)
        A, dZ, partial, db = Z.copy(), np.ones_like(Z), np.empty_like(Z), np.empty_like(Z)
        module.launch("bias_activation", 1, THREADS, A, None, 1, 4)
        module.launch("activation_gradient", 1, THREADS, dZ, A, partial, db, np.zeros(1, np.uint32), 1, 4)
        np.testing.assert_array_equal(dZ, np.array([[below, 1, 1, 1]], REALS[real]))


@each_activation
def test_nan_is_not_lost(activation: str) -> None:
    module = cpu_module("activation", ACTIVATION=activation, REAL="float")
    Z = np.array([[np.nan]], np.float32)
    module.launch("bias_activation", 1, THREADS, Z, None, 1, 1)
    assert np.isnan(Z).all()


# ----------------------------------------------------------------------------------------------------------------------
# softmax_cross_entropy.cu


@pytest.mark.parametrize("shape", [(1, 2), (77, 10), (19, 33), (9, 100)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e4])
@each_real
def test_softmax_cross_entropy(real: str, scale: float, shape: tuple[int, int], rng: np.random.Generator) -> None:
    module = cpu_module("softmax_cross_entropy", REAL=real)
    rows, classes = shape
    Z = (scale * rng.standard_normal(shape)).astype(REALS[real])
    y = rng.integers(0, classes, rows).astype(np.int32)

    def run(reverse: bool) -> tuple[Array, ...]:
        dZ, losses, totals = (np.full(s, np.nan, REALS[real]) for s in (shape, rows, 3))
        module.launch("softmax_cross_entropy", 3, THREADS, Z, y, dZ, losses, totals, rows, classes, reverse=reverse)
        return dZ, losses, totals

    dZ, losses, totals = in_both_orders(run)
    want_losses, want_dZ = softmax_cross_entropy(Z.astype(np.float64), y)
    assert_close(dZ, want_dZ, real)
    assert_close(losses, want_losses, real)
    assert_close(totals.sum(), want_losses.sum(), real)


# ----------------------------------------------------------------------------------------------------------------------
# fused_head.cu


class HeadProblem:
    """Random input for a fused head, what NumPy makes of it in float64, and what a module does."""

    def __init__(self, head: FusedHead, activation: str, rows: int, rng: np.random.Generator) -> None:
        self.head, self.rows = head, rows
        h, k = head.hidden, head.classes
        self.Z1, self.b1, self.W2, self.b2 = (
            rng.standard_normal(shape).astype(np.float32) / scale
            for shape, scale in (((rows, h), 1), (h, 1), ((h, k), 4), (k, 1))
        )
        self.y = rng.integers(0, k, rows).astype(np.int32)
        Z = self.Z1.astype(np.float64) + self.b1
        A = activate(activation, Z)
        self.losses, dZ2 = softmax_cross_entropy(A @ self.W2.astype(np.float64) + self.b2, self.y)
        self.dZ1 = dZ2 @ self.W2.T * slope(activation, Z)
        self.gradients = np.concatenate([self.dZ1.sum(axis=0), dZ2.sum(axis=0), (A.T @ dZ2).ravel()])

    def run(self, module: CpuModule, blocks: int, reverse: bool) -> tuple[Array, Array, Array]:
        Z, dZ = self.rows_of_Z()
        gradients = np.full((blocks, self.head.gradients), np.nan, np.float32)
        totals = np.full(blocks, np.nan, np.float32)
        arguments = (Z, dZ, self.b1, self.b2, self.W2, self.y, gradients, totals, self.rows)
        shared = self.head.shared_bytes
        module.launch("fused_head", blocks, self.head.threads, *arguments, shared=shared, reverse=reverse)
        assert (dZ[-1] == 7).all()
        return self.joined(dZ[:-1]), gradients, totals

    def rows_of_Z(self) -> tuple[Array, Array]:
        """Return Z1 and room for dZ1, each with a row more that is not to be touched."""
        width = self.head.hidden
        if not self.head.halves:
            Z = np.concatenate([self.Z1, np.full((1, width), 7, np.float32)])
            return Z, Z
        high, low = np.round(255 * self.Z1), self.Z1 * np.float32(255)
        Z = np.concatenate([high, 2048 * (low - high)], axis=1)
        return Z, np.full((self.rows + 1, 2 * width), 7, np.float16)

    def joined(self, dZ: Array) -> Array:
        if not self.head.halves:
            return dZ
        high, low = np.split(dZ.astype(np.float32), 2, axis=1)
        return high + low / np.float32(2048)

    def check(self, dZ1: Array, gradients: Array, totals: Array) -> None:
        assert_close(dZ1, self.dZ1, "float")
        assert_close(gradients.sum(axis=0), self.gradients, "float")
        assert_close(totals.sum(), self.losses.sum(), "float")


WITH_HALVES = [FusedHead(196, 10, 64, halves=True), FusedHead(36, 3, 32, halves=True)]


def head_module(head: FusedHead, activation: str) -> CpuModule:
    return cpu_module("fused_head", ACTIVATION=activation, **head.macros)


@pytest.mark.parametrize("rows", [1, 64, 333])
@each_activation
def test_fused_head(activation: str, rows: int, rng: np.random.Generator) -> None:
    head = FusedHead(196, 10, 64)
    problem = HeadProblem(head, activation, rows, rng)
    module = head_module(head, activation)
    problem.check(*in_both_orders(lambda reverse: problem.run(module, 3, reverse)))


@pytest.mark.parametrize(
    "head", [FusedHead(4, 2, 32), FusedHead(196, 10, 32), FusedHead(256, 16, 64), *WITH_HALVES], ids=str
)
def test_fused_head_of_other_widths(head: FusedHead, rng: np.random.Generator) -> None:
    problem = HeadProblem(head, "sigmoid", 200, rng)
    module = head_module(head, "sigmoid")
    problem.check(*in_both_orders(lambda reverse: problem.run(module, 2, reverse)))


BARRIER = "__syncthreads();"


@pytest.mark.parametrize("k", range(source("fused_head").count(BARRIER)))
def test_fused_head_needs_its_barrier(k: int, rng: np.random.Generator) -> None:
    """Without any one of its barriers the kernel fails the tests above: they would notice a missing one."""
    head = FusedHead(36, 3, 32)
    pieces = source("fused_head").split(BARRIER)
    text = BARRIER.join(pieces[: k + 1]) + BARRIER.join(pieces[k + 1 :])
    module = CpuModule(text, {"ACTIVATION": "sigmoid", **head.macros})
    problem = HeadProblem(head, "sigmoid", 100, rng)
    with pytest.raises(AssertionError):
        problem.check(*in_both_orders(lambda reverse: problem.run(module, 2, reverse)))


@pytest.mark.parametrize("head", [FusedHead(196, 10, 64), FusedHead(128, 5, 32), FusedHead(4, 2, 64)], ids=str)
def test_host_and_device_agree_on_the_size_of_a_block(head: FusedHead) -> None:
    claim = f"static_assert(sizeof(Shared) == {head.shared_bytes} && THREADS == {head.threads});"
    CpuModule(source("fused_head") + claim, {"ACTIVATION": "tanh", **head.macros})


def test_fused_head_is_for_widths_that_it_takes() -> None:
    assert fused_head(196, 10, 227 * 1024) == FusedHead(196, 10, 64)
    assert fused_head(196, 10, 64 * 1024) == FusedHead(196, 10, 32)
    assert fused_head(196, 10, 227 * 1024, few_rows=True) == FusedHead(196, 10, 32)
    assert fused_head(196, 10, 64 * 1024, halves=True) == FusedHead(196, 10, 32, halves=True)
    assert fused_head(196, 10, 32 * 1024) is None
    assert fused_head(198, 10, 227 * 1024) is None
    assert fused_head(260, 10, 227 * 1024) is None
    assert fused_head(196, 17, 227 * 1024) is None
    assert fused_head(196, 1, 227 * 1024) is None


# ----------------------------------------------------------------------------------------------------------------------
# optimizers.cu


class UpdateProblem:
    """A parameter vector in four ranges, two of them biases, with gradients of 1, 3 and 40 shards in three buffers."""

    LENGTHS = (5, 300, 7, 211)
    SHARDS = (3, 3, 40, 1)
    ROWS = 50

    def __init__(self, real: str, rng: np.random.Generator) -> None:
        self.rng, self.dtype = rng, REALS[real]
        self.parameters = sum(self.LENGTHS)
        self.is_bias = np.repeat([True, False, True, False], self.LENGTHS)
        self.theta = rng.standard_normal(self.parameters).astype(self.dtype)
        layer = rng.standard_normal((3, 305 + 2))  # of two ranges, with a gap between shards
        self.parts = [
            x.astype(self.dtype) for x in (layer, rng.standard_normal((40, 7)), rng.standard_normal((1, 211)))
        ]
        layer_address, *addresses = (part.ctypes.data for part in self.parts)
        self.ranges = np.zeros(4, RANGE)
        self.ranges["end"] = np.cumsum(self.LENGTHS)
        self.ranges["gradient"] = [layer_address, layer_address + 5 * self.theta.itemsize, *addresses]
        self.ranges["stride"] = [307, 307, 7, 211]
        self.ranges["shards"] = self.SHARDS
        self.ranges["is_bias"] = [1, 0, 1, 0]

    def gradient(self) -> Array:
        layer, biases, weights = (part.astype(np.float64).sum(axis=0) for part in self.parts)
        return np.concatenate([layer[:305], biases, weights]) / self.ROWS

    def want(self, optimizer: Optimizer) -> tuple[Array, Array]:
        """Return parameters after all steps, and the last step's gradient."""
        theta = self.theta.astype(np.float64)
        state = optimizer.init(theta)
        for weights, biases in RATES:
            grad = self.gradient() + np.where(self.is_bias, 0, optimizer.l2 * theta)
            theta, state = optimizer.update(theta, grad, state, np.where(self.is_bias, biases, weights))
        return theta, grad


BLOCKS = [(256, 1), (32, 8)]  # for few shards, and for many
RATES = [(0.5, 0.1), (0.3, 0.2), (0.2, 0.7), (0.1, 0.2)]  # of weights and biases, for each step


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize(
    "optimizer", [SGD(), SGD(l2=0.1), SGD(momentum=0.9), SGD(momentum=0.9, nesterov=True, l2=0.1)], ids=str
)
@each_real
def test_sgd(real: str, optimizer: SGD, block: tuple[int, int], rng: np.random.Generator) -> None:
    problem = UpdateProblem(real, rng)
    module = cpu_module("optimizers", REAL=real)
    grid = -(-problem.parameters // block[0])

    def run(reverse: bool) -> tuple[Array, ...]:
        theta, velocity, gradient = problem.theta.copy(), np.zeros_like(problem.theta), np.empty_like(problem.theta)
        for rates in RATES:
            module.launch(
                "sgd", grid, block, theta, velocity if optimizer.momentum else None, gradient, problem.ranges,
                np.array(rates, problem.dtype), problem.parameters, 1 / problem.ROWS, optimizer.l2, optimizer.momentum,
                optimizer.nesterov, reverse=reverse,
            )  # fmt: skip
        return theta, gradient

    for got, want in zip(in_both_orders(run), problem.want(optimizer), strict=True):
        assert_close(got, want, real)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("optimizer", [Adam(), Adam(l2=0.1), AdamW(weight_decay=0.1)], ids=str)
@each_real
def test_adam(real: str, optimizer: Adam, block: tuple[int, int], rng: np.random.Generator) -> None:
    problem = UpdateProblem(real, rng)
    module = cpu_module("optimizers", REAL=real)
    grid = -(-problem.parameters // block[0])

    def run(reverse: bool) -> tuple[Array, ...]:
        theta, gradient = problem.theta.copy(), np.empty_like(problem.theta)
        mean, square = np.zeros_like(theta), np.zeros_like(theta)
        for step, rates in enumerate(RATES):
            module.launch(
                "adam", grid, block, theta, mean, square, gradient, problem.ranges, np.array(rates, problem.dtype),
                np.array([step], np.int32), problem.parameters, 1 / problem.ROWS, optimizer.l2, optimizer.weight_decay,
                1 - optimizer.beta1, 1 - optimizer.beta2, optimizer.epsilon, reverse=reverse,
            )  # fmt: skip
        return theta, gradient

    for got, want in zip(in_both_orders(run), problem.want(optimizer), strict=True):
        assert_close(got, want, real)


@each_real
def test_squared_weights_leave_out_biases(real: str, rng: np.random.Generator) -> None:
    problem = UpdateProblem(real, rng)

    def run(reverse: bool) -> tuple[Array, ...]:
        totals = np.full(2, np.nan, problem.dtype)
        arguments = problem.theta, problem.ranges, totals, problem.parameters, 0.5
        cpu_module("optimizers", REAL=real).launch("squared_weights", 2, THREADS, *arguments, reverse=reverse)
        return (totals,)

    (totals,) = in_both_orders(run)
    weights = problem.theta[~problem.is_bias].astype(np.float64)
    assert_close(totals.sum(), 0.5 * weights @ weights, real)


@pytest.mark.parametrize("shards", [1, 3, 40])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("accumulate", [0, 1])
@each_real
def test_add_shards(real: str, accumulate: int, block: tuple[int, int], shards: int, rng: np.random.Generator) -> None:
    parts, before = rng.standard_normal((shards, 500)).astype(REALS[real]), rng.standard_normal(300).astype(REALS[real])

    def run(reverse: bool) -> tuple[Array, ...]:
        into = before.copy()
        arguments = into, parts[:, 7:], 500, shards, 300, accumulate
        grid = -(-300 // block[0])
        cpu_module("optimizers", REAL=real).launch("add_shards", grid, block, *arguments, reverse=reverse)
        return (into,)

    (into,) = in_both_orders(run)
    assert_close(into, parts[:, 7:307].astype(np.float64).sum(axis=0) + accumulate * before, real)


@each_real
def test_tick_counts_and_begins_each_epoch_anew(real: str, rng: np.random.Generator) -> None:
    module = cpu_module("optimizers", REAL=real)
    totals = rng.standard_normal((5, 700)).astype(REALS[real])

    def run(reverse: bool) -> tuple[Array, ...]:
        step, total, history = np.array([7, 0], np.int32), np.full(1, np.nan), []
        for sums in totals:
            module.launch("tick", 1, THREADS, step, sums, len(sums), total, 3, reverse=reverse)
            history.append(total[0])
        return np.array(history), step

    history, step = in_both_orders(run)
    assert step.tolist() == [7 + 5, 5 % 3]
    sums = totals.astype(np.float64).sum(axis=1)
    assert_close(history, np.array([sums[0], sums[:2].sum(), sums[:3].sum(), sums[3], sums[3:].sum()]), real)


def test_the_losses_of_many_updates_lose_no_digits() -> None:
    """A float would lose 1e-6 of them after 2,000 updates of the same loss, and 5e-4 after 200,000."""
    loss, step, total, updates = np.array([np.log(2)], np.float32), np.zeros(2, np.int32), np.zeros(1), 2_000
    module = cpu_module("optimizers", REAL="float")
    for _ in range(updates):
        module.launch("tick", 1, THREADS, step, loss, 1, total, updates)
    assert step.tolist() == [updates, 0]
    assert total[0] / updates == pytest.approx(float(loss[0]), rel=1e-12)


# ----------------------------------------------------------------------------------------------------------------------
# losses.cu, batch.cu, halves.cu


@pytest.mark.parametrize("shape", [(1, 1), (600, 1), (77, 10)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("name", sorted(kernels_of("losses")))
@each_real
def test_loss(name: str, real: str, scale: float, shape: tuple[int, int], rng: np.random.Generator) -> None:
    A, Y = (scale * rng.standard_normal(shape)).astype(REALS[real]), rng.integers(0, 2, shape).astype(REALS[real])

    def run(reverse: bool) -> tuple[Array, ...]:
        dA, losses, totals = (np.full(s, np.nan, REALS[real]) for s in (shape, shape[0], 2))
        cpu_module("losses", REAL=real).launch(name, 2, THREADS, A, Y, dA, losses, totals, *shape, reverse=reverse)
        return dA, losses, totals

    dA, losses, totals = in_both_orders(run)
    want, slope = GenericKernels(np, "float64").loss(name, A.astype(np.float64), Y.astype(np.float64))
    assert_close(dA, slope, real)
    assert_close(losses, want, real)
    assert_close(totals.sum(), want.sum(), real)


@each_real
def test_on_the_perceptrons_line_is_wrong(real: str) -> None:
    A, Y = np.array([[0, 0, -0.0, -0.0, 2, -2, 2, -2]], REALS[real]), np.array([[0, 1, 0, 1, 1, 0, 0, 1]], REALS[real])
    dA, losses, totals = np.empty_like(A), np.empty(1, REALS[real]), np.empty(1, REALS[real])
    cpu_module("losses", REAL=real).launch("perceptron_criterion", 1, THREADS, A, Y, dA, losses, totals, *A.shape)
    np.testing.assert_array_equal(dA, [[1, -1, 1, -1, 0, 0, 1, -1]])
    assert losses == totals == 4


@pytest.mark.parametrize("columns", [12, 7])
@pytest.mark.parametrize(("source", "entry"), [("byte", "REAL"), ("byte", "half_bits"), ("REAL", "REAL")])
@pytest.mark.parametrize(("target", "width"), [("int", 1), ("REAL", 3)])
@pytest.mark.parametrize("ordered", [False, True])
def test_gather(
    ordered: bool, target: str, width: int, source: str, entry: str, columns: int, rng: np.random.Generator
) -> None:
    """Rows 2 to 6 of the second batch of 10."""
    module = cpu_module("batch", REAL="float", INPUT=source, ENTRY=entry, TARGET=target)
    X = rng.integers(0, 256, (40, columns)).astype({"byte": np.uint8, "REAL": np.float32}[source])
    y = rng.integers(0, 9, (40, width)).astype({"int": np.int32, "REAL": np.float32}[target])
    order, step = rng.permutation(40).astype(np.int32), np.array([7, 1], np.int32)
    A, T = np.empty((5, columns), {"half_bits": np.float16, "REAL": np.float32}[entry]), np.empty_like(y[:5])
    arguments = X, y, order if ordered else None, step, A, T, 10, 2, 5, columns, width
    module.launch("gather", 2, THREADS, *arguments)
    rows = order[12:17] if ordered else np.arange(12, 17)
    scale = np.float32(1 / 255) if (source, entry) == ("byte", "REAL") else np.float32(1)
    np.testing.assert_array_equal(A, X[rows] * scale)
    np.testing.assert_array_equal(T, y[rows])
    module.launch("gather", 2, THREADS, X, None, None, None, A, None, 10, 2, 5, columns, 0)  # of the first, and no y
    np.testing.assert_array_equal(A, X[2:7] * scale)
    np.testing.assert_array_equal(T, y[rows])


def test_halves_have_22_bits(rng: np.random.Generator) -> None:
    x = (rng.standard_normal((50, 300)) * 10.0 ** rng.uniform(-9, 4, (50, 300))).astype(np.float32)
    halves = np.empty((50, 600), np.float16)
    cpu_module("halves").launch("split_matrix", 3, THREADS, x, halves, 50, 300)
    high, low = halves[:, :300].astype(np.float64), halves[:, 300:].astype(np.float64)
    assert (np.abs(high + low / 2048 - x) <= np.maximum(2.0**-22 * np.abs(x), 2.0**-36)).all()
    products, Z = 255 * rng.standard_normal((50, 600)).astype(np.float32), np.ones((50, 300), np.float32)
    want = (products[:, :300].astype(np.float64) + products[:, 300:].astype(np.float64) / 2048) / 255
    for accumulate in (0, 1):
        cpu_module("halves").launch("join_products", 3, THREADS, products, Z, 50, 300, accumulate)
        assert_close(Z, want * (1 + accumulate), "float")


def test_products_of_pixels_by_halves_are_as_exact_as_in_float32(rng: np.random.Generator) -> None:
    """What the tensor cores do: products of float16, which are exact, added up in float32."""
    P = (rng.random((500, 784)) < 0.2) * rng.integers(1, 256, (500, 784))
    W = (rng.standard_normal((784, 196)) / 28).astype(np.float32)
    halves = np.empty((784, 392), np.float16)
    cpu_module("halves").launch("split_matrix", 3, THREADS, W, halves, *W.shape)
    products = P.astype(np.float32) @ halves.astype(np.float32)
    Z = np.empty((500, 196), np.float32)
    cpu_module("halves").launch("join_products", 3, THREADS, products, Z, *Z.shape, 0)
    want = (P / 255) @ W.astype(np.float64)

    def error(got: Array) -> float:
        return float(np.linalg.norm(got - want) / np.linalg.norm(want))

    assert error(Z) < 3e-7
    assert error(Z) < 2 * error((P / 255).astype(np.float32) @ W)
    assert error(P.astype(np.float32) @ halves[:, :196].astype(np.float32) / 255) > 1e-4  # a single half is not enough


CHECKS: dict[str, list[Callable[[Any], None]]] = {
    "optimizers": [
        lambda rng: test_add_shards("float", 0, (32, 8), 40, rng),
        lambda rng: test_squared_weights_leave_out_biases("float", rng),
        lambda rng: test_tick_counts_and_begins_each_epoch_anew("float", rng),
    ],
    "losses": [lambda rng: test_loss("sigmoid_cross_entropy", "float", 1.0, (600, 1), rng)],
    "softmax_cross_entropy": [lambda rng: test_softmax_cross_entropy("float", 1.0, (77, 10), rng)],
}


@pytest.mark.parametrize(("name", "k"), [(name, k) for name in CHECKS for k in range(source(name).count(BARRIER))])
def test_other_kernels_need_their_barriers(name: str, k: int, rng: np.random.Generator, monkeypatch: Any) -> None:
    pieces = source(name).split(BARRIER)
    text = BARRIER.join(pieces[: k + 1]) + BARRIER.join(pieces[k + 1 :])
    monkeypatch.setattr(f"{__name__}.cpu_module", lambda name, **macros: CpuModule(text, macros))
    with pytest.raises(AssertionError):
        [check(rng) for check in CHECKS[name]]


# ----------------------------------------------------------------------------------------------------------------------
# Together


def test_training_on_the_kernels_equals_training_in_numpy(rng: np.random.Generator) -> None:
    """Five full-batch epochs of a small network, with NumPy's products, in the project's parameter layout."""
    n, shards, blocks, epochs = 150, 4, 3, 5
    layout, head = Layout([20, 12, 3]), FusedHead(12, 3, 32)
    X, y = rng.random((n, 20)).astype(np.float32), rng.integers(0, 3, n).astype(np.int32)
    start = initial_theta(layout, "xavier_normal", 0, "float32")
    rates = np.array([0.5, 0.5], np.float32)

    want, losses = start.astype(np.float64), []
    for _ in range(epochs):
        W, b = layout.split(want)
        A = activate("tanh", X @ W[1].T + b[1])
        loss, dZ2 = softmax_cross_entropy(A @ W[2].T + b[2], y)
        losses.append(loss.sum())
        dZ1 = dZ2 @ W[2] * (1 - A * A)
        gradient = Parameters([None, dZ1.T @ X, dZ2.T @ A], [None, dZ1.sum(axis=0), dZ2.sum(axis=0)])
        want = want - 0.5 * layout.join(gradient) / n

    parts = np.empty((shards, 20, 12), np.float32)
    gradients, totals = np.empty((blocks, head.gradients), np.float32), np.empty(blocks, np.float32)
    b1, W1, output = slice(0, 12), slice(12, 252), slice(252, layout.size)
    ranges = np.zeros(4, RANGE)  # b1, W1, b2, W2
    ranges["end"] = [12, 252, 255, layout.size]
    ranges["gradient"] = [a.ctypes.data for a in (gradients, parts, gradients[:, 12:], gradients[:, 15:])]
    ranges["stride"] = [head.gradients, 240, head.gradients, head.gradients]
    ranges["shards"] = [blocks, shards, blocks, blocks]
    ranges["is_bias"] = [1, 0, 1, 0]

    theta, gradient, step, history = start.copy(), np.empty_like(start), np.zeros(2, np.int32), []
    module, update = head_module(head, "tanh"), cpu_module("optimizers", REAL="float")
    for _ in range(epochs):
        Z = X @ theta[W1].reshape(20, 12)
        b2, W2 = theta[output][:3], theta[output][3:]
        arguments = (Z, Z, theta[b1], b2, W2, y, gradients, totals, n)
        module.launch("fused_head", blocks, head.threads, *arguments, shared=head.shared_bytes)
        for shard, rows in enumerate(np.array_split(np.arange(n), shards)):
            parts[shard] = X[rows].T @ Z[rows]
        grid = -(-layout.size // 32)
        update.launch("sgd", grid, (32, 8), theta, None, gradient, ranges, rates, layout.size, 1 / n, 0.0, 0.0, 0)
        total = np.empty(1)
        update.launch("tick", 1, THREADS, step, totals, blocks, total, 1)
        history.append(total[0])

    assert_close(theta, want, "float")
    assert_close(np.array(history), np.array(losses), "float")
