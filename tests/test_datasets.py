"""Data sets: the bundled MNIST, downloads from mirrors that fail in every way, toys, and the user's own files."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import mlp_xp.datasets.fashion as fashion
from mlp_xp import datasets
from mlp_xp.datasets import Dataset, limits

Arrays = dict[str, NDArray[Any]]


def ubyte_idx(array: NDArray[np.uint8]) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def small_files() -> dict[str, bytes]:
    """Four IDX files: 12 training and 5 test images of 2x3 pixels."""
    return {
        "train-images-idx3-ubyte": ubyte_idx(np.arange(72, dtype=np.uint8).reshape(12, 2, 3)),
        "train-labels-idx1-ubyte": ubyte_idx(np.arange(12, dtype=np.uint8) % 10),
        "t10k-images-idx3-ubyte": ubyte_idx(np.arange(30, dtype=np.uint8).reshape(5, 2, 3)),
        "t10k-labels-idx1-ubyte": ubyte_idx(np.arange(5, dtype=np.uint8)),
    }


def write_folder(folder: Path, files: dict[str, bytes], packed: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / (name + ".gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return folder


@contextmanager
def cheaply(seconds: float = 0.5, memory: int = 8 << 20) -> Iterator[None]:
    """Fail if the block takes more processor time or more memory at its peak than given."""
    tracemalloc.start()
    start = time.thread_time()
    try:
        yield
        assert time.thread_time() - start < seconds
        assert tracemalloc.get_traced_memory()[1] < memory
    finally:
        tracemalloc.stop()


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages name the limit, which must not depend on the machine."""
    monkeypatch.setattr(limits, "available_memory", lambda: 1 << 40)


# MNIST


def test_mnist_is_the_published_set() -> None:
    train, test = datasets.mnist()
    assert (train.X.shape, train.y.shape, test.X.shape, test.y.shape) == (
        (60000, 784),
        (60000,),
        (10000, 784),
        (10000,),
    )
    assert {array.dtype for array in (*train, *test)} == {np.dtype(np.uint8)}
    pixels = b"\0\0\x08\3\0\0\xea\x60\0\0\0\x1c\0\0\0\x1c" + train.X.tobytes()
    assert hashlib.sha256(pixels).hexdigest() == "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    assert np.bincount(test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_mnist_is_unpacked_once_and_cannot_be_spoilt() -> None:
    train, _ = datasets.mnist()
    assert datasets.mnist()[0].X is train.X
    for array in (*train, *datasets.mnist(digits=(3, 4))[1]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_mnist_five_against_eight() -> None:
    (train, test), (every_train, every_test) = datasets.mnist(digits=(5, 8)), datasets.mnist()
    assert (train.X.shape, test.X.shape) == ((11272, 784), (1866, 784))
    for part, every in ((train, every_train), (test, every_test)):
        np.testing.assert_array_equal(part.X, every.X[(every.y == 5) | (every.y == 8)])
        np.testing.assert_array_equal(part.y, every.y[(every.y == 5) | (every.y == 8)] == 8)
        assert part.y.dtype == np.uint8


def test_mnist_numbers_the_classes_in_the_order_given() -> None:
    _, every = datasets.mnist()
    _, test = datasets.mnist(digits=np.array([8, 0, 5]))
    digits = every.y[np.isin(every.y, [8, 0, 5])]
    for label, digit in enumerate((8, 0, 5)):
        np.testing.assert_array_equal(test.y == label, digits == digit)


@pytest.mark.parametrize(
    "digits",
    [(), (5,), (5, 5), (5, 5, 8), (5, 10), (-1, 5), (5.0, 8.0), "58", 5, (5, None), (True, False), (0, True)],
)
def test_mnist_refuses_digits(digits: Any) -> None:
    with pytest.raises(ValueError, match="at least two different whole numbers from 0 to 9"):
        datasets.mnist(digits=digits)


def test_mnist_needs_no_optional_package() -> None:
    code = (
        "import sys, mlp_xp.datasets as d; d.mnist((0, 1)); d.xor()\n"
        "assert not {'pooch', 'requests', 'sklearn', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Fashion-MNIST


class Mirror(BaseHTTPRequestHandler):
    """A host whose first path component says how it answers."""

    files: ClassVar[dict[str, bytes]]
    asked: ClassVar[list[str]]
    end: ClassVar[threading.Event]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        _, how, name = self.path.split("/")
        content = gzip.compress(self.files[name.removesuffix(".gz")], mtime=0)
        answers: dict[str, Callable[[], None]] = {
            "good": lambda: self.answer(content),
            "plain": lambda: self.answer(self.files[name.removesuffix(".gz")]),
            "repacked": lambda: self.answer(gzip.compress(gzip.decompress(content), 1, mtime=7)),
            "html": lambda: self.answer(b"<!DOCTYPE html><title>Sign in</title>"),
            "truncated": lambda: self.answer(content[:-20], length=len(content)),
            "cut": lambda: self.answer(content[:-20]),
            "wrong": lambda: self.answer(gzip.compress(ubyte_idx(np.ones((12, 2, 3), np.uint8)))),
            "stalled": lambda: self.answer(content[:20], length=len(content), stall=True),
            "silent": lambda: self.hang(),
            "endless": lambda: self.answer(bytes(1 << 16)),
        }
        if how.isdigit():
            self.send_error(int(how))
        else:
            answers[how]()

    def answer(self, content: bytes, length: int | None = None, stall: bool = False) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()
        if stall:
            self.hang()

    def hang(self) -> None:
        self.end.wait(20)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run a server, pin the hashes of the small files, and forget the user's settings."""
    for name in ("MLP_XP_DATA", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    Mirror.files, Mirror.asked, Mirror.end = small_files(), [], threading.Event()
    monkeypatch.setattr(fashion, "SHA256", {k: hashlib.sha256(v).hexdigest() for k, v in Mirror.files.items()})
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        Mirror.end.set()
        server.shutdown()
        thread.join()


def use_mirrors(monkeypatch: pytest.MonkeyPatch, host: str, *ways: str) -> None:
    monkeypatch.setattr(fashion, "MIRRORS", tuple(f"{host}{way}/" for way in ways))


def assert_small(parts: tuple[Dataset, Dataset]) -> None:
    train, test = parts
    np.testing.assert_array_equal(train.X, np.arange(72).reshape(12, 6))
    np.testing.assert_array_equal(train.y, np.arange(12) % 10)
    np.testing.assert_array_equal(test.X, np.arange(30).reshape(5, 6))
    np.testing.assert_array_equal(test.y, np.arange(5))


BAD = ["html", "403", "404", "503", "truncated", "cut", "wrong", "stalled", "silent"]


@pytest.mark.parametrize(("bad", "good"), [*((bad, "good") for bad in BAD), ("html", "plain"), ("404", "repacked")])
def test_a_bad_mirror_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, bad: str, good: str
) -> None:
    use_mirrors(monkeypatch, host, bad, good)
    assert_small(datasets.fashion_mnist(cache=tmp_path / "new" / "cache", timeout=0.1))
    assert [way.split("/")[1] for way in Mirror.asked] == [bad, good] * 4


def test_the_cache_is_asked_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str) -> None:
    use_mirrors(monkeypatch, host, "good")
    datasets.fashion_mnist(cache=tmp_path)
    assert len(Mirror.asked) == 4
    assert_small(datasets.fashion_mnist(cache=tmp_path))
    assert len(Mirror.asked) == 4


def test_a_damaged_file_in_the_cache_is_fetched_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str
) -> None:
    use_mirrors(monkeypatch, host, "good")
    datasets.fashion_mnist(cache=tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(ubyte_idx(np.ones((5, 2, 3), np.uint8))))
    assert_small(datasets.fashion_mnist(cache=tmp_path))
    assert Mirror.asked[4:] == ["/good/t10k-images-idx3-ubyte.gz"]


