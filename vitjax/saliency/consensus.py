"""Consensus: the mean rank of two maps that measure different things."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vitjax.models.edits import patch_mask
from vitjax.models.model import Model
from vitjax.saliency.attention import Images, Map, Target
from vitjax.saliency.gradients import chefer
from vitjax.saliency.integrated_presence import integrated_presence
from vitjax.types import ArrayLike, Edits


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
        chefer(model, images, target, edits=edits),
    )
    keep = None if edits is None or edits.keep is None else patch_mask(edits)
    return mean_rank(jnp.stack([each.astype(jnp.float32) for each in maps]), keep=keep)


def mean_rank(
    maps: Float[ArrayLike, "method *batch patch"],
    *,
    keep: Bool[Array, "#*batch patch"] | None = None,
) -> Float[Array, "*batch patch"]:
    """Mean over maps of each patch's rank in its map, divided by patches - 1.

    rank(t) = number of patches before t in increasing order: 1 for a patch with the
    largest value in every map. Ties go by position, and NaN is below everything, as in
    `removal_curve`. Of one patch, 0. Patches not in `keep` have no rank: 0.
    """
    values = jnp.asarray(maps)
    values = jnp.where(jnp.isnan(values), -jnp.inf, values)
    shape = values.shape[1:]
    keep = jnp.ones(shape, bool) if keep is None else jnp.broadcast_to(keep, shape)
    absent_first = jnp.broadcast_to(keep[None], values.shape)
    order = jnp.lexsort((values, absent_first), axis=-1)
    rank = jnp.argsort(order, axis=-1) - (~keep).sum(-1, keepdims=True)[None]
    highest = jnp.maximum(keep.sum(-1, keepdims=True) - 1, 1).astype(jnp.float32)
    return jnp.where(keep, rank.astype(jnp.float32).mean(0) / highest, 0)
