"""Activation patching between images of two classes: where the answer is decided.

    vitjax run patching --model vit_ti16 --data folder:photos --out rows

Every image, the clean input, has a partner of another class, the corrupted one. Entries
of the clean pass are put into the corrupted pass, and the metric

    logit(class of the image) - logit(class of the partner)

says how much of the clean answer returns: 0 as in the corrupted pass, 1 as in the clean
one (Wang et al. 2023, Heimersheim and Nanda 2024).
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vitjax.analysis.class_space import take_label
from vitjax.messages import check_range
from vitjax.models.forward import forward, scan_blocks
from vitjax.models.model import Model
from vitjax.recipes import schema
from vitjax.recipes.recipe import Context, Pass, Recipe, Setup, image_noise
from vitjax.recipes.sites import (
    PARTS,
    by_part,
    one_by_one,
    part_shapes,
    read_stream,
    subset,
    sweep,
)
from vitjax.types import ArrayLike, Batch, Config

Tokens = Literal["grid", "cls", "all"]
GRID = 4
"""Rows and columns of the groups that patches are patched in, at most."""


class Carry(NamedTuple):
    """The images that partners are drawn from; a label is -1 where unknown."""

    images: Float[ArrayLike, "partner height width channel"]
    label: Int[ArrayLike, " partner"]
    position: Int[ArrayLike, " partner"]
    seed: Int[ArrayLike, ""]


def make_passes(context: Context, **keywords: Any) -> list[Pass]:
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
    empty = jax.eval_shape(lambda: Carry(jnp.zeros(shape), numbers, numbers, number))
    whole = Pass(
        step=make_step(options.tokens),
        dims=PATCHING.dims,
        setup=functools.cache(lambda: Setup(prepare(context, chosen))),
        carry_shape=empty,
        previews=PATCHING.previews,
    )
    return [whole]


def choose_partners(context: Context, count: int) -> Any:
    """Random images of the whole data set, however it is sorted and limited."""
    draw, source = np.random.default_rng(context.seed), context.source
    indices = draw.choice(len(source), min(count, len(source)), replace=False)
    return subset(source, indices, f"{count} random images")


def prepare(context: Context, chosen: Any) -> Carry:
    """The pixels and labels of the images that partners are drawn from."""
    batches = [
        (np.asarray(b.images), np.where(b.valid, b.label, -1).astype(np.int32))
        for b in context.batches(chosen, 0, len(chosen))
    ]
    images, label = (np.concatenate(each)[: len(chosen)] for each in zip(*batches))
    position = np.asarray(chosen.indices, np.int32)
    return Carry(images, label, position, jnp.int32(context.seed))


def draw_partner(
    carry: Carry, index: Int[ArrayLike, " batch"], label: Int[Array, " batch"]
) -> tuple[Int[Array, " batch"], Bool[Array, " batch"]]:
    """A random image of another class for each, whatever batch it is in: its place in
    the carry, and whether there is one.
    """
    labels = jnp.asarray(carry.label)[None]
    noise = image_noise(jax.random.key(carry.seed), index, labels.size)
    noise = jnp.where((labels >= 0) & (labels != label[:, None]), noise, -1.0)
    return jnp.argmax(noise, 1).astype(jnp.int32), noise.max(1) >= 0


@functools.lru_cache(maxsize=16)
def make_step(tokens: Tokens):
    """The step that patches these tokens."""

    def step(model: Model, batch: Batch, carry: Carry) -> dict[str, Array]:
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


def setup(model: Model, *, seed: int, tokens: Tokens, **options: Any) -> Setup:
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
    setup=setup,
    passes=make_passes,
    many_passes=True,
)
