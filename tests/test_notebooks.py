"""The notebooks run as they stand, keep the outputs of a clean run, and check their own numbers."""

from __future__ import annotations

import ast
import json
import os
import re
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
QUICK = {"02_backpropagation_by_hand"}
LARGEST = 600_000  # bytes
PLACES = re.compile(r"/home/|/root/|/tmp/|/var/folders/|/Users/|[A-Z]:\\|site-packages|ipykernel_")


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def words(notebook):
    """Return what the outputs say, pictures left out."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    for output in outputs:
        output.get("data", {}).pop("image/png", None)
    return json.dumps(outputs, ensure_ascii=False)


def kinds(cell):
    """Return what kinds of output a cell has: its streams, and the formats of what it displays."""
    return {key for output in cell.outputs for key in ([output.name] if "name" in output else output.get("data", ()))}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_there_are_notebooks():
    assert [path.name[:3] for path in NOTEBOOKS] == [f"{i:02d}_" for i in range(1, len(NOTEBOOKS) + 1)]
    assert len(NOTEBOOKS) >= 7


def test_is_small_and_valid_and_says_nothing_about_its_machine(path):
    assert path.stat().st_size < LARGEST
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    said = words(notebook)
    assert PLACES.search(said) is None
    assert not any(place in said for place in {str(ROOT), str(Path.home()), tempfile.gettempdir()})


def test_keeps_the_outputs_of_one_run_from_top_to_bottom(path):
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in kinds(cell) for cell in cells)
    assert not any("stderr" in kinds(cell) for cell in cells)
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)


def test_begins_with_its_title_and_aim(path):
    first = read(path).cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# \S.*\n\n\S", first.source)


def test_asserts_the_numbers_that_matter(path):
    source = "\n".join(cell.source for cell in code_cells(read(path)))
    checks = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assert)
        or (isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2].startswith("assert_"))
    ]
    assert len(checks) >= 5


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else pytest.mark.slow) for path in NOTEBOOKS],
)
def test_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # not the one of the other tests
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # else JAX warns where it finds a GPU that it was not built for
    notebook = read(path)
    stored = [kinds(cell) for cell in code_cells(notebook)]
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    fresh = [kinds(cell) for cell in code_cells(notebook)]
    assert not any("stderr" in kind for kind in fresh), words(notebook)
    assert fresh == stored, "run the notebook again, and keep its outputs"
    assert list(tmp_path.iterdir()) == []
