"""Edits of weights: memories replaced, scaled, freed of a class, or given a new value.

Each returns a new `Model` of the same architecture, to run, save and load as any other.
They compose with `jit`, `vmap` and `grad`: a sweep is a `vmap` over factors. Values are
those of `memory_values`: times LayerScale; in a residual-post-norm block, what its norm
then takes. Biases stay as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vitjax import messages
from vitjax.checks import checked, known_values
from vitjax.models.model import Model, memory_values
from vitjax.types import ArrayLike, to_float32

KERNELS = {
    "attention": ("MultiHeadDotProductAttention_0", "out"),
    "mlp": ("MlpBlock_0", "Dense_1"),
}
"""Memory system -> where its value vectors are in a block's parameters."""


def kernel_of(model: Model, system: str) -> Float[Array, "layer ..."]:
    """The output matrix of a sub-layer, stacked over blocks."""
    module, layer = KERNELS[system]
    return jnp.asarray(model.block_params[module][layer]["kernel"])


def replace_kernel(model: Model, system: str, rows: Any) -> Model:
    """The model with other rows [layer memory dim] of such a matrix."""
    module, layer = KERNELS[system]
    old, block = kernel_of(model, system), model.block_params
    kernel = jnp.asarray(rows, old.dtype).reshape(old.shape)
    layers = block[module][layer] | {"kernel": kernel}
    block = {**block, module: {**block[module], layer: layers}}
    encoder = {**model.params["Transformer"], "encoderblock": block}
    return model.replace(params={**model.params, "Transformer": encoder})


@checked
def with_memory_values(model: Model, values: Mapping[str, Any]) -> Model:
    """A model with other value vectors: the inverse of `memory_values`.

    Args:
        model: the model.
        values: "attention", "mlp" or both, [layer memory dim] as `memory_values` gives
            them.

    Returns:
        The model, whose `memory_values` are these.

    Raises:
        ValueError: an unknown system, another shape, or values in a channel whose
            LayerScale is 0, to which nothing can be written.

    Example:
        >>> values = vitjax.memory_values(model)["mlp"]
        >>> quiet = vitjax.with_memory_values(model, {"mlp": values.at[3].set(0)})
    """
    before = memory_values(model)
    for system, new in values.items():
        messages.check_one_of("values", system, KERNELS)
        old = before[system]
        if np.shape(new) != old.shape:
            raise ValueError(
                f"values[{system!r}] has shape {np.shape(new)}; the model's memory "
                f"values are {old.shape}, [layer memory dim]."
            )
        rows = jnp.asarray(new, old.dtype)
        if model.config.layer_scale and model.config.norm == "pre":
            name = f"LayerScale_{list(KERNELS).index(system)}"
            gamma = jnp.asarray(model.block_params[name]["gamma"])[:, None]
            closed = gamma == 0
            if np.any(known_values(closed & (rows != 0))):
                raise ValueError(
                    f"values[{system!r}] write to a channel whose LayerScale is 0; "
                    "they must be 0 there."
                )
            gamma = jnp.where(closed, 1, gamma)
            # Values that stay keep their last bit, and have a derivative all the same.
            kept = kernel_of(model, system).reshape(rows.shape) + (rows - old) / gamma
            rows = jnp.where(rows == old, kept, rows / gamma)
        model = replace_kernel(model, system, rows)
    return model


@checked
def scale_memories(
    model: Model, system: str, factor: Float[ArrayLike, "layer memory"]
) -> Model:
    """A model whose memories write `factor` times as much: v -> factor v.

    Args:
        model: the model.
        system: "attention" or "mlp".
        factor: of each memory; 1 leaves it, 0 removes it, negative ones turn it around.
            Either axis may be 1 and then holds for all.

    Returns:
        The model.

    Raises:
        ValueError: an unknown system, or factors that do not fit.

    Example:
        >>> factor = np.ones((model.config.depth, model.config.mlp_dim))
        >>> factor[11, 42] = 0
        >>> edited = vitjax.scale_memories(model, "mlp", factor)
    """
    messages.check_one_of("system", system, KERNELS)
    shape = memory_values(model)[system].shape
    if any(size not in (1, full) for size, full in zip(factor.shape, shape)):
        raise ValueError(
            f"factor of shape {factor.shape} does not fit the memories {shape[:2]}, "
            "[layer memory]; either axis may be 1."
        )
    kernel = kernel_of(model, system).reshape(shape)
    rows = kernel * jnp.asarray(factor, kernel.dtype)[:, :, None]
    return replace_kernel(model, system, rows)


