"""Interventions as `Edits`: cut attention, remove tokens, ablate, patch, steer."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, Shaped

from vitjax import messages
from vitjax.checks import checked
from vitjax.types import (
    CONVENTIONS,
    FIELD_AXES,
    ArrayLike,
    Config,
    Convention,
    Edits,
    TapEdit,
    Trace,
)


@checked
def self_only(
    model: Any,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    convention: Convention = "paper",
    renormalize: bool = False,
) -> Edits:
    """Image tokens no longer see other image tokens.

    "paper" (Vilas et al. 2023, section 5): after the softmax, an image row's weights to
    other image tokens become 0; its own and those to prefix tokens stay, and nothing is
    renormalized. "vilas2023_code": an image row's own weight becomes exactly 1 and all
    others 0, those to [CLS] included. Rows of prefix tokens are untouched in both.

    Args:
        model: the model, or its `Config`; only the architecture counts.
        layers, heads: their numbers, negative ones from the end; None for all.
        convention: see above.
        renormalize: with "paper", cut the links before the softmax, so that what is
            left of an image row sums to one. The other convention's rows always do.

    Returns:
        Edits for `forward`, to be combined with others by `&`.

    Raises:
        ValueError: a block or head that does not exist, or an unknown convention.

    Example:
        >>> edits = vitjax.self_only(model, layers=[-1])
        >>> logits, _ = vitjax.forward(model, images, edits=edits)
    """
    messages.check_one_of("convention", convention, CONVENTIONS)
    config = getattr(model, "config", model)
    rows = np.arange(config.tokens)
    image = rows >= config.prefix
    own = rows[:, None] == rows[None]
    allowed, code = ~image[:, None] | own, convention == "vilas2023_code"
    if not code:
        allowed = allowed | ~image[None]
    return cut(allowed, config, layers, heads, renormalize or code)


@checked
def no_cls(
    model: Any,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    renormalize: bool = False,
) -> Edits:
    """Image tokens no longer see [CLS] (Vilas et al. 2023, section 5).

    Args:
        model: the model, or its `Config`; only the architecture counts.
        layers, heads: their numbers, negative ones from the end; None for all.
        renormalize: cut the link before the softmax, so that the rest of an image row
            sums to one; otherwise its weight is set to 0 after the softmax.

    Returns:
        Edits for `forward`, to be combined with others by `&`.

    Raises:
        ValueError: the model has no [CLS], or a block or head does not exist.

    Example:
        >>> edits = vitjax.no_cls(model, layers=[0, 1]) & vitjax.keep_tokens(mask)
        >>> logits, _ = vitjax.forward(model, images, edits=edits)
    """
    config = getattr(model, "config", model)
    if not config.class_token:
        raise ValueError("no_cls needs a model with a [CLS] token; this one has none.")
    allowed = np.ones((config.tokens, config.tokens), bool)
    allowed[config.prefix :, 0] = False
    return cut(allowed, config, layers, heads, renormalize)


def cut(
    allowed: np.ndarray, config: Config, layers: Any, heads: Any, renormalize: bool
) -> Edits:
    """Only links [query key_token] that are allowed, in the chosen blocks and heads."""
    chosen = choose(config, "attention_weights", layers, heads, None, None)
    mask = jnp.asarray(np.where(chosen, allowed[None, None, None], True), jnp.float32)
    return Edits(attend=mask) if renormalize else Edits(scale=mask)


@checked
def keep_tokens(keep: Bool[ArrayLike, "batch patch"]) -> Edits:
    """Only these patches exist; the others are masked, shapes stay.

    Args:
        keep: False removes a patch. Prefix tokens always stay.

    Returns:
        Edits; equal to `select_tokens` of the same patches up to rounding.

    Example:
        >>> edits = vitjax.keep_tokens(mask)  # [batch patch], True stays
        >>> logits, _ = vitjax.forward(model, images, edits=edits)
    """
    return Edits(keep=keep)


@checked
def select_tokens(indices: Int[ArrayLike, "batch kept"]) -> Edits:
    """Only these patches run, in this order: a really shorter sequence.

    Args:
        indices: patch numbers in [0, patch), row-major; chosen after the position
            embedding.

    Returns:
        Edits; see there for numbers that are no patch.

    Raises:
        ValueError: a number is negative.

    Example:
        >>> first = np.tile(np.arange(8, dtype=np.int32), (len(images), 1))
        >>> logits, _ = vitjax.forward(model, images, edits=vitjax.select_tokens(first))
    """
    return Edits(select=indices)


Members = Sequence[int] | Bool[ArrayLike, "..."] | None


def ablate(
    model: Any,
    field: str,
    *,
    layers: Members = None,
    heads: Members = None,
    neurons: Members = None,
    tokens: Members = None,
    value: Shaped[ArrayLike, "..."] | float = 0.0,
) -> Edits:
    """Entries of a field of `Trace` become a value, in every forward pass.

    x -> where(chosen, value, x). Zero ablation: value=0. Mean ablation: the field's
    mean over a reference set, `trace.mixed_values.mean(1, keepdims=True)`. Resampling:
    the field of other images. Of a head, edit "mixed_values": all that it writes.

    Args:
        model: the model, or its `Config`; only the architecture counts.
        field: a field of `Trace`. Static.
        layers, heads, neurons, tokens: which entries: numbers, negative ones from the
            end, or a boolean mask, which may be traced, so that a sweep is a `vmap`
            over masks; None for all. A mask of heads or neurons may be [layer head],
            one of tokens [batch token]. Tokens of attention weights and scores are
            queries.
        value: a number, or an array with the field's axes, of which any may be 1.

    Returns:
        Edits for `forward`, to be combined with others by `&`.

    Raises:
        ValueError: the field does not exist or has no such axis, or a number or shape
            does not fit.

    Example:
        >>> edits = vitjax.ablate(model, "mixed_values", layers=[3], heads=[0, 5])
        >>> logits, _ = vitjax.forward(model, images, edits=edits)
    """
    where = choose(model, field, layers, heads, neurons, tokens)
    return Edits(taps={field: TapEdit(where=where, value=value)})


def patch(
    model: Any,
    trace: Trace,
    field: str,
    *,
    layers: Members = None,
    heads: Members = None,
    neurons: Members = None,
    tokens: Members = None,
) -> Edits:
    """Entries of a field of `Trace` become those of another run: activation patching.

    x -> where(chosen, x_other, x). Put the trace of clean images into the pass of
    corrupted ones, and read how much of the clean answer returns.

    Args:
        model: the model, or its `Config`; only the architecture counts.
        trace: of the other run, of as many images or one.
        field: a field that the trace holds. Static.
        layers, heads, neurons, tokens: which entries, as of `ablate`.

    Returns:
        Edits for `forward`, to be combined with others by `&`.

    Raises:
        ValueError: as of `ablate`, or the trace does not hold the field.

    Example:
        >>> _, clean = vitjax.forward(model, images, capture=("residual",))
        >>> edits = vitjax.patch(model, clean, "residual", layers=[5], tokens=[0])
        >>> logits, _ = vitjax.forward(model, corrupted, edits=edits)
    """
    where = choose(model, field, layers, heads, neurons, tokens)
    value = getattr(trace, field)
    if value is None:
        raise ValueError(
            f"The trace does not hold {field!r}: run forward with capture=({field!r},)."
        )
    return Edits(taps={field: TapEdit(where=where, value=value)})


def steer(
    model: Any,
    vector: Shaped[ArrayLike, "..."],
    *,
    layers: Members,
    field: str = "residual",
    tokens: Members = None,
) -> Edits:
    """Add a vector to a field of `Trace`, at some blocks and tokens.

    x -> x + vector. A direction of a class is `model.class_space.embedding[c]`.

    Args:
        model: the model, or its `Config`; only the architecture counts.
        vector: along the field's last axis, such as [dim], or with all of its axes, of
            which any may be 1.
        layers, tokens: where, as of `ablate`; None for all.
        field: a field of `Trace`. Static.

    Returns:
        Edits for `forward`, to be combined with others by `&`.

    Raises:
        ValueError: as of `ablate`, or the vector does not fit.

    Example:
        >>> edits = vitjax.steer(model, 4 * direction, layers=[6], tokens=[0])
    """
    where = choose(model, field, layers, None, None, tokens)
    vector, axes = jnp.asarray(vector), FIELD_AXES[field]
    if vector.ndim == 1:
        vector = vector.reshape((1,) * (len(axes) - 1) + vector.shape)
    if vector.ndim != len(axes):
        raise ValueError(
            f"vector of shape {vector.shape} must be [{axes[-1]}] or have the axes "
            f"[{' '.join(axes)}] of {field!r}."
        )
    return Edits(taps={field: TapEdit(add=jnp.where(where, vector, 0))})


def choose(model: Any, field: str, layers, heads, neurons, tokens):
    """A mask with the axes of a field, True where all choices hold."""
    config = getattr(model, "config", model)
    messages.check_one_of("field", field, FIELD_AXES)
    axes = FIELD_AXES[field]
    choices = (
        ("layers", layers, config.depth, ("layer",)),
        ("heads", heads, config.heads, ("layer", "head")),
        ("neurons", neurons, config.mlp_dim, ("layer", "hidden")),
        ("tokens", tokens, config.tokens, ("batch", "token")),
    )
    where: Any = np.ones((1,) * len(axes), bool)
    for name, chosen, count, along in choices:
        if chosen is None:
            continue
        if name == "tokens" and "query" in axes:
            along = ("batch", "query")
        if along[-1] not in axes:
            names = [n for n, axes in FIELD_AXES.items() if along[-1] in axes]
            raise ValueError(
                f"{name} cannot be chosen of {field!r}, whose axes are "
                f"[{' '.join(axes)}]; fields that have them: {', '.join(names)}."
            )
        mask = chosen_mask(name, chosen, count)
        if mask.ndim > len(along) or mask.shape[-1] != count:
            raise ValueError(
                f"{name}: a mask of shape {mask.shape} does not fit {count} {name}; "
                f"expected [{along[-1]}] = ({count},)"
                + (f" or [{' '.join(along)}]." if len(along) > 1 else ".")
            )
        sizes = dict(zip(along[::-1], mask.shape[::-1]))
        where = where & mask.reshape([sizes.get(axis, 1) for axis in axes])
    return where


def chosen_mask(name: str, chosen: Any, count: int) -> Any:
    """Numbers or a boolean mask as a boolean array, traced masks as they are."""
    if isinstance(chosen, int):
        chosen = (chosen,)
    if not isinstance(chosen, jax.Array):
        chosen = np.asarray(chosen)
    if chosen.dtype == bool:
        return chosen
    if chosen.size and not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"{name}={chosen!r} must be numbers, or a boolean mask.")
    numbers, mask = np.ravel(chosen).tolist(), np.zeros(count, bool)
    messages.check_range(name, tuple(numbers), -count, count - 1)
    mask[numbers] = True
    return mask
