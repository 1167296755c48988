"""The output of a block as a function of its attention rows, for relevancy.

A token's state after a block depends on its own attention row alone; all the rest, the
values and the residual stream entering the block, is held fixed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax.models.backward_rules import Rules
from vitjax.models.layers import MlpBlock
from vitjax.types import Config, Trace, layer_norm


class MlpCache(NamedTuple):
    """The MLP's values in the forward pass, at some rows.

    A derivative taken there need not multiply by the MLP's matrices again, which is
    half of its cost.

    Args:
        preactivation: of the first dense layer.
        output: of the second; None where the trace has it only after a norm or scale.
    """

    preactivation: Float[Array, "batch row hidden"]
    output: Float[Array, "batch row dim"] | None

    def rules(self) -> Rules:
        """Dense layers that return these values, with their ordinary derivative."""
        values = iter(self)

        def dense(x, kernel, bias):
            value = next(values)
            if value is None:
                return x @ kernel + bias.reshape((1,) * (x.ndim - 1) + bias.shape)
            return cached_dense(x, kernel, value)

        return Rules(dense=dense)


def cache_mlp(config: Config, trace: Trace, rows: slice) -> MlpCache:
    """The MLP's values in a trace, at some rows."""
    hidden: Any = trace.mlp_preactivation
    update: Any = trace.mlp_update
    plain = config.norm == "pre" and not config.layer_scale
    return MlpCache(hidden[:, rows], update[:, rows] if plain else None)


@jax.custom_vjp
def cached_dense(x, kernel, value):
    """A dense layer whose value at x is known."""
    return value


cached_dense.defvjp(
    lambda x, kernel, value: (value, kernel),
    lambda kernel, cotangent: (cotangent @ kernel.T, None, None),
)


def attention_update(
    config: Config, params: Any, mixed: Float[Array, "batch row head key"]
) -> Float[Array, "batch row dim"]:
    """What attention adds to the residual stream at some rows, from mixed values.

    As in a `Trace`: after output projection, LayerScale and, in residual-post-norm
    blocks, the norm.
    """
    out = params["MultiHeadDotProductAttention_0"]["out"]
    update = jnp.einsum("bqhk,hkd->bqd", mixed, out["kernel"])
    update = update + out["bias"][None, None]
    if config.norm == "residual_post":
        update = norm(config, params, 0, update)
    return scale(config, params, 0, update)


def block_output(
    config: Config,
    params: Any,
    mixed: Float[Array, "batch row head key"],
    stream_in: Float[Array, "batch row dim"],
    cache: MlpCache | None = None,
) -> Float[Array, "batch row dim"]:
    """The residual stream after the block at some rows, from their mixed values.

    `stream_in` entered the block there; `cache` holds for the forward pass's `mixed`.
    """
    x = stream_in + attention_update(config, params, mixed)
    mlp = MlpBlock(config, rules=Rules() if cache is None else cache.rules())
    variables = {"params": params["MlpBlock_0"]}
    if config.norm == "residual_post":
        y: Any = norm(config, params, 1, mlp.apply(variables, x))
    else:
        y = mlp.apply(variables, norm(config, params, 1, x))
    return x + scale(config, params, 1, y)


def norm(config: Config, params: Any, index: int, x: Any) -> Any:
    """A block's norm, by its number."""
    affine = params[f"LayerNorm_{index}"]
    return layer_norm(x, affine["scale"], affine["bias"], epsilon=config.epsilon)


def scale(config: Config, params: Any, index: int, x: Any) -> Any:
    """A block's LayerScale, by its number, where it has any."""
    if not config.layer_scale:
        return x
    return x * params[f"LayerScale_{index}"]["gamma"][None, None]
