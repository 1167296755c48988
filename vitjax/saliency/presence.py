"""Presence: what adding patches to a model brings, and its consensus with Chefer's map.

Integrated presence is a path integral over the presence of all patches, `presence` the
slope at one place of the path.
"""

from collections.abc import Callable, Iterable, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitjax import messages
from vitjax.models.edits import patch_mask
from vitjax.models.model import Model
from vitjax.saliency.gradients import chefer, path_integral
from vitjax.saliency.libragrad import libragrad
from vitjax.saliency.lrp import no_rules
from vitjax.saliency.passes import (
    Images,
    Map,
    Reader,
    Target,
    read_map,
    read_maps,
)
from vitjax.types import ArrayLike, Edits, to_float32

AT = 0.5
"""Presence at which one backward pass tells most; chosen on photos, see the guide."""


def integrated_presence(
    model: Model, images: Images, target: Target, edits: Edits, *, steps: int = 24
) -> Map:
    """The contribution of each patch to the target's logit, from no patches to all.

    A patch of presence m in [0, 1] takes part in every softmax of attention with its
    exponential times m, that of a head too, and in a pooled mean with weight m: m = 0
    is the model without the patch, exactly as removal tests remove it. The map is the
    path integral (integrated gradients, Sundararajan et al. 2017, of presence instead
    of pixels; the Aumann-Shapley value of the patches as players)

        integral over a in (0, 1) of dz / dm_t at m = (a, ..., a)
        dz / d log m_t = sum over blocks, heads and queries q of
                         A_qt (g_qt - sum_u A_qu g_qu),   g = dz / dA.

    Not from a paper. `steps` (static) are Gauss-Legendre nodes of the integral over
    sqrt(a), by default with an error of 1 % on photos, of 16 % with 8 (ViT-Ti/16); each
    costs about three forward passes. Signed, in units of logits. Up to
    the integral's error it sums to z with all patches less the limit of z as the
    presence of all goes to 0. With prefix tokens and [CLS], that is z without any
    patch. Without prefix tokens presence only counts against that of other patches, so
    that the map sums to 0: it says which patches matter more than others.
    """

    def slope(at):
        maps = maps_at(at, model, images, target, edits, MARGINAL)
        return to_float32(maps["presence"]) / at

    dtype = np.promote_types(model.dtype, jnp.float32)
    return path_integral(slope, steps, dtype)


def presence(
    model: Model, images: Images, target: Target, edits: Edits, *, at: float = AT
) -> Map:
    """What a patch more or less would change where all patches are there in part.

    The integrand of `integrated_presence` at one place, dz / d log m_t at m = (at, ...,
    at): removal tests ask for what counts when many patches are gone, so that the slope
    at partial presence says more than the one at the whole image (at = 1). Signed, in
    units of logits. Not from a paper. One forward and one backward pass. `at` in [0, 1]
    is static.
    """
    messages.check_range("at", at, 0, 1)
    return maps_at(at, model, images, target, edits, MARGINAL)["presence"]


def half_libragrad(
    model: Model, images: Images, target: Target, edits: Edits, *, at: float = AT
) -> Map:
    """LibraGrad of the later half of the blocks where all patches are there in part.

    `libragrad`'s sum over the last half of the blocks (its authors' SkipPLUS), of the
    model in which every patch has the presence `at` (see `integrated_presence`): what
    counts when others are missing too. Signed, in units of logits. The place is not
    from a paper. One forward pass and half a backward pass. `at` in [0, 1] is static.
    """
    messages.check_range("at", at, 0, 1)
    methods = {"map": later_libragrad}
    return maps_at(at, model, images, target, edits, methods)["map"]


