"""Decode, resize, crop, normalise; `Preprocess` travels with the model."""

import dataclasses
import functools
import os
import struct
import zlib
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, UnidentifiedImageError

Pixels = Image.Image | UInt8[np.ndarray, "rows columns 3"]
"""What a picture may be before preprocessing."""

DECODING_ERRORS = (
    OSError,  # also UnidentifiedImageError and truncated files
    SyntaxError,  # PIL's word for a broken PNG chunk
    ValueError,
    struct.error,
    zlib.error,
    EOFError,
    Image.DecompressionBombError,
)


class ImageError(ValueError):
    """A picture that cannot be read.

    Args:
        name: which one, as its data set calls it.
        reason: what went wrong.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"The image {self.name} cannot be read: {self.reason}."


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """From a picture to a model's input: resize, crop, (x / 255 - mean) / std.

    The default is the published pipeline bit for bit: PIL converts to RGB and resizes
    to the input size with an antialiased bilinear filter, whatever the aspect ratio;
    values end in [-1, 1].

    Args:
        height, width: of the model's input, in pixels.
        resize: "squash" resizes to the input size; "shorter" resizes the shorter side
            to `resize_size` and crops the centre; "square" resizes both sides to
            `resize_size` and crops the centre.
        resize_size: pixels, at least the input size; None is the input's longer side.
            Not used by "squash".
        interpolation: PIL's filter, antialiased.
        mean, std: of each colour channel, for pixels scaled to [0, 1].
        orient: turn photographs as their EXIF tag says. The published pipelines do not,
            nor do torchvision and timm.

    Raises:
        ValueError: an unknown option, or a crop larger than what it is cut from.
    """

    height: int
    width: int
    _: dataclasses.KW_ONLY
    resize: Literal["squash", "shorter", "square"] = "squash"
    resize_size: int | None = None
    interpolation: Literal["bilinear", "bicubic", "lanczos", "nearest"] = "bilinear"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    orient: bool = False

    def __post_init__(self):
        for name in ("mean", "std"):  # also lists, which have no hash
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.resize not in ("squash", "shorter", "square"):
            raise ValueError(
                f"Preprocess.resize is {self.resize!r}; known: squash, shorter, square."
            )
        if self.interpolation.upper() not in Image.Resampling.__members__:
            raise ValueError(
                f"Preprocess.interpolation is {self.interpolation!r}; known: bilinear, "
                "bicubic, lanczos, nearest."
            )
        if min(self.height, self.width) < 1 or min(self.std) <= 0:
            raise ValueError(f"Sizes and std of a Preprocess must be positive: {self}")
        if self.resize != "squash" and self.side < max(self.height, self.width):
            raise ValueError(
                f"Preprocess.resize_size {self.side} is smaller than the crop of "
                f"{self.height} x {self.width}; make it at least as large."
            )

    @property
    def side(self) -> int:
        """The side that is resized to, before the crop."""
        return self.resize_size or max(self.height, self.width)

    def __call__(self, image: Pixels) -> Float[np.ndarray, "height width 3"]:
        """The model's input.

        Args:
            image: a picture of any mode, or RGB pixels.

        Returns:
            float32 pixels.
        """
        return self.normalise(self.resized(image))

    def resized(self, image: Pixels) -> UInt8[np.ndarray, "height width 3"]:
        """The picture as the model sees it, before normalisation.

        Args:
            image: a picture of any mode, or RGB pixels.

        Returns:
            RGB pixels at the input size.
        """
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        elif self.orient:
            from PIL import ImageOps

            image = ImageOps.exif_transpose(image)
        return np.asarray(self.place(to_rgb(image), self.interpolation))

    def place(self, image: Image.Image, interpolation: str) -> Image.Image:
        """The geometry alone, for a picture or for a mask that lies on it.

        Args:
            image: of any size and mode.
            interpolation: PIL's name of a filter.

        Returns:
            The same picture at the input size.
        """
        size, corner = self.geometry(*image.size)
        resample = Image.Resampling[interpolation.upper()]
        # An equal size would be resampled to itself; this is quicker, and the same.
        image = image if image.size == size else image.resize(size, resample)
        if image.size == (self.width, self.height):
            return image
        left, top = corner
        return image.crop((left, top, left + self.width, top + self.height))

    def geometry(
        self, width: int, height: int
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """What a picture of this size is resized to, and where the crop begins.

        Args:
            width, height: in pixels.

        Returns:
            (width, height) after resizing, and (left, top) of the crop.
        """
        if self.resize == "squash":
            return (self.width, self.height), (0, 0)
        size = (self.side, self.side)
        if self.resize == "shorter":
            short = min(width, height)
            # Rounded down, as torchvision does; the centre's half pixel to even.
            size = (self.side * width // short, self.side * height // short)
        corner = (round((size[0] - self.width) / 2), round((size[1] - self.height) / 2))
        return size, corner

    def normalise(
        self, pixels: UInt8[np.ndarray, "*any 3"]
    ) -> Float[np.ndarray, "*any 3"]:
        """(x / 255 - mean) / std in float32, in this order of operations.

        Args:
            pixels: RGB.

        Returns:
            float32 of the same shape.
        """
        table = normal_values(self.mean, self.std)
        return np.stack([table[c][pixels[..., c]] for c in range(3)], axis=-1)

    def denormalise(
        self, image: Float[np.ndarray, "*any 3"]
    ) -> UInt8[np.ndarray, "*any 3"]:
        """The picture that normalised pixels came from, for looking at.

        Args:
            image: normalised pixels.

        Returns:
            RGB, clipped to [0, 255] and rounded.
        """
        pixels = np.asarray(image, np.float64) * self.std + np.array(self.mean)
        return np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)

    def resized_to(self, height: int, width: int) -> "Preprocess":
        """The same pipeline for another input size.

        Args:
            height, width: of the new input, in pixels.

        Returns:
            `resize_size` in the same proportion to the longer side.
        """
        side = self.resize_size
        if side is not None:
            side = round(side * max(height, width) / max(self.height, self.width))
        return dataclasses.replace(self, height=height, width=width, resize_size=side)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values; `from_dict` reads it back."""
        fields = dataclasses.asdict(self)
        return fields | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Preprocess":
        """What `to_dict` wrote.

        Args:
            fields: name to value.

        Raises:
            ValueError: a field that this version does not know.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(fields) - known:
            raise ValueError(
                f"Preprocessing with unknown fields {sorted(unknown)}; another version "
                f"of vitjax wrote it. Known: {sorted(known)}."
            )
        tuples = {key: tuple(fields[key]) for key in ("mean", "std") if key in fields}
        values: dict[str, Any] = {**fields, **tuples}
        return cls(**values)


PILLOW_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of its filters, which Hugging Face files hold."""


