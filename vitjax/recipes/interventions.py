"""Sweeps over parts of a model: ablation, and activation patching between images.

A site is a set of entries of some parts of the model, as a mask for each part with its
axes in `PARTS`. Its pass begins at its first block, from the residual stream of the
pass without edits: on average, sweeping all blocks costs half a forward pass a site.

    vitjax run ablation --model vit_ti16 --data folder:photos --out rows

Each part in turn is set to zero, or to its mean over reference images; how much a logit
falls is the part's total effect, through everything that later blocks make of it. Then
the heads of the largest mean effect are ablated together, and as many random ones.

    vitjax run patching --model vit_ti16 --data folder:photos --out rows

Every image, the clean input, has a partner of another class, the corrupted one. Entries
of the clean pass are put into the corrupted pass, and the metric

    logit(class of the image) - logit(class of the partner)

says how much of the clean answer returns: 0 as in the corrupted pass, 1 as in the clean
one (Wang et al. 2023, Heimersheim and Nanda 2024).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from vitjax.analysis.class_space import take_label
from vitjax.messages import check_range
from vitjax.models.edits import field_shape
from vitjax.models.forward import forward, resume_forward, scan_blocks
from vitjax.models.model import Model
from vitjax.recipes import schema
from vitjax.recipes.recipe import (
    Context,
    Pass,
    Recipe,
    Setup,
    Subset,
    image_noise,
    mean_over,
    spread,
    subset,
)
from vitjax.types import FIELD_AXES, ArrayLike, Batch, Config, Edits, TapEdit

PARTS = {
    "residual": ("residual", ("layer", "token")),
    "head": ("mixed_values", ("layer", "head")),
    "attention": ("attention_update", ("layer",)),
    "mlp": ("mlp_update", ("layer",)),
}
"""Part -> the field of `Trace` that is replaced there, and the axes of its masks."""

Values = Mapping[str, Float[Array, "..."]]


def part_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of masks for every head, every block's attention and every MLP."""
    depth = config.depth
    return {"head": (depth, config.heads), "attention": (depth,), "mlp": (depth,)}


def by_part(
    values: Shaped[ArrayLike, "row site"], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Array]:
    """Part -> values [row layer ...] of one site for every entry of masks of these
    shapes, in their order; more are cut.
    """
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    pieces = jnp.split(jnp.asarray(values), ends, axis=1)
    return {
        part: piece.reshape(-1, *shape)
        for (part, shape), piece in zip(shapes.items(), pieces)
    }


def one_by_one(
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Bool[Array, "site layer ..."]]:
    """One site for every entry of masks of these shapes."""
    sites = sum(map(math.prod, shapes.values()))
    return by_part(np.eye(sites, dtype=bool), shapes)


def sweep(
    model: Model,
    streams: Float[Array, "layer batch token dim"],
    values: Values,
    sites: Mapping[str, Bool[ArrayLike, "site layer ..."]],
    read: Callable[[Float[Array, "batch class"]], Any],
) -> Any:
    """`read` of the class logits with each site replaced by `values`, [site ...].

    `streams` enter the blocks of the pass without edits; `values` of a part have the
    axes of its field.
    """

    def of_site(masks):
        taps = {}
        for part, mask in masks.items():
            field, axes = PARTS[part]
            sizes = dict(zip(axes, mask.shape))
            where = mask.reshape([sizes.get(axis, 1) for axis in FIELD_AXES[field]])
            taps[field] = TapEdit(where=where, value=values[part])
        blocks = [m.reshape(m.shape[0], -1).any(1) for m in masks.values()]
        start = jnp.argmax(functools.reduce(jnp.logical_or, blocks))
        return read(resume_forward(model, streams, start, edits=Edits(taps=taps)))

    return jax.lax.map(of_site, {part: jnp.asarray(m) for part, m in sites.items()})


def read_stream(params, stream_in, trace) -> Float[Array, "batch token dim"]:
    """A `read` of `scan_blocks`: what enters every block."""
    return stream_in


class AblationCarry(NamedTuple):
    """For each kind of ablation: what parts become, and heads by importance."""

    values: dict[str, Float[Array, "ablation layer one token ..."]]
    order: Int[ArrayLike, "ablation head"]
    seed: Int[ArrayLike, ""]


