"""Explanation methods, all behind one call."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitjax import messages
from vitjax.analysis.class_space import Labels, broadcast_labels, nan_without_class
from vitjax.models.edits import patch_mask
from vitjax.models.model import Model
from vitjax.saliency import (
    attention,
    attribution,
    gradients,
    libragrad,
    lrp,
    presence,
    token_flow,
)
from vitjax.saliency.gradients import Seed
from vitjax.saliency.passes import Reader, read_map, read_maps
from vitjax.saliency.relevancy import block_relevancy, helpful_minus_attended
from vitjax.types import ArrayLike, Config, Edits

PER_HEAD_READERS: dict[str, Callable[..., Reader]] = {
    "relevancy": block_relevancy,
    "raw_attention": attention.raw_attention,
    "legrad": gradients.legrad,
}
READERS: dict[str, Callable[..., Reader]] = {
    **PER_HEAD_READERS,
    "chefer": gradients.chefer,
    "rollout": attention.rollout,
    "gradcam": gradients.gradcam,
    "lrp": lrp.lrp,
    "input_x_gradient": gradients.input_x_gradient,
    "libragrad": libragrad.libragrad,
    "tokentm": token_flow.tokentm,
    "inflow": token_flow.inflow,
    "attnlrp": lrp.attnlrp,
}
"""Methods that read a forward and a backward pass, which several can share."""

FUNCTIONS: dict[str, Callable[..., Float[Array, "..."]]] = {
    **{name: functools.partial(read_map, reader) for name, reader in READERS.items()},
    "class_projection": attribution.class_projection,
    "helpful_minus_attended": helpful_minus_attended,
    "integrated_gradients": gradients.integrated_gradients,
    "integrated_presence": presence.integrated_presence,
    "presence": presence.presence,
    "half_libragrad": presence.half_libragrad,
    "consensus": presence.consensus,
    "quick_consensus": presence.quick_consensus,
    "occlusion": gradients.occlusion,
    "random": gradients.random,
}
"""Every method as a function of model, images and target."""

PER_HEAD = (*PER_HEAD_READERS, "class_projection", "helpful_minus_attended")
"""Methods with a map for every block and head, [layer batch head patch]; the map is
their sum. Those of others are [batch patch].
"""

METHODS = tuple(FUNCTIONS)

SIGNED_METHODS = frozenset(
    {
        "relevancy",
        "class_projection",
        "helpful_minus_attended",
        "integrated_gradients",
        "integrated_presence",
        "presence",
        "attnlrp",
        "input_x_gradient",
        "libragrad",
        "half_libragrad",
        "occlusion",
    }
)
"""Methods whose maps hold evidence for a class and against it; others are from 0."""

if TYPE_CHECKING:
    Method = str
else:
    Method = Literal[METHODS]

MEMBERS = ("integrated_presence", "chefer")
"""What "consensus" ranks."""

PARTS = ("layers", "heads")
METHOD_OPTIONS = {
    **dict.fromkeys(PER_HEAD, PARTS),
    "relevancy": (*PARTS, "of", "loss"),
    "helpful_minus_attended": (*PARTS, "of", "loss"),
    "integrated_gradients": ("steps",),
    "integrated_presence": ("steps",),
    "consensus": ("steps",),
    "presence": ("at",),
    "half_libragrad": ("at",),
    "quick_consensus": ("at",),
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
    method: str | None = None,
    layers: tuple[int, ...] | None = None,
    heads: tuple[int, ...] | None = None,
    of: str | None = None,
    loss: str | None = None,
    steps: int | None = None,
    at: float | None = None,
    seed: Seed | None = None,
    edits: Edits | None = None,
) -> Float[Array, "batch patch"]:
    """A map of which patches are evidence for a class, by a choice of methods.

    Methods: "libragrad" (Mehri et al., CVPR 2025; the default where the head has rules
    for it, beyond "chefer" on removal tests and cheaper), "chefer" (gradient x
    attention, ICCV 2021), "relevancy" (Vilas et al. 2023, section 7, summed over blocks
    and heads: where more attention would help the class, which is not what the
    prediction rests on), "lrp" (Chefer et al., CVPR 2021), "attnlrp" (Achtibat et al.
    2024), "input_x_gradient", "tokentm", "inflow", "legrad", "gradcam",
    "integrated_gradients", "integrated_presence" (new here: the path integral of
    removing patches), "presence" (new here: its integrand at one place),
    "half_libragrad" (new here: "libragrad" of the later blocks, where all patches are
    there in part, and cheaper), "consensus" and "quick_consensus" (new here: mean
    ranks of these), "class_projection" (each patch's direct contribution to the logit,
    which finds objects best), "occlusion" (a patch is removed), "raw_attention",
    "rollout", "random" (the control), and "helpful_minus_attended" (where relevancy
    exceeds attention, which is not an importance map). See `vitjax.saliency` for the
    formulas.

    Args:
        model, images: the model, and preprocessed pixels.
        target: class number of each image, or one for all.
        method: see above; None for the default, "libragrad", or "chefer" where
            LRP has no rules for the model's head. Static.
        layers, heads: only these, negative ones from the end; None for all, of
            "raw_attention" for the last block and of "legrad" for the last two. For
            methods with a map of every block and head: relevancy, raw_attention,
            legrad, class_projection, helpful_minus_attended. Static.
        of, loss: of "relevancy" and what is made of it, see `vitjax.relevancy`. Static.
        steps: nodes of the integrals of "integrated_gradients" (by default 64),
            "integrated_presence" and "consensus" (24). Static.
        at: presence of all patches, in [0, 1], in "presence", "half_libragrad" and
            "quick_consensus" (by default 0.5). Static.
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
    method = default_method(model.config) if method is None else method
    messages.check_one_of("method", method, METHODS)
    target = broadcast_labels(target, images.shape[:1])
    edits = edits or Edits()
    options = dict(layers=layers, heads=heads, of=of, loss=loss)
    options |= dict(steps=steps, at=at, seed=seed)
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in METHOD_OPTIONS.get(method, ()):
            others = [key for key, names in METHOD_OPTIONS.items() if name in names]
            raise ValueError(
                f"method={method!r} has no option {name}, which is one of "
                f"{', '.join(others)}."
            )
    given = {n: given[n] for n in given if n not in PARTS}
    maps = FUNCTIONS[method](model, images, target, edits=edits, **given)
    maps = add_parts(method, maps, layers, heads)
    keep = patch_mask(edits)
    maps = maps if keep is None else jnp.where(keep, maps, 0)
    return nan_without_class(maps, target, model.num_classes, axis=0)


