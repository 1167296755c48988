"""Rows -> intervals and tests: what a finite set of images can say."""

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float


class Interval(NamedTuple):
    """A mean over images and the interval around it; NaN where it is not defined."""

    mean: Float[np.ndarray, "*quantity"]
    low: Float[np.ndarray, "*quantity"]
    high: Float[np.ndarray, "*quantity"]


def bootstrap_mean(
    values: Float[np.ndarray, "image ..."],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Mean over images with its percentile bootstrap interval.

    Images are drawn with replacement, as many as there are; the interval holds the
    middle `level` of the means of `resamples` such draws. One draw serves all
    quantities, so that the tokens, blocks and streams of one image stay together and
    intervals of the same images are comparable. Every quantity has its own interval:
    nothing is corrected for their number.

    Args:
        values: one value per image and quantity; NaN where an image has none.
        level: probability inside the interval, in (0, 1).
        resamples: number of draws, at least 1.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        The mean, NaN without any image; the bounds, NaN with fewer than two images.

    Raises:
        ValueError: `level` or `resamples` is outside its range.
    """
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(
            f"bootstrap_mean expects level in (0, 1) and resamples of at least 1; "
            f"got level {level} and resamples {resamples}."
        )
    shape, images = values.shape[1:], len(values)
    values = values.reshape(images, math.prod(shape)).astype(np.float64)
    present = np.isfinite(values)
    filled = np.where(present, values, 0.0)
    count = present.sum(0)
    mean = _divide(filled.sum(0), count)
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    enough = count > 1
    if enough.any():
        filled, present = filled[:, enough], present[:, enough]
        means = np.concatenate(list(_resampled(filled, present, resamples, seed)))
        edges = (0.5 - level / 2, 0.5 + level / 2)
        low[enough], high[enough] = np.nanquantile(means, edges, axis=0)
    return Interval(*(part.reshape(shape) for part in (mean, low, high)))


def _resampled(filled, present, resamples, seed) -> Iterator[np.ndarray]:
    """Means of resampled images, some draws at a time: matrix products are fast."""
    images, draw = len(filled), np.random.default_rng(seed)
    together = max(1, 2**21 // images)  # at most 16 MB of draws
    weights = None if present.all() else present.astype(np.float64)
    for start in range(0, resamples, together):
        drawn = np.stack(
            [
                np.bincount(draw.integers(images, size=images), minlength=images)
                for _ in range(min(together, resamples - start))
            ]
        ).astype(np.float64)
        count = images if weights is None else drawn @ weights
        yield _divide(drawn @ filled, np.asarray(count))


def _divide(total, count):
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


Alternative = Literal["greater", "less", "two-sided"]
"""What would speak against chance: a larger mean, a smaller one, or either."""


def sign_flip_test(
    differences: Float[np.ndarray, "image ..."],
    *,
    alternative: Alternative = "greater",
    resamples: int = 9999,
    seed: int = 0,
) -> Float[np.ndarray, "..."]:
    """Whether per-image differences are larger than chance.

    Under the null hypothesis every image's difference may as well have the other sign;
    the sum of differences is compared with its value under random signs. One draw of
    signs serves all quantities, so that one matrix product tests all blocks; images,
    not tokens, are the independent units.

    Args:
        differences: one per image and quantity; NaN where an image has none.
        alternative: see `Alternative`.
        resamples: number m of draws, at least 1.
        seed: of the draws.

    Returns:
        p = (b + 1) / (m + 1) in (0, 1], b the draws at least as extreme; NaN where no
        image has a difference. Uncorrected: see `holm`, `benjamini_hochberg`.

    Raises:
        ValueError: an argument is out of its range.
    """
    check(alternative, resamples)
    shape, images = differences.shape[1:], len(differences)
    values = differences.reshape(images, math.prod(shape)).astype(np.float64)
    present = np.isfinite(values)
    filled = np.where(present, values, 0.0)
    draw = np.random.default_rng(seed)

    def sums(count):
        bits = draw.integers(2, size=(count, images), dtype=np.int8)
        return (2.0 * bits - 1.0) @ filled

    extreme = count_extreme(sums, filled.sum(0), images, resamples, alternative)
    p = (extreme + 1) / (resamples + 1)
    return np.where(present.any(0), p, np.nan).reshape(shape)


def label_permutation_test(
    values: Float[np.ndarray, "image ..."],
    group: Bool[np.ndarray, " image"],
    *,
    alternative: Alternative = "greater",
    resamples: int = 9999,
    seed: int = 0,
) -> Float[np.ndarray, "..."]:
    """Whether images of a group have a larger mean than the others.

    Which images belong to the group is permuted; the difference of means is compared
    with its value under permutations. One draw serves all quantities.

    Args:
        values: one per image and quantity, none NaN.
        group: which images are in the group.
        alternative: see `Alternative`.
        resamples: number m of draws, at least 1.
        seed: of the draws.

    Returns:
        p = (b + 1) / (m + 1) in (0, 1]; NaN where the group or the rest is empty.

    Raises:
        ValueError: an argument is out of its range, or a value is NaN.
    """
    check(alternative, resamples)
    shape, images = values.shape[1:], len(values)
    values = values.reshape(images, math.prod(shape)).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("label_permutation_test expects a value for every image.")
    inside = int(group.sum())
    if inside in (0, images):
        return np.full(shape, np.nan)
    weights = np.where(group, 1 / inside, -1 / (images - inside))
    draw = np.random.default_rng(seed)

    def differences(count):
        return draw.permuted(np.tile(weights, (count, 1)), axis=1) @ values

    observed = weights @ values
    extreme = count_extreme(differences, observed, images, resamples, alternative)
    return ((extreme + 1) / (resamples + 1)).reshape(shape)


def within_image_test(
    values: Float[np.ndarray, "image token"],
    member: Bool[np.ndarray, "image token"],
    *,
    counted: Bool[np.ndarray, "image token"] | None = None,
    alternative: Alternative = "greater",
    resamples: int = 999,
    seed: int = 0,
) -> tuple[float, int]:
    """Whether tokens of a kind have larger values than the other tokens of their image.

    Which tokens are of the kind is permuted within each image; the mean over images of
    the difference of both means is compared with its value under permutations. Only
    images with tokens of either kind count. It treats tokens as exchangeable, which
    neighbours on a picture are not: `sign_flip_test` of per-image differences is the
    honest default.

    Args:
        values: one per token.
        member: tokens of the kind.
        counted: tokens that count at all; None counts all.
        alternative: see `Alternative`.
        resamples: number m of draws, at least 1.
        seed: of the draws.

    Returns:
        p = (b + 1) / (m + 1), NaN without such images; and on how many images it rests.

    Raises:
        ValueError: an argument is out of its range.
    """
    check(alternative, resamples)
    counted = np.ones_like(member) if counted is None else counted
    member = member & counted
    inside, all_of = member.sum(1), counted.sum(1)
    rows = np.flatnonzero((inside > 0) & (inside < all_of))
    if not len(rows):
        return float("nan"), 0
    draw = np.random.default_rng(seed)
    means, observed = np.zeros(resamples), 0.0
    for row in rows:
        tokens = values[row, counted[row]].astype(np.float64)
        weights = np.where(member[row, counted[row]], 1 / inside[row], 0.0)
        weights -= (weights == 0) / (all_of[row] - inside[row])
        observed += weights @ tokens / len(rows)
        drawn = draw.permuted(np.tile(weights, (resamples, 1)), axis=1)
        means += drawn @ tokens / len(rows)
    extreme = beyond(means[:, None], np.array([observed]), alternative).sum()
    return float((extreme + 1) / (resamples + 1)), len(rows)


def check(alternative: str, resamples: int) -> None:
    """Refuse what no test can do."""
    if alternative not in ("greater", "less", "two-sided") or resamples < 1:
        raise ValueError(
            f"A test takes greater, less or two-sided and at least 1 resample; got "
            f"{alternative!r} and {resamples}."
        )


def count_extreme(draws, observed, images, resamples, alternative) -> np.ndarray:
    """How many of the drawn statistics are at least as extreme, some at a time."""
    together, found = (
        max(1, 2**21 // max(images, 1)),
        np.zeros(observed.shape, np.int64),
    )
    for start in range(0, resamples, together):
        drawn = draws(min(together, resamples - start))
        found += beyond(drawn, observed, alternative).sum(0)
    return found


def beyond(drawn, observed, alternative) -> np.ndarray:
    """Where drawn statistics are at least as extreme; equal up to rounding counts."""
    tolerance = 1e-12 * np.abs(drawn).max(0, initial=0.0)
    if alternative == "two-sided":
        drawn, observed = np.abs(drawn), np.abs(observed)
    if alternative == "less":
        drawn, observed = -drawn, -observed
    return drawn >= observed - tolerance


def wilcoxon_test(
    left: Float[np.ndarray, "pair ..."],
    right: Float[np.ndarray, "pair ..."],
    *,
    alternative: Alternative = "greater",
) -> Float[np.ndarray, "..."]:
    """Wilcoxon's signed-rank test of pairs, as scipy computes it.

    Args:
        left, right: paired values and quantities.
        alternative: `left` is larger, smaller, or either.

    Returns:
        p of each quantity, over the pairs that have both values; NaN where all are
        equal.
    """
    from scipy import stats

    with np.errstate(invalid="ignore", divide="ignore"):
        test: Any = stats.wilcoxon
        found = test(left, right, alternative=alternative, axis=0, nan_policy="omit")
    return np.asarray(found.pvalue)


def vilas2023_permutation_test(
    inside: Float[np.ndarray, " token"],
    outside: Float[np.ndarray, " other"],
    *,
    resamples: int = 300,
    seed: int = 0,
) -> float:
    """The published code's test of class against context tokens, for comparison.

    Tokens of all images are pooled and shuffled; p is the share of shuffles whose
    difference of means is larger than the true one. It takes tokens for independent,
    can be 0, and calls ties significant (STUDY of the code): use `sign_flip_test`.

    Args:
        inside: values of one kind of tokens, of all images.
        outside: of the other.
        resamples: number of shuffles, 300 in the code.
        seed: of the shuffles, which the code leaves open.

    Returns:
        In [0, 1]; NaN where there are no tokens of either kind.
    """
    if not len(inside) or not len(outside):
        return float("nan")
    pooled = np.concatenate([inside, outside]).astype(np.float64)
    difference = inside.mean() - outside.mean()
    draw, larger = np.random.default_rng(seed), 0
    for _ in range(resamples):
        shuffled = draw.permutation(pooled)
        here, there = shuffled[: len(inside)], shuffled[len(inside) :]
        larger += int(difference < here.mean() - there.mean())
    return larger / resamples


def vilas2023_accuracy_test(
    values: Float[np.ndarray, "image ..."],
    correct: Bool[np.ndarray, " image"],
    *,
    resamples: int = 300,
    seed: int = 0,
) -> Float[np.ndarray, "..."]:
    """The published code's test of right against wrong images, for comparison.

    Which images were classified correctly is shuffled, for each quantity anew; p is the
    share of shuffles whose difference of means is larger than the true one. It can be
    0 and calls ties significant, so that quantities that are 0 for every image are
    (STUDY of the code): use `label_permutation_test`.

    Args:
        values: one per image and quantity.
        correct: whether the model's answer is the label.
        resamples: number of shuffles, 300 in the code.
        seed: of the shuffles, which the code leaves open.

    Returns:
        In [0, 1]; NaN where no image is right, or none is wrong.
    """
    columns = values.reshape(len(values), math.prod(values.shape[1:]))
    p = [
        vilas2023_permutation_test(
            *(column[correct], column[~correct]), resamples=resamples, seed=seed + place
        )
        for place, column in enumerate(columns.T)
    ]
    return np.array(p, np.float64).reshape(values.shape[1:])


def holm(p: Float[np.ndarray, "*test"]) -> Float[np.ndarray, "*test"]:
    """Holm's adjusted p-values: the chance of any false alarm among all tests.

    Args:
        p: of all tests of one family, in any shape; NaN where there is none.

    Returns:
        Adjusted, in [0, 1]; NaN stays.
    """
    return adjusted(p, lambda sorted_p, m, rank: sorted_p * (m - rank), np.maximum)


def benjamini_hochberg(p: Float[np.ndarray, "*test"]) -> Float[np.ndarray, "*test"]:
    """Benjamini and Hochberg's adjusted p-values: the expected share of false alarms.

    Args:
        p: of all tests of one family, in any shape; NaN where there is none.

    Returns:
        Adjusted, in [0, 1]; NaN stays.
    """
    scale = lambda sorted_p, m, rank: sorted_p * m / (rank + 1)  # noqa: E731
    return adjusted(p, scale, np.minimum)


def adjusted(p, scale, accumulate) -> np.ndarray:
    """Sorted p-values scaled by their rank, made monotone from either end."""
    flat = np.asarray(p, np.float64).reshape(-1)
    there = np.flatnonzero(np.isfinite(flat))
    order = there[np.argsort(flat[there], kind="stable")]
    scaled = scale(flat[order], len(order), np.arange(len(order)))
    if accumulate is np.maximum:
        scaled = np.maximum.accumulate(scaled)
    else:
        scaled = np.minimum.accumulate(scaled[::-1])[::-1]
    result = np.full(flat.shape, np.nan)
    result[order] = np.minimum(scaled, 1.0)
    return result.reshape(np.shape(p))
