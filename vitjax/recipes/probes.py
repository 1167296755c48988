"""Linear probes against the class projection (Vilas et al. 2023, section 8).

    vitjax run probes --model vit_b32 --train imagenet_s:PATH:probe \\
        --data imagenet_s:PATH:paper --out DIR

fits the published 1,800 ridge probes (3 streams, 12 blocks, 50 tokens) on 9,090 images
and ranks the classes of 4,550 others with them; the same images are ranked by the
projection. Then tokens are removed in the order of the probes' ranks, in that of
gradients, and at random.

The sums of a ridge probe take some megabytes, and there are thousands of probes: those
of as many tokens as fit a given memory, on all streams of all blocks, are fitted by one
sweep over the training images.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vitjax.analysis.probes import (
    Probe,
    add_batch,
    batch_mean,
    batch_sums,
    empty_statistics,
    fit_softmax_probe,
    solve_ridge,
)
from vitjax.messages import check_range
from vitjax.models.forward import scan_blocks
from vitjax.models.model import Model
from vitjax.recipes import identifiability as base
from vitjax.recipes import schema
from vitjax.recipes.faithfulness import removal_curves
from vitjax.recipes.recipe import (
    Context,
    Pass,
    Recipe,
    Setup,
    Subset,
    describe_training,
    image_noise,
    labels_of,
    median_seconds,
    open_training_data,
    subset,
)
from vitjax.saliency.relevancy import relevancy
from vitjax.saliency.removal import is_largest
from vitjax.types import ArrayLike, Batch

Kind = Literal["ridge", "softmax"]

NOMINAL_BATCH = 256
"""Images whose states are budgeted for. Not the run's batch size: a run that goes on
with another one must find the same groups."""


def token_ranges(tokens: int, limit: int) -> list[range]:
    """All tokens in as few ranges as can be, of one size <= limit but the last."""
    size = -(-tokens // -(-tokens // limit))
    return [range(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def bytes_per_probe(kind: Kind, *, dim: int, classes: int, examples: int) -> int:
    """Memory of one probe while it is fitted and used, on the host or a device."""
    weights = 4 * classes * (dim + 1) + 4 * dim
    states = 2 * 4 * NOMINAL_BATCH * dim
    if kind == "softmax":  # all states are kept
        return weights + states + 2 * 4 * examples * dim
    return weights + states + 8 * (dim + classes) * dim + 4 * dim * dim


def first_of_each_class(source: Any, *, shots: int, classes: int) -> Subset:
    """The first `shots` labeled images of each class, in the source's order.

    Once all classes are full, nothing more is read.
    """
    counts, indices = np.zeros(classes, int), []
    for index, label in enumerate(labels_of(source)):
        if label >= 0 and counts[label] < shots:
            counts[label] += 1
            indices.append(index)
        if (counts == shots).all():
            break
    if not indices:
        raise ValueError(f"The data set {source.id} holds no labeled image to fit on.")
    choice = f"first {shots} of each class, {len(indices)} images"
    return subset(source, np.array(indices), choice)


Examples = Iterable[tuple[Array, np.ndarray]]
"""States [batch *probe dim] and labels, -1 to leave out."""


def read_states(
    model: Model,
    images: Float[Array, "batch height width channel"],
    first: Int[ArrayLike, ""],
    *,
    streams: tuple[str, ...],
    tokens: int,
) -> Float[Array, "batch stream layer token dim"]:
    """The states of so many tokens from the `first`; others are not kept."""

    def read(params, stream_in, trace):
        states = jnp.stack([getattr(trace, name) for name in streams])
        return jax.lax.dynamic_slice_in_dim(states, first, tokens, axis=2)

    _, reads = scan_blocks(model, images, read)
    return reads.transpose(2, 1, 0, 3, 4).astype(jnp.float32)


jitted_states = jax.jit(read_states, static_argnames=("streams", "tokens"))
jitted_mean = jax.jit(batch_mean)
jitted_sums = jax.jit(batch_sums)


def fit_ridge(examples: Examples, *, classes: int, alpha: float) -> Probe:
    """Add up the sums of all batches and solve; states are not kept."""
    statistics = None
    for states, labels in examples:
        if statistics is None:
            offset = np.asarray(jitted_mean(states, labels))
            statistics = empty_statistics(offset, classes=classes)
        sums = jitted_sums(states, labels, statistics.offset)
        add_batch(statistics, sums, labels)
    assert statistics is not None  # `first_of_each_class` chose at least one image
    return solve_ridge(statistics, alpha=alpha)


def fit_softmax(examples: Examples, *, classes: int, seed: int) -> Probe:
    """Keep all states, and train one probe after the other."""
    kept = [(np.asarray(states), labels) for states, labels in examples]
    states, labels = map(np.concatenate, zip(*kept))
    return fit_softmax_probe(states, labels, classes=classes, seed=seed)


class RankCarry(NamedTuple):
    """Probes [stream layer token], and their first token."""

    probe: Probe
    first: Int[ArrayLike, ""]


class RemovalCarry(NamedTuple):
    """Importance of every image's patches by the probes; the seed of random ones."""

    importance: Float[ArrayLike, "image patch"]
    seed: Int[Array, ""]


