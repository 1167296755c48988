"""Statistics over images: bootstrap intervals, permutation tests, corrections.

Shared by all functions: arrays hold one value per image and quantity, images first; NaN
where an image has none, which is left out. `resamples` is the number m of random draws,
at least 1, `seed` that of the draws. A permutation test returns p = (b + 1) / (m + 1)
in (0, 1], b the draws at least as extreme as the data, uncorrected (see `holm`,
`benjamini_hochberg`). Images, not tokens, are the independent units. One draw serves
all quantities, so that the tokens and blocks of one image stay together and one matrix
product tests them all.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from statistics import NormalDist
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float

from vitjax import messages

Alternative = Literal["greater", "less", "two-sided"]


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
    rates: bool = True,
) -> Interval:
    """Mean over images with its percentile bootstrap interval.

    Images are drawn with replacement, as many as there are; the interval holds the
    middle `level`, in (0, 1), of the means of these draws. Every quantity has its own
    interval: nothing is corrected for their number. The mean is NaN without any image,
    the bounds are with fewer than two. Few images make it too narrow: 95 % intervals of
    ten normal values hold the mean in 90 % of cases.

    With `rates`, a quantity that is 0 or 1 in every image is a rate and has Wilson's
    interval: a bootstrap of ten images that are all right knows no wrong one.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level} is out of range (0, 1).")
    messages.check_range("resamples", resamples, 1)
    present = np.isfinite(values)
    filled = np.where(present, values.astype(np.float64), 0.0)
    count = present.sum(0)
    mean = _divide(filled.sum(0), count)
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    enough = count > 1
    if enough.any():
        sums, weights = filled[:, enough], present[:, enough].astype(np.float64)
        if weights.all():  # one column says how many
            weights = weights[:, :1]
        _, low[enough], high[enough] = bootstrap_statistic(
            lambda draws: _divide(draws @ sums, draws @ weights),
            len(values),
            level=level,
            resamples=resamples,
            seed=seed,
        )
    if rates:
        binary = enough & ((values == 0) | (values == 1) | ~present).all(0)
        low[binary], high[binary] = wilson(mean[binary], count[binary], level)
    return Interval(mean, low, high)


def wilson(rate: np.ndarray, count: np.ndarray, level: float):
    """Wilson's score interval (low, high) of a rate of that many images."""
    square = NormalDist().inv_cdf(0.5 + level / 2) ** 2
    center = rate + square / (2 * count)
    spread = np.sqrt(square * (rate * (1 - rate) + square / (4 * count)) / count)
    low, high = (center - spread), (center + spread)
    scale = 1 + square / count
    return np.clip(low / scale, 0, rate), np.clip(high / scale, rate, 1)


def draw_sizes(resamples: int, images: int) -> Iterator[int]:
    """Numbers of draws that are made together, at most 16 MB of them."""
    messages.check_range("resamples", resamples, 1)
    together = max(1, 2**21 // max(images, 1))
    for start in range(0, resamples, together):
        yield min(together, resamples - start)


@functools.lru_cache(maxsize=2)  # a report resamples the same images again and again
def _draws(images, resamples, seed) -> list[np.ndarray]:
    """How often each draw holds each image, a byte each, [draw image] in parts."""
    draw, parts = np.random.default_rng(seed), []
    for size in draw_sizes(resamples, images):
        drawn = draw.integers(images, size=(size, images))
        drawn += images * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * images)
        parts.append(counts.reshape(size, images).astype(np.uint8))
    return parts


def _divide(total, count):
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def sign_flip_test(
    differences: Float[np.ndarray, "image ..."],
    *,
    alternative: Alternative = "greater",
    resamples: int = 9999,
    seed: int = 0,
) -> Float[np.ndarray, "..."]:
    """Whether per-image differences are larger ("less": smaller) than chance.

    Under the null hypothesis every image's difference may as well have the other sign;
    the sum of differences is compared with its value under random signs. NaN where no
    image has a difference.
    """
    images, present = len(differences), np.isfinite(differences)
    filled = np.where(present, differences.astype(np.float64), 0.0)
    draw = np.random.default_rng(seed)

    def sums(count):
        bits = draw.integers(2, size=(count, images), dtype=np.int8)
        return np.tensordot(2.0 * bits - 1.0, filled, 1)

    drawn = map(sums, draw_sizes(resamples, images))
    p = permutation_p(drawn, filled.sum(0), alternative)
    return np.where(present.any(0), p, np.nan)


