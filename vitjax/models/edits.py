"""Attention masks of one block, derived from `Edits`."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vitjax.types import ArrayLike, Config, Edits

MASKED = -1e30
"""Finite, so that a row without any link is uniform and not NaN."""


class AttentionMasks(NamedTuple):
    """Edits of one block's attention weights; the layer axis is gone."""

    attend: Float[ArrayLike, "batch head query key_token"] | None = None
    scale: Float[ArrayLike, "batch head query key_token"] | None = None


def check_edits(edits: Edits, config: Config, batch: int) -> None:
    """Raise ValueError where `keep` or `select` does not fit the images."""
    for name in ("keep", "select"):
        mask = getattr(edits, name)
        if mask is None:
            continue
        patches = mask.shape[1] if name == "keep" else config.patches
        if mask.shape[0] not in (1, batch) or patches != config.patches:
            raise ValueError(
                f"Edits.{name} of shape {mask.shape} does not fit {batch} images of "
                f"{config.patches} patches; its axes are [batch patch], batch may be 1."
            )


def split_edits(edits: Edits, config: Config) -> tuple[AttentionMasks, AttentionMasks]:
    """Edits as (the part that all blocks share, the part with a layer axis).

    A mask for all blocks is not repeated `depth` times; `keep` becomes a mask on keys;
    masks of full-length sequences follow `select`.
    """
    shared, layered = {}, {}
    for name in ("attend", "scale"):
        mask = getattr(edits, name)
        if mask is None:
            continue
        mask = select_mask(jnp.asarray(mask), edits, config)
        if mask.shape[0] == 1:
            shared[name] = mask[0]
        else:
            layered[name] = mask
    if edits.keep is not None:
        keys = token_mask(edits, config)[:, None, None, :].astype(jnp.float32)
        shared["attend"] = keys * shared["attend"] if "attend" in shared else keys
    return AttentionMasks(**shared), AttentionMasks(**layered)


def select_mask(mask, edits: Edits, config: Config):
    """Gather the token axes of a mask where a selection shortens the sequence."""
    layers, _, heads, *lengths = mask.shape
    if layers not in (1, config.depth) or heads not in (1, config.heads):
        raise ValueError(
            f"An edit of shape {mask.shape} does not fit {config.depth} blocks of "
            f"{config.heads} heads; its axes are [layer batch head query key]."
        )
    if any(length not in (1, config.tokens) for length in lengths):
        raise ValueError(
            f"An edit of shape {mask.shape} does not fit {config.tokens} tokens; token "
            "axes have 1 entry or one per token of the full sequence, also with select."
        )
    if edits.select is None:
        return mask
    tokens = selected_tokens(edits, config)
    batch = max(tokens.shape[0], mask.shape[1])
    tokens = jnp.broadcast_to(tokens, (batch, tokens.shape[1]))
    if mask.shape[3] > 1:
        mask = jnp.broadcast_to(mask, (layers, batch, *mask.shape[2:]))
        mask = jnp.take_along_axis(mask, tokens[None, :, None, :, None], axis=3)
    if mask.shape[4] > 1:
        mask = jnp.broadcast_to(mask, (layers, batch, *mask.shape[2:]))
        mask = jnp.take_along_axis(mask, tokens[None, :, None, None, :], axis=4)
    return mask


def selected_tokens(edits: Edits, config: Config):
    """Token numbers in the full sequence of the selected tokens, prefix first."""
    patches = jnp.asarray(edits.select)
    prefix = jnp.arange(config.prefix, dtype=patches.dtype)
    prefix = jnp.broadcast_to(prefix[None], (patches.shape[0], config.prefix))
    return jnp.concatenate([prefix, patches + config.prefix], axis=1)


def patch_mask(edits: Edits) -> Bool[Array, "batch kept"]:
    """`keep` along the running sequence's patches."""
    keep = jnp.asarray(edits.keep)
    if edits.select is None:
        return keep
    return jnp.take_along_axis(keep, jnp.asarray(edits.select), axis=1)


def token_mask(edits: Edits, config: Config) -> Bool[Array, "batch token"]:
    """`keep` along the running sequence; prefix tokens always exist."""
    keep = patch_mask(edits)
    prefix = jnp.ones((keep.shape[0], config.prefix), bool)
    return jnp.concatenate([prefix, keep], axis=1)


def log_mask(attend, dtype):
    """log(attend), finite at 0, with a finite derivative everywhere."""
    attend = jnp.asarray(attend, dtype)
    linked = attend > 0
    return jnp.where(linked, jnp.log(jnp.where(linked, attend, 1)), MASKED)
