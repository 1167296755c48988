"""Rows -> intervals: what a finite set of images can say about a mean."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


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