def test_the_error_lists_every_attempt_and_the_cache_stays_empty(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str
) -> None:
    ways = {
        "html": "not an IDX file",
        "404": "404 Client Error",
        "503": "503 Server Error",
        "cut": "damaged gzip data",
        "wrong": "SHA-256 of the unpacked file",
        "stalled": "timed out",
        "endless": "more than 32768 bytes",
    }
    monkeypatch.setattr(fashion, "MAX_DOWNLOAD", 32768)
    use_mirrors(monkeypatch, host, *ways)
    with pytest.raises(OSError, match=r"No mirror delivered train-images-idx3-ubyte\.gz") as caught:
        datasets.fashion_mnist(cache=tmp_path, timeout=0.1)
    lines = str(caught.value).splitlines()
    for line, (way, reason) in zip(lines[1:], ways.items(), strict=False):
        assert line.startswith(f"  {host}{way}/train-images-idx3-ubyte.gz: ")
        assert reason in line
    assert "MLP_XP_DATA" in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_refused_connection_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str) -> None:
    monkeypatch.setattr(fashion, "MIRRORS", ("http://127.0.0.1:9/", f"{host}good/"))
    assert_small(datasets.fashion_mnist(cache=tmp_path))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_a_folder_takes_the_place_of_the_download(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, by: str, packed: bool
) -> None:
    write_folder(tmp_path, small_files(), packed)
    if by == "environment":
        monkeypatch.setenv("MLP_XP_DATA", str(tmp_path))
    assert_small(datasets.fashion_mnist(tmp_path if by == "argument" else None))
    assert Mirror.asked == []


