"""CONTRIBUTING's recipes, followed for real: a toy is added where a recipe says and nowhere else, and it trains.

What the rest of the package does not know, it has to take from the record.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import array_api_compat as compat
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import mlp_xp as mx
from mlp_xp.datasets.files import READERS
from mlp_xp.datasets.records import Part
from mlp_xp.devices import DEVICES, Device
from mlp_xp.kernels import ACTIVATIONS, LOSSES
from mlp_xp.kernels.functions import Activation, Loss
from mlp_xp.objective import OUTPUTS, Output
from mlp_xp.optim import Optimizer
from mlp_xp.predict import main as predict_command
from mlp_xp.trace import main as trace
from mlp_xp.train import main as train_command

SOFTSIGN = Activation(
    "softsign",
    value=lambda xp, Z: Z / (1 + xp.abs(Z)),
    gradient=lambda xp, dA, A: dA * (1 - xp.abs(A)) ** 2,
    symbol="softsign",
    onnx=(
        "one# = Constant <value = REAL {1.0}> ()",
        "size# = Abs (Z#)",
        "sum# = Add (one#, size#)",
        "A# = Div (Z#, sum#)",
    ),
    torch="Softsign",
)


def absolute_error(xp, A, Y):
    return xp.sum(xp.abs(A - Y), axis=1), xp.sign(A - Y)


ABSOLUTE_ERROR = Loss("taxicab_error", absolute_error, "Σ |{0} - {1}|", slope="sign({0} - {1})")

ENGINES = {  # arguments of `epochs`, for each way to train on the CPU
    "full batch, one thread": {"threads": 1},
    "full batch, threads": {"threads": 2},
    "ragged": {"plan": "ragged"},
    "mini-batches, descent inside the backward pass": {"batch_size": 40},
    "mini-batches, Adam": {"batch_size": 40, "optimizer": mx.Adam(lr=0.01)},
}


def follow_recipes(monkeypatch):
    """Add the toys in the places that CONTRIBUTING names, and nowhere else."""
    monkeypatch.setitem(ACTIVATIONS, SOFTSIGN.name, SOFTSIGN)
    monkeypatch.setitem(LOSSES, ABSOLUTE_ERROR.name, ABSOLUTE_ERROR)
    monkeypatch.setitem(OUTPUTS, "absolute", Output("identity", ABSOLUTE_ERROR.name, "values"))


@pytest.fixture
def toys(monkeypatch):
    follow_recipes(monkeypatch)


@pytest.fixture(params=[{"activation": "softsign"}, {"activation": "tanh", "output": "absolute"}], ids=["g", "loss"])
def toy(request, toys, targets):
    """Return a function that makes a model with a toy in it, and data for it."""
    settings = request.param

    def make(rng, rows=1500, **more):
        model = mx.MLP([12, 8, 4], **settings, dtype="float64", seed=3, **more)
        X = rng.standard_normal((rows, 12)) * (np.arange(12) < rng.integers(4, 13, rows)[:, None])
        return model, X, targets(model.output, rows, 4)

    return make


def losses(model, X, y, **arguments):
    return mx.fit(model, X, y, epochs=4, **arguments).loss


def test_gradients_are_those_of_the_loss(toy, rng, off_kinks, numerical_gradient, flat):
    model, X, y = toy(rng, rows=20)
    X, y = off_kinks(model, X, y)
    _, gradient = model.loss_and_gradient(X, y)
    assert_allclose(flat(model, gradient), numerical_gradient(model, X, y), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_of_the_cpu_trains_it(engine, toy, rng, monkeypatch):
    """As the generic kernels do, which know nothing of NumPy's buffers."""
    model, X, y = toy(rng)
    reference = mx.MLP(**model.config, device="strict")
    arguments = ENGINES[engine]
    rest = {name: value for name, value in arguments.items() if name not in ("threads", "plan")}
    got, want = losses(model, X, y, **arguments), losses(reference, X, y, **rest)
    assert_allclose(got, want, rtol=1e-10)
    assert got[-1] < got[0]


