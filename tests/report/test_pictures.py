"""Grids of pictures and maps."""

import io

import numpy as np
from PIL import Image

from vitjax.report import pictures


def test_signed_maps_are_white_at_zero_and_red_for_the_class():
    colours = pictures.coloured(np.array([[-2.0, 0.0], [1.0, 2.0]]))
    assert colours[0, 1].min() > 240  # white
    assert colours[0, 0, 2] > colours[0, 0, 0]  # blue: against
    assert colours[1, 1, 0] > colours[1, 1, 2]  # red: for


def test_maps_without_a_minus_go_from_dark_to_bright():
    colours = pictures.coloured(np.array([[0.0, 1.0], [2.0, 3.0]])).sum(-1)
    assert colours.argmin() == 0 and colours.argmax() == 3


def test_flat_and_undefined_maps_have_one_colour():
    for values in (np.ones((2, 2)), np.full((2, 2), np.nan)):
        assert len(np.unique(pictures.coloured(values).reshape(4, 3), axis=0)) == 1


def test_the_grid_has_a_row_per_picture_and_a_column_per_method():
    shown = np.zeros((2, 8, 8, 3), np.uint8)
    maps = {name: np.random.default_rng(0).normal(size=(2, 4, 4)) for name in "ab"}
    image = Image.open(io.BytesIO(pictures.png(shown, ["x", "$y"], maps, dpi=50)))
    width = 3 * (pictures.SIDE + pictures.GAP) + pictures.GAP
    height = 2 * (pictures.SIDE + pictures.WORDS + pictures.GAP) + 0.3
    assert np.abs(np.subtract(image.size, (50 * width, 50 * height))).max() <= 1
