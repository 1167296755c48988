"""The largest entries of an axis, exactly, without sorting it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitjax.types import ArrayLike

GROUP = 16
"""Entries per group; 8 to 32 are about as fast on a CPU."""
ROUNDS = 16
"""The most maxima that are taken one after the other; a sort is cheaper than more."""


def top_k_indices(x: Float[ArrayLike, "*any entry"], k: int) -> Int[Array, "*any top"]:
    """Where the k largest entries are, in top_k_indices order.

    `jax.lax.top_k` is fast on CPUs; elsewhere it sorts all entries, and a few maxima,
    one after the other, take its place.

    Args:
        x: values; NaN counts as larger than all, on CPUs only without a sign.
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

    def sort(x):
        return jax.lax.top_k(x, k)[1]

    if k > ROUNDS:
        return sort(x)
    return jax.lax.platform_dependent(x, cpu=sort, default=lambda x: maxima(x, k))


def maxima(x: Float[Array, "*any entry"], k: int) -> Int[Array, "*any top"]:
    """`top_k_indices` by one maximum after the other."""
    places = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    free, found = jnp.ones(x.shape, bool), []
    for _ in range(k):
        place = jnp.argmax(jnp.where(free, x, -jnp.inf), -1).astype(jnp.int32)
        if found:  # again only where nothing but -inf is left
            again = jnp.stack([place == other for other in found]).any(0)
            place = jnp.where(again, jnp.argmax(free, -1).astype(jnp.int32), place)
        free = free & (places != place[..., None])
        found.append(place)
    return jnp.stack(found, -1)


def fast_top_k_indices(
    x: Float[ArrayLike, "*any entry"], k: int
) -> Int[Array, "*any top"]:
    """Where the k largest entries are, in top_k_indices order.

    The k largest lie in the k groups of largest maximum, so only those are looked
    into: on a CPU three times as fast as `jax.lax.top_k` of 3,072 entries.

    Args:
        x: values; NaN counts as larger than all, on CPUs only without a sign.
        k: how many, in [1, entry]; static.

    Returns:
        Positions; which of equal entries come first is not defined.

    Raises:
        ValueError: k is out of its range.
    """
    x = jnp.asarray(x)
    entries = x.shape[-1]
    if not 1 <= k <= entries or entries < 4 * k * GROUP:
        return top_k_indices(x, k)
    padding = [(0, 0)] * (x.ndim - 1) + [(0, -entries % GROUP)]
    x = jnp.pad(x, padding, constant_values=-jnp.inf)
    groups = x.reshape(*x.shape[:-1], -1, GROUP)
    best = top_k_indices(groups.max(-1), k)
    inside = jnp.take_along_axis(groups, best[..., None], axis=-2).swapaxes(-2, -1)
    # First entries of groups come first: where only -inf is left, padding is not met.
    place = top_k_indices(inside.reshape(*inside.shape[:-2], GROUP * k), k)
    group = jnp.take_along_axis(best, place % k, axis=-1)
    return group * GROUP + place // k


def argmax(x: Float[ArrayLike, "*any entry"]) -> Int[Array, "*any"]:
    """Where the largest entry is; of equal ones the first.

    Args:
        x: values.

    Returns:
        Positions; 0 where an entry is NaN.
    """
    x = jax.lax.stop_gradient(jnp.asarray(x))
    return jax.lax.platform_dependent(x, cpu=argmax_two_pass, default=argmax_reduced)


def argmax_reduced(x: Float[Array, "*any entry"]) -> Int[Array, "*any"]:
    """`first` in one reduction over pairs of a value and its place."""
    place = jnp.argmax(x, -1).astype(jnp.int32)
    return jnp.where(jnp.isnan(x).any(-1), 0, place)


def argmax_two_pass(x: Float[Array, "*any entry"]) -> Int[Array, "*any"]:
    """`first` by the maximum and then its place.

    On a CPU, XLA fuses both into what makes `x`, which a reduction over pairs is not.
    Made twice, `x` may be rounded in two ways; where nothing equals the maximum, the
    first that all but does is taken.
    """
    entries = x.shape[-1]
    best = x.max(-1, keepdims=True)
    slack = 16 * jnp.finfo(x.dtype).eps * jnp.maximum(jnp.abs(best), 1)
    places = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    place = jnp.where(x == best, places, entries).min(-1)
    near = jnp.where(x >= best - slack, places, entries).min(-1)
    place = jnp.where(place == entries, near, place)
    return jnp.where(place == entries, 0, place)
