"""Position embeddings: one per token, resized to the model's grid of patches."""

import functools
import math
from typing import Any

import jax
import numpy as np


def resize_positions(position: np.ndarray, target: Any) -> np.ndarray:
    """Positions on the target's grid; 0 for prefix tokens that the file has none of."""
    config = target.config
    if position.ndim == 2:
        position = position[None]
    if position.ndim != 3 or position.shape[0] != 1:
        raise ValueError(f"position embeddings of shape {position.shape}")
    prefix, grid = position_grid(position.shape[1], target)
    of_prefix, patches = position[:, :prefix], position[:, prefix:]
    if grid != config.grid:
        resize = RESIZE[target.resize]
        patches = resize(patches.reshape(*grid, -1), config.grid)
        patches = patches.reshape(1, config.patches, -1)
    zeros = np.zeros((1, config.prefix - prefix, position.shape[2]), np.float32)
    return np.concatenate([of_prefix, zeros, patches], axis=1)


def position_grid(count: int, target: Any) -> tuple[int, tuple[int, int]]:
    """Prefix tokens with a position, and the others' grid: a known one, or a square."""
    for prefix in target.prefixes:
        patches = count - prefix
        for known in (target.source_config, target.config):
            if known is not None and patches == known.patches:
                return prefix, known.grid
        side = math.isqrt(max(patches, 0))
        if side > 0 and side**2 == patches:
            return prefix, (side, side)
    raise ValueError(
        f"{count} position embeddings are neither {target.config.patches} patches nor "
        "a square number of them, after those of "
        f"{' or '.join(map(str, target.prefixes))} prefix tokens"
    )


def resize_corners(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """As the original ViT code: linear between aligned corners."""
    from scipy import ndimage

    zoom = (size[0] / grid.shape[0], size[1] / grid.shape[1], 1)
    return np.asarray(ndimage.zoom(grid, zoom, order=1), np.float32)


def resize_bicubic(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """As timm for torch files: antialiased bicubic between pixel centers."""
    shape = (*size, grid.shape[-1])
    return np.asarray(jax.image.resize(grid, shape, "cubic", antialias=True))


def resize_plain_bicubic(
    grid: np.ndarray, size: tuple[int, int], offset: float = 0.0
) -> np.ndarray:
    """As transformers, not antialiased; as if `offset` larger, as DINOv2."""
    rows, columns = (
        cubic_weights(entries, side, (side + offset) / entries)
        for entries, side in zip(grid.shape, size)
    )
    return np.einsum("rn,nmd,cm->rcd", rows, grid, columns).astype(np.float32)


def cubic_weights(entries: int, size: int, scale: float) -> np.ndarray:
    """[size entry] weights of cubic convolution with a = -0.75, edges repeated."""
    center = (np.arange(size) + 0.5) / scale - 0.5
    weights, rows = np.zeros((size, entries)), np.arange(size)
    for offset in (-1, 0, 1, 2):
        index = np.floor(center) + offset
        x, a = np.abs(center - index), -0.75
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        inside = index.clip(0, entries - 1).astype(int)
        np.add.at(weights, (rows, inside), np.where(x <= 1, near, far))
    return weights


RESIZE = {
    "corners": resize_corners,
    "bicubic": resize_bicubic,
    "plain_bicubic": resize_plain_bicubic,
    "offset_bicubic": functools.partial(resize_plain_bicubic, offset=0.1),
}
