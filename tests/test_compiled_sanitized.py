"""The compiled library under the compiler's sanitizers, and when memory or threads are refused.

A program in C, ``replay_driver.c``, trains random networks without Python: there AddressSanitizer knows each array, and
ThreadSanitizer each thread. The tests that compare with NumPy run once more in a process with AddressSanitizer.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlp_xp.kernels.cpu import compiled

from . import compiled_cases as cases

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compiled.library() is None, reason="needs the compiled library"),
    pytest.mark.skipif(
        sys.platform != "linux" or shutil.which("gcc") is None, reason="needs Linux with the compiler gcc"
    ),
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="needs x86-64"),
]

ADDRESSES = "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
RACES = "-O1 -g1 -fsanitize=thread"
RACE = "data race"
KINDS = [(real, name) for real in ("float", "double") for name in ("base", "v3", "v4")]


def needs(instructions):
    if instructions > compiled.library().instructions:  # "base" < "v3" < "v4"
        pytest.skip(f"needs a processor with {instructions}")


def build_driver(folder, sanitizers, real="float", instructions="base", source=cases.REPLAY):
    """Return the driver's path, compiled with these sources of the library."""
    build, path = cases.build(), folder / "driver"
    flags = [*build.FLAGS, *build.X86[instructions].split(), *sanitizers.split(), "-Werror", f"-DREAL={real}"]
    text = cases.ROOT / "tests/replay_driver.c"
    command = ["gcc", *flags, "-DSUFFIX=driver", f"-I{source}", str(text), "-o", str(path), "-lm", "-lpthread"]
    subprocess.run(command, check=True)
    return path


def drive(path, *words, timeout=300):
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run([path, *words], env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize(("real", "instructions"), KINDS)
def test_memory_is_used_as_defined(real, instructions, tmp_path):
    """No access behind an array, no undefined behavior, no leak; also if any allocation or thread is refused."""
    needs(instructions)
    driver = build_driver(tmp_path, ADDRESSES, real, instructions)
    for words in (("networks", "100"), ("ranks", "40"), ("predictions", "60"), ("engines",), ("memory",), ("threads",)):
        done = drive(driver, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        if words == ("memory",):
            assert int(done.stdout.split()[0]) > 30 * 20  # at least 20 allocations for each of 30 networks


@pytest.mark.parametrize("instructions", ["base", "v3", "v4"])
def test_threads_do_not_race(instructions, tmp_path):
    needs(instructions)
    driver = build_driver(tmp_path, RACES, "float", instructions)
    for words in (("networks", "40"), ("ranks", "15"), ("predictions", "20"), ("engines",), ("threads",)):
        done = drive(driver, *words)
        assert done.returncode == 0, done.stdout + done.stderr


def test_one_thread_works_alone_while_others_wait_for_cores(tmp_path):
    """By a clock that says so: in 100 epochs, 400 of a busy machine, 100 after it, 100 of one that is just slower."""
    done = drive(build_driver(tmp_path, "-O1"), "pace")
    quiet, busy, again, slower = map(int, done.stdout.split()[:4])
    assert quiet == again == slower == 100
    assert busy < 100


FAULTS = {
    "masks of too few columns": ("new (COLUMNS * words", "new (words", ADDRESSES, "overflow"),
    "numbers of too few rows": ("new (64 * words", "new (words", ADDRESSES, "overflow"),
    "rows that are too few": ("up(least(of_shards", "1 + 0 * up(least(of_shards", ADDRESSES, "overflow"),
    "parameters read behind their end": ("if (behind < ROW &&", "if (behind < 0 &&", ADDRESSES, "overflow"),
    "a leak": ("free(r->own[t].by_column);", "", ADDRESSES, "LeakSanitizer"),
    "a leak if memory is short": ("failed:\n  NAME(free, SUFFIX)(r);", "failed:", ADDRESSES, "LeakSanitizer"),
    "numbers off a boundary": ("*)s->X + row", "*)s->X + 1 + row", ADDRESSES, "Sanitizer"),
    "no barrier in the end": ("meet(r);\n  if (r->setup.ranks", "if (r->setup.ranks", RACES, RACE),
    "no barrier in the middle": ("meet(r);\n  meet_ranks(r, t, send_rows", "meet_ranks(r, t, send_rows", RACES, RACE),
    "no barrier after groups": ("  meet(r);\n  const Update", "  const Update", RACES, RACE),
    "no barrier after messages": ("send(r, u);\n  meet(r);", "send(r, u);", RACES, RACE),
    "a message that is too long": ("(to - from) * size, s", "(to - from) * size + 8, s", ADDRESSES, "overflow"),
    "tables filled by each engine": (
        "pthread_once(&tables_are_filled, fill_tables)", "fill_tables()", RACES, RACE
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "fault", "sanitizers", "message"), FAULTS.values(), ids=FAULTS)
def test_faults_are_found(text, fault, sanitizers, message, tmp_path):
    source = tmp_path / "replay"
    shutil.copytree(cases.REPLAY, source)
    file = source / "replay.c"
    before = file.read_text()
    assert before.count(text) == 1
    file.write_text(before.replace(text, fault))
    driver = build_driver(tmp_path, f"{sanitizers} -Wno-unused", source=source)
    for words in (("networks", "60"), ("ranks", "20"), ("predictions", "20"), ("engines",), ("memory",)):
        done = drive(driver, *words)
        if done.returncode:
            break
    assert done.returncode != 0
    assert message in done.stderr, done.stderr


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_no_set_of_instructions_has_warnings(compiler, tmp_path, monkeypatch):
    if shutil.which(compiler) is None:
        pytest.skip(f"needs the compiler {compiler}")
    monkeypatch.setenv("CC", compiler)
    cases.build().compile_library(cases.REPLAY, tmp_path / "libreplay.so", "-Werror")
    assert (tmp_path / "libreplay.so").exists()


COMPARISON = """
import os, sys
os.environ.pop("LD_PRELOAD")
from pathlib import Path
from mlp_xp.kernels.cpu import compiled
compiled.FOLDER = Path({folder!r})
assert compiled.library().path.parent == compiled.FOLDER
import pytest
chosen = "(numpy and 20) or large_products or odd or 16_bits or zero or 64_layers"
sys.exit(pytest.main(["-q", "-s", "-x", "-p", "no:cacheprovider", "tests/test_compiled.py", "-k", chosen]))
"""


def test_the_comparison_with_numpy_uses_memory_as_defined(tmp_path):
    build, own = cases.build(), compiled.library().instructions
    build.X86 = {own: build.X86[own]}  # no others are used here, and each takes long to compile
    build.compile_library(cases.REPLAY, tmp_path / "libreplay.so", *ADDRESSES.split())
    library = subprocess.run(["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True)
    environment = {
        **os.environ, "LD_PRELOAD": library.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(cases.ROOT)), os.environ.get("PYTHONPATH")])),
    }  # fmt: skip
    command = [sys.executable, "-c", COMPARISON.format(folder=str(tmp_path))]
    done = subprocess.run(command, cwd=cases.ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
    assert "Sanitizer" not in done.stderr
    assert "runtime error" not in done.stderr
