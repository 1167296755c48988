"""Segmentation to per-token labels, through the geometry of the picture."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int8, UInt8
from PIL import Image

from vitjax.data.images import Preprocess

IGNORE = 255
"""Value of a mask's pixels that count neither as class nor as context."""

Mask = Bool[np.ndarray, "height width"] | UInt8[np.ndarray, "height width"]
"""True or 1 on the class, False or 0 on the context, `IGNORE` on neither."""


MaskConvention = Literal["area", "vilas2023_code"]


@dataclasses.dataclass(frozen=True)
class MaskRule:
    """How a mask decides which tokens are of the class.

    Args:
        convention: "area" lets the mask go where the picture goes, the same resize (by
            nearest pixel) and crop; a token is of the class if at least `threshold` of
            its pixels are, ignored ones left out of the fraction. "vilas2023_code"
            squashes the whole mask to the grid and takes the upper left pixel of each
            cell, whatever the picture's crop; ignored pixels are context. A published
            number that depends on masks needs it.
        threshold: in (0, 1]; for "area".

    Raises:
        ValueError: an unknown convention, or a threshold out of its range.
    """

    convention: MaskConvention = "area"
    threshold: float = 0.5

    def __post_init__(self):
        if self.convention not in ("area", "vilas2023_code"):
            raise ValueError(
                f"The mask convention {self.convention!r} is none of area, "
                "vilas2023_code."
            )
        if not 0 < self.threshold <= 1:
            raise ValueError(f"The mask threshold {self.threshold} is not in (0, 1].")


def patch_label(
    mask: Mask,
    *,
    preprocess: Preprocess,
    grid: tuple[int, int],
    labelling: MaskRule = MaskRule(),
) -> Int8[np.ndarray, " patch"]:
    """Which image tokens show the class, and which its context.

    Args:
        mask: at the resolution of the picture file.
        preprocess: the picture's.
        grid: patches as (rows, columns).
        labelling: what decides.

    Returns:
        1 class, 0 context, -1 neither: every pixel is ignored.
    """
    if labelling.convention == "vilas2023_code":
        return (corners(mask.astype(np.uint8), grid) == 1).astype(np.int8).reshape(-1)
    place = preprocess.place
    placed = np.asarray(place(Image.fromarray(mask.astype(np.uint8)), "nearest"))
    rows, columns = grid
    height, width = placed.shape
    tiles = placed.reshape(rows, height // rows, columns, width // columns)
    tiles = tiles.transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    return label_tiles(tiles, threshold=labelling.threshold)


def corners(mask: UInt8[np.ndarray, "height width"], grid: tuple[int, int]):
    """The upper left pixel of each cell: OpenCV's INTER_NEAREST, in its arithmetic."""
    places = []
    for count, side in zip(grid, mask.shape):
        step = 1.0 / (count / side)
        places.append(np.floor(np.arange(count) * step).astype(int).clip(0, side - 1))
    return mask[np.ix_(*places)]


def label_tiles(
    tiles: UInt8[np.ndarray, "patch pixel"], *, threshold: float
) -> Int8[np.ndarray, " patch"]:
    """The rule of `patch_label`, for pixels already sorted by token.

    Args:
        tiles: 1 class, 0 context, `IGNORE` neither.
        threshold: in (0, 1].

    Returns:
        1 class, 0 context, -1 neither.
    """
    counted = (tiles != IGNORE).sum(axis=1)
    on_class = (tiles == 1).sum(axis=1)
    label = on_class >= threshold * np.maximum(counted, 1)
    return np.where(counted == 0, -1, label).astype(np.int8)