def label_permutation_test(
    values: Float[np.ndarray, "image ..."],
    group: Bool[np.ndarray, " image"],
    *,
    resamples: int = 9999,
    seed: int = 0,
) -> Float[np.ndarray, "..."]:
    """Whether images of a group have a larger mean than the others; no value is NaN.

    The images of the group are permuted; the difference of means is compared with its
    value under permutations. NaN where the group or the rest is empty.
    """
    images, values = len(values), values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("label_permutation_test expects a value for every image.")
    inside = int(group.sum())
    if inside in (0, images):
        return np.full(values.shape[1:], np.nan)
    weights = np.where(group, 1 / inside, -1 / (images - inside))
    draw = np.random.default_rng(seed)

    def differences(count):
        draws = draw.permuted(np.tile(weights, (count, 1)), axis=1)
        return np.tensordot(draws, values, 1)

    drawn = map(differences, draw_sizes(resamples, images))
    return permutation_p(drawn, np.tensordot(weights, values, 1), "greater")


def within_image_test(
    values: Float[np.ndarray, "image token"],
    member: Bool[np.ndarray, "image token"],
    *,
    counted: Bool[np.ndarray, "image token"] | None = None,
    resamples: int = 999,
    seed: int = 0,
) -> tuple[float, int]:
    """Whether tokens of a kind have larger values than the other tokens of their image.

    The tokens of the kind, `member`, are permuted within each image, among those that
    are `counted`; the mean over images of the difference of both means is compared with
    its value under permutations. Returns p, NaN without images that have tokens of
    either kind, and their number; a token whose value is NaN is not counted. It treats
    tokens as exchangeable, which neighbors in an image are not: prefer `sign_flip_test`
    of per-image differences.
    """
    messages.check_range("resamples", resamples, 1)
    counted = np.isfinite(values) & (True if counted is None else counted)
    member = member & counted
    inside, total = member.sum(1), counted.sum(1)
    rows = np.flatnonzero((inside > 0) & (inside < total))
    draw = np.random.default_rng(seed)
    means, observed = np.zeros(resamples), 0.0
    for row in rows:
        tokens = values[row, counted[row]].astype(np.float64)
        weights = np.where(member[row, counted[row]], 1 / inside[row], 0.0)
        weights -= (weights == 0) / (total[row] - inside[row])
        observed += weights @ tokens / len(rows)
        draws = draw.permuted(np.tile(weights, (resamples, 1)), axis=1)
        means += draws @ tokens / len(rows)
    (p,) = permutation_p([means[:, None]], np.array([observed]), "greater")
    return float(p if len(rows) else np.nan), len(rows)


def permutation_p(
    draws: Iterable[np.ndarray], observed: np.ndarray, alternative: Alternative
) -> np.ndarray:
    """p of observed statistics, drawn some at a time; equal up to rounding counts."""
    messages.check_one_of("alternative", alternative, get_args(Alternative))
    turn = {"greater": np.positive, "less": np.negative, "two-sided": np.abs}
    extreme, count = np.zeros(observed.shape, np.int64), 0
    for drawn in draws:
        tolerance = 1e-12 * np.abs(drawn).max(0, initial=0.0)
        drawn, limit = map(turn[alternative], (drawn, observed))
        extreme += (drawn >= limit - tolerance).sum(0)
        count += len(drawn)
    return np.asarray((extreme + 1) / (count + 1))


