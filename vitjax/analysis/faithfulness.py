"""Faithfulness of maps: areas under removal curves, SaCo, localization of objects."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vitjax import messages
from vitjax.checks import checked
from vitjax.types import CONVENTIONS, ArrayLike, Convention, to_float32


@checked
def area_under_curve(
    correct: Bool[ArrayLike, "*any step"] | Float[ArrayLike, "*any step"],
    kept: Int[ArrayLike, " step"] | tuple[int, ...],
    *,
    tokens: int,
    convention: Convention = "paper",
) -> Float[Array, "*any"]:
    """Area under a removal curve (Vilas et al. 2023, section 7).

    "paper": the mean of accuracy over the fraction of patches kept, by trapezoids from
    the smallest to the largest of the counts given; give 0 and `tokens` among them for
    the area of the whole curve.
    "vilas2023_code": sum of the accuracies / (largest accuracy x tokens), over counts
    1 to tokens - 1, as the published numbers have it: it cannot reach 1, and depends on
    the curve's own maximum.

    Args:
        correct: of images, or accuracies of curves; steps in any order. For the
            published area average over images first: the maximum is the mean curve's.
        kept: how many patches each step keeps, in [0, tokens]. Static.
        tokens: how many there are.
        convention: see above.

    Returns:
        In [0, 1]; 1 for a curve that is 1 from end to end.

    Raises:
        ValueError: the steps do not fit, the counts are out of range or one and the
            same, or an unknown convention.

    Example:
        >>> options = {"keep_counts": (1, 4, 8), "order": "positive"}
        >>> curve = vitjax.removal_curve(model, images, label, maps, **options)
        >>> patches = model.config.patches
        >>> vitjax.area_under_curve(curve.mean(0), (1, 4, 8), tokens=patches)
    """
    messages.check_one_of("convention", convention, CONVENTIONS)
    values, counts = jnp.asarray(correct), np.asarray(kept)
    if counts.shape != (values.shape[-1],) or not len(counts):
        raise ValueError(
            f"{values.shape[-1]} steps of a curve need as many counts of kept patches; "
            f"got {counts.shape}."
        )
    messages.check_range("kept", counts.tolist(), 0, tokens)
    values = to_float32(values)
    if convention == "vilas2023_code":
        largest = values.max(-1)
        divisor = jnp.where(largest > 0, largest, 1) * tokens
        return jnp.where(largest > 0, values.sum(-1) / divisor, 0)
    order, span = np.argsort(counts, kind="stable"), np.ptp(counts)
    if not span:
        raise ValueError(f"kept={counts.tolist()} must hold two different counts.")
    widths = jnp.asarray(np.diff(counts[order]) / span, values.dtype)
    ends = values[..., order]
    return jnp.einsum("...s,s->...", (ends[..., 1:] + ends[..., :-1]) / 2, widths)


def salience_groups(
    maps: Float[ArrayLike, "batch patch"], groups: int
) -> Int[Array, "batch patch"]:
    """The group of each patch, by rank: 0 are the most salient; ties by position."""
    order = jnp.argsort(-jnp.asarray(maps), axis=-1, stable=True)
    place = jnp.argsort(order, axis=-1).astype(jnp.int32)
    return place * groups // maps.shape[-1]


def saco(
    salience: Float[ArrayLike, "*any group"], drop: Float[ArrayLike, "*any group"]
) -> Float[Array, "*any"]:
    """Salience-guided faithfulness coefficient (Wu et al., CVPR 2024), in [-1, 1].

    `salience` s is each group's mean, `drop` d what the target's probability loses
    without it. Over pairs of groups, sum of sign * |s_i - s_j| / sum of |s_i - s_j|,
    where the sign is 1 if the more salient group has at least the other's drop, else
    -1. 1 for s = d, about 0 for noise, -1 for the contrary; 0 where all s are equal.
    """
    salience, drop = jnp.asarray(salience), jnp.asarray(drop)
    gap = salience[..., :, None] - salience[..., None, :]
    weight = jnp.maximum(gap, 0)  # each pair once, the more salient group first
    agrees = drop[..., :, None] >= drop[..., None, :]
    total = weight.sum((-2, -1))
    agreement = jnp.where(agrees, weight, -weight).sum((-2, -1))
    return jnp.where(total > 0, agreement / jnp.where(total > 0, total, 1), 0)


@checked
def localisation(
    maps: Float[ArrayLike, "batch patch"],
    mask: Bool[ArrayLike, "batch patch"],
    *,
    where: Bool[ArrayLike, "batch patch"] | None = None,
) -> dict[str, Float[Array, " batch"]]:
    """How well a map localizes an object (Chefer et al. 2021, section 4.2).

    The map is scaled to [0, 1] within its image; the object is where it exceeds its own
    mean. With TP, FP, FN, TN patches of object and background:
    pixel_accuracy = (TP + TN) / all; mean_iou = (TP / (TP + FP + FN) + TN / (TN + FP +
    FN)) / 2; average_precision is that of the map r as a score of the object;
    average_precision_both that of (1 - r, r) as scores of (background, object) pooled,
    as in that paper's code. Over a data set, their mean IoU adds up the counts first.

    Args:
        maps: any numbers; only their order and their mean count.
        mask: True on the object.
        where: patches that count; by default all.

    Returns:
        Each measure in [0, 1], and the four counts (true_positives, ...); NaN where it
        is undefined: no object, no background, or no patch that counts. All are NaN for
        an image whose map is NaN at a patch that counts.

    Raises:
        ValueError: shapes that differ, or a mask that is not of True and False: give
            patches that are neither object nor background by `where`.

    Example:
        >>> vitjax.localisation(maps, mask)["mean_iou"]  # mask: patches on the object
    """
    if not maps.shape == mask.shape == (mask if where is None else where).shape:
        raise ValueError(
            f"maps of shape {maps.shape}, mask and where must have one shape; got "
            f"{mask.shape} and {None if where is None else where.shape}."
        )
    values = to_float32(jnp.asarray(maps))
    mask = jnp.asarray(mask)
    counted = jnp.ones(mask.shape, bool) if where is None else jnp.asarray(where)
    scaled = to_unit_range(values, counted)
    size = jnp.maximum(counted.sum(-1, keepdims=True), 1).astype(values.dtype)
    on_object = scaled > jnp.where(counted, scaled, 0).sum(-1, keepdims=True) / size

    def count(condition) -> Float[Array, " batch"]:
        return (condition & counted).sum(-1).astype(values.dtype)

    tp, fp = count(on_object & mask), count(on_object & ~mask)
    fn, tn = count(~on_object & mask), count(~on_object & ~mask)
    measures = {
        "pixel_accuracy": (tp + tn) / (tp + fp + fn + tn),
        "mean_iou": (tp / (tp + fp + fn) + tn / (tn + fp + fn)) / 2,
        "average_precision": average_precision(scaled, mask, counted),
        "average_precision_both": average_precision(
            jnp.concatenate([1 - scaled, scaled], -1),
            jnp.concatenate([~mask, mask], -1),
            jnp.concatenate([counted, counted], -1),
        ),
        "true_positives": tp,
        "false_positives": fp,
        "false_negatives": fn,
        "true_negatives": tn,
    }
    undefined = (jnp.isnan(values) & counted).any(-1)
    return {k: jnp.where(undefined, jnp.nan, v) for k, v in measures.items()}


def to_unit_range(values, counted):
    """Values scaled to [0, 1] over patches that count; 0 where constant."""
    low = jnp.where(counted, values, jnp.inf).min(-1, keepdims=True)
    high = jnp.where(counted, values, -jnp.inf).max(-1, keepdims=True)
    spread = high - low
    scaled = (values - low) / jnp.where(spread > 0, spread, 1)
    # Exactly 1 also where the compiler divides by a reciprocal: it ties with 1 - 0.
    scaled = jnp.where(values == high, 1, scaled)
    return jnp.where(spread > 0, scaled, 0)


def average_precision(score, positive, counted) -> Float[Array, " batch"]:
    """Mean over positives of the precision at their score; NaN without a positive.

    All are [batch item]. AP = sum over thresholds t of (recall(t) - recall(t before)) x
    precision(t); ties share a threshold.
    """
    above = (score[:, None, :] >= score[:, :, None]) & counted[:, None, :]
    hits = (above & positive[:, None, :]).sum(-1)
    precision = hits / jnp.maximum(above.sum(-1), 1)
    positive = positive & counted
    total = jnp.where(positive, precision, 0).sum(-1)
    return total.astype(score.dtype) / positive.sum(-1).astype(score.dtype)
