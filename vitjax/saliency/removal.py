"""Token removal: whether the prediction stays right when only some patches exist."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vitjax import messages
from vitjax.analysis.class_space import Labels, broadcast_labels, take_label
from vitjax.models.forward import final_residual
from vitjax.models.model import Model
from vitjax.types import ArrayLike, Edits

Order = Literal["negative", "positive"]

BUCKETS = 8
"""Different sequence lengths of one curve at most: each is a program of its own."""


def removal_curve(
    model: Model,
    images: Float[ArrayLike, "batch height width channel"],
    label: Labels,
    importance: Float[ArrayLike, "batch patch"],
    *,
    keep_counts: tuple[int, ...],
    order: Order = "negative",
    edits: Edits | None = None,
) -> Bool[Array, "batch step"]:
    """Whether the prediction is right with n patches kept (Vilas et al. 2023, 7).

    correct[i, s]: the logit of label[i] is larger than all others of image i with n =
    keep_counts[s] patches. Where it ties with another, or a logit is NaN, the
    prediction is wrong. Patches are removed after their position was added; prefix
    tokens always stay. Sequences really get shorter: at most eight lengths, each a
    bucket of neighboring counts whose surplus patches no token can attend to.

    Args:
        model, images: the model, and preprocessed pixels.
        label: true class of each image, in [0, class), or one for all.
        importance: of each patch, any finite numbers; only their order counts. Ties go
            by position; NaN counts as least important.
        keep_counts: how many patches stay, each in [0, patches], in any order. Static.
        order: "negative" keeps the n most important ones (the least important go
            first), "positive" the n least important. Static.
        edits: interventions on every pass, but for a selection of tokens.

    Returns:
        [batch step], steps in the order of `keep_counts`.

    Raises:
        ValueError: a count, the order or a label does not exist, or images or
            importance do not fit.

    Example:
        >>> maps = vitjax.explain(model, images, label)
        >>> vitjax.removal_curve(model, images, label, maps, keep_counts=(1, 4, 8))
    """
    label = broadcast_labels(label, images.shape[:1])
    read = functools.partial(is_largest, label=label)
    options = {"keep_counts": keep_counts, "order": order, "edits": edits}
    return read_removal(model, images, importance, read, **options)


def read_removal(
    model: Model,
    images: Float[ArrayLike, "batch height width channel"],
    importance: Float[ArrayLike, "batch patch"],
    read: Callable[[Float[Array, "batch class"]], Any],
    *,
    keep_counts: tuple[int, ...],
    order: Order = "negative",
    edits: Edits | None = None,
) -> Any:
    """What `read` returns of the class logits at each count; see `removal_curve`."""
    patches, counts = model.config.patches, tuple(map(int, keep_counts))
    if not counts:
        raise ValueError("keep_counts=() must hold at least one count.")
    messages.check_range("keep_counts", counts, 0, patches)
    messages.check_one_of("order", order, ("negative", "positive"))
    if importance.shape != (len(images), patches):
        raise ValueError(
            f"importance of shape {importance.shape} must have one number per image "
            f"and patch, {(len(images), patches)}; prefix tokens have none."
        )
    kept_first, others = patch_order(importance, order), edits or Edits()
    position = jnp.argsort(kept_first, axis=1).astype(jnp.int32)  # of each patch
    steps: dict[int, Any] = {}
    for bucket in buckets(counts):
        length = max(1, max(bucket))
        select = kept_first[:, :length]
        exact = bucket == [length]

        def step(count, select=select, exact=exact):
            keep = None if exact else position < count
            kept = others & Edits(select=select, keep=keep)
            return read(final_residual(model, images, edits=kept)[0])

        reads = jax.lax.map(step, jnp.asarray(bucket, jnp.int32))
        for index, count in enumerate(bucket):
            steps[count] = jax.tree.map(lambda leaf, index=index: leaf[index], reads)
    in_order = [steps[count] for count in counts]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *in_order)


def is_largest(logits: Float[Array, "batch class"], label) -> Bool[Array, " batch"]:
    """Whether the label's logit is larger than all others; none that is NaN."""
    itself = jnp.arange(logits.shape[-1], dtype=label.dtype)[None] == label[:, None]
    others = jnp.where(itself, -jnp.inf, logits).max(-1)
    return take_label(logits, label) > others


def patch_order(importance, order: Order) -> Int[Array, "batch patch"]:
    """Patch numbers in the order in which they are kept; ties by position, NaN last."""
    values = jnp.asarray(importance)
    values = jnp.where(jnp.isnan(values), -jnp.inf, values)
    values = -values if order == "negative" else values
    return jnp.argsort(values, axis=1, stable=True).astype(jnp.int32)


def buckets(counts: Sequence[int]) -> list[list[int]]:
    """Neighboring counts that share a sequence length, at most `BUCKETS` groups."""
    unique = sorted(set(counts))
    groups = np.array_split(np.asarray(unique), min(BUCKETS, len(unique)))
    return [group.tolist() for group in groups]
