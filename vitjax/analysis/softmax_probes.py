"""Softmax probes, trained by gradient descent: the alternative to ridge probes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from vitjax.analysis.probes import Probe, check_examples, over
from vitjax.types import ArrayLike


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

    Minimises the mean of -log softmax(W.z_i + b)_c over mini-batches by AdamW, with z
    the states scaled to mean 0 and deviation 1; keeps the epoch with the smallest loss
    on examples held out. An alternative to the published ridge regression.

    Args:
        features: states, examples first; further leading axes are probes of their own.
        labels: their classes, in [0, classes); -1 for examples to leave out.
        classes: how many there are.
        weight_decay: of AdamW, on W alone. At least 0.
        learning_rate: of AdamW. Above 0.
        batch_size: examples per step, at most those that are trained on.
        epochs: at most so many passes over the examples.
        patience: stop after so many epochs without a smaller loss.
        validation: share of the examples that is held out, at least one. In (0, 1).
        seed: of the split and of the order of examples.

    Returns:
        The probe; its scores are logits.

    Raises:
        ValueError: shapes, labels or options do not fit; there are not two examples.

    Reference:
        Loshchilov and Hutter, Decoupled weight decay regularization, ICLR 2019.
    """
    features, labels = check_examples(features, labels, classes=classes)
    if not 0 < validation < 1:
        raise ValueError(f"validation is {validation}; it must lie in (0, 1).")
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
    found = [
        fit(jnp.asarray(flat[order, i], jnp.float32)) for i in range(flat.shape[1])
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *found)
    return jax.tree.map(lambda leaf: leaf.reshape(*probes, *leaf.shape[1:]), stacked)


@functools.partial(jax.jit, static_argnames=("held", "classes", "batch_size"))
def train_softmax(
    features, *, labels, key, limits, stops, held, classes, batch_size
) -> Probe:
    """One probe; the first `held` examples choose the epoch."""
    centre = features[held:].mean(0)
    scale = features[held:].std(0)
    scale = jnp.where(scale > 1e-6 * scale.max(), scale, 1.0)
    states = (features - over(centre, 2)) / over(scale, 2)
    decayed = {"weights": True, "bias": False}
    update = optax.adamw(
        limits["learning_rate"], weight_decay=limits["weight_decay"], mask=decayed
    )
    epochs, patience = stops

    def loss(params, rows):
        logits = jnp.matmul(states[rows], params["weights"].T, precision="highest")
        logits = logits + over(params["bias"], 2)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows])
        return losses.mean()

    def step(carry, rows):
        params, state = carry
        slope = jax.grad(loss)(params, rows)
        with jax.numpy_dtype_promotion("standard"):  # optax counts steps in int32
            changes, state = update.update(slope, state, params)
        return (optax.apply_updates(params, changes), state), None

    def epoch(carry):
        params, state, best, least, waited, number = carry
        rows = jax.random.permutation(
            jax.random.fold_in(key, number), len(labels) - held
        )
        steps = len(rows) // batch_size
        rows = held + rows[: steps * batch_size].reshape(steps, batch_size)
        (params, state), _ = jax.lax.scan(step, (params, state), rows)
        now = loss(params, jnp.arange(held))
        better = now < least
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), params, best)
        waited = jnp.where(better, 0, waited + 1)
        return params, state, best, jnp.minimum(now, least), waited, number + 1

    def go_on(carry):
        *_, waited, number = carry
        return (number < epochs) & (waited < patience)

    params = {
        "weights": jnp.zeros((classes, features.shape[1])),
        "bias": jnp.zeros(classes),
    }
    start = (params, update.init(params), params, loss(params, jnp.arange(held)), 0, 0)
    best = jax.lax.while_loop(go_on, epoch, start)[2]
    return Probe(
        weights=best["weights"] / over(scale, 2), bias=best["bias"], centre=centre
    )
