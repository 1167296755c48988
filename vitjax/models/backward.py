"""A backward pass through the blocks that keeps only their inputs.

Each block is computed anew while its gradients are taken, so that memory holds one
residual stream per block and one block's own intermediates.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax.models.backward_rules import Rules
from vitjax.models.edits import split_edits
from vitjax.models.forward import apply_block, class_tokens, run_blocks
from vitjax.models.model import Model
from vitjax.types import ArrayLike, Edits


class Gradients(NamedTuple):
    """Gradients of a scalar at one block, with respect to two of its arrays.

    `stream_in` is the residual stream entering the block, [batch token dim], `weights`
    the attention weights after softmax and edits, [batch head query token].
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
    state: Callable[[Array, Array], Any],
    edits: Edits | None = None,
    presence: Float[Array, "batch token"] | None = None,
) -> tuple[Any, Any]:
    """Gradients of a scalar of the class logits, from the last block to the first.

    `read(state, gradients) -> (state, pytree)` is called once a block; the state at the
    last block is `state(x, gradient)` of the final residual stream and the gradient
    with respect to `presence` in pooling, if that is given. Returns the state after
    block 0, and the pytrees, stacked [layer ...].
    """
    edits = edits or Edits()
    x, inputs = block_inputs(model, images, edits)
    tokens = class_tokens(model.config, inputs, x)

    def scalar(x, tokens, presence):
        return scalar_fn(model.apply(x, edits, tokens, presence, method="unembed"))

    gradients = jax.grad(scalar, argnums=(0, 1, 2))(x, tokens, presence)
    return scan_reverse(
        model,
        inputs,
        gradients[:1],
        read,
        state=state(x, gradients[2]),
        edits=edits,
        token_cotangents=gradients[1],
    )


def block_inputs(model: Model, images, edits: Edits):
    """The final residual stream, and what enters every block."""
    read = lambda params, stream_in, trace: stream_in  # noqa: E731
    _, x, _, inputs = run_blocks(model, images, read, edits=edits)
    return x, inputs


def scan_reverse(
    model: Model,
    inputs,
    cotangents,
    read,
    *,
    state,
    edits: Edits,
    rules=(Rules(),),
    token_cotangents=None,
) -> tuple[Any, Any]:
    """The loop over blocks, backward, from their inputs [layer batch token dim].

    Of each of the `rules` there is a cotangent at the last block, and one `Gradients`
    among the arguments of `read(state, *gradients)`. `token_cotangents`, [layer batch
    dim], are added at [CLS] after each block.
    """
    shared, layered = split_edits(edits, model.config)
    _, batch, length, _ = inputs.shape
    zeros = jnp.zeros((batch, model.config.heads, length, length), inputs.dtype)

    def step(carry, per_block):
        cotangents, state = carry
        params, masks, stream_in, of_class_token = per_block
        if of_class_token is not None:
            cotangents = tuple(each.at[:, 0].add(of_class_token) for each in cotangents)

        def pull_back(cotangent, rules):
            def block(x, offset):
                offsets = {"attention_weights": offset}
                x, trace = apply_block(
                    model, params, x, (shared, masks), offsets=offsets, rules=rules
                )
                return x, jnp.asarray(trace.attention_weights)

            _, pull, weights = jax.vjp(block, stream_in, zeros, has_aux=True)
            stream_gradient, weights_gradient = pull(cotangent)
            return Gradients(stream_in, weights, weights_gradient, stream_gradient)

        gradients = tuple(map(pull_back, cotangents, rules))
        state, out = read(state, *gradients)
        return (tuple(each.stream_gradient for each in gradients), state), out

    blocks = (model.block_params, layered, inputs, token_cotangents)
    (_, state), reads = jax.lax.scan(step, (cotangents, state), blocks, reverse=True)
    return state, reads
