"""Sweeps over sites of a model: one edited forward pass for each.

A site is a set of entries of some parts of the model, as a mask for each part with its
axes in `PARTS`. Its pass begins at its first block, from the residual stream of the
pass without edits: on average, sweeping all blocks costs half a forward pass a site.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from vitjax.models.forward import resume_forward
from vitjax.models.model import Model
from vitjax.recipes.recipe import Subset
from vitjax.types import FIELD_AXES, ArrayLike, Config, Edits, TapEdit

PARTS = {
    "residual": ("residual", ("layer", "token")),
    "head": ("mixed_values", ("layer", "head")),
    "attention": ("attention_update", ("layer",)),
    "mlp": ("mlp_update", ("layer",)),
}
"""Part -> the field of `Trace` that is replaced there, and the axes of its masks."""

Shapes = Mapping[str, tuple[int, ...]]
Sites = Mapping[str, Bool[ArrayLike, "site layer ..."]]
Values = Mapping[str, Float[Array, "..."]]


def part_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of masks for every head, every block's attention and every MLP."""
    depth = config.depth
    return {"head": (depth, config.heads), "attention": (depth,), "mlp": (depth,)}


def one_by_one(shapes: Shapes) -> dict[str, Bool[np.ndarray, "site layer ..."]]:
    """One site for every entry of masks of these shapes, in their order."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    masks = np.split(np.eye(sum(sizes), dtype=bool), np.cumsum(sizes)[:-1], axis=1)
    return {
        part: mask.reshape(-1, *shape)
        for (part, shape), mask in zip(shapes.items(), masks)
    }


def by_part(values: Shaped[Array, "site batch"], shapes: Shapes) -> dict[str, Array]:
    """Part -> values [batch layer ...] of the sites of `one_by_one`; more are cut."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    pieces = jnp.split(values.T, ends, axis=1)
    return {
        part: piece.reshape(-1, *shape)
        for (part, shape), piece in zip(shapes.items(), pieces)
    }


def sweep(
    model: Model,
    streams: Float[Array, "layer batch token dim"],
    values: Values,
    sites: Sites,
    read: Callable[[Float[Array, "batch class"]], Any],
) -> Any:
    """`read` of the class logits with each site replaced by `values`, [site ...].

    `streams` enter the blocks of the pass without edits; `values` of a part have the
    axes of its field.
    """

    def of_site(masks):
        taps = {}
        for part, mask in masks.items():
            field, axes = PARTS[part]
            sizes = dict(zip(axes, mask.shape))
            where = mask.reshape([sizes.get(axis, 1) for axis in FIELD_AXES[field]])
            taps[field] = TapEdit(where=where, value=values[part])
        blocks = [m.reshape(m.shape[0], -1).any(1) for m in masks.values()]
        start = jnp.argmax(functools.reduce(jnp.logical_or, blocks))
        return read(resume_forward(model, streams, start, edits=Edits(taps=taps)))

    return jax.lax.map(of_site, {part: jnp.asarray(m) for part, m in sites.items()})


def read_stream(params, stream_in, trace) -> Float[Array, "batch token dim"]:
    """A `read` of `scan_blocks`: what enters every block."""
    return stream_in


def subset(source: Any, indices: np.ndarray, choice: str) -> Subset:
    """Some images of an opened data set."""
    chosen = tuple(np.unique(indices).tolist())
    return Subset(source, chosen, f"{source.id}; {choice}")


def spread(source: Any, count: int) -> Subset:
    """At most so many images, evenly spread over a data set: it may be sorted."""
    count = min(count, len(source))
    if not count:
        raise ValueError(f"The data set {source.id} holds no image.")
    return subset(source, np.arange(count) * len(source) // count, f"{count} images")
