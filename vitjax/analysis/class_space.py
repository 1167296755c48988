"""Hidden states in class space: class logits, ranks, identifiability."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from vitjax.analysis.top_k import top_k_indices
from vitjax.checks import checked
from vitjax.messages import check_classes
from vitjax.types import ArrayLike, ClassSpace

Labels = Integer[ArrayLike, "..."] | int | np.integer
"""Class numbers in [0, class), of any shape that broadcasts; see `vitjax.checks`."""


@checked
def project(
    class_space: ClassSpace, states: Float[ArrayLike, "*any dim"]
) -> Float[Array, "*any class"]:
    """Class logits of hidden states.

    p = E.LN(x) + b, with the model's own final LayerNorm and head bias (Vilas et al.
    2023, section 3, writes E.x; the published code adds norm and bias, as here). Of a
    model that compares embeddings (CLIP, SigLIP) they are its cosines times their
    temperature, see `vitjax.ClassSpace`; where patches have a class embedding of their
    own, those of [CLS]: `vitjax.project_tokens` reads each token by its own.

    Args:
        class_space: `model.class_space`.
        states: residual streams or updates, any leading axes.

    Returns:
        Class logits, computed and returned in float32 at least.

    Raises:
        ValueError: the states' width is not the class space's.

    Example:
        >>> states = trace.residual  # [layer batch token dim]
        >>> logits = vitjax.project(model.class_space, states)
    """
    check_width(class_space, states)
    return class_space.logits(states)


def check_width(class_space: ClassSpace, states) -> None:
    """Raise ValueError unless the last axis of states is the class space's."""
    if states.shape[-1] != class_space.embedding.shape[-1]:
        raise ValueError(
            f"States of width {states.shape[-1]} do not fit a class space of width "
            f"{class_space.embedding.shape[-1]}; the last axis of states is `dim`."
        )


@checked
def project_tokens(
    model: Any, states: Float[ArrayLike, "*any token dim"]
) -> Float[Array, "*any token class"]:
    """Class logits of a sequence of tokens, each by its own class embedding.

    As `vitjax.project`, but where the head reads [CLS] and the mean of the patches by
    different class embeddings (DINOv2): there prefix tokens are read by that of [CLS]
    and patches by theirs, without the bias, so that at the last block the logits of
    [CLS] plus the mean of the patches' are the model's. Attention pooling reads each
    token as if it were the only one.

    Args:
        model: the model.
        states: residual streams or updates of whole sequences, prefix tokens first.

    Returns:
        Class logits, computed and returned in float32 at least.

    Raises:
        ValueError: the states' width is not the model's, or it has no classes.

    Example:
        >>> logits = vitjax.project_tokens(model, trace.residual)
    """
    space, prefix = model.class_space, model.config.prefix
    check_classes(model.num_classes)
    check_width(space, states)
    if space.patch_embedding is None:
        return space.logits(states)
    parts = states[..., :prefix, :], states[..., prefix:, :]
    logits = (each.logits(part) for each, part in zip((space, space.of_patches), parts))
    return jnp.concatenate(list(logits), axis=-2)


def broadcast_labels(label: Labels, shape: tuple[int, ...]) -> Int[Array, "..."]:
    """Class numbers in int32, broadcast by numpy's rules against leading axes."""
    label = jnp.asarray(label).astype(jnp.int32)
    if label.ndim > len(shape):
        raise ValueError(
            f"label of shape {label.shape} has more axes than the leading axes {shape} "
            "of the class logits."
        )
    sizes = (1,) * (len(shape) - label.ndim) + label.shape
    if any(size not in (1, of) for size, of in zip(sizes, shape)):
        raise ValueError(
            f"label of shape {label.shape} does not broadcast against {shape}, the "
            "leading axes of the class logits, or the number of images."
        )
    return jnp.broadcast_to(label.reshape(sizes), shape)


def is_class(label: Int[Array, "*any"], classes: int) -> Bool[Array, "*any"]:
    """Whether a number is a class."""
    return (label >= 0) & (label < classes)