def test_a_folder_is_checked_too(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file train-images-idx3-ubyte or train-images-idx3-ubyte\.gz"):
        datasets.fashion_mnist(tmp_path)
    write_folder(tmp_path, small_files())
    with pytest.raises(ValueError, match="SHA-256"):
        datasets.fashion_mnist(tmp_path)


def test_a_missing_pooch_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install mlp_xp\[fashion\]"):
        datasets.fashion_mnist(cache=tmp_path)


@pytest.mark.parametrize("timeout", [0, -1, 31, float("nan")])
def test_the_timeout_is_bounded(timeout: float) -> None:
    with pytest.raises(ValueError, match="more than 0 and at most 30"):
        datasets.fashion_mnist(timeout=timeout)


# Toys


def test_xor() -> None:
    X, y = datasets.xor()
    assert (X.dtype, y.dtype) == (np.float32, np.uint8)
    np.testing.assert_array_equal(y, X[:, 0] != X[:, 1])


MAKERS = {
    "two spirals": lambda **options: datasets.spirals(classes=2, **options),
    "three spirals": lambda **options: datasets.spirals(classes=3, **options),
    "moons": datasets.moons,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_toys_have_equal_classes_and_follow_the_seed(make: Callable[..., Dataset]) -> None:
    X, y = make(n=301, noise=0.1, seed=3)
    assert (X.shape, X.dtype, y.shape, y.dtype) == ((301, 2), np.float32, (301,), np.uint8)
    assert np.ptp(np.bincount(y)) <= 1
    np.testing.assert_array_equal(X, make(n=301, noise=0.1, seed=3).X)
    noise = X - make(n=301, noise=0, seed=3).X
    assert 0.08 < noise.std() < 0.12
    assert np.abs(X - make(n=301, noise=0.1, seed=4).X).max() > 0.1


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_toys_are_not_separable_by_a_line_but_by_their_neighbors(make: Callable[..., Dataset]) -> None:
    X, y = make(n=300, noise=0)
    design = np.c_[X, np.ones(len(X))]
    scores = design @ np.linalg.lstsq(design, np.eye(3)[y], rcond=None)[0]
    assert np.mean(scores.argmax(1) == y) < 0.95
    distance = np.linalg.norm(X[:, None] - X[None], axis=2) + np.diag(np.full(len(X), np.inf))
    assert np.mean(y[distance.argmin(1)] == y) > 0.98


def test_moons_are_half_circles() -> None:
    X, y = datasets.moons(n=100, noise=0)
    for moon, center, side in ((0, (0.0, 0.0), 1), (1, (1.0, 0.5), -1)):
        arm = X[y == moon] - np.array(center, np.float32)
        np.testing.assert_allclose(np.linalg.norm(arm, axis=1), 1, rtol=1e-6)
        assert (side * arm[:, 1] > -1e-6).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: datasets.spirals(classes=4),
        lambda: datasets.spirals(n=2, classes=3),
        lambda: datasets.spirals(n=10.0),  # type: ignore[arg-type]
        lambda: datasets.spirals(noise=-0.1),
        lambda: datasets.moons(n=1),
        lambda: datasets.moons(noise=float("nan")),
        lambda: datasets.moons(noise=float("inf")),
        lambda: datasets.moons(n=True),
        *(lambda noise=noise: datasets.moons(noise=noise) for noise in ("a", None, True, 1j, [0.1])),
        *(
            lambda seed=seed, make=make: make(seed=seed)
            for seed in (-1, 0.5, "a", None)
            for make in (datasets.moons, datasets.spirals)
        ),
    ],
)
def test_toys_refuse(call: Callable[[], Dataset]) -> None:
    with pytest.raises(ValueError, match=r"2 or 3 arms|standard deviation|(n|seed) must be a whole number"):
        call()


# Folders


@pytest.mark.parametrize("packed", [False, True])
def test_load_a_folder(tmp_path: Path, packed: bool) -> None:
    assert_small(datasets.load(write_folder(tmp_path, small_files(), packed)))


def test_load_a_folder_with_dots_in_the_names(tmp_path: Path) -> None:
    files = {name.replace("-idx", ".idx"): content for name, content in small_files().items()}
    assert_small(datasets.load(str(write_folder(tmp_path, files))))


def test_load_a_folder_without_test_files(tmp_path: Path) -> None:
    files = {name: content for name, content in small_files().items() if name.startswith("train")}
    train, test = datasets.load(write_folder(tmp_path, files))
    assert (train.X.shape, test.X.shape) == ((10, 6), (2, 6))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-labels-idx1-ubyte", ubyte_idx(np.zeros(11, np.uint8)), "12 samples but 11 labels"),
        ("train-labels-idx1-ubyte", ubyte_idx(np.zeros((12, 2), np.uint8)), r"labels of shape \(12, 2\)"),
        ("train-labels-idx1-ubyte", b"\0\0\x09\1\0\0\0\x0c" + b"\0" * 11 + b"\xff", "label of row 11 .* is -1"),
        ("t10k-images-idx3-ubyte", ubyte_idx(np.zeros((5, 2, 2), np.uint8)), "6 columns and the test data 4"),
        ("t10k-images-idx3-ubyte", b"\0\0\x0d\2\0\0\0\5\0\0\0\1" + b"\x7f\xc0\0\0" * 5, "row 0, column 0 .* is nan"),
        ("t10k-labels-idx1-ubyte", None, "no file t10k-labels-idx1-ubyte"),
        ("train-images-idx3-ubyte", None, "no file train-images-idx3-ubyte"),
    ],
)
def test_load_refuses_a_folder(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    files = small_files()
    if content is None:
        del files[name]
    else:
        files[name] = content
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        datasets.load(write_folder(tmp_path, files))


@pytest.mark.parametrize("files", [{}, {"notes.txt": b"x"}])
def test_load_an_empty_folder_names_what_may_be_in_it(tmp_path: Path, files: dict[str, bytes]) -> None:
    expected = r"no data in this folder; .*train-images-idx3-ubyte, or X\.npy and y\.npy, or shards .* X-000\.npy"
    with pytest.raises(FileNotFoundError, match=expected):
        datasets.load(write_folder(tmp_path, files))


@pytest.mark.parametrize("name", ["../nowhere", "no\0where.csv", "nowhere.npz"])
def test_load_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        datasets.load(f"{tmp_path}/{name}")


def test_load_refuses_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "data.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a folder of IDX or \.npy files or as \.npz, \.csv"):
        datasets.load(tmp_path / "data.pkl")


# .npz


