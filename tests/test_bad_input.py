"""What does not fit is refused in one sentence that says what came and what is allowed, and changes nothing."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

import mlp_xp as mx

X = np.zeros((4, 3))
Y = [0, 1, 2, 1]
NOT_FINITE = "X holds NaN or infinity; clean or impute"


def with_one(value):
    spoilt = X.copy()
    spoilt[3, 2] = value
    return spoilt


FEATURES = {
    "narrow": (X[:, :2], r"X must have the shape \(n, 3\) with n >= 1, got \(4, 2\)"),
    "wide": (np.zeros((4, 5)), r"\(n, 3\) with n >= 1, got \(4, 5\)"),
    "empty": (X[:0], r"\(n, 3\) with n >= 1, got \(0, 3\)"),
    "empty list": ([], r"\(n, 3\) with n >= 1, got \(0,\)"),
    "one row as a vector": (X[0], r"\(n, 3\) with n >= 1, got \(3,\); pass X\[None, :\] if this is one row"),
    "a number": (1.0, r"\(n, 3\) with n >= 1, got \(\)"),
    "images": (np.zeros((4, 3, 1)), r"\(n, 3\) with n >= 1, got \(4, 3, 1\); pass X\.reshape\(len\(X\), -1\)"),
    "other images": (np.zeros((4, 3, 2)), r"\(n, 3\) with n >= 1, got \(4, 3, 2\)$"),
    "ragged": ([[1, 2, 3], [1, 2]], "X is not a rectangular array of numbers"),
    "NaN": (with_one(np.nan), NOT_FINITE),
    "infinity": (with_one(-np.inf), NOT_FINITE),
    "too large for float32": (
        with_one(-1e300),
        r"X holds values up to 1e\+300 in size, which do not fit float32; scale",
    ),
    "complex": (X.astype(complex), "X must hold real numbers, got dtype complex128"),
    "objects that are no numbers": (
        X.astype(object) + 1j,
        "got dtype object with values of type complex.*; fill in or leave out missing values, and encode anything else",
    ),
    "a number as large as no float": ([[10**400, 0, 0]] * 4, "X holds a number that is too large"),
    "missing": ([[1, 2, None]] * 4, "X must hold real numbers, got dtype object with values of type NoneType"),
    "a masked entry": (
        np.ma.masked_equal(with_one(7), 7),
        "X has masked entries; fill them in, or leave their rows out",
    ),
    "masked rows": ([np.ma.masked_equal(row, 7) for row in with_one(7)], "X has masked entries"),
    "sparse": (sparse.csr_array(X), r"X is sparse, and all computations here are dense; pass X\.toarray\(\)"),
    "text": (X.astype(str), "X must hold real numbers, got dtype <U"),
    "dates": (X.astype("M8[s]"), "X must hold real numbers, got dtype datetime64"),
    "None": (None, r"got \(\)|must hold real numbers, got dtype object"),
}

LABELS = {
    "too few": ([0, 1, 2], r"X has 4 rows and y has the shape \(3,\); give one target per row"),
    "a number": (1, r"X has 4 rows and y has the shape \(\)"),
    "empty": ([], r"X has 4 rows and y has the shape \(0,\)"),
    "out of range": ([0, 1, 2, 3], "labels must lie between 0 and 2, got 0 to 3; are there 3 classes?"),
    "negative": ([0, 1, 2, -1], "labels must lie between 0 and 2, got -1 to 2"),
    "float": ([0.0, 1.0, 2.0, 1.0], r"must be whole numbers from 0 to 2, got dtype float64; .*y\.astype\(int\)"),
    "NaN": ([0, 1, np.nan, 1], "labels must be whole numbers from 0 to 2, got dtype float64"),
    "missing": ([0, 1, None, 1], "y must hold real numbers, got dtype object with values of type NoneType"),
    "a masked entry": (np.ma.masked_equal(Y, 2), "y has masked entries"),
    "a masked label": ([0, 1, np.ma.masked, 1], "y has masked entries"),
    "sparse": (sparse.csr_array(np.eye(3)[Y]), r"y is sparse.*pass y\.toarray\(\)"),
    "text": (["a", "b", "c", "b"], "y must hold real numbers, got dtype <U1"),
    "complex": (np.array(Y, complex), "y must hold real numbers, got dtype complex128"),
    "a column": (np.array(Y)[:, None], r"labels of shape \(n,\) or one-hot rows of shape \(n, 3\), got \(4, 1\)"),
    "one-hot of other classes": (np.eye(4)[Y], r"one-hot rows of shape \(n, 3\), got \(4, 4\)"),
    "two hot": (np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]), "each row a single 1 among zeros"),
    "none hot": (np.zeros((4, 3)), "each row a single 1 among zeros"),
    "soft": (np.full((4, 3), 1 / 3), "each row a single 1 among zeros"),
    "3-D": (np.zeros((4, 3, 1), int), r"one-hot rows of shape \(n, 3\), got \(4, 3, 1\)"),
    "ragged": ([[1, 0, 0], [1], [1], [1]], "y is not a rectangular array of numbers"),
}

VALUES = {
    "wrong units": (np.zeros((4, 2)), r"an output of 3 unit\(s\) needs y of shape \(4, 3\), got \(4, 2\)"),
    "a vector": (np.zeros(4), r"an output of 3 unit\(s\) needs y of shape \(4, 3\), got \(4,\)"),
    "NaN": (with_one(np.nan), "y holds NaN or infinity; targets must be finite numbers"),
    "infinity": (with_one(np.inf), "y holds NaN or infinity"),
    "too large for float32": (
        with_one(1e300),
        r"y holds values up to 1e\+300 in size, which do not fit float32; scale",
    ),
    "a masked entry": (np.ma.masked_equal(with_one(7), 7), "y has masked entries"),
}


def refuses(model, X, y, message):
    """Assert that every way in refuses these data, and leaves the model alone."""
    before = model.theta.copy()
    for call in (
        model.loss_and_gradient,
        model.evaluate,
        model.score,
        lambda X, y: mx.epochs(model, X, y),
        lambda X, y: mx.fit(model, X, y, epochs=1),
        lambda X, y: mx.fit(model, X, y, epochs=1, batch_size=2),
    ):
        with pytest.raises(ValueError, match=message):
            call(X, y)
    assert_array_equal(model.theta, before)


@pytest.mark.parametrize("case", FEATURES)
def test_features(case):
    bad, message = FEATURES[case]
    model = mx.MLP([3, 5, 3])
    refuses(model, bad, Y, message)
    for call in (model.predict, model.predict_proba, model.forward):
        with pytest.raises(ValueError, match=message):
            call(bad)


@pytest.mark.parametrize("output", ["softmax", "softmax_of_sigmoid"])
@pytest.mark.parametrize("case", LABELS)
def test_labels(case, output):
    bad, message = LABELS[case]
    refuses(mx.MLP([3, 5, 3], output=output), X, bad, message)


@pytest.mark.parametrize("output", ["sigmoid", "identity", "sigmoid_mse"])
@pytest.mark.parametrize("case", VALUES)
def test_values(case, output):
    bad, message = VALUES[case]
    refuses(mx.MLP([3, 5, 3], output=output), X, bad, message)


def test_yes_or_no_targets():
    half, wide = with_one(0.5), np.zeros((4, 2))
    refuses(mx.MLP([3, 3], output="sigmoid"), X, half, "need targets 0 or 1, got values from 0.0 to 0.5")
    refuses(mx.MLP([3, 1], output="sigmoid"), X, wide, r"needs y of shape \(4, 1\) or \(4,\), got \(4, 2\)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": [3]}, r"the units per layer.* as in \[784, 196, 10\]; got \[3\]"),
        ({"sizes": 3}, "the units per layer.*; got 3"),
        ({"sizes": "ab"}, "the units per layer.*; got 'ab'"),
        ({"sizes": [3, 0, 2]}, "a layer size must be a whole number of at least 1, got 0"),
        ({"sizes": [3, 2.5, 2]}, "a layer size must be a whole number of at least 1, got 2.5"),
        ({"sizes": [3, True, 2]}, "a layer size must be a whole number of at least 1, got True"),
        ({"activation": "swish"}, "unknown activation 'swish'; choose from 'sigmoid', 'tanh', .*, 'identity'"),
        ({"activation": 5}, "unknown activation 5; choose from"),
        ({"activation": ["tanh", "relu"]}, "got 2 activations for 1 hidden layer.*one per hidden layer"),
        ({"activation": ["selu"]}, "unknown activation 'selu'; choose from"),
        ({"output": "linear"}, "unknown output 'linear'; choose from 'softmax', 'sigmoid', 'identity'"),
        ({"output": ["softmax"]}, r"unknown output \['softmax'\]; choose from"),
        ({"sizes": [3, 4, 1]}, "output 'softmax' needs at least 2 output units.* got 1; use 'sigmoid' for two classes"),
        ({"init": "orthogonal"}, "unknown initializer 'orthogonal'; choose from .*xavier_normal"),
        ({"init": 0}, "unknown initializer 0; choose from"),
        ({"dtype": "float16"}, "unknown dtype 'float16'; choose from 'float32', 'float64'"),
        ({"dtype": "foo"}, "unknown dtype 'foo'; choose from"),
        ({"dtype": None}, "unknown dtype 'None'; choose from"),
        ({"dtype": np.int32}, "unknown dtype 'int32'; choose from"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"seed": 1.5}, "seed must be a whole number of at least 0, got 1.5"),
        ({"device": "tpu"}, "unknown device 'tpu'; choose from"),
    ],
)
def test_arguments_of_a_model(arguments, message):
    with pytest.raises(ValueError, match=message):
        mx.MLP(**{"sizes": [3, 4, 2], **arguments})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weights", [np.zeros((4, 3))], r"weights have the shapes \[\(4, 3\), \(2, 4\)\], got \[\(4, 3\)\]"),
        ("weights", [np.zeros((3, 4)), np.zeros((4, 2))], r"got \[\(3, 4\), \(4, 2\)\]"),
        ("weights", [np.full((4, 3), np.nan), np.zeros((2, 4))], "weights must be finite, got NaN, infinity or"),
        ("weights", [np.full((4, 3), 1e300), np.zeros((2, 4))], "weights must be finite.* beyond float32"),
        ("weights", ["a", "b"], r"weights\[0\] must hold real numbers, got dtype <U1"),
        ("weights", "ab", r"weights\[0\] must hold real numbers, got dtype <U1"),
        ("weights", 5, r"weights must be a list of arrays of shapes \[\(4, 3\), \(2, 4\)\], got 5"),
        ("weights", None, "weights must be a list of arrays .*, got None"),
        (
            "weights",
            [np.zeros((4, 3), complex), np.zeros((2, 4))],
            r"weights\[0\] must hold real numbers, got dtype comp",
        ),
        ("weights", [np.ma.masked_equal(np.zeros((4, 3)), 0), np.zeros((2, 4))], r"weights\[0\] has masked entries"),
        ("biases", [np.zeros(4), np.zeros(3)], r"biases have the shapes \[\(4,\), \(2,\)\], got \[\(4,\), \(3,\)\]"),
        ("biases", [np.zeros(4), [np.inf, 0]], "biases must be finite"),
        ("biases", [np.zeros(4), ["a", "b"]], r"biases\[1\] must hold real numbers, got dtype <U1"),
        (
            "theta",
            np.zeros(26),
            r"theta must have the shape \(26,\) and the dtype float32, got \(26,\) and float64; conv",
        ),
        ("theta", np.zeros(25, np.float32), r"theta must have the shape \(26,\) .*, got \(25,\) and float32"),
        ("theta", np.zeros((26, 1), np.float32), r"theta must have the shape \(26,\) .*, got \(26, 1\)"),
        ("theta", None, r"theta must have the shape \(26,\) .*, got \(\) and object"),
    ],
)
def test_assigned_parameters(name, value, message):
    model = mx.MLP([3, 4, 2])
    before = model.theta.copy()
    with pytest.raises(ValueError, match=message):
        setattr(model, name, value)
    assert_array_equal(model.theta, before)


# ----------------------------------------------------------------------------------------------------------------------
# What arrays carry besides their numbers: honored, or refused, never dropped

MASK = np.array([[0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]], bool)
NUMBERS = np.array([[1.0, 2, 0], [3, 0, 1], [0, 1, 1], [2, 2, 2]])


def torch_tensor(x):
    import torch

    return torch.asarray(x.tolist(), dtype=torch.int64 if x.dtype.kind in "iu" else torch.float64)


def jax_array(x):
    import jax.numpy

    return jax.numpy.asarray(x)


def cupy_array(x, order="C"):
    import cupy

    return cupy.array(x, order=order)


def cut_out(x):
    """Return a view of every other row, and of some columns, of a larger CuPy array."""
    return cupy_array(np.pad(np.repeat(x, 2, axis=0), [(1, 1)] * x.ndim))[(slice(1, -1, 2), slice(1, -1))[: x.ndim]]


def frame(x, dtype=None, gap=False):
    made = pd.DataFrame(x) if x.ndim == 2 else pd.Series(x)
    made = made.convert_dtypes() if dtype is None else made.astype(dtype)
    if gap:
        made.iloc[0] = pd.NA
    return made


KINDS = {  # what is made of an array of numbers, and the device of the model
    "array": ("cpu", lambda x: x),
    "list": ("cpu", lambda x: x.tolist()),
    "tuple of arrays": ("cpu", tuple),
    "Fortran order": ("cpu", np.asfortranarray),
    "big-endian": ("cpu", lambda x: x.astype(x.dtype.newbyteorder(">"))),
    "read-only": ("cpu", lambda x: np.broadcast_to(x, x.shape)),
    "strided": ("cpu", lambda x: np.repeat(x, 2, axis=0)[::2]),
    "matrix": ("cpu", lambda x: np.matrix(x) if x.ndim == 2 else x),
    "float16": ("cpu", lambda x: x.astype(np.float16) if x.dtype.kind == "f" else x),
    "longdouble": ("cpu", lambda x: x.astype(np.longdouble) if x.dtype.kind == "f" else x),
    "int8": ("cpu", lambda x: x.astype(np.int8)),
    "uint64": ("cpu", lambda x: x.astype(np.uint64)),
    "objects": ("cpu", lambda x: x.astype(object)),
    "objects of two types": ("cpu", lambda x: np.where(x == 1, True, x.astype(object))),
    "NumPy's objects": ("cpu", lambda x: np.frompyfunc(np.float32 if x.dtype.kind == "f" else np.int8, 1, 1)(x)),
    "masked, with nothing masked": ("cpu", lambda x: np.ma.masked_array(x, mask=False)),
    "masked": ("cpu", lambda x: np.ma.masked_array(x, mask=MASK if x.ndim == 2 else MASK[:, 2])),
    "masked rows": ("cpu", lambda x: [np.ma.masked_array(row, mask=i == 1) for i, row in enumerate(x)]),
    "structured": ("cpu", lambda x: x.astype([("a", x.dtype)])),
    "complex": ("cpu", lambda x: x + 1j),
    "complex without imaginary part": ("cpu", lambda x: x + 0j),
    "text": ("cpu", lambda x: x.astype(str)),
    "bytes": ("cpu", lambda x: x.astype("S")),
    "objects of text": ("cpu", lambda x: x.astype(str).astype(object)),
    "dates": ("cpu", lambda x: x.astype("M8[s]")),
    "durations": ("cpu", lambda x: x.astype("m8[s]")),
    "None": ("cpu", lambda x: None),
    "a generator": ("cpu", iter),
    "a dict": ("cpu", lambda x: {"X": x}),
    "a function": ("cpu", lambda x: len),
    "sparse": ("cpu", lambda x: sparse.csr_array(np.atleast_2d(x))),
    "nullable table": ("cpu", frame),
    "nullable floats": ("cpu", lambda x: frame(x, "Float64")),
    "nullable bools": ("cpu", lambda x: frame(x != 0, "boolean")),
    "nullable table with gaps": ("cpu", lambda x: frame(x, gap=True)),
    "nullable floats with gaps": ("cpu", lambda x: frame(x, "Float64", gap=True)),
    "table of two types": ("cpu", lambda x: frame(x, "float64").assign(last=True) if x.ndim == 2 else frame(x, int)),
    "categories": ("cpu", lambda x: frame(x, "category")),
    "torch": ("torch", torch_tensor),
    "torch, on NumPy": ("cpu", torch_tensor),
    "torch with a graph": ("torch", lambda x: torch_tensor(x).requires_grad_(x.dtype.kind == "f") * 1),
    "torch bfloat16": ("torch", lambda x: torch_tensor(x).bfloat16()),
    "torch half": ("torch", lambda x: torch_tensor(x).half()),
    "torch complex": ("torch", lambda x: torch_tensor(x) + 1j),
    "torch sparse": ("torch", lambda x: torch_tensor(x).to_sparse()),
    "torch sparse rows": ("torch", lambda x: torch_tensor(np.atleast_2d(x)).to_sparse_csr()),
    "torch, negated late": ("torch", lambda x: (torch_tensor(-x).double() * 1j).conj().imag),
    "jax": ("jax", jax_array),
    "jax, on torch": ("torch", jax_array),
    "jax bfloat16": ("jax", lambda x: jax_array(x).astype("bfloat16")),
    "jax complex": ("jax", lambda x: jax_array(x) + 1j),
    "cupy": ("cuda", cupy_array),
    "cupy, on NumPy": ("cpu", cupy_array),
    "cupy in Fortran order": ("cuda", lambda x: cupy_array(x, "F")),
    "cupy, cut out": ("cuda", cut_out),
    "cupy half": ("cuda", lambda x: cupy_array(x.astype(np.float16) if x.dtype.kind == "f" else x)),
    "cupy uint64": ("cuda", lambda x: cupy_array(x.astype(np.uint64))),
    "cupy complex": ("cuda", lambda x: cupy_array(x + 1j)),
    "rows of cupy": ("cuda", lambda x: list(cupy_array(x))),
    "NumPy, on cupy": ("cuda", np.asfortranarray),
    "big-endian, on cupy": ("cuda", lambda x: x.astype(x.dtype.newbyteorder(">"))),
}  # fmt: skip
EACH_KIND = [
    pytest.param(
        kind,
        marks=[pytest.mark.needs(name) for name in ("torch", "jax") if name in kind]
        + [pytest.mark.gpu] * ("cupy" in kind),
    )
    for kind in KINDS
]


def given(kind, x):
    """Return data of a kind, whose makers may have something to say about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return KINDS[kind][1](x)


