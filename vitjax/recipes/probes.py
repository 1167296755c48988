"""Linear probes against the class projection (Vilas et al. 2023, section 8).

    vitjax run probes --model vit_b32 --train imagenet_s:PATH:probe \\
        --data imagenet_s:PATH:paper --out DIR

fits the published 1,800 ridge probes (3 streams, 12 blocks, 50 tokens) on 9,090 images
and ranks the classes of 4,550 others with them; the same images are ranked by the
projection. Then tokens are removed in the order of the probes' ranks, in that of
gradients, and at random.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vitjax.messages import unknown
from vitjax.models.model import Model
from vitjax.recipes import identifiability as base
from vitjax.recipes import schema
from vitjax.recipes.probe_fits import (
    Group,
    Kind,
    Subset,
    bytes_per_probe,
    first_of_each_class,
    fit_group,
    make_groups,
    read_states,
)
from vitjax.recipes.recipe import Context, Pass, Recipe, Setup
from vitjax.saliency.relevancy import relevancy
from vitjax.saliency.removal import removal_curve
from vitjax.types import ArrayLike, Batch

WINDOW = 1024
"""Images whose ranks are read at once."""


def make_passes(
    context: Context,
    *,
    train: str | None,
    shots: int,
    alpha: float,
    probe: Kind,
    streams: tuple[str, ...],
    steps: int,
    max_memory: str | int,
) -> list[Pass]:
    """One pass for each group of probes, and a last one that removes tokens."""
    source, groups = plan(
        context,
        train=train,
        shots=shots,
        probe=probe,
        streams=streams,
        max_memory=max_memory,
    )

    def setup(group: Group) -> Setup:
        fitted = fit_group(context, source, group, kind=probe, alpha=alpha)
        starts = jnp.int32(group.layers.start), jnp.int32(group.tokens.start)
        return Setup((fitted, starts))

    fits = [
        Pass(
            step=make_rank_step(group.streams, len(group.layers), len(group.tokens)),
            dims={name: DIMS[name] for name in map(schema.RANK_PROBE, group.streams)},
            setup=functools.partial(setup, group),
            region=group.region,
            title=f"fit {number}/{len(groups)}",
        )
        for number, group in enumerate(groups, start=1)
    ]
    counts = keep_counts(context.model.config.patches, steps=steps)
    removal = Pass(
        step=make_removal_step(counts),
        dims=base.DIMS | REMOVAL_DIMS,
        setup=functools.partial(setup_removal, context, counts),
        title="removal",
        previews=PROBES.previews,
    )
    return [*fits, removal]


def describe(
    context: Context,
    *,
    train: str | None,
    shots: int,
    probe: Kind,
    streams: tuple[str, ...],
    max_memory: str | int,
    **options: Any,
) -> dict[str, Any]:
    """What is fitted, on which images, in which groups, and what that takes."""
    source, groups = plan(
        context,
        train=train,
        shots=shots,
        probe=probe,
        streams=streams,
        max_memory=max_memory,
    )
    config, classes = context.model.config, context.model.num_classes
    dim, count = config.dim, len(streams) * config.depth * config.tokens
    shared = 0
    if source.whole.id == context.source.id:
        shared = sum(index < context.images for index in source.indices)
    return {
        "train": {"id": source.id, "images": len(source)},
        "shared_images": shared,
        "probes": count,
        "groups": len(groups),
        "group": {
            "stream": len(groups[0].streams),
            "layer": len(groups[0].layers),
            "token": len(groups[0].tokens),
        },
        "bytes": {
            "states": 4 * dim * count * len(source),  # of all images, never kept
            "sums": 8 * dim * (dim + classes) * count,
            "weights": 4 * (classes * (dim + 1) + dim) * count,
            "class_embedding": 4 * classes * (dim + 1),
        },
    }


def plan(
    context: Context,
    *,
    train: str | None,
    shots: int,
    probe: Kind,
    streams: Sequence[str],
    max_memory: str | int,
) -> tuple[Subset, list[Group]]:
    """The images to fit on, and the probes that are fitted in one sweep.

    Raises:
        ValueError: there is no training set, or one probe takes too much memory.
    """
    if train is None:
        raise ValueError(
            "The recipe 'probes' fits probes on other images than --data: pass "
            "--train SOURCE, in Python the option train=."
        )
    config, classes = context.model.config, context.model.num_classes
    whole = context.open_data(train)
    source = first_of_each_class(whole, shots=shots, classes=classes)
    size = bytes_per_probe(probe, dim=config.dim, classes=classes, examples=len(source))
    limit = parse_bytes(max_memory) // size
    if limit < 1:
        raise ValueError(
            f"max_memory={max_memory!r} is too small: one probe takes "
            f"{size / 2**20:.1f} MiB."
        )
    groups = make_groups(streams, depth=config.depth, tokens=config.tokens, limit=limit)
    return source, groups


def parse_bytes(size: str | int) -> int:
    """Bytes of a size such as "2GiB", "500MB" or a number.

    Raises:
        ValueError: it is not a size above 0.
    """
    pattern = r"\s*(\d+\.?\d*|\.\d+)\s*(?:([kmgt])(i?))?b?\s*"
    match = re.fullmatch(pattern, str(size).lower())
    number, prefix, binary = match.groups() if match else ("0", None, None)
    power = 0 if prefix is None else " kmgt".index(prefix)
    count = int(float(number) * (1024 if binary else 1000) ** power)
    if count < 1:
        raise ValueError(f"max_memory={size!r} is not a size such as 2GiB or 500MB.")
    return count


def keep_counts(patches: int, *, steps: int) -> tuple[int, ...]:
    """How many patches stay, from 1 to one less than there are, evenly spaced.

    `patches - 1` steps or more are every number, as published.
    """
    last = max(1, patches - 1)
    points = np.linspace(1, last, min(steps, last)) if steps > 1 else [last / 2]
    return tuple(sorted({max(1, round(float(point))) for point in points}))


@functools.lru_cache(maxsize=16)
def make_rank_step(streams: tuple[str, ...], layers: int, tokens: int) -> Any:
    """The step that ranks classes by a group of probes; groups of a size share it."""

    def step(model: Model, batch: Batch, carry: Any) -> dict[str, Array]:
        probe, starts = carry
        states = read_states(
            model,
            jnp.asarray(batch.images),
            starts,
            streams=streams,
            layers=layers,
            tokens=tokens,
        )
        ranks = probe.rank(states, jnp.maximum(batch.label, 0))
        names = map(schema.RANK_PROBE, streams)
        return {name: ranks[:, place] for place, name in enumerate(names)}

    return step


@functools.lru_cache(maxsize=16)
def make_removal_step(counts: tuple[int, ...]) -> Any:
    """The step that ranks by projection and keeps only `counts` patches."""

    def step(model: Model, batch: Batch, carry: Any) -> dict[str, Array]:
        rows = base.identifiability(model, batch)
        return rows | removal_rows(model, batch, carry, keep_counts=counts)

    return step


def setup_removal(context: Context, counts: tuple[int, ...]) -> Setup:
    """Importances of all patches by the ranks of the probes, and the seed."""
    ranks = context.rows(schema.RANK_PROBE("residual"))
    prefix = context.model.config.prefix
    windows = [
        importance_of(ranks[start : start + WINDOW, :, prefix:])
        for start in range(0, len(ranks), WINDOW)
    ]
    carry = {"importance": np.concatenate(windows), "seed": np.int32(context.seed)}
    return Setup(carry, {"kept": jnp.asarray(counts, jnp.float32)})


def importance_of(
    ranks: Int[np.ndarray, "image layer patch"],
) -> Float[np.ndarray, "image patch"]:
    """Minus the sum of a patch's ranks over blocks: small ranks are important."""
    return -ranks.sum(1, dtype=np.int64).astype(np.float32)


