"""Position embeddings: which belong to which token, and how they are resized."""

import math

import jax
import numpy as np

from vitjax.types import Config


def positions(position, *, config, dialect):
    """One position per token: the patches' resized to the model's grid.

    Prefix tokens that the file gives no position (registers in timm, [CLS] in
    big_vision) have position 0.
    """
    extra = prefix_positions(position.shape[1], config)
    prefix, patches = position[:, :extra], position[:, extra:]
    if patches.shape[1] != config.patches:
        side = math.isqrt(patches.shape[1])
        grid = patches.reshape(side, side, -1)
        grid = RESIZE[dialect.resize](grid, config.grid)
        patches = grid.reshape(1, config.patches, -1)
    bare = np.zeros((1, config.prefix - extra, position.shape[2]), np.float32)
    return np.concatenate([prefix, bare, patches], axis=1)


def prefix_positions(count: int, config: Config) -> int:
    """How many of a file's positions belong to prefix tokens."""
    candidates = (config.prefix, int(config.class_token), 0)
    for extra in candidates:
        if count - extra == config.patches:
            return extra
    for extra in candidates:
        if math.isqrt(count - extra) ** 2 == count - extra:
            return extra
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


RESIZE = {"corners": resize_corners, "bicubic": resize_bicubic}
