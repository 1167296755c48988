"""What the parameters themselves say about classes."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from vitjax.types import ClassSpace, Config


def class_space(params: Any, config: Config) -> ClassSpace:
    """The readout of a model: class logits of a state x are `E.LN(x) + b`."""
    norm, head = params["Transformer"]["encoder_norm"], params["head"]
    return ClassSpace(
        embedding=head["kernel"].T,
        bias=head["bias"],
        norm_scale=norm["scale"],
        norm_shift=norm["bias"],
        epsilon=config.epsilon,
    )


def memory_values(
    params: Any,
) -> dict[str, Float[Array, "layer memory dim"]]:
    """Value vectors of both memory systems; attention memories are head-major."""
    block = params["Transformer"]["encoderblock"]
    out = block["MultiHeadDotProductAttention_0"]["out"]["kernel"]
    depth, heads, width, dim = out.shape
    return {
        "attention": jnp.reshape(out, (depth, heads * width, dim)),
        "mlp": jnp.asarray(block["MlpBlock_0"]["Dense_1"]["kernel"]),
    }
