"""Token removal: is the answer still right when only some patches exist?"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vitjax.analysis.class_space import Labels
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
) -> Bool[Array, "batch step"]:
    """Whether the answer is still right with n patches kept (Vilas et al. 2023, 7).

    correct[i, s] = (argmax of the logits of image i with n = keep_counts[s] patches) ==
    label[i]. Patches are taken away after their position was added; prefix tokens
    always stay. Sequences really get shorter: at most eight lengths, each a bucket of
    neighbouring counts whose surplus patches no token can attend to.

    Args:
        model: the model.
        images: preprocessed pixels.
        label: true class of each image, or one for all.
        importance: of each patch, any finite numbers; only their order counts. Ties go
            by position; NaN counts as least important.
        keep_counts: how many patches stay, each in [0, patches], in any order. Static.
        order: "negative" keeps the n most important ones (the least important go
            first), "positive" the n least important. Static.

    Returns:
        [batch step], steps in the order of `keep_counts`.

    Raises:
        ValueError: a count or the order does not exist, or importance does not fit.
    """
    config = model.config
    counts = check(keep_counts, order, importance.shape, config.patches)
    label = jnp.asarray(label).astype(jnp.int32)
    label = jnp.broadcast_to(label, (images.shape[0],))
    kept_first = patch_order(importance, order)
    steps: dict[int, Array] = {}
    for bucket in buckets(counts):
        correct = in_one_length(model, images, label, kept_first, bucket)
        steps |= dict(zip(bucket, correct))
    return jnp.stack([steps[count] for count in counts], axis=1)


def in_one_length(
    model: Model, images, label, kept_first, counts: Sequence[int]
) -> Bool[Array, "step batch"]:
    """The steps of one bucket, one after the other, as sequences of its largest."""
    length = max(1, max(counts))
    select = kept_first[:, :length]
    place = jnp.argsort(kept_first, axis=1).astype(jnp.int32)  # of each patch

    def step(count):
        edits = Edits(select=select)
        if len(set(counts)) > 1 or length not in counts:
            edits = Edits(select=select, keep=place < count)
        logits, _ = final_residual(model, images, edits=edits)
        return jnp.argmax(logits, -1).astype(jnp.int32) == label

    return jax.lax.map(step, jnp.asarray(counts, jnp.int32))


def patch_order(
    importance: Float[ArrayLike, "batch patch"], order: Order
) -> Int[Array, "batch patch"]:
    """Patch numbers in the order in which they are kept; stable for ties.

    Args:
        importance: of each patch; NaN counts as least important.
        order: "negative" or "positive".

    Returns:
        A permutation per image.
    """
    values = jnp.asarray(importance)
    values = jnp.where(jnp.isnan(values), -jnp.inf, values)
    return jnp.argsort(
        -values if order == "negative" else values, axis=1, stable=True
    ).astype(jnp.int32)


def buckets(counts: Sequence[int]) -> list[list[int]]:
    """Neighbouring counts that share a sequence length, at most `BUCKETS` groups."""
    unique = sorted(set(counts))
    groups = np.array_split(np.asarray(unique), min(BUCKETS, len(unique)))
    return [group.tolist() for group in groups]


def check(
    counts: Sequence[int], order: str, shape: tuple[int, ...], patches: int
) -> tuple[int, ...]:
    """Refuse counts, orders and shapes that do not exist."""
    counts = tuple(int(count) for count in counts)
    if not counts or min(counts) < 0 or max(counts) > patches:
        raise ValueError(
            f"keep_counts must be numbers in [0, {patches}], at least one; got "
            f"{counts}."
        )
    if order not in ("negative", "positive"):
        raise ValueError(f"order={order!r} is 'negative' or 'positive'.")
    if shape[-1] != patches:
        raise ValueError(
            f"importance of shape {shape} must have one number per patch: {patches}. "
            "Prefix tokens have none."
        )
    return counts
