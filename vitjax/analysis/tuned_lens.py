"""Tuned lens: the state after each block, translated to what the last block would hold.

    lens_b(h) = h + A_b.h + b_b

A and b are fitted for every block b by itself, so that the class logits of translated
states are those of the model: the loss is KL(p || q_b), p the softmax of the model's
logits and q_b that of the translated state's, averaged over images. With A = b = 0 the
lens is the plain projection. Reference: Belrose et al. 2023, "Eliciting Latent
Predictions from Transformers with the Tuned Lens", there of language models.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vitjax.analysis.class_space import project_tokens
from vitjax.checks import checked
from vitjax.types import ArrayLike, Config, Edits, along_last, pytree, to_float32


@pytree
class TunedLens:
    """An affine translation of states for every block; see `vitjax.apply_lens`.

    Args:
        weights: A, which multiplies a state from the left.
        bias: b.
    """

    weights: Float[ArrayLike, "layer dim dim"]
    bias: Float[ArrayLike, "layer dim"]


@checked
def apply_lens(
    lens: TunedLens, states: Float[ArrayLike, "layer *any dim"]
) -> Float[Array, "layer *any dim"]:
    """Translate the states after every block to what the last one would hold.

    h + A.h + b of each block. `vitjax.project` then reads classes from them, as from
    any state.

    Args:
        lens: that of `vitjax.fit_tuned_lens`.
        states: residual streams after all blocks, first block first.

    Returns:
        The translated states, in float32 at least.

    Raises:
        ValueError: the states are not of as many blocks, or of another width.

    Example:
        >>> _, trace = vitjax.forward(model, images, capture=("residual",))
        >>> states = vitjax.apply_lens(lens, trace.residual)
        >>> logits = vitjax.project_tokens(model, states)  # [layer batch token class]
    """
    depth, dim = lens.bias.shape
    if (states.shape[0], states.shape[-1]) != (depth, dim):
        raise ValueError(
            f"States of shape {states.shape} do not fit a lens of {depth} blocks of "
            f"width {dim}: expected [{depth} ... {dim}]."
        )
    return jax.vmap(translate)(lens, jnp.asarray(states))


def translate(
    lens: TunedLens, states: Float[Array, "*any dim"]
) -> Float[Array, "*any dim"]:
    """h + A.h + b of one block, whose lens has no layer axis."""
    x = to_float32(states)
    weights = jnp.asarray(lens.weights, x.dtype)
    moved = jnp.einsum("...d,ed->...e", x, weights, precision="highest")
    return x + moved + along_last(lens.bias, x)


def identity_lens(config: Config) -> TunedLens:
    """A = b = 0."""
    shape = config.depth, config.dim
    weights = jnp.zeros((*shape, config.dim), jnp.float32)
    return TunedLens(weights=weights, bias=jnp.zeros(shape, jnp.float32))


class Examples(NamedTuple):
    """What a lens reads of some images; `valid` is False for those that are not there.

    `class_tokens` are those of `unembed`, where the head reads several blocks; `logits`
    are the model's.
    """

    states: Float[ArrayLike, "batch layer token dim"]
    class_tokens: Float[ArrayLike, "batch layer block dim"] | None
    logits: Float[ArrayLike, "batch class"]
    valid: Bool[ArrayLike, " batch"]


def read_blocks(lens: TunedLens, model: Any, examples: Examples, read: Any) -> Any:
    """`read(model, states, class_tokens)` of every block's translated states."""

    def of_block(block):
        lens, states, tokens = block
        return read(model, translate(lens, states), tokens)

    states = jnp.moveaxis(jnp.asarray(examples.states), 1, 0)
    tokens = examples.class_tokens
    if tokens is not None:
        tokens = jnp.moveaxis(jnp.asarray(tokens), 0, 2)
    # What only the derivative needs is computed again: logits of every token are large.
    lens = jax.tree.map(jnp.asarray, lens)
    return jax.lax.map(jax.checkpoint(of_block), (lens, states, tokens))


def read_pooled(model: Any, states, class_tokens) -> Float[Array, "batch class"]:
    """Class logits of what the head reads."""
    return model.apply(states, Edits(), class_tokens, method="unembed")


def divergence(
    logits: Float[Array, "*#any class"], lens_logits: Float[Array, "*any class"]
) -> Float[Array, "*any"]:
    """KL(p || q) of the softmax of both, at least 0, in nats."""
    p, q = (jax.nn.log_softmax(to_float32(x)) for x in (logits, lens_logits))
    return jnp.maximum((jnp.exp(p) * (p - q)).sum(-1), 0)


def lens_losses(
    lens: Any, model: Any, examples: Examples, tokens: str
) -> Float[Array, " layer"]:
    """The mean over images of the KL of every block; of "all" tokens also over them."""
    logits = jnp.asarray(examples.logits)
    valid = jnp.asarray(examples.valid, logits.dtype)

    def read(model, states, class_tokens):
        if tokens == "all":
            losses = divergence(logits[:, None], project_tokens(model, states)).mean(1)
        else:
            losses = divergence(logits, read_pooled(model, states, class_tokens))
        return (losses * valid).sum() / jnp.maximum(valid.sum(), 1)

    return read_blocks(lens, model, examples, read)


@functools.partial(jax.jit, static_argnames="tokens")
def fit_step(
    lens: Any, moments: Any, model: Any, examples: Examples, rate, *, tokens: str
) -> tuple[Any, Any]:
    """One step of Adam on the sum of the blocks' losses: they do not see each other."""
    import optax

    update = optax.adam(rate)
    loss = lambda lens: lens_losses(lens, model, examples, tokens).sum()  # noqa: E731
    gradient = jax.grad(loss)(lens)
    with jax.numpy_dtype_promotion("standard"):  # optax counts steps in int32
        changes, moments = update.update(gradient, moments, lens)
        return optax.apply_updates(lens, changes), moments
