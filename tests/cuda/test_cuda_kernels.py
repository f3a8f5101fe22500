"""The kernels of ``*.cu``, one launch at a time, against NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mlp_xp.kernels import GenericKernels
from mlp_xp.kernels.cuda.sources import RANGE, FusedHead, Kernel, activations, kernels_of, source
from mlp_xp.optim import SGD, Adam, AdamW, Optimizer

from .launching import BARRIER, REALS, Gpu, without_barrier

pytestmark = pytest.mark.gpu

Array = np.ndarray[Any, Any]

ACTIVATIONS = sorted(activations())
TOLERANCE = {"float": 1e-6, "double": 1e-14}
GENERIC = GenericKernels(np, "float64")

each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
each_real = pytest.mark.parametrize("real", REALS)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def gpu(pytestconfig: pytest.Config) -> Iterator[Gpu]:
    gpu = Gpu(pytestconfig.getoption("emulated_cuda"))
    with gpu.apart():
        yield gpu


def assert_close(got: Array, want: Array, real: str) -> None:
    """Assert that the error is small beside the largest number, and that nothing was left unwritten."""
    assert got.shape == want.shape
    assert np.isfinite(got).all()
    assert np.max(np.abs(got - want), initial=0) <= TOLERANCE[real] * max(1.0, np.max(np.abs(want), initial=0))


# ----------------------------------------------------------------------------------------------------------------------
# activation.cu


# no rows; one number; a single column; rows that are no multiple of 16 bytes, then more of them than threads; wide
# packs, a tail of idle threads; more packs than threads
SHAPES = [(0, 3), (1, 1), (301, 1), (37, 10), (3, 515), (333, 196), (3, 2052)]


def activation_kernel(name: str, activation: str) -> Kernel:
    return Kernel("activation", name, (("ACTIVATION", activation),))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@each_real
@each_activation
def test_bias_activation(activation: str, real: str, shape: tuple[int, int], gpu: Gpu, rng: Any) -> None:
    kernel, (rows, units) = activation_kernel("bias_activation", activation), shape
    Z, b = 3 * rng.standard_normal(shape).astype(REALS[real]), rng.standard_normal(units).astype(REALS[real])

    def run() -> tuple[Any, ...]:
        with_bias, without, bias = gpu.put(Z, Z, b)
        gpu.launch(kernel, 3, with_bias, bias, rows, units, real=real)
        gpu.launch(kernel, 3, without, None, rows, units, real=real)
        return with_bias, without

    with_bias, without = gpu.in_every_order(run)
    assert_close(with_bias, GENERIC.activate(activation, (Z + b).astype(np.float64)), real)
    assert_close(without, GENERIC.activate(activation, Z.astype(np.float64)), real)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@each_real
@each_activation
def test_activation_gradient(activation: str, real: str, shape: tuple[int, int], gpu: Gpu, rng: Any) -> None:
    rows, units = shape
    dA, A = (rng.standard_normal(shape).astype(REALS[real]) for _ in range(2))
    A = GENERIC.activate(activation, A.astype(np.float64)).astype(REALS[real])

    def run() -> tuple[Any, ...]:
        results = []
        ticket = gpu.cp.zeros(1, np.uint32)
        for blocks in (4, 1, 5):  # the ticket of one launch is ready for the next
            (partial, db), dZ = gpu.unwritten((blocks, units), units, dtype=REALS[real]), gpu.put(dA)
            arguments = dZ, gpu.put(A), partial, db, ticket, rows, units
            gpu.launch(activation_kernel("activation_gradient", activation), blocks, *arguments, real=real)
            results += [dZ, db]
        return *results, ticket

    *results, ticket = gpu.in_every_order(run)
    want = GENERIC.activation_gradient(activation, dA.astype(np.float64), A.astype(np.float64))
    for dZ, db in zip(results[::2], results[1::2], strict=True):
        assert_close(dZ, want, real)
        assert_close(db, want.sum(axis=0), real)
    assert ticket == 0


@each_real
def test_slope_at_zero_is_one_for_both_relus(real: str, gpu: Gpu) -> None:
    Z = np.array([[-1.0, -0.0, 0.0, 1.0]], REALS[real])
    for activation, below in (("relu", 0.0), ("leaky_relu", 0.01)):
        A, dZ, ticket = gpu.put(Z, np.ones_like(Z), np.zeros(1, np.uint32))
        partial, db = gpu.unwritten(4, 4, dtype=REALS[real])
        gpu.launch(activation_kernel("bias_activation", activation), 1, A, None, 1, 4, real=real)
        gradient = activation_kernel("activation_gradient", activation)
        gpu.launch(gradient, 1, dZ, A, partial, db, ticket, 1, 4, real=real)
        np.testing.assert_array_equal(dZ.get(), np.array([[below, 1, 1, 1]], REALS[real]))
        np.testing.assert_array_equal(db.get(), dZ.get()[0])


# Not float32's denormals: CuPy compiles for them to be zero.
HOSTILE = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1.2e-38, -1.2e-38, 0.0, -0.0]


@each_real
@each_activation
def test_activations_of_any_number_are_numpys(activation: str, real: str, gpu: Gpu) -> None:
    Z = np.array([HOSTILE, HOSTILE[::-1]], REALS[real])
    A = gpu.put(Z)
    gpu.launch(activation_kernel("bias_activation", activation), 1, A, None, *Z.shape, real=real)
    with np.errstate(all="ignore"):
        want = GenericKernels(np, np.dtype(REALS[real]).name).activate(activation, Z)
    if activation == "relu":  # the sign tells the slope
        np.testing.assert_array_equal(np.signbit(A.get()), np.signbit(want))
    np.testing.assert_allclose(A.get(), want, rtol=2 * TOLERANCE[real], atol=1e-44)


@each_real
@each_activation
def test_a_nan_stays_in_its_row(activation: str, real: str, gpu: Gpu, rng: Any) -> None:
    dA, A = (rng.uniform(0.1, 0.9, (9, 6)).astype(REALS[real]) for _ in range(2))
    dA[4, 2] = np.nan
    dZ, ticket = gpu.put(dA, np.zeros(1, np.uint32))
    partial, db = gpu.unwritten((2, 6), 6, dtype=REALS[real])
    arguments = dZ, gpu.put(A), partial, db, ticket, 9, 6
    gpu.launch(activation_kernel("activation_gradient", activation), 2, *arguments, real=real)
    assert np.argwhere(np.isnan(dZ.get())).tolist() == [[4, 2]]
    assert np.flatnonzero(np.isnan(db.get())).tolist() == [2]


# ----------------------------------------------------------------------------------------------------------------------
# softmax_cross_entropy.cu, losses.cu


def run_loss(gpu: Gpu, name: str, real: str, A: Array, y: Array, blocks: int = 3) -> tuple[Array, Array, Array]:
    """Return dA, losses, and each block's sum of them."""
    kernel = Kernel("losses" if name in kernels_of("losses") else name, name)

    def run() -> tuple[Any, ...]:
        results = gpu.unwritten(A.shape, A.shape[0], blocks, dtype=REALS[real])
        gpu.launch(kernel, blocks, *gpu.put(A, y), *results, *A.shape, real=real)
        return results

    dA, losses, totals = gpu.in_every_order(run)
    return dA, losses, totals


