"""Edits of one block, derived from `Edits`: attention masks and edited taps."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vitjax import messages
from vitjax.types import FIELD_AXES, TOKEN_AXES, ArrayLike, Config, Edits, TapEdit

MASKED = -1e30
"""Finite, so that a row without any link is uniform and not NaN."""


class BlockEdits(NamedTuple):
    """Edits of one block; `taps` are field -> argument of `TapEdit` -> values."""

    attend: Float[ArrayLike, "batch head query key_token"] | None = None
    scale: Float[ArrayLike, "batch head query key_token"] | None = None
    taps: Mapping[str, Mapping[str, Any]] = {}

    def at_rows(self, rows: slice) -> "BlockEdits":
        """Taps of what follows attention, for some of the tokens."""

        def cut(values):
            return (
                values[:, rows] if np.ndim(values) and values.shape[1] > 1 else values
            )

        taps = {n: tap for n, tap in self.taps.items() if FIELD_AXES[n][2] == "token"}
        return BlockEdits(taps=jax.tree.map(cut, taps))


def join_taps(*parts: BlockEdits) -> dict[str, TapEdit]:
    """The taps of one block, whose arguments are spread over several parts."""
    joined: dict[str, dict[str, Any]] = {}
    for part in parts:
        for field, arguments in part.taps.items():
            joined[field] = {**joined.get(field, {}), **arguments}
    return {field: TapEdit(**arguments) for field, arguments in joined.items()}


def tap_arguments(field: str, edits: Edits, config: Config) -> dict[str, Any]:
    """The arguments of a tap that are given, along the running sequence."""
    arguments = {}
    for name, values in vars((edits.taps or {})[field]).items():
        if np.ndim(values) and edits.select is not None:
            axes = FIELD_AXES[field]
            values = select_entries(jnp.asarray(values), edits, config, axes)
        if values is not None:
            arguments[name] = values
    return arguments


def check_edits(edits: Edits, config: Config, batch: int) -> None:
    """Raise ValueError where an array does not fit the model or the images."""
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
    arrays: list[tuple[str, str, Any]] = [
        ("Edits.attend", "attention_weights", edits.attend),
        ("Edits.scale", "attention_weights", edits.scale),
    ]
    for field, tap in (edits.taps or {}).items():
        messages.check_one_of("taps", field, FIELD_AXES)
        arrays += [
            (f"TapEdit.{n} of {field!r}", field, x) for n, x in vars(tap).items()
        ]
    for name, field, values in arrays:
        shape, expected = np.shape(values), field_shape(field, config, batch)
        fits = all(n in (1, full) for n, full in zip(shape, expected))
        if shape and (len(shape) != len(expected) or not fits):
            raise ValueError(
                f"{name} has the shape {shape}; expected "
                f"[{' '.join(FIELD_AXES[field])}] = {expected}, where any may be 1; "
                "token axes are those of the full sequence, also with select."
            )


def field_shape(field: str, config: Config, batch: int) -> tuple[int, ...]:
    """The shape of a field of `Trace` for the full sequence."""
    sizes = {
        "layer": config.depth,
        "batch": batch,
        "dim": config.dim,
        "head": config.heads,
        "key": config.head_dim,
        "hidden": config.mlp_dim,
        **dict.fromkeys(TOKEN_AXES, config.tokens),
    }
    return tuple(sizes[axis] for axis in FIELD_AXES[field])


def split_edits(edits: Edits, config: Config) -> tuple[BlockEdits, BlockEdits]:
    """Edits as (the part that all blocks share, the part with a layer axis).

    A mask for all blocks is not repeated `depth` times; `keep` becomes a mask on keys;
    arrays of full-length sequences follow `select`.
    """
    shared, layered = {}, {}
    for name in ("attend", "scale"):
        mask = getattr(edits, name)
        if mask is None:
            continue
        mask = select_entries(
            jnp.asarray(mask), edits, config, FIELD_AXES["attention_weights"]
        )
        if mask.shape[0] == 1:
            shared[name] = mask[0]
        else:
            layered[name] = mask
    if (exists := token_mask(edits, config)) is not None:
        keys = exists[:, None, None, :].astype(jnp.float32)
        shared["attend"] = keys * shared["attend"] if "attend" in shared else keys
    shared["taps"], layered["taps"] = {}, {}
    for field in (edits.taps or {}).keys() - {"embedding"}:
        shared["taps"][field], layered["taps"][field] = {}, {}
        for name, values in tap_arguments(field, edits, config).items():
            if np.ndim(values) and values.shape[0] > 1:
                layered["taps"][field][name] = values
            else:
                shared["taps"][field][name] = values[0] if np.ndim(values) else values
    return BlockEdits(**shared), BlockEdits(**layered)


def select_entries(values, edits: Edits, config: Config, axes: Sequence[str]):
    """Gather the token axes of a field's array where a selection shortens it."""
    if edits.select is None:
        return values
    tokens, image = selected_tokens(edits, config), axes.index("batch")
    batch = max(tokens.shape[0], values.shape[image])
    tokens = jnp.broadcast_to(tokens, (batch, tokens.shape[1]))
    for axis, name in enumerate(axes):
        if name not in TOKEN_AXES or values.shape[axis] == 1:
            continue
        shape = list(values.shape)
        shape[image] = batch
        index = [1] * values.ndim
        index[image], index[axis] = tokens.shape
        values = jnp.broadcast_to(values, shape)
        values = jnp.take_along_axis(values, tokens.reshape(index), axis=axis)
    return values


def selected_tokens(edits: Edits, config: Config):
    """Token numbers in the full sequence of the selected tokens, prefix first."""
    patches = jnp.asarray(edits.select)
    prefix = jnp.arange(config.prefix, dtype=patches.dtype)
    prefix = jnp.broadcast_to(prefix[None], (patches.shape[0], config.prefix))
    return jnp.concatenate([prefix, patches + config.prefix], axis=1)


def patch_mask(edits: Edits) -> Any:
    """`keep` of the running sequence, [batch kept]; None where nothing is removed."""
    if edits.keep is None:
        return None
    keep = jnp.asarray(edits.keep)
    if edits.select is None:
        return keep
    return jnp.take_along_axis(keep, jnp.asarray(edits.select), axis=1)


def token_mask(edits: Edits, config: Config) -> Any:
    """The same of all tokens, [batch token]; those of the prefix always exist."""
    keep, prefix = patch_mask(edits), ((0, 0), (config.prefix, 0))
    return None if keep is None else jnp.pad(keep, prefix, constant_values=True)


def log_mask(attend, dtype):
    """log(attend), finite at 0, with a finite derivative everywhere."""
    attend = jnp.asarray(attend, dtype)
    linked = attend > 0
    return jnp.where(linked, jnp.log(jnp.where(linked, attend, 1)), MASKED)
