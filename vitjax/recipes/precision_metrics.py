"""Two sets of rows of the same images, compared: what another precision changes."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vitjax.analysis.residual_stream import residual_composition
from vitjax.recipes import identifiability as base
from vitjax.recipes.memories import SYSTEMS
from vitjax.types import Config

Rows = dict[str, Array]

NEAR = 0.01
"""Ranks that differ by at most this share of the classes are near each other."""

TOP = 0.2
"""Share of the patches that counts as the top of a map."""

CATEGORIES = ("previous", "attention", "mlp", "several", "composed")
CHANGES = (*base.STREAMS, "mlp_update_published")
MEMORIES = tuple(
    f"{kind}_{system}"
    for kind in ("agreement", "agreement_code", "simple")
    for system in SYSTEMS
)


def kinds(config: Config) -> dict[str, slice]:
    """Kinds of tokens that a model has, in the order of the axis `kind`."""
    cls = int(config.class_token)
    found = {"cls": slice(0, cls), "register": slice(cls, config.prefix)}
    found["image"] = slice(config.prefix, None)
    present = (config.class_token, config.registers > 0, True)
    return {name: found[name] for name, there in zip(found, present) if there}


def by_kind(
    values: Bool[Array, "*any token"] | Float[Array, "*any token"], config: Config
) -> Float[Array, "*any kind"]:
    """Means over the tokens of each kind."""
    values = values.astype(jnp.float32)
    return jnp.stack([values[..., s].mean(-1) for s in kinds(config).values()], -1)


def rank_rows(
    fine: Int[Array, "*any token"],
    coarse: Int[Array, "*any token"],
    *,
    name: str,
    classes: int,
    config: Config,
) -> Rows:
    """How far ranks of the true class move.

    Args:
        fine, coarse: ranks in float32 and in the other precision.
        name: of what is ranked; it ends the names of the rows.
        classes: how many there are.
        config: which tokens are of which kind.

    Returns:
        [*any kind]: same_rank_NAME, the share of tokens of equal rank; near_rank_NAME,
        of ranks at most one in a hundred classes apart; shift_NAME, the mean of
        identifiability in the other precision minus that in float32; distance_NAME,
        the mean of its absolute value.
    """
    apart = fine - coarse  # a smaller rank is a larger identifiability
    moved = apart.astype(jnp.float32) / classes
    values = {
        "same_rank": apart == 0,
        "near_rank": abs(apart) <= int(NEAR * classes),
        "shift": moved,
        "distance": abs(moved),
    }
    return {f"{key}_{name}": by_kind(v, config) for key, v in values.items()}


def projection_rows(fine: Rows, coarse: Rows, *, classes: int, config: Config) -> Rows:
    """`rank_rows` of every stream, and same_first_*, the share of equal top classes.

    Args:
        fine, coarse: rows of `paper.one_pass`.
        classes: how many there are.
        config: which tokens are of which kind.
    """
    rows = {}
    for stream in base.STREAMS:
        key, first = f"rank_{stream}", f"first_{stream}"
        rows |= rank_rows(
            fine[key], coarse[key], name=stream, classes=classes, config=config
        )
        rows[f"same_first_{stream}"] = by_kind(fine[first] == coarse[first], config)
    return rows


def rises(rows: Rows) -> dict[str, Bool[Array, "image layer token"]]:
    """Class-similarity change, by what is compared with what it read."""
    stream, mlp = rows["logit_residual"], rows["logit_mlp_update"]
    embedding = rows["logit_embedding"][:, None]
    before = jnp.concatenate([embedding, stream[:, :-1]], 1)
    return {
        "residual": stream > before,
        "attention_update": rows["logit_attention_update"] > before,
        "mlp_update": mlp > rows["logit_middle"],
        "mlp_update_published": mlp > before,
    }


def change_rows(fine: Rows, coarse: Rows, *, config: Config) -> Rows:
    """same_change_*, the share of tokens with equal answer; shift_change_*, of rates.

    Args:
        fine, coarse: rows of `paper.one_pass`.
        config: which tokens are of which kind.

    Returns:
        [image layer kind].
    """
    rows, theirs = {}, rises(coarse)
    for name, ours in rises(fine).items():
        rows[f"same_change_{name}"] = by_kind(ours == theirs[name], config)
        moved = theirs[name].astype(jnp.float32) - ours.astype(jnp.float32)
        rows[f"shift_change_{name}"] = by_kind(moved, config)
    return rows


def composed(rows: Rows) -> Bool[Array, "image layer token category"]:
    """Whose top class every block's output has."""
    after = rows["first_residual"]
    embedding = rows["first_embedding"][:, None]
    found = residual_composition(
        after,
        before=jnp.concatenate([embedding, after[:, :-1]], 1),
        attention=rows["first_attention_update"],
        mlp=rows["first_mlp_update"],
    )
    return jnp.stack([found[name] for name in CATEGORIES], -1)


