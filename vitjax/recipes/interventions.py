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

Shapes = Mapping[str, tuple[int, ...]]
Sites = Mapping[str, Bool[ArrayLike, "site layer ..."]]
Values = Mapping[str, Float[Array, "..."]]


def part_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of masks for every head, every block's attention and every MLP."""
    depth = config.depth
    return {"head": (depth, config.heads), "attention": (depth,), "mlp": (depth,)}


def one_by_one(shapes: Shapes) -> dict[str, Bool[np.ndarray, "site layer ..."]]:
    """One site for every entry of masks of these shapes, in their order."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    masks = np.split(np.eye(sum(sizes), dtype=bool), np.cumsum(sizes)[:-1], axis=1)
    return {
        part: mask.reshape(-1, *shape)
        for (part, shape), mask in zip(shapes.items(), masks)
    }


def by_part(values: Shaped[Array, "site batch"], shapes: Shapes) -> dict[str, Array]:
    """Part -> values [batch layer ...] of the sites of `one_by_one`; more are cut."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    pieces = jnp.split(values.T, ends, axis=1)
    return {
        part: piece.reshape(-1, *shape)
        for (part, shape), piece in zip(shapes.items(), pieces)
    }


def sweep(
    model: Model,
    streams: Float[Array, "layer batch token dim"],
    values: Values,
    sites: Sites,
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


def ablation_passes(context: Context, **keywords: Any) -> list[Pass]:
    """Ablate every head, every block's attention and every MLP, one at a time.

    Keeps the effect on the logits of the true and of the predicted class, and the
    prediction. Then ablates the most important heads together and, as the control, as
    many random ones. About half a forward pass for each part.
    """
    options = AblationOptions(**keywords)
    empty = jax.eval_shape(lambda: empty_carry(context.model.config, options))
    whole = Pass(
        step=ablation_step(options),
        dims=ABLATION.dims,
        setup=functools.cache(lambda: Setup(prepare_ablation(context, options))),
        carry_shape=empty,
        previews=ABLATION.previews,
    )
    return [whole]


@functools.lru_cache(maxsize=16)
def ablation_step(options: "AblationOptions"):
    """The step of these options."""

    def step(model: Model, batch: Batch, carry: AblationCarry) -> dict[str, Array]:
        config, label = model.config, jnp.maximum(jnp.asarray(batch.label), 0)
        logits, streams = scan_blocks(model, batch.images, read_stream)
        prediction = jnp.argmax(logits, -1).astype(jnp.int32)
        shapes, counts = part_shapes(config), head_counts(config)

        def read(logits):
            best = jnp.argmax(logits, -1).astype(jnp.int32)
            return take_label(logits, label), take_label(logits, prediction), best

        def of_ablation(values_and_order):
            values, order = values_and_order
            sites = jax.tree.map(jnp.asarray, one_by_one(shapes))
            if options.draws:
                sets = head_sets(config, order, carry.seed, counts, options.draws)
                none = jnp.zeros((len(sets), config.depth), bool)
                sets = {"head": sets, "attention": none, "mlp": none}
                sites = {p: jnp.concatenate([m, sets[p]]) for p, m in sites.items()}
            return sweep(model, streams, values, sites, read)

        # One program for all kinds of ablation: arrays are [ablation site batch].
        each = jax.lax.map(of_ablation, (carry.values, jnp.asarray(carry.order)))
        true, predicted, after = each
        measures = [
            (schema.EFFECT, take_label(logits, label)[None, None] - true),
            (
                schema.EFFECT_PREDICTED,
                take_label(logits, prediction)[None, None] - predicted,
            ),
            (schema.PREDICTION_ABLATED, after),
        ]
        rows = {schema.PREDICTION(): prediction}
        for family, measured in measures:
            for name, values in zip(options.ablations, measured):
                parts = by_part(values, shapes)
                rows |= {family(name, part): own for part, own in parts.items()}
        if options.draws:
            size = 1 + options.draws, len(counts)
            correct = after[:, -math.prod(size) :] == label[None, None]
            for name, sets in zip(options.ablations, correct):
                sets = sets.T.reshape(-1, *size)
                rows[schema.CORRECT_TOP_HEADS(name)] = sets[:, 0]
                rows[schema.CORRECT_RANDOM_HEADS(name)] = sets[:, 1:]
        return rows

    return step


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


def prepare_ablation(context: Context, options: "AblationOptions") -> AblationCarry:
    """Means over the reference images, and the order of heads on some of them."""
    source, of_order = reference(context, options)
    carry = empty_carry(context.model.config, options)
    if "mean" in options.ablations:
        means, place = part_means(context, source), options.ablations.index("mean")
        values = {
            part: v.at[place].set(means[part]) for part, v in carry.values.items()
        }
        carry = carry._replace(values=values)
    if options.draws:
        carry = carry._replace(order=order_heads(context, of_order, carry, options))
    return carry._replace(seed=jnp.int32(context.seed))


def reference(context: Context, options: "AblationOptions") -> list[Subset]:
    """The images to average over, and those that say how important heads are."""
    source = context.source
    if options.reference is not None:
        source = context.open_data(options.reference)
    counts = options.reference_images, options.order_images
    return [spread(source, count) for count in counts]


def describe(context: Context, **keywords: Any) -> dict[str, Any]:
    """Which images are averaged over, and which say how important heads are."""
    source, of_order = reference(context, AblationOptions(**keywords))
    return {"reference": source.id, "order": of_order.id}


def part_means(context: Context, source: Subset) -> Values:
    """The mean of every part over images, [layer 1 token ...], summed as they come."""
    total, count = None, 0
    for batch in context.batches(source, 0, len(source)):
        sums = part_sums(context.model, batch)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        count += int(np.sum(batch.valid))
    if not count:
        raise ValueError(f"The data set {source.id} holds no image to average over.")
    return jax.tree.map(lambda values: values[:, None] / count, total)


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
    context: Context, source: Subset, carry: AblationCarry, options: "AblationOptions"
) -> Int[np.ndarray, "ablation head"]:
    """Heads, `layer * heads + head`, by their mean effect on images, largest first.

    On the true class's logit or, without a label, the predicted one's. Not of the rows
    of the run: processes that share one see parts of these.
    """
    total = np.zeros(carry.order.shape)
    program = jax.jit(ablation_step(dataclasses.replace(options, draws=0)))
    for batch in context.batches(source, 0, len(source)):
        rows = jax.device_get(program(context.model, batch, carry))
        labeled = np.asarray(batch.label)[:, None, None] >= 0
        valid = np.asarray(batch.valid)
        for sums, name in zip(total, options.ablations):
            true = rows[schema.EFFECT(name, "head")]
            predicted = rows[schema.EFFECT_PREDICTED(name, "head")]
            effect = np.where(labeled, true, predicted)[valid]
            sums += effect.reshape(len(effect), -1).sum(0)
    return np.argsort(-total, axis=1, kind="stable").astype(np.int32)


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
    **schema.rows(
        schema.PREDICTION,
        schema.EFFECT,
        schema.EFFECT_PREDICTED,
        schema.PREDICTION_ABLATED,
        schema.CORRECT_TOP_HEADS,
        schema.CORRECT_RANDOM_HEADS,
        schema.ABLATED,
    ),
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
    """Patch activations of every image into the pass of one of another class.

    The residual stream by block and group of tokens, every head, every block's
    attention and every MLP; about half a forward pass for each. Keeps how much of the
    difference of the two classes' logits returns, 0 to 1.
    """
    options, model = PatchingOptions(**keywords), context.model
    token_groups(model.config, options.tokens)  # a wrong option is an error by now
    chosen = choose_partners(context, options.partners)
    shape, number = (len(chosen), *model.config.shape, 3), jnp.int32(0)
    numbers = jnp.zeros(len(chosen), jnp.int32)
    empty = jax.eval_shape(
        lambda: PatchingCarry(jnp.zeros(shape), numbers, numbers, number)
    )
    whole = Pass(
        step=patching_step(options.tokens),
        dims=PATCHING.dims,
        setup=functools.cache(lambda: Setup(prepare_patching(context, chosen))),
        carry_shape=empty,
        previews=PATCHING.previews,
    )
    return [whole]


