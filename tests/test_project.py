"""What stands around the package: workflows, versions, constraints and extras agree with one another."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

import mlp_xp as mx

ROOT = Path(__file__).parent.parent
INSTALLED = Path(mx.__file__).parent.parent  # a checkout, or where a wheel was installed
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
WORKFLOWS = {
    path.name: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in (ROOT / ".github" / "workflows").glob("*.yml")
}
JOBS = [(file, name, job) for file, workflow in WORKFLOWS.items() for name, job in workflow["jobs"].items()]
STEPS = [(f"{file}:{name}", step) for file, name, job in JOBS for step in job["steps"]]
COMMANDS = [(where, line) for where, step in STEPS for line in step.get("run", "").splitlines()]
TOOLS = {"build", "cibuildwheel", "mkdocs", "mlp_xp", "pip", "pytest", "twine"}  # workflows run them with `python -m`


def bounds(requirements):
    """Return the lowest version that each requirement allows, by name: "numpy>=2.0" -> {"numpy": "2.0"}."""
    found = [re.match(r"([\w.-]+?)(?:\[[^]]*\])?>=([\d.]+)", requirement) for requirement in requirements]
    return {match[1].lower(): match[2] for match in found if match}


def extra(name):
    """Return the requirements of an extra, those of the extras that it names included."""
    for requirement in EXTRAS[name]:
        own = re.fullmatch(r"mlp_xp\[(.*)\]", requirement)
        yield from (part for inner in own[1].split(",") for part in extra(inner)) if own else (requirement,)


def numbers(version):
    return tuple(map(int, version.split("."))) + (0,) * (2 - version.count("."))


def test_every_extra_that_is_named_exists():
    texts = [*(requirement for extra in EXTRAS.values() for requirement in extra), *(line for _, line in COMMANDS)]
    texts += [
        (ROOT / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "README.md", ".ci/run", "conftest.py")
    ]
    named = {
        name
        for text in texts
        for names in re.findall(r"(?:mlp_xp|whl\)|'\.|\"\.)\[([\w,-]+)\]", text)
        for name in names.split(",")
    }
    assert len(named) > 8
    assert named <= EXTRAS.keys()


def test_oldest_constraints_are_the_lower_bounds():
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / ".ci" / "oldest.txt").read_text(), re.MULTILINE))
    lowest = bounds([*PROJECT["dependencies"], *extra("test"), *extra("cuda12")])
    assert pinned.keys() - {"scipy", "pyparsing", "ipython"} == lowest.keys()  # these come with others
    assert {name: numbers(pinned[name]) for name in lowest} == {name: numbers(low) for name, low in lowest.items()}


def test_the_emulated_cuda_tests_what_the_extras_install():
    for version in ("12", "13"):
        installed = {requirement.replace("[ctk]", "") for requirement in extra(f"cuda{version}")}
        assert installed < set(extra(f"test-cuda{version}"))


@pytest.mark.parametrize("library", ["torch", "jax", "onnx", "onnxruntime", "cuda-bindings", "nvidia-cuda-nvrtc"])
def test_what_is_large_is_in_test_all_and_not_in_test(library):
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in extra("test")}
    assert library not in names
    assert library in {re.match(r"[\w-]+", requirement)[0] for requirement in extra("test-all")}


@pytest.mark.parametrize("page", ["README.md", "bench/README.md", "docs/guides/benchmark.md"])
def test_who_wants_to_compare_is_told_to_install_the_peers(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    (names,) = re.findall(r"pip install -e '\.\[([\w,]+)\]'[^$]*?\n(?:\$ )?python -m bench\.compare", text)
    installed = {re.match(r"[\w-]+", requirement)[0] for name in names.split(",") for requirement in extra(name)}
    assert {"torch", "jax", "scikit-learn", "matplotlib", "pytest-benchmark"} <= installed


def located(path):
    return (INSTALLED if path.startswith("mlp_xp/") else ROOT) / path


def test_contributing_names_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:mlp_xp|tests|docs|\.ci|\.github)/[\w./]*)`", text):
        assert located(path).exists(), path
    places = re.findall(r"((?:`\w+`(?: and )?)+)\s+(?:in|to)\s+`(mlp_xp/[\w./]+\.py)`", text)
    assert len(places) > 5
    for names, path in places:
        source = located(path).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(    def |def |class )?{name}\b", source, re.MULTILINE), (name, path)


def test_one_version_in_package_citation_and_changelog():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == mx.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)[:2] == ["Unreleased", mx.__version__]


def test_citation_has_what_its_format_demands():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


@pytest.mark.parametrize(("file", "name", "job"), JOBS, ids=lambda value: value if isinstance(value, str) else "")
def test_jobs_are_whole(file, name, job):
    """Each runs somewhere, needs jobs that exist, and uses actions of a fixed major version."""
    runners = job["runs-on"]
    values = job.get("strategy", {}).get("matrix", {})
    for runner in values["os"] if runners == "${{ matrix.os }}" else [runners]:
        assert re.fullmatch(r"(ubuntu|macos|windows)-(latest|[\d.]+)", runner)
    needed = job.get("needs", [])
    assert ({needed} if isinstance(needed, str) else set(needed)) <= WORKFLOWS[file]["jobs"].keys()
    for step in job["steps"]:
        assert ("uses" in step) != ("run" in step)
        assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step.get("uses", "a/b@v1"))
    for used in re.findall(r"matrix\.(\w+)", str(job)):
        assert used in values


@pytest.mark.parametrize(("where", "command"), COMMANDS)
def test_commands_of_the_workflows_exist(where, command):
    words = shlex.split(command)
    if words[0] == "python":
        assert words[1] == "-m"
        assert words[2] in TOOLS
    else:
        assert words[0] in {"bash", "mlp-xp", "rm", "test"}
    for word in words[1:]:
        if word.startswith((".ci/", "mlp_xp/")):
            assert (ROOT / word).is_file()
    if words[0] == "mlp-xp":
        assert words[0] in PROJECT["scripts"]


def test_files_that_ci_names_are_there():
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    steps = re.findall(r"tests/test_\{([\w,]+)\}\.py", text)
    assert len(steps) == 2
    named = {f"tests/test_{name}.py" for names in steps for name in names.split(",")}
    named |= set(re.findall(r"\.ci/\w+\.txt", text))
    assert {name for name in named if not (ROOT / name).is_file()} == set()


def test_platforms_are_the_promised_ones():
    matrix = WORKFLOWS["ci.yml"]["jobs"]["platforms"]["strategy"]["matrix"]
    said = {line.split(" :: ")[-1] for line in PROJECT["classifiers"] if line.startswith("Operating System")}
    assert said == {"Linux", "MacOS", "Windows"}
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    versions = [line.split(" :: ")[-1] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d", line)]
    assert [versions[0], versions[-1]] == matrix["python"]
    assert PROJECT["requires-python"] == f">={versions[0]}"


def test_only_publishing_may_ask_for_an_identity():
    """The default is to read; a job has one right more only when it publishes."""
    for file, workflow in WORKFLOWS.items():
        assert workflow["permissions"] == {"contents": "read"}
        for name, job in workflow["jobs"].items():
            assert ("permissions" in job) == (name in {"publish", "deploy"}), file