@pytest.mark.parametrize("batch_size", [None, 40])
@pytest.mark.parametrize("device", ["torch", "jax", "cuda", "strict"])
def test_every_library_trains_it(device, batch_size, toy, rng):
    model, X, y = toy(rng, rows=200)
    there = mx.MLP(**model.config, device=device)
    arguments = {"batch_size": batch_size, "optimizer": mx.Adam(lr=0.01)}
    assert_allclose(losses(there, X, y, **arguments), losses(model, X, y, **arguments), rtol=1e-10)
    assert_allclose(there.outputs(X), model.outputs(X), rtol=1e-9, atol=1e-9)


def test_it_is_saved_and_loaded(toy, rng, tmp_path):
    model, X, y = toy(rng, rows=20)
    model.save(tmp_path / "model.safetensors")
    again = mx.MLP.load(tmp_path / "model.safetensors")
    assert again.config == model.config
    assert again.evaluate(X, y) == model.evaluate(X, y)


def test_a_trace_writes_the_activation(toys, capsys):
    assert trace(["5", "4", "3", "--activation", "softsign"]) == 0
    printed = capsys.readouterr().out
    assert "A[1] = softsign(Z[1])" in printed
    assert "dZ[1] = dA[1] ∘ softsign'(Z[1])" in printed


def test_a_trace_writes_the_loss(toys, capsys):
    assert trace(["5", "4", "3", "--output", "absolute"]) == 0
    printed = capsys.readouterr().out
    assert "L = Σ |Y - Ŷ|" in printed
    assert "dA[2] = sign(Ŷ - Y)" in printed


def test_a_plot_shows_the_activation(toys):
    pytest.importorskip("matplotlib")
    from mlp_xp import plots

    functions, derivatives = plots.activation_functions()
    assert functions.lines[-1].get_label() == derivatives.lines[-1].get_label() == "softsign"
    z = functions.lines[-1].get_xdata()
    assert_allclose(functions.lines[-1].get_ydata(), z / (1 + abs(z)))
    assert_allclose(derivatives.lines[-1].get_ydata(), (1 + abs(z)) ** -2.0)