def removal_rows(
    model: Model, batch: Batch, carry: dict[str, Any], *, keep_counts: tuple[int, ...]
) -> dict[str, Array]:
    """Whether the model is right with part of its patches, in five orders of removal.

    `carry` holds the "importance" of every image's patches, and the "seed".
    """
    label = jnp.maximum(batch.label, 0)
    probe = jnp.take(carry["importance"], batch.index, axis=0, mode="clip")
    gradient = relevancy(model, batch.images, label).sum((0, 2))
    gradient = gradient[:, model.config.prefix :]
    orders = {
        schema.CORRECT("negative", "probe"): probe,
        schema.CORRECT("negative", "gradient"): gradient,
        schema.CORRECT("positive", "probe"): -probe,
        schema.CORRECT("positive", "gradient"): -gradient,
        "correct_random": random_importance(
            carry["seed"], batch.index, model.config.patches
        ),
    }

    def curve(importance):  # one after the other: compiled once
        return removal_curve(
            model, batch.images, label, importance, keep_counts=keep_counts
        )

    return dict(zip(orders, jax.lax.map(curve, jnp.stack(list(orders.values())))))


def random_importance(
    seed: Int[Array, ""], index: Int[ArrayLike, " batch"], patches: int
) -> Float[Array, "batch patch"]:
    """An order of its own for every image, whatever batch it is in."""

    def draw(place):
        return jax.random.uniform(jax.random.fold_in(key, place), (patches,))

    key = jax.random.key(seed)
    return jax.vmap(draw)(index)


@dataclasses.dataclass(frozen=True)
class ProbeOptions:
    """Options of `probes`.

    Args:
        train: data set to fit on, as for --data; other images than those of --data.
        shots: images of every class to fit on at most: the first ones.
        alpha: weight of the ridge penalty. Above 0.
        probe: ridge, as published, or softmax.
        streams: whose states have probes; residual must be among them, since its ranks
            order the tokens that are removed.
        steps: points of a removal curve, evenly spaced; at most one per image token.
        max_memory: for the probes that are fitted at once, such as 2GiB; the less, the
            more sweeps over the images.
    """

    train: str | None = None
    shots: int = 10
    alpha: float = 1.0
    probe: Kind = "ridge"
    streams: tuple[schema.Stream, ...] = tuple(schema.STREAMS)
    steps: int = 16
    max_memory: str | int = "4GiB"

    def __post_init__(self):
        for name in self.streams:
            if name not in schema.STREAMS:
                raise ValueError(unknown("stream", name, schema.STREAMS))
        if "residual" not in self.streams:
            raise ValueError(
                f"streams={self.streams} must hold 'residual': its ranks order tokens."
            )
        ordered = tuple(name for name in schema.STREAMS if name in self.streams)
        object.__setattr__(self, "streams", ordered)
        if self.probe not in get_args(Kind):
            raise ValueError(unknown("probe", self.probe, get_args(Kind)))
        if not 0 < self.alpha < np.inf:
            raise ValueError(f"alpha={self.alpha} must be above 0, and finite.")
        for name in ("shots", "steps"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        parse_bytes(self.max_memory)


REMOVAL_DIMS = schema.dims(schema.CORRECT, schema.CORRECT_RANDOM)

DIMS = base.DIMS | REMOVAL_DIMS | schema.dims(schema.RANK_PROBE)

PROBES = Recipe(
    name="probes",
    passes=make_passes,
    dims=DIMS,
    needs_label=schema.needs_label(DIMS),
    options=ProbeOptions(),
    static=schema.dims(schema.KEPT),
    describe=describe,
)
