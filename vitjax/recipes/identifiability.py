"""Class identifiability: the rank of the true class at every token of every block."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax.analysis import fused_projection
from vitjax.analysis.class_space import rank, take_label, top_k
from vitjax.models.forward import block_counter, refine_block, scan_blocks
from vitjax.models.heads import pool
from vitjax.models.model import Model
from vitjax.recipes import schema
from vitjax.recipes.microbatch import microbatched
from vitjax.recipes.recipe import Recipe
from vitjax.types import Batch, Edits, Trace


@microbatched
def identifiability(
    model: Model, batch: Batch, *, top: int = 5
) -> dict[str, jax.Array]:
    """Rank the true class in every token's class logits, block by block.

    Class logits are those of `project(model.class_space, state)`; the residual stream's
    are carried through the blocks, see `analysis.fused_projection`.
    """
    space = fused_projection.fold(model.class_space)
    label = jnp.maximum(batch.label, 0)

    def embed(embedding):
        return fused_projection.product(space, embedding), block_counter(embedding)

    def read(state, params, stream_in, trace):
        before, index = state
        products, rows = stream_products(space, before, trace), {}
        for name, product in products.items():
            rows[schema.RANK(name)], rows[schema.LOGIT(name)] = (
                fused_projection.rank_and_logit(
                    space, product, getattr(trace, name), label
                )
            )
        after, stream = products["residual"], trace.residual
        rows |= top_class_rows(model, space, after, stream, top=top)
        rows |= refined_rows(model, index, stream, label)
        return (after, index + 1), rows

    logits, reads = scan_blocks(model, batch.images, read, state=embed)
    prediction = jnp.argmax(logits, -1).astype(jnp.int32)
    return images_first(reads) | {"prediction": prediction}


def stream_products(
    space: fused_projection.FoldedClassSpace,
    before: Float[Array, "batch token class"],
    trace: Trace,
) -> dict[str, Float[Array, "batch token class"]]:
    """Products of a block's streams by name, for two matrix products.

    `before` is the product of the stream entering the block.
    """
    attention, mlp = (
        fused_projection.product(space, jnp.asarray(update))
        for update in (trace.attention_update, trace.mlp_update)
    )
    return {
        "residual": before + attention + mlp,
        "attention_update": attention,
        "mlp_update": mlp,
    }


def top_class_rows(
    model: Model,
    space: fused_projection.FoldedClassSpace,
    product: Float[Array, "batch token class"],
    stream: Float[Array, "batch token dim"],
    *,
    top: int,
) -> dict[str, Array]:
    """The best classes of the pooled token that the head would read after a block."""
    pooled = [pool(state, Edits(), model.config) for state in (product, stream)]
    best = top_k(fused_projection.logits(space, *pooled), k=min(top, model.num_classes))
    return {"top_classes": best.classes, "top_logits": best.logits}


def refined_rows(model: Model, index, stream, label) -> dict[str, Array]:
    """Rank and logit of the label in a block's refinement module, if it has one."""
    if not model.config.refinement:
        return {}
    logits = refine_block(model, index, stream)
    return {
        "rank_refined": rank(logits, label),
        "logit_refined": take_label(logits, label),
    }


def images_first(reads: dict[str, Array]) -> dict[str, Array]:
    """Arrays that a scan stacked over layers, with the image axis first."""
    rows = {name: jnp.moveaxis(values, 0, 1) for name, values in reads.items()}
    for name in set(REFINED) & set(rows):
        rows[name] = rows[name][:, :-1]  # the last block has no module
    return rows


@dataclasses.dataclass(frozen=True)
class IdentifiabilityOptions:
    """Options of `identifiability` and of `tokens`.

    Args:
        top: how many of the best classes to keep.
    """

    top: int = 5


REFINED = schema.dims(schema.RANK_REFINED, schema.LOGIT_REFINED)

DIMS = REFINED | schema.dims(
    schema.RANK,
    schema.LOGIT,
    schema.TOP_CLASSES,
    schema.TOP_LOGITS,
    schema.PREDICTION,
)

IDENTIFIABILITY = Recipe(
    name="identifiability",
    step=identifiability,
    dims=DIMS,
    needs_label=schema.needs_label(DIMS),
    options=IdentifiabilityOptions(),
)