def later_libragrad(model: Model, target: Target, edits: Edits) -> Reader:
    """`libragrad` of the last half of the blocks, the larger one of an odd number."""
    depth = model.config.depth
    return libragrad(model, target, edits, blocks=depth - depth // 2)


def maps_at(
    presence: float | Float[Array, ""],
    model: Model,
    images: Images,
    target: Target,
    edits: Edits,
    methods: Mapping[str, Callable[..., Reader]],
) -> dict[str, Map]:
    """`read_maps` of the model in which every patch has this presence."""
    config = model.config

    def of_tokens(tokens):
        return jnp.where(np.arange(tokens) >= config.prefix, presence, 1.0)

    attend = of_tokens(config.tokens).reshape(1, 1, 1, 1, config.tokens)
    pooled = None
    if config.pooling != "cls":
        patches = config.patches if edits.select is None else edits.select.shape[1]
        pooled = of_tokens(config.prefix + patches)[None]
        pooled = jnp.tile(pooled, (images.shape[0], 1))
    edits = edits & Edits(attend=attend)
    return read_maps(model, images, target, edits, methods, presence=pooled)


def marginal_presence(model: Model, target: Target, edits: Edits) -> Reader:
    """dz / d log m of each patch, where the edits already hold m."""

    def start(x, pooled):
        if pooled is None:
            return jnp.zeros(x.shape[:2], x.dtype)
        return pooled.astype(x.dtype)

    def backward(total, grads):
        contribution = grads.weights * grads.weights_gradient
        of_row = contribution.sum(-1, keepdims=True)
        contribution = contribution - grads.weights * of_row
        return total + contribution.sum((1, 2)), None

    return Reader(backward=backward, start=start)


MARGINAL = {"presence": marginal_presence}


def consensus(
    model: Model, images: Images, target: Target, edits: Edits, *, steps: int = 24
) -> Map:
    """The mean rank of a patch in `integrated_presence` and in `chefer`, in [0, 1].

    (rank_presence(t) + rank_chefer(t)) / 2, ranks as of `mean_rank`; not from a paper.
    The one map integrates the very loss of patches and so credits all that the class
    rests on, registers in the background too; the other follows attention to the
    object. On removal tests the mean is better than either (the guide has the table).

    1 where both rank a patch first, 0 where both rank it last; the mean of a map is
    1/2. Ranks are among the patches that exist. Only an order: it has no unit, and its
    gradient is zero. `steps` (static) are nodes of the integral of
    `integrated_presence`.
    """
    maps = (
        integrated_presence(model, images, target, edits, steps=steps),
        read_map(chefer, model, images, target, edits),
    )
    return mean_rank(stack(maps), edits=edits)


def quick_consensus(
    model: Model, images: Images, target: Target, edits: Edits, *, at: float = AT
) -> Map:
    """`consensus` by one forward pass and one and a half backward, in [0, 1].

    rank_presence / 4 + rank_chefer / 4 + rank_half_libragrad / 2, ranks as of
    `mean_rank`, all three of the model in which every patch has the presence `at`.
    Where LRP has no rules for the head, of the first two. Not from a paper.
    """
    messages.check_range("at", at, 0, 1)
    methods, ranked = MARGINAL | {"chefer": chefer}, ["presence", "chefer"]
    if not no_rules(model.config):
        methods["libragrad"] = later_libragrad
        ranked += ["libragrad"] * 2
    maps = maps_at(at, model, images, target, edits, methods)
    return mean_rank(stack(maps[name] for name in ranked), edits=edits)


def stack(maps: Iterable[Map]) -> Float[Array, "method batch patch"]:
    """Maps of several methods, which may differ in dtype."""
    return jnp.stack([each.astype(jnp.float32) for each in maps])


def mean_rank(
    maps: Float[ArrayLike, "method batch patch"], *, edits: Edits = Edits()
) -> Map:
    """Mean over maps of each patch's rank in its map, divided by patches - 1.

    rank(t) = number of patches before t in increasing order: 1 for a patch with the
    largest value in every map. Ties go by position, and NaN is below everything, as in
    `removal_curve`. Of one patch, 0. Patches that `edits.keep` removed have no rank: 0.
    """
    values = jnp.asarray(maps)
    values = jnp.where(jnp.isnan(values), -jnp.inf, values)
    keep = patch_mask(edits)
    keep = jnp.broadcast_to(True if keep is None else keep, values.shape[1:])
    absent_first = jnp.broadcast_to(keep[None], values.shape)
    order = jnp.lexsort((values, absent_first), axis=-1)
    rank = jnp.argsort(order, axis=-1) - (~keep).sum(-1, keepdims=True)[None]
    highest = jnp.maximum(keep.sum(-1, keepdims=True) - 1, 1).astype(jnp.float32)
    return jnp.where(keep, rank.astype(jnp.float32).mean(0) / highest, 0)
