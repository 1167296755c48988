"""Segmentation masks to patch labels, through the geometry of the image."""

import dataclasses
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Int8, UInt8
from PIL import Image

from vitjax.data.images import (
    Pixels,
    Preprocess,
    orientation,
    transpose,
    upright_size,
)
from vitjax.messages import check_one_of

IGNORE = 255
"""Value of mask pixels that count neither as object nor as context."""

Mask = Bool[np.ndarray, "height width"] | UInt8[np.ndarray, "height width"]
"""True or 1 on the object, False or 0 on the context, `IGNORE` on neither.

It is upright, as the image is after its EXIF tag, and of its size or a multiple of it.
"""

LABELS = (0, 1, IGNORE)

IGNORED_NUMBER = 1000
"""The number of ignored pixels in a segmentation of many classes."""

MaskConvention = Literal["area", "vilas2023_code"]

MaskFormat = Literal["auto", "gray", "labels"]
"""How the file of an object's mask is read. gray: the object is where it is at least
half as bright as its brightest pixel. labels: 1 object, 0 context, 255 neither. auto:
labels where the values are 0, 1 and 255 and 1 covers an area, else gray."""


@dataclasses.dataclass(frozen=True)
class MaskRule:
    """How a mask decides which patches are on the object.

    "area" resizes (by nearest pixel) and crops the mask as the image; a patch is on the
    object if at least `threshold` of its pixels are, in (0, 1], ignored ones left out
    of the fraction. "vilas2023_code" squashes the whole mask to the grid and takes the
    upper left pixel of each cell, whatever the image's crop; ignored pixels are
    context. A published number that depends on masks needs it.
    """

    convention: MaskConvention = "area"
    threshold: float = 0.5

    def __post_init__(self):
        check_one_of("mask_convention", self.convention, get_args(MaskConvention))
        if not 0 < self.threshold <= 1:
            raise ValueError(f"mask_threshold={self.threshold} is not in (0, 1].")


def label_patches(
    mask: Mask,
    *,
    preprocess: Preprocess,
    grid: tuple[int, int],
    mask_rule: MaskRule = MaskRule(),
) -> Int8[np.ndarray, " patch"]:
    """Label patches: 1 object, 0 context, -1 neither (every pixel is ignored).

    The mask lies as the image (`align_mask`); `grid` is (rows, columns) of patches.
    """
    pixels = mask.astype(np.uint8)
    if not ((mask == 0) | (mask == 1) | (mask == IGNORE)).all():
        values = ", ".join(map(str, np.setdiff1d(mask, LABELS)[:3]))
        raise ValueError(
            f"its mask has the values {values}; expected 1 (object), 0 (context) and "
            f"{IGNORE} (neither)"
        )
    if mask_rule.convention == "vilas2023_code":
        # The upper left pixels of cells, in the arithmetic of OpenCV's INTER_NEAREST.
        rows, columns = (
            (np.arange(count) * (1.0 / (count / side))).astype(int).clip(max=side - 1)
            for count, side in zip(grid, mask.shape)
        )
        return (pixels[np.ix_(rows, columns)] == 1).astype(np.int8).reshape(-1)
    image = preprocess.resize_and_crop(Image.fromarray(pixels), "nearest")
    rows, columns = grid
    tiles = np.asarray(image).reshape(
        rows, image.height // rows, columns, image.width // columns
    )
    counted = (tiles != IGNORE).sum(axis=(1, 3))
    on_object = (tiles == 1).sum(axis=(1, 3))
    label = on_object >= mask_rule.threshold * np.maximum(counted, 1)
    return np.where(counted == 0, -1, label).astype(np.int8).reshape(-1)


def align_mask(mask: Mask, image: Pixels, *, orient: bool) -> np.ndarray:
    """The mask laid on the image as the model sees it: turned back by the image's EXIF
    tag where the model's pipeline does not `orient` images.
    """
    check_mask_size(mask.shape[::-1], image)
    turn = orientation(image)
    if orient or turn == 1:
        return mask
    back = {6: 8, 8: 6}.get(turn, turn)  # the others are their own inverse
    return np.asarray(transpose(Image.fromarray(mask.astype(np.uint8)), back))


