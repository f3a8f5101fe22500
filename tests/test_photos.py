"""Photos of digits: drawn digits on paper and boards, lit unevenly, and read by a network that saw MNIST only."""

from __future__ import annotations

import numpy as np
import pytest

import mlp_xp as mx
from mlp_xp.datasets.ink import _components, find_ink, fit_ink
from mlp_xp.datasets.pictures import read_picture

Image = pytest.importorskip("PIL.Image")

WIDTH, HEIGHT = 640, 480


@pytest.fixture(scope="module")
def model(mnist):
    model = mx.MLP([784, 64, 10], activation="relu")
    mx.fit(model, *mnist[0], epochs=6, batch_size=128, optimizer=mx.Adam(lr=0.002))
    return model


# A photo is ground and ink, mixed by how much ink covers a pixel, and light.


def coverage(digit, size, top, left):
    """(28, 28) of 0 to 255 -> (h, w, 1) of 0 to 1, the digit scaled and put into a picture."""
    scaled = np.asarray(Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC))
    return np.pad(scaled / 255, ((top, HEIGHT - size - top), (left, WIDTH - size - left)))[..., None]


def placed(rng, digit, smallest=180, largest=300):
    size = int(rng.integers(smallest, largest))
    return coverage(digit, size, int(rng.integers(70, HEIGHT - size)), int(rng.integers(20, WIDTH - size - 20)))


def across(rng):
    """(h, w, 1), from 0 in one corner or side of the picture to 1 in that opposite."""
    y, x = np.mgrid[0 : 1 : HEIGHT * 1j, 0 : 1 : WIDTH * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * x + np.sin(angle) * y
    return ((slope - slope.min()) / np.ptp(slope))[..., None]


def picture(rng, cover, ground, ink, shade=80, noise=10, light=0):
    """Mix the colors and add light, a shading of at most `shade` and normal noise of at most `noise`, both of 255."""
    mixed = np.array(ground) * (1 - cover) + np.array(ink) * cover + light - rng.uniform(0, shade) * across(rng)
    return to_bytes(mixed + rng.normal(0, rng.uniform(0, noise), mixed.shape))


def to_bytes(values):
    return values.clip(0, 255).round().astype(np.uint8)


WHITE, BLACK, CREAM, BLUE, YELLOW, RED = (
    [240] * 3,
    [30] * 3,
    [245, 235, 205],
    [40, 60, 150],
    [250, 225, 90],
    [200, 40, 40],
)
GREEN, CHALK, LEAF, BRICK, WOOD = [45, 100, 70], [225, 225, 215], [60, 140, 60], [190, 75, 70], [110, 75, 50]


def paper(rng, digit):
    return Image.fromarray(picture(rng, placed(rng, digit), WHITE, BLACK))


def cream(rng, digit):
    return Image.fromarray(picture(rng, placed(rng, digit), CREAM, BLUE))


def yellow(rng, digit):
    return Image.fromarray(picture(rng, placed(rng, digit), YELLOW, RED))


def board(rng, digit):
    return Image.fromarray(picture(rng, placed(rng, digit), GREEN, CHALK, shade=40))


def equally_bright(rng, digit):
    """Red on green: in gray nothing would be seen."""
    return Image.fromarray(picture(rng, placed(rng, digit), LEAF, BRICK, shade=40, noise=6))


def shadow(rng, digit):
    """The edge of a shadow across the picture, some 100 pixels wide."""
    edge = 1 / (1 + np.exp((across(rng) - rng.uniform(0.3, 0.7)) * 30))
    return Image.fromarray(picture(rng, placed(rng, digit), WHITE, BLACK, shade=40, light=-60 * edge))


def strong_shading(rng, digit):
    return Image.fromarray(picture(rng, placed(rng, digit), WHITE, BLACK, noise=6, light=-100 * across(rng)))


def table_edge(rng, digit):
    """Wood above the paper."""
    pixels = picture(rng, placed(rng, digit), WHITE, BLACK)
    pixels[: rng.integers(10, 60)] = WOOD
    return Image.fromarray(to_bytes(pixels + rng.normal(0, 5, pixels.shape)))


def table_around(rng, digit):
    """A sheet of paper that lies askew on a table."""
    turn = rng.uniform(-0.1, 0.1)
    y, x = np.mgrid[-HEIGHT / 2 : HEIGHT / 2, -WIDTH / 2 : WIDTH / 2]
    along, down = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    sheet = (np.abs(along) < 0.43 * WIDTH) & (np.abs(down) < 0.43 * HEIGHT)
    cover = coverage(digit, 180, 150, 230)
    return Image.fromarray(picture(rng, cover, np.where(sheet[..., None], WHITE, WOOD), BLACK, shade=40, noise=5))


def small(rng, digit):
    return Image.fromarray(picture(rng, placed(rng, digit, 56, 90), WHITE, BLACK))


def squared(rng, digit):
    pixels = picture(rng, placed(rng, digit), WHITE, BLACK, noise=5).astype(int)
    pixels[::24] -= 40
    pixels[:, ::24] -= 40
    return Image.fromarray(to_bytes(pixels))


def palette(rng, digit):
    return cream(rng, digit).quantize(64)


def white_on_nothing(rng, digit):
    cover = placed(rng, digit)
    return Image.fromarray(np.dstack([np.full((HEIGHT, WIDTH, 3), 255, np.uint8), to_bytes(255 * cover)]))


def deep(rng, digit):
    return Image.fromarray(np.asarray(paper(rng, digit).convert("L")).astype(np.uint16) * 257)


def large(rng, digit):
    """As a phone takes it: four times as many pixels each way."""
    return cream(rng, digit).resize((4 * WIDTH, 4 * HEIGHT))


KINDS = [
    paper, cream, yellow, board, equally_bright, shadow, strong_shading, table_edge, table_around, small, squared,
    palette, white_on_nothing, deep, large,
]  # fmt: skip


def read(photo, path):
    """Save a photo, as PNG or JPEG by the name, and read it."""
    photo.save(path, **({"quality": 70} if path.suffix == ".jpg" else {"compress_level": 1}))
    return read_picture(path, 28)


def test_of_a_hundred_photos_at_least_95_are_read(model, mnist, rng, tmp_path):
    """PNG and JPEG in turn, if the kind of photo can be a JPEG; of no kind are more than two wrong."""
    X, y = mnist[1].X[:100], mnist[1].y[:100]
    seen, of_kind = [], {make: [] for make in KINDS}
    for i, row in enumerate(X):
        make = KINDS[i % len(KINDS)]
        jpeg = i // len(KINDS) % 2 and make not in (palette, white_on_nothing, deep)
        seen.append(read(make(rng, row.reshape(28, 28)), tmp_path / ("photo.jpg" if jpeg else "photo.png")))
        of_kind[make].append(i)
    right = model.predict(np.stack(seen)) == y
    assert right.sum() >= 95
    wrong = {make.__name__: int((~right[of]).sum()) for make, of in of_kind.items()}
    assert max(wrong.values()) <= 2, wrong


def test_a_shadow_is_not_taken_for_ink(model, mnist, rng):
    """Its edge crosses the digit or not, and it is wide: there is more of it than of ink."""
    X = mnist[1].X[:16]
    pixels = [np.asarray(shadow(rng, row.reshape(28, 28))) for row in X]
    seen = np.stack([fit_ink(find_ink(photo), 0, 28).reshape(-1) for photo in pixels])
    assert (model.predict(seen) == model.predict(X)).sum() >= 15


def test_digits_that_were_cut_out_tightly_are_read_as_before(model, mnist):
    """They touch the border on all sides, and some consist of pieces that do not."""
    tight, found = [], []
    for row in mnist[1].X[:60]:
        digit = row.reshape(28, 28)
        rows, columns = digit.any(axis=1).nonzero()[0], digit.any(axis=0).nonzero()[0]
        cut = np.kron(digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], np.ones((6, 6), np.uint8))
        tight.append(fit_ink(cut, 0, 28).reshape(-1))
        found.append(fit_ink(find_ink(cut[..., None]), 0, 28).reshape(-1))
    assert (model.predict(np.stack(tight)) == model.predict(np.stack(found))).sum() >= 58


