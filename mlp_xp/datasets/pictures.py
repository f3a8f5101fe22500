"""Make of a picture what MNIST made of the digits that people wrote.

A picture of just the right size is taken as it is. In a larger one the ink is cut out, its longer side scaled to 20 of
28 pixels by averaging areas, and its centre of mass put in the centre (LeCun et al. 1998, sec. III-A).
"""

from __future__ import annotations

import io
import os
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PNG", "fit_ink", "read_png"]

PNG = b"\x89PNG\r\n\x1a\n"
MAX_BYTES = 16 << 20
MAX_SIDE = 4096
LEAST_CONTRAST = 32  # of 255, between paper and ink
FAINTEST_INK = 1 / 8  # of the strongest


def read_png(path: str | os.PathLike[str], side: int) -> NDArray[np.uint8]:
    """Read a PNG of a dark sign on light ground, or the reverse, as light ink on black, (side * side,).

    Any mode is read; colours become grey, and what is transparent becomes white. The ground is what the border shows.

    Raises
    ------
    ValueError
        If the file is damaged, untrue or too large, the picture is smaller than (side, side), or shows nothing.
    ModuleNotFoundError
        If Pillow is not installed.
    """
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    try:
        gray = _decode(data, side)
        border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
        ground = int(np.median(border))
        if ground > 127:
            gray, ground = 255 - gray, 255 - ground
        return (gray if gray.shape == (side, side) else fit_ink(gray, ground, side)).reshape(-1)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def _decode(data: bytes, side: int) -> NDArray[np.uint8]:
    """Return the grey values (height, width) of a PNG; its size is checked before anything is unpacked."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("PNG files need Pillow; install it with: pip install 'mlp_xp[plot]'") from error

    if len(data) > MAX_BYTES:
        raise ValueError(f"the file has more than {MAX_BYTES} bytes, the most allowed; make the picture smaller")
    if data[:16] != PNG + b"\0\0\0\rIHDR" or len(data) < 33:
        raise ValueError("not a PNG file: it does not begin with a PNG's signature and header")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if not (side <= width <= MAX_SIDE and side <= height <= MAX_SIDE):
        raise ValueError(f"{width}x{height} pixels; scale it to between {side}x{side} and {MAX_SIDE}x{MAX_SIDE}")
    try:
        with warnings.catch_warnings(action="error"), Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size != (width, height):
                raise ValueError(f"the first header says {width}x{height} pixels, a later one {image.size}")
            if image.mode.startswith("I"):  # 16 bits, which convert would clip, not scale
                return (np.asarray(image) // 257).astype(np.uint8)
            colours = image.convert("RGBA")
    except Exception as error:  # Pillow raises SyntaxError, struct.error, zlib.error and more at damaged files
        raise ValueError(f"a damaged PNG ({error}); save the picture again") from error
    white = Image.new("RGBA", colours.size, "white")
    return np.asarray(Image.alpha_composite(white, colours).convert("L"))


def fit_ink(gray: NDArray[Any], ground: float, side: int) -> NDArray[np.uint8]:
    """(height, width), light ink on a ground of this level -> (side, side), the ink scaled and centred as in MNIST.

    Raises
    ------
    ValueError
        If there is no ink.
    """
    ink = np.maximum(gray.astype(np.float32) - ground, 0)
    if ink.max() < LEAST_CONTRAST:
        raise ValueError("nothing stands out from the ground that the border shows; give a sign of another brightness")
    rows, columns = ((ink > FAINTEST_INK * ink.max()).any(axis=axis).nonzero()[0] for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] * (255 / ink.max())

    scale = round(side * 20 / 28) / max(ink.shape)
    height, width = (max(1, round(scale * length)) for length in ink.shape)
    ink = _averages(ink.shape[0], height) @ ink @ _averages(ink.shape[1], width).T

    result = np.zeros((side, side), np.uint8)
    top, left = _corner(ink.sum(axis=1), side), _corner(ink.sum(axis=0), side)
    result[top : top + height, left : left + width] = ink.round()
    return result


def _averages(n: int, m: int) -> NDArray[np.float32]:
    """Return the matrix (m, n) that averages n pixels over m equal intervals, each pixel by its share of them."""
    edges = np.linspace(0, n, m + 1)
    pixels = np.arange(n)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (overlap.clip(0) * (m / n)).astype(np.float32)


def _corner(mass: NDArray[np.float32], side: int) -> int:
    """Return where ink with this mass along an axis begins for its centre of mass to be at pixel side / 2."""
    centre = float(mass @ np.arange(len(mass)) / mass.sum())
    return min(max(0, round(side / 2 - centre)), side - len(mass))
