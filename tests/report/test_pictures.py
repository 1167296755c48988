"""Pictures with maps beside them."""

import io

import numpy as np
import pytest
from PIL import Image

from vitjax.report import pictures


def drawn(count, methods, *, size=(16, 16), dpi=50):
    draw = np.random.default_rng(0)
    photos = draw.integers(256, size=(count, *size, 3)).astype(np.uint8)
    maps = {f"m{i}": draw.normal(size=(count, 4, 4)) for i in range(methods)}
    titles = [f"for <b>$x_{{$ {i}\nanswer: y" for i in range(count)]
    return pictures.png(photos, titles, maps, dpi=dpi)


@pytest.mark.parametrize(
    ("count", "methods", "size"), [(1, 1, (16, 16)), (2, 3, (16, 40))]
)
def test_a_row_per_picture_and_a_column_per_method(count, methods, size):
    with Image.open(io.BytesIO(drawn(count, methods, size=size))) as image:
        image.load()
        found = image.size
    side, gap, words = pictures.SIDE, pictures.GAP, pictures.WORDS
    wide = (methods + 1) * (side + gap) + gap
    tall = count * (side * size[0] / size[1] + words + gap) + pictures.FOOT
    assert found == pytest.approx((50 * wide, 50 * tall), abs=1)


def test_the_picture_and_its_map_are_drawn():
    red = np.full((1, 16, 16, 3), (200, 30, 40), np.uint8)
    values = np.zeros((1, 4, 4))
    values[0, 0, 0] = -1  # the rest is 0: white
    content = pictures.png(red, ["a"], {"m": values}, dpi=50)
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    share = (np.abs(pixels - (200, 30, 40)).max(-1) < 3).sum()
    assert share == pytest.approx((50 * pictures.SIDE) ** 2, rel=0.05)
    blue = (pixels[..., 2] > pixels[..., 0] + 40).sum()
    assert blue == pytest.approx((50 * pictures.SIDE) ** 2 / 16, rel=0.15)


def test_the_legend_fits_below_one_map():
    with Image.open(io.BytesIO(drawn(1, 1, dpi=100))) as image:
        foot = np.asarray(image.convert("L"))[-int(100 * pictures.FOOT) :]
    assert foot[:, :-12].min() < 128  # words
    assert foot[:, -12:].min() == 255  # that end before the edge
    assert foot[:2].min() == 255 and foot[-2:].min() == 255


def test_signed_maps_diverge_from_white():
    found = pictures.coloured(np.array([[-2.0, 0.0, 1.0, 2.0]])).astype(int)[0]
    against, zero, little, much = found
    assert zero.min() > 240 and np.ptp(zero) < 10
    assert against[2] > against[0] + 40 and much[0] > much[2] + 40
    assert little.min() > much.min()  # half as far from white


def test_maps_without_a_minus_go_from_dark_to_bright():
    least, middle, most = pictures.coloured(np.array([[3.0, 4.0, 5.0]])).astype(int)[0]
    assert least.sum() < middle.sum() < most.sum()


@pytest.mark.parametrize("value", [0.0, 3.0, np.nan, -1.0])
def test_flat_and_undefined_maps_have_one_colour(value):
    found = pictures.coloured(np.full((2, 3), value))
    assert found.shape == (2, 3, 3) and found.dtype == np.uint8
    assert len(np.unique(found.reshape(-1, 3), axis=0)) == 1
