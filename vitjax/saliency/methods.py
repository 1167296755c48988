"""Every explanation method behind one call."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitjax.analysis.class_space import Labels
from vitjax.models.model import Model
from vitjax.saliency import attention, consensus, gradients, integrated_presence, lrp
from vitjax.saliency.gradients import Seed
from vitjax.saliency.relevancy import Loss, Of, helpful_minus_attended, relevancy
from vitjax.types import ArrayLike, Edits

Method = Literal[
    "relevancy",
    "chefer",
    "rollout",
    "raw_attention",
    "gradcam",
    "legrad",
    "integrated_gradients",
    "integrated_presence",
    "consensus",
    "lrp",
    "attnlrp",
    "class_projection",
    "occlusion",
    "random",
    "helpful_minus_attended",
]


def relevancy_of_patches(model: Model, images, target, **options: Any):
    """Relevancy as maps: without the prefix tokens."""
    return relevancy(model, images, target, **options)[..., model.config.prefix :]


def without_target(function: Callable[..., Any]) -> Callable[..., Any]:
    """A map of attention alone as a method: it takes a target and ignores it."""
    return lambda model, images, target, **options: function(model, images, **options)


PARTS: dict[str, Callable[..., Float[Array, "layer batch head patch"]]] = {
    "relevancy": relevancy_of_patches,
    "raw_attention": without_target(attention.raw_attention),
    "legrad": gradients.legrad,
    "class_projection": gradients.class_projection,
    "helpful_minus_attended": helpful_minus_attended,
}
"""Methods with a map of every block and head; the map is their sum."""

WHOLE: dict[str, Callable[..., Float[Array, "batch patch"]]] = {
    "chefer": gradients.chefer,
    "rollout": without_target(attention.rollout),
    "gradcam": gradients.gradcam,
    "integrated_gradients": gradients.integrated_gradients,
    "integrated_presence": integrated_presence.integrated_presence,
    "consensus": consensus.consensus,
    "lrp": lrp.lrp,
    "attnlrp": lrp.attnlrp,
    "occlusion": gradients.occlusion,
    "random": gradients.random,
}
"""Methods with one map of the whole model."""

METHODS = (*PARTS, *WHOLE)

OWN_OPTIONS = {
    "relevancy": ("of", "loss"),
    "helpful_minus_attended": ("of", "loss"),
    "integrated_gradients": ("steps",),
    "integrated_presence": ("steps",),
    "consensus": ("steps",),
    "random": ("seed",),
}


def explain(
    model: Model,
    images: Float[ArrayLike, "batch height width channel"],
    target: Labels,
    *,
    method: Method = "relevancy",
    layers: tuple[int, ...] | None = None,
    heads: tuple[int, ...] | None = None,
    of: Of = "residual",
    loss: Loss = "cross_entropy",
    steps: int = 8,
    seed: Seed = 0,
    edits: Edits | None = None,
) -> Float[Array, "batch patch"]:
    """A map of which patches speak for a class, by the method that is named.

    Methods and their formulas: "relevancy" (Vilas et al. 2023, section 7, summed over
    blocks and heads), "chefer" (gradient x attention, ICCV 2021), "lrp" (Chefer et al.,
    CVPR 2021), "attnlrp" (Achtibat et al. 2024), "legrad", "gradcam",
    "integrated_gradients", "integrated_presence" (ours: the path integral of removing
    patches), "consensus" (ours: its mean rank with "chefer"), "class_projection" (each
    patch's direct contribution to the logit), "occlusion" (a patch is removed),
    "raw_attention" (by default of the last block), "rollout", "random" (the control),
    and "helpful_minus_attended" (relevancy against actual attention: no importance, but
    what the model neglects). See `vitjax.maps`.

    Args:
        model: the model.
        images: preprocessed pixels.
        target: class number of each image, or one for all.
        method: see above. Static.
        layers: only these blocks, negative ones from the end; None for all. For methods
            with a map of every block and head: relevancy, raw_attention, legrad,
            class_projection, helpful_minus_attended. Static.
        heads: only these heads, likewise. Static.
        of: of "relevancy" and what is made of it. Static.
        loss: likewise. Static.
        steps: nodes of the integrals of "integrated_gradients", "integrated_presence"
            and "consensus". Static.
        seed: of "random". Static.
        edits: interventions.

    Returns:
        [batch patch], signed and not normalised; larger speaks more for the class. Read
        at [CLS], or averaged over query rows where there is none; registers are prefix
        tokens and never in the map.

    Raises:
        ValueError: an unknown method, block or head, or blocks and heads of a method
            that has one map of the whole model.
    """
    check(method)
    target = jnp.broadcast_to(jnp.asarray(target), (images.shape[0],))
    given = dict(of=of, loss=loss, steps=steps, seed=seed)
    own = {name: given[name] for name in OWN_OPTIONS.get(method, ())}
    if method in PARTS:
        if method == "raw_attention" and layers is None:
            layers = (-1,)
        parts = PARTS[method](model, images, target, edits=edits, **own)
        return chosen(parts, layers, heads).sum((0, 2))
    if layers is not None or heads is not None:
        raise ValueError(
            f"{method!r} is one map of the whole model; layers and heads can be chosen "
            f"for {', '.join(PARTS)}."
        )
    return WHOLE[method](model, images, target, edits=edits, **own)


def check(method: str) -> None:
    """Refuse a method that does not exist, with the nearest that does."""
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"There is no method {method!r}.{hint} MlpCache: {', '.join(METHODS)}."
        )


def chosen(
    parts: Float[Array, "layer batch head patch"],
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
) -> Float[Array, "some_layers batch some_heads patch"]:
    """The maps of some blocks and heads."""
    for axis, numbers, word in ((0, layers, "block"), (2, heads, "head")):
        if numbers is None:
            continue
        size = parts.shape[axis]
        if not numbers or any(not -size <= n < size for n in numbers):
            raise ValueError(
                f"There is no {word} of {tuple(numbers)}: they count from 0 to "
                f"{size - 1}, or from the end as -1 to {-size}."
            )
        parts = jnp.take(parts, np.asarray(numbers) % size, axis=axis)
    return parts
