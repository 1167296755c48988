"""Rows of the token explorer: the best classes of every token, attention, relevancy.

They take some hundred KiB an image: meant for the few hundred images that are looked at
one by one. The previews of the first 200 are kept.
"""

import jax
import jax.numpy as jnp

from vitjax.analysis.class_space import project_tokens, top_k
from vitjax.models.forward import scan_blocks
from vitjax.models.model import Model
from vitjax.recipes import identifiability as base
from vitjax.recipes import schema
from vitjax.recipes.microbatch import microbatched
from vitjax.recipes.recipe import Recipe
from vitjax.saliency.attention import raw_attention
from vitjax.saliency.relevancy import relevancy
from vitjax.types import Batch


@microbatched
def tokens(model: Model, batch: Batch, *, top: int) -> dict[str, jax.Array]:
    """Compute the rows of `identifiability`, token classes, attention and relevancy.

    Relevancy explains the label or, without one, the model's own prediction.
    """
    rows = base.identifiability(model, batch, top=top)
    target = jnp.where(batch.label >= 0, batch.label, rows["prediction"])
    helpful = relevancy(model, batch.images, target)[..., model.config.prefix :]

    def read(params, stream_in, trace):
        logits = project_tokens(model, trace.residual)
        best = top_k(logits, k=min(top, model.num_classes))
        if model.config.sigmoid:
            return best.classes, jax.nn.sigmoid(best.logits)
        total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)  # of all classes
        return best.classes, jnp.exp(best.logits - total)

    _, (classes, probabilities) = scan_blocks(model, batch.images, read)
    per_layer = {
        "token_classes": classes,
        "token_probabilities": probabilities,
        "attended": raw_attention(model, batch.images),
        "helpful": helpful,
    }
    return rows | {n: jnp.moveaxis(v, 0, 1) for n, v in per_layer.items()}


TOKENS = Recipe(
    name="tokens",
    step=tokens,
    **schema.rows(
        *base.FAMILIES,
        schema.TOKEN_CLASSES,
        schema.TOKEN_PROBABILITIES,
        schema.ATTENDED,
        schema.HELPFUL,
    ),
    options=base.IDENTIFIABILITY.options,
    previews=200,
)
