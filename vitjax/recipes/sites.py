"""Sweeps over sites of a model: one edited forward pass for each.

A site is a set of entries of some fields of `Trace`, as a mask for each field with the
axes `AXES`. Its pass begins at its first block, from the residual stream of the pass
without edits: on average, sweeping all blocks costs half a forward pass a site.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from vitjax.models.forward import resume_forward
from vitjax.models.model import Model
from vitjax.recipes.probe_fits import Subset
from vitjax.recipes.recipe import Context
from vitjax.types import FIELD_AXES, ArrayLike, Batch, Config, Edits, TapEdit

AXES = {
    "residual": ("layer", "token"),
    "mixed_values": ("layer", "head"),
    "attention_update": ("layer",),
    "mlp_update": ("layer",),
}
"""Field -> axes of its masks."""

Sites = Mapping[str, Bool[ArrayLike, "site layer ..."]]
Values = Mapping[str, Float[Array, "..."]]


def part_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of masks for every head, every block's attention and every MLP."""
    depth = config.depth
    blocks = {"attention_update": (depth,), "mlp_update": (depth,)}
    return {"mixed_values": (depth, config.heads), **blocks}


def one_by_one(
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Bool[np.ndarray, "site layer ..."]]:
    """One site for every entry of masks of these shapes, in their order."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    masks = np.split(np.eye(sum(sizes), dtype=bool), np.cumsum(sizes)[:-1], axis=1)
    return {
        field: mask.reshape(-1, *shape)
        for (field, shape), mask in zip(shapes.items(), masks)
    }


def sweep(
    model: Model,
    streams: Float[Array, "layer batch token dim"],
    values: Values,
    sites: Sites,
    read: Callable[[Float[Array, "batch class"]], Any],
) -> Any:
    """`read` of the class logits with each site replaced by `values`, [site ...].

    `streams` enter the blocks of the pass without edits; `values` have a field's axes.
    """

    def of_site(masks):
        edits = Edits(
            taps={
                field: TapEdit(where=along(field, mask), value=values[field])
                for field, mask in masks.items()
            }
        )
        blocks = [m.reshape(m.shape[0], -1).any(1) for m in masks.values()]
        start = jnp.argmax(functools.reduce(jnp.logical_or, blocks))
        return read(resume_forward(model, streams, start, edits=edits))

    return jax.lax.map(of_site, {field: jnp.asarray(m) for field, m in sites.items()})


def along(field: str, mask: Bool[Array, "layer ..."]) -> Bool[Array, "layer ..."]:
    """A mask with all axes of its field."""
    sizes = dict(zip(AXES[field], mask.shape))
    return mask.reshape([sizes.get(axis, 1) for axis in FIELD_AXES[field]])


def read_stream(params, stream_in, trace) -> Float[Array, "batch token dim"]:
    """A `read` of `scan_blocks`: what enters every block."""
    return stream_in


def subset(source: Any, indices: np.ndarray, choice: str) -> Subset:
    """Some images of an opened data set."""
    chosen = tuple(np.unique(indices).tolist())
    return Subset(source, chosen, f"{source.id}; {choice}")


def spread(source: Any, count: int) -> Subset:
    """Images spread evenly over a data set, which may be sorted by class."""
    count = min(count, len(source))
    indices = np.arange(count) * len(source) // count
    return subset(source, indices, f"{count} images")


def placed_batches(context: Context, source: Subset) -> Iterator[Batch]:
    """Batches of a source, on the devices of a run."""
    sharding = NamedSharding(context.mesh, PartitionSpec(*context.mesh.axis_names))
    for batch in context.batches(source, 0, len(source)):
        yield jax.device_put(batch, sharding)
