"""Attention maps: raw attention and rollout, which know no class.

As all methods of this room they are batched and pure: `images` are preprocessed pixels,
`target` the class that is explained, `edits` interventions. Rows of attention are those
of the tokens that the head reads, averaged by their weight in it (`token_weights` of
`vitjax.models.vit`): of [CLS]; of the patches where it reads their mean; with attention
pooling by the head's own attention. Prefix tokens are never part of a map.
"""

from typing import Any

import jax
import jax.numpy as jnp

from vitjax.models.model import Model
from vitjax.saliency.passes import Reader, Target
from vitjax.types import Edits, Trace


def pooled_attention(model: Model, trace: Trace, edits: Edits):
    """The attention row of [CLS], or the average row of the tokens that are read."""
    weights: Any = trace.attention_weights
    if model.config.pooling == "cls":
        return weights[:, :, 0]
    pooled = model.apply(trace.residual, edits, method="token_weights")
    return jnp.einsum("bq,bhqt->bht", pooled, weights)


def raw_attention(model: Model, target: Target, edits: Edits) -> Reader:
    """Attention weights A[layer, head, row, token] of the head's row, in [0, 1].

    The customary map is the last block's, averaged over heads.
    """

    def forward(params, stream_in, trace, context):
        return pooled_attention(model, trace, edits)

    return Reader(lambda reads: reads.forward, forward)


def rollout(model: Model, target: Target, edits: Edits) -> Reader:
    """Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928), in [0, 1].

    The head's row of C_L ... C_1, where C = (mean over heads of A + I) / 2: attention
    mixed with the residual path in equal parts, as the authors weigh it, all blocks
    after one another. Computed as a row vector from the last block down. With the
    prefix tokens, which are left out, rows sum to one, unless edits scale the weights
    after the softmax.
    """

    def forward(params, stream_in, trace, context):
        return trace.attention_weights.mean(1)

    def step(row, mixed):
        moved = jnp.einsum("bq,bqt->bt", row, mixed)
        return (row + moved) / 2, None

    def finish(reads):
        row = model.apply(reads.x, edits, method="token_weights")
        return jax.lax.scan(step, row, reads.forward, reverse=True)[0]

    return Reader(finish, forward)