# no rows; fewer classes than threads of a warp, more; more rows than the warps of all blocks
@pytest.mark.parametrize("shape", [(0, 3), (1, 2), (77, 10), (19, 33), (9, 100)], ids=str)
@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1e4, 0), (1, -1e4)])
@each_real
def test_softmax_cross_entropy(
    real: str, scale: float, shift: float, shape: tuple[int, int], gpu: Gpu, rng: Any
) -> None:
    rows, classes = shape
    Z = (scale * rng.standard_normal(shape) + shift).astype(REALS[real])
    y = rng.integers(0, classes, rows).astype(np.int32)
    dZ, losses, totals = run_loss(gpu, "softmax_cross_entropy", real, Z, y)
    want_losses, want_dZ = GENERIC.loss("softmax_cross_entropy", Z.astype(np.float64), y)
    assert_close(dZ, want_dZ, real)
    assert_close(losses, want_losses, real)
    assert_close(totals.sum(), want_losses.sum(), real)


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (1700, 1), (77, 10)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("name", sorted(kernels_of("losses")))
@each_real
def test_loss(name: str, real: str, scale: float, shape: tuple[int, int], gpu: Gpu, rng: Any) -> None:
    A, Y = (scale * rng.standard_normal(shape)).astype(REALS[real]), rng.integers(0, 2, shape).astype(REALS[real])
    dA, losses, totals = run_loss(gpu, name, real, A, Y)
    want, slope = GENERIC.loss(name, A.astype(np.float64), Y.astype(np.float64))
    assert_close(dA, slope, real)
    assert_close(losses, want, real)
    assert_close(totals.sum(), want.sum(), real)


