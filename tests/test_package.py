"""What the package shows to the world."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import mlp_xp as mx

FOLDER = Path(mx.__file__).parent
LIGHT = sorted(
    module.name
    for module in pkgutil.walk_packages([str(FOLDER)], "mlp_xp.")
    if module.name.split(".")[1] not in ("plots", "estimators", "__main__")  # need more than the package does
)
NEEDS = {
    "mlp_xp.engines.jax_": "jax",
    "mlp_xp.engines.jax_program": "jax",
    "mlp_xp.engines.torch_": "torch",
    "mlp_xp.kernels.torch_": "torch",
}


def test_all_is_what_is_defined():
    public = {name for name, value in vars(mx).items() if not name.startswith("_") and not hasattr(value, "__path__")}
    modules = {name for name in public if hasattr(getattr(mx, name), "__spec__")}
    assert set(mx.__all__) - {"datasets"} == public - modules
    assert len(mx.__all__) == len(set(mx.__all__))
    assert mx.datasets.__name__ == "mlp_xp.datasets"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.needs(NEEDS[name])] if name in NEEDS else []) for name in LIGHT]
)
def test_modules_list_what_they_have(name):
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        assert hasattr(module, public)


@pytest.mark.parametrize("name", [name for name in mx.__all__ if name != "datasets"])
def test_public_names_are_explained(name):
    value = getattr(mx, name)
    if callable(value):
        assert value.__doc__
        assert not value.__doc__.startswith(f"{name}(")  # not the docstring that dataclasses make up


def test_types_are_shipped():
    assert (FOLDER / "py.typed").is_file()


def test_version_is_where_the_build_reads_it():
    tree = ast.parse((FOLDER / "__init__.py").read_text(encoding="utf-8"))
    values = [ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)]
    assert mx.__version__ in values
    assert all(part.isdecimal() for part in mx.__version__.split(".")[:2])


def test_public_names_of_the_design():
    for name in ("MLP", "fit", "epochs", "SGD", "Adam", "datasets"):
        assert name in mx.__all__
    assert {"sigmoid", "tanh", "relu", "leaky_relu", "identity"} <= set(mx.ACTIVATIONS)
    assert list(mx.OUTPUTS) == ["softmax", "sigmoid", "identity", "softmax_of_sigmoid", "sigmoid_mse", "perceptron"]
