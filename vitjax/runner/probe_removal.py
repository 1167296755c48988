"""Removal curves: tokens go in the order of probes' ranks, of gradients, at random."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vitjax.maps.relevancy import relevancy
from vitjax.maps.removal import removal_curve
from vitjax.models.model import Model
from vitjax.runner.job import Job
from vitjax.runner.recipe import Prepared, Recipe
from vitjax.types import ArrayLike, Batch

ORDERS = ("negative", "positive")
IMPORTANCES = ("probe", "gradient")
REMOVAL = tuple(f"correct_{o}_{i}" for o in ORDERS for i in IMPORTANCES)


def importance_of(
    ranks: Int[np.ndarray, "image layer token"], job: Job
) -> Float[np.ndarray, "image patch"]:
    """Minus the sum over blocks of a token's ranks: small ranks are important."""
    total = ranks[:, :, job.model.config.prefix :].sum(1, dtype=np.int64)
    return -total.astype(np.float32)


def removal_recipe(
    counts: tuple[int, ...], importance: Float[np.ndarray, "image patch"]
) -> Recipe:
    """The recipe of the last part.

    Args:
        counts: how many patches stay, step by step.
        importance: of every image's tokens, by the probes.
    """

    def prepare(model: Model, *, seed: int, **options: Any) -> Prepared:
        return Prepared({"importance": jnp.asarray(importance), "seed": seed}, {})

    return Recipe(
        name="probes",
        step=removal_rows,
        dims=dict.fromkeys((*REMOVAL, "correct_random"), ("step",)),
        labelled=(*REMOVAL, "correct_random"),
        options={"keep_counts": counts},
        prepare=prepare,
    )


def removal_rows(
    model: Model, batch: Batch, aux: dict[str, Any], *, keep_counts: tuple[int, ...]
) -> dict[str, Array]:
    """Whether the model is right with part of its tokens, in five orders of removal.

    Args:
        model: the model.
        batch: images and labels.
        aux: "importance" of every image's tokens by probes; "seed" of random ones.
        keep_counts: how many patches stay, step by step.
    """
    label = jnp.maximum(batch.label, 0)
    curve = functools.partial(
        removal_curve, model, batch.images, label, keep_counts=keep_counts
    )
    found = {
        "probe": jnp.take(aux["importance"], batch.index, axis=0, mode="clip"),
        "gradient": gradient_importance(model, batch, label),
    }
    rows = {
        f"correct_{order}_{name}": curve(found[name], order=order)
        for order in ORDERS
        for name in IMPORTANCES
    }
    drawn = random_importance(aux["seed"], batch.index, model.config.patches)
    return rows | {"correct_random": curve(drawn, order="negative")}


def gradient_importance(
    model: Model, batch: Batch, label: Int[Array, " batch"]
) -> Float[Array, "batch patch"]:
    """Relevancy of image tokens at the readout, over all heads and blocks."""
    per_block = relevancy(model, batch.images, label)
    return per_block.sum((0, 2))[:, model.config.prefix :]


def random_importance(
    seed: Int[Array, ""], index: Int[ArrayLike, " batch"], patches: int
) -> Float[Array, "batch patch"]:
    """An order of its own for every image, whatever batch it is in."""

    def draw(place):
        return jax.random.uniform(jax.random.fold_in(key, place), (patches,))

    key = jax.random.key(seed)
    return jax.vmap(draw)(index)
