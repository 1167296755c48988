"""Removal curves: tokens go in the order of probes' ranks, of gradients, at random."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vitjax.models.model import Model
from vitjax.recipes.recipe import Prepared, Recipe
from vitjax.runner import mesh as meshes
from vitjax.runner.job import Job
from vitjax.runner.results import Rows
from vitjax.saliency.relevancy import relevancy
from vitjax.saliency.removal import removal_curve
from vitjax.types import ArrayLike, Batch

ORDERS = ("negative", "positive")
IMPORTANCES = ("probe", "gradient")
REMOVAL = tuple(f"correct_{o}_{i}" for o in ORDERS for i in IMPORTANCES)

WINDOW = 1024
"""Images whose ranks are read at once."""


def importance_of(
    ranks: Int[np.ndarray, "image layer patch"],
) -> Float[np.ndarray, "image patch"]:
    """Minus the sum over blocks of a token's ranks: small ranks are important.

    Args:
        ranks: of the probes on the residual stream.
    """
    return -ranks.sum(1, dtype=np.int64).astype(np.float32)


@functools.lru_cache(maxsize=8)
def removal_recipe(counts: tuple[int, ...]) -> Recipe:
    """The recipe of removal curves; one object for the same counts, so that they are
    compiled once. Its steps are handed importances by `RemovalJob`.

    Args:
        counts: how many patches stay, step by step.
    """
    return Recipe(
        name="probes",
        step=removal_rows,
        dims=dict.fromkeys((*REMOVAL, "correct_random"), ("step",)),
        labelled=(*REMOVAL, "correct_random"),
        options={"keep_counts": counts},
        prepare=no_importance,
    )


def no_importance(model: Model, *, seed: int, **options: Any) -> Prepared:
    """What steps are handed, as far as its shapes go."""
    importance = jnp.zeros((1, model.config.patches))
    return Prepared({"importance": importance, "seed": jnp.int32(seed)}, {})


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RemovalJob(Job):
    """Removal curves, once all probes have ranked.

    Args:
        importance: of every image's tokens, by the probes.
    """

    importance: Float[np.ndarray, "image patch"]

    @functools.cached_property
    def prepared(self) -> Prepared:
        """The importances, on every device."""
        aux = {"importance": self.importance, "seed": np.int32(self.seed)}
        return Prepared(meshes.replicate(aux, self.mesh), {})


def removal_job(job: Job, counts: tuple[int, ...], ranks: Rows) -> RemovalJob:
    """The last part of a run, of the same images as another job.

    Args:
        job: whose model, images and devices are meant.
        counts: how many patches stay, step by step.
        ranks: of the probes on the residual stream, [image layer token] on disk.
    """
    fields = {f.name: getattr(job, f.name) for f in dataclasses.fields(Job)}
    fields["recipe"] = removal_recipe(counts)
    prefix = job.model.config.prefix
    starts = range(0, len(ranks), WINDOW)
    parts = [importance_of(ranks[at : at + WINDOW, :, prefix:]) for at in starts]
    return RemovalJob(**fields, importance=np.concatenate(parts))


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
    found = {
        "probe": jnp.take(aux["importance"], batch.index, axis=0, mode="clip"),
        "gradient": gradient_importance(model, batch, label),
    }
    signs = {"negative": 1.0, "positive": -1.0}  # turned round, the least are the most
    orders = {f"{o}_{n}": signs[o] * found[n] for o in ORDERS for n in IMPORTANCES}
    orders["random"] = random_importance(aux["seed"], batch.index, model.config.patches)

    def curve(importance):  # one after the other: compiled once
        return removal_curve(
            *(model, batch.images, label, importance), keep_counts=keep_counts
        )

    curves = jax.lax.map(curve, jnp.stack(list(orders.values())))
    return {f"correct_{name}": row for name, row in zip(orders, curves)}


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
