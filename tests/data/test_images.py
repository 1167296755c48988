"""Images and their masks: decoding, preprocessing, patch labels."""

import io
import json
import os
import resource

import numpy as np
import pytest
from PIL import Image

from vitjax.data import images
from vitjax.data.images import (
    ImageError,
    Preprocess,
    decode_image,
    image_errors,
    open_image,
    to_rgb,
    transpose,
)
from vitjax.data.masks import (
    IGNORE,
    MaskRule,
    align_mask,
    label_patches,
    object_mask,
)
from vitjax.data.textured_digits import TexturedDigits

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def photo():
    """A photo-like RGB image, wider than high."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 9, 3), np.uint8)
    return Image.fromarray(coarse).resize((90, 60), BICUBIC)


def assert_same(image, expected):
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


def encoded(image, fmt="png", **options):
    content = io.BytesIO()
    image.save(content, fmt, **options)
    return content.getvalue()


def test_pixels_equal_the_published_pipelines(shared):
    preprocess = Preprocess(224, 224)
    photos = sorted((shared / "oracle/photosA").iterdir())
    with np.load(shared / "oracle/setA/resized_uint8.npz") as file:
        expected = file["uint8"]
    assert len(photos) == len(expected)
    for path, pixels in zip(photos, expected):
        assert_same(preprocess.resized(open_image(path)), pixels)
    with np.load(shared / "oracle/setA/pixels.npz") as file:
        for index, values in zip(file["index"], file["pixel_values"]):
            pixels = preprocess(open_image(photos[index]))
            assert_same(pixels.transpose(2, 0, 1), values)


def test_squash_is_pils_resize(photo):
    pixels = Preprocess(32, 48)(photo)
    resized = np.asarray(photo.resize((48, 32), BILINEAR), np.float32)
    assert_same(pixels, (resized / 255 - 0.5) / 0.5)
    assert pixels.dtype == np.float32
    assert_same(Preprocess(32, 48)(np.asarray(photo)), pixels)


@pytest.mark.parametrize(
    ("shape", "resize", "side", "size", "box"),
    [
        ((90, 60), "shorter", 40, (60, 40), (14, 4, 46, 36)),
        ((60, 90), "shorter", 40, (40, 60), (4, 14, 36, 46)),
        ((90, 60), "square", 36, (36, 36), (2, 2, 34, 34)),
        ((90, 60), "square", None, (32, 32), (0, 0, 32, 32)),
        ((1, 50), "squash", None, (32, 32), (0, 0, 32, 32)),
        ((50, 1), "shorter", 40, (2000, 40), (984, 4, 1016, 36)),
        ((1, 1), "shorter", 40, (40, 40), (4, 4, 36, 36)),
    ],
)
def test_the_center_is_cropped(photo, shape, resize, side, size, box):
    photo = photo.resize(shape)
    options = dict(resize=resize, resize_size=side, interpolation="bicubic")
    expected = photo.resize(size, BICUBIC).crop(box)
    assert_same(Preprocess(32, 32, **options).resized(photo), expected)


def test_mean_and_std_are_per_channel(photo):
    mean, std = IMAGENET
    preprocess = Preprocess(16, 16, mean=mean, std=std)
    scaled = preprocess.resized(photo) / np.float32(255)
    assert_same(preprocess(photo), (scaled - np.float32(mean)) / np.float32(std))


@pytest.mark.parametrize("std", [(0.5, 0.5, 0.5), IMAGENET[1]])
def test_denormalize_is_the_inverse(std):
    pixels = np.stack([np.arange(256, dtype=np.uint8)] * 3, axis=-1)
    preprocess = Preprocess(16, 16, std=std)
    values = preprocess.normalize(pixels)
    assert_same(preprocess.denormalize(values), pixels)
    assert preprocess.denormalize(values + np.float32(10)).min() == 255


def test_it_travels_through_json():
    options = dict(resize="shorter", resize_size=248, mean=(0.1, 0.2, 0.3))
    preprocess = Preprocess(224, 192, orient=True, **options)
    read = Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict())))
    assert read == preprocess and hash(read) == hash(preprocess)
    with pytest.raises(ValueError, match="hue"):
        Preprocess.from_dict({"height": 2, "width": 2, "hue": "blue"})


def test_another_input_size_keeps_the_proportion():
    preprocess = Preprocess(224, 224, resize="shorter", resize_size=248)
    assert preprocess.resized_to(448, 448).resize_size == 496
    assert Preprocess(224, 224).resized_to(384, 384) == Preprocess(384, 384)


def test_impossible_options():
    with pytest.raises(ValueError, match="resize_size=20"):
        Preprocess(32, 32, resize="shorter", resize_size=20)
    with pytest.raises(ValueError, match=r"0\.0"):
        Preprocess(32, 32, std=(0.5, 0.0, 0.5))


class TestModes:
    @pytest.mark.parametrize("mode", ["L", "1", "CMYK", "YCbCr", "HSV", "RGBX"])
    def test_pils_own_conversion(self, photo, mode):
        assert_same(to_rgb(photo.convert(mode)), photo.convert(mode).convert("RGB"))

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_transparency_is_dropped(self, photo, mode):
        transparent = photo.convert(mode)
        transparent.putalpha(30)
        assert_same(to_rgb(transparent), photo.convert(mode[:-1]).convert("RGB"))

    def test_a_palette_with_transparency(self, photo):
        palette = photo.quantize(16)
        content = encoded(palette, transparency=bytes(range(16)))
        read = decode_image(content, name="p.png")
        assert read.mode == "P"
        assert_same(to_rgb(read), palette.convert("RGB"))

    def test_sixteen_bits_keep_the_upper_eight(self, photo):
        gray = np.asarray(photo.convert("L"))
        content = encoded(Image.fromarray(gray.astype(np.uint16) << 8 | 77))
        read = to_rgb(decode_image(content, name="deep.png"))
        assert_same(read, np.stack([gray] * 3, axis=-1))

    @pytest.mark.parametrize("fmt", ["tiff", "png", "memory"])
    @pytest.mark.parametrize("bits", [1, 8, 10, 12, 14, 16])
    def test_deep_gray_is_scaled_by_its_own_range(self, photo, bits, fmt):
        gray = np.asarray(photo.convert("L"))
        gray = np.maximum(gray, 255 * (gray == gray.max()))
        gray = gray.astype(np.int32)
        deep = gray << bits >> 8 if bits > 1 else gray // 128
        if fmt == "memory":
            read = Image.fromarray(deep)
            assert read.mode == "I"
        else:
            content = encoded(Image.fromarray(deep.astype(np.uint16)), fmt)
            read = decode_image(content, name="deep")
        expected = gray if bits > 1 else gray // 128 * 255
        assert_same(np.asarray(to_rgb(read))[..., 0], expected)

    @pytest.mark.parametrize(
        ("low", "high", "expected"),
        [(0, 1, 255), (0, 255, 255), (0, 1.05, 255), (-1, 1, 255), (-9, 5000, 255)],
    )
    def test_floating_point_pixels(self, low, high, expected):
        ramp = np.linspace(low, high, 64, dtype=np.float32).reshape(8, 8)
        content = encoded(Image.fromarray(ramp), "tiff")
        pixels = np.asarray(to_rgb(decode_image(content, name="f")))[..., 0].reshape(-1)
        assert pixels[0] == 0 and pixels[-1] == expected
        assert set(np.diff(pixels.astype(int))) <= {3, 4, 5}

    @pytest.mark.parametrize("dtype", [np.int32, np.float32, np.uint16])
    @pytest.mark.parametrize("value", [0, 7])
    def test_one_color(self, dtype, value):
        gray = to_rgb(Image.fromarray(np.full((2, 3), value, dtype)))
        assert set(np.ravel(gray)) == {0 if value == 0 else 255}

    def test_a_declared_maximum_goes_before_the_own_range(self):
        dark = np.full((4, 4), 1000, np.uint16)
        tiff = encoded(Image.fromarray(dark), "tiff", tiffinfo={281: 4092})
        pgm = b"P5 4 4 4092\n" + dark.astype(">u2").tobytes()
        jpeg2000 = encoded(Image.fromarray(dark * 16), "jpeg2000")
        for content in (tiff, pgm, jpeg2000):
            assert to_rgb(decode_image(content, name="x")).getpixel((1, 1))[0] == 62

    def test_pixels_that_are_no_numbers(self):
        with pytest.raises(ValueError, match="NaN"):
            Preprocess(8, 8)(Image.new("F", (4, 4), float("nan")))


def test_exif_orientation_only_on_request(photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    read = decode_image(encoded(photo, exif=exif), name="turned.png")
    turned = photo.transpose(Image.Transpose.ROTATE_270)
    for orient, expected in ((False, photo), (True, turned)):
        resized = Preprocess(24, 24, orient=orient).resized(read)
        assert_same(resized, Preprocess(24, 24).resized(expected))


def test_damaged_exif_data_turn_nothing(photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(photo, "webp", exif=exif, lossless=True)
    damaged = content.replace(b"MM\x00*", b"MM\x00T")
    assert damaged != content
    read = decode_image(damaged, name="damaged.webp")
    assert_same(
        Preprocess(24, 24, orient=True).resized(read), Preprocess(24, 24).resized(photo)
    )


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(2999, 2), (2, 3001), (1, 3000), (3, 2048), (50, 3)])
def test_a_strip_is_cropped_before_it_is_enlarged(monkeypatch, size, interpolation):
    draw = np.random.default_rng(0)
    image = Image.fromarray(draw.integers(256, size=(*size[::-1], 3)).astype(np.uint8))
    options = dict(resize="shorter", resize_size=32, interpolation=interpolation)
    preprocess = Preprocess(28, 28, **options)
    expected = preprocess.resized(image)
    monkeypatch.setattr(images, "MAX_RESIZED", 2**11)
    difference = np.abs(preprocess.resized(image).astype(int) - expected)
    if interpolation == "nearest":  # a tie may take the line before
        assert difference.any(axis=(1, 2)).sum() <= 1
    else:
        assert difference.max() <= 1 and (difference > 0).mean() < 0.001


def test_a_long_strip_takes_little_memory():
    strip = Image.new("RGB", (20000, 2), (9, 8, 7))
    preprocess = Preprocess(224, 224, resize="shorter", resize_size=256)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for image in (strip, strip.transpose(Image.Transpose.ROTATE_90)):
        assert (preprocess.resized(image) == (9, 8, 7)).all()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2**19  # KiB, on Linux


def test_what_has_no_pixels_is_an_error():
    with pytest.raises(ValueError, match="no pixels"):
        Preprocess(8, 8)(np.zeros((0, 5, 3), np.uint8))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("1.png", "regular"), ("folder.png", "regular"), ("gone.png", "no such file")],
)
def test_only_regular_files_are_read(tmp_path, name, reason):
    os.mkfifo(tmp_path / "1.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match=f"{name}.*{reason}"):
        open_image(tmp_path / name)


def test_whatever_prevents_decoding_is_that_images_error(photo):
    jpeg, png = encoded(photo, "jpeg"), encoded(photo)
    damaged = bytearray(png)
    damaged[60] ^= 0xFF
    for content in (
        jpeg[: len(jpeg) // 2],
        jpeg[:20],
        b"words",
        bytes(damaged),
        b"P5 4 4 99999\n" + bytes(16),
        b"",
    ):
        with pytest.raises(ImageError, match="nice.*: .+") as caught:
            decode_image(content, name="nice")
        assert caught.value.name == "nice"
    with pytest.raises(ImageError, match="nice.*: IndexError"), image_errors("nice"):
        raise IndexError  # Pillow's readers raise almost any error


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
    """It counts ignored pixels as context and never crops."""
    mask = np.ones((32, 32), np.uint8)
    mask[::8, ::8] = 0
    np.testing.assert_array_equal(label(mask), 1)
    np.testing.assert_array_equal(label(mask, mask_rule=VILAS2023), 0)
    np.testing.assert_array_equal(label(1 - mask, mask_rule=VILAS2023), 1)
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


HARD = np.zeros((320, 320), np.uint8)
HARD[40:200, 100:300] = 255
GRAY = Image.fromarray(HARD)


def with_values(values, mask=HARD):
    """A mask with other values in some places."""
    mask = mask.copy()
    for place, value in values:
        mask[place] = value
    return Image.fromarray(mask)


def cut_out():
    """The object in the alpha channel."""
    image = Image.new("RGBA", GRAY.size, (200, 30, 90))
    image.putalpha(GRAY.resize(GRAY.size, Image.Resampling.BICUBIC))
    return image


def with_palette():
    """The object black on white."""
    image = GRAY.point(lambda v: v < 128).convert("P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    return image


RIM = (slice(38, 202), slice(98, 302)), (slice(40, 200), slice(100, 300))
LABELS = with_values([(np.s_[:, 310:], IGNORE)], HARD // 255)

MASKS = {
    "hard": GRAY,
    "one pixel of 1": with_values([((5, 5), 1)]),
    "a rim of 1": with_values(zip(RIM, (1, 255))),
    "antialiased": GRAY.resize((160, 160), Image.Resampling.BOX).resize((320, 320)),
    "bicubic": GRAY.resize((640, 640), BICUBIC),
    "dim": GRAY.point(lambda v: v // 2),
    "alpha": cut_out(),
    "opaque": GRAY.convert("RGBA"),
    "red": Image.merge("RGB", (GRAY, *[Image.new("L", GRAY.size)] * 2)),
    "inverted palette": with_palette(),
    "16 bits": Image.fromarray(HARD.astype(np.uint16) * 16),
    "float": Image.fromarray(HARD.astype(np.float32) / 255),
    "0 and 1": Image.fromarray(HARD // 255),
    "0 and 7": Image.fromarray(HARD // 255 * 7),
    "jpeg": decode_image(encoded(GRAY, "jpeg"), name="x"),
    "1": GRAY.convert("1"),
    "palette": GRAY.convert("P"),
    "labels": LABELS,
    "thin labels in a rim": with_values(
        [(np.s_[310:314, 10:14], IGNORE), (np.s_[311:313, 11:13], 1)], HARD // 255
    ),
}


class TestObjectMask:
    """Of files: the same tokens whatever the format that a mask was saved in."""

    @pytest.mark.parametrize("kind", MASKS)
    def test_soft_and_hard_give_the_same_tokens(self, kind):
        mask = object_mask(MASKS[kind])
        assert IGNORE in mask if "labels" in kind else set(np.ravel(mask)) == {0, 1}
        np.testing.assert_array_equal(label(mask), label(HARD > 0))

    def test_the_data_set_says_what_a_mask_is(self):
        mask = np.zeros((64, 64), np.uint8)
        mask[10:50, 10:50] = IGNORE
        mask[30, 30] = 1
        image = Image.fromarray(mask)
        np.testing.assert_array_equal(object_mask(image, "labels"), mask)
        assert object_mask(image, "gray").sum() == 1599
        assert object_mask(LABELS, "gray").sum() == 3200

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
