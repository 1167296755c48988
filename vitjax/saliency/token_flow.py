"""Attention rollouts that weigh how blocks transform tokens: TokenTM and InFlow.

Only the rows of tokens that the head reads are needed, so that both are computed as a
row vector from the last block down, without any product of token matrices.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax.models.edits import MASKED, token_mask
from vitjax.models.forward import after_attention
from vitjax.models.layers import mix
from vitjax.models.model import Model
from vitjax.saliency.passes import Reader, Target, row_of_head, target_logit
from vitjax.types import Edits

SMALL = 1e-8


def tokentm(model: Model, target: Target, edits: Edits) -> Reader:
    """TokenTM (Wu et al., CVPR 2024, arXiv 2403.14552), at least 0.

    The head's row of C_L, where C_0 = diag(|E_0|) and block after block C <- U_mlp
    U_attention C, U_attention = I + (A W) * mean over heads of relu(dz/dA), A the mean
    attention weights, U_mlp = I + W'. W and W' are diagonal: by how much attention
    (from the stream entering the block to the one after its residual addition) and the
    MLP (from there to the block's output) change a token,

        W_i = |after_i| / |before_i| * softmax over tokens of cos(before, after).

    So a reimplementation of LibraGrad's authors has it; its own authors' code is not
    public.
    """
    exists = token_mask(edits, model.config)

    def backward(row, grads):
        trace = grads.trace
        middle = grads.stream_in + trace.attention_update
        by_mlp = change_of_tokens(middle, middle + trace.mlp_update, exists)
        by_attention = change_of_tokens(grads.stream_in, middle, exists)
        row = row * (1 + by_mlp)
        gradient = jax.nn.relu(grads.weights_gradient).mean(1)
        mixing = grads.weights.mean(1) * by_attention[:, None] * gradient
        row = row + jnp.einsum("bq,bqt->bt", row, mixing)
        return row, jnp.linalg.norm(grads.stream_in, axis=-1)

    return Reader(
        lambda reads: reads.state * reads.backward[0],
        backward=backward,
        start=row_of_head(model, edits),
    )


def change_of_tokens(before: Any, after: Any, exists: Any) -> Float[Array, "..."]:
    """W of `tokentm`, [batch token]."""
    first, second = (jnp.linalg.norm(x, axis=-1) for x in (before, after))
    cosine = (before * after).sum(-1) / jnp.maximum(first * second, SMALL)
    if exists is not None:
        cosine = jnp.where(exists, cosine, MASKED)
    return second / (first + SMALL) * jax.nn.softmax(cosine, axis=-1)


def inflow(model: Model, target: Target, edits: Edits) -> Reader:
    """InFlow (Walker et al., AISTATS 2025), at least 0.

    The head's row of T_L ... T_1, T = R R' with rows that sum to 1. R mixes a token's
    residual path and attention by their lengths, R = M diag(b) + diag(a); R' scales by
    the MLP's, diag(r b') + diag(a'), where (a, b) are the lengths of both summands over
    their sum, r is b'/a' over its sum over tokens, and

        M = relu(max over heads of (I_h A_h) * mean over heads of dz_b/dA),

    with z_b the logit of the head on this block's output and I_h the mean of |A_h^T
    dz/dA_h| over its sum over heads. As in its authors' code, rows that the head does
    not read pass tokens on as they are.
    """
    exists = token_mask(edits, model.config)
    exists = jnp.asarray([[1]] if exists is None else exists, model.dtype)

    def forward(params, stream_in, trace, context):
        block = params, stream_in, trace, context

        def logit(weights):
            states, _ = after_attention(model, mix(weights, trace.values), *block)
            tokens = context.class_tokens
            logits = model.apply(states, edits, tokens, method="unembed")
            return target_logit(target)(logits)

        return jax.grad(logit)(jnp.asarray(trace.attention_weights)).mean(1)

    def backward(_, grads):
        trace = grads.trace
        slopes = grads.weights_gradient * exists[:, None, None]
        influence = jnp.einsum("bhqt,bhqs->bhts", grads.weights, slopes)
        influence = jnp.abs(influence).sum((2, 3))
        influence = influence / jnp.maximum(influence.sum(1, keepdims=True), SMALL)
        attended = (grads.weights * influence[:, :, None, None]).max(1)
        middle = grads.stream_in + trace.attention_update
        of_attention = shares_of_lengths(grads.stream_in, trace.attention_update)
        of_mlp = shares_of_lengths(middle, trace.mlp_update)
        return None, (attended, of_attention, of_mlp)

    def step(row, per_block):
        slope, attended, (skip, attention), (middle, mlp) = per_block
        ratio = mlp / jnp.maximum(middle, SMALL) * exists
        ratio = ratio / jnp.maximum(ratio.sum(1, keepdims=True), SMALL)
        flow = jax.nn.relu(slope * attended) * attention[:, None]
        flow = flow + skip[:, None] * jnp.eye(skip.shape[1], dtype=skip.dtype)[None]
        flow = flow * (ratio * mlp + middle)[:, None]
        flow = flow / jnp.maximum(flow.sum(2, keepdims=True), SMALL)
        return jnp.einsum("bq,bqt->bt", row, flow), None

    def finish(reads):
        row = model.apply(reads.x, edits, method="token_weights")
        blocks = reads.forward, *reads.backward
        return jax.lax.scan(step, row, blocks, reverse=True)[0]

    return Reader(finish, forward, backward)


def shares_of_lengths(stream: Any, update: Any) -> tuple[Any, Any]:
    """(a, b) of `inflow`, [batch token] each."""
    lengths = [jnp.linalg.norm(x, axis=-1) for x in (stream, update)]
    total = jnp.maximum(lengths[0] + lengths[1], SMALL)
    return lengths[0] / total, lengths[1] / total
