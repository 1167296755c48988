"""Edits of weights: memories replaced, scaled, freed of a class, or given a new value.

Each returns a new `Model` with the same architecture, to run, save and load as any
other. They compose with `jit`, `vmap` and `grad`: a sweep is a `vmap` over factors.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from vitjax import messages
from vitjax.checks import checked, known_values
from vitjax.models.model import Model, memory_values
from vitjax.types import ArrayLike

KERNELS = {
    "attention": ("MultiHeadDotProductAttention_0", "out"),
    "mlp": ("MlpBlock_0", "Dense_1"),
}
"""Memory system -> where its value vectors are in a block's parameters."""


def replace_kernel(model: Model, system: str, kernel: Any) -> Model:
    """The model with another output matrix of a sub-layer, stacked over blocks."""
    module, layer = KERNELS[system]
    kernel = jnp.asarray(kernel, model.dtype)
    block = model.block_params
    layers = block[module][layer] | {"kernel": kernel}
    block = {**block, module: {**block[module], layer: layers}}
    encoder = {**model.params["Transformer"], "encoderblock": block}
    return model.replace(params={**model.params, "Transformer": encoder})


def with_memory_values(model: Model, values: Mapping[str, Any]) -> Model:
    """A model with other value vectors: the inverse of `memory_values`.

    Where LayerScale multiplies an update, rows of the output matrix are the values over
    its factor; a channel whose factor is 0 keeps its weights, since nothing is written
    there.

    Args:
        model: the model.
        values: "attention", "mlp" or both, [layer memory dim] as `memory_values` gives
            them.

    Returns:
        The model, whose `memory_values` are these.

    Raises:
        ValueError: an unknown system, or another shape.

    Example:
        >>> values = vitjax.memory_values(model)["mlp"]
        >>> quiet = vitjax.with_memory_values(model, {"mlp": values.at[3].set(0)})
    """
    old = memory_values(model)
    for system, new in values.items():
        messages.check_one_of("values", system, KERNELS)
        if np.shape(new) != old[system].shape:
            raise ValueError(
                f"values[{system!r}] has shape {np.shape(new)}; the model's memory "
                f"values are {old[system].shape}, [layer memory dim]."
            )
        module, layer = KERNELS[system]
        kernel = jnp.asarray(model.block_params[module][layer]["kernel"])
        rows = jnp.asarray(new, kernel.dtype)
        if model.config.layer_scale and model.config.norm == "pre":
            name = f"LayerScale_{list(KERNELS).index(system)}"
            gamma = jnp.asarray(model.block_params[name]["gamma"])[:, None]
            kept, still = kernel.reshape(rows.shape), gamma == 0
            unchanged = (rows == old[system]) | still  # to the last bit
            rows = jnp.where(unchanged, kept, rows / jnp.where(still, 1, gamma))
        model = replace_kernel(model, system, rows.reshape(kernel.shape))
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
    module, layer = KERNELS[system]
    kernel = jnp.asarray(model.block_params[module][layer]["kernel"])
    shape = memory_values(model)[system].shape
    if any(size not in (1, full) for size, full in zip(factor.shape, shape)):
        raise ValueError(
            f"factor of shape {factor.shape} does not fit the memories {shape[:2]}, "
            "[layer memory]; either axis may be 1."
        )
    factor = jnp.asarray(factor, kernel.dtype)
    rows = kernel.reshape(shape) * factor[:, :, None]
    return replace_kernel(model, system, rows.reshape(kernel.shape))


@checked
def remove_class(
    model: Model,
    class_: Int[ArrayLike, ""] | int,
    *,
    layers: Sequence[int] | None = None,
    systems: Sequence[str] = ("mlp",),
) -> Model:
    """A model whose memories no longer promote a class, nor speak against it.

    Every value vector v becomes v - (v.e) e, e = E_c / |E_c|, so that E_c.v = 0
    (`memory_classes` reads E.v). What biases, other blocks and the embedding write for
    the class stays.

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
    number = class_ if isinstance(class_, int) else known_values(class_)
    if number is not None:
        messages.check_range("class_", int(number), 0, model.num_classes - 1)
    direction = jnp.asarray(model.class_space.embedding)[class_]
    direction = direction / jnp.linalg.norm(direction)
    edited = np.zeros((depth, 1, 1), bool)
    edited[np.asarray(layers, int) % depth] = True
    new = {}
    for system in systems:
        messages.check_one_of("systems", system, KERNELS)
        along = values[system] @ direction.astype(values[system].dtype)
        freed = values[system] - along[..., None] * direction[None, None]
        new[system] = jnp.where(edited, freed, values[system])
    return with_memory_values(model, new)


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
    et al. 2022, arXiv 2202.05262, equation 2). Biases are not part of W.

    Args:
        model: the model.
        layer: the block, negative ones from the end. Static.
        key: activations of the MLP's neurons, such as `trace.mlp_hidden` of a token.
        value: what the MLP is to add to the residual stream for it.
        covariance: C, the mean of h h^T over patterns that are to be left alone; None
            for the identity.

    Returns:
        The model.

    Raises:
        ValueError: no such block, or arrays that do not fit.

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
    rows, key = values[layer], jnp.asarray(key, values.dtype)
    direction = key
    if covariance is not None:
        direction = jnp.linalg.solve(jnp.asarray(covariance, values.dtype), key)
    missing = jnp.asarray(value, values.dtype) - rows.T @ key
    step = jnp.outer(direction, missing) / (key @ direction)
    return with_memory_values(model, {"mlp": values.at[layer].set(rows + step)})