def default_method(config: Config) -> str:
    """The method of `explain` where none is chosen."""
    return "chefer" if lrp.no_rules(config) else "libragrad"


def explain_by_all(
    model: Model,
    images: Float[ArrayLike, "batch height width channel"],
    target: Labels,
    methods: Sequence[str],
    *,
    seed: Seed = 0,
) -> dict[str, Float[Array, "batch patch"]]:
    """`explain` by several methods without options, which share passes."""
    target = broadcast_labels(target, images.shape[:1])
    readers = {name: READERS[name] for name in methods if name in READERS}
    maps = read_maps(model, images, target, Edits(), readers) if readers else {}
    # Consensus comes last, and what it ranks may be there already.
    for name in sorted(methods, key=lambda name: name == "consensus"):
        given = {"seed": seed} if name == "random" else {}
        if name == "consensus" and set(MEMBERS) <= set(maps):
            members = presence.stack(maps[member] for member in MEMBERS)
            maps[name] = presence.mean_rank(members)
        elif name not in readers:
            maps[name] = FUNCTIONS[name](model, images, target, edits=Edits(), **given)
        maps[name] = add_parts(name, maps[name])
        maps[name] = nan_without_class(maps[name], target, model.num_classes, axis=0)
    return maps


def add_parts(method: str, maps, layers=None, heads=None) -> Float[Array, "..."]:
    """The map of a method: of those with parts, the sum of the chosen ones."""
    if method not in PER_HEAD:
        return maps
    depth = len(maps)
    last = tuple(range(depth)[-LAST_LAYERS.get(method, depth) :])
    maps = select_parts("layers", maps, last if layers is None else layers, axis=0)
    return select_parts("heads", maps, heads, axis=2).sum((0, 2))


def select_parts(name: str, parts, numbers, *, axis: int) -> Float[Array, "..."]:
    """The maps [layer batch head patch] of some blocks or heads."""
    if numbers is None:
        return parts
    size = parts.shape[axis]
    if not numbers:
        raise ValueError(f"{name}={numbers!r} must hold at least one number.")
    messages.check_range(name, tuple(numbers), -size, size - 1)
    return jnp.take(parts, np.asarray(numbers) % size, axis=axis)
