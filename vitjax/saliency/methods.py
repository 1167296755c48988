"""Explanation methods, all behind one call."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitjax import messages
from vitjax.analysis.class_space import Labels, broadcast_labels
from vitjax.models.model import Model
from vitjax.saliency import (
    attention,
    attribution,
    consensus,
    gradients,
    integrated_presence,
    lrp,
)
from vitjax.saliency.gradients import Seed
from vitjax.saliency.relevancy import Loss, Of, helpful_minus_attended, relevancy
from vitjax.types import ArrayLike, Edits


def relevancy_of_patches(model: Model, images, target, **options: Any):
    """Relevancy as maps: without the prefix tokens."""
    return relevancy(model, images, target, **options)[..., model.config.prefix :]


def without_target(function: Callable[..., Any]) -> Callable[..., Any]:
    """A map of attention alone as a method that ignores its target."""
    return lambda model, images, target, **options: function(model, images, **options)


PER_HEAD: dict[str, Callable[..., Float[Array, "layer batch head patch"]]] = {
    "relevancy": relevancy_of_patches,
    "raw_attention": without_target(attention.raw_attention),
    "legrad": gradients.legrad,
    "class_projection": attribution.class_projection,
    "helpful_minus_attended": helpful_minus_attended,
}
"""Methods with a map for every block and head; the map is their sum."""

WHOLE_MODEL: dict[str, Callable[..., Float[Array, "batch patch"]]] = {
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

METHODS = (*PER_HEAD, *WHOLE_MODEL)

if TYPE_CHECKING:
    Method = str
else:
    Method = Literal[METHODS]

METHOD_OPTIONS = {
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
    method: str = "relevancy",
    layers: tuple[int, ...] | None = None,
    heads: tuple[int, ...] | None = None,
    of: Of = "residual",
    loss: Loss = "cross_entropy",
    steps: int = 8,
    seed: Seed = 0,
    edits: Edits | None = None,
) -> Float[Array, "batch patch"]:
    """A map of which patches are evidence for a class, by a choice of methods.

    Methods: "relevancy" (Vilas et al. 2023, section 7, summed over blocks and heads),
    "chefer" (gradient x attention, ICCV 2021), "lrp" (Chefer et al., CVPR 2021),
    "attnlrp" (Achtibat et al. 2024), "legrad", "gradcam", "integrated_gradients",
    "integrated_presence" (new here: the path integral of removing patches), "consensus"
    (new here: its mean rank with "chefer"), "class_projection" (each patch's direct
    contribution to the logit), "occlusion" (a patch is removed), "raw_attention" (by
    default of the last block), "rollout", "random" (the control), and
    "helpful_minus_attended" (where relevancy exceeds attention, which is not an
    importance map). See `vitjax.saliency` for the formulas.

    Args:
        model, images: the model, and preprocessed pixels.
        target: class number of each image, or one for all.
        method: see above. Static.
        layers, heads: only these, negative ones from the end; None for all. For methods
            with a map of every block and head: relevancy, raw_attention, legrad,
            class_projection, helpful_minus_attended. Static.
        of, loss: of "relevancy" and what is made of it. Static.
        steps: nodes of the integrals of "integrated_gradients", "integrated_presence"
            and "consensus". Static.
        seed: of "random". Static.
        edits: interventions.

    Returns:
        [batch patch], signed and not normalized; larger is more evidence. Read
        at [CLS], or averaged over query rows where there is none; registers are prefix
        tokens and never in the map.

    Raises:
        ValueError: an unknown method, block or head, or blocks and heads of a method
            that has one map of the whole model.
    """
    messages.check_one_of("method", method, METHODS)
    target = broadcast_labels(target, images.shape[:1])
    options = dict(of=of, loss=loss, steps=steps, seed=seed)
    own = {name: options[name] for name in METHOD_OPTIONS.get(method, ())}
    if method in PER_HEAD:
        if method == "raw_attention" and layers is None:
            layers = (-1,)
        parts = PER_HEAD[method](model, images, target, edits=edits, **own)
        parts = select_parts("layers", parts, layers, axis=0)
        return select_parts("heads", parts, heads, axis=2).sum((0, 2))
    if layers is not None or heads is not None:
        raise ValueError(
            f"{method!r} is one map of the whole model; layers and heads can be chosen "
            f"for {', '.join(PER_HEAD)}."
        )
    return WHOLE_MODEL[method](model, images, target, edits=edits, **own)


def select_parts(name: str, parts, numbers, *, axis: int) -> Float[Array, "..."]:
    """The maps [layer batch head patch] of some blocks or heads."""
    if numbers is None:
        return parts
    size = parts.shape[axis]
    if not numbers:
        raise ValueError(f"{name}={numbers!r} must hold at least one number.")
    messages.check_range(name, tuple(numbers), -size, size - 1)
    return jnp.take(parts, np.asarray(numbers) % size, axis=axis)
