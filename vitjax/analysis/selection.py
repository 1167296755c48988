"""The largest entries of an axis, exactly, without sorting it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitjax.types import ArrayLike

GROUP = 16
"""Entries per group; 8 to 32 are about as fast on a CPU."""
ROUNDS = 16
"""The most maxima that are taken one after the other before a sort is cheaper."""


def descending(x: Float[ArrayLike, "*any entry"], k: int) -> Int[Array, "*any top"]:
    """Where the k largest entries are, in descending order.

    For a few of them, as many maxima one after the other: `jax.lax.top_k` sorts all
    entries wherever a backend has no other way, as on GPUs, and is no faster on a CPU.

    Args:
        x: values; NaN counts as larger than all.
        k: how many, in [1, entry]; static.

    Returns:
        Positions; of equal entries the first comes first.

    Raises:
        ValueError: k is out of its range.
    """
    x = jax.lax.stop_gradient(jnp.asarray(x))
    entries = x.shape[-1]
    if not 1 <= k <= entries:
        raise ValueError(f"k={k} must lie in [1, {entries}], the number of entries.")
    if k > ROUNDS:
        return jax.lax.top_k(x, k)[1]
    places = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    free, found = jnp.ones(x.shape, bool), []
    for _ in range(k):
        best = jnp.where(free, x, -jnp.inf).max(-1, keepdims=True)
        # A maximum is NaN where an entry is, and equal to none.
        hits = free & ((x == best) | jnp.isnan(x))
        place = jnp.where(hits, places, entries).min(-1)
        free = free & (places != place[..., None])
        found.append(place)
    return jnp.stack(found, -1)


def largest(x: Float[ArrayLike, "*any entry"], k: int) -> Int[Array, "*any top"]:
    """Where the k largest entries are, in descending order.

    The k largest lie in the k groups of largest maximum, so only those are looked
    into: on a CPU three times as fast as `jax.lax.top_k` of 3,072 entries.

    Args:
        x: values; NaN counts as larger than all.
        k: how many, in [1, entry]; static.

    Returns:
        Positions; which of equal entries come first is not defined.

    Raises:
        ValueError: k is out of its range.
    """
    x = jnp.asarray(x)
    entries = x.shape[-1]
    if not 1 <= k <= entries or entries < 4 * k * GROUP:
        return descending(x, k)
    padding = [(0, 0)] * (x.ndim - 1) + [(0, -entries % GROUP)]
    x = jnp.pad(x, padding, constant_values=-jnp.inf)
    groups = x.reshape(*x.shape[:-1], -1, GROUP)
    best = descending(groups.max(-1), k)
    inside = jnp.take_along_axis(groups, best[..., None], axis=-2)
    place = descending(inside.reshape(*inside.shape[:-2], k * GROUP), k)
    group = jnp.take_along_axis(best, place // GROUP, axis=-1)
    return group * GROUP + place % GROUP


def first(x: Float[ArrayLike, "*any entry"]) -> Int[Array, "*any"]:
    """Where the largest entry is; of equal ones the first.

    The maximum and then its place: compilers fuse both into what makes `x`, which
    their argmax is not.

    Args:
        x: values.

    Returns:
        Positions; 0 where an entry is NaN.
    """
    x = jnp.asarray(x)
    entries = x.shape[-1]
    places = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    place = jnp.where(x == x.max(-1, keepdims=True), places, entries).min(-1)
    return jnp.where(place == entries, 0, place)