def four(dtype: str = "u1") -> Arrays:
    return {
        "x_train": np.arange(72).reshape(12, 2, 3).astype(dtype),
        "y_train": np.arange(12) % 10,
        "x_test": np.arange(30).reshape(5, 2, 3).astype(dtype),
        "y_test": np.arange(5),
    }


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_load_npz(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "a.npz", **four())
    train, test = datasets.load(tmp_path / "a.npz")
    assert_small((train, test))
    assert {array.dtype for array in (*train, *test)} == {np.dtype(np.uint8)}


@pytest.mark.parametrize(("dtype", "kept"), [("<f4", "f4"), (">f8", "f8"), ("<f2", "f4"), (">i8", "f4"), ("i1", "f4")])
def test_load_npz_types(tmp_path: Path, dtype: str, kept: str) -> None:
    arrays = {name.upper(): array for name, array in four(dtype).items()}
    np.savez(tmp_path / "a.npz", **arrays)
    train, test = datasets.load(tmp_path / "a.npz")
    assert_small((train, test))
    assert train.X.dtype == np.dtype(kept)


def test_load_npz_fortran_order_and_column_of_labels(tmp_path: Path) -> None:
    X = np.asfortranarray(np.arange(24.0).reshape(12, 2))
    np.savez(tmp_path / "a.npz", X=X, y=np.arange(12.0).reshape(12, 1), note=np.array("anything"))
    train, test = datasets.load(tmp_path / "a.npz")
    for part in (train, test):
        np.testing.assert_array_equal(part.X[:, 0], 2 * part.y.astype(float))
    assert sorted([*train.y, *test.y]) == list(range(12))


def test_whole_numbers_that_look_like_pixels_are_pixels(tmp_path: Path) -> None:
    for low, top, dtype in (
        (0, 127, np.float32),
        (0, 128, np.uint8),
        (0, 255, np.uint8),
        (0, 256, np.float32),
        (-1, 200, np.float32),
    ):
        np.savez(tmp_path / "a.npz", X=np.array([[low], [1], [top]]), y=np.array([0, 1, 300]))
        train, test = datasets.load(tmp_path / "a.npz")
        assert train.X.dtype == test.X.dtype == dtype
        assert train.y.dtype == np.int32


SCALES = st.tuples(st.sampled_from([-1, 0, 0, 0]), st.sampled_from([1, 100, 127, 128, 200, 255, 256, 1000]))


def whole_numbers(rng: np.random.Generator, rows: int, scale: tuple[int, int]) -> NDArray[np.int64]:
    table = rng.integers(scale[0], scale[1], (rows, 3), endpoint=True)
    table[0, :2] = scale
    return table


def idx_of_i4(array: NDArray[Any]) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 0x0C, array.ndim]) + sizes + array.astype(">i4").tobytes()


@pytest.mark.parametrize("kind", ["npz", "idx"])
@settings(max_examples=60)
@given(train=SCALES, test=SCALES, seed=st.integers(0, 99))
def test_both_parts_of_a_source_have_one_scale(
    tmp_path_factory: pytest.TempPathFactory, kind: str, train: tuple[int, int], test: tuple[int, int], seed: int
) -> None:
    """Whole numbers are pixels in both parts or in neither, and pixels only if all of them can be."""
    rng = np.random.default_rng(seed)
    X, X_test = whole_numbers(rng, 6, train), whole_numbers(rng, 4, test)
    path = tmp_path_factory.mktemp("scale")
    if kind == "npz":
        path /= "a.npz"
        np.savez(path, x_train=X, y_train=np.arange(6), x_test=X_test, y_test=np.arange(4))
    else:
        for part, array in (("train", X), ("t10k", X_test)):
            (path / f"{part}-images-idx3-ubyte").write_bytes(idx_of_i4(array))
            (path / f"{part}-labels-idx1-ubyte").write_bytes(idx_of_i4(np.arange(len(array))))
    parts = datasets.load(path)
    low, high = min(X.min(), X_test.min()), max(X.max(), X_test.max())
    expected = np.uint8 if low >= 0 and 127 < high <= 255 else np.float32
    assert [part.X.dtype for part in parts] == [expected, expected]
    np.testing.assert_array_equal(parts[0].X, X)
    np.testing.assert_array_equal(parts[1].X, X_test)


@pytest.mark.parametrize(
    ("train", "test", "kept"),
    [
        ("f4", "f8", "f8"),
        ("f8", "f2", "f8"),
        ("f4", "i8", "f4"),
        ("i2", "f8", "f8"),
        ("u1", "i8", "u1"),
        ("i1", "u1", "u1"),
    ],
)
def test_parts_of_two_types_become_one(tmp_path: Path, train: str, test: str, kept: str) -> None:
    arrays = {**four(train), "x_test": four(test)["x_test"]}
    np.savez(tmp_path / "a.npz", **arrays)
    parts = datasets.load(tmp_path / "a.npz")
    assert_small(parts)
    assert [part.X.dtype for part in parts] == [np.dtype(kept)] * 2


@pytest.mark.parametrize("other", [np.float32([[0.5, 1, 0]]), np.array([[300, 0, 0]]), np.array([[-1, 0, 0]])])
def test_bytes_beside_numbers_that_are_no_pixels_are_refused(tmp_path: Path, other: NDArray[Any]) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.eye(3, dtype="u1"), y_train=np.arange(3), x_test=other, y_test=np.arange(1))
    with pytest.raises(ValueError, match=r"of type uint8 and .*; uint8 counts as pixels.*save all parts in one type"):
        datasets.load(tmp_path / "a.npz")