def wilcoxon_test(
    left: Float[np.ndarray, "pair ..."], right: Float[np.ndarray, "pair ..."]
) -> Float[np.ndarray, "..."]:
    """Wilcoxon's signed-rank test of pairs, as scipy computes it.

    p of each quantity that left is larger, over the pairs that have both values and
    differ; 1 where all pairs are equal, NaN where none has both.
    """
    from scipy import stats

    test: Any = stats.wilcoxon
    both = np.isfinite(left) & np.isfinite(right)
    p = np.where(both.any(0), 1.0, np.nan)
    differ = (both & (left != right)).any(0)
    if differ.any():
        pairs = np.where(both, left, np.nan)[:, differ], right[:, differ]
        result = test(*pairs, alternative="greater", axis=0, nan_policy="omit")
        p[differ] = result.pvalue
    return p


def vilas2023_permutation_test(
    inside: Float[np.ndarray, " token"],
    outside: Float[np.ndarray, " other"],
    *,
    resamples: int = 300,
    seed: int = 0,
) -> float:
    """The published code's test of object against context tokens, for comparison.

    Tokens of all images are pooled and shuffled; p is the fraction of shuffles whose
    difference of means is larger than the true one, in [0, 1]; NaN where there are no
    tokens of either kind. Tokens without a value are left out. It takes tokens for
    independent, can be 0, and calls ties significant: use `sign_flip_test`. The code
    leaves the seed open.
    """
    inside, outside = inside[np.isfinite(inside)], outside[np.isfinite(outside)]
    if not len(inside) or not len(outside):
        return float("nan")
    pooled = np.concatenate([inside, outside]).astype(np.float64)
    difference = inside.mean() - outside.mean()
    draw, larger = np.random.default_rng(seed), 0
    for _ in range(resamples):
        shuffled = draw.permutation(pooled)
        first, second = shuffled[: len(inside)], shuffled[len(inside) :]
        larger += int(difference < first.mean() - second.mean())
    return larger / resamples


def vilas2023_accuracy_test(
    values: Float[np.ndarray, "image ..."],
    correct: Bool[np.ndarray, " image"],
    *,
    resamples: int = 300,
    seed: int = 0,
) -> Float[np.ndarray, "..."]:
    """The published code's test of correct against wrong images, for comparison.

    Correctness is shuffled, for each quantity anew; p as above, NaN where no image is
    correct, or none is wrong. Quantities that are 0 for every image are significant:
    use `label_permutation_test`.
    """
    p = np.full(values.shape[1:], np.nan)
    for number, index in enumerate(np.ndindex(p.shape)):
        right, wrong = values[correct, *index], values[~correct, *index]
        p[index] = vilas2023_permutation_test(
            right, wrong, resamples=resamples, seed=seed + number
        )
    return p


def holm(p: Float[np.ndarray, "*test"]) -> Float[np.ndarray, "*test"]:
    """Holm's adjusted p-values: the chance of any false alarm in a family of tests."""
    return adjusted(p, lambda p, rank: np.maximum.accumulate(p * rank[::-1]))


def benjamini_hochberg(p: Float[np.ndarray, "*test"]) -> Float[np.ndarray, "*test"]:
    """Benjamini and Hochberg's adjusted p-values: the expected rate of false alarms."""

    def scale(p, rank):
        return np.minimum.accumulate((p * len(p) / rank)[::-1])[::-1]

    return adjusted(p, scale)


def adjusted(p, scale) -> np.ndarray:
    """p-values by `scale` of the sorted ones and their ranks from 1; NaN stays."""
    flat = np.asarray(p, np.float64).reshape(-1)
    order = np.argsort(flat, kind="stable")[: np.isfinite(flat).sum()]  # NaN is last
    result = np.full(flat.shape, np.nan)
    scaled = scale(flat[order], np.arange(1, len(order) + 1))
    result[order] = np.minimum(scaled, 1.0)
    return result.reshape(np.shape(p))


