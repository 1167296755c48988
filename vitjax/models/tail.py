"""From attention weights through the rest of a block: what relevancy differentiates.

A token's state after a block depends on its own attention row alone; everything else,
the values and the stream entering the block, is held fixed.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax.models.vit import LayerNorm, LayerScale, MlpBlock
from vitjax.types import Config


def attention_update(
    config: Config, params: Any, mixed: Float[Array, "batch row head key"]
) -> Float[Array, "batch row dim"]:
    """What attention adds to the stream at some rows, from their mixed values.

    Args:
        config: the architecture.
        params: of the block.
        mixed: attention weights times values.

    Returns:
        The update, after output projection, LayerScale and, in residual-post-norm
        blocks, the norm.
    """
    out = params["MultiHeadDotProductAttention_0"]["out"]
    update = jnp.einsum("bqhk,hkd->bqd", mixed, out["kernel"])
    update = update + out["bias"][None, None]
    if config.norm == "residual_post":
        update = layer_norm(config, params, 0, update)
    return layer_scale(config, params, 0, update)


def block_output(
    config: Config,
    params: Any,
    mixed: Float[Array, "batch row head key"],
    stream_in: Float[Array, "batch row dim"],
) -> Float[Array, "batch row dim"]:
    """The stream after the block at some rows, from their mixed values.

    Args:
        config: the architecture.
        params: of the block.
        mixed: attention weights times values.
        stream_in: the stream entering the block, at the same rows.

    Returns:
        The stream.
    """
    x = stream_in + attention_update(config, params, mixed)
    mlp = MlpBlock(config)
    variables = {"params": params["MlpBlock_0"]}
    if config.norm == "residual_post":
        y: Any = layer_norm(config, params, 1, mlp.apply(variables, x))
    else:
        y = mlp.apply(variables, layer_norm(config, params, 1, x))
    return x + layer_scale(config, params, 1, y)


def layer_norm(config: Config, params: Any, index: int, x: Any) -> Any:
    """A block's norm, by its number."""
    norm = LayerNorm(config.epsilon)
    return norm.apply({"params": params[f"LayerNorm_{index}"]}, x)


def layer_scale(config: Config, params: Any, index: int, x: Any) -> Any:
    """A block's LayerScale, by its number, where it has any."""
    if not config.layer_scale:
        return x
    return LayerScale().apply({"params": params[f"LayerScale_{index}"]}, x)
