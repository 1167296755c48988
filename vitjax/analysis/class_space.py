"""Hidden states in class space: class logits, ranks, identifiability."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vitjax.analysis.top_k import top_k_indices
from vitjax.types import ArrayLike, ClassSpace

Labels = Int[ArrayLike, "..."] | int | np.integer
"""Class numbers, of any shape that broadcasts."""


def project(
    class_space: ClassSpace, states: Float[ArrayLike, "*any dim"]
) -> Float[Array, "*any class"]:
    """Class logits of hidden states.

    p = E.LN(x) + b, with the model's own final LayerNorm and head bias (Vilas et al.
    2023, section 3, writes E.x; the published code adds norm and bias, as here).

    Args:
        class_space: `model.class_space`.
        states: residual streams or updates, any leading axes.

    Returns:
        Class logits, computed and returned in float32 at least.

    Raises:
        ValueError: the states' width is not the class space's.
    """
    if states.shape[-1] != class_space.embedding.shape[-1]:
        raise ValueError(
            f"States of width {states.shape[-1]} do not fit a class space of width "
            f"{class_space.embedding.shape[-1]}; the last axis of states is `dim`."
        )
    return class_space.logits(states)


def broadcast_labels(label: Labels, shape: tuple[int, ...]) -> Int[Array, "..."]:
    """Class numbers, broadcast by numpy's rules against leading axes."""
    label = jnp.asarray(label).astype(jnp.int32)
    if label.ndim > len(shape):
        raise ValueError(
            f"label of shape {label.shape} has more axes than the leading axes {shape} "
            "of the class logits."
        )
    label = label.reshape((1,) * (len(shape) - label.ndim) + label.shape)
    return jnp.broadcast_to(label, shape)


def take_label(
    class_logits: Float[ArrayLike, "*any class"], label: Labels
) -> Float[Array, "*any"]:
    """The logit of a label; labels broadcast against the leading axes."""
    class_logits = jnp.asarray(class_logits)
    label = broadcast_labels(label, class_logits.shape[:-1])
    return jnp.take_along_axis(class_logits, label[..., None], axis=-1)[..., 0]


def rank(
    class_logits: Float[ArrayLike, "*any class"], label: Labels
) -> Int[Array, "*any"]:
    """Number of classes with a larger logit than the label's.

    rank(p, c) = #{k : p_k > p_c} (Vilas et al. 2023, section 3, equation 1).

    Args:
        class_logits: logits, any leading axes.
        label: class numbers in [0, class), broadcast by numpy's rules against the
            leading axes: for [batch token class] pass `label[:, None]`.

    Returns:
        0 for the best, class - 1 for the worst. Ties take the best rank; a true logit
        that is NaN ranks last.

    Raises:
        ValueError: the label has more axes than the logits have leading ones.
    """
    true = take_label(class_logits, label)
    larger = jnp.asarray(class_logits) > true[..., None]
    count = larger.sum(-1, dtype=jnp.int32)
    return jnp.where(jnp.isnan(true), class_logits.shape[-1] - 1, count)


def identifiability(
    class_logits: Float[ArrayLike, "*any class"], label: Labels
) -> Float[Array, "*any"]:
    """Class identifiability score of a state.

    1 - rank/C, with C the number of classes (Vilas et al. 2023, section 3, equation 1).

    Args:
        class_logits: logits, any leading axes.
        label: class numbers, as for `rank`.

    Returns:
        In [1/C, 1]: 1 where the label has the largest logit, 1/C where the smallest;
        (C+1)/(2C) at chance.
    """
    classes = class_logits.shape[-1]
    return 1 - rank(class_logits, label).astype(jnp.float32) / classes


class TopK(NamedTuple):
    """The k largest class logits in descending order, and their classes."""

    logits: Float[Array, "*any top"]
    classes: Int[Array, "*any top"]


def top_k(class_logits: Float[ArrayLike, "*any class"], *, k: int = 5) -> TopK:
    """The k classes with the largest logits, in descending order.

    Args:
        class_logits: logits, any leading axes.
        k: how many; at most the number of classes. Static.

    Returns:
        Logits and class numbers; among equal logits the smaller class number first.

    Raises:
        ValueError: k is not in [1, class].
    """
    class_logits = jnp.asarray(class_logits)
    classes = top_k_indices(class_logits, k)
    return TopK(jnp.take_along_axis(class_logits, classes, axis=-1), classes)
