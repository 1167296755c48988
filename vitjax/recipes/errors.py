"""Errors foreseen: how sure a model is, and how its answer comes about over the blocks.

    vitjax run errors --model vit_ti16 --data folder:photos --out rows

After every block the head reads what it would answer from there (Beigelman and Freiman
2026, "LogitDynamics", trained heads for that; here they come with the model). The
report fits on half of the images whether the model errs, and tests on the other half.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vitjax.analysis.class_space import top_k
from vitjax.analysis.tuned_lens import read_pooled
from vitjax.messages import check_classes, check_range
from vitjax.models.forward import run_blocks
from vitjax.models.model import Model
from vitjax.recipes import schema
from vitjax.recipes.recipe import Recipe
from vitjax.types import Batch, to_float32


def errors(model: Model, batch: Batch, *, top: int) -> dict[str, Array]:
    """Follow the answer and its rivals over the blocks, and how sure the model is.

    One forward pass for each image.
    """
    check_classes(model.num_classes)

    def read(params, stream_in, trace, context):
        return to_float32(read_pooled(model, trace.residual, context.class_tokens))

    _, _, logits, blocks = run_blocks(
        model, batch.images, read, edits=None, pass_context=True
    )
    blocks = jnp.moveaxis(blocks, 0, 1)
    rivals = top_k(logits, k=min(top + 1, model.num_classes)).classes
    best = top_k(blocks, k=min(top, model.num_classes))
    log_p = jax.nn.log_softmax(blocks)
    return {
        schema.PREDICTION(): jnp.argmax(logits, -1).astype(jnp.int32),
        schema.RIVALS(): rivals,
        schema.RIVAL_LOGITS(): jnp.take_along_axis(blocks, rivals[:, None], axis=-1),
        schema.TOP_CLASSES(): best.classes,
        schema.TOP_LOGITS(): best.logits,
        schema.ENTROPY(): -(jnp.exp(log_p) * log_p).sum(-1),
        schema.ENERGY(): jax.nn.logsumexp(blocks, axis=-1),
    }


@dataclasses.dataclass(frozen=True)
class ErrorsOptions:
    """Options of `errors`.

    Args:
        top: how many rivals of the answer, and best classes of a block, to keep.
    """

    top: int = 5

    def __post_init__(self):
        check_range("top", self.top, 1)


ERRORS = Recipe(
    name="errors",
    step=errors,
    **schema.rows(
        *schema.between(schema.TOP_CLASSES, schema.PREDICTION),
        *schema.between(schema.RIVALS, schema.ENERGY),
    ),
    options=ErrorsOptions(),
    previews=0,
)
