"""Rows of the token explorer: classes of every token, attention, relevancy.

Meant for images that are looked at one by one: about 1 MB each for Ti/16. The previews
of the first 200 are kept. Class logits of 1,000 classes at every token would be 9 MB:
they and their ranks are kept for a few classes of each image, by `choose_classes`, and
attention between tokens as the mean over heads in 8 bits.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitjax.analysis.class_space import project_tokens, rank, top_k
from vitjax.models.forward import forward, scan_blocks
from vitjax.models.model import Model
from vitjax.recipes import identifiability as base
from vitjax.recipes import schema
from vitjax.recipes.recipe import Recipe, microbatched
from vitjax.saliency.attention import pooled_attention
from vitjax.saliency.relevancy import relevancy
from vitjax.types import Batch, Edits

CHOSEN = 20
"""Classes of an image whose logits are kept at every token."""

ALL = 48
"""Models of at most so many classes: all are."""


@microbatched
def tokens(model: Model, batch: Batch, *, top: int) -> dict[str, jax.Array]:
    """Compute the rows of `identifiability`, token classes, attention and relevancy.

    Ranks, logits and relevancy are of the label or, of an image without one, of the
    model's own prediction.
    """
    logits, _ = forward(model, batch.images)
    prediction = jnp.argmax(logits, -1).astype(jnp.int32)
    target = jnp.where(batch.label >= 0, batch.label, prediction)
    rows = base.identifiability(
        model, dataclasses.replace(batch, label=target), top=top
    )
    prefix = model.config.prefix
    helpful = relevancy(model, batch.images, target)[..., prefix:]

    def read(params, stream_in, trace):
        logits = project_tokens(model, trace.residual)
        probabilities = model.class_space.probabilities(logits)
        best = top_k(logits, k=min(top, model.num_classes)).classes
        patches = trace.attention_weights.mean(1)[..., prefix:]
        steps, largest = quantize(patches)
        normalizer = jax.nn.logsumexp(logits, axis=-1)
        if model.config.sigmoid:
            normalizer = jnp.full_like(normalizer, jnp.nan)
        return probabilities.sum(1), {
            "token_classes": best,
            "token_probabilities": jnp.take_along_axis(probabilities, best, axis=-1),
            "token_normalizer": normalizer,
            "attended": pooled_attention(model, trace, Edits())[..., prefix:],
            "token_attention": steps,
            "token_attention_largest": largest,
        }

    _, (mass, per_layer) = scan_blocks(model, batch.images, read)
    chosen = choose_classes(jnp.asarray(batch.label), logits, mass.sum(0))

    def read_chosen(params, stream_in, trace):
        logits = project_tokens(model, trace.residual)
        ranks = jax.lax.map(lambda label: rank(logits, label[:, None]), chosen.T)
        return {
            "chosen_logits": jnp.take_along_axis(logits, chosen[:, None], axis=-1),
            "chosen_ranks": jnp.moveaxis(ranks, 0, -1),
        }

    per_layer |= scan_blocks(model, batch.images, read_chosen)[1] | {"helpful": helpful}
    rows |= {name: jnp.moveaxis(value, 0, 1) for name, value in per_layer.items()}
    return rows | {"chosen_classes": chosen}


def choose_classes(
    label: Int[Array, " batch"],
    logits: Float[Array, "batch class"],
    mass: Float[Array, "batch class"],
) -> Int[Array, "batch chosen"]:
    """The label, the five best of the model, then those of the largest mass.

    `mass` is probability, summed over blocks and tokens.
    """
    classes = logits.shape[-1]
    best = top_k(logits, k=min(5, classes)).classes
    first = jnp.concatenate([best[:, ::-1], label[:, None]], axis=1)  # the last wins
    places = jnp.arange(1, first.shape[1] + 1, dtype=mass.dtype)
    of_first = jax.nn.one_hot(first, classes, dtype=mass.dtype)
    bonus = (places[None, :, None] * of_first).max(1)
    count = classes if classes <= ALL else CHOSEN
    return top_k(mass + bonus * (mass.sum(-1, keepdims=True) + 1), k=count).classes


def quantize(weights: Float[Array, "*any patch"]):
    """(steps, largest): each row in 255ths of its largest weight."""
    largest = jnp.nan_to_num(weights).max(-1)
    shares = weights / jnp.where(largest > 0, largest, 1)[..., None]
    return jnp.rint(255 * jnp.nan_to_num(shares)).astype(jnp.uint8), largest


TOKENS = Recipe(
    name="tokens",
    step=tokens,
    dims=schema.dims(
        *base.FAMILIES, *schema.between(schema.TOKEN_CLASSES, schema.HELPFUL)
    ),
    options=base.IDENTIFIABILITY.options,
    previews=200,
)