def test_an_even_ground_leaves_the_sign_as_it_is():
    gray = np.full((90, 120, 1), 200, np.uint8)
    gray[30:60, 40:50] = 100
    gray[60:70, 40:50] = 180  # a faint end
    ink = find_ink(gray)
    np.testing.assert_array_equal(ink[30:70, 40:50], [[100.0] * 10] * 30 + [[20.0] * 10] * 10)
    assert ink.sum() == 100 * 300 + 20 * 100


@pytest.mark.parametrize("seed", range(5))
def test_components_are_what_a_flood_fills(seed):
    mask = np.random.default_rng(seed).random((30, 40)) < (0.4, 0.5, 0.6, 0.7, 0.9)[seed]
    label = _components(mask)
    assert ((label > 0) == mask).all()
    numbers = set()
    left = {tuple(place) for place in np.argwhere(mask)}
    while left:
        flood, filled = [left.pop()], set()
        while flood:
            y, x = flood.pop()
            filled.add((y, x))
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= near
            flood += near
        found = {label[place] for place in filled}
        assert len(found) == 1
        assert not found & numbers
        numbers |= found


def test_nothing_is_said_to_be_nothing():
    rng = np.random.default_rng(0)
    even, noisy = np.full((50, 50, 3), 128, np.uint8), rng.normal(128, 3, (300, 300, 1)).clip(0, 255)
    for pixels in (even, noisy):
        with pytest.raises(ValueError, match="nothing stands out"):
            fit_ink(find_ink(pixels), 0, 28)