def ablation(
    model: Model,
    batch: Batch,
    carry: AblationCarry,
    *,
    ablations: tuple[str, ...],
    draws: int,
    **options: Any,
) -> dict[str, Array]:
    """Ablate every head, every block's attention and every MLP, one at a time.

    Keeps the effect on the logits of the true and of the predicted class, and the
    prediction. Then ablates the most important heads together and, as the control, as
    many random ones. About half a forward pass for each part.
    """
    config, label = model.config, jnp.maximum(jnp.asarray(batch.label), 0)
    logits, streams = scan_blocks(model, batch.images, read_stream)
    prediction = jnp.argmax(logits, -1).astype(jnp.int32)
    shapes, counts = part_shapes(config), head_counts(config)

    def read(logits):
        best = jnp.argmax(logits, -1).astype(jnp.int32)
        return take_label(logits, label), take_label(logits, prediction), best

    def of_ablation(values_and_order):
        values, order = values_and_order
        sites = one_by_one(shapes)
        if draws:
            sets = head_sets(config, order, carry.seed, counts, draws)
            none = jnp.zeros((len(sets), config.depth), bool)
            sets = {"head": sets, "attention": none, "mlp": none}
            sites = {p: jnp.concatenate([m, sets[p]]) for p, m in sites.items()}
        return sweep(model, streams, values, sites, read)

    # One program for all kinds of ablation: arrays are [ablation site batch].
    each = jax.lax.map(of_ablation, (carry.values, jnp.asarray(carry.order)))
    true, predicted, after = each
    before = take_label(logits, label), take_label(logits, prediction)
    rows = {schema.PREDICTION(): prediction}
    for family, measured in (
        (schema.EFFECT, before[0][None, None] - true),
        (schema.EFFECT_PREDICTED, before[1][None, None] - predicted),
        (schema.PREDICTION_ABLATED, after),
    ):
        for name, values in zip(ablations, measured):
            parts = by_part(values.T, shapes)
            rows |= {family(name, part): own for part, own in parts.items()}
    if draws:
        size = 1 + draws, len(counts)
        correct = after[:, -math.prod(size) :] == label[None, None]
        for name, sets in zip(ablations, correct):
            sets = sets.T.reshape(-1, *size)
            rows[schema.CORRECT_TOP_HEADS(name)] = sets[:, 0]
            rows[schema.CORRECT_RANDOM_HEADS(name)] = sets[:, 1:]
    return rows


def head_counts(config: Config) -> tuple[int, ...]:
    """How many heads are ablated together: powers of two, up to half of the heads."""
    heads = config.depth * config.heads
    return tuple(2**power for power in range(max(1, heads.bit_length() - 1)))


def head_sets(
    config: Config,
    order: Int[Array, " place"],
    seed: Int[ArrayLike, ""],
    counts: tuple[int, ...],
    draws: int,
) -> Bool[Array, "set layer head"]:
    """The first heads of an order, then of `draws` random ones; a set for each count.

    A larger set of one draw holds the smaller ones.
    """
    keys = jax.random.split(jax.random.key(seed), draws)
    shuffle = jax.vmap(lambda key: jax.random.permutation(key, order.shape[0]))
    orders = jnp.concatenate([order[None], shuffle(keys).astype(order.dtype)])
    place = jnp.argsort(orders, axis=1)  # of each head
    sets = place[:, None] < jnp.asarray(counts).reshape(1, -1, 1)
    return sets.reshape(-1, config.depth, config.heads)


def empty_carry(config: Config, options: "AblationOptions") -> AblationCarry:
    """A carry of zeros: zero ablation, and heads in their own order."""
    kinds, heads = len(options.ablations), config.depth * config.heads
    values = {
        part: jnp.zeros((kinds, *field_shape(PARTS[part][0], config, 1)))
        for part in schema.PARTS
    }
    order = jnp.tile(jnp.arange(heads, dtype=jnp.int32)[None], (kinds, 1))
    return AblationCarry(values, order, jnp.int32(0))


def ablation_passes(context: Context, **keywords: Any) -> list[Pass]:
    """The sweep, once means over the reference images and the order of heads are known
    from some of them.
    """
    options = AblationOptions(**keywords)
    make_empty = functools.partial(empty_carry, context.model.config, options)

    def setup() -> Setup:
        source, of_order = reference(context, options)
        carry = make_empty()._replace(seed=jnp.int32(context.seed))
        if "mean" in options.ablations:
            place = options.ablations.index("mean")
            values = jax.tree.map(
                lambda leaf, mean: leaf.at[place].set(mean[:, None]),
                carry.values,
                mean_over(context, source, part_sums),
            )
            carry = carry._replace(values=values)
        if options.draws:
            order = order_heads(context, of_order, carry, options.ablations)
            carry = carry._replace(order=order)
        return Setup(carry)

    return [Pass(setup=setup, carry_shape=jax.eval_shape(make_empty))]


def reference(context: Context, options: "AblationOptions") -> list[Subset]:
    """The images to average over, and those that say how important heads are."""
    source = context.source
    if options.reference is not None:
        source = context.open_data(options.reference)
    return [spread(source, n) for n in (options.reference_images, options.order_images)]


def describe(context: Context, **keywords: Any) -> dict[str, Any]:
    """Which images are averaged over, and which say how important heads are."""
    source, of_order = reference(context, AblationOptions(**keywords))
    return {"reference": source.id, "order": of_order.id}


