import io

import numpy as np
import pytest
from PIL import Image

from vitjax.data.images import Preprocess, transpose
from vitjax.data.masks import (
    IGNORE,
    MaskRule,
    align_mask,
    label_patches,
    object_mask,
)
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


class TestObjectMask:
    """Of files: the same tokens whatever the format that a mask was saved in."""

    hard = np.zeros((320, 320), np.uint8)
    hard[40:200, 100:300] = 255

    def soft(self, kind):
        """The same object, saved in other ways."""
        image, content = Image.fromarray(self.hard), io.BytesIO()
        if kind == "one pixel of 1":
            image.putpixel((5, 5), 1)
        elif kind == "a rim of 1":
            mask = self.hard.copy()
            mask[38:202, 98:302][self.hard[38:202, 98:302] == 0] = 1
            image = Image.fromarray(mask)
        elif kind == "antialiased":
            image = image.resize((160, 160), Image.Resampling.BOX).resize((320, 320))
        elif kind == "bicubic":
            image = image.resize((640, 640), Image.Resampling.BICUBIC)
        elif kind == "dim":
            image = image.point(lambda v: v // 2)
        elif kind == "alpha":
            cut = Image.new("RGBA", image.size, (200, 30, 90))
            cut.putalpha(image.resize((320, 320), Image.Resampling.BICUBIC))
            image = cut
        elif kind == "opaque":
            image = image.convert("RGBA")
        elif kind == "red":
            zero = Image.new("L", image.size)
            image = Image.merge("RGB", (image, zero, zero))
        elif kind == "inverted palette":
            image = image.point(lambda v: v < 128).convert("P")
            image.putpalette([255, 255, 255, 0, 0, 0])
        elif kind == "16 bits":
            image = Image.fromarray(self.hard.astype(np.uint16) * 16)
        elif kind == "float":
            image = Image.fromarray(self.hard.astype(np.float32) / 255)
        elif kind == "0 and 1":
            image = Image.fromarray(self.hard // 255)
        elif kind == "0 and 7":
            image = Image.fromarray(self.hard // 255 * 7)
        elif kind == "labels":
            image = Image.fromarray(self.hard // 255)
            image.paste(IGNORE, (310, 0, 320, 320))  # a column without any object
        elif kind == "thin labels in a rim":
            mask = self.hard // 255
            mask[310:314, 10:14] = IGNORE
            mask[311:313, 11:13] = 1
            image = Image.fromarray(mask)
        elif kind in ("jpeg", "1", "palette"):
            mode = {"jpeg": "L", "1": "1", "palette": "P"}[kind]
            image.convert(mode).save(content, "jpeg" if mode == "L" else "png")
            image = Image.open(content)
        return image

    @pytest.mark.parametrize(
        "kind",
        [
            *("hard", "one pixel of 1", "a rim of 1", "antialiased", "bicubic", "dim"),
            *("alpha", "opaque", "red", "inverted palette", "16 bits", "float"),
            *("0 and 1", "0 and 7", "jpeg", "1", "palette"),
            *("labels", "thin labels in a rim"),
        ],
    )
    def test_soft_and_hard_give_the_same_tokens(self, kind):
        expected = label(self.hard > 0)
        mask = object_mask(self.soft(kind))
        assert IGNORE in mask if "labels" in kind else set(np.ravel(mask)) == {0, 1}
        np.testing.assert_array_equal(label(mask), expected)

    def test_the_data_set_says_what_a_mask_is(self):
        mask = np.zeros((64, 64), np.uint8)
        mask[10:50, 10:50] = IGNORE
        mask[30, 30] = 1
        image = Image.fromarray(mask)
        np.testing.assert_array_equal(object_mask(image, "labels"), mask)
        assert object_mask(image, "gray").sum() == 1599
        labels = self.soft("labels")
        assert object_mask(labels, "gray").sum() == 3200

    @pytest.mark.parametrize("values", [(1, 2, 3), (0, 1, 2), (0, 4, 20)])
    def test_numbers_of_several_labels_are_no_gray(self, values):
        image = Image.fromarray(np.resize(np.array(values, np.uint8), (9, 9)))
        with pytest.raises(ValueError, match=f"{values[1]}, {values[2]}.*gray"):
            object_mask(image)
        assert object_mask(image, "gray").any()

    def test_several_colors_of_a_palette_are_no_gray(self):
        image = Image.fromarray(np.resize(np.uint8([0, 15, 255]), (9, 9)), "L")
        image = image.convert("P")
        image.putpalette(np.random.default_rng(0).bytes(768))
        for mask_format in ("auto", "labels"):
            with pytest.raises(ValueError, match="15"):
                object_mask(image, mask_format)

    def test_no_object(self):
        assert not object_mask(Image.new("L", (8, 8))).any()
        with pytest.raises(ValueError, match="NaN"):
            object_mask(Image.new("F", (4, 4), float("nan")))


@pytest.mark.parametrize("orient", [False, True])
@pytest.mark.parametrize("turn", range(1, 9))
def test_an_upright_mask_follows_the_image(turn, orient):
    """The object is where the image is white, turned by its EXIF tag or not."""
    upright = np.zeros((40, 60), bool)
    upright[5:20, 10:50] = True
    upright[20:32, 10:20] = True  # no symmetry
    shown = Image.fromarray(upright.astype(np.uint8) * 255).convert("RGB")
    for stored_turn in range(2, 9):  # find what is shown as `shown`
        stored = shown if turn == 1 else transpose(shown, stored_turn)
        back = transpose(stored, turn)
        if back.size == shown.size and (np.asarray(back) == shown).all():
            break
    stored.getexif()[0x0112] = turn
    preprocess = Preprocess(32, 32, orient=orient)
    image = preprocess.resized(stored)[..., 0].reshape(4, 8, 4, 8).mean((1, 3)) / 255
    mask = align_mask(upright.repeat(2, 0).repeat(2, 1), stored, orient=orient)
    clear = np.abs(image - 0.5) > 0.2
    labels = label(mask, preprocess)
    np.testing.assert_array_equal(labels[clear], image[clear] > 0.5)
    assert clear.sum() > 8 and 0 < labels.sum() < 16


@pytest.mark.parametrize("size", [(10, 200), (40, 61), (60, 40), (0, 0)])
def test_a_mask_of_another_shape_is_refused_with_both_sizes(size):
    image = Image.new("RGB", (60, 40))
    with pytest.raises(ValueError, match=f"{size[1]} x {size[0]}.*60 x 40"):
        align_mask(np.zeros(size, bool), image, orient=False)


def test_other_values_of_a_mask_are_refused():
    with pytest.raises(ValueError, match="254"):
        label(np.full((32, 32), 254, np.uint8))
