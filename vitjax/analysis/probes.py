"""Linear probes: class scores learned from states (Vilas et al. 2023, section 8).

A ridge probe is fitted from three sums over examples, which need not be kept: the Gram
matrix of the states, the sum of the states of each class, and the number of examples of
each. An offset near their mean is subtracted first, so that the sums of one batch keep
their digits in float32; batches are added up in float64 on the host. States that are on
the host anyway, as in `fit_ridge_probe`, are summed in float64 from the start.

Shared by all functions: `features` are states, examples first; further leading axes are
probes of their own. `labels` are their classes; those below 0 leave an example out,
whatever its states.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vitjax.analysis.class_space import rank
from vitjax.checks import checked
from vitjax.types import ArrayLike, along_last, pytree

BATCH = 1024
"""Examples that are added up in float32 at once."""


@pytree
class Probe:
    """Class scores that are affine in a state x: `W.(x - centre) + b`.

    Leading axes are free: one probe, or an array of them, such as one per block and
    token.

    Args:
        weights: W.
        bias: b.
        centre: about the mean of the states that it was fitted on; subtracted first, so
            that float32 keeps the digits of the difference.
    """

    weights: Float[ArrayLike, "*probe class dim"]
    bias: Float[ArrayLike, "*probe class"]
    centre: Float[ArrayLike, "*probe dim"]

    @checked
    def scores(
        self, states: Float[ArrayLike, "*any dim"]
    ) -> Float[Array, "*any class"]:
        """Class scores of states, for a softmax probe logits.

        Leading axes of the states end with those of the probe, which meet one by one:
        [batch layer token dim] for probes [layer token]; else ValueError. A ridge
        probe's scores are about 1 for the class and -1 for all others.
        """
        weights, states = jnp.asarray(self.weights), jnp.asarray(states)
        states = states.astype(np.promote_types(states.dtype, weights.dtype))
        axes = (*weights.shape[:-2], weights.shape[-1])
        if states.shape[-len(axes) :] != axes:
            raise ValueError(
                f"States of shape {states.shape} do not end with {axes}, the axes of "
                "the probes and the width that they were fitted on."
            )
        shifted = states - along_last(self.centre, states)
        products = jnp.einsum("...d,...cd->...c", shifted, weights, precision="highest")
        return products + along_last(self.bias, products)

    def rank(
        self,
        states: Float[ArrayLike, "batch *any dim"],
        label: Int[ArrayLike, " batch"],
    ) -> Int[Array, " batch *any"]:
        """Number of classes with a larger score than the label's, images first.

        As `vitjax.rank`: 0 for the best, class - 1 for the worst.
        """
        scores = self.scores(states)
        return rank(scores, jnp.reshape(label, (-1,) + (1,) * (scores.ndim - 2)))


def expand_trailing(per_example: Array, features: Array) -> Array:
    """One value per example, to broadcast against its states."""
    return per_example.reshape(per_example.shape + (1,) * (features.ndim - 1))


class BatchSums(NamedTuple):
    """Gram matrix of one batch, and its states less the offset, 0 without a label."""

    gram: Float[ArrayLike, "*probe dim dim"]
    states: Float[ArrayLike, "batch *probe dim"]


class SufficientStatistics(NamedTuple):
    """The sums so far, float64 on the host; states are less the offset."""

    offset: Float[np.ndarray, "*probe dim"]
    gram: Float[np.ndarray, "*probe dim dim"]
    sums: Float[np.ndarray, "*probe class dim"]
    counts: Float[np.ndarray, " class"]


def batch_mean(features: ArrayLike, labels: ArrayLike) -> Float[Array, "*probe dim"]:
    """Mean state of the labeled examples of a batch; 0 where there is none."""
    features = jnp.asarray(features, jnp.float32)
    known = jnp.asarray(labels) >= 0
    total = jnp.where(expand_trailing(known, features), features, 0.0).sum(0)
    return total / jnp.maximum(known.sum(), 1).astype(jnp.float32)


def batch_sums(features: ArrayLike, labels: ArrayLike, offset: ArrayLike) -> BatchSums:
    """The sums of a batch; pure, and each probe's depend on its own states alone."""
    features = jnp.asarray(features, jnp.float32)
    known = expand_trailing(jnp.asarray(labels) >= 0, features)
    states = features - along_last(offset, features)
    states = jnp.where(known, states, 0.0)
    gram = jnp.einsum("n...d,n...e->...de", states, states, precision="highest")
    return BatchSums(gram, states)


def exact_batch_sums(features, labels, offset) -> BatchSums:
    """`batch_sums` in float64, of numpy arrays."""
    states = features.astype(np.float64) - np.asarray(offset, np.float64)
    states[labels < 0] = 0.0
    by_probe = np.moveaxis(states, 0, -2)
    return BatchSums(by_probe.swapaxes(-1, -2) @ by_probe, states)


