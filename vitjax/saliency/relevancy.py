"""Relevancy: where more attention would help a class (Vilas et al. 2023, section 7)."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitjax.analysis.class_space import Labels, project, take_label
from vitjax.models.forward import scan_blocks
from vitjax.models.model import Model
from vitjax.models.partial_block import attention_update, block_output, cache_mlp
from vitjax.models.vit import mix, pool_weights
from vitjax.saliency.attention import raw_attention
from vitjax.types import ArrayLike, Edits

Of = Literal["residual", "attention_update"]
Loss = Literal[
    "cross_entropy", "softmax_cross_entropy_of_probability", "negative_logit"
]


def cross_entropy(logits, target):
    """-log softmax(z)_c."""
    return -take_label(jax.nn.log_softmax(logits), target)


def double_cross_entropy(logits, target):
    """-log softmax(softmax(z))_c, as the published code has it."""
    return cross_entropy(jax.nn.softmax(logits), target)


def negative_logit(logits, target):
    """-z_c."""
    return -take_label(logits, target)


LOSSES: dict[str, Callable[..., Any]] = {
    "cross_entropy": cross_entropy,
    "softmax_cross_entropy_of_probability": double_cross_entropy,
    "negative_logit": negative_logit,
}


def relevancy(
    model: Model,
    images: Float[ArrayLike, "batch height width channel"],
    target: Labels,
    *,
    of: Of = "residual",
    loss: Loss = "cross_entropy",
    query: Literal["all"] | None = None,
    edits: Edits | None = None,
) -> Float[Array, "layer batch head *query_and_token"]:
    """Where more attention would help a class, block by block and head by head.

    R = -d loss(project(x_q), c) / d A[head, q, :], where x_q is token q's state after
    the block (or what attention adds to it) as a function of its own attention row A;
    values and the stream entering the block are held fixed (Vilas et al. 2023, section
    7). No pass backward through the network is needed.

    Args:
        model: the model.
        images: preprocessed pixels.
        target: class number of each image, or one for all.
        of: "residual", the paper's state after the block, or "attention_update", what
            the published code projects. Static.
        loss: "cross_entropy" (the paper), "softmax_cross_entropy_of_probability" (the
            published code, which applies softmax twice) or "negative_logit". Static.
        query: None, the row of [CLS]; without [CLS] the loss of the pooled state, its
            gradient summed over the rows of image tokens. "all": every token's own
            loss, with respect to its own row. Static.
        edits: interventions.

    Returns:
        [layer batch head token]; with query="all" [layer batch head query token].
        Positive where more attention would help the class; signed, not normalised.

    Raises:
        ValueError: an unknown option.
    """
    check(of, loss, query)
    config, edits = model.config, Edits() if edits is None else edits
    target = jnp.broadcast_to(jnp.asarray(target), (images.shape[0],))

    def total(params, mixed, stream_in, known, label, part=None):
        """The loss at some rows, [batch row], or of their weighted sum, summed."""
        if of == "residual":
            state = block_output(config, params, mixed, stream_in, known)
        else:
            state = attention_update(config, params, mixed)
        if part is not None:
            state = (state * part[:, :, None]).sum(1, keepdims=True)
        logits = project(model.class_space, state)
        return LOSSES[loss](logits, label[:, None]).sum()

    def read(params, stream_in, trace):
        weights, values = trace.attention_weights, trace.values
        if query == "all" or config.class_token:
            rows = slice(0, None if query == "all" else 1)
            found = gradient_of_rows(
                *(total, params, weights[:, :, rows], values, stream_in[:, rows]),
                *(cache_mlp(config, trace, rows), target),
            )
            return found if query == "all" else found[:, :, 0]
        patches = slice(config.prefix, None)
        part = pool_weights(stream_in, edits, config)[:, patches]
        return gradient_of_pool(
            *(total, params, trace.mixed_values[:, patches], values),
            *(stream_in[:, patches], cache_mlp(config, trace, patches), target, part),
        )

    _, gradients = scan_blocks(model, images, read, edits=edits)
    return -gradients


def check(of: str, loss: str, query: str | None) -> None:
    """Refuse options that do not exist."""
    if loss not in LOSSES or of not in ("residual", "attention_update"):
        raise ValueError(
            f"of={of!r} is one of residual, attention_update; loss={loss!r} one of "
            f"{', '.join(LOSSES)}."
        )
    if query not in (None, "all"):
        raise ValueError(f"query={query!r} is None or 'all'.")


def gradient_of_rows(total, params, weights, values, stream_in, known, target):
    """d loss / d A of some rows, [batch head row token]."""

    def of_weights(weights):
        mixed = mix(weights, values)
        return total(params, mixed, stream_in, known, target)

    return jax.grad(of_weights)(weights)


def gradient_of_pool(
    total, params, mixed, values, stream_in, known, target: Int[Array, " batch"], part
):
    """d loss / d A summed over rows, [batch head token]: one step for all of them."""
    batch, length, heads, _ = values.shape

    def of_step(step):
        moved = jnp.einsum("bht,bthk->bhk", step, values)
        return total(params, mixed + moved[:, None], stream_in, known, target, part)

    return jax.grad(of_step)(jnp.zeros((batch, heads, length), values.dtype))


def helpful_minus_attended(
    model: Model,
    images: Float[ArrayLike, "batch height width channel"],
    target: Labels,
    *,
    of: Of = "residual",
    loss: Loss = "cross_entropy",
    edits: Edits | None = None,
) -> Float[Array, "layer batch head patch"]:
    """What a model neglects: where attention would help, minus where it is.

    relu(R) / sum relu(R) - A / sum A over the patches of each block and head, R the
    relevancy and A the attention weights of the answer's row (Vilas et al. 2023,
    section 7, compare the two; the scale is ours, since their units differ).

    Args:
        model: the model.
        images: preprocessed pixels.
        target: class number of each image, or one for all.
        of: of `relevancy`. Static.
        loss: of `relevancy`. Static.
        edits: interventions.

    Returns:
        In [-1, 1]; each map sums to 0. Positive where more attention would help,
        negative where attention goes without helping. A head in which no patch would
        help is minus its attention.
    """
    prefix = model.config.prefix
    helpful = relevancy(model, images, target, of=of, loss=loss, edits=edits)
    attended = raw_attention(model, images, edits=edits)
    return shares(jax.nn.relu(helpful[..., prefix:])) - shares(attended)


def shares(values: Float[Array, "*any patch"]) -> Float[Array, "*any patch"]:
    """Each as its part of the sum; 0 where the sum is."""
    total = values.sum(-1, keepdims=True)
    return jnp.where(total > 0, values / jnp.where(total > 0, total, 1), 0)
