"""From attention weights through the rest of a block: what relevancy differentiates.

A token's state after a block depends on its own attention row alone; everything else,
the values and the stream entering the block, is held fixed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax.models.backward_rules import Rules
from vitjax.models.vit import LayerNorm, LayerScale, MlpBlock
from vitjax.types import Config, Trace


class MlpCache(NamedTuple):
    """What a block's forward pass found in its MLP at some rows.

    Differentiated where they hold, the tail need not multiply by the MLP's matrices
    anew to find them: that is half of its work.

    Args:
        preactivation: of the first dense layer.
        output: of the second; None where the trace has it only after a norm or scale.
    """

    preactivation: Float[Array, "batch row hidden"]
    output: Float[Array, "batch row dim"] | None

    def rules(self) -> Rules:
        """Dense layers that give these values, with their ordinary derivative."""
        values = iter(self)

        def dense(x, kernel, bias):
            value = next(values)
            if value is None:
                return x @ kernel + bias.reshape((1,) * (x.ndim - 1) + bias.shape)
            return known_dense(x, kernel, value)

        return Rules(dense=dense)


def cache_mlp(config: Config, trace: Trace, rows: slice) -> MlpCache:
    """What a trace knows of its block's MLP at some rows."""
    hidden: Any = trace.mlp_preactivation
    update: Any = trace.mlp_update
    plain = config.norm == "pre" and not config.layer_scale
    return MlpCache(hidden[:, rows], update[:, rows] if plain else None)


@jax.custom_vjp
def known_dense(x, kernel, value):
    """A dense layer whose value at x is known."""
    return value


known_dense.defvjp(
    lambda x, kernel, value: (value, kernel),
    lambda kernel, cotangent: (cotangent @ kernel.T, None, None),
)


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
    known: MlpCache | None = None,
) -> Float[Array, "batch row dim"]:
    """The stream after the block at some rows, from their mixed values.

    Args:
        config: the architecture.
        params: of the block.
        mixed: attention weights times values.
        stream_in: the stream entering the block, at the same rows.
        known: the MLP's values there, where `mixed` is what it was in the forward pass.

    Returns:
        The stream.
    """
    x = stream_in + attention_update(config, params, mixed)
    mlp = MlpBlock(config, rules=Rules() if known is None else known.rules())
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
