"""Key-value memories: the classes that value vectors promote, and agreement rates.

A sub-layer's output is a sum over memories, sum_m a_m v_m + bias: v_m are the rows of
its output matrix (`vitjax.memory_values`), a_m the coefficients with which a token
calls them. In class space a memory is `E.v_m`, raw: without bias and without norm
(Vilas et al. 2023, sections 3 and 6). In a residual-post-norm block the update is a
norm of that sum. There memories are rows before the norm, as the published code takes
them: an agreement says that a memory points to a class, not how much of it the norm
leaves in the stream. Where patches have a class embedding of their own (DINOv2),
memories are in the class space of [CLS].
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vitjax import messages
from vitjax.analysis.class_space import Labels, broadcast_labels, is_class
from vitjax.analysis.top_k import fast_top_k_indices
from vitjax.checks import checked
from vitjax.types import (
    CONVENTIONS,
    ArrayLike,
    ClassSpace,
    Convention,
    Trace,
    pytree,
    to_float32,
    unit,
)

System = Literal["attention", "mlp"]


@pytree
class MemoryClasses:
    """The classes of memories and the memories of classes, strongest first.

    Args:
        classes: the classes that each memory promotes most.
        memories: the memories that promote each class most.
    """

    classes: Int[ArrayLike, "*any memory top"]
    memories: Int[ArrayLike, "*any class top"]


@checked
def memory_coefficients(
    trace: Trace, *, convention: Convention = "paper"
) -> dict[System, Float[Array, "*layer batch token memory"]]:
    """Coefficients with which tokens call the memories of a layer.

    Attention: the values mixed by attention, heads side by side, A V. MLP: "paper" the
    neurons after the GELU, "vilas2023_code" before it; both have the same strongest
    ones wherever those are positive.

    Args:
        trace: with `mixed_values`, and `mlp_hidden` ("paper") or `mlp_preactivation`.
        convention: see above.

    Returns:
        "attention": `head * key` coefficients, head-major; "mlp": `mlp_dim`.

    Raises:
        ValueError: the trace lacks a field, or an unknown convention.

    Example:
        >>> fields = ("mixed_values", "mlp_hidden")
        >>> _, trace = vitjax.forward(model, images, capture=fields)
        >>> vitjax.memory_coefficients(trace)["mlp"].shape  # [layer batch token memory]
    """
    messages.check_one_of("convention", convention, CONVENTIONS)
    field = "mlp_hidden" if convention == "paper" else "mlp_preactivation"
    mixed, hidden = trace.mixed_values, getattr(trace, field)
    if mixed is None or hidden is None:
        raise ValueError(
            f"memory_coefficients needs a trace of capture=('mixed_values', {field!r})."
        )
    mixed = jnp.asarray(mixed)
    return {
        "attention": mixed.reshape(*mixed.shape[:-2], -1),
        "mlp": jnp.asarray(hidden),
    }


def memory_logits(class_space: ClassSpace, values) -> Float[Array, "class memory"]:
    """E.V, in float32 at least."""
    embedding = jnp.asarray(class_space.embedding)
    return jnp.matmul(
        embedding,
        jnp.asarray(values, embedding.dtype).T,
        precision="highest",
        preferred_element_type=np.promote_types(embedding.dtype, jnp.float32),
    )


@checked
def memory_classes(
    class_space: ClassSpace, values: Float[ArrayLike, "*any memory dim"], *, k: int = 5
) -> MemoryClasses:
    """The top classes of every memory and the top memories of every class.

    Computed once for a model, it takes the place of `values` in `key_value_agreement`
    and `compositionality`, which need nothing else of them.

    Args:
        class_space: `model.class_space`.
        values: of one layer, or with leading axes.
        k: how many of each; at most the number of classes and of memories. Static.

    Returns:
        Positions along the last axis but one of `values`, and class numbers.

    Raises:
        ValueError: k is out of its range.

    Example:
        >>> values = vitjax.memory_values(model)["mlp"][-1]
        >>> best = vitjax.memory_classes(model.class_space, values, k=1).classes[:, 0]
    """

    def of_layer(values):
        logits = memory_logits(class_space, values)
        return MemoryClasses(
            classes=fast_top_k_indices(logits.T, k),
            memories=fast_top_k_indices(logits, k),
        )

    return over_leading(of_layer, jnp.asarray(values))


def over_leading(function, values):
    """A function of [memory dim] over leading axes, one after the other."""
    leading = values.shape[:-2]
    if not leading:
        return function(values)
    flat = jax.lax.map(function, values.reshape(-1, *values.shape[-2:]))
    return jax.tree.map(lambda leaf: leaf.reshape(*leading, *leaf.shape[1:]), flat)


@checked
def class_value_agreement(
    class_space: ClassSpace, values: Float[ArrayLike, "*any memory dim"]
) -> Float[Array, "*any class"]:
    """How well the best memory of a layer agrees with each class.

    max_m cos(E_c, v_m) (Vilas et al. 2023, section 6).

    Args:
        class_space: `model.class_space`.
        values: value vectors, such as `memory_values(model)["mlp"]` [layer memory dim];
            reshaped to [layer head key dim] those of attention give one agreement per
            head.

    Returns:
        In [-1, 1]: 1 where a value vector points along the class embedding. Random
        vectors of width d give about sqrt(2 ln(memory) / d).

    Example:
        >>> values = vitjax.memory_values(model)["mlp"]
        >>> vitjax.class_value_agreement(model.class_space, values)  # [layer class]
    """
    embedding = unit(to_float32(jnp.asarray(class_space.embedding)))

    def of_layer(values):
        rows = unit(to_float32(values))
        return jnp.matmul(embedding, rows.T, precision="highest").max(-1)

    return over_leading(of_layer, jnp.asarray(values))


Values = Float[ArrayLike, "memory dim"] | MemoryClasses
"""Value vectors of one layer, or what `memory_classes` makes of them."""


@checked
def key_value_agreement(
    class_space: ClassSpace,
    coefficients: Float[ArrayLike, "*any memory"],
    values: Values,
    label: Labels,
    *,
    k: int = 5,
    convention: Convention = "paper",
) -> Bool[Array, "*any"]:
    """Whether a token's strongest memories promote its class.

    With M the k memories of largest coefficient: "paper": the label is among the k
    classes of largest logit of any memory in M (Vilas et al. 2023, section 6).
    "vilas2023_code": a memory in M is among the k memories that promote the label most.
    Its mean over tokens is the agreement rate. Chance differs by layer and is best
    measured with permuted labels; roughly it is k^2/class and k^2/memory.

    Args:
        class_space: `model.class_space`; not read where `values` is `MemoryClasses`.
        coefficients: of one layer, from `memory_coefficients`.
        values: that layer's value vectors, or `memory_classes` of them.
        label: class numbers in [0, class), as for `rank`.
        k: how many memories, and classes of each; static.
        convention: see above.

    Returns:
        True or False for every token.

    Raises:
        ValueError: k is out of its range, the label has too many axes, or an unknown
            convention.

    Example:
        >>> values = vitjax.memory_values(model)["mlp"][-1]
        >>> calls = vitjax.memory_coefficients(trace)["mlp"][-1]  # [batch token memory]
        >>> space = model.class_space
        >>> agree = vitjax.key_value_agreement(space, calls, values, label[:, None])
    """
    classes = classes_of(class_space, values, k, coefficients.shape[-1])
    strongest = fast_top_k_indices(coefficients, k)
    label = broadcast_labels(label, strongest.shape[:-1])
    return agreement(classes, strongest, label, k=k, convention=convention)


def agreement(
    known: MemoryClasses, strongest, label, *, k: int, convention: Convention = "paper"
) -> Bool[Array, "*any"]:
    """`key_value_agreement` of the strongest memories."""
    messages.check_one_of("convention", convention, CONVENTIONS)
    if convention == "paper":
        classes = jnp.asarray(known.classes)[..., :k][strongest]
        return (classes == label[..., None, None]).any((-2, -1))
    memories = jnp.asarray(known.memories)[..., :k]
    classes = memories.shape[-2]
    memories = jnp.where(is_class(label, classes)[..., None], memories[label], -1)
    return (strongest[..., :, None] == memories[..., None, :]).any((-2, -1))


@checked
def compositionality(
    class_space: ClassSpace,
    coefficients: Float[ArrayLike, "*any memory"],
    values: Values,
    predicted: Labels,
    *,
    k: int = 5,
) -> Bool[Array, "*any"]:
    """Whether a layer's top class is NOT composed: one strong memory has it too.

    Named after the question, not after the answer: True speaks against composition.
    argmax_c E.v_m = predicted for any of the k memories of largest coefficient (Vilas
    et al. 2023, section 6; Geva et al. 2021). False: the layer composes its top class
    of several memories.

    Args:
        class_space: `model.class_space`; not read where `values` is `MemoryClasses`.
        coefficients: of one layer, from `memory_coefficients`.
        values: that layer's value vectors, or `memory_classes` of them.
        predicted: top class of what the layer writes, projected with norm and bias.
        k: how many memories; static.

    Returns:
        True where the top class is NOT composed.

    Raises:
        ValueError: k is out of its range, or `predicted` has too many axes.

    Example:
        >>> values = vitjax.memory_values(model)["mlp"][-1]
        >>> coefficients = vitjax.memory_coefficients(trace)["mlp"][-1]
        >>> logits = vitjax.project(model.class_space, trace.mlp_update[-1])
        >>> predicted = logits.argmax(-1)
        >>> space = model.class_space
        >>> single = vitjax.compositionality(space, coefficients, values, predicted)
    """
    classes = classes_of(class_space, values, k, coefficients.shape[-1])
    strongest = fast_top_k_indices(coefficients, k)
    predicted = broadcast_labels(predicted, strongest.shape[:-1])
    return top1_of_one_memory(classes, strongest, predicted)


def top1_of_one_memory(
    known: MemoryClasses, strongest, predicted
) -> Bool[Array, "*any"]:
    """`compositionality` of the strongest memories."""
    top = jnp.asarray(known.classes)[..., 0][strongest]
    return (top == predicted[..., None]).any(-1)


def classes_of(class_space, values: Values, k: int, memories: int) -> MemoryClasses:
    """`memory_classes` of values; checked where they are `MemoryClasses` already."""
    if not isinstance(values, MemoryClasses):
        values = memory_classes(class_space, values, k=k)
    if values.classes.ndim != 2 or values.classes.shape[0] != memories:
        raise ValueError(
            f"Coefficients of {memories} memories do not fit memories of shape "
            f"{values.classes.shape[:-1]}; give one layer's, of the same system."
        )
    if values.classes.shape[-1] < k:
        raise ValueError(
            f"These MemoryClasses hold {values.classes.shape[-1]} of each, not {k}; "
            f"make them with memory_classes(..., k={k})."
        )
    return values
