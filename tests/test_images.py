"""Pictures made into what MNIST is made of, and files that only pretend to be pictures or cost more than they weigh."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import time
import tracemalloc
import zlib
from contextlib import suppress

import numpy as np
import pytest

from mlp_xp.datasets.ink import fit_ink
from mlp_xp.datasets.pictures import JPEG, MAX_BYTES, PNG, read_picture

Image = pytest.importorskip("PIL.Image")


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def ihdr(width, height, depth=8, color=0):
    return chunk(b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, color, 0, 0, 0]))


def png(*chunks):
    return PNG + b"".join(chunks) + chunk(b"IEND", b"")


def idat(size):
    return chunk(b"IDAT", zlib.compress(bytes(size)))


def photo(width, height, mode="RGB"):
    """A dark bar on light paper."""
    picture = Image.new(mode, (width, height), "white")
    picture.paste("black", (width // 3, height // 4, width // 2, 3 * height // 4))
    return picture


def jpeg(picture, **options):
    stream = io.BytesIO()
    picture.save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "sign.png"


@pytest.fixture
def read(file):
    """Read back what was written as a PNG: f(PIL image or bytes, side) -> (side, side)."""

    def write_and_read(content, side=28):
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            content.save(file, "PNG")
        pixels = read_picture(file, side)
        assert pixels.dtype == np.uint8
        return pixels.reshape(side, side)

    return write_and_read


@pytest.fixture
def digit(mnist):
    return mnist[1].X[0].reshape(28, 28)


def test_right_size_is_taken_as_it_is_in_both_polarities(digit, read):
    np.testing.assert_array_equal(read(Image.fromarray(digit)), digit)
    np.testing.assert_array_equal(read(Image.fromarray(255 - digit)), digit)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes(mode, digit, read):
    digit = np.where(digit > 99, np.uint8(255), np.uint8(0))
    np.testing.assert_array_equal(read(Image.fromarray(digit).convert(mode)), digit)


def test_sixteen_bits_are_scaled_and_not_clipped(digit, read):
    np.testing.assert_array_equal(read(Image.fromarray(digit.astype(np.uint16) * 257)), digit)


def test_what_is_transparent_is_white(digit, read):
    black = np.zeros_like(digit)
    np.testing.assert_array_equal(read(Image.fromarray(np.stack([black, digit], axis=2))), digit)
    rgba = np.stack([black, black, black, digit], axis=2)
    np.testing.assert_array_equal(read(Image.fromarray(rgba)), digit)


def test_colors_count_by_their_brightness(read):
    picture = Image.new("RGB", (28, 28), (255, 255, 0))  # light: the ground
    picture.paste((0, 0, 255), (10, 10, 20, 20))
    pixels = read(picture)
    assert pixels[15, 15] > 200
    assert pixels[0, 0] < 50


@pytest.mark.parametrize("invert", [False, True])
def test_enlarged_and_moved_digits_come_back(invert, mnist, read):
    """Cut out, scaled to 20 pixels and centered by mass: what made MNIST, done again, changes little."""
    moved = 0
    for row in mnist[1].X[:40]:
        digit = row.reshape(28, 28)
        large = np.pad(np.kron(digit, np.ones((4, 4), np.uint8)), ((10, 50), (60, 30)))
        pixels = read(Image.fromarray(255 - large if invert else large))
        moved += np.abs(pixels.astype(int) - digit).mean() > 1
    assert moved <= 3  # by one pixel, if the faintest ink, which is left out, decides where the center is


def test_gray_paper_and_pale_ink(read):
    paper = np.full((90, 60), 170, np.uint8)
    paper[20:70, 25:35] = 90
    pixels = read(Image.fromarray(paper))
    assert (pixels[:, :4] == 0).all()
    assert pixels.max() == 255
    assert (pixels.max(axis=1) > 0).sum() == 20
    assert (pixels.max(axis=0) > 0).sum() == 4


@pytest.mark.parametrize("side", [8, 20, 28, 56])
def test_fit_ink_scales_and_centers(side):
    """A bar of 30x10 takes 20/28 of the side; its center of mass is at pixel side / 2, as in MNIST at pixel 14."""
    gray = np.zeros((200, 100))
    gray[100:130, 70:80] = 200
    ink = fit_ink(gray, 0, side)
    rows, columns = ink.any(axis=1).nonzero()[0], ink.any(axis=0).nonzero()[0]
    box = round(side * 20 / 28)
    assert (len(rows), len(columns)) == (box, round(box / 3))
    assert abs(rows.mean() - side / 2) <= 0.5
    assert abs(columns.mean() - side / 2) <= 0.5
    assert ink.max() == 255


def test_averaging_keeps_the_mass():
    """A column of 30 rows, half of them of half the brightness, becomes 20 rows of the same mean."""
    gray = np.zeros((50, 50))
    gray[10:40, 20] = np.where(np.arange(30) < 15, 200, 100)
    column = fit_ink(gray, 0, 28).max(axis=1)
    column = column[column > 0]
    np.testing.assert_array_equal(column, [255] * 10 + [128] * 10)


def test_ink_stays_inside_where_its_mass_is_far_off_its_middle():
    gray = np.zeros((60, 60))
    gray[10:50, 10:12] = 60
    gray[10:12, 10:50] = 60
    gray[10:20, 10:20] = 255
    ink = fit_ink(gray, 0, 28)
    assert (ink.any(axis=0).sum(), ink.any(axis=1).sum()) == (20, 20)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a PNG"),
        (PNG, "not a PNG"),
        (b"GIF89a" + bytes(50), "not a PNG"),
        (png(idat(28 * 29)), "not a PNG"),
        (png(ihdr(100_000, 100_000), idat(1000)), "100000x100000 pixels; scale it"),
        (png(ihdr(2**32 - 1, 1), idat(1000)), "pixels; scale it"),
        (png(ihdr(0, 0), idat(1000)), "0x0 pixels; scale it"),
        (png(ihdr(27, 60), idat(27 * 61)), "27x60 pixels; scale it to between 28x28 and 4096x4096"),
        (png(ihdr(28, 28), ihdr(9000, 9000), idat(1000)), "it has a second header"),
        (png(ihdr(28, 28)), "a damaged PNG"),
        (png(ihdr(28, 28), idat(100)), "a damaged PNG"),
        (png(ihdr(28, 28), chunk(b"IDAT", b"not deflated")), "a damaged PNG"),
        (png(ihdr(28, 28, depth=7), idat(1000)), "a damaged PNG"),
        (png(ihdr(28, 28, color=3), idat(28 * 29))[:-20], "a damaged PNG"),
        (png(ihdr(30, 30), idat(30 * 31)), "nothing stands out"),
        (PNG + bytes(MAX_BYTES), "16777216 are the most allowed"),
        (png(ihdr(28, 28), chunk(b"tEXt", b"") * 5000, idat(28 * 29)), "over 4096 chunks"),
        (JPEG, "a damaged JPEG"),
        (JPEG + b"\xe0\0\x10JFIF" + bytes(50), "a damaged JPEG"),
        (jpeg(photo(300, 300))[:-200], "a damaged JPEG"),
        (jpeg(photo(27, 60)), "27x60 pixels; scale it"),
        (jpeg(photo(4097, 30)), "4097x30 pixels; scale it"),
        (JPEG[:2] + b"\xff\xfe\0\2" * 2000 + jpeg(photo(40, 40))[2:], "over 1024 segments"),
        (jpeg(photo(40, 40)) + b"\xff\xda" * 40, "over 32 scans"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_lies_are_refused(content, words, file, read):
    start = time.process_time()
    with pytest.raises((ValueError, OSError), match=words) as caught:
        read(content)
    assert str(file) in str(caught.value)
    assert time.process_time() - start < 0.5


def test_more_data_than_the_header_announces_is_not_unpacked(read):
    """100 MB of zeros in 100 kB: Pillow stops where the picture is full."""
    content = png(ihdr(28, 28), idat(100 << 20))
    start = time.process_time()
    assert not read(content).any()
    assert time.process_time() - start < 0.5


def test_damaged_bytes_give_pixels_or_a_value_error(digit, read):
    stream, choose = io.BytesIO(), random.Random(1)
    Image.fromarray(digit).convert("P").save(stream, "PNG")
    sound, refused = stream.getvalue(), 0
    for _ in range(200):
        damaged = bytearray(sound)
        for _ in range(choose.choice([1, 3])):
            damaged[choose.randrange(len(damaged))] ^= 1 << choose.randrange(8)
        try:
            read(bytes(damaged[: choose.randrange(8, 2 * len(damaged))]))
        except ValueError:
            refused += 1
    assert refused > 100


FLOODS = {
    "unknown chunks": lambda: png(ihdr(28, 28), chunk(b"abcd", b"") * 1_300_000, idat(28 * 29)),
    "empty data": lambda: png(ihdr(28, 28), chunk(b"IDAT", b"") * 1_300_000, idat(28 * 29)),
    "texts": lambda: png(ihdr(28, 28), chunk(b"tEXt", b"a\0b") * 1_000_000, idat(28 * 29)),
    "a text of 50 MB": lambda: png(
        ihdr(28, 28), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50 << 20))), idat(28 * 29)
    ),
    "comments": lambda: JPEG[:2] + b"\xff\xfe\0\2" * 4_000_000 + jpeg(photo(40, 40))[2:],
    "scans": lambda: jpeg(photo(400, 400), progressive=True) * 1000,
}


@pytest.mark.parametrize("make", FLOODS.values(), ids=FLOODS)
def test_a_flood_of_small_pieces_costs_nothing(make, read):
    content = make()
    read(photo(60, 60))  # Pillow loads its plugins
    tracemalloc.start()
    start = time.process_time()
    try:
        with suppress(ValueError):
            read(content)
        assert time.process_time() - start < 0.5
        assert tracemalloc.get_traced_memory()[1] < 4 * len(content) + (4 << 20)
    finally:
        tracemalloc.stop()


MEMORY = """
import resource, sys, time
from mlp_xp.datasets.pictures import read_picture
read_picture(sys.argv[1], 28)
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
read_picture(sys.argv[2], 28)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - start)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kilobytes in ru_maxrss are Linux's")
@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "I;16"])
def test_the_largest_picture_takes_little_more_than_pillow_needs(mode, tmp_path):
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    photo(60, 60).save(small)
    picture = photo(4096, 4096, "L")
    picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
    picture.save(large)
    size = 4096 * 4096 * {"RGB": 4, "RGBA": 4, "I;16": 2}.get(mode, 1)
    command = [sys.executable, "-c", MEMORY, str(small), str(large)]
    kilobytes, seconds = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert kilobytes * 1024 < size + (40 << 20)
    assert seconds < 2