@checked
def remove_class(
    model: Model,
    class_: Int[ArrayLike, ""] | int,
    *,
    layers: Sequence[int] | None = None,
    systems: Sequence[str] = ("mlp",),
) -> Model:
    """A model whose memories no longer promote a class, nor speak against it.

    Two directions are projected out of every value vector v: E_c, by which
    `memory_classes` reads E_c.v, and the one in which v reaches the class's logit,
    through the final norm (and that of a residual-post-norm block). Both are 0 then.
    What biases, other blocks and the embedding write for the class stays, and so does
    what memories do to it through later blocks. Where patches or a distillation token
    have class embeddings of their own, E_c is that of [CLS].

    Args:
        model: the model.
        class_: class number.
        layers: in these blocks only, negative ones from the end; None for all. Static.
        systems: of "attention" and "mlp". Static.

    Returns:
        The model.

    Raises:
        ValueError: an unknown system, or a block or class that does not exist.

    Example:
        >>> without_three = vitjax.remove_class(model, 3)
    """
    depth, values = model.config.depth, memory_values(model)
    layers = range(depth) if layers is None else layers
    messages.check_range("layers", tuple(layers), -depth, depth - 1)
    edited = np.zeros((depth, 1, 1), bool)
    edited[np.asarray(layers, int) % depth] = True
    new = {}
    for system in systems:
        messages.check_one_of("systems", system, KERNELS)
        old, directions = values[system], class_directions(model, class_, system)
        along = multiply(to_float32(old), jnp.linalg.pinv(directions))
        freed = to_float32(old) - multiply(along, directions)
        new[system] = jnp.where(edited, freed.astype(old.dtype), old)
    return with_memory_values(model, new)


def class_directions(
    model: Model, class_: Any, system: str
) -> Float[Array, "layer_or_1 direction dim"]:
    """E_c, and the gradient of its logit but for what norms divide by."""

    def before_norm(direction, scale):  # the adjoint of x -> scale (x - mean x)
        direction = direction * to_float32(jnp.asarray(scale))
        return direction - direction.mean(-1, keepdims=True)

    space, block = model.class_space, model.block_params
    row = to_float32(jnp.asarray(space.embedding))[class_][None]
    direct = before_norm(row, jnp.asarray(space.norm_scale)[None])
    if model.config.norm == "residual_post":
        index = list(KERNELS).index(system)
        if model.config.layer_scale:
            direct = direct * to_float32(block[f"LayerScale_{index}"]["gamma"])
        direct = before_norm(direct, block[f"LayerNorm_{index}"]["scale"])
    return jnp.stack(jnp.broadcast_arrays(row, direct), axis=1)


def multiply(x, y) -> Float[Array, "..."]:
    """A product in full precision: edits are exact on an accelerator, too."""
    return jnp.matmul(x, y, precision="highest")


@checked
def rank_one_edit(
    model: Model,
    *,
    layer: int,
    key: Float[ArrayLike, " hidden"],
    value: Float[ArrayLike, " dim"],
    covariance: Float[ArrayLike, "hidden hidden"] | None = None,
) -> Model:
    """A model whose MLP answers one pattern of its neurons with a chosen value.

    With W the values of a block's memories [hidden dim], k the key and v the value,

        W <- W + u (v - W^T k)^T / (k.u),   u = C^-1 k,

    so that W^T k = v exactly, and a pattern h with h.u = 0 is answered as before (Meng
    et al. 2022, arXiv 2202.05262, equation 2).

    Args:
        model: the model.
        layer: the block, negative ones from the end. Static.
        key: activations of the MLP's neurons, such as `trace.mlp_hidden` of a token.
        value: what the memories are to add up to for it. The bias comes on top; in a
            residual-post-norm block the norm comes after.
        covariance: C, the mean of h h^T over patterns that are to be left alone, of
            full rank: of few patterns, add some of the identity. None for the identity.

    Returns:
        The model.

    Raises:
        ValueError: no such block, arrays that do not fit, or k.u that is not positive.

    Example:
        >>> key = trace.mlp_hidden[5].mean((0, 1))
        >>> answer = model.class_space.embedding[7]
        >>> edited = vitjax.rank_one_edit(model, layer=5, key=key, value=answer)
    """
    config = model.config
    messages.check_range("layer", layer, -config.depth, config.depth - 1)
    hidden: Any = config.mlp_dim
    sizes = {"key": (hidden,), "value": (config.dim,), "covariance": (hidden, hidden)}
    given = {"key": key, "value": value, "covariance": covariance}
    for name, array in given.items():
        if array is not None and array.shape != sizes[name]:
            raise ValueError(
                f"{name} of shape {array.shape} does not fit; expected {sizes[name]}."
            )
    values = memory_values(model)["mlp"]
    rows = to_float32(values)[layer]
    key, value = (jnp.asarray(each, rows.dtype) for each in (key, value))
    direction = key
    if covariance is not None:
        direction = jnp.linalg.solve(jnp.asarray(covariance, rows.dtype), key)
    length = multiply(key, direction)
    known = known_values(length)
    if known is not None and not 0 < known < np.inf:
        raise ValueError(
            f"key.C^-1 key = {known} must be positive: the key must not be 0, and the "
            "covariance positive definite, such as one with some of the identity added."
        )
    step = jnp.outer(direction / length, value - multiply(key, rows))
    edited = values.at[layer].set((rows + step).astype(values.dtype))
    return with_memory_values(model, {"mlp": edited})