def empty_statistics(offset: ArrayLike, *, classes: int) -> SufficientStatistics:
    """The sums of no examples."""
    offset = np.array(offset, np.float32)
    *probes, dim = offset.shape
    return SufficientStatistics(
        offset=offset,
        gram=np.zeros((*probes, dim, dim)),
        sums=np.zeros((*probes, classes, dim)),
        counts=np.zeros(classes),
    )


def add_batch(statistics: SufficientStatistics, batch: BatchSums, labels) -> None:
    """Add the sums of a batch in place, since they may fill the memory."""
    np.add(statistics.gram, np.asarray(batch.gram), out=statistics.gram)
    states = np.asarray(batch.states)
    for state, label in zip(states, np.asarray(labels).tolist()):
        if label >= 0:
            statistics.sums[..., label, :] += state
            statistics.counts[label] += 1


def solve_ridge(statistics: SufficientStatistics, *, alpha: float) -> Probe:
    """The ridge probes of some sums, in float64, returned in float32.

    With m the mean state, n_c the examples of class c and S_c the sum of their states,
    both sides of the centered normal equations follow from the sums:

        (G - n m.m^T + alpha I) w_c = 2 (S_c - n_c m),    b_c = 2 n_c / n - 1 - w_c.m

    One Cholesky factor serves all classes. A class without examples has w = 0, b = -1.
    """
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha={alpha} is out of range (0, inf).")
    offset, grams, sums, counts = statistics
    count, present = counts.sum(), counts > 0
    if count == 0:
        raise ValueError("A probe needs at least one example whose class is known.")
    if not np.isfinite(grams).all():
        raise ValueError("Some states are NaN or infinite; a probe cannot be fitted.")
    weights = np.zeros(sums.shape, np.float32)
    bias = np.empty(sums.shape[:-1], np.float32)
    for index in np.ndindex(*sums.shape[:-2]):
        mean = sums[index].sum(0) / count
        gram = grams[index] - count * np.outer(mean, mean)
        gram[np.diag_indices_from(gram)] += alpha
        targets = 2 * (sums[index][present] - np.outer(counts[present], mean))
        solution = np.zeros_like(sums[index])
        try:
            factor = cho_factor(gram, lower=True)
        except LinAlgError as error:
            raise ValueError(
                f"alpha={alpha} is lost in the rounding of states whose squares sum to "
                f"{np.trace(gram):.3g}; give a larger one, or scale the states."
            ) from error
        solution[present] = cho_solve(factor, targets.T).T
        weights[index] = solution
        bias[index] = 2 * counts / count - 1 - solution @ mean
    return Probe(weights=weights, bias=bias, centre=offset)