def choose_partners(context: Context, count: int) -> Any:
    """Random images of the whole data set, however it is sorted and limited."""
    draw, source = np.random.default_rng(context.seed), context.source
    indices = draw.choice(len(source), min(count, len(source)), replace=False)
    return subset(source, indices, f"{count} random images")


def prepare_patching(context: Context, chosen: Any) -> PatchingCarry:
    """The pixels and labels of the images that partners are drawn from."""
    batches = [
        (np.asarray(b.images), np.where(b.valid, b.label, -1).astype(np.int32))
        for b in context.batches(chosen, 0, len(chosen))
    ]
    images, label = (np.concatenate(each)[: len(chosen)] for each in zip(*batches))
    position = np.asarray(chosen.indices, np.int32)
    return PatchingCarry(images, label, position, jnp.int32(context.seed))


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


@functools.lru_cache(maxsize=16)
def patching_step(tokens: Tokens):
    """The step that patches these tokens."""

    def step(model: Model, batch: Batch, carry: PatchingCarry) -> dict[str, Array]:
        config, label = model.config, jnp.maximum(jnp.asarray(batch.label), 0)
        place, exists = draw_partner(carry, batch.index, label)
        other = jnp.asarray(carry.label)[place]

        def metric(logits):
            return take_label(logits, label) - take_label(logits, other)

        fields = {part: field for part, (field, _) in PARTS.items()}
        clean_logits, trace = forward(
            model, batch.images, capture=tuple(fields.values())
        )
        corrupted_images = jnp.asarray(carry.images)[place]
        corrupted_logits, streams = scan_blocks(model, corrupted_images, read_stream)
        values = {part: getattr(trace, field) for part, field in fields.items()}
        group = token_groups(config, tokens)
        shapes = {"residual": (config.depth, int(group.max()) + 1)}
        shapes |= part_shapes(config)
        sites = one_by_one(shapes)
        sites["residual"] = sites["residual"][:, :, group] & (group >= 0)
        patched = sweep(model, streams, values, sites, metric)
        clean, corrupted = metric(clean_logits), metric(corrupted_logits)
        gap = jnp.where(exists & (clean != corrupted), clean - corrupted, jnp.nan)
        restored = by_part((patched - corrupted[None]) / gap[None], shapes)
        rows = {schema.RESTORED(part): values for part, values in restored.items()}
        return rows | {
            schema.PREDICTION(): jnp.argmax(clean_logits, -1).astype(jnp.int32),
            schema.PARTNER(): jnp.where(exists, jnp.asarray(carry.position)[place], -1),
            schema.METRIC("clean"): jnp.where(exists, clean, jnp.nan),
            schema.METRIC("corrupted"): jnp.where(exists, corrupted, jnp.nan),
        }

    return step


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
        schema.PREDICTION,
        schema.PARTNER,
        schema.METRIC,
        schema.RESTORED,
        schema.TOKEN_GROUP,
    ),
    options=PatchingOptions(),
    setup=patching_setup,
    passes=patching_passes,
    many_passes=True,
)