def from_hugging_face(written: dict[str, Any]) -> Preprocess:
    """The pipeline that a preprocessor_config.json describes.

    Args:
        written: its content.

    Raises:
        ValueError: it describes something that `Preprocess` cannot.
    """
    size, crop = written.get("size", 224), written.get("crop_size", 224)
    shorter = isinstance(size, dict) and "shortest_edge" in size
    height, width = sides(size)
    fields: dict[str, Any] = {}
    if written.get("do_center_crop", False):
        if height != width:
            raise ValueError(f"A crop from {height} x {width} pixels is not supported.")
        fields = {"resize": "shorter" if shorter else "square", "resize_size": height}
        height, width = sides(crop)
    filters = written.get("resample", 2)
    if not written.get("do_resize", True) or filters not in PILLOW_FILTERS:
        raise ValueError(f"Preprocessing without resizing, or by filter {filters}.")
    if abs(written.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise ValueError(f"rescale_factor {written['rescale_factor']} is not 1/255.")
    plain = not written.get("do_normalize", True)
    mean = (0.0,) * 3 if plain else written.get("image_mean", (0.5,) * 3)
    std = (1.0,) * 3 if plain else written.get("image_std", (0.5,) * 3)
    interpolation: Any = PILLOW_FILTERS[filters]
    return Preprocess(
        *(height, width),
        interpolation=interpolation,
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        std=(float(std[0]), float(std[1]), float(std[2])),
        **fields,
    )


def sides(size: int | list | dict[str, int]) -> tuple[int, int]:
    """(height, width) of a size as Hugging Face writes it."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        return (edge, edge) if edge else (size["height"], size["width"])
    return size[0], size[-1]


@functools.lru_cache(maxsize=32)
def normal_values(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[np.ndarray, "3 256"]:
    """The float32 value of every byte, per channel."""
    scaled = np.arange(256, dtype=np.float32) / np.float32(255)
    return np.stack(
        [(scaled - np.float32(m)) / np.float32(s) for m, s in zip(mean, std)]
    )


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB, as PIL converts it; 16-bit grey keeps its upper eight bits.

    Transparency is dropped and the colour below it shows, as in the published pipeline.

    Args:
        image: of any mode that has a range: not of floating-point pixels.

    Raises:
        ImageError: the pixels are floating-point numbers.
    """
    if image.mode == "F":
        raise ImageError(
            str(getattr(image, "filename", "in memory")),
            "its pixels are floating-point numbers of no known range; save it as 8-bit",
        )
    if image.mode == "I" or image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(deep >> 8, 0, 255).astype(np.uint8)).convert(
            "RGB"
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns otherwise; the colours are the same
    return image if image.mode == "RGB" else image.convert("RGB")


def open_image(path: str | os.PathLike, *, name: str | None = None) -> Image.Image:
    """Read and decode a picture file.

    Args:
        path: local, or what `etils.epath` opens (`gs://`).
        name: what an error calls it; by default the path.

    Returns:
        The decoded picture, in the mode and orientation of the file.

    Raises:
        ImageError: it is missing, truncated, or no picture.
    """
    from etils import epath

    name = os.fspath(path) if name is None else name
    try:
        with epath.Path(path).open("rb") as file:
            image = Image.open(file)
            image.load()
    except DECODING_ERRORS as error:
        raise ImageError(name, describe(error)) from error
    return image


def describe(error: Exception) -> str:
    """Why decoding failed, for a person."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no picture in a format that Pillow knows, or it is damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).rstrip(".") or type(error).__name__