def check_mask_size(size: tuple[int, ...], image: Pixels) -> None:
    """Raise ValueError unless a mask has the size of its upright image, or its aspect
    at another resolution.
    """
    width, height = upright_size(image)
    if len(size) != 2 or 0 in size or size[0] * height != size[1] * width:
        turned = " upright" if orientation(image) != 1 else ""
        raise ValueError(
            f"its mask has {' x '.join(map(str, size))} pixels and the{turned} image "
            f"{width} x {height} (width x height); give a mask of the image's size, or "
            "of the same aspect"
        )


def object_mask(
    image: Image.Image, mask_format: MaskFormat = "auto"
) -> UInt8[np.ndarray, "height width"]:
    """A mask of 0 context, 1 object and 255 neither from an image; see `MaskFormat`."""
    levels = brightness(image)
    numbers = np.asarray(image) if image.mode == "P" else levels
    values = np.unique(numbers)
    listed = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
    are_labels = np.isin(values, LABELS).all()
    if mask_format == "labels":
        if not are_labels:
            raise ValueError(
                f"it has the values {listed}; a mask of labels has 1 (object), 0 "
                f"(context) and {IGNORE} (neither)"
            )
        return numbers.astype(np.uint8)
    if mask_format == "auto":
        if are_labels and is_object(numbers == 1, numbers == IGNORE):
            return numbers.astype(np.uint8)
        # Numbers of classes or objects have no order of brightness.
        small = numbers.dtype.kind in "iu" and values[-1] < 32
        if len(values) > 2 and (small or has_colors(image)):
            raise ValueError(
                f"it shows the labels {listed}, not gray: save it as 1 (object), 0 "
                f"(context) and {IGNORE} (neither), or read it as gray, with the mask "
                "format gray"
            )
    if not np.isfinite(levels).all():
        raise ValueError("some of its pixels are NaN or infinite")
    highest = levels.max()
    return ((levels >= highest / 2) & (levels > 0)).astype(np.uint8)


def brightness(image: Image.Image) -> np.ndarray:
    """The one channel of a gray image, the alpha channel where it is not constant,
    else the largest color of each pixel.
    """
    if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if alpha.min() < alpha.max():
            return alpha
    return np.asarray(image.convert("RGBA"))[..., :3].max(axis=-1)


def has_colors(image: Image.Image) -> bool:
    """Whether a palette image, without transparency, shows other colors than gray."""
    if image.mode != "P" or image.has_transparency_data:
        return False
    pixels = np.asarray(image.convert("RGB"))
    return bool((pixels.min(axis=-1) != pixels.max(axis=-1)).any())


def is_object(
    ones: Bool[np.ndarray, "height width"], ignored: Bool[np.ndarray, "height width"]
) -> bool:
    """Whether pixels of value 1 are the object of a mask of labels, and those of 255
    ignored; else 255 is white, and 1 a rim that antialiasing left around it.
    """

    def covers_area(region):
        """Whether at least a quarter of its pixels are amid others of it."""
        padded = np.pad(region, 1, constant_values=True)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
        inside = windows.all(axis=(2, 3)) & region
        return 4 * inside.sum() >= region.sum() > 0

    if not (ones.any() and ignored.any()):
        return False
    few = covers_area(ignored) or 4 * ones.sum() < ignored.sum()
    return bool(covers_area(ones) or not few)


def class_mask(
    segmentation: Image.Image, number: int, *, image: Pixels
) -> UInt8[np.ndarray, "height width"]:
    """One class of a segmentation: 1 on it, 255 where ignored, 0 elsewhere.

    Pixels hold the number R + 256 G; the mask has the size of the upright image.
    """
    size = upright_size(image)
    check_mask_size(segmentation.size, image)
    if segmentation.size != size:
        segmentation = segmentation.resize(size, Image.Resampling.NEAREST)
    red, green = map(np.asarray, segmentation.convert("RGB").split()[:2])

    def shows(number: int):
        return (red == number % 256) & (green == number // 256)

    return shows(number) | np.uint8(IGNORE) * shows(IGNORED_NUMBER)
