"""Linear probes: class scores learnt from hidden states (Vilas et al. 2023, section 8).

A ridge probe needs of its examples only three sums, so that examples need not be kept:
the Gram matrix of the states, the sum of the states of each class, and how many there
are of each. States are shifted first, by about their mean, so that the sums of one
batch keep their digits in float32; batches are added up in float64 on the host.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vitjax.analysis.class_space import rank
from vitjax.types import ArrayLike, pytree

BATCH = 1024
"""Examples whose sums are taken in float32 at once."""


@pytree
class Probe:
    """Class scores that are affine in a state x: `W.(x - centre) + b`.

    Leading axes are free: one probe, or an array of them, such as one per block and
    token.

    Args:
        weights: W.
        bias: b.
        centre: about the mean of the states that it was fitted on; taken off first so
            that float32 keeps the digits of what is left.
    """

    weights: Float[ArrayLike, "*probe class dim"]
    bias: Float[ArrayLike, "*probe class"]
    centre: Float[ArrayLike, "*probe dim"]

    def scores(
        self, states: Float[ArrayLike, "*any dim"]
    ) -> Float[Array, "*any class"]:
        """Class scores of states.

        Args:
            states: their leading axes end with those of the probe, which meet one by
                one: [batch layer token dim] for probes [layer token].

        Returns:
            Scores, for a ridge probe about 1 for the class and -1 for all others; for a
            softmax probe logits. The order of classes is what counts.

        Raises:
            ValueError: the shapes do not fit.
        """
        return scores(self, states)

    def rank(
        self,
        states: Float[ArrayLike, "batch *any dim"],
        label: Int[ArrayLike, " batch"],
    ) -> Int[Array, " batch *any"]:
        """Number of classes with a larger score than the label's.

        Args:
            states: as for `scores`, images first.
            label: class of each image.

        Returns:
            0 for the best, class - 1 for the worst; ties take the best rank.
        """
        found = self.scores(states)
        return rank(found, jnp.reshape(label, (-1,) + (1,) * (found.ndim - 2)))


def scores(
    probe: Probe, states: Float[ArrayLike, "*any dim"]
) -> Float[Array, "*any class"]:
    """`Probe.scores`, as a function."""
    weights, states = jnp.asarray(probe.weights), jnp.asarray(states)
    states = states.astype(np.promote_types(states.dtype, weights.dtype))
    axes = (*weights.shape[:-2], weights.shape[-1])
    if states.ndim < len(axes) or states.shape[states.ndim - len(axes) :] != axes:
        raise ValueError(
            f"States of shape {states.shape} do not end with {axes}, the axes of the "
            "probes and the width that they were fitted on."
        )
    shifted = states - over(probe.centre, states.ndim)
    products = jnp.einsum("...d,...cd->...c", shifted, weights, precision="highest")
    return products + over(probe.bias, states.ndim)


def over(array: ArrayLike, ndim: int) -> Array:
    """An array along the last of `ndim` axes."""
    array = jnp.asarray(array)
    return array.reshape((1,) * (ndim - array.ndim) + array.shape)


class BatchSums(NamedTuple):
    """What one batch adds to `Moments`, float32.

    Args:
        gram: sum over the batch of s.s^T, with s the shifted states.
        states: s; zero where the label is unknown.
    """

    gram: Float[Array, "*probe dim dim"]
    states: Float[Array, "batch *probe dim"]


class Moments(NamedTuple):
    """Sums over all examples so far, float64 on the host.

    Args:
        shift: what was taken off every state, float32.
        gram: sum of s.s^T over the shifted states s.
        sums: sum of s over the examples of each class.
        counts: examples of each class.
    """

    shift: Float[np.ndarray, "*probe dim"]
    gram: Float[np.ndarray, "*probe dim dim"]
    sums: Float[np.ndarray, "*probe class dim"]
    counts: Float[np.ndarray, " class"]


def batch_mean(
    features: Float[ArrayLike, "batch *probe dim"], labels: Int[ArrayLike, " batch"]
) -> Float[Array, "*probe dim"]:
    """Mean state of the labelled examples of a batch; 0 where there is none."""
    features = jnp.asarray(features, jnp.float32)
    known = jnp.asarray(labels) >= 0
    total = jnp.where(beside(known, features), features, 0.0).sum(0)
    return total / jnp.maximum(known.sum(), 1).astype(jnp.float32)


def batch_sums(
    features: Float[ArrayLike, "batch *probe dim"],
    labels: Int[ArrayLike, " batch"],
    shift: Float[ArrayLike, "*probe dim"],
) -> BatchSums:
    """What a batch adds; pure, and every probe for itself.

    Args:
        features: states.
        labels: their classes; those below 0 are left out, whatever their states hold.
        shift: taken off the states.

    Returns:
        Its sums.
    """
    features = jnp.asarray(features, jnp.float32)
    known = beside(jnp.asarray(labels) >= 0, features)
    states = jnp.where(known, features - over(shift, features.ndim), 0.0)
    gram = jnp.einsum("n...d,n...e->...de", states, states, precision="highest")
    return BatchSums(gram, states)


def beside(per_example: Array, features: Array) -> Array:
    """One value per example, to meet its states."""
    return per_example.reshape(per_example.shape + (1,) * (features.ndim - 1))


def empty_moments(shift: Float[ArrayLike, "*probe dim"], *, classes: int) -> Moments:
    """The sums of no examples.

    Args:
        shift: what will be taken off every state.
        classes: how many there are.
    """
    shift = np.array(shift, np.float32)
    *probes, dim = shift.shape
    return Moments(
        shift=shift,
        gram=np.zeros((*probes, dim, dim)),
        sums=np.zeros((*probes, classes, dim)),
        counts=np.zeros(classes),
    )


def add_batch(
    moments: Moments, batch: BatchSums, labels: Int[ArrayLike, " batch"]
) -> Moments:
    """The sums with those of a batch added, in place: they may fill the memory.

    Args:
        moments: overwritten.
        batch: of `batch_sums` with the same shift.
        labels: of the same examples.

    Returns:
        The same arrays.
    """
    np.add(moments.gram, np.asarray(batch.gram), out=moments.gram)
    states = np.asarray(batch.states)
    for state, label in zip(states, np.asarray(labels).tolist()):
        if label >= 0:
            moments.sums[..., label, :] += state
            moments.counts[label] += 1
    return moments


def solve_ridge(moments: Moments, *, alpha: float) -> Probe:
    """The ridge probes of some sums, in float64, returned in float32.

    With m the mean state, n_c the examples of class c and S_c the sum of their states,
    both sides of the centred normal equations follow from the sums:

        (G - n m.m^T + alpha I) w_c = 2 (S_c - n_c m),    b_c = 2 n_c / n - 1 - w_c.m

    One Cholesky factor serves all classes. A class without examples has w = 0, b = -1.

    Args:
        moments: of at least one example.
        alpha: weight of the penalty on w; the intercept is not penalised. Above 0.

    Returns:
        A probe for each that the sums hold.

    Raises:
        ValueError: there are no examples, some are not finite, or alpha is not above 0.
    """
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha is {alpha}; it must be above 0, and finite.")
    count = moments.counts.sum()
    if count == 0:
        raise ValueError("A probe needs at least one example whose class is known.")
    if not np.isfinite(moments.gram).all():
        raise ValueError("Some states are NaN or infinite; a probe cannot be fitted.")
    mean = moments.sums.sum(-2) / count
    shape = moments.sums.shape
    weights = np.zeros(shape, np.float32)
    bias = np.empty(shape[:-1], np.float32)
    for cell in np.ndindex(*shape[:-2]):
        one = moments.gram[cell], moments.sums[cell], moments.counts, mean[cell]
        weights[cell], bias[cell] = solve_one(*one, alpha=alpha)
    return Probe(weights=weights, bias=bias, centre=moments.shift)


def solve_one(gram, sums, counts, mean, *, alpha: float):
    """Weights and bias of one probe; see `solve_ridge`."""
    from scipy.linalg import cho_factor, cho_solve

    count, there = counts.sum(), counts > 0
    centred = gram - count * np.outer(mean, mean)
    centred[np.diag_indices_from(centred)] += alpha
    targets = 2 * (sums[there] - np.outer(counts[there], mean))
    weights = np.zeros_like(sums)
    weights[there] = cho_solve(cho_factor(centred, lower=True), targets.T).T
    return weights, 2 * counts / count - 1 - weights @ mean


def fit_ridge_probe(
    features: Float[ArrayLike, "n *probe dim"],
    labels: Int[ArrayLike, " n"],
    *,
    classes: int,
    alpha: float = 1.0,
) -> Probe:
    """Linear regression of classes on states, with a penalty on the weights.

    W, b = argmin sum_i |W.x_i + b - y_i|^2 + alpha |W|^2, with y_i = 1 at the class of
    example i and -1 elsewhere (Vilas et al. 2023, section 8, after Raghu et al. 2021;
    scikit-learn's `Ridge` with an intercept solves the same problem). A data set's
    worth of probes is fitted without its states in memory by `vitjax run probes`.

    Args:
        features: states, examples first; further leading axes are probes of their own.
        labels: their classes, in [0, classes); -1 for examples to leave out.
        classes: how many there are, C. A class without examples scores -1 everywhere.
        alpha: weight of the penalty; the intercept is not penalised. Above 0; far below
            1e-5 of the states' summed squares, float32's rounding is felt.

    Returns:
        The probe; its scores are about 1 for the class of a state and -1 for others.

    Raises:
        ValueError: shapes, labels or alpha do not fit, or a state is not finite.

    Reference:
        Hoerl and Kennard, Ridge regression, Technometrics 1970.
    """
    features, labels = check_examples(features, labels, classes=classes)
    shift = batch_mean(features[:BATCH], labels[:BATCH])
    moments = empty_moments(shift, classes=classes)
    for start in range(0, len(labels), BATCH):
        rows = slice(start, start + BATCH)
        sums = batch_sums(features[rows], labels[rows], shift)
        add_batch(moments, sums, labels[rows])
    return solve_ridge(moments, alpha=alpha)


def check_examples(features, labels, *, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Examples as host arrays.

    Raises:
        ValueError: their number differs, or a label is no class.
    """
    features, labels = np.asarray(features), np.asarray(labels)
    if len(features) != len(labels):
        raise ValueError(f"{len(features)} states have {len(labels)} labels.")
    if len(labels) and not -1 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"Labels from {labels.min()} to {labels.max()} do not lie in "
            f"[0, {classes}), the classes; -1 leaves an example out."
        )
    return features, labels
