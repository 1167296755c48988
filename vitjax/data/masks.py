"""Segmentation to per-token labels, through the geometry of the picture."""

import numpy as np
from jaxtyping import Bool, Int8, UInt8
from PIL import Image

from vitjax.data.images import Preprocess

IGNORE = 255
"""Value of a mask's pixels that count neither as class nor as context."""

Mask = Bool[np.ndarray, "height width"] | UInt8[np.ndarray, "height width"]
"""True or 1 on the class, False or 0 on the context, `IGNORE` on neither."""


def token_class(
    mask: Mask,
    *,
    preprocess: Preprocess,
    grid: tuple[int, int],
    threshold: float = 0.5,
) -> Int8[np.ndarray, " patch"]:
    """Which image tokens show the class, and which its context.

    The mask goes where the picture goes: the same resize, by nearest pixel, and crop.
    A token is of the class if at least `threshold` of its pixels are; ignored pixels
    are left out of the fraction.

    Args:
        mask: at the resolution of the picture file.
        preprocess: the picture's.
        grid: patches as (rows, columns).
        threshold: in (0, 1].

    Returns:
        1 class, 0 context, -1 neither: every pixel is ignored.
    """
    place = preprocess.place
    placed = np.asarray(place(Image.fromarray(mask.astype(np.uint8)), "nearest"))
    rows, columns = grid
    height, width = placed.shape
    tiles = placed.reshape(rows, height // rows, columns, width // columns)
    tiles = tiles.transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    return label_tiles(tiles, threshold=threshold)


def label_tiles(
    tiles: UInt8[np.ndarray, "patch pixel"], *, threshold: float
) -> Int8[np.ndarray, " patch"]:
    """The rule of `token_class`, for pixels already sorted by token.

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
