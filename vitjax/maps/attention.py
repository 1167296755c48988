"""Maps of attention alone: they know no class, only where a model looks."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitjax.models.capture import scan_blocks
from vitjax.models.model import Model
from vitjax.types import ArrayLike, Config, Edits

Images = Float[ArrayLike, "batch height width channel"]
Map = Float[Array, "batch patch"]
Maps = Float[Array, "layer batch head patch"]


def answer_row(weights: Float[Array, "*any query token"], config: Config):
    """Attention of the token that is read, or averaged over image tokens."""
    if config.class_token:
        return weights[..., 0, :]
    return weights[..., config.prefix :, :].mean(-2)


def raw_attention(model: Model, images: Images, *, edits: Edits | None = None) -> Maps:
    """Attention weights of the answer's row: A[layer, head, [CLS], patch].

    Args:
        model: the model.
        images: preprocessed pixels.
        edits: interventions.

    Returns:
        In [0, 1]; the customary map is the last block's, averaged over heads.
    """
    cfg = model.config

    def read(params, stream_in, trace):
        return answer_row(trace.attention_weights, cfg)[..., cfg.prefix :]

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

    _, weights = scan_blocks(model, images, read, edits=edits)

    def step(row, mixed):
        moved = jnp.einsum("bq,bqt->bt", row, mixed)
        return (row + moved) / 2, None

    row = start_row(model.config, weights[0, :, 0])
    return jax.lax.scan(step, row, weights, reverse=True)[0]


def start_row(config: Config, like: Float[Array, "batch token"]):
    """The token that is read, or equal shares of the image tokens."""
    batch, length = like.shape
    there = np.zeros(length, np.float32)
    first, last = (0, 1) if config.class_token else (config.prefix, length)
    there[first:last] = 1 / (last - first)
    return jnp.tile(jnp.asarray(there, like.dtype)[None], (batch, 1))
