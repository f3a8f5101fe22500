"""Decode a picture, PNG or JPEG, at a cost that its size on the disk and in pixels bounds, and read the sign in it.

A picture of just the right size is taken as it is. In a larger one the ink is found and fitted as in MNIST.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..files import open_regular
from .ink import LEAST_CONTRAST, find_ink, fit_ink

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["JPEG", "PNG", "read_picture"]

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
MAX_BYTES = 16 << 20
MAX_SIDE = 4096
MAX_CHUNKS = 4096  # of a PNG; Pillow looks at each in Python
MAX_SEGMENTS = 1024  # of a JPEG, for the same reason
MAX_SCANS = 32  # of a progressive JPEG; each is a pass over the whole picture
NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
ORIENTATION = 0x0112
WORKING_SIDE = 640  # what is larger is averaged down to it, for there is no more to see
BAND = 256  # rows that are converted at a time, because a conversion takes up to five bytes a pixel


def read_picture(path: str | os.PathLike[str], side: int) -> NDArray[np.uint8]:
    """Read a PNG or JPEG of a sign on a ground of another color as light ink on black, (side * side,).

    What is transparent becomes white, or black if the sign itself is white. A photo is turned as its camera was held.

    Raises
    ------
    ValueError
        If the file is damaged, inconsistent or too large, the picture is smaller than (side, side), or shows nothing.
    OSError
        If there is no such file, or it is larger than 16 MiB.
    ModuleNotFoundError
        If Pillow is not installed.
    """
    with open_regular(path, MAX_BYTES) as file:
        data = file.read()
    try:
        picture = _decode(data, side)
        if picture.size == (side, side):
            return _as_it_is(np.asarray(picture.convert("L"))).reshape(-1)
        pixels = np.asarray(picture)
        return fit_ink(find_ink(pixels.reshape(*pixels.shape[:2], -1)), 0, side).reshape(-1)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def _as_it_is(gray: NDArray[np.uint8]) -> NDArray[np.uint8]:
    border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    return 255 - gray if np.median(border) > 127 else gray


def _decode(data: bytes, side: int) -> Image.Image:
    """Return a picture of gray values or colors, opaque and at most as large as it is worked with."""
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need Pillow; install it with: pip install 'mlp_xp[plot]'") from error

    kind, needed = ("JPEG", _check_jpeg(data)) if data.startswith(JPEG) else ("PNG", _needed_chunks(data, side))
    try:
        with warnings.catch_warnings(action="error"), Image.open(io.BytesIO(needed), formats=[kind]) as image:
            _check_size(image.size, side)
            image.draft(
                "RGB", (WORKING_SIDE, WORKING_SIDE)
            )  # a JPEG is decoded at 1/2, 1/4 or 1/8 where that is enough
            turned = image.getexif().get(ORIENTATION, 1)
            small = _flatten(_reduce(image))
    except _UnfitError:
        raise
    except Exception as error:  # Pillow raises SyntaxError, struct.error, zlib.error and more at damaged files
        raise ValueError(f"a damaged {kind} ({error}); save the picture again") from error
    small.getexif()[ORIENTATION] = turned
    return ImageOps.exif_transpose(small)


class _UnfitError(ValueError):
    """A sound picture that cannot be used."""


def _check_size(size: tuple[int, int], side: int) -> None:
    if not (side <= min(size) and max(size) <= MAX_SIDE):
        wanted = f"between {side}x{side} and {MAX_SIDE}x{MAX_SIDE}"
        raise _UnfitError(f"{size[0]}x{size[1]} pixels; scale it to {wanted}")


def _needed_chunks(data: bytes, side: int) -> bytes:
    """Return a PNG without the chunks that do not matter; its size is checked before anything is unpacked."""
    if data[:16] != PNG + b"\0\0\0\rIHDR" or len(data) < 33:
        raise ValueError("not a PNG file: it does not begin with a PNG's signature and header")
    _check_size((int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")), side)
    return PNG + b"".join(data[start:stop] for kind, start, stop in _chunks(data) if kind in NEEDED)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each chunk of a PNG and where it lies; the first header is the only one."""
    start = len(PNG)
    for number in range(MAX_CHUNKS):
        kind = data[start + 4 : start + 8]
        stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if number and kind == b"IHDR":
            raise ValueError("a damaged PNG (it has a second header); save the picture again")
        yield kind, start, min(stop, len(data))
        if kind == b"IEND" or stop >= len(data):
            return
        start = stop
    raise ValueError(f"over {MAX_CHUNKS} chunks, the most that are read; save the picture again")


def _check_jpeg(data: bytes) -> bytes:
    """Return the data if they begin with a moderate number of segments and hold a moderate number of scans."""
    start = 2
    for _ in range(MAX_SEGMENTS):
        if data[start : start + 1] != b"\xff" or len(data) < start + 4:
            raise ValueError("a damaged JPEG (its segments do not follow one another); save the picture again")
        if data[start + 1] == 0xDA:  # the first scan
            break
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    else:
        raise ValueError(f"over {MAX_SEGMENTS} segments, the most that are read; save the picture again")
    if data.count(b"\xff\xda", start) > MAX_SCANS:
        raise ValueError(f"over {MAX_SCANS} scans, the most that are read; save the picture again")
    return data


def _reduce(image: Image.Image) -> Image.Image:
    """Return a picture as L, RGB or RGBA, whole areas of it averaged if it is large."""
    from PIL import Image

    factor = -(-max(image.size) // WORKING_SIDE)
    rows = factor * max(1, BAND // factor)
    bands = [
        _convert(image.crop((0, top, image.width, min(top + rows, image.height)))).reduce(factor)
        for top in range(0, image.height, rows)
    ]
    result = Image.new(bands[0].mode, (bands[0].width, sum(band.height for band in bands)))
    top = 0
    for band in bands:
        result.paste(band, (0, top))
        top += band.height
    return result


def _convert(image: Image.Image) -> Image.Image:
    """Return a picture of any mode as L, RGB or RGBA, its transparent color applied."""
    from PIL import Image

    clear = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip, not scale
        deep = np.asarray(image)
        gray = Image.fromarray((deep // 257).astype(np.uint8))
        if clear is None:
            return gray
        return Image.merge("RGBA", (gray, gray, gray, Image.fromarray((deep != clear).astype(np.uint8) * 255)))
    if isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits, of which Pillow kept the upper eight
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    if clear is not None or "A" in image.mode:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _flatten(image: Image.Image) -> Image.Image:
    """Return a picture with its transparent parts white, or black if nothing is seen on white."""
    from PIL import Image

    if image.mode != "RGBA":
        return image
    for color in ("white", "black"):
        opaque = Image.alpha_composite(Image.new("RGBA", image.size, color), image).convert("RGB")
        if np.ptp(np.asarray(opaque.convert("L"))) >= LEAST_CONTRAST:
            break
    return opaque