@checked
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
        alpha: weight of the penalty; the intercept is not penalized. Above 0. Sums are
            in float64 here; in those of `vitjax run probes`, float32's rounding shows
            far below 1e-5 of the states' summed squares.

    Returns:
        The probe; its scores are about 1 for the class of a state and -1 for others.

    Raises:
        ValueError: shapes, labels or alpha do not fit, or a state is not finite.

    Example:
        >>> features = trace.residual[-1, :, 0]  # [CLS] after the last block
        >>> probe = vitjax.fit_ridge_probe(features, label, classes=10)
        >>> probe.rank(features, label)  # 0 where the class is first
    """
    features, labels = check_examples(features, labels)
    offset = batch_mean(features[:BATCH], labels[:BATCH])
    statistics = empty_statistics(offset, classes=classes)
    for start in range(0, len(labels), BATCH):
        rows = slice(start, start + BATCH)
        sums = exact_batch_sums(features[rows], labels[rows], offset)
        add_batch(statistics, sums, labels[rows])
    return solve_ridge(statistics, alpha=alpha)


def check_examples(features, labels) -> tuple[np.ndarray, np.ndarray]:
    """Examples as host arrays; ValueError unless they are pairs of finite states."""
    features, labels = np.asarray(features), np.asarray(labels)
    if len(features) != len(labels):
        raise ValueError(f"{len(features)} states have {len(labels)} labels.")
    if not np.isfinite(features[labels >= 0]).all():
        raise ValueError("Some states are NaN or infinite; a probe cannot be fitted.")
    return features, labels


@checked
def fit_softmax_probe(
    features: Float[ArrayLike, "n *probe dim"],
    labels: Int[ArrayLike, " n"],
    *,
    classes: int,
    weight_decay: float = 1e-2,
    learning_rate: float = 1e-2,
    batch_size: int = 256,
    epochs: int = 200,
    patience: int = 10,
    validation: float = 0.1,
    seed: int = 0,
) -> Probe:
    """Multinomial logistic regression of classes on states, stopped early.

    Minimizes the mean of -log softmax(W.z_i + b)_c over mini-batches by AdamW
    (Loshchilov and Hutter 2019), with z the states scaled to mean 0 and deviation 1;
    keeps the epoch with the smallest loss on held-out examples.

    Args:
        features: states, examples first; further leading axes are probes of their own.
        labels: their classes, in [0, classes); -1 for examples to leave out.
        classes: how many there are.
        weight_decay: of AdamW, on W alone. At least 0.
        learning_rate: of AdamW. Above 0.
        batch_size: examples per step, at most those that are trained on.
        epochs: at most so many passes over the examples.
        patience: stop after so many epochs without a smaller loss.
        validation: fraction of the examples that is held out, at least one. In (0, 1).
        seed: of the split and of the order of examples.

    Returns:
        The probe; its scores are logits.

    Raises:
        ValueError: shapes, labels or options do not fit, a state is not finite, or
            there are not two examples.

    Example:
        >>> features = trace.residual[-1, :, 0]
        >>> probe = vitjax.fit_softmax_probe(features, label, classes=10, epochs=5)
    """
    features, labels = check_examples(features, labels)
    if not 0 < validation < 1:
        raise ValueError(f"validation={validation} is out of range (0, 1).")
    features, labels = features[labels >= 0], labels[labels >= 0]
    if len(labels) < 2:
        raise ValueError(
            f"A softmax probe needs two examples or more, one of them to hold out; got "
            f"{len(labels)}."
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    held = min(max(1, round(validation * len(labels))), len(labels) - 1)
    options = {"weight_decay": weight_decay, "learning_rate": learning_rate}
    fit = functools.partial(
        train_softmax,
        labels=jnp.asarray(labels[order], jnp.int32),
        key=jax.random.key(seed),
        limits={k: jnp.float32(v) for k, v in options.items()},
        stops=(jnp.int32(epochs), jnp.int32(patience)),
        held=held,
        classes=classes,
        batch_size=min(batch_size, len(labels) - held),
    )
    *probes, dim = features.shape[1:]
    flat = features.reshape(len(labels), -1, dim)
    fitted = [
        fit(jnp.asarray(flat[order, i], jnp.float32)) for i in range(flat.shape[1])
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *fitted)
    return jax.tree.map(lambda leaf: leaf.reshape(*probes, *leaf.shape[1:]), stacked)


@functools.partial(jax.jit, static_argnames=("held", "classes", "batch_size"))
def train_softmax(
    features, *, labels, key, limits, stops, held, classes, batch_size
) -> Probe:
    """One probe; the first `held` examples choose the epoch."""
    import optax

    offset = features[held:].mean(0)
    scale = features[held:].std(0)
    scale = jnp.where(scale > 1e-6 * scale.max(), scale, 1.0)
    states = (features - along_last(offset, features)) / along_last(scale, features)
    decayed = {"weights": True, "bias": False}
    update = optax.adamw(
        limits["learning_rate"], weight_decay=limits["weight_decay"], mask=decayed
    )
    epochs, patience = stops

    def loss(params, rows):
        logits = jnp.matmul(states[rows], params["weights"].T, precision="highest")
        logits = logits + along_last(params["bias"], logits)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows])
        return losses.mean()

    def step(carry, rows):
        params, state = carry
        gradient = jax.grad(loss)(params, rows)
        with jax.numpy_dtype_promotion("standard"):  # optax counts steps in int32
            changes, state = update.update(gradient, state, params)
        return (optax.apply_updates(params, changes), state), None

    def epoch(carry):
        params, state, best, least, waited, number = carry
        order = jax.random.fold_in(key, number)
        rows = jax.random.permutation(order, len(labels) - held)
        steps = len(rows) // batch_size
        rows = held + rows[: steps * batch_size].reshape(steps, batch_size)
        (params, state), _ = jax.lax.scan(step, (params, state), rows)
        now = loss(params, jnp.arange(held))
        better = now < least
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), params, best)
        waited = jnp.where(better, 0, waited + 1)
        return params, state, best, jnp.minimum(now, least), waited, number + 1

    def unfinished(carry):
        *_, waited, number = carry
        return (number < epochs) & (waited < patience)

    params = {
        "weights": jnp.zeros((classes, features.shape[1])),
        "bias": jnp.zeros(classes),
    }
    start = (params, update.init(params), params, loss(params, jnp.arange(held)), 0, 0)
    best = jax.lax.while_loop(unfinished, epoch, start)[2]
    weights = best["weights"] / along_last(scale, features)
    return Probe(weights=weights, bias=best["bias"], centre=offset)