@pytest.mark.parametrize("name", ["softmax_cross_entropy", *sorted(kernels_of("losses"))])
@each_real
def test_losses_of_any_number_are_numpys(name: str, real: str, gpu: Gpu) -> None:
    """A row with a NaN or an infinity has the loss that the formula gives it; its neighbors do not notice.

    A logit of -inf is the probability 0. The formula of the softmax multiplies it by the target 0, so it gets a number.
    """
    A = np.array([[value, 0.25, -0.5] for value in (*HOSTILE, 1.0)], REALS[real])
    labels = np.arange(len(A)) % 3
    y = labels.astype(np.int32) if name == "softmax_cross_entropy" else np.eye(3, dtype=REALS[real])[labels]
    dA, losses, totals = run_loss(gpu, name, real, A, y)
    with np.errstate(all="ignore"):
        finite = np.maximum(A, -1e30) if name == "softmax_cross_entropy" else A
        want, slope = GenericKernels(np, np.dtype(REALS[real]).name).loss(name, finite, y)
    close = {"rtol": 4 * TOLERANCE[real], "atol": 4 * TOLERANCE[real]}
    np.testing.assert_allclose(losses, want, **close)
    np.testing.assert_allclose(dA, slope, **close)
    assert np.isnan(totals.sum())


@each_real
def test_on_the_perceptrons_line_is_wrong(real: str, gpu: Gpu) -> None:
    A, Y = np.array([[0, 0, -0.0, -0.0, 2, -2, 2, -2]], REALS[real]), np.array([[0, 1, 0, 1, 1, 0, 0, 1]], REALS[real])
    dA, losses, totals = run_loss(gpu, "perceptron_criterion", real, A, Y, blocks=1)
    np.testing.assert_array_equal(dA, [[1, -1, 1, -1, 0, 0, 1, -1]])
    assert losses == totals == 4


# ----------------------------------------------------------------------------------------------------------------------
# fused_head.cu


