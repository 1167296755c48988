"""Consensus: the mean rank of two maps that measure different things."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax.models.edits import patch_mask
from vitjax.models.model import Model
from vitjax.saliency.gradients import chefer
from vitjax.saliency.integrated_presence import (
    AT,
    MARGINAL,
    integrated_presence,
    maps_at,
)
from vitjax.saliency.passes import Images, Map, Target, read_map
from vitjax.types import Edits


def consensus(
    model: Model,
    images: Images,
    target: Target,
    *,
    steps: int = 24,
    edits: Edits | None = None,
) -> Map:
    """The mean rank of a patch in `integrated_presence` and in `chefer`, in [0, 1].

    (rank_presence(t) + rank_chefer(t)) / 2, ranks as of `mean_rank`; not from a paper.
    The one map integrates the very loss of patches and so credits all that the class
    rests on, registers in the background too; the other follows attention to the
    object. On removal tests the mean is better than either (see the README's table).

    1 where both rank a patch first, 0 where both rank it last; the mean of a map is
    1/2. Ranks are among the patches that exist. Only an order: it has no unit, and its
    gradient is zero. `steps` (static) are nodes of the integral of
    `integrated_presence`.
    """
    maps = (
        integrated_presence(model, images, target, steps=steps, edits=edits),
        read_map(chefer, model, images, target, edits=edits),
    )
    return mean_rank(maps, edits=edits)


def quick_consensus(
    model: Model,
    images: Images,
    target: Target,
    *,
    at: float | Float[Array, ""] = AT,
    edits: Edits | None = None,
) -> Map:
    """`consensus` by one forward and one backward pass, in [0, 1].

    The mean rank of `presence` and of `chefer`, both of the model in which all patches
    have the presence `at`. Not from a paper.
    """
    methods = MARGINAL | {"chefer": chefer}
    maps = maps_at(at, model, images, target, methods, edits=edits)
    return mean_rank(tuple(maps.values()), edits=edits)


def mean_rank(maps: Sequence[Map], *, edits: Edits | None = None) -> Map:
    """Mean over maps of each patch's rank in its map, divided by patches - 1.

    rank(t) = number of patches before t in increasing order: 1 for a patch with the
    largest value in every map. Ties go by position, and NaN is below everything, as in
    `removal_curve`. Of one patch, 0. Patches that `edits.keep` removed have no rank: 0.
    """
    values = jnp.stack([each.astype(jnp.float32) for each in maps])
    values = jnp.where(jnp.isnan(values), -jnp.inf, values)
    keep = jnp.ones((1, 1), bool)
    if edits is not None and edits.keep is not None:
        keep = patch_mask(edits)
    keep = jnp.broadcast_to(keep, values.shape[1:])
    absent_first = jnp.broadcast_to(keep[None], values.shape)
    order = jnp.lexsort((values, absent_first), axis=-1)
    rank = jnp.argsort(order, axis=-1) - (~keep).sum(-1, keepdims=True)[None]
    highest = jnp.maximum(keep.sum(-1, keepdims=True) - 1, 1).astype(jnp.float32)
    return jnp.where(keep, rank.astype(jnp.float32).mean(0) / highest, 0)