def make_passes(context: Context, **keywords: Any) -> list[Pass]:
    """Linear probes against the class projection: ranks by both, then token removal.

    A pass for the probes of some tokens each, and a last one that removes tokens.
    """
    options = ProbeOptions(**keywords)
    source, groups = plan(context, options)
    config, classes = context.model.config, context.model.num_classes

    def read(tokens: range) -> Examples:
        size = {"streams": options.streams, "tokens": len(tokens)}
        for batch in context.batches(source, 0, len(source)):
            images, first = jnp.asarray(batch.images), jnp.int32(tokens.start)
            states = jitted_states(context.model, images, first, **size)
            yield states, np.where(batch.valid, batch.label, -1).astype(np.int32)

    def fit(tokens: range) -> Setup:
        if options.probe == "softmax":
            probe = fit_softmax(read(tokens), classes=classes, seed=context.seed)
        else:
            probe = fit_ridge(read(tokens), classes=classes, alpha=options.alpha)
        return Setup(RankCarry(probe, jnp.int32(tokens.start)))

    def empty(tokens: range) -> RankCarry:
        shape = len(options.streams), config.depth, len(tokens)
        probe = Probe(
            weights=jnp.zeros((*shape, classes, config.dim)),
            bias=jnp.zeros((*shape, classes)),
            centre=jnp.zeros((*shape, config.dim)),
        )
        return RankCarry(probe, jnp.int32(tokens.start))

    def rank_patches() -> Setup:  # once all probes have ranked
        ranks = context.rows(schema.RANK_PROBE("residual"))[:, :, config.prefix :]
        return Setup(RemovalCarry(importance_of(ranks), jnp.int32(context.seed)))

    fits = [
        Pass(
            step=bind(rank_classes, streams=options.streams),
            dims=dict.fromkeys(map(schema.RANK_PROBE, options.streams), schema.TOKEN),
            setup=functools.partial(fit, tokens),
            carry_shape=jax.eval_shape(functools.partial(empty, tokens)),
            region={"token": (tokens.start, tokens.stop)},
            title=f"fit {number}/{len(groups)}",
        )
        for number, tokens in enumerate(groups, start=1)
    ]
    removal = Pass(
        step=bind(remove_tokens, counts=keep_counts(config.patches, options.steps)),
        dims=schema.dims(*base.FAMILIES, schema.CORRECT, schema.CORRECT_RANDOM),
        setup=rank_patches,
        carry_shape=jax.eval_shape(
            lambda: RemovalCarry(
                jnp.zeros((context.images, config.patches)), jnp.int32(0)
            )
        ),
        title="removal",
        previews=PROBES.previews,
    )
    return [*fits, removal]


def setup(model: Model, *, seed: int, steps: int, **options: Any) -> Setup:
    """How many patches removal curves keep."""
    counts = keep_counts(model.config.patches, steps)
    return Setup(static={"kept": jnp.asarray(counts, jnp.float32)})


def describe(context: Context, **keywords: Any) -> dict[str, Any]:
    """What is fitted, on which images, in which groups, and how many bytes that is."""
    options = ProbeOptions(**keywords)
    source, groups = plan(context, options)
    config, classes = context.model.config, context.model.num_classes
    dim = config.dim
    count = len(options.streams) * config.depth * config.tokens
    return {
        **describe_training(context, source),
        "probes": count,
        "groups": len(groups),
        "group": {
            "stream": len(options.streams),
            "layer": config.depth,
            "token": len(groups[0]),
        },
        "bytes": {
            "states": 4 * dim * count * len(source),  # of all images, never kept
            "sums": 8 * dim * (dim + classes) * count,
            "weights": 4 * (classes * (dim + 1) + dim) * count,
            "class_embedding": 4 * classes * (dim + 1),
        },
    }


def plan(context: Context, options: "ProbeOptions") -> tuple[Subset, list[range]]:
    """The images to fit on, and the tokens whose probes are fitted in one sweep."""
    config, classes = context.model.config, context.model.num_classes
    data = open_training_data(context, "probes", options.train)
    source = first_of_each_class(data, shots=options.shots, classes=classes)
    probes_per_token = len(options.streams) * config.depth
    size = probes_per_token * bytes_per_probe(
        options.probe, dim=config.dim, classes=classes, examples=len(source)
    )
    limit = parse_bytes(options.max_memory) // size
    if limit < 1:
        raise ValueError(
            f"max_memory={options.max_memory!r} is too small: the probes of one token "
            f"take {size / 2**20:,.1f} MiB. Give more, or fewer streams."
        )
    return source, token_ranges(config.tokens, limit)


