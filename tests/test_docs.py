"""The documentation builds without a warning, its code runs, and what it quotes is there."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mlp_xp import export, predict, trace, train
from mlp_xp.cli import config

ROOT = Path(__file__).parent.parent
PACKAGE = Path(export.__file__).parent
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}


def blocks(language, text):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


PYTHON = {page: blocks("python", text) for page, text in PAGES.items() if blocks("python", text)}
COMMANDS = sorted(
    {
        part.strip()
        for text in PAGES.values()
        for block in blocks("console", text)
        for line in block.splitlines()
        for part in line.removeprefix("$ ").split("&&")
    }
    | set(re.findall(r"`(python -m mlp_xp\.[^`]*)`", PAGES["lectures.md"] + PAGES["formulas.md"]))
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr
    return folder


class Loaded(HTMLParser):
    """Collects what a browser would fetch for a page."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in ("script", "img", "iframe") or (tag == "link" and values.get("rel") in ("stylesheet", "preconnect")):
            self.addresses += [values[name] for name in ("src", "href") if values.get(name)]


def test_site_builds_strictly_and_loads_nothing_from_elsewhere(site):
    for page in PAGES:
        html = (site / page).with_suffix(".html").read_text(encoding="utf-8")
        loaded = Loaded()
        loaded.feed(html)
        assert loaded.addresses
        assert [address for address in loaded.addresses if re.match("(https?:)?//", address)] == []


def test_reference_shows_docstrings_without_leftover_markup(site):
    networks = (site / "reference" / "networks.html").read_text(encoding="utf-8")
    assert 'id="mlp_xp.mlp.MLP.loss_and_gradient"' in networks
    assert ">weight_gradient<" in networks  # the source of backward
    for page in (site / "reference").glob("*.html"):
        rendered = re.sub(r"<details.*?</details>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)  # no sources
        assert not re.search(r":(class|func|meth|data):", rendered), page.name


def test_search_works_in_pages_that_were_opened_from_the_disk(site):
    assert (site / "search" / "search_index.js").stat().st_size > 100_000
    shim = re.search(r'<script src="(\S*iframe-worker\S*)"', (site / "index.html").read_text(encoding="utf-8"))
    assert "Worker" in (site / shim[1]).read_text(encoding="utf-8")


def test_long_signatures_are_broken_into_lines(site):
    """What the docs extra brings ruff along for."""
    html = (site / "reference" / "training.html").read_text(encoding="utf-8")
    signatures = [
        re.sub("<[^>]+>", "", found) for found in re.findall(r'doc-signature highlight">(.*?)</pre>', html, re.DOTALL)
    ]
    assert any(signature.strip().startswith("fit(") for signature in signatures)
    assert max(len(line) for signature in signatures for line in signature.splitlines()) < 100


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/-]+\.md", text[text.index("\nnav:") :]))
    assert named == set(PAGES)


NEEDS = {"guides/torch_jax.md": ("torch", "jax", "onnx")}


@pytest.mark.parametrize("page", [pytest.param(page, marks=pytest.mark.needs(*NEEDS.get(page, ()))) for page in PYTHON])
def test_python_runs_as_it_stands(page, tmp_path, monkeypatch, pytestconfig):
    if page == "emulated-cuda.md" and not pytestconfig.getoption("emulated_cuda"):
        pytest.skip("would install the emulated CUDA for the tests after it: --emulated-cuda")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")  # a page sets it
    names = {}
    for code in PYTHON[page]:
        exec(compile(code, page, "exec"), names)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(blocks("toml", PAGES["guides/reproducibility.md"])[0])
    (tmp_path / "flowers.csv").write_text("a,b,label\n" + "0.5,1,0\n1.5,2,1\n" * 9)
    program, *arguments = shlex.split(command, comments=True)
    if program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        assert set(re.search(r"\[(.*)\]", command)[1].split(",")) <= set(extras)
        return
    dash_m, module, *options = arguments
    assert (program, dash_m) == ("python", "-m")
    if module == "mlp_xp.train" and "cuda" in options:
        assert config.parse(options).device == "cuda"
    elif module == "mlp_xp.train":
        assert train.main([*options, "--dry-run"]) == 0, capsys.readouterr().err
    elif module == "mlp_xp.trace":
        assert trace.main(options) == 0
    elif module in ("mlp_xp.predict", "mlp_xp.export"):
        assert (predict if module == "mlp_xp.predict" else export).main(options) == 2
        assert "runs/first: " in capsys.readouterr().err
    else:
        assert module == "pytest" or (ROOT / f"{module.replace('.', '/')}.py").exists()


def test_commands_page_names_every_option(capsys):
    page = PAGES["reference/commands.md"]
    for name, command in (("train", train), ("predict", predict), ("export", export), ("trace", trace)):
        with pytest.raises(SystemExit):
            command.main(["--help"])
        options = set(re.findall(r"(?<![\w-])--(?!no-|help)[a-z0-9-]+", capsys.readouterr().out))
        section = page[page.index(f"## {name}") :].partition("\n## ")[0]
        assert {option for option in options if f"`{option}`" not in section} == set(), name


TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
}


@pytest.mark.parametrize("page", ["formulas.md", "exactness.md"])
def test_tests_that_are_named_are_there(page):
    named = set(re.findall(r"`(test_\w+)`", PAGES[page]))
    assert len(named) > 15
    assert named - TESTS == set()


def test_formulas_quote_the_source():
    text = PAGES["formulas.md"]
    shown = re.findall(r"^``` { .python title=\"mlp_xp/(.*?)\" }\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert [path for path, _ in shown] == ["model.py", "model.py"]
    lines = re.findall(r"`([^`]+)` `([\w/]+\.py)`", text)
    assert len(lines) > 30
    for path, code in [*shown, *((path, code) for code, path in lines)]:
        assert code in (PACKAGE / path).read_text(encoding="utf-8"), f"no longer in {path}: {code}"


def test_every_system_of_the_lectures_is_on_both_pages():
    for page in ("formulas.md", "lectures.md"):
        assert {int(number) for number in re.findall(r"\bS(\d+)\b", PAGES[page])} == {*range(1, 19)}, page


def test_every_notebook_is_on_the_lectures_page():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"`{path.name}`" in PAGES["lectures.md"]


def test_trace_in_the_lectures_page_is_what_the_command_prints(capsys):
    assert trace.main(shlex.split("784 196 10 --samples 60000 --output softmax_of_sigmoid")) == 0
    assert blocks("text", PAGES["lectures.md"]) == [capsys.readouterr().out]


def test_picture_of_the_architecture_is_up_to_date():
    picture = runpy.run_path(str(DOCS / "picture.py"))
    assert picture["PICTURE"].read_text(encoding="utf-8") == picture["draw"](), "run python docs/picture.py"
