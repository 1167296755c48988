"""Attention maps: raw attention and rollout, which know no class.

As all methods of this room they are batched and pure: `images` are preprocessed pixels,
`target` the class that is explained, `edits` interventions. Rows of attention are those
that the head reads: [CLS], or where there is none the average over image tokens. Prefix
tokens are never part of a map.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitjax.models.edits import patch_mask
from vitjax.models.forward import scan_blocks
from vitjax.models.heads import pool_weights
from vitjax.models.model import Model
from vitjax.types import ArrayLike, Config, Edits, Trace

Images = Float[ArrayLike, "batch height width channel"]
Target = Int[ArrayLike, " batch"]
Map = Float[Array, "batch patch"]
Maps = Float[Array, "layer batch head patch"]


def cls_attention(trace: Trace, edits: Edits, config: Config):
    """The attention row of [CLS], or the average row of the pooled tokens."""
    weights: Any = trace.attention_weights
    if config.class_token:
        return weights[:, :, 0]
    pooled = pool_weights(weights[:, 0], edits, config)
    return jnp.einsum("bq,bhqt->bht", pooled, weights)


def zero_absent(maps: Map, edits: Edits) -> Map:
    """Maps with 0 at patches that `keep` removed."""
    return maps if edits.keep is None else jnp.where(patch_mask(edits), maps, 0)


def raw_attention(model: Model, images: Images, *, edits: Edits | None = None) -> Maps:
    """Attention weights A[layer, head, [CLS], patch], in [0, 1].

    The customary map is the last block's, averaged over heads.
    """
    cfg, edits = model.config, edits or Edits()

    def read(params, stream_in, trace):
        return cls_attention(trace, edits, cfg)[..., cfg.prefix :]

    return scan_blocks(model, images, read, edits=edits)[1]


def rollout(model: Model, images: Images, *, edits: Edits | None = None) -> Map:
    """Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928), in [0, 1].

    The row of [CLS] of C_L ... C_1, where C = (mean over heads of A + I) / 2: attention
    mixed with the residual path, block after block. Computed as a row vector from the
    last block down. With the prefix tokens, which are left out, rows sum to one, unless
    edits scale the weights after the softmax.
    """

    def read(params, stream_in, trace):
        return trace.attention_weights.mean(1)

    edits = edits or Edits()
    _, weights = scan_blocks(model, images, read, edits=edits)

    def step(row, mixed):
        moved = jnp.einsum("bq,bqt->bt", row, mixed)
        return (row + moved) / 2, None

    row = pool_weights(weights[-1], edits, model.config)
    row, _ = jax.lax.scan(step, row, weights, reverse=True)
    return row[:, model.config.prefix :]
