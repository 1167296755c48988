"""One pass backward through the blocks that keeps only their inputs.

Each block is computed anew while its gradients are taken, so that memory holds one
stream per block and one block's own intermediates, not every block's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax.models.edits import split_edits
from vitjax.models.forward import ATTENTION, apply_block, run_blocks
from vitjax.models.model import Model
from vitjax.types import ArrayLike, Edits


class Gradients(NamedTuple):
    """What one block hands over on the way back.

    Args:
        stream_in: the stream entering the block, [batch token dim].
        weights: attention weights after softmax and edits, [batch head query token].
        weights_gradient: of the scalar with respect to them.
        stream_gradient: of the scalar with respect to `stream_in`.
    """

    stream_in: Array
    weights: Array
    weights_gradient: Array
    stream_gradient: Array


def scan_backward(
    model: Model,
    images: Float[ArrayLike, "batch height width channel"],
    scalar_fn: Callable[[Float[Array, "batch class"]], Float[Array, ""]],
    read: Callable[[Any, Gradients], tuple[Any, Any]],
    *,
    state: Any,
    edits: Edits | None = None,
) -> tuple[Any, Any]:
    """Gradients of a scalar of the logits, from the last block to the first.

    Args:
        model: the model.
        images: preprocessed pixels.
        scalar_fn: class logits [batch class] to a scalar.
        read: `read(state, gradients) -> (state, pytree)`, called once a block.
        state: what `read` is handed at the last block.
        edits: interventions.

    Returns:
        The state after block 0, and what `read` returned, stacked [layer ...].
    """
    edits = Edits() if edits is None else edits
    streams = forward_streams(model, images, edits)
    return scan_back_from(model, streams, scalar_fn, read, state=state, edits=edits)


def forward_streams(model: Model, images, edits: Edits):
    """(stream entering block 0, last stream, what enters every block)."""
    embedding, last, _, streams = run_blocks(
        model, images, stream_entering, edits=edits
    )
    return embedding, last, streams


def scan_back_from(model: Model, streams, scalar_fn, read, *, state, edits: Edits):
    """The way back of `scan_backward`, from (embedding, last stream, all inputs)."""
    embedding, last, entering = streams
    shared, layered = split_edits(edits, model.config)
    length, heads = embedding.shape[1], model.config.heads
    zeros = jnp.zeros((embedding.shape[0], heads, length, length), embedding.dtype)

    def of_readout(x):
        return scalar_fn(model.apply(x, edits, method="readout"))

    def step(carry, per_block):
        cotangent, state = carry
        params, links, stream_in = per_block

        def block(x, zeros):
            entry = {ATTENTION: {"attention_weights": {"value": zeros}}}
            x, trace = apply_block(
                *(model, params, x, (shared, links)),
                fields=("attention_weights",),
                perturbations=entry,
            )
            return x, jnp.asarray(trace.attention_weights)

        _, pull, weights = jax.vjp(block, stream_in, zeros, has_aux=True)
        stream_gradient, weights_gradient = pull(cotangent)
        found = Gradients(stream_in, weights, weights_gradient, stream_gradient)
        state, out = read(state, found)
        return (stream_gradient, state), out

    start = (jax.grad(of_readout)(last), state)
    per_block = (model.block_params, layered, entering)
    (_, state), reads = jax.lax.scan(step, start, per_block, reverse=True)
    return state, reads


def stream_entering(params, stream_in, trace):
    """A `read` for the pass forward: every block's input."""
    return stream_in
