"""Imports point only downwards, and heavy libraries stay inside the modules that need them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import traceback
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mlp_xp
from mlp_xp import train
from mlp_xp.kernels.cpu.numpy_ import NumpyKernels

FOLDER = Path(mlp_xp.__file__).parent

LEVELS = [  # a module, or a folder of modules, imports from its own level and from those above it in this list
    {"checks"},
    {"files", "datasets"},
    {"devices"},
    {"kernels", "params"},
    {"model", "metrics", "dropout"},
    {"optim"},
    {"objective", "rows", "mlp", "inference", "snapshot", "convert"},
    {"engines"},
    {"loop"},
    {"callbacks"},
    {"runs"},
    {"fit"},
    {"plots"},
    {"estimators"},
    {"cli"},
    {"train", "predict", "trace", "export", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}

OPTIONAL = {  # who may import a library that is not a dependency; "plots" stands for every module in it
    "array_api_strict": {"devices"},
    "cupy": {"devices", "kernels"},
    "jax": {"devices", "engines"},
    "torch": {"devices", "convert", "engines", "kernels"},
    "nvmath": {"kernels"},
    "matplotlib": {"plots"},
    "mpi4py": {"cli", "engines"},
    "onnx": {"convert"},
    "onnxruntime": set(),
    "pooch": {"datasets"},
    "h5py": {"datasets"},
    "zarr": {"datasets"},
    "scipy": {"estimators"},
    "sklearn": {"estimators"},
}


def module_name(path):
    parts = path.relative_to(FOLDER.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(FOLDER.rglob("*.py"))}


def imports(name, source):
    """Yield the full name of every module that a source imports, wherever in it: also in functions, also by string."""
    package = name if name in FILES and FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            whole = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                inner = f"{whole}.{alias.name}"
                yield inner if inner in FILES else whole
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("import_module", "importlib.import_module")
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.args[0].value


GRAPH = {name: set(imports(name, path.read_text(encoding="utf-8"))) for name, path in FILES.items()}


def part(name):
    """Return the module or folder directly in the package: "mlp_xp.kernels.cpu.blas" -> "kernels"."""
    return name.split(".")[1] if "." in name else ""


def test_imports_are_found_wherever_they_hide():
    source = "import a.b\nfrom . import devices\ndef f():\n    from .kernels.generic import X\n    from ..y import z\n"
    source += "    importlib.import_module('c.d')\nif TYPE_CHECKING:\n    from e import f\n"
    found = set(imports("mlp_xp.model", source))
    assert found == {"a.b", "mlp_xp.devices", "mlp_xp.kernels.generic", "y", "c.d", "e"}
    assert {"mlp_xp.kernels.cpu.numpy_", "mlp_xp.devices"} <= GRAPH["mlp_xp.kernels"]


def test_every_module_has_a_level():
    assert {part(name) for name in FILES} - {""} <= set(LEVEL), "give the new module its place in LEVELS"


@pytest.mark.parametrize("name", [name for name in FILES if part(name)])
def test_imports_point_downwards(name):
    for imported in GRAPH[name]:
        if imported.split(".")[0] == "mlp_xp" and imported != "mlp_xp":
            assert LEVEL[part(imported)] <= LEVEL[part(name)], f"{name} imports {imported}"


@pytest.mark.parametrize("name", [name for name in FILES if part(name)])
def test_nobody_imports_the_whole_package(name):
    allowed = LEVEL[part(name)] == len(LEVELS) - 1
    assert allowed or "mlp_xp" not in GRAPH[name], "import from the module that defines it"


def test_imports_have_no_cycle():
    inside = {name: {i for i in found if i in FILES and i != name} for name, found in GRAPH.items()}
    try:
        list(TopologicalSorter(inside).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("library", OPTIONAL)
def test_optional_libraries_stay_in_their_modules(library):
    users = {part(name) for name, found in GRAPH.items() if library in {i.split(".")[0] for i in found}}
    assert users <= OPTIONAL[library]


IMPORT = """
import sys
import mlp_xp
optional = {optional}
print(sorted(optional & {{name.split(".")[0] for name in sys.modules}}))
"""


def test_importing_takes_no_backend():
    source = IMPORT.format(optional=set(OPTIONAL))
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_training_on_the_cpu_takes_no_other_backend():
    train = "mlp_xp.fit(mlp_xp.MLP([2, 2]), [[0, 1], [1, 0]], [0, 1], epochs=1)\noptional"
    source = IMPORT.format(optional=set(OPTIONAL)).replace("optional", train, 1)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_cuda_is_known_to_kernels_engines_and_devices_only():
    users = {
        part(name) for name, found in GRAPH.items() for i in found if {"cuda", "cupy", "nvmath"} & set(i.split("."))
    }
    assert users == {"kernels", "engines"}


# What is longer, or takes more, and why.
LONG_MODULES = {"mlp_xp.mlp": 325}  # one public class, half of it docstrings
LONG_FUNCTIONS = {
    "mlp_xp.fit.fit": "the public entry: its arguments are what people may ask for",
    "mlp_xp.loop.epochs": "the public entry",
}
MANY_PARAMETERS = {
    "mlp_xp.fit.fit": "the public entry",
    "mlp_xp.loop.epochs": "the public entry",
    "mlp_xp.mlp.MLP.__init__": "the public constructor",
    "mlp_xp.estimators.classifier.MLPClassifier.__init__": "scikit-learn's",
    "mlp_xp.estimators.hyperparameters.Hyperparameters.__init__": "scikit-learn's",
    "mlp_xp.estimators.regressor.MLPRegressor.__init__": "scikit-learn's",
}


def functions(name):
    """Yield the full name, the lines of the body without a docstring, and the number of parameters of each function."""
    for node, path in walk(ast.parse(FILES[name].read_text(encoding="utf-8")), name):
        body = node.body[1:] if ast.get_docstring(node) else node.body
        lines = node.end_lineno - body[0].lineno + 1 if body else 0
        taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        yield path, lines, len(taken) - (bool(taken) and taken[0].arg in ("self", "cls"))


def walk(tree, path):
    for node in ast.iter_child_nodes(tree):
        inner = f"{path}.{node.name}" if hasattr(node, "name") else path
        if isinstance(node, ast.FunctionDef):
            yield node, inner
        yield from walk(node, inner)


@pytest.mark.parametrize("name", FILES)
def test_modules_and_functions_can_be_taken_in_at_a_glance(name):
    lines = len(FILES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= LONG_MODULES.get(name, 300), "is there a seam?"
    for path, lines, parameters in functions(name):
        assert lines <= 40 or path in LONG_FUNCTIONS, f"{path} has {lines} lines"
        assert parameters <= 8 or path in MANY_PARAMETERS, f"{path} has {parameters} parameters"


@pytest.mark.usefixtures("numpy_engine")
def test_x_goes_down_from_the_command_to_the_gradient_through_seven_modules(tmp_path, monkeypatch):
    """They are those that docs/architecture.md shows."""
    stacks = []
    weight_gradient = NumpyKernels.weight_gradient

    def look(self, *arguments):
        frames = traceback.walk_stack(sys._getframe(1))
        stacks.append([frame.f_globals["__name__"] for frame, _ in frames if "mlp_xp" in frame.f_globals["__name__"]])
        return weight_gradient(self, *arguments)

    monkeypatch.setattr(NumpyKernels, "weight_gradient", look)
    arguments = ["--preset", "xor", "--epochs", "1", "--threads", "1", "--quiet", "--out", str(tmp_path / "run")]
    assert train.main(arguments) == 0
    way = [*dict.fromkeys(stacks[0][::-1]), "mlp_xp.kernels.cpu.numpy_"]
    for around in ("mlp_xp.cli.distributed", "mlp_xp.cli.errors"):  # the command: its ranks, and its exit code
        way.remove(around)
    page = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page[page.index("| module | what it does with X |") :].partition("\n\n")[0]
    assert [f"mlp_xp.{name}".replace("/", ".") for name in re.findall(r"^\| `([\w/]+)\.py`", table, re.M)] == way
    assert len(way) <= 7
    levels = [LEVEL[part(name)] for name in way]
    assert levels == sorted(levels, reverse=True)
