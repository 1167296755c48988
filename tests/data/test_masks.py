import numpy as np
import pytest
from PIL import Image

from vitjax.data.images import Preprocess
from vitjax.data.masks import IGNORE, MaskRule, label_patches
from vitjax.data.textured_digits import TexturedDigits

SQUASH = Preprocess(32, 32)
VILAS2023 = MaskRule("vilas2023_code")


def label(mask, preprocess=SQUASH, grid=(4, 4), mask_rule=MaskRule()):
    options = dict(preprocess=preprocess, grid=grid, mask_rule=mask_rule)
    return label_patches(mask, **options).reshape(grid)


def test_half_of_the_pixels_put_a_patch_on_the_object():
    mask = np.zeros((32, 32), bool)
    mask[:4, 8:16] = True  # 32 of the 64 pixels of the second patch
    mask[8:12, 8:16] = True
    mask[8, 8] = False  # 31 of 64
    expected = np.zeros((4, 4))
    expected[0, 1] = 1  # patches are in row-major order
    np.testing.assert_array_equal(label(mask), expected)
    expected[1, 1] = 1
    rule = MaskRule(threshold=31 / 64)
    np.testing.assert_array_equal(label(mask, mask_rule=rule), expected)
    np.testing.assert_array_equal(label(mask, mask_rule=MaskRule(threshold=0.6)), 0)


def test_ignored_pixels_do_not_count():
    mask = np.zeros((32, 32), np.uint8)
    mask[:8, :8] = IGNORE
    mask[8:16, :8] = IGNORE
    mask[8, 0] = 1
    mask[16:24, :8] = IGNORE
    mask[16, 0:3] = [1, 0, 0]
    labels = label(mask)
    assert labels[:4, 0].tolist() == [-1, 1, 0, 0]
    assert labels.dtype == np.int8


@pytest.mark.parametrize("size", [(64, 96), (200, 40), (17, 33)])
def test_the_mask_goes_where_the_image_goes(size):
    """An image that is white on the object: its bright patches are on the object."""
    mask = np.zeros(size, bool)
    mask[: size[0] // 2, size[1] // 4 :] = True
    image = Image.fromarray(np.stack([mask * np.uint8(255)] * 3, axis=-1))
    for preprocess in (
        SQUASH,
        Preprocess(32, 32, resize="shorter", resize_size=40),
        Preprocess(32, 32, resize="square", resize_size=48),
    ):
        bright = preprocess.resized(image)[..., 0] / 255
        fraction = bright.reshape(4, 8, 4, 8).mean(axis=(1, 3))
        clear = np.abs(fraction - 0.5) > 0.2
        labels = label(mask, preprocess)
        np.testing.assert_array_equal(labels[clear], fraction[clear] > 0.5)
        assert clear.sum() >= 8


def test_every_embedded_image_has_object_and_context_patches():
    for mask in TexturedDigits().compose(np.arange(200)).mask:
        labels = label_patches(mask, preprocess=Preprocess(64, 64), grid=(8, 8))
        assert 1 <= (labels == 1).sum() <= 20
        assert (labels == 0).sum() >= 40


def test_vilas2023_code_looks_at_the_upper_left_pixel_of_each_cell():
    mask = np.ones((32, 32), np.uint8)
    mask[::8, ::8] = 0
    np.testing.assert_array_equal(label(mask), 1)
    np.testing.assert_array_equal(label(mask, mask_rule=VILAS2023), 0)
    np.testing.assert_array_equal(label(1 - mask, mask_rule=VILAS2023), 1)


def test_vilas2023_code_counts_ignored_pixels_as_context_and_never_crops():
    mask = np.full((40, 80), IGNORE, np.uint8)
    mask[10:, 20:40] = 1
    crop = Preprocess(32, 32, resize="shorter", resize_size=32)
    labels = label(mask, crop, mask_rule=VILAS2023)
    np.testing.assert_array_equal(labels, [[0] * 4, *[[0, 1, 0, 0]] * 3])


@pytest.mark.parametrize("size", [(375, 500), (400, 267), (13, 7), (224, 224)])
@pytest.mark.parametrize("grid", [(7, 7), (14, 14)])
def test_vilas2023_pixels_are_the_first_of_their_cells(size, grid):
    """Pixel x belongs to cell floor(x * cells / side); the first one is looked at."""
    mask = np.random.default_rng(0).integers(2, size=size).astype(np.uint8)
    labels = label(mask, grid=grid, mask_rule=VILAS2023)
    for cell, value in np.ndenumerate(labels):
        corner = [c * s // g for c, s, g in zip(cell, size, grid)]
        # An exact border may fall to the pixel before it, by rounding.
        exact = [c * s % g == 0 for c, s, g in zip(cell, size, grid)]
        window = (slice(max(0, c - e), c + 1) for c, e in zip(corner, exact))
        assert value in mask[tuple(window)]


def test_rules_that_do_not_exist():
    with pytest.raises(ValueError, match="0.0"):
        MaskRule(threshold=0.0)
    with pytest.raises((ValueError, TypeError), match="vilas2023_code"):
        MaskRule("vilas")  # pyright: ignore
