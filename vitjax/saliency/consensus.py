"""Consensus: what two methods that look at different things agree on."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitjax.models.model import Model
from vitjax.saliency.attention import Images, Map
from vitjax.saliency.gradients import chefer
from vitjax.saliency.integrated_presence import integrated_presence
from vitjax.types import ArrayLike, Edits


def consensus(
    model: Model,
    images: Images,
    target: Int[ArrayLike, " batch"],
    *,
    steps: int = 8,
    edits: Edits | None = None,
) -> Map:
    """The mean rank of a patch in `integrated_presence` and in `chefer`.

    (rank_presence(t) + rank_chefer(t)) / 2, ranks as of `mean_rank`. Ours. The one map
    integrates the very loss of patches and so credits all that the class rests on,
    registers in the background too; the other follows attention to the object. A patch
    that both put first is one whose removal hurts most: on removal tests the mean is
    better than either (see the README's table).

    Args:
        model: the model.
        images: preprocessed pixels.
        target: class that is explained.
        steps: nodes of the integral of `integrated_presence`. Static.
        edits: interventions.

    Returns:
        In [0, 1]: 1 where both put a patch first, 0 where both put it last; the mean of
        a map is 1/2. An order, no amount: it has no unit, and its gradient is zero.
    """
    maps = (
        integrated_presence(model, images, target, steps=steps, edits=edits),
        chefer(model, images, target, edits=edits),
    )
    return mean_rank(jnp.stack([found.astype(jnp.float32) for found in maps]))


def mean_rank(
    maps: Float[ArrayLike, "method *batch patch"],
) -> Float[Array, "*batch patch"]:
    """Mean over maps of each patch's rank in its map, as a share of the highest.

    rank(t) = number of patches that come before t in increasing order, divided by
    patches - 1.

    Args:
        maps: any numbers; only their order within a map counts. Ties go by position,
            and NaN is below everything, as in `removal_curve`.

    Returns:
        In [0, 1]; 1 for a patch with the largest value in every map. Of one patch, 0.
    """
    values = jnp.asarray(maps)
    values = jnp.where(jnp.isnan(values), -jnp.inf, values)
    place = jnp.argsort(jnp.argsort(values, axis=-1, stable=True), axis=-1)
    highest = max(1, place.shape[-1] - 1)
    return jnp.mean(place.astype(jnp.float32) / highest, axis=0)