def bootstrap_statistic(
    statistic: Callable[[np.ndarray], np.ndarray],
    images: int,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """A statistic of all images, and its percentile bootstrap interval.

    `statistic` takes how often each draw holds each image, [draw image], and returns
    [draw *quantity]; the same draws make differences of quantities paired.
    """
    whole = statistic(np.ones((1, images)))[0]
    draws = [statistic(part.astype(float)) for part in _draws(images, resamples, seed)]
    edges = (0.5 - level / 2, 0.5 + level / 2)
    return Interval(whole, *np.nanquantile(np.concatenate(draws), edges, axis=0))


def at_thresholds(
    score: Float[np.ndarray, " image"],
    wrong: Bool[np.ndarray, " image"],
    counts: Float[np.ndarray, "*draw image"] | None = None,
) -> tuple[Float[np.ndarray, "*draw threshold"], Float[np.ndarray, "*draw threshold"]]:
    """Images whose score is at least each threshold, highest first, and the wrong ones
    among them; equal scores share a threshold. An image stands for `counts` of them.
    """
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    counts = np.ones(len(score)) if counts is None else counts
    counts = counts[..., order]
    images, errors = np.cumsum(counts, -1), np.cumsum(counts * wrong[order], -1)
    return images[..., ends], errors[..., ends]


def aurc(confidence, wrong, counts=None) -> Float[np.ndarray, "*draw"]:
    """Area under the risk-coverage curve, in [0, 1]; small where errors are least sure.

    The mean over coverages of the rate of errors among the most confident images.
    """
    images, errors = at_thresholds(confidence, wrong, counts)
    return _mean_rate(images, errors, images)


def aucpr(confidence, wrong, counts=None) -> Float[np.ndarray, "*draw"]:
    """Average precision of finding errors among the least confident images, in (0, 1].

    The rate of errors for a useless confidence; NaN without any error.
    """
    images, errors = at_thresholds(-confidence, wrong, counts)
    return _mean_rate(images, errors, errors)


def _mean_rate(images, errors, steps) -> np.ndarray:
    """The rate of errors, averaged by how far `steps` grow at each threshold."""
    rate = np.nan_to_num(_divide(errors, images))
    return _divide((rate * np.diff(steps, prepend=0.0)).sum(-1), steps[..., -1])


PENALTIES = 10.0 ** np.arange(-1, 5)


def fit_logistic(
    features: Float[np.ndarray, "image feature"], right: Bool[np.ndarray, " image"]
) -> tuple[Float[np.ndarray, " feature"], float]:
    """Weights and bias of a logistic regression: log-odds = features . weights + bias.

    Minimizes the sum of the losses and penalty |w|^2 / 2, of features of mean 0 and
    deviation 1; of `PENALTIES`, that of the smallest loss in five-fold cross-validation
    by the images' order.
    """
    from scipy import optimize

    center, spread = features.mean(0), features.std(0)
    scaled = (features - center) / np.where(spread > 0, spread, 1)
    scaled = np.column_stack([scaled, np.ones(len(scaled))])
    sign = np.where(right, 1.0, -1.0)
    fold = np.arange(len(right)) % 5

    def fit(x, sign, penalty):
        decay = penalty * (np.arange(x.shape[1]) < x.shape[1] - 1)  # not of the bias

        def loss(w):
            margin = sign * (x @ w)
            slope = -sign * np.exp(-np.logaddexp(0, margin))
            total = np.logaddexp(0, -margin).sum() + (decay * w * w).sum() / 2
            return total, slope @ x + decay * w

        return optimize.minimize(loss, np.zeros(x.shape[1]), jac=True).x

    def held_out(penalty):
        parts = [(fold != k, fold == k) for k in range(5)]
        weights = [fit(scaled[rest], sign[rest], penalty) for rest, _ in parts]
        margins = [sign[k] * (scaled[k] @ w) for (_, k), w in zip(parts, weights)]
        return sum(np.logaddexp(0, -margin).sum() for margin in margins)

    *weights, bias = fit(scaled, sign, min(PENALTIES, key=held_out))
    weights = np.asarray(weights) / np.where(spread > 0, spread, 1)
    return weights, float(bias - center @ weights)