@pytest.mark.needs("onnx", "onnxruntime")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_onnx_computes_it(dtype, toy, rng):
    import onnxruntime as runtime

    from mlp_xp.export import to_onnx

    model, X, _ = toy(rng, rows=20)
    model = mx.MLP(**model.config | {"dtype": dtype})
    session = runtime.InferenceSession(to_onnx(model).SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run(None, {"X": X.astype(dtype)})[-1]
    want = model.predict(X) if mx.OUTPUTS[model.output].task == "values" else model.predict_proba(X)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.needs("torch")
def test_torch_computes_it(toy, rng):
    import torch

    model, X, _ = toy(rng, rows=20)
    module = model.to_torch()
    assert_allclose(module(torch.tensor(X)).detach().numpy(), model.outputs(X), rtol=1e-12, atol=1e-12)
    assert mx.MLP.from_torch(module, model.output).config == model.config | {"seed": 0}


@pytest.mark.needs("torch", "onnx")
def test_what_another_format_cannot_express_is_said_in_one_sentence(monkeypatch):
    bent = Activation("bent", SOFTSIGN.value, SOFTSIGN.gradient, "bent")  # neither ONNX nor PyTorch has it
    monkeypatch.setitem(ACTIVATIONS, "bent", bent)
    model = mx.MLP([3, 2, 2], "bent")
    with pytest.raises(ValueError, match=r"^activation 'bent' has no module in torch.nn; .*'sigmoid', 'tanh', 'relu'"):
        model.to_torch()
    from mlp_xp.export import to_onnx

    with pytest.raises(ValueError, match=r"^activation 'bent' has no form in ONNX; .*'sigmoid', 'tanh', 'relu'"):
        to_onnx(model)


def test_the_docstring_of_the_model_names_all_of_them():
    named = mx.MLP.__doc__
    assert [name for name in (*mx.ACTIVATIONS, *mx.OUTPUTS) if f'``"{name}"``' not in named] == []


@pytest.mark.parametrize("table", [ACTIVATIONS, LOSSES], ids=["activations", "losses"])
def test_records_have_the_names_that_they_are_found_by(table):
    assert [record.name for record in table.values()] == list(table)


def test_every_output_has_a_loss_and_an_activation():
    for output in OUTPUTS.values():
        assert output.loss in LOSSES
        assert output.activation in ACTIVATIONS


# ----------------------------------------------------------------------------------------------------------------------
# An optimizer, a device


@dataclass(frozen=True)
class Lion(Optimizer):
    """Steps along the sign of a blend of gradient and momentum (Chen et al. 2023, algorithm 2, without decay)."""

    beta1: float = 0.9
    beta2: float = 0.99

    def init(self, theta):
        return {"momentum": compat.array_namespace(theta).zeros_like(theta)}

    def update(self, theta, grad, state, rate):
        xp, momentum = compat.array_namespace(theta), state["momentum"]
        theta -= rate * xp.sign(self.beta1 * momentum + (1 - self.beta1) * grad)
        return theta, {"momentum": self.beta2 * momentum + (1 - self.beta2) * grad}


class Mirror(Device):
    """NumPy again, by the generic operations: a library that the package has never heard of."""

    spellings = ("mirror",)
    title = "Mirror"
    namespace = "array_api_compat.numpy"


@pytest.mark.parametrize("device", ["cpu", "torch", "jax", "cuda", "strict"])
@pytest.mark.parametrize("batch_size", [None, 40])
def test_a_toy_optimizer_learns_on_every_engine_and_goes_on_from_a_checkpoint(device, batch_size, tmp_path, rng):
    X = rng.standard_normal((60, 2))
    y = (X.sum(axis=1) > 0).astype(int)
    arguments = {"optimizer": Lion(lr=0.1), "batch_size": batch_size}

    def network():
        return mx.MLP([2, 16, 2], "tanh", dtype="float64", device=device)

    whole, stopped = network(), network()
    history = mx.fit(whole, X, y, epochs=12, **arguments)
    assert history.loss[-1] < history.loss[0] / 2
    mx.fit(stopped, X, y, epochs=5, checkpoint=mx.Checkpoint(tmp_path), **arguments)
    mx.fit(stopped, X, y, epochs=12, checkpoint=mx.Checkpoint(tmp_path, resume=True), **arguments)
    assert_array_equal(*(model.device.to_host(model.theta) for model in (whole, stopped)))


@pytest.mark.parametrize("batch_size", [None, 40])
@pytest.mark.parametrize("optimizer", [mx.SGD(lr=0.3, momentum=0.9), mx.Adam(lr=0.02, l2=0.01)], ids=str)
def test_a_toy_device_trains_predicts_and_saves(optimizer, batch_size, monkeypatch, tmp_path):
    monkeypatch.setitem(DEVICES, "mirror", Mirror)
    X, y = mx.datasets.moons(200, seed=1)
    thetas = []
    for device in ("cpu", "mirror"):
        model = mx.MLP([2, 16, 2], "tanh", dtype="float64", device=device)
        mx.fit(model, X, y, epochs=5, optimizer=optimizer, batch_size=batch_size, validation=(X, y))
        thetas.append(model.theta)
    assert_allclose(thetas[1], thetas[0], rtol=1e-9, atol=1e-12)
    model.save(tmp_path / "model.safetensors")
    assert mx.MLP.load(tmp_path / "model.safetensors", device="mirror").score(X, y) == model.score(X, y)
    with pytest.raises(ValueError, match=r"choose from .*'mirror'"):
        mx.MLP([2, 2], device="miror")


# ----------------------------------------------------------------------------------------------------------------------
# A file format


def read_lines_of_json(path, limits):
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    y = np.array([row["y"] for row in rows]) if "y" in rows[0] else None
    return [Part(np.array([row["x"] for row in rows]), y, str(path))]


def test_a_toy_format_is_loaded_trained_on_and_predicted_from(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(READERS, ".jsonl", read_lines_of_json)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 2)).round(3)
    lines = [json.dumps({"x": x.tolist(), "y": int(x.sum() > 0)}) for x in X]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    (tmp_path / "new.jsonl").write_text("\n".join(json.dumps({"x": x.tolist()}) for x in X[:3]))
    train, test = mx.datasets.load(tmp_path / "data.jsonl")
    assert (train.X.shape, test.X.shape) == ((50, 2), (10, 2))
    out = str(tmp_path / "run")
    arguments = ["--data", str(tmp_path / "data.jsonl"), "--epochs", "3", "--quiet", "--out", out]
    assert train_command(arguments) == 0
    capsys.readouterr()
    assert predict_command([out, str(tmp_path / "new.jsonl")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
