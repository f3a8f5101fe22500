"""The functions of the compiled library, one by one: how exact they are, and what they do at the ends of the range."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from mlp_xp.dropout import Dropout
from mlp_xp.kernels.cpu import compiled
from mlp_xp.kernels.functions import ACTIVATIONS, LOSSES

from . import compiled_cases as cases

pytestmark = [
    pytest.mark.skipif(compiled.library() is None, reason="needs the compiled library"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs the compiler gcc"),
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="needs x86-64"),
]
KINDS = [(real, name) for real in ("float32", "float64") for name in ("base", "v3", "v4")]
MOST_ULP = {"exp": 1.1, "sigmoid": 2.6, "tanh": 1.4}  # the most of 8 million: 1.02, 2.44 and 1.33, in float32
LONG = np.longdouble
EXACT = {"exp": np.exp, "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "tanh": np.tanh}


class Functions:
    """The functions on arrays of one dtype."""

    def __init__(self, path: Path, dtype: str) -> None:
        self.library, self.dtype = ctypes.CDLL(str(path)), np.dtype(dtype)
        self.real = ctypes.c_float if dtype == "float32" else ctypes.c_double
        self.library.sum_of_losses.restype = ctypes.c_double

    def value(self, name, x):
        z = np.array(x, self.dtype)
        at, size = ctypes.c_void_p(z.ctypes.data), ctypes.c_int64(z.size)
        if name == "exp":
            self.library.exponential(at, size)
        else:
            self.library.activation(compiled.FUNCTIONS[name], at, size)
        return z

    def gradient(self, name, d, a):
        d, a = d.astype(self.dtype), np.ascontiguousarray(a, self.dtype)
        pointers = (ctypes.c_void_p(v.ctypes.data) for v in (d, a))
        self.library.derivative(compiled.FUNCTIONS[name], *pointers, ctypes.c_int64(d.size))
        return d

    def thinned(self, A, dropout, keys, samples):
        """(m, k) -> (m, k): what dropout leaves of layer 1."""
        A, H = np.ascontiguousarray(A, self.dtype), np.full(np.shape(A), np.nan, self.dtype)
        for row, sample in enumerate(samples):
            key, a, h = (ctypes.c_void_p(v.ctypes.data) for v in (keys[1:], A[row:], H[row:]))
            rate = ctypes.c_uint32(int(dropout.thresholds[1])), self.real(dropout.factors[1])
            self.library.thinned(key, ctypes.c_int64(int(sample)), *rate, a, h, ctypes.c_int64(A.shape[1]))
        return H

    def loss(self, name, A, y, scale=1.0):
        """(m, k), targets -> the sum of losses, and dA (m, k); rows are filled up, and filled with zeros."""
        (m, k), row = np.shape(A), 64 // self.dtype.itemsize
        padded = np.full((m, -(-k // row) * row), 0.5, self.dtype)  # what an activation leaves there
        padded[:, :k] = A
        y = np.ascontiguousarray(y, np.int32 if np.ndim(y) == 1 else self.dtype)
        pointers = (ctypes.c_void_p(v.ctypes.data) for v in (padded, y))
        sizes = map(ctypes.c_int64, (m, k, padded.shape[1]))
        total = self.library.sum_of_losses(compiled.FUNCTIONS[name], *pointers, *sizes, self.real(scale))
        assert not padded[:, k:].any()
        return total, padded[:, :k]


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def functions(request, tmp_path_factory):
    dtype, instructions = request.param
    if instructions > compiled.library().instructions:  # "base" < "v3" < "v4"
        pytest.skip(f"needs a processor with {instructions}")
    build, path = cases.build(), tmp_path_factory.mktemp("functions") / "functions.so"
    flags = [*build.FLAGS, *build.X86[instructions].split(), f"-DREAL={build.REALS[dtype]}", f"-I{cases.REPLAY}"]
    source = cases.ROOT / "tests/compiled_functions.c"
    subprocess.run(["gcc", *flags, "-Werror", "-shared", str(source), "-o", str(path), "-lm"], check=True)
    return Functions(path, dtype)


@pytest.mark.parametrize("rate", [1e-10, 0.1, 0.5, 0.9, 1 - 1e-12])
def test_dropout_is_numpys_bit_for_bit(functions, rate, rng):
    units = int(rng.integers(1, 300))
    dropout = Dropout((0.0, rate, 0.0), (1, units, 1), int(rng.integers(2**31)))
    keys = dropout.keys(int(rng.integers(1, 2**31)))
    samples = np.concatenate([[0, 2**31, 2**32 - 1, 2**32, 2**63 - 1], rng.integers(0, 2**63, 20)])
    A = rng.standard_normal((len(samples), units)).astype(functions.dtype)
    D = dropout.of_rows(keys, samples, functions.dtype.name)[1]
    assert_array_equal(functions.thinned(A, dropout, keys, samples), A * D)


def arguments(rng, dtype):
    """Return numbers of all sizes that functions do not clamp."""
    low, high = (-87, 88) if dtype == np.float32 else (-708, 709)
    tiny = np.exp(rng.uniform(low, 3, 50_000)) * rng.choice([-1, 1], 50_000)
    parts = [rng.uniform(low, high, 100_000), rng.uniform(-2, 2, 100_000), rng.uniform(-30, 30, 100_000), tiny]
    return np.concatenate([*parts, [low, high, 0.625, np.nextafter(0.625, 0), 0.0]]).astype(dtype)


@pytest.mark.parametrize("name", MOST_ULP)
def test_values_are_exact_to_some_units_in_the_last_place(name, functions, rng):
    x = arguments(rng, functions.dtype)
    want = EXACT[name](x.astype(LONG))
    unit = np.spacing(np.abs(want).astype(functions.dtype)).astype(LONG)
    error = np.abs(functions.value(name, x).astype(LONG) - want) / unit
    assert error.max() <= MOST_ULP[name], x[error.argmax()]


def test_the_ends_of_the_range(functions):
    info = np.finfo(functions.dtype)
    high = [info.max, np.inf, 1e30, 800.0]
    assert_array_equal(functions.value("sigmoid", high), 1)
    assert_array_equal(functions.value("tanh", high), 1)
    low = -np.array(high, functions.dtype)
    assert_array_equal(functions.value("tanh", low), -1)
    for name in ("sigmoid", "exp"):  # clamped: not zero, yet no more than the smallest normal number or two
        small = functions.value(name, low)
        assert ((small >= 0) & (small <= 2 * info.tiny)).all()
    assert np.isfinite(functions.value("exp", high)).all()
    assert_array_equal(functions.value("sigmoid", [0.0, -0.0, info.smallest_subnormal]), 0.5)
    assert_array_equal(functions.value("tanh", [info.tiny, -info.tiny]), [info.tiny, -info.tiny])


@pytest.mark.parametrize("n", [1, 7, 8, 33])
@pytest.mark.parametrize("name", ["exp", "sigmoid", "tanh", "relu", "leaky_relu"])
def test_nan_comes_out_as_nan_and_only_there(name, n, functions):
    for at in range(n):
        x = np.linspace(-2, 2, n)
        x[at] = np.nan
        assert_array_equal(np.isnan(functions.value(name, x)), np.isnan(x))


@pytest.mark.parametrize("n", [1, 7, 33])
def test_tanh_of_zero_keeps_its_sign(n, functions):
    A = functions.value("tanh", np.full(n, -0.0))
    assert_array_equal(A, 0)
    assert np.signbit(A).all()
    assert not np.signbit(functions.value("tanh", np.zeros(n))).any()


@pytest.mark.parametrize("name", ["relu", "leaky_relu"])
def test_kinked_functions_have_the_bits_of_their_formulas(name, functions, rng):
    info = np.finfo(functions.dtype)
    Z = np.concatenate([rng.standard_normal(1000), [0.0, -0.0, info.max, info.min, np.inf, -np.inf, -1e-30]])
    Z = Z.astype(functions.dtype)
    A, d = functions.value(name, Z), rng.standard_normal(len(Z)).astype(functions.dtype)
    want = ACTIVATIONS[name].value(np, Z)
    assert_array_equal(A, want)
    assert_array_equal(np.signbit(A), np.signbit(want))
    assert_array_equal(functions.gradient(name, d, A), ACTIVATIONS[name].gradient(np, d, A))


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_slopes_of_smooth_functions(name, functions, rng):
    A, d = rng.uniform(0, 1, 1000).astype(functions.dtype), rng.standard_normal(1000).astype(functions.dtype)
    want = ACTIVATIONS[name].gradient(np, d.astype(LONG), A.astype(LONG))
    eps = np.finfo(functions.dtype).eps
    np.testing.assert_allclose(functions.gradient(name, d, A), want.astype(functions.dtype), rtol=2 * eps, atol=eps)


def drawn(rng, name, m, k):
    return rng.integers(0, k, m) if name.startswith("softmax") else rng.integers(0, 2, (m, k))


# beyond, a unit in the last place of s, or of e^A, is more of the loss than a few units in its last place
NO_LARGER = {"sigmoid_log_loss": 1.0, "poisson_deviance": 1.0}
SIZES = [(name, size) for name in LOSSES for size in (1e-3, 1.0, 30.0, 1e4) if size <= NO_LARGER.get(name, 1e4)]


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_losses_and_their_slopes(name, size, functions, rng):
    eps = np.finfo(functions.dtype).eps
    exact = (
        functions.dtype if name.endswith("log_loss") else LONG
    )  # where it cuts probabilities off, it is by the dtype
    for m, k in ((1, 2), (3, 7), (5, 16), (4, 17), (2, 70)):
        A, y = (size * rng.standard_normal((m, k))).astype(functions.dtype), drawn(rng, name, m, k)
        losses, dA = LOSSES[name].formula(np, A.astype(exact), y if y.ndim == 1 else y.astype(exact))
        for scale in (1.0, -0.25):
            total, slope = functions.loss(name, A, y, scale)
            # Poisson's is a difference of numbers of the size of 1
            largest = max(np.abs(losses).sum(), np.abs(A).max(), name == "poisson_deviance")
            assert abs(total - losses.sum()) <= 8 * k**0.5 * eps * largest, (m, k)
            assert np.abs(slope - scale * dA).max() <= 4 * k**0.5 * eps * max(np.abs(dA).max(), 1), (m, k)


@pytest.mark.parametrize("k", [2, 8, 10, 16, 19])
def test_labels_at_both_ends_and_huge_logits(k, functions):
    for label in (0, k - 1):
        A = np.zeros((1, k))
        A[0, label] = 1e30
        total, slope = functions.loss("softmax_cross_entropy", A, np.array([label]))
        assert total == 0
        assert np.abs(slope).max() < 1e-37
        total, slope = functions.loss("softmax_cross_entropy", -A, np.array([label]))
        assert total == pytest.approx(1e30, rel=1e-6)
        assert slope[0, label] == -1
        assert slope.sum() == pytest.approx(0, abs=1e-6)


def test_huge_outputs_of_the_other_losses(functions):
    total, slope = functions.loss("sigmoid_cross_entropy", [[1e30, -1e30, 1e30, -1e30]], np.array([[1, 0, 0, 1]]))
    assert total == pytest.approx(2e30, rel=1e-6)
    assert_array_equal(slope.round(30), [[0, 0, 1, -1]])
    total, slope = functions.loss("perceptron_criterion", [[0.0, -0.0, 2.0, 2.0]], np.array([[0, 1, 1, 0]]))
    assert total == 2  # a point on the line counts as wrong
    assert_array_equal(slope, [[1, -1, 0, 1]])


def test_robust_losses_at_their_kinks_and_far_away(functions):
    A, y = [[3.0, 2.0, 1.5, 4.0, -1e30]], np.array([[2.0, 2.0, 2.0, 2.0, 1e30]])
    for name, near, want in (("absolute_error", 3.5, [1, 0, -1, 1, -1]), ("huber", 2.125, [1, 0, -0.5, 1, -1])):
        total, slope = functions.loss(name, A, y)
        assert total == pytest.approx(2e30, rel=1e-6)
        assert_array_equal(slope, [want])
        total, _ = functions.loss(name, [A[0][:4]], y[:, :4])
        assert total == near


def test_reported_probabilities_are_cut_off_and_slopes_are_not(functions):
    eps = np.finfo(functions.dtype).eps
    for size in (60.0, 1e4, 1e30):
        total, slope = functions.loss("sigmoid_log_loss", [[size, -size, size, -size]], np.array([[1, 0, 0, 1]]))
        assert total == pytest.approx(-2 * np.log(eps) - 2 * np.log1p(-eps), rel=1e-6)
        assert_array_equal(slope.round(12), [[0, 0, 1, -1]])
        total, slope = functions.loss("softmax_log_loss", [[0.0, size, 0.0]], np.array([0]))
        assert total == pytest.approx(-np.log(eps), rel=1e-6)
        assert_array_equal(slope.round(12), [[-1, 1, 0]])
        total, _ = functions.loss("softmax_log_loss", [[0.0, size, 0.0]], np.array([1]))
        assert total == pytest.approx(eps, rel=1e-3)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("at", [0, 4, 16])
def test_a_loss_of_nan_is_nan(name, at, functions, rng):
    A = rng.standard_normal((2, 17))
    A[1, at] = np.nan
    total, _ = functions.loss(name, A, drawn(rng, name, 2, 17))
    assert np.isnan(total)
