"""A backward pass through the blocks that keeps only their inputs.

Each block is computed anew while its gradients are taken, so that memory holds one
residual stream per block and one block's own intermediates.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax.models.backward_rules import Rules
from vitjax.models.edits import patch_mask, split_edits
from vitjax.models.forward import apply_block, class_tokens, run_blocks
from vitjax.models.heads import mean_weights
from vitjax.models.model import Model
from vitjax.types import Config, Edits, Trace, along_last, unit


class Gradients(NamedTuple):
    """Gradients of a scalar at one block.

    `stream_in` is the residual stream entering the block, [batch token dim], and
    `stream_gradient` the gradient there; `cotangent` is the one after the block.
    `fields` holds those with respect to fields of the block's `trace`, after edits.
    """

    stream_in: Array
    trace: Trace
    stream_gradient: Array
    cotangent: Array
    fields: dict[str, Array]

    @property
    def weights(self) -> Any:
        """Attention weights after softmax and edits, [batch head query token]."""
        return self.trace.attention_weights

    @property
    def weights_gradient(self) -> Array:
        """The gradient with respect to attention weights."""
        return self.fields["attention_weights"]


def block_inputs(model: Model, images, edits: Edits):
    """The final residual stream, and what enters every block."""
    read = lambda params, stream_in, trace: stream_in  # noqa: E731
    _, x, _, inputs = run_blocks(model, images, read, edits=edits)
    return x, inputs


def scan_reverse(
    model: Model,
    x: Float[Array, "batch token dim"],
    inputs: Float[Array, "layer batch token dim"],
    scalar_fn: Callable[[Float[Array, "batch class"]], Float[Array, ""]],
    read: Callable[..., tuple[Any, Any]],
    *,
    state: Callable[[Array, Array], Any],
    edits: Edits,
    presence: Float[Array, "batch token"] | None = None,
    rules: Sequence[Rules] = (Rules(),),
    fields: Sequence[str] = ("attention_weights",),
    blocks: int | None = None,
) -> tuple[Any, Any]:
    """Gradients of a scalar of the class logits, from the last block to the first, by
    what left the last block and what entered each (`block_inputs`).

    `read(state, *gradients) -> (state, pytree)` is called once a block, with one
    `Gradients` for each of the `rules`, which have backward passes of their own. The
    state at the last block is `state(x, gradient)` of the final residual stream and the
    gradient with respect to log `presence` in pooling, if that is given. `fields` are
    those of `Trace` whose gradients are taken, `blocks` how many of the last ones are
    passed; None for all. Returns the state after the first of them, and the pytrees,
    stacked [layer ...].
    """
    shared, layered = split_edits(edits, model.config)
    tokens = class_tokens(model.config, inputs, x)

    def scalar(x, tokens, presence):
        return scalar_fn(model.apply(x, edits, tokens, presence, method="unembed"))

    of_x, of_tokens, of_presence = jax.grad(scalar, (0, 1, 2))(x, tokens, presence)
    if presence is not None:
        of_presence = of_presence * presence

    def at_last_block(each):
        if each == Rules():
            return of_x
        return jax.grad(lambda x: scalar_fn(unembed(model, x, edits, each)))(x)

    def step(carry, per_block):
        cotangents, state = carry
        params, masks, stream_in, of_class_token = per_block
        if of_class_token is not None:
            cotangents = tuple(each.at[:, 0].add(of_class_token) for each in cotangents)

        def pull_back(cotangent, rules):
            def block(x, offsets=None):
                return apply_block(
                    model, params, x, (shared, masks), offsets=offsets, rules=rules
                )

            shapes = jax.eval_shape(lambda: block(stream_in)[1])
            zeros = {name: jnp.zeros_like(getattr(shapes, name)) for name in fields}
            _, pull, trace = jax.vjp(block, stream_in, zeros, has_aux=True)
            gradient, of_fields = pull(cotangent)
            return Gradients(stream_in, trace, gradient, cotangent, of_fields)

        gradients = tuple(map(pull_back, cotangents, rules))
        state, out = read(state, *gradients)
        return (tuple(each.stream_gradient for each in gradients), state), out

    per_block = (model.block_params, layered, inputs, of_tokens)
    if blocks is not None:
        per_block = jax.tree.map(lambda leaf: leaf[-blocks:], per_block)
    start = tuple(map(at_last_block, rules)), state(x, of_presence)
    (_, state), reads = jax.lax.scan(step, start, per_block, reverse=True)
    return state, reads


def unembed(model: Model, x: Any, edits: Edits, rules: Rules) -> Any:
    """Class logits of the final residual stream, by the rules."""
    config: Config = model.config
    space: Any = model.class_space

    def normalize(x):
        norm = space.norm_scale, space.norm_shift
        return rules.norm(x, *norm, epsilon=space.epsilon)

    x = normalize(x) if config.normalizes_first else x
    patches = slice(config.prefix, None)
    if config.pooling == "cls":
        state = x[:, 0]
    else:
        weights = mean_weights(x[:, patches], patch_mask(edits))
        state = rules.mean(x[:, patches], weights[:, :, None])
    if config.pooling == "cls_mean":  # one layer that reads both, side by side
        state = jnp.concatenate([x[:, 0], state], axis=-1)
        parts = jnp.asarray(space.embedding), jnp.asarray(space.patch_embedding)
        return rules.head(state, jnp.concatenate(parts, axis=1).T, space.bias)
    state = state if config.normalizes_first else normalize(state)
    if space.temperature is None:
        return rules.head(state, space.embedding.T, space.bias)
    f: Any = state
    if space.projection is not None:
        f = rules.head(state, space.projection, None)
    cosine = unit(f) * along_last(space.temperature, f)
    return rules.head(rules.length(f, cosine), space.class_embedding.T, space.bias)
