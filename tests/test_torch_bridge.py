"""MLP to torch.nn.Sequential and back: the same numbers, the same gradients, the same files."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import mlp_xp as mx

from .libraries import Later

pytestmark = pytest.mark.needs("torch")
torch, nn = Later("torch"), Later("torch.nn")

TOLERANCE = {"float32": 2e-6, "float64": 1e-13}


def some_model(rng, sizes, activation, output, dtype):
    model = mx.MLP(sizes, activation, output, dtype=dtype, seed=5)
    model.biases = [rng.standard_normal(b.shape) for b in model.biases]
    return model


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("output", mx.OUTPUTS)
@pytest.mark.parametrize("activation", mx.ACTIVATIONS)
def test_there_and_back(activation, output, dtype, rng):
    model = some_model(rng, [6, 5, 4, 3], activation, output, dtype)
    X = rng.standard_normal((9, 6)).astype(dtype)
    module = model.to_torch()
    outputs = module(torch.tensor(X))
    assert str(outputs.dtype) == f"torch.{dtype}"
    assert_allclose(outputs.detach().numpy(), model.outputs(X), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])

    again = mx.MLP.from_torch(module, output)
    assert again.config == model.config | {"seed": 0}
    assert_array_equal(again.theta, model.theta)


LOSSES = {
    "softmax": lambda A, y: nn.functional.cross_entropy(A, y),
    "sigmoid": lambda A, y: nn.functional.binary_cross_entropy_with_logits(A, y) * A.shape[1],
    "identity": lambda A, y: nn.functional.mse_loss(A, y) * A.shape[1] / 2,
    "softmax_of_sigmoid": lambda A, y: nn.functional.cross_entropy(A, y),
    "sigmoid_mse": lambda A, y: nn.functional.mse_loss(A, y) * A.shape[1] / 2,
    "perceptron": lambda A, y: nn.functional.relu((1 - 2 * y) * A).sum(axis=1).mean(),
}


@pytest.mark.parametrize("output", mx.OUTPUTS)
@pytest.mark.parametrize("activation", mx.ACTIVATIONS)
def test_gradients_agree(activation, output, rng, targets):
    model = some_model(rng, [6, 5, 4, 3], activation, output, "float64")
    X, y = rng.standard_normal((9, 6)), targets(output, 9, 3)
    module = model.to_torch()
    wanted = torch.tensor(y if mx.OUTPUTS[output].task == "classes" else y.astype(float))
    loss = LOSSES[output](module(torch.tensor(X)), wanted)
    loss.backward()
    ours, gradient = model.loss_and_gradient(X, y)
    assert_allclose(loss.item(), float(ours), rtol=1e-12)
    linears = [part for part in module.modules() if isinstance(part, nn.Linear)]
    for linear, dW, db in zip(linears, gradient.weights, gradient.biases, strict=True):
        assert_allclose(linear.weight.grad.numpy(), dW, rtol=1e-9, atol=1e-14)
        assert_allclose(linear.bias.grad.numpy(), db, rtol=1e-9, atol=1e-14)


def test_a_saved_model_loads_into_the_module(rng, tmp_path):
    """The recipe in the docstring of MLP.save."""
    from safetensors.torch import load_file

    model = some_model(rng, [6, 5, 4, 3], ["relu", "identity"], "sigmoid_mse", "float32")
    model.save(tmp_path / "model.safetensors")
    fresh = mx.MLP([6, 5, 4, 3], ["relu", "identity"], "sigmoid_mse").to_torch()
    assert list(fresh.state_dict()) == [f"layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert_array_equal(mx.MLP.from_torch(fresh, "sigmoid_mse").theta, model.theta)


def test_nothing_is_shared(rng):
    model = some_model(rng, [3, 4, 2], "tanh", "softmax", "float32")
    before, module = model.theta.copy(), model.to_torch()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert_array_equal(model.theta, before)
    again = mx.MLP.from_torch(module)
    with torch.no_grad():
        module[0][0].weight.fill_(1)
    assert not again.theta.any()


def test_conversion_draws_no_random_numbers():
    state = torch.get_rng_state()
    mx.MLP([3, 4, 2]).to_torch()
    assert torch.equal(torch.get_rng_state(), state)


def test_modules_of_other_making(rng):
    block = nn.Sequential(OrderedDict(fc=nn.Linear(6, 5), act=nn.ReLU()))
    module = nn.Sequential(block, nn.Linear(5, 4), nn.Identity(), nn.Linear(4, 3), nn.LeakyReLU(), nn.Linear(3, 2))
    model = mx.MLP.from_torch(module, device="strict", seed=8)
    assert (model.sizes, model.activation) == ((6, 5, 4, 3, 2), ("relu", "identity", "leaky_relu"))
    assert (model.device.name, model.seed, model.output) == ("strict", 8, "softmax")
    X = rng.standard_normal((9, 6)).astype(np.float32)
    assert_allclose(model.outputs(X), module(torch.tensor(X)).detach().numpy(), rtol=2e-6, atol=2e-6)
    assert mx.MLP.from_torch(nn.Linear(3, 1), "sigmoid").sizes == (3, 1)


def test_from_any_device(rng):
    model = mx.MLP([6, 5, 3], dtype="float64")
    X = rng.standard_normal((9, 6))
    for device in ("torch", "strict"):
        there = mx.MLP([6, 5, 3], dtype="float64", device=device)
        assert_allclose(there.to_torch()(torch.tensor(X)).detach().numpy(), model.outputs(X), rtol=1e-13, atol=1e-15)


def linear_with(**values):
    linear = nn.Linear(3, 2)
    with torch.no_grad():
        for name, value in values.items():
            getattr(linear, name).fill_(value)
    return linear


@pytest.mark.parametrize(
    ("module", "output", "words"),
    [
        (
            lambda: nn.Sequential(nn.Linear(3, 2), nn.Softmax(dim=1)),
            "softmax",
            r"has a Softmax after 1 Linear; allowed are .* ReLU, LeakyReLU",
        ),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), "softmax", "has a Flatten after 0 Linear;"),
        (lambda: nn.Sequential(nn.Tanh(), nn.Linear(3, 2)), "softmax", "has a Tanh after 0 Linear;"),
        (
            lambda: nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.ReLU()),
            "softmax",
            "has a ReLU after 1 Linear and a Tanh;",
        ),
        (lambda: nn.ModuleList([nn.Linear(3, 2)]), "softmax", "has a ModuleList after 0 Linear;"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), "softmax", "has a ParametrizedLinear after"),
        (lambda: "model.pt", "softmax", "has a str after 0 Linear; allowed are"),
        (lambda: nn.Sequential(), "softmax", "parameters are missing: there is no Linear; give"),
        (lambda: nn.Linear(3, 2, bias=False), "softmax", r"bias=False\) has no bias.*torch.zeros_like"),
        (
            lambda: nn.Sequential(nn.Linear(3, 2), nn.LeakyReLU(0.2), nn.Linear(2, 2)),
            "softmax",
            r"LeakyReLU\(negative_slope=0.01\)",
        ),
        (lambda: nn.Linear(3, 2).half(), "softmax", r"are torch.float16; give .* after \.float\(\)"),
        (
            lambda: nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).double()),
            "softmax",
            "are torch.float32 and torch.float64",
        ),
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)),
            "softmax",
            r"\(2, 4\)\], got \[\(4, 3\), \(2, 5\)",
        ),
        (lambda: linear_with(weight=np.nan), "softmax", "weights must be finite"),
        (lambda: linear_with(bias=np.inf), "softmax", "biases must be finite"),
        (lambda: nn.Linear(3, 1), "softmax", "needs at least 2 output units"),
        (lambda: nn.Linear(3, 2), "softmin", "unknown output 'softmin'"),
        (
            lambda: nn.Linear(3, 2),
            "sigmoid_mse",
            "ends in 'identity', and .* 'softmax' or 'sigmoid' or",
        ),
        (
            lambda: nn.Sequential(nn.Linear(3, 2), nn.Sigmoid()),
            "sigmoid",
            "output 'softmax_of_sigmoid' or 'sigmoid_mse', or",
        ),
        (
            lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU()),
            "identity",
            r"\(its loss does the rest\); change the module's end",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals(module, output, words):
    with pytest.raises(ValueError, match=words):
        mx.MLP.from_torch(module(), output)


def tied(part):
    """Return two layers that share one parameter."""
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    setattr(second, part, getattr(first, part))
    return nn.Sequential(first, nn.ReLU(), second)


def twice(join):
    """Return one layer at two places."""
    linear = nn.Linear(3, 3)
    return join(linear)


@pytest.mark.parametrize(
    "module",
    [
        lambda: twice(lambda linear: nn.Sequential(linear, nn.ReLU(), linear)),
        lambda: twice(lambda linear: nn.Sequential(linear, nn.Sequential(linear))),
        lambda: tied("weight"),
        lambda: tied("bias"),
    ],
    ids=["one layer twice", "inside another", "one weight", "one bias"],
)
def test_layers_that_share_a_parameter_are_refused(module):
    with pytest.raises(ValueError, match=r"two layers .* share a parameter.*copy.deepcopy\(linear\)"):
        mx.MLP.from_torch(module())


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("place", ["", "0", "1", "2", "2.0"], ids=lambda place: place or "the whole")
def test_forward_hooks_are_refused_wherever_they_are(place, register):
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 2)))
    handle = getattr(module.get_submodule(place), register)(lambda *_: None)
    kind = type(module.get_submodule(place)).__name__
    with pytest.raises(ValueError, match=f"{kind} has forward hooks, .* remove them: handle.remove"):
        mx.MLP.from_torch(module)
    handle.remove()
    assert mx.MLP.from_torch(module).sizes == (3, 4, 2)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`")
def test_weights_that_a_hook_computes_are_refused():
    with pytest.raises(ValueError, match="Linear has forward hooks"):
        mx.MLP.from_torch(torch.nn.utils.weight_norm(nn.Linear(3, 2)))


def test_an_activation_may_be_used_twice():
    relu = nn.ReLU()
    module = nn.Sequential(nn.Linear(3, 4), relu, nn.Linear(4, 5), relu, nn.Linear(5, 2))
    assert mx.MLP.from_torch(module).activation == ("relu", "relu")


def test_the_remedy_for_a_missing_bias_works(rng):
    linear = nn.Linear(3, 2, bias=False)
    with pytest.raises(ValueError, match="zeros to start with: ") as caught:
        mx.MLP.from_torch(linear)
    exec(str(caught.value).partition("to start with: ")[2], {"torch": torch, "linear": linear})
    X = rng.standard_normal((4, 3)).astype(np.float32)
    want = linear(torch.tensor(X)).detach().numpy()
    assert_allclose(mx.MLP.from_torch(linear).outputs(X), want, rtol=1e-6, atol=1e-6)


def test_torch_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for call in (mx.MLP([2, 2]).to_torch, lambda: mx.MLP.from_torch(None)):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'mlp_xp\[torch\]'"):
            call()


def test_torch_is_not_imported_before():
    code = "import sys, mlp_xp, mlp_xp.convert.torch; mlp_xp.MLP([2, 2]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