def test_the_log_says_what_is_taken_for_pixels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mlp_xp.datasets")
    for top in (100, 200):
        np.savez(tmp_path / "a.npz", X=np.array([[0], [top]]), y=np.arange(2))
        caplog.clear()
        datasets.load(tmp_path / "a.npz")
        said = "whole numbers from 0 to 200 are taken for pixels" in caplog.text
        assert said == (top == 200)


def test_the_last_sixth_of_a_seeded_shuffle_is_for_testing(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=np.arange(65.0)[:, None], y=np.arange(65))
    train, test = datasets.load(tmp_path / "a.npz")
    order = np.random.default_rng(0).permutation(65)
    np.testing.assert_array_equal(train.y, order[:55])
    np.testing.assert_array_equal(test.X[:, 0], order[55:])
    assert not np.array_equal(datasets.load(tmp_path / "a.npz", seed=1)[1].y, test.y)


def npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(x: bytes, y: bytes | None = None, packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        archive.writestr("X.npy", x)
        archive.writestr("y.npy", npy(np.arange(3)) if y is None else y)
    return buffer.getvalue()


def npy_header(text: str, version: bytes = b"\1\0") -> bytes:
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text.encode()


def announce(shape: str, dtype: str = "<f8") -> bytes:
    return npy_header(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n")


def overwrite(content: bytes, place: int, number: int) -> bytes:
    return content[:place] + number.to_bytes(4, "little") + content[place + 4 :]


def say_it_holds(size: int, packed: bool) -> bytes:
    """An archive whose directory claims `size` bytes for X.npy, as its header does, and holds almost none."""
    header = announce(f"({size},)", "|u1")
    content = npz(header + b"abc", packing=zipfile.ZIP_STORED)
    entry = content.index(b"PK\1\2")
    content = overwrite(content, entry + 24, size + len(header))
    return overwrite(content, entry + 20, size + len(header)) if packed else content


def flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


OK = npy(np.zeros((3, 2)))

NPZ_LIES = {
    "empty": (b"", "not a zip file"),
    "not a zip": (b"\x93NUMPY" + b"\0" * 100, "not a zip file"),
    "cut": (npz(OK)[:-30], "not a zip file"),
    "CRC": (flip(npz(OK, packing=zipfile.ZIP_STORED), 180), "CRC"),
    "packed by another method": (npz(OK, packing=zipfile.ZIP_LZMA), "packed by method 14"),
    "encrypted": (flip(npz(OK), npz(OK).index(b"PK\1\2") + 8), "encrypted"),
    "objects": (npz(npy(np.array([[1], [2], [{}]], dtype=object))), "not a plain array"),
    "pickle": (npz(b"\x80\4N."), "not a plain array"),
    "text": (npz(npy(np.array([["a"], ["b"], ["c"]]))), "not a plain array"),
    "structure": (npz(npy(np.zeros(3, "f4,i4"))), "not a plain array"),
    "complex": (npz(npy(np.zeros((3, 1), complex))), "not a plain array"),
    "huge item": (npz(announce("(1,)", "|V4000000000")), "not a plain array"),
    "version 2": (npz(b"\x93NUMPY\2\0" + b"\xff" * 4), "not a plain array"),
    "an expression": (
        npz(npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (3*10**9,), }")),
        "plain array",
    ),
    "nesting": (npz(npy_header("(" * 60_000)), "not a plain array"),
    "negative size": (npz(announce("(-3, 2)")), "not a plain array"),
    "no dimension": (npz(npy(np.array(1.0))), "not a plain array"),
    "more than the zip holds": (npz(announce("(4000000000,)")), "announces 32000000000 bytes .* but the zip holds 0"),
    "another magic": (npz(announce("(3, 2)").replace(b"NUMPY", b"NUMPX") + bytes(48)), "not a plain array"),
    "0 modulo 2^64": (npz(announce(f"({2**32}, {2**32})")), f"announces {2**67} bytes"),
    "less than the zip holds": (npz(announce("(1, 2)") + bytes(48)), "announces 16 bytes .* but the zip holds 48"),
    "zip and header lie": (say_it_holds(3 << 30, packed=False), "packed bytes announce 3221225472"),
    "zip and header lie twice": (say_it_holds(3 << 30, packed=True), "ends too early|Overlapped|ends after"),
    "directory too long": (overwrite(npz(OK), len(npz(OK)) - 10, 1 << 30), r"damaged \.npz"),
    "directory too late": (overwrite(npz(OK), len(npz(OK)) - 6, 1 << 30), r"damaged \.npz"),
    "member behind the file": (overwrite(npz(OK), npz(OK).index(b"PK\1\2") + 42, 1 << 30), r"damaged \.npz"),
    "bomb": (npz(announce("(3, 2)") + bytes(30 << 20)), "announces 48 bytes .* but the zip holds 31457280"),
    "no rows": (npz(npy(np.zeros((0, 2))), npy(np.zeros(0))), "at least one row"),
    "no columns": (npz(npy(np.zeros((3, 0)))), "at least one row and one column"),
    "NaN": (npz(npy(np.array([[0], [1], [np.nan]]))), "row 2, column 0 .* is nan"),
    "labels differ in number": (npz(OK, npy(np.arange(4))), "3 samples but 4 labels"),
    "label -1": (npz(OK, npy(np.array([0, -1, 1]))), "label of row 1 .* is -1"),
    "label 0.5": (npz(OK, npy(np.array([0, 1, 0.5]))), "label of row 2 .* is 0.5"),
    "label NaN": (npz(OK, npy(np.array([0, 1, np.nan]))), "label of row 2 .* is nan"),
    "label 2^40": (npz(OK, npy(np.array([0, 1, 2**40]))), "whole numbers from 0 to 65535"),
}


@pytest.mark.parametrize(("content", "message"), NPZ_LIES.values(), ids=NPZ_LIES)
def test_load_refuses_npz(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with cheaply(), pytest.raises(ValueError, match=message) as caught:
        datasets.load(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    "names", [["X"], ["x_test", "y_test"], ["x_train", "y_train", "x_test"], ["X", "y", "x_train"]]
)
def test_load_refuses_npz_with_other_members(tmp_path: Path, names: list[str]) -> None:
    np.savez(tmp_path / "a.npz", **{name: np.zeros((3, 1)) for name in names})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected x_train, y_train, x_test and y_test"):
        datasets.load(tmp_path / "a.npz")


@pytest.mark.parametrize("names", [["X.npy", "x.npy", "y.npy"], ["x.npy", "y.npy", "y.npy"], ["X", "x.npy", "y.npy"]])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_load_refuses_npz_with_a_member_twice(tmp_path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in names:
            archive.writestr(name, OK if name.lower()[0] == "x" else npy(np.arange(3)))
    with pytest.raises(ValueError, match=r"both name [xy]; keep one"):
        datasets.load(tmp_path / "a.npz")


@settings(max_examples=200)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), min_size=1, max_size=4), cut=st.booleans()
)
def test_fuzz_npz(tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], cut: bool) -> None:
    content = bytearray(npz(OK))
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "fuzz.npz"
    path.write_bytes(content[: changes[0][0] % len(content)] if cut else content)
    try:
        train, test = datasets.load(path)
    except ValueError:
        return
    assert (train.X.shape, test.X.shape) == ((2, 2), (1, 2))


