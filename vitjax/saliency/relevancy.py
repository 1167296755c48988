"""Relevancy: where more attention would help a class (Vilas et al. 2023, section 7)."""

import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax import messages
from vitjax.analysis.class_space import (
    Labels,
    broadcast_labels,
    nan_without_class,
    project_tokens,
    take_label,
)
from vitjax.models.edits import token_mask
from vitjax.models.forward import after_attention, run_blocks
from vitjax.models.heads import pooled_rows
from vitjax.models.layers import mix
from vitjax.models.model import Model
from vitjax.saliency.attention import raw_attention
from vitjax.saliency.passes import Reader, Reads, Target, read_maps
from vitjax.types import ArrayLike, Edits

Of = Literal["residual", "attention_update"]
Loss = Literal[
    "cross_entropy", "softmax_cross_entropy_of_probability", "negative_logit"
]


def loss_of_logits(logits, target, loss: Loss):
    """-log softmax(z)_c; the same of softmax(z), as the published code; or -z_c."""
    if loss == "negative_logit":
        return -take_label(logits, target)
    if loss == "softmax_cross_entropy_of_probability":
        logits = jax.nn.softmax(logits)
    return -take_label(jax.nn.log_softmax(logits), target)


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
    values and the residual stream entering the block are held fixed (Vilas et al. 2023,
    section 7). No backward pass through the network is needed.

    Args:
        model, images: the model, and preprocessed pixels.
        target: class number of each image, or one for all.
        of: "residual", the paper's state after the block, or "attention_update", what
            the published code projects. Static.
        loss: "cross_entropy" (the paper), "softmax_cross_entropy_of_probability" (the
            published code, which applies softmax twice) or "negative_logit". Static.
        query: None, the row of [CLS]; where the head reads other tokens, the loss of
            what it reads from this block, its gradient summed over these tokens' rows.
            "all": every token's own loss, with respect to its own row. Static.
        edits: interventions.

    Returns:
        [layer batch head token]; with query="all" [layer batch head query token].
        Positive where more attention would help the class; signed, not normalized; 0 at
        tokens that the edits removed.

    Raises:
        ValueError: an unknown option, images or a target that do not fit.

    Example:
        >>> helpful = vitjax.relevancy(model, images, label)  # [layer batch head token]
    """
    messages.check_one_of("query", query, (None, "all"))
    edits = edits or Edits()
    target = broadcast_labels(target, images.shape[:1])
    reader = block_relevancy(model, target, edits, of=of, loss=loss, query=query)
    _, x, _, reads = run_blocks(
        model, images, reader.forward, edits=edits, pass_context=True
    )
    relevancy = reader.finish(Reads(x, reads, None, None))
    return nan_without_class(relevancy, target, model.num_classes, axis=1)


def block_relevancy(
    model: Model,
    target: Target,
    edits: Edits,
    *,
    of: Of = "residual",
    loss: Loss = "cross_entropy",
    query: Literal["all"] | None = None,
) -> Reader:
    """What `relevancy` reads, [layer batch head *query token]."""
    messages.check_one_of("of", of, get_args(Of))
    messages.check_one_of("loss", loss, get_args(Loss))
    config = model.config
    every_row = query == "all"
    rows = slice(None) if every_row else pooled_rows(config)

    def loss_of_rows(mixed, *block):
        """The sum of the losses of each row, or the loss of what the head reads."""
        states, at_rows = after_attention(model, mixed, *block, rows=rows)
        states: Any = states if of == "residual" else at_rows.attention_update
        if every_row:
            logits = project_tokens(model, states)
        elif config.pooling == "cls":
            logits = model.class_space.logits(states)
        else:
            states = jnp.pad(states, ((0, 0), (rows.start, 0), (0, 0)))
            tokens = block[-1].class_tokens
            logits = model.apply(states, edits, tokens, method="unembed")[:, None]
        return loss_of_logits(logits, target[:, None], loss).sum()

    def forward(*block):
        weights, values = block[2].attention_weights, block[2].values
        if every_row:
            of_weights = lambda w: loss_of_rows(mix(w, values), *block)  # noqa: E731
            return jax.grad(of_weights)(weights)
        # The gradient summed over rows is that of one step that all rows take.
        mixed = mix(weights, values)[:, rows]

        def of_step(step):
            moved = jnp.einsum("bht,bthk->bhk", step, values)[:, None]
            return loss_of_rows(mixed + moved, *block)

        batch, length, heads, _ = values.shape
        return jax.grad(of_step)(jnp.zeros((batch, heads, length), values.dtype))

    def finish(reads):
        gradients = reads.forward
        if (exists := token_mask(edits, config)) is not None:
            exists = exists[None, :, None]  # layer batch head token
            if every_row:
                exists = exists[..., None] & exists[..., None, :]
            gradients = jnp.where(exists, gradients, 0)
        return -gradients

    return Reader(finish, forward)


def helpful_minus_attended(
    model: Model,
    images: Float[ArrayLike, "batch height width channel"],
    target: Labels,
    *,
    of: Of = "residual",
    loss: Loss = "cross_entropy",
    edits: Edits | None = None,
) -> Float[Array, "layer batch head patch"]:
    """Where attention would help, minus where it is: what a model neglects.

    relu(R) / sum relu(R) - A / sum A over the patches of each block and head, R the
    relevancy and A the attention weights of the head's row (Vilas et al. 2023, section
    7, compare the two; the scale is new here, since their units differ).

    Args:
        model, images: the model, and preprocessed pixels.
        target: class number of each image, or one for all.
        of, loss: of `relevancy`. Static.
        edits: interventions.

    Returns:
        In [-1, 1]. Positive where more attention would help, negative where attention
        goes without helping. Each map sums to 0; where no patch of a head would help,
        it is minus the attention and sums to -1.

    Example:
        >>> neglected = vitjax.helpful_minus_attended(model, images, label)
        >>> neglected.max((1, 3))  # the most neglected patch of each block and head
    """
    target = broadcast_labels(target, images.shape[:1])
    relevancy = functools.partial(block_relevancy, of=of, loss=loss)
    methods = {"helpful": relevancy, "attended": raw_attention}
    maps = read_maps(model, images, target, edits or Edits(), methods)
    maps = shares(jax.nn.relu(maps["helpful"])) - shares(maps["attended"])
    return nan_without_class(maps, target, model.num_classes, axis=1)


def shares(values: Float[Array, "*any patch"]) -> Float[Array, "*any patch"]:
    """Each value divided by their sum; 0 where that is 0."""
    total: Any = values.sum(-1, keepdims=True)
    return jnp.where(total > 0, values / jnp.where(total > 0, total, 1), 0)