def parse_bytes(size: str | int) -> int:
    """Bytes of a size above 0 such as "2GiB", "500MB" or a number."""
    pattern = r"\s*(\d+\.?\d*|\.\d+)\s*(?:([kmgt])(i?))?b?\s*"
    match = re.fullmatch(pattern, str(size).lower())
    number, prefix, binary = match.groups() if match else ("0", None, None)
    power = 0 if prefix is None else " kmgt".index(prefix)
    count = int(float(number) * (1024 if binary else 1000) ** power)
    if count < 1:
        raise ValueError(f"max_memory={size!r} is not a size such as 2GiB or 500MB.")
    return count


def keep_counts(patches: int, steps: int) -> tuple[int, ...]:
    """How many patches stay, from 1 to one less than there are, evenly spaced.

    `patches - 1` steps or more are every number, as published.
    """
    last = max(1, patches - 1)
    points = np.linspace(1, last, min(steps, last)) if steps > 1 else [last / 2]
    return tuple(sorted({max(1, round(float(point))) for point in points}))


bind = functools.lru_cache(maxsize=16)(functools.partial)
"""A step with options; equal ones are one object, which is jitted once."""


def rank_classes(
    model: Model, batch: Batch, carry: RankCarry, *, streams: tuple[str, ...]
) -> dict[str, Array]:
    """Rank classes by the probes of some tokens."""
    images, count = jnp.asarray(batch.images), carry.probe.bias.shape[2]
    states = read_states(model, images, carry.first, streams=streams, tokens=count)
    ranks = carry.probe.rank(states, jnp.maximum(batch.label, 0))
    names = map(schema.RANK_PROBE, streams)
    return {name: ranks[:, place] for place, name in enumerate(names)}


def remove_tokens(
    model: Model, batch: Batch, carry: RemovalCarry, *, counts: tuple[int, ...]
) -> dict[str, Array]:
    """Rank by projection, and then ask whether the model is right with only `counts`
    patches, in five orders of removal.
    """
    rows, label = base.identifiability(model, batch), jnp.maximum(batch.label, 0)
    probe = jnp.take(carry.importance, batch.index, axis=0, mode="clip")
    gradient = relevancy(model, batch.images, label).sum((0, 2))
    gradient = gradient[:, model.config.prefix :]
    orders = {
        schema.CORRECT("negative", "probe"): probe,
        schema.CORRECT("negative", "gradient"): gradient,
        schema.CORRECT("positive", "probe"): -probe,
        schema.CORRECT("positive", "gradient"): -gradient,
        "correct_random": image_noise(
            jax.random.key(carry.seed), batch.index, model.config.patches
        ),
    }
    maps = jnp.stack(list(orders.values()))
    read = functools.partial(is_largest, label=label)
    correct = removal_curves(model, batch, maps, counts, read)
    return rows | dict(zip(orders, correct))


def importance_of(
    ranks: Int[np.ndarray, "image layer patch"],
) -> Float[np.ndarray, "image patch"]:
    """Minus the sum of a patch's ranks over blocks: small ranks are important."""
    return -ranks.sum(1, dtype=np.int64).astype(np.float32)


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
        if "residual" not in self.streams:
            raise ValueError(
                f"streams={self.streams} must hold 'residual': its ranks order tokens."
            )
        ordered = tuple(name for name in schema.STREAMS if name in self.streams)
        object.__setattr__(self, "streams", ordered)
        if not 0 < self.alpha < np.inf:
            raise ValueError(f"alpha={self.alpha} must be above 0, and finite.")
        check_range("shots", self.shots, 1)
        check_range("steps", self.steps, 1)
        parse_bytes(self.max_memory)


def time_projection(model: Model, batch: Batch, **options: Any) -> dict[str, float]:
    """What probes are compared with: ranking by the projection, for one image."""
    seconds = median_seconds(base.identifiability, model, batch)
    return {"projection_seconds_per_image": seconds / len(batch.label)}


PROBES = Recipe(
    name="probes",
    **schema.rows(
        *base.FAMILIES,
        schema.CORRECT,
        schema.CORRECT_RANDOM,
        schema.RANK_PROBE,
        schema.KEPT,
    ),
    options=ProbeOptions(),
    setup=setup,
    passes=make_passes,
    describe=describe,
    benchmark=time_projection,
)