# .csv


def write_csv(folder: Path, text: str | bytes) -> Path:
    path = folder / "a.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def rows(parts: tuple[Dataset, Dataset]) -> list[tuple[float, ...]]:
    return sorted((float(label), *map(float, x)) for part in parts for x, label in zip(part.X, part.y, strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "7,0,0.5\n8,1,-1e3\n9,2,3\n",
        "label,a,b\n7,0,.5\n8,1,-1e3\n9,2,3",
        '"A","Class","B"\r\n0,7,0.5\r\n1,8,-1000\r\n2,9,3\r\n',
        "x,y,label\n0,0.5,7\n1,-1000,8\n2,3,9\n",
        "label,0,1\n7, 0 ,0.5\n\n8,1,-1000\n  \n9,2,3\n\n",
        "\ufeffy,1x1,1x2\n7,0,0.5\n8.0,1,-1000\n9,2,3\n",
    ],
    ids=["no header", "label first", "quoted names", "label before y", "blank lines", "byte order mark"],
)
def test_load_csv(tmp_path: Path, text: str) -> None:
    parts = datasets.load(write_csv(tmp_path, text))
    assert rows(parts) == [(7, 0, 0.5), (8, 1, -1000), (9, 2, 3)]
    assert parts[0].X.dtype == np.float32
    assert parts[0].y.dtype == np.uint8


