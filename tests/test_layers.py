"""Imports point only downwards, and heavy libraries stay inside the modules that need them."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mlp_xp

FOLDER = Path(mlp_xp.__file__).parent

LEVELS = [  # a module, or a folder of modules, imports from its own level and from those above it in this list
    {"checks"},
    {"files", "datasets"},
    {"devices"},
    {"kernels", "params"},
    {"model", "metrics"},
    {"objective", "optim"},
    {"rows", "mlp", "convert"},
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
    "jax": {"devices"},
    "torch": {"devices", "convert"},
    "nvmath": {"kernels"},
    "matplotlib": {"plots"},
    "onnx": {"convert"},
    "onnxruntime": set(),
    "pooch": {"datasets"},
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
        elif isinstance(node, ast.Call) and ast.unparse(node).startswith(
            ("import_module('", "importlib.import_module('")
        ):
            yield ast.literal_eval(node.args[0])


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
