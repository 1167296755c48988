import json

import numpy as np
import pytest
from PIL import Image

from vitjax.data.datasets import open_data
from vitjax.data.images import (
    ImageError,
    Preprocess,
    from_hugging_face,
    open_image,
    to_rgb,
)
from vitjax.data.loader import batches


@pytest.fixture
def image():
    """A photo-like RGB image, wider than high."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 9, 3), np.uint8)
    return Image.fromarray(coarse).resize((90, 60), Image.Resampling.BICUBIC)


def test_pixels_equal_the_published_pipelines(shared):
    preprocess = Preprocess(224, 224)
    photos = sorted((shared / "oracle/photosA").iterdir())
    with np.load(shared / "oracle/setA/resized_uint8.npz") as file:
        expected = file["uint8"]
    assert len(photos) == len(expected)
    for photo, pixels in zip(photos, expected):
        np.testing.assert_array_equal(preprocess.resized(open_image(photo)), pixels)
    with np.load(shared / "oracle/setA/pixels.npz") as file:
        for index, values in zip(file["index"], file["pixel_values"]):
            ours = preprocess(open_image(photos[index]))
            np.testing.assert_array_equal(ours.transpose(2, 0, 1), values)


def test_squash_is_pils_resize(image):
    ours = Preprocess(32, 48)(image)
    resized = np.asarray(image.resize((48, 32), Image.Resampling.BILINEAR), np.float32)
    np.testing.assert_array_equal(ours, (resized / 255 - 0.5) / 0.5)
    assert ours.dtype == np.float32


def test_an_array_is_a_image(image):
    preprocess = Preprocess(32, 32)
    np.testing.assert_array_equal(preprocess(np.asarray(image)), preprocess(image))


@pytest.mark.parametrize("portrait", [False, True])
def test_shorter_keeps_the_aspect_and_crops_the_center(image, portrait):
    if portrait:
        image = image.transpose(Image.Transpose.ROTATE_90)
    preprocess = Preprocess(
        32, 32, resize="shorter", resize_size=40, interpolation="bicubic"
    )
    size, box = ((40, 60), (4, 14, 36, 46)) if portrait else ((60, 40), (14, 4, 46, 36))
    expected = image.resize(size, Image.Resampling.BICUBIC).crop(box)
    np.testing.assert_array_equal(preprocess.resized(image), np.asarray(expected))


def test_square_squashes_and_crops_the_center(image):
    preprocess = Preprocess(32, 32, resize="square", resize_size=36)
    expected = image.resize((36, 36), Image.Resampling.BILINEAR).crop((2, 2, 34, 34))
    np.testing.assert_array_equal(preprocess.resized(image), np.asarray(expected))


def test_without_a_size_the_crop_is_the_resized_square(image):
    left = Preprocess(32, 32, resize="square").resized(image)
    np.testing.assert_array_equal(left, Preprocess(32, 32).resized(image))


def test_mean_and_std_are_per_channel(image):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    preprocess = Preprocess(16, 16, mean=mean, std=std)
    scaled = preprocess.resized(image) / np.float32(255)
    expected = (scaled - np.float32(mean)) / np.float32(std)
    np.testing.assert_array_equal(preprocess(image), expected)


@pytest.mark.parametrize("std", [(0.5, 0.5, 0.5), (0.229, 0.224, 0.225)])
def test_denormalize_is_the_inverse(std):
    pixels = np.stack([np.arange(256, dtype=np.uint8)] * 3, axis=-1)
    preprocess = Preprocess(16, 16, std=std)
    values = preprocess.normalize(pixels)
    np.testing.assert_array_equal(preprocess.denormalize(values), pixels)
    assert preprocess.denormalize(values + np.float32(10)).min() == 255


def test_it_travels_through_json():
    preprocess = Preprocess(
        224,
        192,
        resize="shorter",
        resize_size=248,
        mean=(0.1, 0.2, 0.3),
        apply_exif=True,
    )
    read = Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict())))
    assert read == preprocess and hash(read) == hash(preprocess)
    former = {"height": 2, "width": 2, "orient": True}  # files of former versions
    assert Preprocess.from_dict(former) == Preprocess(2, 2, apply_exif=True)
    with pytest.raises(ValueError, match="hue"):
        Preprocess.from_dict({"height": 2, "width": 2, "hue": "blue"})


def test_another_input_size_keeps_the_proportion():
    preprocess = Preprocess(224, 224, resize="shorter", resize_size=248)
    assert preprocess.resized_to(448, 448).resize_size == 496
    assert Preprocess(224, 224).resized_to(384, 384) == Preprocess(384, 384)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(resize="shorter", resize_size=20), "smaller than the crop"),
        (dict(std=(0.5, 0.0, 0.5)), "must be positive"),
    ],
)
def test_impossible_options(fields, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(32, 32, **fields)


class TestModes:
    @pytest.mark.parametrize("mode", ["L", "1", "CMYK", "YCbCr", "HSV", "RGBX"])
    def test_pils_own_conversion(self, image, mode):
        image = image.convert(mode)
        expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(np.asarray(to_rgb(image)), expected)

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_transparency_is_dropped(self, image, mode):
        image = image.convert(mode)
        image.putalpha(30)
        opaque = np.asarray(image.convert(mode[:-1]).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(to_rgb(image)), opaque)

    def test_a_palette_with_transparency(self, image, tmp_path):
        image = image.quantize(16)
        image.save(tmp_path / "p.png", transparency=bytes(range(16)))
        read = open_image(tmp_path / "p.png")
        assert read.mode == "P"
        expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(np.asarray(to_rgb(read)), expected)

    def test_sixteen_bits_keep_the_upper_eight(self, image, tmp_path):
        grey = np.asarray(image.convert("L"))
        deep = grey.astype(np.uint16) << 8 | 77
        Image.fromarray(deep).save(tmp_path / "deep.png")
        read = np.asarray(to_rgb(open_image(tmp_path / "deep.png")))
        np.testing.assert_array_equal(read, np.stack([grey] * 3, axis=-1))

    def test_floating_point_pixels_have_no_range(self):
        with pytest.raises(ImageError, match="floating"):
            Preprocess(8, 8)(Image.new("F", (8, 8)))


def test_exif_orientation_only_on_request(image, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    image.save(tmp_path / "turned.png", exif=exif)
    image = open_image(tmp_path / "turned.png")
    turned = image.transpose(Image.Transpose.ROTATE_270)
    for apply_exif, expected in ((False, image), (True, turned)):
        ours = Preprocess(24, 24, apply_exif=apply_exif).resized(image)
        np.testing.assert_array_equal(ours, Preprocess(24, 24).resized(expected))


class TestBroken:
    def test_truncated(self, image, tmp_path):
        image.save(tmp_path / "a.jpg")
        content = (tmp_path / "a.jpg").read_bytes()
        for name, size in (("half.jpg", len(content) // 2), ("head.jpg", 20)):
            (tmp_path / name).write_bytes(content[:size])
            with pytest.raises(
                ImageError, match=f"{name} cannot be read: .+"
            ) as caught:
                open_image(tmp_path / name)
            assert caught.value.name.endswith(name)

    def test_not_a_image(self, tmp_path):
        (tmp_path / "text.jpg").write_text("words")
        with pytest.raises(ImageError, match="nice"):
            open_image(tmp_path / "text.jpg", name="nice")

    def test_missing(self, tmp_path):
        with pytest.raises(ImageError, match="no such file"):
            open_image(tmp_path / "gone.jpg")

    def test_broken_chunk(self, image, tmp_path):
        image.save(tmp_path / "a.png")
        content = bytearray((tmp_path / "a.png").read_bytes())
        content[60] ^= 0xFF
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(ImageError, match="a.png"):
            open_image(tmp_path / "a.png")


def test_a_image_of_floating_point_pixels_is_named_by_its_data_set(tmp_path):
    Image.new("F", (4, 4), 0.5).save(tmp_path / "deep.tif")
    source = open_data(f"folder:{tmp_path}")
    loaded = batches(
        source, preprocess=Preprocess(8, 8), local_batch_size=2, on_error="skip"
    )
    ((_, errors, _),) = loaded
    assert errors[0].name == "deep.tif" and "floating-point" in errors[0].error


def test_hugging_faces_pipelines():
    assert from_hugging_face({"size": 32}) == Preprocess(32, 32)
    shorter = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 24}}
    assert from_hugging_face(
        shorter | {"do_center_crop": True, "do_normalize": False}
    ) == Preprocess(
        *(32, 24),
        resize="shorter",
        resize_size=40,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    for wrong in ({"resample": 4}, {"do_resize": False}, {"rescale_factor": 1.0}):
        with pytest.raises(ValueError, match="Preprocessing without|rescale_factor"):
            from_hugging_face({"size": 32} | wrong)


@pytest.mark.parametrize("size", [(1, 50), (50, 1), (1, 1)])
def test_a_line_of_pixels_is_a_image(size):
    width, height = size
    ramp = np.linspace(0, 255, width * height).astype(np.uint8)
    image = Image.fromarray(np.stack([ramp.reshape(height, width)] * 3, axis=-1))
    squashed = Preprocess(8, 8).resized(image)
    expected = image.resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(squashed, np.asarray(expected))
    cropped = Preprocess(8, 8, resize="shorter", resize_size=10).resized(image)
    large = image.resize((10 * width, 10 * height), Image.Resampling.BILINEAR)
    left, top = ((side - 8) // 2 for side in large.size)
    expected = large.crop((left, top, left + 8, top + 8))
    np.testing.assert_array_equal(cropped, np.asarray(expected))
