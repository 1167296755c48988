"""Class identifiability: the rank of the true class at every token of every block."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitjax.analysis import fused_projection
from vitjax.analysis.class_space import rank, take_label, top_k
from vitjax.models.forward import (
    BlockContext,
    block_counter,
    refine_block,
    run_blocks,
)
from vitjax.models.heads import pool
from vitjax.models.model import Model
from vitjax.recipes import schema
from vitjax.recipes.recipe import Recipe, microbatched
from vitjax.types import Batch, Edits, Trace


@microbatched
def identifiability(
    model: Model, batch: Batch, *, top: int = 5, edits: Edits | None = None
) -> dict[str, jax.Array]:
    """Rank the true class in every token's class logits, block by block.

    Class logits are those of `project_tokens(model, state)`; the residual stream's are
    carried through the blocks, see `analysis.fused_projection`. `edits` hold for
    all images alike: their batch axis is 1. An edited residual stream is no sum of
    updates and is projected anew.
    """
    space = fused_projection.fold(model.class_space, model.config.prefix)
    label = jnp.maximum(batch.label, 0)
    is_sum = "residual" not in ((edits and edits.taps) or {})

    def read(state, params, stream_in, trace, context):
        products, rows = read_block(
            model, space, state, trace, label, context, top=top, is_sum=is_sum
        )
        return (products["residual"], state[1] + 1), rows

    embed = functools.partial(first_state, space)
    _, _, logits, reads = run_blocks(
        model, batch.images, read, state=embed, edits=edits, pass_context=True
    )
    prediction = jnp.argmax(logits, -1).astype(jnp.int32)
    return images_first(reads) | {"prediction": prediction}


State = tuple[Float[Array, "batch token class"], Int[Array, ""]]
"""The product of the stream entering a block, and the block's number."""


def first_state(
    space: fused_projection.FoldedClassSpace, embedding: Float[Array, "batch token dim"]
) -> State:
    """The state of a scan that calls `read_block`."""
    return fused_projection.product(space, embedding), block_counter(embedding)


def read_block(
    model: Model,
    space: fused_projection.FoldedClassSpace,
    state: State,
    trace: Trace,
    label: Int[Array, " batch"],
    context: BlockContext,
    *,
    top: int,
    is_sum: bool = True,
) -> tuple[dict[str, Float[Array, "batch token class"]], dict[str, Array]]:
    """Products of a block's streams by name, and rows, for two matrix products."""
    (before, index), rows = state, {}
    stream = jnp.asarray(trace.residual)
    attention, mlp = (
        fused_projection.product(space, jnp.asarray(update))
        for update in (trace.attention_update, trace.mlp_update)
    )
    after = before + attention + mlp
    if not is_sum:
        after = fused_projection.product(space, stream)
    products = {"residual": after, "attention_update": attention, "mlp_update": mlp}
    for name, product in products.items():
        rows[schema.RANK(name)], rows[schema.LOGIT(name)] = (
            fused_projection.rank_and_logit(space, product, getattr(trace, name), label)
        )
    # The best classes of what the head would read after this block.
    if model.config.normalizes_first:
        tokens = context.class_tokens
        answer = model.apply(stream, Edits(), tokens, method="unembed")
    else:
        pooled = [pool(states, Edits(), model.config) for states in (after, stream)]
        answer = fused_projection.logits(space, *pooled)
    best = top_k(answer, k=min(top, model.num_classes))
    rows |= {"top_classes": best.classes, "top_logits": best.logits}
    if model.config.refinement:
        logits = refine_block(model, index, stream)
        rows["rank_refined"] = rank(logits, label)
        rows["logit_refined"] = take_label(logits, label)
    return products, rows


def images_first(reads: dict[str, Array]) -> dict[str, Array]:
    """Arrays that a scan stacked over layers, with the image axis first."""
    rows = {name: jnp.moveaxis(values, 0, 1) for name, values in reads.items()}
    for name in {"rank_refined", "logit_refined"} & set(rows):
        rows[name] = rows[name][:, :-1]  # the last block has no module
    return rows


@dataclasses.dataclass(frozen=True)
class IdentifiabilityOptions:
    """Options of `identifiability` and of `tokens`.

    Args:
        top: how many of the best classes to keep.
    """

    top: int = 5


FAMILIES = schema.between(schema.RANK, schema.LOGIT_REFINED)

IDENTIFIABILITY = Recipe(
    name="identifiability",
    step=identifiability,
    **schema.rows(*FAMILIES),
    options=IdentifiabilityOptions(),
)