@jax.jit
def part_sums(model: Model, batch: Batch) -> Values:
    """The sum of every part over the images of a batch, in float32."""

    def read(params, stream_in, trace, valid):
        states = {part: getattr(trace, PARTS[part][0]) for part in schema.PARTS}
        add = functools.partial(jnp.tensordot, valid, axes=1)
        return {part: add(state.astype(valid.dtype)) for part, state in states.items()}

    valid = jnp.asarray(batch.valid, jnp.float32)
    return scan_blocks(model, batch.images, read, args=valid)[1]


def order_heads(
    context: Context, source: Subset, carry: AblationCarry, ablations: tuple[str, ...]
) -> Int[np.ndarray, "ablation head"]:
    """Heads, `layer * heads + head`, by their mean effect on images, largest first.

    On the true class's logit or, without a label, the predicted one's. Not of the rows
    of the run: processes that share one see parts of these.
    """
    program = jax.jit(functools.partial(ablation, ablations=ablations, draws=0))

    def effects(model, batch):
        rows = jax.device_get(program(model, batch, carry))
        valid, labeled = np.asarray(batch.valid), np.asarray(batch.label) >= 0
        true, predicted = (
            np.stack([rows[family(name, "head")] for name in ablations])
            for family in (schema.EFFECT, schema.EFFECT_PREDICTED)
        )
        each = np.where(labeled[:, None, None], true, predicted)[:, valid]
        return each.sum(1).reshape(len(ablations), -1).astype(np.float64)

    mean = mean_over(context, source, effects)
    return np.argsort(-mean, axis=1, kind="stable").astype(np.int32)


@dataclasses.dataclass(frozen=True)
class AblationOptions:
    """Options of `ablation`.

    Args:
        ablations: what an ablated part becomes: zero, or its mean over the reference
            images, at each token position.
        reference: data set of the reference images, as for --data; by default that of
            the run.
        reference_images: how many of it to average over, spread evenly.
        order_images: how many of it say which heads are most important, for the sets
            of heads that are ablated together.
        draws: random sets of heads to compare these sets with; 0 for neither.
    """

    ablations: tuple[schema.Ablation, ...] = tuple(schema.ABLATIONS)
    reference: str | None = None
    reference_images: int = 512
    order_images: int = 32
    draws: int = 10

    def __post_init__(self):
        if not self.ablations:
            raise ValueError(f"ablations={self.ablations} must hold at least one name.")
        for name in ("reference_images", "order_images"):
            check_range(name, getattr(self, name), 1)
        check_range("draws", self.draws, 0)


def ablation_setup(model: Model, *, seed: int, **options: Any) -> Setup:
    """How many heads are ablated together."""
    counts = head_counts(model.config)
    return Setup(static={schema.ABLATED(): jnp.asarray(counts, jnp.float32)})


ABLATION = Recipe(
    name="ablation",
    **schema.rows(schema.PREDICTION, *schema.between(schema.EFFECT, schema.ABLATED)),
    step=ablation,
    options=AblationOptions(),
    setup=ablation_setup,
    passes=ablation_passes,
    describe=describe,
    many_passes=True,
)


Tokens = Literal["grid", "cls", "all"]
GRID = 4
"""Rows and columns of the groups that patches are patched in, at most."""


class PatchingCarry(NamedTuple):
    """The images that partners are drawn from; a label is -1 where unknown."""

    images: Float[ArrayLike, "partner height width channel"]
    label: Int[ArrayLike, " partner"]
    position: Int[ArrayLike, " partner"]
    seed: Int[ArrayLike, ""]


def patching_passes(context: Context, **keywords: Any) -> list[Pass]:
    """The sweep, once the images that partners are drawn from are read: random ones of
    the whole data set, however it is sorted and limited.
    """
    options, model = PatchingOptions(**keywords), context.model
    token_groups(model.config, options.tokens)  # a wrong option is an error by now
    draw, size = np.random.default_rng(context.seed), len(context.source)
    indices = draw.choice(size, min(options.partners, size), replace=False)
    chosen = subset(context.source, indices, f"{options.partners} random images")
    count, seed = len(chosen), jnp.int32(context.seed)

    def setup() -> Setup:
        batches = [
            (np.asarray(b.images), np.where(b.valid, b.label, -1).astype(np.int32))
            for b in context.batches(chosen, 0, count)
        ]
        images, label = (np.concatenate(each)[:count] for each in zip(*batches))
        position = np.asarray(chosen.indices, np.int32)
        return Setup(PatchingCarry(images, label, position, seed))

    def empty() -> PatchingCarry:
        images = jnp.zeros((count, *model.config.shape, 3))
        numbers = jnp.zeros(count, jnp.int32)
        return PatchingCarry(images, numbers, numbers, seed)

    return [Pass(setup=setup, carry_shape=jax.eval_shape(empty))]


