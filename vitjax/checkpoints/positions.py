"""Position embeddings: which belong to which token, and how they are resized."""

import math
from typing import Any

import jax
import numpy as np

from vitjax.types import Config

Layout = tuple[int, tuple[int, int]]
"""How many positions belong to prefix tokens, and the grid of the others."""


def positions(position: np.ndarray, *, config: Config, dialect: Any) -> np.ndarray:
    """One position per token: the patches' resized to the model's grid.

    Prefix tokens that the file gives no position (registers in timm, [CLS] in
    big_vision) have position 0.
    """
    extra, size = layout(position.shape[1], config, dialect.written)
    prefix, patches = position[:, :extra], position[:, extra:]
    if size != config.grid:
        grid = RESIZE[dialect.resize](patches.reshape(*size, -1), config.grid)
        patches = grid.reshape(1, config.patches, -1)
    bare = np.zeros((1, config.prefix - extra, position.shape[2]), np.float32)
    return np.concatenate([prefix, bare, patches], axis=1)


def layout(count: int, config: Config, written: Config | None) -> Layout:
    """How a file's positions are laid out.

    Args:
        count: of the positions.
        config: the model that they are for.
        written: the architecture that the file was written for, where it is known.

    Returns:
        The grid of that architecture or of the model where one fits, else a square.

    Raises:
        ValueError: no grid fits.
    """
    extras = (config.prefix, int(config.class_token), 0)
    grids = [one.grid for one in (written, config) if one is not None]
    for rows, columns in grids:
        for extra in extras:
            if count - extra == rows * columns:
                return extra, (rows, columns)
    for extra in extras:
        side = math.isqrt(max(count - extra, 0))
        if side > 0 and side**2 == count - extra:
            return extra, (side, side)
    raise ValueError(
        f"{count} position embeddings are neither {config.patches} patches nor a "
        f"square number of them, with or without {config.prefix} prefix tokens"
    )


def resize_corners(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The original ViT code's way: linear between aligned corners."""
    from scipy import ndimage

    zoom = (size[0] / grid.shape[0], size[1] / grid.shape[1], 1)
    return np.asarray(ndimage.zoom(grid, zoom, order=1), np.float32)


def resize_bicubic(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """timm's way for torch files: antialiased bicubic between pixel centres."""
    shape = (*size, grid.shape[-1])
    return np.asarray(jax.image.resize(grid, shape, "cubic", antialias=True))


def resize_plain_bicubic(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """transformers' way: PyTorch's bicubic between pixel centres, not antialiased."""
    rows, columns = (cubic_weights(n, m) for n, m in zip(grid.shape, size))
    return np.einsum("rn,nmd,cm->rcd", rows, grid, columns).astype(np.float32)


def cubic_weights(entries: int, wanted: int) -> np.ndarray:
    """[wanted entry] weights of cubic convolution with a = -0.75, edges repeated."""
    centre = (np.arange(wanted) + 0.5) * entries / wanted - 0.5
    weights, rows = np.zeros((wanted, entries)), np.arange(wanted)
    for offset in (-1, 0, 1, 2):
        place = np.floor(centre) + offset
        x, a = np.abs(centre - place), -0.75
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        inside = place.clip(0, entries - 1).astype(int)
        np.add.at(weights, (rows, inside), np.where(x <= 1, near, far))
    return weights


RESIZE = {
    "corners": resize_corners,
    "bicubic": resize_bicubic,
    "plain_bicubic": resize_plain_bicubic,
}
