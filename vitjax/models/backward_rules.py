"""How a block's operations are to be differentiated: seams for other backward rules.

Layer-wise relevance propagation is a backward pass whose operations follow other rules
than the chain rule. The values of the forward pass stay what they are.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitjax.types import ArrayLike


def layer_norm(
    x: Float[Array, "*any dim"],
    scale: Float[ArrayLike, " dim"],
    bias: Float[ArrayLike, " dim"],
    *,
    epsilon: float,
    factor: Callable[[Array], Array] = lambda factor: factor,
) -> Float[Array, "*any dim"]:
    """Layer normalisation; its statistics are float32 at least.

    The variance is the two-pass one: the one-pass form that Flax prefers loses digits
    where a stream's mean is large against its spread.

    Args:
        x: the states.
        scale, bias: the affine part.
        epsilon: added to the variance.
        factor: what becomes of 1 / sigma before it multiplies; `stop_gradient` freezes
            it.

    Returns:
        The normalised states, in the dtype of `x`.
    """
    dtype = np.promote_types(x.dtype, jnp.float32)
    scale, bias = scale.astype(dtype), bias.astype(dtype)
    along_last = (1,) * (x.ndim - 1) + x.shape[-1:]
    y = x.astype(dtype)
    y = y - y.mean(-1, keepdims=True)
    y = y * factor(jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + epsilon))
    y = y * scale.reshape(along_last) + bias.reshape(along_last)
    return y.astype(x.dtype)


def second(x: Any, y: Any) -> Any:
    """Its second argument: the ordinary derivative of what `y` was made of."""
    return y


def weighted_sum(x: Array, weights: Array) -> Array:
    """Tokens by their weight, summed."""
    return (x * weights).sum(1)


@dataclasses.dataclass(frozen=True)
class Rules:
    """The operations of a block; by default the ordinary ones.

    A rule must return the operation's ordinary value; only what its derivative is may
    differ. Those of the form `(x, y)` are handed the input and the value of an
    operation on one array, and return `y` with another derivative in `x`.

    Args:
        dense: `(x [... in], kernel [in out], bias [out] | None) -> [... out]`, every
            dense layer; None for Flax's own.
        product: `(equation, left, right)`, the einsums of query with key and of weights
            with values.
        norm: `(x, scale, bias, epsilon=...)`, the layer norms.
        add: `(stream, update)`, the residual additions.
        mean: `(stream, weights [batch token 1])`, what a readout without [CLS] reads.
        softmax, gelu: `(x, y)`.
        scaled: `(x, y)`, where `y` is `x` times a constant, entry by entry.
    """

    dense: Callable[..., Any] | None = None
    product: Callable[..., Any] = jnp.einsum
    norm: Callable[..., Any] = layer_norm
    add: Callable[..., Any] = jnp.add
    mean: Callable[..., Any] = weighted_sum
    softmax: Callable[..., Any] = second
    gelu: Callable[..., Any] = second
    scaled: Callable[..., Any] = second


def dense(rules: Rules, layer: Any, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """A Flax dense layer, by the rule if there is one; the rule sees matrices."""
    if rules.dense is None:
        return layer(x)
    params, features = layer.variables["params"], layer.features
    kernel, bias = params["kernel"], params.get("bias")
    inputs = kernel.ndim - (1 if isinstance(features, int) else len(features))
    leading, outputs = x.shape[: x.ndim - inputs], kernel.shape[inputs:]
    width = math.prod(outputs)
    y = rules.dense(
        x.reshape(*leading, -1),
        kernel.reshape(-1, width),
        None if bias is None else bias.reshape(width),
    )
    return y.reshape(*leading, *outputs)