class HeadProblem:
    """Random input for a fused head, and what NumPy makes of it in float64."""

    def __init__(self, head: FusedHead, activation: str, rows: int, rng: np.random.Generator) -> None:
        self.head, self.activation, self.rows = head, activation, rows
        h, k = head.hidden, head.classes
        self.Z1, self.b1, self.W2, self.b2 = (
            rng.standard_normal(shape).astype(np.float32) / scale
            for shape, scale in (((rows, h), 1), (h, 1), ((h, k), 4), (k, 1))
        )
        self.y = rng.integers(0, k, rows).astype(np.int32)
        A = GENERIC.activate(activation, self.Z1.astype(np.float64) + self.b1)
        logits = A @ self.W2.astype(np.float64) + self.b2
        self.losses, dZ2 = GENERIC.loss("softmax_cross_entropy", logits, self.y)
        self.dZ1 = GENERIC.activation_gradient(activation, dZ2 @ self.W2.T, A)
        self.gradients = np.concatenate([self.dZ1.sum(axis=0), dZ2.sum(axis=0), (A.T @ dZ2).ravel()])

    def run(self, gpu: Gpu, blocks: int) -> tuple[Any, ...]:
        """Return dZ1, each block's gradients, and each block's sum of losses."""
        gradients, totals = gpu.unwritten((blocks, self.head.gradients), blocks, dtype=np.float32)
        Z, dZ = self.rows_of_Z(gpu)
        small = gpu.put(self.b1, self.b2, self.W2, self.y)
        gpu.launch(self.head.kernel(self.activation), blocks, Z, dZ, *small, gradients, totals, self.rows)
        return self.joined(dZ), gradients, totals

    def rows_of_Z(self, gpu: Gpu) -> tuple[Any, Any]:
        """Return Z1 and room for dZ1, which is Z1 itself unless they come and go as halves."""
        if not self.head.halves:
            Z = gpu.put(self.Z1)
            return Z, Z
        high, low = np.round(255 * self.Z1), self.Z1 * np.float32(255)
        Z = np.concatenate([high, 2048 * (low - high)], axis=1)
        return gpu.put(Z), gpu.unwritten(Z.shape, dtype=np.float16)

    def joined(self, dZ: Any) -> Any:
        if not self.head.halves:
            return dZ
        h = self.head.hidden
        return dZ[:, :h].astype(np.float32) + dZ[:, h:].astype(np.float32) / np.float32(2048)

    def check(self, gpu: Gpu, blocks: int) -> None:
        dZ1, gradients, totals = gpu.in_every_order(lambda: self.run(gpu, blocks))
        assert_close(dZ1, self.dZ1, "float")
        assert_close(gradients.sum(axis=0), self.gradients, "float")
        assert_close(totals.sum(), self.losses.sum(), "float")


# no rows; less than a tile; exactly one; a row more; more tiles than blocks
@pytest.mark.parametrize("rows", [0, 1, 64, 65, 333])
@each_activation
def test_fused_head(activation: str, rows: int, gpu: Gpu, rng: Any) -> None:
    HeadProblem(FusedHead(36, 10, 64), activation, rows, rng).check(gpu, blocks=3)


HEADS = [
    FusedHead(4, 2, 32),
    FusedHead(4, 2, 64),
    FusedHead(32, 5, 32),
    FusedHead(196, 10, 64),
    FusedHead(196, 10, 32),
    FusedHead(256, 16, 64),
    FusedHead(196, 10, 64, halves=True),
    FusedHead(36, 3, 32, halves=True),
]


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_fused_head_of_other_widths(head: FusedHead, gpu: Gpu, rng: Any) -> None:
    HeadProblem(head, "sigmoid", 150, rng).check(gpu, blocks=2)


def test_a_nan_reaches_the_loss_of_a_fused_head(gpu: Gpu, rng: Any) -> None:
    problem = HeadProblem(FusedHead(4, 2, 32), "tanh", 40, rng)
    problem.Z1[35, 1] = np.nan
    dZ1, gradients, totals = gpu.in_every_order(lambda: problem.run(gpu, 2))
    assert np.isnan(totals).tolist() == [False, True]  # the second tile of 32 rows
    assert np.isnan(dZ1).any(axis=1).nonzero()[0].tolist() == [35]
    assert np.isnan(gradients).any(axis=1).tolist() == [False, True]


