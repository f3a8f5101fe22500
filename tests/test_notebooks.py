"""The notebooks run as they stand, keep the outputs of a clean run, and check their own numbers."""

from __future__ import annotations

import ast
import asyncio
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
NEEDS = {"07_backends_and_speed": ("torch", "jax")}
LARGEST = 600_000  # bytes
URL = re.compile(r"https?://\S+")
PLACE = re.compile(
    r"(?<![\w.)])/[\w.+-]+/[\w.+-]"  # an absolute path of two parts or more; none: 784/196/10, </b></td>
    r"|(?<!\w)~[\w-]*/"  # a home directory
    r"|(?<!\w)[A-Za-z]:[\\/]"  # a Windows drive
    r"|site-packages|ipykernel_"
)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def words(notebook):
    """Return what the outputs say, pictures left out."""
    return "\n".join(text for cell in code_cells(notebook) for output in cell.outputs for text in texts(output))


def texts(value):
    """Yield every text in a part of a notebook, pictures left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from texts(part if key != "image/png" else "")
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def place(text):
    """Return where on its machine a text says it was written, or None."""
    here = {str(ROOT), str(Path.home()), tempfile.gettempdir()}
    found = PLACE.search(URL.sub("", text))
    return found[0] if found else next((name for name in here if name in text), None)


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
    assert place(words(notebook)) is None


@pytest.mark.parametrize(
    "text",
    [
        "saved in /srv/data/run",
        "/opt/x",
        "'/a/b'",
        "(/a/b)",
        "at:/a/b",
        "file:///a/b",
        "~/runs",
        "~someone/runs",
        r"D:\runs",
        "D:/runs",
        "lib/python3/site-packages/x.py",
        tempfile.gettempdir(),
    ],
)
def test_places_are_found_in_every_kind_of_output(text):
    stream = nbformat.v4.new_output("stream", text=f"first\n{text}\n")
    shown = nbformat.v4.new_output("display_data", {"image/png": "/a/b", "text/html": f"<b>{text}</b>"})
    error = nbformat.v4.new_output("error", ename="E", evalue="", traceback=["first", text])
    for output in (stream, shown, error):
        cell = nbformat.v4.new_code_cell(outputs=[output])
        assert place(words(nbformat.v4.new_notebook(cells=[cell]))) is not None


@pytest.mark.parametrize(
    "text", ["784/196/10", "a / b", "1 / n", "</b></td>", "<br/>/s", "https://a.org/b/c", "/s", "2:1"]
)
def test_what_is_no_place(text):
    assert place(text) is None


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
    [
        pytest.param(
            path,
            id=path.stem,
            marks=[pytest.mark.needs(*NEEDS.get(path.stem, ())), *([] if path.stem in QUICK else [pytest.mark.slow])],
        )
        for path in NOTEBOOKS
    ],
)
def test_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # not the one of the other tests
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # else JAX warns where it finds a GPU that it was not built for
    notebook = read(path)
    stored = [kinds(cell) for cell in code_cells(notebook)]
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    asyncio.run(client.async_execute())  # unlike client.execute(), this closes its event loop
    fresh = [kinds(cell) for cell in code_cells(notebook)]
    assert not any("stderr" in kind for kind in fresh), words(notebook)
    assert fresh == stored, "run the notebook again, and keep its outputs"
    assert list(tmp_path.iterdir()) == []