def composition_rows(fine: Rows, coarse: Rows) -> Rows:
    """same_composition [image layer], shift_composition [image layer category]."""
    ours, theirs = composed(fine), composed(coarse)
    moved = theirs.astype(jnp.float32) - ours.astype(jnp.float32)
    return {
        "same_composition": (ours == theirs).all(-1).mean(-1),
        "shift_composition": moved.mean(-2),
    }


def memory_rows(fine: Rows, coarse: Rows) -> Rows:
    """same_* and shift_* [image layer] of every answer about memories."""
    rows = {}
    for name in MEMORIES:
        ours, theirs = fine[name], coarse[name]
        rows[f"same_{name}"] = (ours == theirs).mean(-1)
        rows[f"shift_{name}"] = theirs.mean(-1) - ours.mean(-1)
    return rows


def logit_rows(
    fine: Float[Array, "image class"], coarse: Float[Array, "image class"]
) -> Rows:
    """same_prediction, and distance_logits: the largest, in deviations over classes."""
    ours, theirs = fine.astype(jnp.float32), coarse.astype(jnp.float32)
    spread = ours.std(-1)
    largest = abs(ours - theirs).max(-1)
    return {
        "same_prediction": ours.argmax(-1) == theirs.argmax(-1),
        "distance_logits": jnp.where(largest > 0, largest / spread, largest),
    }


def map_rows(
    fine: Float[Array, "image patch"], coarse: Float[Array, "image patch"], *, name: str
) -> dict[str, Float[Array, " image"]]:
    """Whether two maps of a picture say the same.

    Args:
        fine, coarse: in float32 and in the other precision.
        name: of the method; it ends the names of the rows.

    Returns:
        pearson_NAME and spearman_NAME in [-1, 1], NaN where a map is constant or not
        finite; overlap_NAME, the share of the top fifth of patches that both have.
    """
    x, y = (jnp.asarray(v, jnp.float32) for v in (fine, coarse))
    finite = (jnp.isfinite(x) & jnp.isfinite(y)).all(-1)
    found: Any = {
        "pearson": correlation(x, y),
        "spearman": correlation(places(x), places(y)),
        "overlap": overlap(x, y),
    }
    return {f"{k}_{name}": jnp.where(finite, v, jnp.nan) for k, v in found.items()}


def correlation(
    x: Float[Array, "image patch"], y: Float[Array, "image patch"]
) -> Float[Array, " image"]:
    """Pearson's correlation over patches; NaN where one of them is constant."""
    x, y = unit(x), unit(y)
    constant = (x == 0).all(-1) | (y == 0).all(-1)
    return jnp.where(constant, jnp.nan, jnp.clip((x * y).sum(-1), -1, 1))


def unit(x: Float[Array, "image patch"]) -> Float[Array, "image patch"]:
    """Centred and of length one; zero where constant. Any scale: gradients may be
    small enough for their squares to vanish.
    """
    constant = (x == x[:, :1]).all(-1, keepdims=True)
    x = jnp.where(constant, 0, x - x.mean(-1, keepdims=True))
    x = x / jnp.where(constant, 1, abs(x).max(-1, keepdims=True))
    length = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))
    return x / jnp.where(constant, 1, length)


def places(x: Float[Array, "image patch"]) -> Float[Array, "image patch"]:
    """Ranks from the smallest; equal values share the mean of theirs."""
    below = (x[:, None, :] < x[:, :, None]).sum(-1, dtype=jnp.int32)
    equal = (x[:, None, :] == x[:, :, None]).sum(-1, dtype=jnp.int32)
    return below.astype(jnp.float32) + (equal.astype(jnp.float32) - 1) / 2


def overlap(
    x: Float[Array, "image patch"], y: Float[Array, "image patch"]
) -> Float[Array, " image"]:
    """Share of the top patches of one map that are among those of the other."""
    count = max(1, round(TOP * x.shape[-1]))

    def top(values):
        _, chosen = jax.lax.top_k(values, count)
        return jax.nn.one_hot(chosen, values.shape[-1], dtype=jnp.float32).sum(-2)

    return (top(x) * top(y)).sum(-1) / count
