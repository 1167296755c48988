"""Replaceable backward rules of a block's operations.

Layer-wise relevance propagation (LRP) is a backward pass whose operations follow other
rules than the chain rule. The values of the forward pass stay the same.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from vitjax.types import Config, Trace, layer_norm


def with_backward(function: Callable[..., Any], backward: Callable[..., Any]) -> Any:
    """A function of arrays with another derivative.

    `backward(cotangent, y, *arguments)` returns one cotangent for each argument, None
    for 0; y is the function's value.
    """
    rule = jax.custom_vjp(function)

    def keep(*arguments):
        y = function(*arguments)
        return y, (y, *arguments)

    rule.defvjp(keep, lambda kept, cotangent: backward(cotangent, *kept))
    return rule


def keep_value(x: Any, y: Any) -> Any:
    """y unchanged, with its ordinary derivative."""
    return y


def weighted_sum(x: Array, weights: Array) -> Array:
    """Sum of the tokens times their weights."""
    return (x * weights).sum(1)


def linear(x, kernel, bias):
    """x W + b."""
    y = jnp.matmul(x, kernel)
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)


@dataclasses.dataclass(frozen=True)
class Rules:
    """The operations of a block; by default the ordinary ones.

    A rule returns the operation's ordinary value; only its derivative may differ. Rules
    of the form `(x, y)` take the input and the value of an operation on one array and
    return `y` with another derivative in `x`.

    Args:
        dense: `(x [... in], kernel [in out], bias [out] | None) -> [... out]`, every
            dense layer of a block; None for Flax's own.
        head: the same of the head's.
        product: `(equation, left, right)`, the einsums of query with key and of weights
            with values.
        norm: `(x, scale, bias, epsilon=...)`, the layer norms.
        add: `(stream, update)`, the residual additions.
        mean: `(stream, weights [batch token 1])`, the mean of the patches.
        softmax, gelu: `(x, y)`.
        scaled: `(x, y)`, where `y` is `x` times a constant, entry by entry.
        length: `(x, y)`, where `y` is `x` at another length, of a cosine.
    """

    dense: Callable[..., Any] | None = None
    head: Callable[..., Any] = linear
    product: Callable[..., Any] = jnp.einsum
    norm: Callable[..., Any] = layer_norm
    add: Callable[..., Any] = jnp.add
    mean: Callable[..., Any] = weighted_sum
    softmax: Callable[..., Any] = keep_value
    gelu: Callable[..., Any] = keep_value
    scaled: Callable[..., Any] = keep_value
    length: Callable[..., Any] = keep_value


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
        x.reshape(*leading, math.prod(kernel.shape[:inputs])),
        kernel.reshape(-1, width),
        None if bias is None else bias.reshape(width),
    )
    return y.reshape(*leading, *outputs)


def cached_mlp(config: Config, trace: Trace, rows: slice) -> Rules:
    """Rules of one block by which its MLP takes its values at some rows from a trace.

    A derivative taken there need not multiply by the MLP's matrices again, which is
    half of its cost. Good for one call of the block.
    """
    hidden: Any = trace.mlp_preactivation
    update: Any = trace.mlp_update
    plain = config.norm == "pre" and not config.layer_scale
    # Attention's output projection comes first; an update is the value of the MLP's
    # last layer where neither norm nor scale follows.
    ungated = (None,) * (config.mlp == "swiglu")
    last = update[:, rows] if plain else None
    values = iter((None, hidden[:, rows], *ungated, last))

    def cached(x, kernel, bias):
        value = next(values)
        return linear(x, kernel, bias) if value is None else known(x, kernel, value)

    return Rules(dense=cached)


known = with_backward(
    lambda x, kernel, value: value,
    lambda cotangent, y, x, kernel, value: (cotangent @ kernel.T, None, None),
)
