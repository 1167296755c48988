"""Ablation sweep: what every head, attention and MLP is worth to the prediction.

    vitjax run ablation --model vit_ti16 --data folder:photos --out rows

Each part in turn is set to zero, or to its mean over reference images; how much a logit
falls is the part's total effect, through everything that later blocks make of it. Then
the heads of the largest mean effect are ablated together, and as many random ones.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vitjax.analysis.class_space import take_label
from vitjax.messages import check_range
from vitjax.models.edits import field_shape
from vitjax.models.forward import scan_blocks
from vitjax.models.model import Model
from vitjax.recipes import schema
from vitjax.recipes.recipe import Context, Pass, Recipe, Setup, Subset
from vitjax.recipes.sites import (
    PARTS,
    Values,
    by_part,
    one_by_one,
    part_shapes,
    read_stream,
    spread,
    sweep,
)
from vitjax.types import ArrayLike, Batch, Config


class Carry(NamedTuple):
    """For each kind of ablation: what parts become, and heads by importance."""

    values: dict[str, Float[Array, "ablation layer one token ..."]]
    order: Int[ArrayLike, "ablation head"]
    seed: Int[ArrayLike, ""]


def make_passes(context: Context, **keywords: Any) -> list[Pass]:
    """Ablate every head, every block's attention and every MLP, one at a time.

    Keeps the effect on the logits of the true and of the predicted class, and the
    prediction. Then ablates the most important heads together and, as the control, as
    many random ones. About half a forward pass for each part.
    """
    options = AblationOptions(**keywords)
    empty = jax.eval_shape(lambda: empty_carry(context.model.config, options))
    whole = Pass(
        step=make_step(options),
        dims=ABLATION.dims,
        setup=functools.cache(lambda: Setup(prepare(context, options))),
        carry_shape=empty,
        previews=ABLATION.previews,
    )
    return [whole]


@functools.lru_cache(maxsize=16)
def make_step(options: "AblationOptions"):
    """The step of these options."""

    def step(model: Model, batch: Batch, carry: Carry) -> dict[str, Array]:
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


def empty_carry(config: Config, options: "AblationOptions") -> Carry:
    """A carry of zeros: zero ablation, and heads in their own order."""
    kinds, heads = len(options.ablations), config.depth * config.heads
    values = {
        part: jnp.zeros((kinds, *field_shape(PARTS[part][0], config, 1)))
        for part in schema.PARTS
    }
    order = jnp.tile(jnp.arange(heads, dtype=jnp.int32)[None], (kinds, 1))
    return Carry(values, order, jnp.int32(0))


def prepare(context: Context, options: "AblationOptions") -> Carry:
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
    context: Context, source: Subset, carry: Carry, options: "AblationOptions"
) -> Int[np.ndarray, "ablation head"]:
    """Heads, `layer * heads + head`, by their mean effect on images, largest first.

    On the true class's logit or, without a label, the predicted one's. Not of the rows
    of the run: processes that share one see parts of these.
    """
    total = np.zeros(carry.order.shape)
    program = jax.jit(make_step(dataclasses.replace(options, draws=0)))
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


def setup(model: Model, *, seed: int, **options: Any) -> Setup:
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
    setup=setup,
    passes=make_passes,
    describe=describe,
    many_passes=True,
)
