"""Maps of attention alone: they know no class, only where a model looks."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax.models.forward import scan_blocks
from vitjax.models.model import Model
from vitjax.models.vit import pool_weights
from vitjax.types import ArrayLike, Config, Edits, Trace

Images = Float[ArrayLike, "batch height width channel"]
Map = Float[Array, "batch patch"]
Maps = Float[Array, "layer batch head patch"]


def answer_row(trace: Trace, edits: Edits, config: Config):
    """Attention of the token that is read, or averaged over those that are."""
    weights: Any = trace.attention_weights
    if config.class_token:
        return weights[:, :, 0]
    read = pool_weights(weights[:, 0], edits, config)
    return jnp.einsum("bq,bhqt->bht", read, weights)


def raw_attention(model: Model, images: Images, *, edits: Edits | None = None) -> Maps:
    """Attention weights of the answer's row: A[layer, head, [CLS], patch].

    Args:
        model: the model.
        images: preprocessed pixels.
        edits: interventions.

    Returns:
        In [0, 1]; the customary map is the last block's, averaged over heads.
    """
    cfg, edits = model.config, Edits() if edits is None else edits

    def read(params, stream_in, trace):
        return answer_row(trace, edits, cfg)[..., cfg.prefix :]

    return scan_blocks(model, images, read, edits=edits)[1]


def rollout(model: Model, images: Images, *, edits: Edits | None = None) -> Map:
    """Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928).

    The answer's row of C_L ... C_1, where C = (mean over heads of A + I) / 2: attention
    mixed with the residual path, block after block. Computed as a row vector from the
    last block down.

    Args:
        model: the model.
        images: preprocessed pixels.
        edits: interventions.

    Returns:
        In [0, 1]; with the prefix tokens, which are left out, rows sum to one.
    """
    return rollout_row(model, images, edits=edits)[:, model.config.prefix :]


def rollout_row(
    model: Model, images: Images, *, edits: Edits | None = None
) -> Float[Array, "batch token"]:
    """The whole row of the rollout, prefix tokens included; it sums to one."""

    def read(params, stream_in, trace):
        return trace.attention_weights.mean(1)

    edits = Edits() if edits is None else edits
    _, weights = scan_blocks(model, images, read, edits=edits)

    def step(row, mixed):
        moved = jnp.einsum("bq,bqt->bt", row, mixed)
        return (row + moved) / 2, None

    row = pool_weights(weights[-1], edits, model.config)
    return jax.lax.scan(step, row, weights, reverse=True)[0]