def draw_partner(
    carry: PatchingCarry, index: Int[ArrayLike, " batch"], label: Int[Array, " batch"]
) -> tuple[Int[Array, " batch"], Bool[Array, " batch"]]:
    """A random image of another class for each, whatever batch it is in: its place in
    the carry, and whether there is one.
    """
    labels = jnp.asarray(carry.label)[None]
    noise = image_noise(jax.random.key(carry.seed), index, labels.size)
    noise = jnp.where((labels >= 0) & (labels != label[:, None]), noise, -1.0)
    return jnp.argmax(noise, 1).astype(jnp.int32), noise.max(1) >= 0


def patching(
    model: Model,
    batch: Batch,
    carry: PatchingCarry,
    *,
    tokens: Tokens,
    **options: Any,
) -> dict[str, Array]:
    """Patch activations of every image into the pass of one of another class.

    The residual stream by block and group of tokens, every head, every block's
    attention and every MLP; about half a forward pass for each. Keeps how much of the
    difference of the two classes' logits returns, 0 to 1.
    """
    config, label = model.config, jnp.maximum(jnp.asarray(batch.label), 0)
    place, exists = draw_partner(carry, batch.index, label)
    other = jnp.asarray(carry.label)[place]

    def metric(logits):
        return take_label(logits, label) - take_label(logits, other)

    fields = {part: field for part, (field, _) in PARTS.items()}
    clean_logits, trace = forward(model, batch.images, capture=tuple(fields.values()))
    corrupted_images = jnp.asarray(carry.images)[place]
    corrupted_logits, streams = scan_blocks(model, corrupted_images, read_stream)
    values = {part: getattr(trace, field) for part, field in fields.items()}
    group = token_groups(config, tokens)
    shapes = {"residual": (config.depth, int(group.max()) + 1)} | part_shapes(config)
    sites = one_by_one(shapes)
    sites["residual"] = sites["residual"][:, :, group] & (group >= 0)[None, None]
    patched = sweep(model, streams, values, sites, metric)
    clean, corrupted = metric(clean_logits), metric(corrupted_logits)
    gap = jnp.where(exists & (clean != corrupted), clean - corrupted, jnp.nan)
    restored = by_part(((patched - corrupted[None]) / gap[None]).T, shapes)
    rows = {schema.RESTORED(part): values for part, values in restored.items()}
    return rows | {
        schema.PREDICTION(): jnp.argmax(clean_logits, -1).astype(jnp.int32),
        schema.PARTNER(): jnp.where(exists, jnp.asarray(carry.position)[place], -1),
        schema.METRIC("clean"): jnp.where(exists, clean, jnp.nan),
        schema.METRIC("corrupted"): jnp.where(exists, corrupted, jnp.nan),
    }


def token_groups(config: Config, tokens: Tokens) -> Int[np.ndarray, " token"]:
    """The group of every token, -1 for one that is not patched.

    Prefix tokens are groups of their own, and come first.
    """
    group = np.arange(config.tokens)
    if tokens == "all":
        return group
    if tokens == "cls":
        if not config.class_token:
            raise ValueError("tokens='cls' needs a model with a [CLS] token: 'grid'?")
        return np.where(group == 0, 0, -1)
    (rows, columns), high, wide = config.grid, *np.minimum(config.grid, GRID)
    row, column = np.arange(rows) * high // rows, np.arange(columns) * wide // columns
    cells = config.prefix + row[:, None] * wide + column
    return np.concatenate([group[: config.prefix], cells.ravel()])


def patching_setup(model: Model, *, seed: int, tokens: Tokens, **options: Any) -> Setup:
    """Which tokens are patched together."""
    groups = token_groups(model.config, tokens)
    return Setup(static={schema.TOKEN_GROUP(): jnp.asarray(groups, jnp.float32)})


@dataclasses.dataclass(frozen=True)
class PatchingOptions:
    """Options of `patching`.

    Args:
        tokens: where the residual stream is patched: in groups of patches on a grid of
            at most 4 x 4, with each prefix token by itself; at [CLS] alone; or at all
            tokens one by one, which takes long.
        partners: random images of the data set that partners are drawn from; they stay
            in memory.
    """

    tokens: Tokens = "grid"
    partners: int = 64

    def __post_init__(self):
        check_range("partners", self.partners, 1)


PATCHING = Recipe(
    name="patching",
    **schema.rows(
        schema.PREDICTION, *schema.between(schema.PARTNER, schema.TOKEN_GROUP)
    ),
    step=patching,
    options=PatchingOptions(),
    setup=patching_setup,
    passes=patching_passes,
    many_passes=True,
)
