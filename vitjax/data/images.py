"""Image decoding and preprocessing: resize, crop, normalize.

`Preprocess` travels with the model, so that weights get the pixels they expect.
"""

import dataclasses
import functools
import hashlib
import io
import math
import os
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from vitjax.messages import check_one_of

Pixels = Image.Image | UInt8[np.ndarray, "rows columns 3"]
"""An image before preprocessing: of any mode, or RGB pixels."""

Resize = Literal["squash", "shorter", "square"]
Interpolation = Literal["nearest", "lanczos", "bilinear", "bicubic"]
"""Pillow's filters, in the order of its numbers for them."""
Crop = Literal["round", "floor"]


class ImageError(ValueError):
    """An image that cannot be read: its name in the data set, and the reason."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"The image {self.name} cannot be read: {self.reason}."


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """From an image to a model's input: resize, crop, (x / 255 - mean) / std.

    The default is the published pipeline bit for bit: PIL converts to RGB and resizes
    to the input size with an antialiased bilinear filter, whatever the aspect ratio;
    values end in [-1, 1].

    Args:
        height, width: of the model's input, in pixels.
        resize: "squash" resizes to the input size; "shorter" resizes the shorter side
            to `resize_size` and crops the center; "square" resizes both sides to
            `resize_size` and crops the center.
        resize_size: pixels, at least the input size; None is the input's longer side.
            Not used by "squash".
        interpolation: PIL's filter, antialiased.
        mean, std: of each color channel, for pixels scaled to [0, 1].
        orient: rotate photographs as their EXIF tag says. The published pipelines
            do not, nor do torchvision and timm.
        crop: how the corner of a crop with an odd margin is rounded: "round", half to
            even, as torchvision and timm do, or "floor", as transformers does.

    Raises:
        ValueError: an unknown option, or a crop larger than what it is cut from.
    """

    height: int
    width: int
    _: dataclasses.KW_ONLY
    resize: Resize = "squash"
    resize_size: int | None = None
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    orient: bool = False
    crop: Crop = "round"

    def __post_init__(self):
        for name in ("mean", "std"):  # also lists, which have no hash
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_one_of("resize", self.resize, get_args(Resize))
        check_one_of("interpolation", self.interpolation, get_args(Interpolation))
        check_one_of("crop", self.crop, get_args(Crop))
        if min(self.height, self.width) < 1 or min(self.std) <= 0:
            raise ValueError(f"Sizes and std of a Preprocess must be positive: {self}")
        if self.resize != "squash" and self.side < max(self.height, self.width):
            raise ValueError(
                f"resize_size={self.side} is smaller than the crop of {self.height} x "
                f"{self.width}; make it at least as large."
            )

    @property
    def side(self) -> int:
        """The side that is resized to, before the crop."""
        return self.resize_size or max(self.height, self.width)

    def __call__(self, image: Pixels) -> Float[np.ndarray, "height width 3"]:
        """The model's input, float32."""
        return self.normalize(self.resized(image))

    def resized(self, image: Pixels) -> UInt8[np.ndarray, "height width 3"]:
        """The image as the model sees it, before normalization."""
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        elif self.orient:
            image = ImageOps.exif_transpose(image)
        return np.asarray(self.resize_and_crop(to_rgb(image), self.interpolation))

    def resize_and_crop(self, image: Image.Image, interpolation: str) -> Image.Image:
        """The geometry alone, for an image or a mask, by PIL's name of a filter."""
        size, side = (self.width, self.height), self.side
        if self.resize == "square":
            size = (side, side)
        elif self.resize == "shorter":  # rounded down, as torchvision does
            short = min(image.size)
            size = (side * image.width // short, side * image.height // short)
        resample = Image.Resampling[interpolation.upper()]
        # An equal size would be resampled to itself; this is quicker, and the same.
        image = image if image.size == size else image.resize(size, resample)
        if image.size == (self.width, self.height):
            return image
        to_corner = math.floor if self.crop == "floor" else round
        left = to_corner((size[0] - self.width) / 2)
        top = to_corner((size[1] - self.height) / 2)
        return image.crop((left, top, left + self.width, top + self.height))

    def normalize(
        self, pixels: UInt8[np.ndarray, "*any 3"]
    ) -> Float[np.ndarray, "*any 3"]:
        """(x / 255 - mean) / std in float32, in this order of operations."""
        table = normalization_table(self.mean, self.std)
        return np.stack([table[c][pixels[..., c]] for c in range(3)], axis=-1)

    def denormalize(
        self, image: Float[np.ndarray, "*any 3"]
    ) -> UInt8[np.ndarray, "*any 3"]:
        """The RGB pixels of a normalized image, clipped to [0, 255] and rounded."""
        pixels = np.asarray(image, np.float64) * self.std + np.array(self.mean)
        return np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)

    def resized_to(self, height: int, width: int) -> "Preprocess":
        """The same pipeline for another input size, `resize_size` in proportion."""
        side = self.resize_size
        if side is not None:
            side = round(side * max(height, width) / max(self.height, self.width))
        return dataclasses.replace(self, height=height, width=width, resize_size=side)

    denormalise = denormalize  # its former name

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values; `from_dict` is the inverse."""
        fields = dataclasses.asdict(self)
        return fields | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Preprocess":
        """What `to_dict` wrote.

        Raises:
            ValueError: a field that this version does not know.
        """
        values: dict[str, Any] = dict(fields)
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(values) - known:
            raise ValueError(
                f"Preprocessing with unknown fields {sorted(unknown)}; another version "
                f"of vitjax wrote it. Known: {sorted(known)}."
            )
        values |= {key: tuple(values[key]) for key in ("mean", "std") if key in values}
        return cls(**values)


@functools.lru_cache(maxsize=32)
def normalization_table(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[np.ndarray, "3 256"]:
    """The float32 value of every byte, per channel."""
    scaled = np.arange(256, dtype=np.float32) / np.float32(255)
    return np.stack(
        [(scaled - np.float32(m)) / np.float32(s) for m, s in zip(mean, std)]
    )


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB, as PIL converts it; 16-bit gray keeps its upper eight bits.

    Transparency is dropped and the color below it shows, as in the published pipeline.
    Floating-point pixels, which have no known range, are an `ImageError`.
    """
    if image.mode == "F":
        raise ImageError(
            "in memory",
            "its pixels are floating-point numbers of no known range; save it as 8-bit",
        )
    if image.mode == "I" or image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.int64)
        image = Image.fromarray(np.clip(deep >> 8, 0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns otherwise; the colors are the same
    return image if image.mode == "RGB" else image.convert("RGB")


def open_image(path: str | os.PathLike) -> Image.Image:
    """Read and decode an image file, local or `gs://`, in its mode and orientation."""
    name = os.fspath(path)
    return decode_image(read_file(path, name=name), name=name)


def read_file(path: str | os.PathLike, *, name: str) -> bytes:
    """The bytes of an image file; whatever prevents reading is an `ImageError`."""
    from etils import epath

    try:
        return epath.Path(path).read_bytes()
    except Exception as error:  # clients of remote stores have errors of their own
        raise ImageError(name, describe(error)) from error


def decode_image(content: bytes, *, name: str) -> Image.Image:
    """An image from its bytes; whatever prevents decoding is an `ImageError`."""
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except Exception as error:  # Pillow's readers of formats raise almost anything
        raise ImageError(name, describe(error)) from error
    return image


def content_digest(*contents: bytes) -> int:
    """64 bits that tell whether an image, or its mask, has changed."""
    digest = hashlib.blake2b(digest_size=8)
    for content in contents:
        digest.update(len(content).to_bytes(8, "little") + content)
    return int.from_bytes(digest.digest(), "little")


def describe(error: Exception) -> str:
    """The reason of a failed decoding, for a person."""
    if isinstance(error, ImageError):
        return error.reason
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image in a format that Pillow knows, or it is damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).rstrip(".") or type(error).__name__