def test_huge_logits_of_a_fused_head_have_a_finite_loss(gpu: Gpu, rng: Any) -> None:
    problem = HeadProblem(FusedHead(4, 3, 32), "identity", 40, rng)
    for name in ("Z1", "W2"):
        setattr(problem, name, getattr(problem, name) * np.float32(1e3))
    dZ1, _, totals = gpu.in_every_order(lambda: problem.run(gpu, 2))
    Z = problem.Z1.astype(np.float64) + problem.b1
    losses, dZ2 = GENERIC.loss("softmax_cross_entropy", Z @ problem.W2.astype(float) + problem.b2, problem.y)
    assert_close(totals.sum(), losses.sum(), "float")
    assert_close(dZ1, dZ2 @ problem.W2.T, "float")


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_host_and_device_agree_on_the_size_of_a_block(head: FusedHead, gpu: Gpu) -> None:
    claim = f"static_assert(sizeof(Shared) == {head.shared_bytes} && THREADS == {head.threads});"
    options = "-std=c++17", "-DACTIVATION=tanh", *(f"-D{name}={value}" for name, value in head.macros.items())
    gpu.cp.RawKernel(source("fused_head") + claim, "fused_head", options).compile()
    wrong = claim.replace(str(head.shared_bytes), str(head.shared_bytes - 16))
    with pytest.raises(gpu.cp.cuda.compiler.CompileException, match="static"):
        gpu.cp.RawKernel(source("fused_head") + wrong, "fused_head", options).compile()


# ----------------------------------------------------------------------------------------------------------------------
# optimizers.cu


