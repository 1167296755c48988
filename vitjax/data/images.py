"""Image decoding and preprocessing: resize, crop, normalize.

`Preprocess` travels with the model, so that weights get the pixels they expect.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import math
import os
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from vitjax.messages import check_one_of

Pixels = Image.Image | UInt8[np.ndarray, "rows columns 3"]
"""An image before preprocessing: of any mode, or RGB pixels."""

Resize = Literal["squash", "shorter", "square"]
Interpolation = Literal["nearest", "lanczos", "bilinear", "bicubic"]
"""Pillow's filters, in the order of its numbers for them."""
Crop = Literal["round", "floor"]

RADIUS = 4
"""More pixels than any filter reads to either side."""

MAX_RESIZED = 2**26
"""Pixels that an image is resized to before it is cropped: 256 MiB. Of a strip of 20000
x 2 pixels, resized by its shorter side, only what the crop keeps is made."""

LIMITS = (1, 255, 1023, 4095, 16383, 65535)
"""Largest values of floating-point pixels and of 8, 10, 12, 14 and 16 bits."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes an image upright."""


class ImageError(ValueError):
    """An image that cannot be read: its name in the data set, and the reason."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"The image {self.name} cannot be read: {self.reason}."


@contextlib.contextmanager
def image_errors(name: str) -> Iterator[None]:
    """Turn any exception into the `ImageError` of the image of this name: Pillow's
    readers of formats, its conversions and clients of remote stores raise almost any.
    """
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        reason = str(error).rstrip(".") or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = (
                "it is not an image in a format that Pillow knows, or it is damaged"
            )
        elif isinstance(error, OSError) and error.strerror:
            reason = error.strerror.lower()
        raise ImageError(name, reason) from error


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

    Pixels of more than eight bits are scaled to eight by the range that the file
    declares, else by their own (`to_rgb`).

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
        turn = orientation(image) if self.orient else 1
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        image = transpose(to_rgb(image), turn)
        return np.asarray(self.resize_and_crop(image, self.interpolation))

    def resize_and_crop(self, image: Image.Image, interpolation: str) -> Image.Image:
        """The geometry alone, for an image or a mask, by PIL's name of a filter."""
        if 0 in image.size:
            raise ValueError(f"it has no pixels: its size is {image.size}")
        width, height, side = self.width, self.height, self.side
        if self.resize == "square":
            width = height = side
        elif self.resize == "shorter":  # rounded down, as torchvision does
            short = min(image.size)
            width, height = (side * length // short for length in image.size)
        to_corner = math.floor if self.crop == "floor" else round
        left = to_corner((width - self.width) / 2)
        top = to_corner((height - self.height) / 2)
        box = (left, top, left + self.width, top + self.height)
        resample = Image.Resampling[interpolation.upper()]
        if width * height > MAX_RESIZED:
            return resize_part(image, (width, height), box, resample)
        # An equal size would be resampled to itself; this is quicker, and the same.
        if image.size != (width, height):
            image = image.resize((width, height), resample)
        if image.size == (self.width, self.height):
            return image
        return image.crop(box)

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
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(fields) - known:
            raise ValueError(
                f"Preprocessing with unknown fields {sorted(unknown)}; another version "
                f"of vitjax wrote it. Known: {sorted(known)}."
            )
        values: Any = {
            key: tuple(fields[key]) for key in ("mean", "std") if key in fields
        }
        return cls(**fields | values)


@functools.lru_cache(maxsize=32)
def normalization_table(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[np.ndarray, "3 256"]:
    """The float32 value of every byte, per channel."""
    scaled = np.arange(256, dtype=np.float32) / np.float32(255)
    return np.stack(
        [(scaled - np.float32(m)) / np.float32(s) for m, s in zip(mean, std)]
    )


def resize_part(
    image: Image.Image,
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    resample: Image.Resampling,
) -> Image.Image:
    """The part `box` of the image resized to `size`, without making the rest."""
    length, edges = np.array(image.size), np.reshape(box, (2, 2))
    if resample == Image.Resampling.NEAREST:
        columns, rows = (
            ((np.arange(*edges[:, axis]) + 0.5) * length[axis] / size[axis]).astype(int)
            for axis in (0, 1)
        )
        return Image.fromarray(np.asarray(image)[np.ix_(rows, columns)])
    start, stop = edges * length / size
    margin = RADIUS * np.maximum(1, length / size)
    first = np.maximum(np.floor(start - margin), 0).astype(int)
    last = np.minimum(np.ceil(stop + margin), length).astype(int)
    # Pillow has 24 bits for where a part begins, which far along a strip are too few.
    image = image.crop((*first.tolist(), *last.tolist()))
    part = (*(start - first).tolist(), *(stop - first).tolist())
    return image.resize((box[2] - box[0], box[3] - box[1]), resample, part)


def orientation(image: Pixels) -> int:
    """The EXIF orientation, a key of `TURNS`; 1 where the image is upright, or its EXIF
    data are damaged, as other viewers show it.
    """
    if isinstance(image, np.ndarray):
        return 1
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow's reader raises almost any
        return 1
    return turn if isinstance(turn, int) and turn in TURNS else 1


def transpose(image: Image.Image, turn: int) -> Image.Image:
    """The image turned by an EXIF orientation."""
    return image.transpose(TURNS[turn]) if turn in TURNS else image


def upright_size(image: Pixels) -> tuple[int, int]:
    """(width, height) of an image once it is turned as its EXIF tag says."""
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0]
    width, height = image.size
    return (height, width) if orientation(image) in (5, 6, 7, 8) else (width, height)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB, as PIL converts it; deep gray is scaled to eight bits.

    Transparency is dropped and the color below it shows, as in the published pipeline.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(scale_to_bytes(image))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns otherwise; the colors are the same
    return image if image.mode == "RGB" else image.convert("RGB")


def scale_to_bytes(image: Image.Image) -> UInt8[np.ndarray, "height width"]:
    """Integer or floating-point pixels of one channel in 256 equal steps.

    White is what the file declares as largest value; else the smallest of `LIMITS` that
    holds all pixels or, where they stay below a quarter of it, their own maximum.
    With negative pixels, the range is from their minimum to their maximum.
    """
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("some of its pixels are NaN or infinite")
    low, high, declared = values.min(), values.max(), declared_maximum(image)
    if declared is not None and 0 <= low <= high <= declared:
        low, high = 0, declared
    elif low >= 0:
        limit = next((limit for limit in LIMITS if high <= limit), high)
        low, high = 0, limit if 4 * high >= limit else high
    scaled = (values - low) / max(high - low, np.finfo(np.float64).tiny)
    return (scaled * 256 * (1 - 1e-6)).astype(np.uint8)


def declared_maximum(image: Image.Image) -> float | int | None:
    """The largest value that a file says its pixels may have, where it says so.

    That samples are stored in 16 bits says nothing: scanners store 12 in them.
    """
    if image.format in ("PPM", "JPEG2000") and image.mode != "F":
        return 65535  # PIL has scaled them to it
    tags = getattr(image, "tag_v2", {})
    for tag in (ExifTags.Base.SMaxSampleValue, ExifTags.Base.MaxSampleValue):
        if value := np.max(tags.get(tag, 0)):
            return float(value)
    bits = int(np.max(tags.get(ExifTags.Base.BitsPerSample, 16)))
    return 2.0**bits - 1 if 8 < bits < 16 else None


def open_image(path: str | os.PathLike) -> Image.Image:
    """Read and decode an image file, local or `gs://`, in its mode and orientation."""
    name = printable(os.fspath(path))
    return decode_image(read_file(path, name=name), name=name)


def read_file(path: str | os.PathLike, *, name: str) -> bytes:
    """The bytes of an image file; whatever prevents reading is an `ImageError`."""
    if os.path.isfile(path):
        with image_errors(name), open(path, "rb") as file:
            return file.read()
    if os.path.exists(path):
        # A pipe would wait for its other end, which signals cannot stop.
        raise ImageError(name, "it is not a regular file")
    with image_errors(name):
        from etils import epath

        return epath.Path(path).read_bytes()


def decode_image(content: bytes, *, name: str) -> Image.Image:
    """An image from its bytes; whatever prevents decoding is an `ImageError`."""
    with image_errors(name):
        image = Image.open(io.BytesIO(content))
        image.load()
    return image


def printable(name: str) -> str:
    """A file name that can be written anywhere: bytes that are no UTF-8 as `\\xe9`."""
    return name.encode("utf8", "surrogateescape").decode("utf8", "backslashreplace")


def content_digest(*contents: bytes) -> int:
    """64 bits that tell whether an image, or its mask, has changed."""
    digest = hashlib.blake2b(digest_size=8)
    for content in contents:
        digest.update(len(content).to_bytes(8, "little") + content)
    return int.from_bytes(digest.digest(), "little")
