"""Fused projection: class logits of a block's three states by two matrix products.

With W = diag(norm_scale).E^T, centered over `dim`, a state's class logits are
`x.W / sigma(x) + beta`, where beta = norm_shift.E^T + b. The product is linear, so the
residual stream after a block is that before it plus both updates, in class space too.

A cosine divides by the length of the state's embedding f, whose columns stand beside
those of the classes, W = [class | embed], where a projection leads to it; without one f
is the normalized state. Attention pooling has columns of f alone, from which its MLP
and the classes are computed for each state. Patches may have a W of their own.

Arrays are `states` [*any token dim], whole sequences where patches have one, and their
`products` x.W [*any token column].
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitjax.analysis.class_space import broadcast_labels, rank_of
from vitjax.types import ClassSpace, along_last, inverse_length, to_float32


class FoldedClassSpace(NamedTuple):
    """A class space with its norm folded into its matrices.

    `space` is the class space where more than a norm and a product makes its logits;
    `patches` that of patches, where tokens from `prefix` on have one of their own.
    """

    weight: Float[Array, "dim column"]
    beta: Float[Array, " column"]
    epsilon: float
    space: ClassSpace | None = None
    patches: Any = None
    prefix: int = 0


def fold(class_space: ClassSpace, prefix: int = 0) -> FoldedClassSpace:
    """Fold the norm of a class space into its class embedding."""
    patches = None
    if class_space.patch_embedding is not None:
        patches = fold(class_space.of_patches)
    linear = class_space.mlp is None and class_space.temperature is None
    embedding = jnp.asarray(class_space.embedding)
    bias = jnp.asarray(class_space.bias)
    if not linear:
        embedding, bias = embedding_columns(class_space)
    exact = to_float32(embedding)
    weight = (exact * along_last(class_space.norm_scale, exact)).T
    weight = weight - weight.mean(0, keepdims=True)
    shift = jnp.asarray(class_space.norm_shift, exact.dtype)
    beta = jnp.matmul(exact, shift, precision="highest") + bias.astype(exact.dtype)
    return FoldedClassSpace(
        weight.astype(embedding.dtype),
        beta,
        class_space.epsilon,
        space=None if linear else class_space,
        patches=patches,
        prefix=prefix,
    )


def embedding_columns(class_space: ClassSpace) -> tuple[Array, Array]:
    """What stands for E and b where a head compares embeddings; see the module."""
    columns, bias = [], []
    if class_space.mlp is None:
        columns.append(jnp.asarray(class_space.embedding))
        bias.append(jnp.zeros_like(columns[0][:, 0]))
    if class_space.projection is not None:
        projection, shift = jnp.asarray(class_space.projection), class_space.shift
        columns.append(projection.T)
        bias.append(jnp.zeros_like(projection[0]) if shift is None else shift)
    return jnp.concatenate(columns), jnp.concatenate(bias)


def by_token(
    function: Callable[..., Array], space: FoldedClassSpace, *arrays: Any
) -> Float[Array, "*any token column"]:
    """A function of a class space and arrays [*any token _], of each token's own."""
    if space.patches is None:
        return function(space, *arrays)
    prefix = space.prefix
    first = function(space, *(x[..., :prefix, :] for x in arrays))
    rest = function(space.patches, *(x[..., prefix:, :] for x in arrays))
    return jnp.concatenate([first, rest], axis=-2)


def product(space: FoldedClassSpace, states) -> Float[Array, "*any column"]:
    """x.W, which adds up over updates."""

    def multiply(space, states):
        dtype = space.beta.dtype
        states = jnp.asarray(states, space.weight.dtype)
        return jnp.matmul(states, space.weight, preferred_element_type=dtype)

    return by_token(multiply, space, states)


def inverse_sigma(space: FoldedClassSpace, states) -> Float[Array, "*any"]:
    """1 / sqrt(variance + epsilon) of LayerNorm."""
    x = jnp.asarray(states, space.beta.dtype)
    x = x - x.mean(-1, keepdims=True)
    return jax.lax.rsqrt(jnp.square(x).mean(-1) + space.epsilon)


def logits(space: FoldedClassSpace, products, states) -> Float[Array, "*any class"]:
    """Class logits of states whose products are known."""

    def scale(space, products, states):
        inverse = inverse_sigma(space, states)[..., None]
        scaled = products * inverse + along_last(space.beta, products)
        return scaled if space.space is None else compare(space.space, scaled, states)

    return by_token(scale, space, products, states)


def compare(class_space: ClassSpace, columns, states) -> Float[Array, "*any class"]:
    """Class logits from the columns of embeddings; see the module."""
    if class_space.mlp is not None:
        return class_space.compare(columns)
    classes, temperature = class_space.embedding.shape[0], class_space.temperature
    embedded: Any = columns[..., classes:]
    if class_space.projection is None:
        embedded = class_space.normalize(states)
    factor: Any = inverse_length(embedded)
    factor = factor * jnp.asarray(temperature, factor.dtype)
    return columns[..., :classes] * factor + along_last(class_space.bias, columns)


def label_logit(
    space: FoldedClassSpace, products, states, label
) -> Float[Array, "batch token"]:
    """Logit of each image's label at every token."""
    label = broadcast_labels(label, products.shape[:1])
    index = label[:, None, None]
    if space.space is not None or space.patches is not None:
        of_classes = logits(space, products, states)
        return jnp.take_along_axis(of_classes, index, axis=-1)[..., 0]
    true = jnp.take_along_axis(products, index, axis=-1)[..., 0]
    return true * inverse_sigma(space, states) + space.beta[label][:, None]


def rank_and_logit(
    space: FoldedClassSpace, products, states, label
) -> tuple[Int[Array, "batch token"], Float[Array, "batch token"]]:
    """Rank and logit of each image's label at every token."""
    label = broadcast_labels(label, products.shape[:1])
    true = label_logit(space, products, states, label)
    return rank_of(logits(space, products, states), true, label[:, None]), true
