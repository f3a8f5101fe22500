"""Find the ink in a photo of a sign, and fit it into a square as MNIST did with the digits that people wrote.

The paper of a photo is lit unevenly, its edge or a table may be in the picture, and pen and paper have colors. A smooth
surface fitted to the paper is subtracted, the color axis along which the rest varies most is taken for that of the ink,
and Otsu's threshold separates the ink from noise.

Legend: ``h`` rows and ``w`` columns of pixels, ``c`` color channels.

References
----------
Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition", Proceedings of
the IEEE 86(11), 1998, sec. III-A.
N. Otsu, "A threshold selection method from gray-level histograms", IEEE Transactions on Systems, Man, and Cybernetics
9(1), 1979.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["find_ink", "fit_ink"]

LEAST_CONTRAST = 32  # of 255, between paper and ink
FAINTEST_INK = 1 / 8  # of the strongest
NOISE = 4  # standard deviations
SOFT = 1 / 10  # of the sign: how far the soft edges of its strokes reach
EDGE = 0.6  # of the threshold: the soft edge of a stroke belongs to it
SPECK = 1 / 100  # of the ink of the largest stroke: less is dirt
SAMPLES = 4000  # pixels that the surface is fitted to
EVEN = 2  # levels from that of the border
LEAST_EVEN = 1 / 4  # of the pixels: if more are within those levels, the ground is even
LEAST_ALONG = 1 / 6  # of the border: what covers more of it is no sign
LEAST_INSIDE = 1 / 5  # of the ink in strokes that are no table: with less, the sign reaches the border
LEAST_SIGN = 1 / 100  # of all ink: less is dirt in a picture that the sign fills
ROUNDS = 5
OUTLIER = 2.5  # standard deviations

Pixels = NDArray[np.float32]


def find_ink(pixels: NDArray[Any]) -> Pixels:
    """(h, w, c), a sign on a ground of another color -> (h, w), how much each pixel differs in the sign's direction.

    What runs along the border of the picture, such as a table beside the paper, is left out unless it is all there is.
    If nothing stands out from the ground, all is 0.
    """
    rest = pixels - _fit_ground(pixels)
    along = np.round(rest @ _main_axis(rest))  # whole levels, so that an even ground leaves exactly the sign
    sides = [_strokes(np.maximum(side, 0)) for side in (along, -along)]  # ink is darker than the ground, or lighter
    sign, whole = (max(kind, key=_energy) for kind in zip(*sides, strict=True))
    ink = sign if _energy(sign) > LEAST_SIGN * _energy(whole) else whole
    noise = NOISE * 1.4826 * float(np.median(np.abs(along)))
    return _with_edges(ink, np.maximum(along if (ink * along).sum() > 0 else -along, 0), noise)


def _energy(ink: Pixels) -> float:
    """Return how much ink there is, strong ink counting more: a wide shadow is no match for a thin stroke."""
    return float((ink * ink).sum())


def _fit_ground(pixels: NDArray[Any]) -> Pixels:
    """(h, w, c) -> (h, w, c), a quadratic surface for each channel that fits the pixels but for outliers, the ink.

    An even ground is just what the border shows, because a sign that was cut out tightly may cover most of a picture.
    """
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    level = np.median(border, axis=0).astype(np.float32)
    if np.mean(np.abs(pixels - level).max(axis=2) <= EVEN) > LEAST_EVEN:
        return np.broadcast_to(level, pixels.shape)
    height, width, channels = pixels.shape
    step = max(1, round((height * width / SAMPLES) ** 0.5))
    y, x = np.arange(height)[:, None, None] / height, np.arange(width)[:, None] / width
    terms = [y * 0 + x * 0 + 1, x + y * 0, y + x * 0, x * x + y * 0, y * y + x * 0, x * y]
    basis = np.concatenate([term[::step, ::step] for term in terms], axis=2).reshape(-1, len(terms))
    values = pixels[::step, ::step].reshape(-1, channels).astype(np.float64)
    surface = np.zeros((len(terms), channels))
    surface[0] = np.median(values, axis=0)  # most is ground
    for _ in range(ROUNDS):
        distance = np.abs(values - basis @ surface).max(axis=1)
        kept = distance <= max(1.0, OUTLIER * 1.4826 * float(np.median(distance)))
        B = basis[kept]
        surface = np.linalg.lstsq(B.T @ B, B.T @ values[kept], rcond=None)[0]
    return np.asarray(sum(term * of for term, of in zip(terms, surface, strict=True)), dtype=np.float32)


def _main_axis(rest: Pixels) -> Pixels:
    """(h, w, c) -> (c,), the direction in which pixels differ most from the ground; steps of gray keep their size."""
    flat = rest.reshape(-1, rest.shape[-1])
    axis = np.linalg.eigh(flat.T @ flat)[1][:, -1].astype(np.float32)
    return np.asarray(axis / np.abs(axis).sum())


def _strokes(ink: Pixels) -> tuple[Pixels, Pixels]:
    """(h, w) -> twice (h, w), the ink that stands out in strokes, else 0: those that may be the sign, and all.

    What runs along the border is a table or a shadow. What just touches it is cut off by it, a part of something else
    beside the sign; but if it is most of the ink, it is the sign.
    """
    if ink.max() < LEAST_CONTRAST:
        return ink * 0, ink * 0
    label = _components(ink > EDGE * _otsu(ink))
    border = np.concatenate([label[0], label[-1], label[1:-1, 0], label[1:-1, -1]])
    touching = np.bincount(border, minlength=label.max() + 1)
    mass = np.bincount(label.reshape(-1), ink.reshape(-1))
    mass[0] = 0
    sign = np.where(touching > LEAST_ALONG * len(border), 0, mass)
    inside = np.where(touching > 0, 0, mass)
    if inside.sum() >= LEAST_INSIDE * sign.sum():
        sign = inside
    kept = [(each > 0) & (each >= SPECK * each.max()) for each in (sign, mass)]
    return np.where(kept[0][label], ink, 0), np.where(kept[1][label], ink, 0)


def _with_edges(ink: Pixels, along: Pixels, noise: float) -> Pixels:
    """Return the ink (h, w) with the soft edges of its strokes: what is fainter, no noise, and near."""
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    kept, faint = ink > 0, along > max(noise, FAINTEST_INK * float(ink.max(initial=0)))
    for _ in range(round(SOFT * max(np.ptp(rows), np.ptp(columns))) if len(rows) else 0):
        grown = kept.copy()
        grown[1:] |= kept[:-1]
        grown[:-1] |= kept[1:]
        grown[:, 1:] |= kept[:, :-1]
        grown[:, :-1] |= kept[:, 1:]
        kept |= grown & faint
    return np.where(kept, along, 0)


def _otsu(values: Pixels) -> float:
    """Return the threshold that splits the values, all 0 or more, into two classes of the least variance within."""
    count, edges = np.histogram(values, bins=256)
    middle = (edges[1:] + edges[:-1]) / 2
    below, total = count.cumsum(), (count * middle).cumsum()
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    return float(edges[1:][np.nan_to_num(between).argmax()])


def _components(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """(h, w) -> (h, w), a number from 1 for each set of marked pixels that touch by a side, 0 for the others.

    Runs of marked pixels in a row are nodes, and runs that touch in the next row are joined. In each round a node takes
    the least number of its neighbors' roots, and then that of its root, so that long chains need few rounds.
    """
    starts = mask.copy()
    starts[:, 1:] &= ~mask[:, :-1]
    run = np.where(mask, starts.cumsum().reshape(mask.shape), 0)
    touching = mask[1:] & mask[:-1]
    a, b = run[1:][touching], run[:-1][touching]
    root = np.arange(starts.sum() + 1)
    while (root[a] != root[b]).any():
        least = np.minimum(root[a], root[b])
        np.minimum.at(root, root[a], least)
        np.minimum.at(root, root[b], least)
        while (root != root[root]).any():
            root = root[root]
    return root[run]


def fit_ink(gray: NDArray[Any], ground: float, side: int) -> NDArray[np.uint8]:
    """(h, w), light ink on a ground of this level -> (side, side), the ink scaled and centered as in MNIST.

    Its longer side takes 20 of 28 pixels, each the average of an area, and its center of mass is in the center.

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
    """Return where ink with this mass along an axis begins for its center of mass to be at pixel side / 2."""
    center = float(mass @ np.arange(len(mass)) / mass.sum())
    return min(max(0, round(side / 2 - center)), side - len(mass))
