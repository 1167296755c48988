"""Segmentation masks to patch labels, through the geometry of the image."""

import dataclasses
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Int8, UInt8
from PIL import Image

from vitjax.data.images import Preprocess
from vitjax.messages import check_one_of

IGNORE = 255
"""Value of mask pixels that count neither as object nor as context."""

Mask = Bool[np.ndarray, "height width"] | UInt8[np.ndarray, "height width"]
"""True or 1 on the object, False or 0 on the context, `IGNORE` on neither."""

IGNORED_NUMBER = 1000
"""The number of ignored pixels in a segmentation of many classes."""

MaskConvention = Literal["area", "vilas2023_code"]


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

    The mask has the resolution of the image file; `grid` is (rows, columns) of patches.
    """
    pixels = mask.astype(np.uint8)
    if mask_rule.convention == "vilas2023_code":
        return (upper_left(pixels, grid) == 1).astype(np.int8).reshape(-1)
    image = preprocess.resize_and_crop(Image.fromarray(pixels), "nearest")
    rows, columns = grid
    tiles = np.asarray(image).reshape(
        rows, image.height // rows, columns, image.width // columns
    )
    counted = (tiles != IGNORE).sum(axis=(1, 3))
    on_object = (tiles == 1).sum(axis=(1, 3))
    label = on_object >= mask_rule.threshold * np.maximum(counted, 1)
    return np.where(counted == 0, -1, label).astype(np.int8).reshape(-1)


def upper_left(mask: UInt8[np.ndarray, "height width"], grid: tuple[int, int]):
    """The upper left pixel of each cell: OpenCV's INTER_NEAREST, in its arithmetic."""
    indices = []
    for count, side in zip(grid, mask.shape):
        step = 1.0 / (count / side)
        indices.append(np.floor(np.arange(count) * step).astype(int).clip(0, side - 1))
    return mask[np.ix_(*indices)]


def object_mask(image: Image.Image) -> UInt8[np.ndarray, "height width"]:
    """A mask from a one-channel image: 0 context, 1 object, 255 neither.

    Black and white (0 and 255) also does: where no pixel is 1, every pixel that is not
    0 is on the object.
    """
    mask = np.asarray(image if image.mode in ("P", "L") else image.convert("L"))
    return mask if (mask == 1).any() else (mask > 0).astype(np.uint8)


def class_mask(
    segmentation: Image.Image, number: int, *, size: tuple[int, int]
) -> UInt8[np.ndarray, "height width"]:
    """One class of a segmentation: 1 on it, 255 where ignored, 0 elsewhere.

    Pixels hold the number R + 256 G; `size` is (width, height) of the image.
    """
    if segmentation.size != size:
        segmentation = segmentation.resize(size, Image.Resampling.NEAREST)
    pixels = np.asarray(segmentation.convert("RGB")).astype(np.int32)
    numbers = pixels[..., 0] + 256 * pixels[..., 1]
    mask = (numbers == number).astype(np.uint8)
    mask[numbers == IGNORED_NUMBER] = IGNORE
    return mask