class UpdateProblem:
    """A parameter vector in four ranges, two of them biases, with gradients of 3, 40 and 1 shards in three buffers."""

    LENGTHS = (5, 300, 7, 211)
    SHARDS = (3, 3, 40, 1)
    ROWS = 50

    def __init__(self, real: str, gpu: Gpu, rng: np.random.Generator) -> None:
        self.gpu, self.real, self.dtype = gpu, real, REALS[real]
        self.parameters = sum(self.LENGTHS)
        self.is_bias = np.repeat([True, False, True, False], self.LENGTHS)
        self.theta = rng.standard_normal(self.parameters).astype(self.dtype)
        layer = rng.standard_normal((3, 305 + 2))  # of two ranges, with a gap between shards
        self.parts = [
            x.astype(self.dtype) for x in (layer, rng.standard_normal((40, 7)), rng.standard_normal((1, 211)))
        ]
        self.on_device = gpu.put(*self.parts)
        layer_address, *addresses = (part.data.ptr for part in self.on_device)
        ranges = np.zeros(4, RANGE)
        ranges["end"] = np.cumsum(self.LENGTHS)
        ranges["gradient"] = [layer_address, layer_address + 5 * self.theta.itemsize, *addresses]
        ranges["stride"] = [307, 307, 7, 211]
        ranges["shards"] = self.SHARDS
        ranges["is_bias"] = [1, 0, 1, 0]
        self.ranges = gpu.put(ranges.view(np.uint8))

    def launch(self, name: str, block: tuple[int, int], *arguments: Any) -> None:
        """Start an update with a thread for each parameter."""
        grid = -(-self.parameters // block[0])
        self.gpu.launch(Kernel("optimizers", name, block=block), grid, *arguments, real=self.real)

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
def test_sgd(real: str, optimizer: SGD, block: tuple[int, int], gpu: Gpu, rng: Any) -> None:
    problem = UpdateProblem(real, gpu, rng)

    def run() -> tuple[Any, ...]:
        theta, velocity = gpu.put(problem.theta, np.zeros_like(problem.theta))
        gradient = gpu.unwritten(theta.shape, dtype=theta.dtype)
        for rates in RATES:
            problem.launch(
                "sgd", block, theta, velocity if optimizer.momentum else None, gradient, problem.ranges,
                gpu.put(np.array(rates, problem.dtype)), problem.parameters, 1 / problem.ROWS, float(optimizer.l2),
                float(optimizer.momentum), optimizer.nesterov,
            )  # fmt: skip
        return theta, gradient

    for got, want in zip(gpu.in_every_order(run), problem.want(optimizer), strict=True):
        assert_close(got, want, real)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("optimizer", [Adam(), Adam(l2=0.1), AdamW(weight_decay=0.1)], ids=str)
@each_real
def test_adam(real: str, optimizer: Adam, block: tuple[int, int], gpu: Gpu, rng: Any) -> None:
    problem = UpdateProblem(real, gpu, rng)

    def run() -> tuple[Any, ...]:
        theta, mean, square = gpu.put(problem.theta, *np.zeros((2, problem.parameters), problem.dtype))
        gradient = gpu.unwritten(theta.shape, dtype=theta.dtype)
        for step, rates in enumerate(RATES):
            problem.launch(
                "adam", block, theta, mean, square, gradient, problem.ranges, gpu.put(np.array(rates, problem.dtype)),
                gpu.put(np.array([step], np.int32)), problem.parameters, 1 / problem.ROWS, float(optimizer.l2),
                float(optimizer.weight_decay), 1 - optimizer.beta1, 1 - optimizer.beta2, optimizer.epsilon,
            )  # fmt: skip
        return theta, gradient

    for got, want in zip(gpu.in_every_order(run), problem.want(optimizer), strict=True):
        assert_close(got, want, real)


@each_real
def test_squared_weights_leave_out_biases(real: str, gpu: Gpu, rng: Any) -> None:
    problem = UpdateProblem(real, gpu, rng)

    def run() -> tuple[Any, ...]:
        totals = gpu.unwritten(2, dtype=problem.dtype)
        arguments = gpu.put(problem.theta), problem.ranges, totals, problem.parameters, 0.5
        gpu.launch(Kernel("optimizers", "squared_weights"), 2, *arguments, real=real)
        return (totals,)

    (totals,) = gpu.in_every_order(run)
    weights = problem.theta[~problem.is_bias].astype(np.float64)
    assert_close(totals.sum(), 0.5 * weights @ weights, real)


@pytest.mark.parametrize("shards", [0, 1, 3, 40])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("accumulate", [False, True])
@each_real
def test_add_shards(real: str, accumulate: bool, block: tuple[int, int], shards: int, gpu: Gpu, rng: Any) -> None:
    parts, before = rng.standard_normal((shards, 500)).astype(REALS[real]), rng.standard_normal(300).astype(REALS[real])
    on_device = gpu.put(parts)[:, 7:]

    def run() -> tuple[Any, ...]:
        into = gpu.put(before)
        kernel = Kernel("optimizers", "add_shards", block=block)
        gpu.launch(kernel, -(-300 // block[0]), into, on_device, 500, shards, 300, accumulate, real=real)
        return (into,)

    (into,) = gpu.in_every_order(run)
    assert_close(into, parts[:, 7:307].astype(np.float64).sum(axis=0) + accumulate * before, real)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@each_real
def test_collect_adds_up_every_range(real: str, block: tuple[int, int], gpu: Gpu, rng: Any) -> None:
    problem = UpdateProblem(real, gpu, rng)

    def run() -> tuple[Any, ...]:
        into = gpu.unwritten(problem.parameters, dtype=problem.dtype)
        problem.launch("collect", block, into, problem.ranges, np.int32(problem.parameters))
        return (into,)

    (into,) = gpu.in_every_order(run)
    assert_close(into, problem.gradient() * problem.ROWS, real)


@each_real
def test_tick_counts_and_begins_each_epoch_anew(real: str, gpu: Gpu, rng: Any) -> None:
    totals = rng.standard_normal((5, 700)).astype(REALS[real])

    def run() -> tuple[Any, ...]:
        step, total, history = gpu.put(np.array([7, 0], np.int32)), gpu.unwritten(1, dtype=np.float64), []
        for sums in totals:
            gpu.launch(Kernel("optimizers", "tick"), 1, step, gpu.put(sums), len(sums), total, 3, real=real)
            history.append(float(total[0]))
        return np.array(history), step

    history, step = gpu.in_every_order(run)
    assert step.tolist() == [7 + 5, 5 % 3]
    sums = totals.astype(np.float64).sum(axis=1)
    assert_close(history, np.array([sums[0], sums[:2].sum(), sums[:3].sum(), sums[3], sums[3:].sum()]), real)


def test_the_losses_of_many_updates_lose_no_digits(gpu: Gpu) -> None:
    """A float would lose 1e-6 of them after 2,000 updates of the same loss, and 5e-4 after 200,000."""
    loss, step, total = gpu.put(np.array([np.log(2)], np.float32), np.zeros(2, np.int32), np.zeros(1))
    updates = 2_000
    for _ in range(updates):
        gpu.launch(Kernel("optimizers", "tick"), 1, step, loss, 1, total, updates)
    assert step.tolist() == [updates, 0]
    assert float(total[0]) / updates == pytest.approx(float(loss[0]), rel=1e-12)


# ----------------------------------------------------------------------------------------------------------------------
# batch.cu, halves.cu


@pytest.mark.parametrize("columns", [12, 10, 7, 1028])
@pytest.mark.parametrize(("data", "entry"), [("byte", "REAL"), ("byte", "half_bits"), ("REAL", "REAL")])
@pytest.mark.parametrize(("target", "width"), [("int", 1), ("REAL", 3)])
@pytest.mark.parametrize("ordered", [False, True])
def test_gather(
    ordered: bool, target: str, width: int, data: str, entry: str, columns: int, gpu: Gpu, rng: Any
) -> None:
    """Rows 2 to 6 of the second batch of 10; then the last rows of all, without targets."""
    kernel = Kernel("batch", "gather", (("INPUT", data), ("ENTRY", entry), ("TARGET", target)))
    X = rng.integers(0, 256, (40, columns)).astype({"byte": np.uint8, "REAL": np.float32}[data])
    y = rng.integers(0, 9, (40, width)).astype({"int": np.int32, "REAL": np.float32}[target])
    order = rng.permutation(40).astype(np.int32) if ordered else np.arange(40)
    given, step = gpu.put(order) if ordered else None, gpu.put(np.array([7, 1], np.int32))
    on_device = gpu.put(X)

    def run() -> tuple[Any, ...]:
        A = gpu.unwritten((5, columns), dtype={"half_bits": np.float16, "REAL": np.float32}[entry])
        T, last = gpu.cp.full((5, width), -1, y.dtype), gpu.cp.copy(A)
        gpu.launch(kernel, 2, on_device, gpu.put(y), given, step, A, T, 10, 2, 5, columns, width)
        gpu.launch(kernel, 2, on_device, None, given, None, last, None, 10, 35, 5, columns, 0)
        return A, T, last

    A, T, last = gpu.in_every_order(run)
    scale = np.float32(1 / 255) if (data, entry) == ("byte", "REAL") else np.float32(1)
    np.testing.assert_array_equal(A, X[order[12:17]] * scale)
    np.testing.assert_array_equal(T, y[order[12:17]])
    np.testing.assert_array_equal(last, X[order[35:]] * scale)


def test_halves_have_22_bits(gpu: Gpu, rng: Any) -> None:
    x = (rng.standard_normal((50, 300)) * 10.0 ** rng.uniform(-9, 4, (50, 300))).astype(np.float32)

    def split() -> tuple[Any, ...]:
        halves = gpu.unwritten((50, 600), dtype=np.float16)
        gpu.launch(Kernel("halves", "split_matrix"), 3, gpu.put(x), halves, 50, 300)
        return (halves,)

    high, low = np.split(gpu.in_every_order(split)[0].astype(np.float64), 2, axis=1)
    assert (np.abs(high + low / 2048 - x) <= np.maximum(2.0**-22 * np.abs(x), 2.0**-36)).all()
    np.testing.assert_array_equal(high, x.astype(np.float16))  # rounded to the nearest


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (50, 300)], ids=str)
def test_products_are_joined(shape: tuple[int, int], accumulate: bool, gpu: Gpu, rng: Any) -> None:
    rows, columns = shape
    products = 255 * rng.standard_normal((rows, 2 * columns)).astype(np.float32)
    before = np.ones(shape, np.float32) if accumulate else np.full(shape, np.nan, np.float32)

    def join() -> tuple[Any, ...]:
        Z = gpu.put(before)
        gpu.launch(Kernel("halves", "join_products"), 3, gpu.put(products), Z, rows, columns, accumulate)
        return (Z,)

    high, low = np.split(products.astype(np.float64), 2, axis=1)
    assert_close(gpu.in_every_order(join)[0], (high + low / 2048) / 255 + accumulate, "float")


def test_products_of_pixels_by_halves_are_as_exact_as_in_float32(gpu: Gpu, rng: Any) -> None:
    """What the tensor cores do: products of float16, which are exact, added up in float32."""
    P = (rng.random((500, 784)) < 0.2) * rng.integers(1, 256, (500, 784))
    W = (rng.standard_normal((784, 196)) / 28).astype(np.float32)
    halves, Z = gpu.unwritten((784, 392), dtype=np.float16), gpu.unwritten((500, 196), dtype=np.float32)
    gpu.launch(Kernel("halves", "split_matrix"), 3, gpu.put(W), halves, *W.shape)
    products = P.astype(np.float32) @ halves.get().astype(np.float32)
    gpu.launch(Kernel("halves", "join_products"), 3, gpu.put(products), Z, *Z.shape, 0)
    want = (P / 255) @ W.astype(np.float64)

    def error(got: Array) -> float:
        return float(np.linalg.norm(got - want) / np.linalg.norm(want))

    assert error(Z.get()) < 3e-7
    assert error(Z.get()) < 2 * error((P / 255).astype(np.float32) @ W)
    single = P.astype(np.float32) @ halves[:, :196].get().astype(np.float32) / 255
    assert error(single) > 1e-4  # a single half is not enough


# ----------------------------------------------------------------------------------------------------------------------
# Without any one of its barriers a kernel fails its test above: they would notice a missing one.

CHECKS: dict[str, list[Callable[[Gpu, Any], None]]] = {
    "fused_head": [lambda gpu, rng: HeadProblem(FusedHead(36, 3, 32), "sigmoid", 100, rng).check(gpu, 2)],
    "activation": [lambda gpu, rng: test_activation_gradient("tanh", "float", (37, 10), gpu, rng)],
    "optimizers": [
        lambda gpu, rng: test_add_shards("float", False, (32, 8), 40, gpu, rng),
        lambda gpu, rng: test_squared_weights_leave_out_biases("float", gpu, rng),
        lambda gpu, rng: test_tick_counts_and_begins_each_epoch_anew("float", gpu, rng),
    ],
    "losses": [lambda gpu, rng: test_loss("sigmoid_cross_entropy", "float", 1.0, (1700, 1), gpu, rng)],
    "softmax_cross_entropy": [lambda gpu, rng: test_softmax_cross_entropy("float", 1, 0, (77, 10), gpu, rng)],
}


BARRIERS = [(name, k) for name in CHECKS for k in range(source(name).count(BARRIER))]
BETWEEN_BLOCKS = [("activation", 1), ("activation", 2)]  # around the ticket: an emulated GPU has one block at a time


@pytest.mark.parametrize(("name", "k"), [barrier for barrier in BARRIERS if barrier not in BETWEEN_BLOCKS])
def test_kernels_need_their_barriers(name: str, k: int, emulated: Any, gpu: Gpu, rng: Any, monkeypatch: Any) -> None:
    without_barrier(name, k, monkeypatch)
    with pytest.raises(AssertionError):
        [check(gpu, rng) for check in CHECKS[name]]
