"""The table of a pass shows what the pass does: its shapes and formulas are held against the arrays of a real one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import mlp_xp as mx
from mlp_xp.__main__ import main as mlp_xp_main
from mlp_xp.kernels import GenericKernels
from mlp_xp.kernels.symbolic import PRODUCTS
from mlp_xp.model import grad_sum
from mlp_xp.params import Layout
from mlp_xp.runs.report import epoch_flops
from mlp_xp.trace import main, totals, trace


class Recording:
    """Kernels that keep every array they return."""

    def __init__(self, kernels):
        self.kernels, self.results = kernels, []

    def __getattr__(self, operation):
        def call(*arguments):
            results = getattr(self.kernels, operation)(*arguments)
            arrays = results if isinstance(results, tuple) else (results,)
            if operation != "dropout":  # nothing is dropped
                self.results += [(operation, np.asarray(array)) for array in arrays]
            return results

        return call


def real_pass(sizes, n, activation, output, targets):
    """Return the parameters, and each array of a pass with the operation that it comes from."""
    model = mx.MLP(sizes, activation, output, dtype="float64", seed=2)
    model.biases = [np.linspace(-1, 1, len(b)) for b in model.biases]
    X, y = np.random.default_rng(0).random((n, sizes[0])), targets(output, n, sizes[-1])
    recording, params = Recording(GenericKernels(np, "float64")), model.layout.split(model.theta)
    into = model.layout.split(np.zeros(model.layout.size))
    y = model.targets(y, n).y
    grad_sum(model.network, recording, params, X, y, into)
    return params, recording.results


NETWORKS = [
    ([4, 3], "tanh"),
    ([5, 4, 3], "sigmoid"),
    ([3, 6, 2, 4], ["relu", "identity"]),
    ([2, 3, 4, 5, 3], ["leaky_relu", "tanh", "sigmoid"]),
]


@pytest.mark.parametrize("output", mx.OUTPUTS)
@pytest.mark.parametrize(("sizes", "activation"), NETWORKS)
def test_every_line_is_an_array_of_a_real_pass(sizes, activation, output, targets):
    steps = [step for step in trace(sizes, 7, activation, output, precision="fp64") if step.name != "Ŷ"]
    _, results = real_pass(sizes, 7, activation, output, targets)
    assert [step.operation for step in steps] == [operation for operation, _ in results]
    for step, (_, array) in zip(steps, results, strict=True):
        assert step.shape == array.shape, step.formula
        is_older_array = step.formula in (
            f"A{step.name[1:]} = Z{step.name[1:]}",
            f"dZ{step.name[2:]} = dA{step.name[2:]}",
        )
        assert step.bytes == (0 if is_older_array else array.nbytes), step.formula


@pytest.mark.parametrize("form", ["row", "column"])
@pytest.mark.parametrize(("sizes", "activation"), NETWORKS)
def test_formulas_hold_for_the_arrays_of_a_real_pass(sizes, activation, form, targets):
    params, results = real_pass(sizes, 7, activation, "softmax", targets)
    steps = [step for step in trace(sizes, 7, activation, "softmax", form) if step.name != "Ŷ"]
    arrays = {step.name: array for step, (_, array) in zip(steps, results, strict=True)}
    if form == "column":
        arrays = {name: array if name.startswith("dW") else np.atleast_2d(array).T for name, array in arrays.items()}
    arrays["1"] = np.ones(7) if form == "row" else np.ones((7, 1))
    for l in range(1, len(sizes)):
        arrays |= {f"W[{l}]": params.W[l], f"b[{l}]": params.b[l] if form == "row" else params.b[l][:, None]}
        if form == "column":
            arrays[f"db[{l}]"] = arrays[f"db[{l}]"].reshape(-1, 1)

    def value(name):
        return arrays[name.removesuffix("ᵀ")].T if name.endswith("ᵀ") else arrays[name]

    checked = set()
    for step in steps:
        if step.operation in (*PRODUCTS, "bias_gradient"):
            product, _, plus = step.formula.partition(" = ")[2].partition(" + ")
            factors = [value(name) for name in product.split()]
            terms = [*factors, value(plus)] if plus else factors
            assert step.operands == tuple(term.shape for term in terms), step.formula
            assert step.shape == arrays[step.name].shape, step.formula
            assert_allclose(
                arrays[step.name], factors[0] @ factors[1] + (terms[2] if plus else 0), rtol=1e-12, atol=1e-14
            )
            checked.add(step.name[:2])
        elif " ∘ " in step.formula:
            assert step.operands == (step.shape, step.shape)
    assert checked >= {"Z[", "dW", "db"}


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 900), min_size=2, max_size=6), samples=st.integers(1, 10**6))
@pytest.mark.parametrize("form", ["row", "column"])
def test_operations_and_parameters_are_those_of_the_library(form, sizes, samples):
    steps = trace(sizes, samples, output="sigmoid", form=form)
    assert totals(steps)["product_flops"] == epoch_flops(sizes, samples)
    assert totals(steps)["parameters"] == Layout(sizes).size
    for step in steps:
        if step.operation.startswith("activ") and step.bytes:
            assert step.flops == np.prod(step.shape, dtype=object)
        if step.operation == "bias_gradient":
            assert step.flops == samples * step.shape[0]


def shapes(steps):
    return {step.name: step.shape for step in steps}


def test_s4_s6_walk_of_five_against_eight():
    n = 11_272
    walk = shapes(trace([784, 196, 1], n, output="sigmoid"))
    assert (walk["Z[1]"], walk["A[2]"], walk["dW[1]"]) == ((n, 196), (n, 1), (196, 784))
    assert shapes(trace([784, 196, 1], n, output="sigmoid_mse")) == walk
    losses = {output: trace([784, 196, 1], n, output=output)[6].formula for output in ("sigmoid", "sigmoid_mse")}
    assert losses == {"sigmoid": "L = -Σ [Y log Ŷ + (1-Y) log(1-Ŷ)]", "sigmoid_mse": "L = Σ (Ŷ - Y)² / 2"}


S8 = """
A[0] = X                  (60000, 784)
Z[1] = A[0] W[1]ᵀ + b[1]  (60000, 784) (784, 196) + (196,) -> (60000, 196)
A[1] = σ(Z[1])            (60000, 196) -> (60000, 196)
Z[2] = A[1] W[2]ᵀ + b[2]  (60000, 196) (196, 10) + (10,) -> (60000, 10)
A[2] = σ(Z[2])            (60000, 10) -> (60000, 10)
Ŷ = softmax(A[2])         (60000, 10) -> (60000, 10)
L = -Σ Y log Ŷ            (60000, 10), (60000, 10) -> (60000,)
dA[2] = Ŷ - Y             (60000, 10) - (60000, 10) -> (60000, 10)
J = Σ L / 60000           (60000,) -> ()
dZ[2] = dA[2] ∘ σ'(Z[2])  (60000, 10) ∘ (60000, 10) -> (60000, 10)
dA[1] = dZ[2] W[2]        (60000, 10) (10, 196) -> (60000, 196)
dW[2] = dZ[2]ᵀ A[1]       (10, 60000) (60000, 196) -> (10, 196)
db[2] = dZ[2]ᵀ 1          (10, 60000) (60000,) -> (10,)
dZ[1] = dA[1] ∘ σ'(Z[1])  (60000, 196) ∘ (60000, 196) -> (60000, 196)
dW[1] = dZ[1]ᵀ A[0]       (196, 60000) (60000, 784) -> (196, 784)
db[1] = dZ[1]ᵀ 1          (196, 60000) (60000,) -> (196,)
"""
S8_COLUMNS = """
A[0] = X                  (784, 60000)
Z[1] = W[1] A[0] + b[1]   (196, 784) (784, 60000) + (196, 1) -> (196, 60000)
A[1] = σ(Z[1])            (196, 60000) -> (196, 60000)
Z[2] = W[2] A[1] + b[2]   (10, 196) (196, 60000) + (10, 1) -> (10, 60000)
A[2] = σ(Z[2])            (10, 60000) -> (10, 60000)
Ŷ = softmax(A[2])         (10, 60000) -> (10, 60000)
L = -Σ Y log Ŷ            (10, 60000), (10, 60000) -> (1, 60000)
dA[2] = Ŷ - Y             (10, 60000) - (10, 60000) -> (10, 60000)
J = Σ L / 60000           (1, 60000) -> ()
dZ[2] = dA[2] ∘ σ'(Z[2])  (10, 60000) ∘ (10, 60000) -> (10, 60000)
dA[1] = W[2]ᵀ dZ[2]       (196, 10) (10, 60000) -> (196, 60000)
dW[2] = dZ[2] A[1]ᵀ       (10, 60000) (60000, 196) -> (10, 196)
db[2] = dZ[2] 1           (10, 60000) (60000, 1) -> (10, 1)
dZ[1] = dA[1] ∘ σ'(Z[1])  (196, 60000) ∘ (196, 60000) -> (196, 60000)
dW[1] = dZ[1] A[0]ᵀ       (196, 60000) (60000, 784) -> (196, 784)
db[1] = dZ[1] 1           (196, 60000) (60000, 1) -> (196, 1)
"""


@pytest.mark.parametrize(("form", "walk"), [("row", S8), ("column", S8_COLUMNS)])
def test_s8_walk_over_ten_classes(form, walk):
    steps = trace([784, 196, 10], 60_000, output="softmax_of_sigmoid", form=form)
    assert [f"{step.formula:26s}{step.shapes}" for step in steps] == walk.strip().splitlines()
    assert [step.part for step in steps] == ["forward"] * 5 + ["loss"] * 4 + ["backward"] * 7


@pytest.mark.parametrize(("inputs", "parameters"), [(784, 155_830), (256 * 256, 12_847_222)])
def test_s16_parameter_counts(inputs, parameters, capsys):
    assert totals(trace([inputs, 196, 10]))["parameters"] == parameters
    assert main([str(inputs), "196", "10"]) == 0
    (total,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("total")]
    assert total.split()[1] == f"{parameters:,}"


def test_s17_ten_64_one_with_seven_samples():
    rows = shapes(trace([10, 64, 1], 7, output="sigmoid"))
    assert [rows[name] for name in ("Z[1]", "A[1]", "Z[2]", "A[2]")] == [(7, 64), (7, 64), (7, 1), (7, 1)]
    assert [rows[name] for name in ("dZ[2]", "dW[2]", "db[2]")] == [(7, 1), (1, 64), (1,)]
    assert [rows[name] for name in ("dA[1]", "dZ[1]", "dW[1]", "db[1]")] == [(7, 64), (7, 64), (64, 10), (64,)]
    steps = {step.name: step.shapes for step in trace([10, 64, 1], 7, output="sigmoid", form="column")}
    assert steps["A[0]"] == "(10, 7)"
    assert steps["Z[1]"] == "(64, 10) (10, 7) + (64, 1) -> (64, 7)"
    assert steps["Z[2]"] == "(1, 64) (64, 7) + (1, 1) -> (1, 7)"
    assert steps["dW[2]"] == "(1, 7) (7, 64) -> (1, 64)"
    assert steps["db[2]"] == "(1, 7) (7, 1) -> (1, 1)"
    assert steps["dA[1]"] == "(64, 1) (1, 7) -> (64, 7)"
    assert steps["dW[1]"] == "(64, 7) (7, 10) -> (64, 10)"


@pytest.mark.parametrize("output", mx.OUTPUTS)
@pytest.mark.parametrize("form", ["row", "column"])
def test_table_is_aligned_and_fits(output, form, capsys):
    assert main(["784", "196", "10", "--samples", "60000", "--output", output, "--form", form]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    heading, rows = lines[0], lines[1 : lines.index("")]
    assert [row for row in rows if not row.startswith(" ")][:3] == ["forward", "loss", "backward"]
    start, end = heading.index("shapes"), heading.index("parameters") + len("parameters")
    for row in rows:
        if row.startswith("  "):
            assert row[start - 1] == " " != row[start]
        if row.startswith(("  Z", "total")):
            assert row[end - 1].isdigit()
            assert row[end] == " "


@pytest.mark.parametrize("form", ["row", "column"])
def test_on_a_narrow_terminal_shapes_stand_below_their_formulas(form, capsys, monkeypatch):
    arguments = ["784", "196", "10", "--samples", "60000", "--form", form]
    printed = {}
    for columns in ("", "80", "140"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(arguments) == 0
        printed[columns] = capsys.readouterr().out.splitlines()
    assert printed[""] == printed["140"]
    assert max(map(len, printed["80"])) <= 80 < max(map(len, printed[""]))
    words = {columns: [set(line.split()) - {"shapes"} for line in lines] for columns, lines in printed.items()}
    formulas = [i for i, line in enumerate(printed["80"]) if re.match(r"  \S.* = ", line)]
    together = [words["80"][i] | words["80"][i + 1] for i in formulas]
    assert together == [row for row, line in zip(words[""], printed[""], strict=True) if re.match(r"  \S.* = ", line)]


def test_numbers_of_the_table(capsys):
    assert main(["784", "196", "10", "--samples", "60000"]) == 0
    lines = {line.split(" = ")[0].strip(): line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["A[0]"][-2:] == ["188.2", "MB"]
    assert lines["Z[1]"][-5:] == ["153,860", "18.4", "G", "47.0", "MB"]
    assert lines["dA[2]"][-4:] == ["600.0", "k", "2.4", "MB"]
    assert lines["db[2]"][-4:] == ["600.0", "k", "40", "B"]
    assert lines["dZ[2]"][-2:] == ["(60000,", "10)"]  # linear outputs: nothing to compute, no new array


def test_json_is_the_trace(capsys):
    assert main(["5", "4", "3", "--activation", "relu", "--samples", "9", "--precision", "fp64", "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    steps = trace([5, 4, 3], 9, "relu", precision="fp64")
    assert [step["formula"] for step in read["steps"]] == [step.formula for step in steps]
    assert [tuple(step["shape"]) for step in read["steps"]] == [step.shape for step in steps]
    assert read["totals"] == totals(steps)
    assert read["sizes"] == [5, 4, 3]
    assert read["totals"]["bytes"] == 2 * totals(trace([5, 4, 3], 9, "relu"))["bytes"]


def test_markdown_is_a_table_of_exact_numbers(capsys):
    assert main(["784", "196", "10", "--samples", "60000", "--markdown"]) == 0
    heading, rule, *rows = capsys.readouterr().out.splitlines()
    assert {line.count("|") for line in (heading, rule, *rows)} == {6}
    assert rows[-1].split(" | ")[2:] == ["155,830", "37,622,700,000", "384,383,324 |"]
    assert "| `dW[1] = dZ[1]ᵀ A[0]` | (196, 60000) (60000, 784) -> (196, 784) |" in rows[-3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "the following arguments are required: UNITS; --help"),
        ("784", "sizes must list the units per layer, input first"),
        ("784 x", "argument UNITS: takes a whole number, got 'x'; --help"),
        ("784 1.5", "takes a whole number, got '1.5'"),
        ("784 0", "a layer size must be a whole number of at least 1, got 0"),
        ("784 -3", "a layer size must be a whole number of at least 1, got -3"),
        ("784 1", "output 'softmax' needs at least 2 output units, got 1; use 'sigmoid'"),
        ("784 10 --samples 0", "samples must be a whole number of at least 1, got 0"),
        ("784 10 --samples many", "argument --samples: takes a whole number, got 'many'"),
        ("784 10 --output soft", "unknown output 'soft'; choose from 'softmax'"),
        ("784 9 10 --activation soft", "unknown activation 'soft'; choose from 'sigmoid'"),
        ("784 9 10 --activation relu,tanh", "got 2 activations for 1 hidden layers"),
        ("784 10 --form diagonal", "argument --form: invalid choice: 'diagonal'"),
        ("784 10 --precision fp16", "argument --precision: invalid choice: 'fp16'"),
        ("784 10 --json --markdown", "not allowed with argument"),
        ("784 10 --color", "unrecognized arguments: --color"),
    ],
)
def test_bad_arguments(arguments, words, capsys):
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mlp-xp trace: ")
    assert words in err
    assert err.count("\n") == 1


def test_module_and_installed_command_are_the_same(capsys):
    command = [sys.executable, "-m", "mlp_xp.trace", "3", "2", "--samples", "4"]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", env={**os.environ, "PYTHONUTF8": "1"})
    assert (run.returncode, run.stderr) == (0, "")
    assert mlp_xp_main(["trace", "3", "2", "--samples", "4"]) == 0
    assert capsys.readouterr().out == run.stdout


def test_an_encoding_without_greek_is_named():
    command, environment = [sys.executable, "-m", "mlp_xp.trace", "3", "2"], {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stdout) == (2, "")
    assert "encoding ascii has no Greek letters; set PYTHONUTF8=1, or choose --json" in run.stderr
    run = subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment)
    assert json.loads(run.stdout)["steps"][0]["formula"] == "A[0] = X"
