"""The recipe `identifiability`: where the true class stands, token by token."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax.analysis import fused_projection
from vitjax.analysis.class_space import rank, take_label, top_k
from vitjax.models.forward import block_counter, refine_block, scan_blocks
from vitjax.models.heads import pool
from vitjax.models.model import Model
from vitjax.recipes.microbatch import microbatched
from vitjax.recipes.recipe import Recipe
from vitjax.types import Batch, Edits, Trace

STREAMS = ("residual", "attention_update", "mlp_update")
TOP = 5


def stream_products(
    space: fused_projection.FoldedClassSpace,
    before: Float[Array, "batch token class"],
    trace: Trace,
) -> dict[str, Float[Array, "batch token class"]]:
    """Products of a block's three streams, for two matrix products.

    Args:
        space: the class space.
        before: product of the stream entering the block.
        trace: of the block.

    Returns:
        Name of the stream to its product.
    """
    updates = {
        n: fused_projection.product(space, getattr(trace, n)) for n in STREAMS[1:]
    }
    return {"residual": before + updates[STREAMS[1]] + updates[STREAMS[2]]} | updates


def readout_rows(
    model: Model,
    space: fused_projection.FoldedClassSpace,
    product: Float[Array, "batch token class"],
    stream: Float[Array, "batch token dim"],
    *,
    top: int,
) -> dict[str, Array]:
    """The best classes of the state that the head would read after a block.

    Args:
        model: the model.
        space: its class space.
        product: of the stream.
        stream: after the block.
        top: how many.

    Returns:
        top_classes and top_logits [image top].
    """
    pooled = [pool(state, Edits(), model.config) for state in (product, stream)]
    best = top_k(fused_projection.logits(space, *pooled), k=min(top, model.num_classes))
    return {"top_classes": best.classes, "top_logits": best.logits}


def refined_rows(model: Model, index, stream, label) -> dict[str, Array]:
    """Rank and logit of the label in a block's refinement module, if it has one."""
    if not model.config.refinement:
        return {}
    logits = refine_block(model, index, stream)
    place, logit = rank(logits, label), take_label(logits, label)
    return {"rank_refined": place, "logit_refined": logit}


def as_rows(reads: dict[str, Array]) -> dict[str, Array]:
    """What the scan stacked over layers, with the image axis first."""
    rows = {name: jnp.moveaxis(values, 0, 1) for name, values in reads.items()}
    for name in set(REFINED) & set(rows):
        rows[name] = rows[name][:, :-1]  # the last block has no module
    return rows


@microbatched
def identifiability(
    model: Model, batch: Batch, *, top: int = TOP
) -> dict[str, jax.Array]:
    """Where the true class stands in every token's class logits, block by block.

    For the stream after each block and for what attention and MLP add to it: the rank
    and the logit of the true class among `project(model.class_space, state)`. The
    stream's class logits are carried through the blocks: see `analysis.readouts`.

    Args:
        model: the model.
        batch: images and labels.
        top: how many classes of the readout state ([CLS] or the pooled tokens) to keep.

    Returns:
        rank_* int [image layer token] and logit_* [image layer token] for each of
        residual, attention_update, mlp_update; top_classes and top_logits
        [image layer top]; prediction [image]. With refinement modules also rank_refined
        and logit_refined [image refined], their answer after every block but the last.
    """
    space = fused_projection.fold(model.class_space)
    label = jnp.maximum(batch.label, 0)

    def embed(embedding):
        return fused_projection.product(space, embedding), block_counter(embedding)

    def read(state, params, stream_in, trace):
        before, index = state
        products, rows = stream_products(space, before, trace), {}
        for name, product in products.items():
            place, logit = fused_projection.rank_and_logit(
                space, product, getattr(trace, name), label
            )
            rows |= {f"rank_{name}": place, f"logit_{name}": logit}
        after, stream = products["residual"], trace.residual
        rows |= readout_rows(model, space, after, stream, top=top)
        rows |= refined_rows(model, index, stream, label)
        return (after, index + 1), rows

    logits, reads = scan_blocks(model, batch.images, read, state=embed)
    prediction = jnp.argmax(logits, -1).astype(jnp.int32)
    return as_rows(reads) | {"prediction": prediction}


PER_TOKEN = {
    f"{kind}_{stream}": ("layer", "token")
    for stream in STREAMS
    for kind in ("rank", "logit")
}

REFINED = {name: ("refined",) for name in ("rank_refined", "logit_refined")}

DIMS = {
    **PER_TOKEN,
    **REFINED,
    "top_classes": ("layer", "top"),
    "top_logits": ("layer", "top"),
    "prediction": (),
}

IDENTIFIABILITY = Recipe(
    name="identifiability",
    step=identifiability,
    dims=DIMS,
    labelled=(*PER_TOKEN, *REFINED),
    options={"top": TOP},
)
