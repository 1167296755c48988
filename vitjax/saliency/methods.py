"""Explanation methods, all behind one call."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitjax import messages
from vitjax.analysis.class_space import Labels, broadcast_labels, nan_without_class
from vitjax.models.model import Model
from vitjax.saliency import (
    attention,
    attribution,
    consensus,
    gradients,
    integrated_presence,
    libragrad,
    lrp,
    token_flow,
)
from vitjax.saliency.attention import zero_absent
from vitjax.saliency.gradients import Seed
from vitjax.saliency.relevancy import helpful_minus_attended, relevancy
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
    "input_x_gradient": libragrad.input_x_gradient,
    "libragrad": libragrad.libragrad,
    "tokentm": token_flow.tokentm,
    "inflow": token_flow.inflow,
    "occlusion": gradients.occlusion,
    "random": gradients.random,
}
"""Methods with one map of the whole model."""

METHODS = (*PER_HEAD, *WHOLE_MODEL)

SIGNED_METHODS = frozenset(
    {
        "relevancy",
        "class_projection",
        "helpful_minus_attended",
        "integrated_gradients",
        "integrated_presence",
        "attnlrp",
        "input_x_gradient",
        "libragrad",
        "occlusion",
    }
)
"""Methods whose maps hold evidence for a class and against it; others are from 0."""

if TYPE_CHECKING:
    Method = str
else:
    Method = Literal[METHODS]

PARTS = ("layers", "heads")
METHOD_OPTIONS = {
    **dict.fromkeys(PER_HEAD, PARTS),
    "relevancy": (*PARTS, "of", "loss"),
    "helpful_minus_attended": (*PARTS, "of", "loss"),
    "integrated_gradients": ("steps",),
    "integrated_presence": ("steps",),
    "consensus": ("steps",),
    "random": ("seed",),
}
"""Options that a method has besides edits; the others have none."""

LAST_LAYERS = {"raw_attention": 1, "legrad": 2}
"""How many blocks are added up where none are chosen; of other methods, all."""


def explain(
    model: Model,
    images: Float[ArrayLike, "batch height width channel"],
    target: Labels,
    *,
    method: str = "chefer",
    layers: tuple[int, ...] | None = None,
    heads: tuple[int, ...] | None = None,
    of: str | None = None,
    loss: str | None = None,
    steps: int | None = None,
    seed: Seed | None = None,
    edits: Edits | None = None,
) -> Float[Array, "batch patch"]:
    """A map of which patches are evidence for a class, by a choice of methods.

    Methods: "chefer" (gradient x attention, ICCV 2021; the default, the most faithful
    on removal tests of those that cost a few passes), "relevancy" (Vilas et al. 2023,
    section 7, summed over blocks and heads: where more attention would help the class,
    which is not what the prediction rests on), "lrp" (Chefer et al., CVPR 2021),
    "attnlrp" (Achtibat et al. 2024), "legrad", "gradcam", "integrated_gradients",
    "integrated_presence" (new here: the path integral of removing patches), "consensus"
    (new here: its mean rank with "chefer"), "class_projection" (each patch's direct
    contribution to the logit), "occlusion" (a patch is removed), "raw_attention",
    "rollout", "random" (the control), and
    "helpful_minus_attended" (where relevancy exceeds attention, which is not an
    importance map). See `vitjax.saliency` for the formulas.

    Args:
        model, images: the model, and preprocessed pixels.
        target: class number of each image, or one for all.
        method: see above. Static.
        layers, heads: only these, negative ones from the end; None for all, of
            "raw_attention" for the last block and of "legrad" for the last two. For
            methods with a map of every block and head: relevancy, raw_attention,
            legrad, class_projection, helpful_minus_attended. Static.
        of, loss: of "relevancy" and what is made of it, see `vitjax.relevancy`. Static.
        steps: nodes of the integrals of "integrated_gradients" (by default 64),
            "integrated_presence" and "consensus" (24). Static.
        seed: of "random", by default 0.
        edits: interventions.

    Returns:
        [batch patch], signed and not normalized; larger is more evidence. Read
        at [CLS], or averaged over query rows where there is none; registers are prefix
        tokens and never in the map. 0 at patches that `edits.keep` removed; of
        `edits.select`, the selected patches.

    Raises:
        ValueError: an unknown method, block or head, an option that the method does not
            have, or images or a target that do not fit.

    Example:
        >>> maps = vitjax.explain(model, images, label, method="class_projection")
        >>> vitjax.show(model.preprocess.denormalize(images), maps)
    """
    messages.check_one_of("method", method, METHODS)
    target = broadcast_labels(target, images.shape[:1])
    edits = edits or Edits()
    options = dict(layers=layers, heads=heads, of=of, loss=loss, steps=steps, seed=seed)
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in METHOD_OPTIONS.get(method, ()):
            others = [key for key, names in METHOD_OPTIONS.items() if name in names]
            raise ValueError(
                f"method={method!r} has no option {name}, which is one of "
                f"{', '.join(others)}."
            )
    function = (PER_HEAD | WHOLE_MODEL)[method]
    if method in PER_HEAD:
        last = range(model.config.depth)[-LAST_LAYERS.get(method, model.config.depth) :]
        chosen = given.pop("layers", tuple(last)), given.pop("heads", None)
        parts = function(model, images, target, edits=edits, **given)
        parts = select_parts("layers", parts, chosen[0], axis=0)
        maps = select_parts("heads", parts, chosen[1], axis=2).sum((0, 2))
    else:
        maps = function(model, images, target, edits=edits, **given)
    maps = zero_absent(maps, edits)
    return nan_without_class(maps, target, model.num_classes, axis=0)


def select_parts(name: str, parts, numbers, *, axis: int) -> Float[Array, "..."]:
    """The maps [layer batch head patch] of some blocks or heads."""
    if numbers is None:
        return parts
    size = parts.shape[axis]
    if not numbers:
        raise ValueError(f"{name}={numbers!r} must hold at least one number.")
    messages.check_range(name, tuple(numbers), -size, size - 1)
    return jnp.take(parts, np.asarray(numbers) % size, axis=axis)