def nan_without_class(
    values: Float[Array, "..."], label: Int[Array, " batch"], classes: int, *, axis: int
) -> Float[Array, "..."]:
    """Values of images, NaN where the label of an image is no class."""
    shape = [1] * values.ndim
    shape[axis] = len(label)
    return jnp.where(is_class(label, classes).reshape(shape), values, jnp.nan)


def take_label(
    class_logits: Float[ArrayLike, "*any class"], label: Labels
) -> Float[Array, "*any"]:
    """The logit of a label, NaN where that is no class; labels broadcast."""
    class_logits = jnp.asarray(class_logits)
    label = broadcast_labels(label, class_logits.shape[:-1])
    label = jnp.where(label < 0, class_logits.shape[-1], label)  # not from the end
    return jnp.take_along_axis(class_logits, label[..., None], axis=-1)[..., 0]


@checked
def rank(
    class_logits: Float[ArrayLike, "*any class"], label: Labels
) -> Int[Array, "*any"]:
    """Number of classes with a larger logit than the label's.

    rank(p, c) = #{k : p_k > p_c} (Vilas et al. 2023, section 3, equation 1). Of logits
    that equal the label's, half count too, rounded down: #{k != c : p_k = p_c} // 2. So
    a model that cannot tell classes apart, such as one whose head is zero, is at chance
    and not at the top.

    Args:
        class_logits: logits, any leading axes.
        label: class numbers in [0, class), broadcast by numpy's rules against the
            leading axes: for [batch token class] pass `label[:, None]`.

    Returns:
        0 for the best, class - 1 for the worst; a true logit that is NaN ranks last.

    Raises:
        ValueError: the label does not broadcast, or is no class.

    Example:
        >>> states = vitjax.project(model.class_space, trace.residual)
        >>> vitjax.rank(states, label[:, None])  # [layer batch token]
    """
    logits = jnp.asarray(class_logits)
    label = broadcast_labels(label, logits.shape[:-1])
    return rank_of(logits, take_label(logits, label), label)


def rank_of(
    logits: Float[Array, "*any class"],
    true: Float[Array, "*any"],
    label: Int[Array, "*#any"],
) -> Int[Array, "*any"]:
    """`rank` of a label whose logit is known.

    It is left out of the count: the compiler may round it differently inside and
    outside of the comparison.
    """
    classes = jax.lax.broadcasted_iota(
        jnp.int32, (1,) * true.ndim + logits.shape[-1:], true.ndim
    )
    others = classes != label[..., None]
    larger, equal = logits > true[..., None], logits == true[..., None]
    halves = 2 * larger.astype(jnp.int32) + equal.astype(jnp.int32)
    count = jnp.where(others, halves, 0).sum(-1, dtype=jnp.int32) // 2
    return jnp.where(jnp.isnan(true), logits.shape[-1] - 1, count)


@checked
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
        (C+1)/(2C) at chance, and, up to 1/(2C), where all logits are equal.

    Example:
        >>> states = vitjax.project(model.class_space, trace.residual)
        >>> vitjax.identifiability(states, label[:, None])  # [layer batch token]
    """
    classes = class_logits.shape[-1]
    return 1 - rank(class_logits, label).astype(jnp.float32) / classes


class TopK(NamedTuple):
    """The k largest class logits in descending order, and their classes."""

    logits: Float[Array, "*any top"]
    classes: Int[Array, "*any top"]


@checked
def top_k(class_logits: Float[ArrayLike, "*any class"], *, k: int = 5) -> TopK:
    """The k classes with the largest logits, in descending order.

    Args:
        class_logits: logits, any leading axes.
        k: how many; at most the number of classes. Static.

    Returns:
        Logits and class numbers; among equal logits the smaller class number first.

    Raises:
        ValueError: k is not in [1, class].

    Example:
        >>> states = vitjax.project(model.class_space, trace.residual)
        >>> best, classes = vitjax.top_k(states, k=3)
    """
    class_logits = jnp.asarray(class_logits)
    classes = top_k_indices(class_logits, k)
    return TopK(jnp.take_along_axis(class_logits, classes, axis=-1), classes)