def test_a_photo_is_turned_as_the_camera_was_held(read):
    """A phone stores what its sensor saw, and beside it how it was held."""
    upright = photo(300, 400)
    upright.paste("black", (100, 100, 200, 140))  # so that every turn differs
    expected = read(upright)
    for orientation, how in ((3, Image.ROTATE_180), (6, Image.ROTATE_90), (8, Image.ROTATE_270)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        difference = np.abs(read(jpeg(upright.transpose(how), exif=exif, quality=95)).astype(int) - expected)
        assert difference.mean() < 3
        assert np.abs(read(jpeg(upright.transpose(how), quality=95)).astype(int) - expected).mean() > 10


@pytest.mark.parametrize("clear", ["ground", "sign"])
def test_the_transparent_value_of_16_bits_is_applied(clear, digit, file):
    """A sign of 40,000 on black, or the reverse: as with 8 bits, what is transparent becomes white."""
    sign = digit > 99
    for bits, level in ((8, 40_000 >> 8), (16, 40_000)):
        pixels = np.where(sign, level, 0).astype(f"u{bits // 8}")
        Image.fromarray(pixels).save(file, transparency=0 if clear == "ground" else level)
        gray = np.where(sign, 40_000 // 257, 255) if clear == "ground" else np.where(sign, 255, 0)
        expected = 255 - gray if clear == "ground" else gray
        np.testing.assert_allclose(read_picture(file, 28).reshape(28, 28), expected, atol=1)


@pytest.mark.parametrize("size", [28, 200])
def test_white_ink_on_nothing_is_laid_on_black(size, digit, read):
    alpha = np.asarray(Image.fromarray(digit).resize((size, size)))
    rgba = np.dstack([np.full((size, size, 3), 255, np.uint8), alpha])
    pixels = read(Image.fromarray(rgba))
    assert pixels.max() > 200
    assert (pixels > 99).mean() < 0.3


def test_damaged_bytes_of_a_jpeg_give_pixels_or_a_value_error(read):
    choose, refused = random.Random(1), 0
    sound = jpeg(photo(60, 60), progressive=True)
    for _ in range(200):
        damaged = bytearray(sound)
        for _ in range(choose.choice([1, 3])):
            damaged[choose.randrange(len(damaged))] ^= 1 << choose.randrange(8)
        try:
            read(bytes(damaged[: choose.randrange(8, 2 * len(damaged))]))
        except ValueError:
            refused += 1
    assert 50 < refused < 200


def test_pillow_is_asked_for(monkeypatch, file, digit):
    Image.fromarray(digit).save(file)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mlp_xp\[plot\]'"):
        read_picture(file, 28)
