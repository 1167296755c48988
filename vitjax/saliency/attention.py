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
from jaxtyping import Array, Float, Int

from vitjax.models.edits import patch_mask
from vitjax.models.forward import run_blocks, scan_blocks
from vitjax.models.model import Model
from vitjax.types import ArrayLike, Edits, Trace

Images = Float[ArrayLike, "batch height width channel"]
Target = Int[ArrayLike, " batch"]
Map = Float[Array, "batch patch"]
Maps = Float[Array, "layer batch head patch"]


def pooled_attention(model: Model, trace: Trace, edits: Edits):
    """The attention row of [CLS], or the average row of the tokens that are read."""
    weights: Any = trace.attention_weights
    if model.config.pooling == "cls":
        return weights[:, :, 0]
    pooled = model.apply(trace.residual, edits, method="token_weights")
    return jnp.einsum("bq,bhqt->bht", pooled, weights)


def zero_absent(maps: Map, edits: Edits) -> Map:
    """Maps with 0 at patches that `keep` removed."""
    return maps if edits.keep is None else jnp.where(patch_mask(edits), maps, 0)


def raw_attention(model: Model, images: Images, *, edits: Edits | None = None) -> Maps:
    """Attention weights A[layer, head, row, patch] of the head's row, in [0, 1].

    The customary map is the last block's, averaged over heads.
    """
    cfg, edits = model.config, edits or Edits()

    def read(params, stream_in, trace):
        return pooled_attention(model, trace, edits)[..., cfg.prefix :]

    return scan_blocks(model, images, read, edits=edits)[1]


def rollout(model: Model, images: Images, *, edits: Edits | None = None) -> Map:
    """Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928), in [0, 1].

    The head's row of C_L ... C_1, where C = (mean over heads of A + I) / 2: attention
    mixed with the residual path, block after block. Computed as a row vector from the
    last block down. With the prefix tokens, which are left out, rows sum to one, unless
    edits scale the weights after the softmax.
    """

    def read(params, stream_in, trace):
        return trace.attention_weights.mean(1)

    edits = edits or Edits()
    _, x, _, weights = run_blocks(model, images, read, edits=edits)

    def step(row, mixed):
        moved = jnp.einsum("bq,bqt->bt", row, mixed)
        return (row + moved) / 2, None

    row = model.apply(x, edits, method="token_weights")
    row, _ = jax.lax.scan(step, row, weights, reverse=True)
    return row[:, model.config.prefix :]