def test_load_csv_of_pixels_longer_than_a_block(tmp_path: Path) -> None:
    X = np.arange(3000 * 3).reshape(3000, 3) % 256
    text = "\n".join(f"{i},{a},{b},{c}" for i, (a, b, c) in enumerate(X))
    train, test = datasets.load(write_csv(tmp_path, text))
    assert (train.X.shape, test.X.shape, train.X.dtype) == ((2500, 3), (500, 3), np.uint8)
    for part in (train, test):
        np.testing.assert_array_equal(part.X, X[part.y])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        ("label,a\n", "a header but no row"),
        ("a,b\n1,2\n", "no column is called label, target, class, y"),
        ("1,2\n3,4,5\n", "line 2: 3 values, but the first line has 2"),
        ("1,2\n\n3\n", "line 3: 1 values, but the first line has 2"),
        ("1,2\n3,4,\n", "line 2: 3 values"),
        ("label,a\n1,2\n3,\n", r"line 3, column 2: '' is not a finite"),
        ("1,2\n3,nan\n", "line 2, column 2: 'nan' is not a finite"),
        ("1,inf\n3,4\n", "line 1, column 2: 'inf' is not a finite"),
        ("1,1e39\n3,4\n", "line 1, column 2: '1e39' is not a finite"),
        ("1,2x,3\n3,4,5\n", "line 1, column 2: '2x' is not a number; if it is a label: labels are whole numbers"),
        ("1,2\n3,'4'\n", "line 2, column 2: .* is in quotes"),
        ("1,2\n3,1_0\n", "lines 1 to 2: "),
        ("1;2\n3;4\n", "semicolons separate the cells"),
        ("1,2\n-1,4\n", "line 2, column 1: '-1' is not a label"),
        ("1,2\n1.5,4\n", "line 2, column 1: '1.5' is not a label"),
        ("a,y\n2,1\n2,65536\n", "line 3, column 2: '65536' is not a label"),
        ("1\n2\n", "at least one row and one column"),
        ("1,2\n", "at least 2 are needed"),
        (b"1,2\n3,\xff\n", "line 2, column 2: "),
        (b"\0\1\2\3,\n", "not UTF-8 text but UTF-16, or no text at all"),
        ("0,0\n" * 1500 + "0,x\n", "line 1501, column 2: 'x'"),
        ("0,0\n" * 1024 + "0,0,0\n" * 3, "line 1025: 3 values"),
    ],
)
def test_load_refuses_csv(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = write_csv(tmp_path, text)
    with cheaply(), pytest.raises(ValueError, match=message) as caught:
        datasets.load(path)
    assert str(path) in str(caught.value)


def test_a_header_of_column_numbers_is_no_sample(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As `pandas.DataFrame(array).to_csv(path, index=False)` writes it."""
    for columns in (2, 3, 785):
        header = ",".join(map(str, range(columns)))
        text = "\n".join([header, *(f"{label}" + ",200" * (columns - 1) for label in (7, 8, 9))])
        parts = datasets.load(write_csv(tmp_path, text))
        assert rows(parts) == [(label, *[200.0] * (columns - 1)) for label in (7, 8, 9)]
        assert {part.X.dtype for part in parts} == {np.dtype(np.uint8)}
        assert "the first line, 0, 1, 2 and so on, is taken for the numbers of the columns" in caplog.text
        caplog.clear()
    assert len(rows(datasets.load(write_csv(tmp_path, "1,2\n3,4\n")))) == 2
    assert not caplog.text


def test_a_header_that_counts_from_one_is_no_sample(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for columns, counts in ((2, False), (3, False), (4, True), (785, True)):
        header = ",".join(map(str, range(1, columns + 1)))
        text = "\n".join([header, *(f"{label}" + ",200" * (columns - 1) for label in (7, 8, 9))])
        assert len(rows(datasets.load(write_csv(tmp_path, text)))) == 4 - counts
        assert ("the first line, 1, 2, 3 and so on, is taken for the numbers of the columns" in caplog.text) == counts
        caplog.clear()


def test_the_log_says_which_column_holds_the_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mlp_xp.datasets")
    datasets.load(write_csv(tmp_path, "6,148,0\n1,85,1\n8,183,0\n"))
    assert "column 1 holds the labels, 3 classes" in caplog.text


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (",0,1,2\n0,1,0.5,0.6\n1,0,0.7,0.8\n", r"the first column has no name.*index=False"),
        (",a,b,label\n0,0.5,0.6,1\n1,0.7,0.8,0\n", r"the first column has no name.*index=False"),
        ('"",a,b,label\n0,0.5,0.6,1\n1,0.7,0.8,0\n', r"the first column has no name.*index=False"),
        ("label,label,b\n1,2,3\n0,1,2\n", "2 columns are called label; keep one"),
        ("Class, class ,b\n1,2,3\n0,1,2\n", "2 columns are called class; keep one"),
        ("x,y,z\n1,2,3\n0,1,2\n", "x, y and z look like coordinates"),
        ("label;a\n1;2\n0;3\n", "semicolons separate the cells; save the table with commas"),
        ("1;0,5;0,7\n0;0,1;0,2\n", "semicolons separate the cells.*decimal points"),
        ("1;0,5\n0;0,1\n", "semicolons separate the cells"),
        ("label\ta\n1\t2\n0\t3\n", "tabs separate the cells"),
        ("1|2\n0|3\n", "bars separate the cells"),
        ("1 2 3\n0 3 4\n", "blanks separate the cells"),
        ("label,a\n1,2\n0,3\n".encode("utf-16"), "UTF-16"),
        ("label,a\n1,2\n0,3\n".encode("utf-16-be"), "UTF-16"),
        ('"1","2"\n"0","3"\n', "line 1, column 2: .* is in quotes; save numbers without"),
        ("label,a\nsetosa,2\nvirginica,3\n", r"'setosa' is not a number; if it is a label:.*code each class"),
        (
            "5.1,3.5,setosa\n4.9,3.0,setosa\n",
            r"column 3: 'setosa' is not a number.*the first column or in one that a header",
        ),
        ("label,a\n0.384,2\n0.1,3\n", r"'0.384' is not a label: labels are whole numbers"),
        ("a,species\n1,setosa\n", "no column is called label, target, class, y; name the column"),
    ],
)
def test_the_cause_is_named_for_tables_of_another_kind(tmp_path: Path, text: str | bytes, cause: str) -> None:
    path = write_csv(tmp_path, text)
    with pytest.raises(ValueError, match=cause) as caught:
        datasets.load(path)
    assert str(path) in str(caught.value)


# Files that cost far more than they weigh


def gzip_of_zeros(start: bytes, mebibytes: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    content = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    return content + (packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)) * mebibytes + packer.flush()


def many_members(count: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in (("x", np.zeros((3, 2))), ("y", np.arange(3))):
            archive.writestr(f"{name}.npy", npy(array))
        archive.writestr("more", b"")
    content = buffer.getvalue()
    directory, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    entry = content[content.rindex(b"PK\1\2") : end]
    size = end - directory + len(entry) * (count - 3)
    return content[:end] + entry * (count - 3) + overwrite(content[end:], 12, size)


def named_gzip(name: bytes) -> bytes:
    return b"\x1f\x8b\x08\x08" + bytes(6) + name + b"\0" + gzip.compress(IDX)[10:]


IDX = bytes([0, 0, 8, 2, 0, 0, 0, 3, 0, 0, 0, 2]) + b"\0\1\2\3\4\5"

FLOODS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "IDX of i1 packed 1000 times": (
        "train-images-idx3-ubyte.gz",
        lambda: gzip_of_zeros(b"\0\0\x09\2\0\4\0\0\0\0\4\0", 256),
    ),
    "IDX of f8 packed 1000 times": (
        "train-images-idx3-ubyte.gz",
        lambda: gzip_of_zeros(b"\0\0\x0e\2\0\0\x80\0\0\0\4\0", 256),
    ),
    "400,000 empty members of gzip": (
        "train-images-idx3-ubyte.gz",
        lambda: gzip.compress(b"", mtime=0) * 400_000 + gzip.compress(IDX),
    ),
    "400,000 members of a byte": (
        "train-images-idx3-ubyte.gz",
        lambda: gzip.compress(b"\0\0\x08\1\0\6\x1a\x80") + gzip.compress(b"\0", mtime=0) * 400_000,
    ),
    "a name of 20 MB in gzip": ("train-images-idx3-ubyte.gz", lambda: named_gzip(b"a" * 20_000_000)),
    "50 MB of padding behind gzip": ("train-images-idx3-ubyte.gz", lambda: gzip.compress(IDX) + bytes(50_000_000)),
    "npz of i1 packed 1000 times": (
        "a.npz",
        lambda: npz(announce("(262144, 256)", "|i1") + bytes(1 << 26), npy(np.zeros(262144, np.uint8))),
    ),
    "npz of 150,000 members": ("a.npz", lambda: many_members(150_000)),
    "csv of 3 million columns": ("a.csv", lambda: b"," * 3_000_000 + b"\n"),
    "csv of a line of 20 MB": ("a.csv", lambda: b"1" * 20_000_000),
    "csv of 20 million blank lines": ("a.csv", lambda: b"label,a\n" + b"\n" * 20_000_000 + b"1,2\n0,3\n"),
}


@pytest.mark.parametrize(("name", "make"), FLOODS.values(), ids=FLOODS)
def test_a_flood_is_refused_before_it_costs_anything(tmp_path: Path, name: str, make: Callable[[], bytes]) -> None:
    (tmp_path / name).write_bytes(make())
    labels = np.zeros(262144, np.uint8)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(ubyte_idx(labels))
    with cheaply(memory=40 << 20), pytest.raises(ValueError, match=str(tmp_path)) as caught:
        datasets.load(tmp_path if name.endswith("gz") else tmp_path / name)
    assert len(str(caught.value)) < 400


def test_honest_files_are_within_the_limits(tmp_path: Path) -> None:
    """Blocks of 64 KiB, as bgzip packs; padding, as tapes have it; a sparse table; some other members."""
    X = np.random.default_rng(0).integers(0, 256, (3000, 784)).astype(np.uint8)
    content = ubyte_idx(X)
    blocks = [gzip.compress(content[start : start + 65280], 1) for start in range(0, len(content), 65280)]
    (tmp_path / "a.gz").write_bytes(b"".join(blocks) + bytes(10240))
    np.testing.assert_array_equal(datasets.read_idx(tmp_path / "a.gz"), X)
    np.savez_compressed(tmp_path / "b.npz", X=np.zeros((3000, 784)), y=np.zeros(3000, int))
    assert datasets.load(tmp_path / "b.npz")[0].X.shape == (2500, 784)
    (tmp_path / "c.npz").write_bytes(many_members(1000))
    assert len(datasets.load(tmp_path / "c.npz")[0].X) == 2
    (tmp_path / "d.csv").write_text("label,a\r\n" + "\r\n1,2\r\n" * 3000)
    assert len(datasets.load(tmp_path / "d.csv")[0].X) == 2500


@pytest.mark.parametrize("kind", ["idx", "npz", "csv"])
def test_data_beyond_half_of_the_memory_are_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = np.arange(60000, dtype=np.int64).reshape(600, 100) % 5, np.zeros(600, np.uint8)
    if kind == "idx":
        (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_of_i4(X))
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(ubyte_idx(y))
    elif kind == "npz":
        np.savez(tmp_path / "a.npz", X=X.astype(np.int16), y=y)
    else:
        np.savetxt(tmp_path / "a.csv", X, "%d", ",")
    path = tmp_path if kind == "idx" else tmp_path / f"a.{kind}"
    monkeypatch.setattr(limits, "available_memory", lambda: 500_000)  # the samples become 240,000 bytes of float32
    assert len(datasets.load(path)[0].X) == 500
    monkeypatch.setattr(limits, "available_memory", lambda: 479_000)
    with pytest.raises(ValueError, match="half of the memory that is available"):
        datasets.load(path)


def test_whole_numbers_take_little_more_memory_than_the_result(tmp_path: Path) -> None:
    X = np.random.default_rng(0).integers(-5, 6, (4000, 500)).astype(np.int8)
    np.savez(tmp_path / "a.npz", X=X, y=np.zeros(4000, np.uint8))
    with cheaply(5, memory=X.size * 7):  # 1 + 1 as read and split, 4 as float32
        datasets.load(tmp_path / "a.npz")


def test_the_memory_that_is_available_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 1 << 20 < limits.available_memory() < 1 << 50


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs are POSIX")
@pytest.mark.parametrize("name", ["a.npz", "a.csv"])
def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(OSError, match="a FIFO or a device"):
        datasets.load(tmp_path / name)
