"""What is built: the sdist has all sources, a wheel has the compiled library or says why not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REPLAY = "mlp_xp/kernels/cpu/replay"
PLATFORM = sysconfig.get_platform().replace("-", "_").replace(".", "_")

pytestmark = [
    pytest.mark.needs("hatchling", "editables"),
    pytest.mark.skipif(not (ROOT / REPLAY).is_dir(), reason="the sources are gone"),
]

COMPILER = """
import sys
from pathlib import Path
Path(sys.argv[sys.argv.index("-o") + 1]).write_bytes(b"made by " + " ".join(sys.argv[1:]).encode())
"""


@pytest.fixture
def checkout(tmp_path):
    """Return a copy of what is built, with a library in it that nobody asked for."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "mlp_xp", folder / "mlp_xp", ignore=shutil.ignore_patterns("__pycache__", "libreplay.*"))
    (folder / REPLAY / "libreplay.so").write_bytes(b"of other sources")
    return folder


def build(checkout, target, **environment):
    """Build a wheel or an sdist; return its path and what was printed."""
    out = checkout.parent / "dist"
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)],
        cwd=checkout, env={**os.environ, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (path,) = out.iterdir()
    return path, done.stdout + done.stderr


def libraries(wheel):
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist() if "libreplay" in name}


def test_the_sdist_has_all_that_a_wheel_is_built_from(checkout):
    path, _ = build(checkout, "sdist")
    with tarfile.open(path) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    sources = {f"{REPLAY}/{source.name}" for source in (ROOT / REPLAY).glob("*.[ch]")}
    assert len(sources) > 3
    assert {"hatch_build.py", "pyproject.toml", *sources} <= names
    assert not any("libreplay" in name for name in names)


def test_a_wheel_with_the_library_is_for_one_platform_and_every_python(checkout, tmp_path):
    (tmp_path / "compiler.py").write_text(COMPILER)
    path, _ = build(checkout, "wheel", CC=f"{sys.executable} {tmp_path / 'compiler.py'}")
    assert path.name.endswith(f"-py3-none-{PLATFORM}.whl")
    ((name, content),) = libraries(path).items()
    assert name.startswith(f"{REPLAY}/libreplay.")
    assert content.startswith(b"made by -shared ")
    with zipfile.ZipFile(path) as file:
        (about,) = (name for name in file.namelist() if name.endswith(".dist-info/WHEEL"))
        assert b"Root-Is-Purelib: false" in file.read(about)


@pytest.mark.parametrize("compiler", ["/bin/false", "no-such-compiler"])
def test_without_a_compiler_the_wheel_is_pure_and_says_so(compiler, checkout):
    path, printed = build(checkout, "wheel", CC=compiler)
    assert path.name.endswith("-py3-none-any.whl")
    assert libraries(path) == {}
    assert "mlp_xp is installed without its compiled library, and is slower: " in " ".join(printed.split())


def test_a_pure_wheel_can_be_asked_for(checkout):
    path, printed = build(checkout, "wheel", MLP_XP_PURE="1")
    assert path.name.endswith("-py3-none-any.whl")
    assert libraries(path) == {}
    assert "without" not in printed


@pytest.mark.parametrize("environment", [{"MLP_XP_PURE": "1"}, {"CC": "/bin/false"}], ids=lambda e: next(iter(e)))
def test_an_editable_installation_keeps_no_library_of_other_sources(environment, checkout):
    editable = "import hatchling.build as build; build.build_editable('..')"
    subprocess.run([sys.executable, "-c", editable], cwd=checkout, env={**os.environ, **environment}, check=True)
    assert not list((checkout / REPLAY).glob("libreplay.*"))


TRAIN = """
import sys
sys.path.insert(0, sys.argv[1])
import mlp_xp as mx
X, y = mx.datasets.xor()
state = next(mx.epochs(mx.MLP([2, 4, 2]), X, y))
assert mx.__file__.startswith(sys.argv[1])
print(type(state.engine).__name__)
"""


CHANGED = b"// as after git pull\n"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
@pytest.mark.parametrize(
    ("more", "changed", "engine"),
    [({}, False, "CompiledEngine"), ({}, True, "ThreadEngine"), ({"MLP_XP_PURE": "1"}, False, "ThreadEngine")],
)
def test_what_was_built_trains(more, changed, engine, checkout, tmp_path):
    wheel, _ = build(checkout, "wheel", **more)
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "installed")
    if changed:
        source = tmp_path / "installed" / REPLAY / "replay.c"
        source.write_bytes(source.read_bytes() + CHANGED)
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "installed")]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MLP_XP_COMPILED")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == engine
    assert done.stderr.count("`pip install -e .`") == changed
