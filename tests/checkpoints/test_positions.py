"""Position embeddings: whose they are, and how they are resized."""

import dataclasses
import types

import numpy as np
import pytest
import tiny
from PIL import Image

import vitjax
from vitjax.checkpoints.positions import (
    layout,
    positions,
    resize_bicubic,
    resize_corners,
)


@pytest.mark.parametrize("size", (7, 24, 14))
def test_corner_aligned_resize_is_linear_between_corners(size):
    grid = np.random.default_rng(0).normal(size=(14, 14, 3)).astype(np.float32)
    ours = resize_corners(grid, (size, size))
    at = np.linspace(0, 13, size)
    low = np.minimum(at.astype(int), 12)
    share = (at - low)[:, None, None]
    rows = grid[low] * (1 - share) + grid[low + 1] * share
    expected = rows[:, low] * (1 - share[:, 0]) + rows[:, low + 1] * share[:, 0]
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("size", (7, 24))
def test_bicubic_resize_equals_pillows(size):
    grid = np.random.default_rng(0).normal(size=(14, 14, 2)).astype(np.float32)
    ours = resize_bicubic(grid, (size, size))
    for channel in range(2):
        picture = Image.fromarray(grid[..., channel], mode="F")
        expected = picture.resize((size, size), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(ours[..., channel], expected, atol=2e-5)


def test_which_positions_belong_to_prefix_tokens():
    plain, registers = tiny.CONFIGS["plain"], tiny.CONFIGS["registers"]
    assert layout(17, plain, None) == (1, (4, 4))
    assert layout(16, plain, None) == (0, (4, 4))
    assert layout(50, plain, None) == (1, (7, 7))
    assert [layout(n, registers, None)[0] for n in (20, 17, 16)] == [4, 1, 0]
    with pytest.raises(ValueError, match="neither 16 patches nor a square"):
        layout(15, plain, None)


def test_a_grid_that_is_known_is_never_guessed():
    """Nine positions: [CLS] and 2 x 4, not 3 x 3 without it."""
    wide = dataclasses.replace(tiny.CONFIGS["plain"], image_size=(16, 32))
    square = dataclasses.replace(wide, image_size=24)
    assert layout(9, square, wide) == (1, (2, 4))
    assert layout(9, square, None) == (0, (3, 3))
    position = np.random.default_rng(0).normal(size=(1, 9, 4)).astype(np.float32)
    dialect = types.SimpleNamespace(resize="bicubic", written=wide)
    made = positions(position, config=square, dialect=dialect)
    np.testing.assert_array_equal(made[:, :1], position[:, :1])
    expected = resize_bicubic(position[0, 1:].reshape(2, 4, 4), (3, 3))
    np.testing.assert_array_equal(made[0, 1:], expected.reshape(9, 4))


def test_the_same_number_of_patches_in_another_grid_is_resized(tmp_path):
    wide = dataclasses.replace(tiny.CONFIGS["plain"], image_size=(16, 32))
    model = tiny.make(wide)
    vitjax.save(model, tmp_path / "m")
    tall = vitjax.load(tmp_path / "m", image_size=(32, 16))
    grid = np.asarray(model.params["pos_embedding"])[0, 1:].reshape(2, 4, -1)
    expected = resize_bicubic(grid, (4, 2)).reshape(8, -1)
    np.testing.assert_allclose(tall.params["pos_embedding"][0, 1:], expected, atol=1e-6)
