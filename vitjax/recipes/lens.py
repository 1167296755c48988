"""Tuned lenses: what each block would answer, fitted on images and measured on others.

    vitjax run lens --model vit_ti16 --train folder:other --data folder:photos --out DIR

A lens of each block is fitted on the states of the images of --train as they stream by;
the images of --data are then read by the lens and by the plain projection.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitjax.analysis.class_space import project_tokens, rank
from vitjax.analysis.tuned_lens import (
    Examples,
    TunedLens,
    divergence,
    fit_step,
    identity_lens,
    lens_losses,
    read_blocks,
    read_pooled,
)
from vitjax.data.datasets import open_data
from vitjax.data.images import Preprocess
from vitjax.data.loader import batches
from vitjax.data.records import Record
from vitjax.messages import check_classes, check_one_of, check_range
from vitjax.models.forward import run_blocks
from vitjax.models.model import Model
from vitjax.recipes import schema
from vitjax.recipes.probes import parse_bytes
from vitjax.recipes.recipe import (
    Context,
    Pass,
    Recipe,
    Setup,
    Subset,
    microbatched,
    spread,
)
from vitjax.types import Batch, to_float32

TOKENS = ("pooled", "all")
STEP_IMAGES = 64
"""Images of a step of the fit, whatever the batches of the run."""


@dataclasses.dataclass(frozen=True)
class LensOptions:
    """Options of `lens`.

    Args:
        train: data set to fit on, as for --data; other images than those of --data.
            They need no labels.
        train_images: how many of them, spread evenly over the data set.
        tokens: whose answer is the model's: pooled, that of the state that the head
            reads, such as [CLS]; or that of all tokens, each read by itself.
        steps: of the fit, 64 images each.
        learning_rate: of Adam, at the first step; it falls to 0 as a cosine.
        max_memory: for the states of the training images, such as 2GiB; where they do
            not fit, they are computed anew whenever they are needed.
    """

    train: str | None = None
    train_images: int = 5000
    tokens: Literal["pooled", "all"] = "pooled"
    steps: int = 300
    learning_rate: float = 1e-3
    max_memory: str | int = "2GiB"

    def __post_init__(self):
        check_one_of("tokens", self.tokens, TOKENS)
        check_range("train_images", self.train_images, 1)
        check_range("steps", self.steps, 1)
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"learning_rate={self.learning_rate} must be above 0, and finite."
            )
        parse_bytes(self.max_memory)


def fit_tuned_lens(
    model: Model, data: Any, *, batch_size: int = 32, seed: int = 0, **options: Any
) -> TunedLens:
    """Fit the tuned lens of a model on images, which need no labels.

    For each block, minimizes the mean KL of the model's answer to what the head reads
    of the translated state; see `vitjax.analysis.tuned_lens`. Starts from the plain
    projection and, block by block, returns to it where the fit is not better on these
    images. The same seed gives the same lens; an image that cannot be read is left out.

    Args:
        model: with classes. It stays as it is.
        data: a source such as "folder:photos", or a random-access source object.
        batch_size: images of a forward pass.
        seed: of the order of images.
        options: train_images, tokens, steps, learning_rate, max_memory: see
            `vitjax.recipes.lens.LensOptions`.

    Returns:
        The lens, in float32.

    Raises:
        ValueError: the model has no classes, there is no image, or an option is out of
            its range.

    Example:
        >>> lens = vitjax.fit_tuned_lens(model, "textured_digits:train", steps=100)
        >>> states = vitjax.apply_lens(lens, trace.residual)
    """
    settings = LensOptions(**options)
    source = Unlabeled(open_data(data).source)

    def load(source: Any, start: int, stop: int) -> Iterator[Batch]:
        loaded = batches(
            source,
            preprocess=model.preprocess or Preprocess(*model.config.shape),
            local_batch_size=batch_size,
            start=start,
            stop=stop,
            on_error="skip",
        )
        return (one.batch for one in loaded)

    with jax.default_matmul_precision("highest"):
        images = spread(source, settings.train_images)
        return fit(model, load, images, settings, seed)


@dataclasses.dataclass(frozen=True)
class Unlabeled:
    """A data set whose labels, whatever they are, do not matter."""

    source: Any

    @property
    def id(self) -> str:
        """That of the data set."""
        return self.source.id

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        return dataclasses.replace(self.source[index], label=-1)


Load = Callable[[Any, int, int], Iterator[Batch]]
"""`Context.batches`: (source, start, stop) -> batches."""


def fit(
    model: Model, load: Load, source: Any, options: LensOptions, seed: int
) -> TunedLens:
    """The lens of some images."""
    import optax

    check_classes(model.num_classes)
    head = model.astype(np.promote_types(model.dtype, np.float32))
    tokens, count = options.tokens, len(source)
    examples = example_reader(model, load, source, options)
    lens: Any = identity_lens(model.config)
    identity = lens
    rng, moments = np.random.default_rng(seed), optax.adam(0.0).init(lens)
    epochs = -(-options.steps * STEP_IMAGES // count)
    positions = np.concatenate([rng.permutation(count) for _ in range(epochs)])
    positions = positions[: options.steps * STEP_IMAGES]
    for step, batch in enumerate(examples(positions)):
        rate = options.learning_rate * (1 + math.cos(math.pi * step / options.steps))
        lens, moments = fit_step(
            lens, moments, head, batch, jnp.float32(rate / 2), tokens=tokens
        )
    total = np.zeros((2, model.config.depth))
    for batch in examples(np.arange(count)):
        pair = [jitted_losses(each, head, batch, tokens) for each in (identity, lens)]
        total += np.stack(pair) * np.sum(batch.valid)
    better = jnp.asarray(total[1] < total[0])  # False where it is not finite
    return jax.tree.map(
        lambda new, old: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old),
        lens,
        identity,
    )


jitted_losses = jax.jit(lens_losses, static_argnums=3)


def example_reader(
    model: Model, load: Load, source: Any, options: LensOptions
) -> Callable[[np.ndarray], Iterator[Examples]]:
    """positions in the source -> their examples, 64 at a time.

    The states of all images are kept where they fit in memory.
    """

    def stream(positions: np.ndarray) -> Iterator[Examples]:
        chosen = Subset(source, positions, source.id)
        for batch in load(chosen, 0, len(chosen)):
            yield jax.device_get(jitted_examples(model, batch, options.tokens))

    config, every = model.config, options.tokens == "all"
    tokens = config.tokens if every or config.normalizes_first else 1
    size = 4 * (config.depth * config.dim * tokens + model.num_classes)
    if size * len(source) > parse_bytes(options.max_memory):
        return lambda positions: regroup(stream(positions), len(positions))
    whole = next(regroup(stream(np.arange(len(source))), len(source), len(source)))

    def take(positions: np.ndarray) -> Iterator[Examples]:
        for start in range(0, len(positions), STEP_IMAGES):
            rows = positions[start : start + STEP_IMAGES]
            yield jax.tree.map(lambda leaf, rows=rows: leaf[rows], whole)

    return take


def regroup(
    parts: Iterator[Examples], count: int, size: int = STEP_IMAGES
) -> Iterator[Examples]:
    """The first `count` examples, `size` at a time and what is left."""
    rest: list[Examples] = []
    for part in parts:
        rest.append(part)
        while count and sum(len(each.valid) for each in rest) >= min(size, count):
            joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *rest)
            cut = min(size, count)
            yield jax.tree.map(lambda leaf, cut=cut: leaf[:cut], joined)
            rest = [jax.tree.map(lambda leaf, cut=cut: leaf[cut:], joined)]
            count -= cut


def read_examples(model: Model, batch: Batch, tokens: str) -> Examples:
    """The states after every block, of the tokens that are read."""

    def read(params, stream_in, trace, context):
        states = to_float32(trace.residual)
        states = states if tokens == "all" else head_tokens(states, model)
        return states, context.class_tokens

    _, _, logits, (states, class_tokens) = run_blocks(
        model, batch.images, read, edits=None, pass_context=True
    )
    if class_tokens is not None:
        class_tokens = jnp.moveaxis(class_tokens, 2, 0)
    return Examples(
        jnp.moveaxis(states, 0, 1), class_tokens, to_float32(logits), batch.valid
    )


jitted_examples = jax.jit(read_examples, static_argnums=2)


def head_tokens(
    states: Float[Array, "batch token dim"], model: Model
) -> Float[Array, "batch kept dim"]:
    """A sequence with the tokens that the head reads, of patches their mean where that
    is all of them that it reads: lenses are affine, so that means may go first.
    """
    config = model.config
    if config.pooling == "cls":
        return states[:, : 1 + config.distilled]
    if config.normalizes_first:
        return states
    prefix, patches = states[:, : config.prefix], states[:, config.prefix :]
    return jnp.concatenate([prefix, patches.mean(1, keepdims=True)], axis=1)


class Carry(NamedTuple):
    """Both lenses, and the logarithms of the mean answers over the images."""

    lenses: dict[str, TunedLens]
    answer: Float[Array, " class"]
    read: dict[str, Float[Array, "layer class"]]


def make_passes(context: Context, **keywords: Any) -> list[Pass]:
    """Tuned lenses against the class projection: what each block would answer.

    Fits a lens of each block on other images, then one forward pass for each image.
    """
    options = LensOptions(**keywords)
    source, config = training_data(context, options), context.model.config

    def setup() -> Setup:
        lens = fit(context.model, context.batches, source, options, context.seed)
        lenses = {"projection": identity_lens(config), "lens": lens}
        return Setup(Carry(lenses, *mean_answers(context, lenses)))

    def empty() -> Carry:
        answer = jnp.zeros(context.model.num_classes, jnp.float32)
        lenses = dict.fromkeys(schema.LENSES, identity_lens(config))
        read = dict.fromkeys(schema.LENSES, jnp.tile(answer, (config.depth, 1)))
        return Carry(lenses, answer, read)

    whole = Pass(
        step=STEPS[options.tokens],
        dims=LENS.dims,
        setup=setup,
        carry_shape=jax.eval_shape(empty),
    )
    return [whole]


def training_data(context: Context, options: LensOptions) -> Subset:
    """The images to fit on."""
    if options.train is None:
        raise ValueError(
            "The recipe 'lens' fits lenses on other images than --data: pass "
            "--train SOURCE (in Python, the option train)."
        )
    return spread(context.open_data(options.train), options.train_images)


def describe(context: Context, **keywords: Any) -> dict[str, Any]:
    """Which images are fitted on, and whether they are those that are measured."""
    source = training_data(context, LensOptions(**keywords))
    return {
        "train": {"id": source.id, "images": len(source)},
        "shared_images": context.images * (source.whole.id == context.source.id),
    }


def mean_answers(context: Context, lenses: dict[str, TunedLens]) -> Any:
    """Logarithms of the mean probabilities of the model, and of each lens."""
    total, count = None, 0
    for batch in context.batches(context.source, 0, context.images):
        sums = sum_answers(context.model, batch, lenses)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        count += int(np.sum(batch.valid))
    tiny = np.finfo(np.float32).tiny
    return jax.tree.map(lambda sums: jnp.log(sums / max(count, 1) + tiny), total)


@jax.jit
def sum_answers(model: Model, batch: Batch, lenses: dict[str, TunedLens]) -> Any:
    """Probabilities summed over the images of a batch."""
    examples = read_examples(model, batch, "pooled")
    valid = jnp.asarray(batch.valid, jnp.float32)

    def add(logits):
        return valid @ jax.nn.softmax(to_float32(logits))

    def read(model, states, class_tokens):
        return add(read_pooled(model, states, class_tokens))

    sums = {
        name: read_blocks(lens, model, examples, read) for name, lens in lenses.items()
    }
    return add(examples.logits), sums


@microbatched
def measure(
    model: Model, batch: Batch, carry: Carry, *, tokens: str
) -> dict[str, Array]:
    """What both lenses read of every block, beside the model's answer."""
    examples, label = read_examples(model, batch, tokens), jnp.maximum(batch.label, 0)
    logits = jnp.asarray(examples.logits)
    rows = {schema.PREDICTION(): jnp.argmax(logits, -1).astype(jnp.int32)}

    def read(model, states, class_tokens):
        answer = read_pooled(model, states, class_tokens)
        best = jnp.argmax(answer, -1).astype(jnp.int32)
        measured = [divergence(logits, answer), best, rank(answer, label)]
        if tokens == "all":
            measured.append(rank(project_tokens(model, states), label[:, None]))
        return measured

    families = schema.KL_BY, schema.PREDICTION_BY, schema.RANK_BY, schema.RANK_TOKENS_BY
    for name, lens in carry.lenses.items():
        for family, values in zip(families, read_blocks(lens, model, examples, read)):
            rows[family(name)] = jnp.moveaxis(values, 0, 1)
        differences = carry.answer[None] - carry.read[name]
        rows[schema.BIAS_BY(name)] = jax.nn.softmax(logits) @ differences.T
    return rows


STEPS = {name: functools.partial(measure, tokens=name) for name in TOKENS}
"""One step object for each, which is jitted once."""

LENS = Recipe(
    name="lens",
    **schema.rows(
        schema.PREDICTION,
        schema.KL_BY,
        schema.BIAS_BY,
        schema.PREDICTION_BY,
        schema.RANK_BY,
        schema.RANK_TOKENS_BY,
    ),
    options=LensOptions(),
    passes=make_passes,
    describe=describe,
)
