import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vitjax.data.datasets import open_data
from vitjax.data.images import (
    ImageError,
    Preprocess,
    decode_image,
    open_image,
    to_rgb,
)
from vitjax.data.loader import batches

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
    ("portrait", "resize", "side", "size", "box"),
    [
        (False, "shorter", 40, (60, 40), (14, 4, 46, 36)),
        (True, "shorter", 40, (40, 60), (4, 14, 36, 46)),
        (False, "square", 36, (36, 36), (2, 2, 34, 34)),
        (False, "square", None, (32, 32), (0, 0, 32, 32)),
    ],
)
def test_the_center_is_cropped(photo, portrait, resize, side, size, box):
    photo = photo.transpose(Image.Transpose.ROTATE_90) if portrait else photo
    options = dict(resize=resize, resize_size=side, interpolation="bicubic")
    expected = photo.resize(size, BICUBIC).crop(box)
    assert_same(Preprocess(32, 32, **options).resized(photo), expected)


@pytest.mark.parametrize("size", [(1, 50), (50, 1), (1, 1)])
def test_a_line_of_pixels_is_an_image(size):
    width, height = size
    ramp = np.linspace(0, 255, width * height).astype(np.uint8)
    line = Image.fromarray(np.stack([ramp.reshape(height, width)] * 3, axis=-1))
    assert_same(Preprocess(8, 8).resized(line), line.resize((8, 8), BILINEAR))
    cropped = Preprocess(8, 8, resize="shorter", resize_size=10).resized(line)
    large = line.resize((10 * width, 10 * height), BILINEAR)
    left, top = ((side - 8) // 2 for side in large.size)
    assert_same(cropped, large.crop((left, top, left + 8, top + 8)))


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

    def test_floating_point_pixels_have_no_range(self, tmp_path):
        Image.new("F", (4, 4), 0.5).save(tmp_path / "deep.tif")
        options = dict(preprocess=Preprocess(8, 8), local_batch_size=1)
        loaded = batches(open_data(tmp_path), on_error="skip", **options)
        ((_, (error,), _),) = loaded
        assert error.name == "deep.tif" and "floating-point" in error.error


def test_exif_orientation_only_on_request(photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    read = decode_image(encoded(photo, exif=exif), name="turned.png")
    turned = photo.transpose(Image.Transpose.ROTATE_270)
    for orient, expected in ((False, photo), (True, turned)):
        resized = Preprocess(24, 24, orient=orient).resized(read)
        assert_same(resized, Preprocess(24, 24).resized(expected))


def with_empty_profile(png):
    """Pillow ends with an IndexError where this follows the pixels."""
    end = png.index(b"IEND") - 4
    chunk = struct.pack(">I4sI", 0, b"iCCP", zlib.crc32(b"iCCP"))
    return png[:end] + chunk + png[end:]


def test_whatever_prevents_decoding_is_that_images_error(photo, tmp_path):
    jpeg, png = encoded(photo, "jpeg"), encoded(photo)
    damaged = bytearray(png)
    damaged[60] ^= 0xFF
    for content in (
        jpeg[: len(jpeg) // 2],
        jpeg[:20],
        b"words",
        bytes(damaged),
        with_empty_profile(png),
    ):
        with pytest.raises(ImageError, match="nice.*: .+") as caught:
            decode_image(content, name="nice")
        assert caught.value.name == "nice"
    with pytest.raises(ImageError, match="gone.jpg.*no such file"):
        open_image(tmp_path / "gone.jpg")
