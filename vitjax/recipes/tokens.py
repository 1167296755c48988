"""The recipe `tokens`: everything that a person asks of single tokens, for some images.

Rows are those of `identifiability` and, of every token, its best classes; of every
block and head, which patches the answer attends to and which would help it. That is
some hundred KiB an image: meant for the few hundred that are looked at one by one, and
the pictures of the first 200 are kept.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vitjax.analysis.class_space import project, top_k
from vitjax.models.forward import scan_blocks
from vitjax.models.model import Model
from vitjax.recipes import identifiability as base
from vitjax.recipes.microbatch import microbatched
from vitjax.recipes.recipe import Recipe
from vitjax.saliency.attention import raw_attention
from vitjax.saliency.relevancy import relevancy
from vitjax.types import Batch

PICTURES = 200


def best_classes(model: Model, images, *, top: int) -> dict[str, Array]:
    """The best classes of every token after every block, and their probabilities.

    Args:
        model: the model.
        images: preprocessed pixels.
        top: how many.

    Returns:
        token_classes and token_probabilities [layer image token top]: softmax over all
        classes, in [0, 1].
    """

    def read(params, stream_in, trace):
        logits = project(model.class_space, trace.residual)
        best = top_k(logits, k=min(top, model.num_classes))
        total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        return best.classes, jnp.exp(best.logits - total)

    _, (classes, probabilities) = scan_blocks(model, images, read)
    return {"token_classes": classes, "token_probabilities": probabilities}


@microbatched
def tokens(model: Model, batch: Batch, *, top: int) -> dict[str, jax.Array]:
    """What single tokens say, and what would help the answer.

    Args:
        model: the model.
        batch: images and labels.
        top: how many classes of a token to keep.

    Returns:
        The rows of `identifiability`; token_classes and token_probabilities
        [image layer token top]; attended [image layer head patch], the attention
        weights of the row that the answer is read from; helpful
        [image layer head patch], `relevancy` for the label or, without one, for the
        model's own answer.
    """
    rows = base.identifiability(model, batch, top=top)
    target = jnp.where(batch.label >= 0, batch.label, rows["prediction"])
    helpful = relevancy(model, batch.images, target)[..., model.config.prefix :]
    per_layer = best_classes(model, batch.images, top=top) | {
        "attended": raw_attention(model, batch.images),
        "helpful": helpful,
    }
    return rows | {n: jnp.moveaxis(v, 0, 1) for n, v in per_layer.items()}


DIMS = {
    **base.DIMS,
    "token_classes": ("layer", "token", "top"),
    "token_probabilities": ("layer", "token", "top"),
    "attended": ("layer", "head", "patch"),
    "helpful": ("layer", "head", "patch"),
}

TOKENS = Recipe(
    name="tokens",
    step=tokens,
    dims=DIMS,
    labelled=base.IDENTIFIABILITY.labelled,
    options={"top": base.TOP},
    pictures=PICTURES,
)