def answer(call):
    """Return the numbers that a call gives for hostile data, or None if it refuses them in one sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return np.asarray(call(), dtype=np.float64)
        except (ValueError, TypeError) as error:
            refusal = error
    assert type(refusal) in (ValueError, TypeError)
    assert re.fullmatch(r"\w.{10,400}", str(refusal))
    return None


REFUSED = (
    "masked", "masked rows", "structured", "complex", "complex without imaginary part", "text", "bytes",
    "objects of text", "dates", "durations", "None", "a generator", "a dict", "a function", "sparse",
    "nullable table with gaps", "nullable floats with gaps", "torch, on NumPy", "torch complex", "torch sparse",
    "torch sparse rows", "jax, on torch", "jax complex", "cupy, on NumPy", "cupy complex", "rows of cupy",
)  # fmt: skip


@pytest.mark.parametrize("kind", EACH_KIND)
def test_features_of_every_kind_count_as_their_numbers_or_are_refused(kind):
    device = KINDS[kind][0]
    model, X = mx.MLP([3, 4, 2], "tanh", device=device, seed=1), given(kind, NUMBERS)
    numbers = NUMBERS
    if kind == "nullable bools":
        numbers = NUMBERS != 0
    if kind == "table of two types":
        model, numbers = mx.MLP([4, 4, 2], "tanh", seed=1), np.c_[NUMBERS, np.ones(4)]
    found = answer(lambda: model.outputs(X))
    assert (found is None) == (kind in REFUSED)
    if found is not None:
        assert_allclose(found, mx.MLP(model.sizes, "tanh", seed=1).outputs(numbers), rtol=1e-5)
        theta = model.device.to_host(model.theta).copy()
        history = answer(lambda: mx.fit(model, X, [0, 1, 1, 0], epochs=2, validation=(X, [0, 1, 1, 0])).loss)
        assert history is not None
        assert (model.device.to_host(model.theta) != theta).any()


@pytest.mark.parametrize("output", ["softmax", "identity", "sigmoid"])
@pytest.mark.parametrize("kind", EACH_KIND)
def test_targets_of_every_kind_count_as_their_numbers_or_are_refused(kind, output):
    device = KINDS[kind][0]
    y = {"softmax": np.array([0, 1, 1, 0]), "identity": NUMBERS, "sigmoid": (NUMBERS > 1) + 0.0}[output]
    model = mx.MLP([3, 4, 2 if output == "softmax" else 3], "tanh", output, device=device, seed=1)
    if kind == "nullable bools":
        y = y != 0
    if kind == "table of two types" and output != "softmax":
        pytest.skip("it has a column more")
    found = answer(lambda: model.device.to_host(model.loss_and_gradient(NUMBERS, given(kind, y))[0]))
    floats_for_labels = output == "softmax" and kind in (
        "torch bfloat16", "torch half", "jax bfloat16", "nullable floats", "torch, negated late"
    )  # fmt: skip
    assert (found is None) == (kind in REFUSED or floats_for_labels)
    if found is not None:
        wanted = mx.MLP(model.sizes, "tanh", output, seed=1).loss_and_gradient(NUMBERS, y)[0]
        assert_allclose(found, wanted, rtol=1e-5)


def test_numbers_that_fit_only_float64_do_in_float64():
    bad = with_one(1e39)
    with pytest.raises(
        ValueError, match=r"X holds values up to 1e\+39 in size, which do not fit float32; scale them, or"
    ):
        mx.MLP([3, 2]).predict(bad)
    assert np.isfinite(mx.MLP([3, 2], dtype="float64").outputs(bad)).all()


@pytest.mark.parametrize("device", ["cpu", "torch", "cuda", "strict"])
def test_bytes_that_look_like_numbers_are_warned_of_once_a_call(device):
    model, X = mx.MLP([3, 2], device=device), np.eye(3, dtype=np.uint8)
    for doubtful in (X, model.device.asarray(X), np.repeat(X, 3000, axis=0)):
        with pytest.warns(UserWarning, match="uint8 counts as pixels, so a 1 is 1/255; pass X.astype") as caught:
            model.predict(doubtful)
        assert len(caught) == 1
    for quiet in (X * 0, X * 2, X.astype(bool), X.astype(float)):
        model.predict(quiet)
    model.pixels = True
    model.predict(X)
    model.pixels = False
    with pytest.warns(UserWarning, match="uint8 counts as pixels"):
        model.predict(X)


@pytest.mark.parametrize("device", ["cpu", "torch", "cuda", "strict"])
def test_whole_numbers_for_a_model_of_pixels_are_warned_of(device, rng):
    X = rng.integers(0, 256, (30, 3), dtype=np.uint8)
    model = mx.MLP([3, 2], device=device)
    mx.fit(model, X, np.arange(30) % 2, epochs=1)
    for doubtful in (X.astype(np.int64), model.device.asarray(X.astype(np.int32))):
        with pytest.warns(UserWarning, match="trained on pixels, uint8 divided by 255, and X is .*; pass X.astype"):
            model.predict(doubtful)
    for quiet in (X, X / 255, X > 99):
        model.predict(quiet)


def test_bytes_count_as_pixels_and_floats_as_they_are_whatever_was_trained_on():
    model, X = mx.MLP([3, 4, 2], seed=1), np.array([[0, 5, 200], [255, 1, 3]], np.uint8)
    as_pixels = model.outputs(X / 255)
    for decided in (None, True, False):
        model.pixels = decided
        assert_allclose(model.outputs(X), as_pixels, rtol=1e-5)
        assert_allclose(model.forward(X).A[-1], as_pixels, rtol=1e-5)
        assert_allclose(model.outputs(X / 255), as_pixels, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_whose_squares_overflow_are_finite_and_an_infinity_among_them_is_found(dtype):
    model = mx.MLP([3, 2], output="identity", dtype=dtype)
    huge = np.full((4, 3), np.finfo(dtype).max, dtype) * np.array([1, -1, 0.5], dtype)
    assert model.open(huge).shape == (4, 3)
    for spoiler in (np.inf, -np.inf, np.nan):
        huge[2, 1] = spoiler
        with pytest.raises(ValueError, match=NOT_FINITE):
            model.open(huge)
