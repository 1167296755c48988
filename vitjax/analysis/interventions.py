"""Builders of `Edits`: what the paper does to attention, and which tokens exist."""

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vitjax.types import ArrayLike, Config, Edits

Convention = Literal["paper", "vilas2023_code"]


def self_only(
    config: Config,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    convention: Convention = "paper",
    renormalize: bool = False,
) -> Edits:
    """Image tokens no longer see other image tokens; see `api.self_only`."""
    if convention not in ("paper", "vilas2023_code"):
        raise ValueError(f"convention {convention!r} is not 'paper', 'vilas2023_code'.")
    rows = np.arange(config.tokens)
    image = rows >= config.prefix
    own = rows[:, None] == rows[None]
    allowed = ~image[:, None] | own
    if convention == "vilas2023_code":
        return Edits(attend=restrict(allowed, config, layers, heads))
    mask = restrict(allowed | ~image[None], config, layers, heads)
    return Edits(attend=mask) if renormalize else Edits(scale=mask)


def no_cls(
    config: Config,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    renormalize: bool = False,
) -> Edits:
    """Image tokens no longer see [CLS]; see `api.no_cls`."""
    if not config.class_token:
        raise ValueError("no_cls needs a model with a [CLS] token; this one has none.")
    allowed = np.ones((config.tokens, config.tokens), bool)
    allowed[config.prefix :, 0] = False
    mask = restrict(allowed, config, layers, heads)
    return Edits(attend=mask) if renormalize else Edits(scale=mask)


def restrict(
    allowed: Bool[np.ndarray, "query key_token"],
    config: Config,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
) -> Float[Array, "layer 1 head query key_token"]:
    """A mask for chosen blocks and heads; 1 everywhere else."""
    chosen = [
        members(which, count, name)
        for which, count, name in (
            (layers, config.depth, "layers"),
            (heads, config.heads, "heads"),
        )
    ]
    here = chosen[0][:, None, None, None, None] & chosen[1][None, None, :, None, None]
    return jnp.asarray(np.where(here, allowed[None, None, None], True), jnp.float32)


def members(which: Sequence[int] | None, count: int, name: str) -> np.ndarray:
    """Chosen numbers as booleans; one True, meaning all, where nothing is chosen."""
    if which is None:
        return np.ones(1, bool)
    wrong = [number for number in which if not -count <= number < count]
    if wrong:
        raise ValueError(f"{name}={list(which)}: {wrong} not in [-{count}, {count}).")
    chosen = np.zeros(count, bool)
    chosen[list(which)] = True
    return chosen


def keep_tokens(keep: Bool[ArrayLike, "batch patch"]) -> Edits:
    """Only these patches exist; the rest leave by masking, shapes stay.

    Args:
        keep: False removes a patch. Prefix tokens always stay.

    Returns:
        Edits; equal to `select_tokens` of the same patches up to rounding.
    """
    return Edits(keep=keep)


def select_tokens(indices: Int[ArrayLike, "batch kept"]) -> Edits:
    """Only these patches run, in this order: a sequence really shorter.

    Args:
        indices: patch numbers in [0, patch), row-major; chosen after the position
            embedding. One that is too large makes its image's logits NaN.

    Returns:
        Edits.

    Raises:
        ValueError: a number is negative, in a numpy array.
    """
    if isinstance(indices, np.ndarray) and (indices < 0).any():
        raise ValueError("Patch numbers of select_tokens must not be negative.")
    return Edits(select=indices)
