"""Interventions of the paper as `Edits`: cut attention, remove tokens."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vitjax import messages
from vitjax.checks import checked
from vitjax.types import CONVENTIONS, ArrayLike, Config, Convention, Edits


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
    """
    messages.check_one_of("convention", convention, CONVENTIONS)
    config = getattr(model, "config", model)
    rows = np.arange(config.tokens)
    image = rows >= config.prefix
    own = rows[:, None] == rows[None]
    allowed = ~image[:, None] | own
    if convention == "vilas2023_code":
        return Edits(attend=restrict(allowed, config, layers, heads))
    mask = restrict(allowed | ~image[None], config, layers, heads)
    return Edits(attend=mask) if renormalize else Edits(scale=mask)


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
    """
    config = getattr(model, "config", model)
    if not config.class_token:
        raise ValueError("no_cls needs a model with a [CLS] token; this one has none.")
    allowed = np.ones((config.tokens, config.tokens), bool)
    allowed[config.prefix :, 0] = False
    mask = restrict(allowed, config, layers, heads)
    return Edits(attend=mask) if renormalize else Edits(scale=mask)


def restrict(
    allowed: np.ndarray, config: Config, layers, heads
) -> Float[Array, "layer 1 head query key_token"]:
    """A [query key_token] mask for the chosen blocks and heads; 1 everywhere else."""
    in_layers = members("layers", layers, config.depth)[:, None, None, None, None]
    in_heads = members("heads", heads, config.heads)[None, None, :, None, None]
    mask = np.where(in_layers & in_heads, allowed[None, None, None], True)
    return jnp.asarray(mask, jnp.float32)


def members(name: str, numbers, count: int) -> np.ndarray:
    """Numbers as booleans; one True, meaning all, for None."""
    if numbers is None:
        return np.ones(1, bool)
    messages.check_range(name, tuple(numbers), -count, count - 1)
    chosen = np.zeros(count, bool)
    chosen[list(numbers)] = True
    return chosen


@checked
def keep_tokens(keep: Bool[ArrayLike, "batch patch"]) -> Edits:
    """Only these patches exist; the others are masked, shapes stay.

    Args:
        keep: False removes a patch. Prefix tokens always stay.

    Returns:
        Edits; equal to `select_tokens` of the same patches up to rounding.
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
    """
    return Edits(select=indices)
