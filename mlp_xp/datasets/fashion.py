"""Fashion-MNIST, from a folder or by a verified download."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from .idx import read_idx, read_idx_pair
from .limits import Limits
from .records import Dataset, make_datasets

MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
)

# Of the unpacked files: mirrors and Linux distributions pack them differently.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

MAX_DOWNLOAD = 64 << 20


def fashion_mnist(
    folder: str | os.PathLike[str] | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    timeout: float = 10.0,
) -> tuple[Dataset, Dataset]:
    """Load Fashion-MNIST: 60,000 training and 10,000 test images, ``X`` (n, 784) and ``y`` (n,), ``uint8``.

    The labels are 0 T-shirt, 1 trousers, 2 pullover, 3 dress, 4 coat, 5 sandal, 6 shirt, 7 sneaker, 8 bag, 9 boot.

    Without a folder the four files are downloaded once, from the first mirror that delivers the published bytes, and
    kept in a cache folder. Wherever they come from, the SHA-256 of the unpacked files is checked at every call.

    Parameters
    ----------
    folder
        A folder that holds the four IDX files, plain or with ``.gz``; nothing is downloaded. By default the
        environment variable ``MLP_XP_DATA``, if it is set.
    cache
        Where downloads are kept; by default the user's cache folder.
    timeout
        Seconds that a mirror may be silent before the next one is asked, at most 30.

    Returns
    -------
    The training data and the test data.

    Raises
    ------
    ValueError
        If a file in `folder` is not the published one, or `timeout` is not in (0, 30].
    FileNotFoundError
        If a file is missing from `folder`.
    ModuleNotFoundError
        If a download is needed and pooch is not installed.
    OSError
        If no mirror delivers a file; the message lists every attempt.

    References
    ----------
    H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
    algorithms", arXiv:1708.07747, 2017. MIT license.
    """
    if not 0 < timeout <= 30:
        raise ValueError(f"timeout is {timeout!r}; expected seconds, more than 0 and at most 30")
    folder = folder or os.environ.get("MLP_XP_DATA")
    if folder:
        return _read(folder)
    pooch = _import_pooch()
    target = Path(cache or pooch.os_cache("mlp_xp") / "fashion_mnist")
    with suppress(FileNotFoundError, ValueError):
        return _read(target)
    _download(target, pooch.HTTPDownloader(timeout=timeout, chunk_size=1 << 16))
    return _read(target)


def _read(folder: str | os.PathLike[str]) -> tuple[Dataset, Dataset]:
    limits = Limits()
    train, test = make_datasets([read_idx_pair(folder, part, limits, SHA256) for part in ("train", "t10k")])
    return train, test


def _import_pooch() -> Any:
    try:
        import pooch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "Fashion-MNIST is downloaded with pooch, which is not installed: run pip install mlp_xp[fashion], "
            "or name a folder that holds the files (folder=... or the environment variable MLP_XP_DATA)",
            name="pooch",
        ) from None
    return pooch


def _download(target: Path, fetch: Callable[[str, Any, None], None]) -> None:
    """Fetch the files that are missing from the folder `target` or damaged there."""
    target.mkdir(parents=True, exist_ok=True)
    for name, sha256 in SHA256.items():
        path = target / f"{name}.gz"
        with suppress(FileNotFoundError, ValueError):
            read_idx(path, sha256=sha256)
            continue
        _download_file(path, sha256, fetch)


def _download_file(path: Path, sha256: str, fetch: Callable[[str, Any, None], None]) -> None:
    """Ask the mirrors in turn; only a file with the right hash is moved to `path`."""
    report = [f"No mirror delivered {path.name}:"]
    for mirror in MIRRORS:
        with TemporaryDirectory(prefix="download-", dir=path.parent) as scratch:
            part = Path(scratch, path.name)
            try:
                with open(part, "wb") as file:
                    fetch(mirror + path.name, _Capped(file), None)
                read_idx(part, sha256=sha256)
            except (OSError, ValueError) as error:
                report.append(f"{mirror}{path.name}: {str(error).removeprefix(f'{part}: ')}")
            else:
                part.replace(path)
                return
    report.append(
        "Try again later, or name a folder that holds the files: folder=... or MLP_XP_DATA in the environment."
    )
    raise OSError("\n  ".join(report))


class _Capped:
    """Pass bytes on to a file, up to a limit, so that no mirror can fill the disk."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.room = MAX_DOWNLOAD

    def write(self, chunk: bytes) -> None:
        self.room -= len(chunk)
        if self.room < 0:
            raise ValueError(f"more than {MAX_DOWNLOAD} bytes came")
        self.file.write(chunk)

    def flush(self) -> None:
        self.file.flush()
