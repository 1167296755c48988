"""Position embeddings: whose they are, and how they are resized."""

import numpy as np
import pytest
import tiny
from PIL import Image

from vitjax.models.positions import (
    prefix_positions,
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
    assert prefix_positions(17, plain) == 1
    assert prefix_positions(16, plain) == 0
    assert prefix_positions(50, plain) == 1  # another grid, 7 x 7
    assert [prefix_positions(n, registers) for n in (20, 17, 16)] == [4, 1, 0]
    with pytest.raises(ValueError, match="neither 16 patches nor a square"):
        prefix_positions(15, plain)
