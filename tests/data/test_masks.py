import numpy as np
import pytest
from PIL import Image

from vitjax.data.demo import TexturedDigits
from vitjax.data.images import Preprocess
from vitjax.data.masks import IGNORE, token_class

SQUASH = Preprocess(32, 32)


def label(mask, preprocess=SQUASH, grid=(4, 4), **options):
    return token_class(mask, preprocess=preprocess, grid=grid, **options).reshape(grid)


def test_half_of_the_pixels_make_a_class_token():
    mask = np.zeros((32, 32), bool)
    mask[:4, :8] = True  # 32 of the 64 pixels of the first patch
    mask[8:12, 8:16] = True
    mask[8, 8] = False  # 31 of 64
    expected = np.zeros((4, 4))
    expected[0, 0] = 1
    np.testing.assert_array_equal(label(mask), expected)
    expected[1, 1] = 1
    np.testing.assert_array_equal(label(mask, threshold=31 / 64), expected)
    np.testing.assert_array_equal(label(mask, threshold=0.6), 0)


def test_tokens_are_in_row_major_order():
    mask = np.zeros((32, 32), bool)
    mask[:8, 24:] = True
    assert (
        token_class(mask, preprocess=SQUASH, grid=(4, 4)).tolist()
        == [0, 0, 0, 1] + [0] * 12
    )


def test_ignored_pixels_do_not_count():
    mask = np.zeros((32, 32), np.uint8)
    mask[:8, :8] = IGNORE
    mask[8:16, :8] = IGNORE
    mask[8, 0] = 1
    mask[16:24, :8] = IGNORE
    mask[16, 0:3] = [1, 0, 0]
    found = label(mask)
    assert found[:4, 0].tolist() == [-1, 1, 0, 0]
    assert found.dtype == np.int8


@pytest.mark.parametrize("size", [(64, 96), (200, 40), (17, 33)])
def test_the_mask_goes_where_the_picture_goes(size):
    """A picture that is white on the class: its bright tokens are the class tokens."""
    mask = np.zeros(size, bool)
    mask[: size[0] // 2, size[1] // 4 :] = True
    picture = Image.fromarray(np.stack([mask * np.uint8(255)] * 3, axis=-1))
    for preprocess in (
        SQUASH,
        Preprocess(32, 32, resize="shorter", resize_size=40),
        Preprocess(32, 32, resize="square", resize_size=48),
    ):
        bright = preprocess.resized(picture)[..., 0] / 255
        share = bright.reshape(4, 8, 4, 8).mean(axis=(1, 3))
        clear = np.abs(share - 0.5) > 0.2
        found = label(mask, preprocess)
        np.testing.assert_array_equal(found[clear], share[clear] > 0.5)
        assert clear.sum() >= 8


def test_every_embedded_picture_has_class_and_context_tokens():
    for mask in TexturedDigits().compose(np.arange(200)).mask:
        tokens = token_class(mask, preprocess=Preprocess(64, 64), grid=(8, 8))
        assert 1 <= (tokens == 1).sum() <= 20
        assert (tokens == 0).sum() >= 40
