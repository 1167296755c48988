"""Fused projection: class logits of a block's three states by two matrix products.

With W = diag(norm_scale).E^T, centered over `dim`, a state's class logits are
`x.W / sigma(x) + beta`, where beta = norm_shift.E^T + b. The product is linear, so the
residual stream after a block is that before it plus both updates, in class space too.
Arrays are `states` [... dim], their `products` x.W [... class].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vitjax.analysis.class_space import broadcast_labels, rank_of
from vitjax.types import ClassSpace, along_last


class FoldedClassSpace(NamedTuple):
    """A class space with its norm folded into the class embedding."""

    weight: Float[Array, "dim class"]
    beta: Float[Array, " class"]
    epsilon: float


def fold(class_space: ClassSpace) -> FoldedClassSpace:
    """Fold the norm of a class space into its class embedding."""
    embedding = jnp.asarray(class_space.embedding)
    exact = embedding.astype(np.promote_types(embedding.dtype, jnp.float32))
    weight = (exact * along_last(class_space.norm_scale, exact)).T
    weight = weight - weight.mean(0, keepdims=True)
    shift = jnp.asarray(class_space.norm_shift, exact.dtype)
    bias = jnp.asarray(class_space.bias, exact.dtype)
    beta = jnp.matmul(exact, shift, precision="highest") + bias
    return FoldedClassSpace(weight.astype(embedding.dtype), beta, class_space.epsilon)


def product(space: FoldedClassSpace, states) -> Float[Array, "*any class"]:
    """x.W, which adds up over updates."""
    dtype = space.beta.dtype
    states = jnp.asarray(states, space.weight.dtype)
    return jnp.matmul(states, space.weight, preferred_element_type=dtype)


def inverse_sigma(space: FoldedClassSpace, states) -> Float[Array, "*any"]:
    """1 / sqrt(variance + epsilon) of LayerNorm."""
    x = jnp.asarray(states, space.beta.dtype)
    x = x - x.mean(-1, keepdims=True)
    return jax.lax.rsqrt(jnp.square(x).mean(-1) + space.epsilon)


def logits(space: FoldedClassSpace, products, states) -> Float[Array, "*any class"]:
    """Class logits of states whose products are known."""
    inverse = inverse_sigma(space, states)[..., None]
    return products * inverse + along_last(space.beta, products)


def rank_and_logit(
    space: FoldedClassSpace, products, states, label
) -> tuple[Int[Array, "batch token"], Float[Array, "batch token"]]:
    """Rank and logit of each image's label at every token."""
    label = broadcast_labels(label, products.shape[:1])
    index = label[:, None, None]
    true = jnp.take_along_axis(products, index, axis=-1)[..., 0]
    true = true * inverse_sigma(space, states) + space.beta[label][:, None]
    return rank_of(logits(space, products, states), true, label[:, None]), true
