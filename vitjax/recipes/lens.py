"""Tuned lenses: what each block would answer, fitted on images and measured on others.

    vitjax run lens --model vit_ti16 --train folder:other --data folder:photos --out DIR

A lens of each block is fitted on the states of the images of --train as they stream by;
the images of --data are then read by the lens and by the plain projection.
"""

import dataclasses
import functools
import itertools
import math
import operator
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
from vitjax.data.datasets import LabeledDataset, open_data
from vitjax.data.images import Preprocess
from vitjax.data.loader import batches
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
    describe_training,
    mean_over,
    microbatched,
    open_training_data,
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
    source = Unlabeled(open_data(data).source, None, ())

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


class Unlabeled(LabeledDataset):
    """A data set whose labels, whatever they are, do not matter."""

    def number(self, label: Any) -> int:
        """-1: unknown."""
        return -1


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

    def read(positions: np.ndarray) -> Iterator[Examples]:
        for batch in load(Subset(source, positions, source.id), 0, len(positions)):
            part = jax.device_get(jitted_examples(model, batch, options.tokens))
            for row in np.flatnonzero(np.asarray(batch.index) < len(positions)):
                yield jax.tree.map(operator.itemgetter(row), part)

    config, every = model.config, options.tokens == "all"
    tokens = config.tokens if every or config.normalizes_first else 1
    size = 4 * (config.depth * config.dim * tokens + model.num_classes)
    fit_in_memory = size * len(source) <= parse_bytes(options.max_memory)
    kept = list(read(np.arange(len(source)))) if fit_in_memory else None

    def stream(positions: np.ndarray) -> Iterator[Examples]:
        images = iter(kept[i] for i in positions) if kept else read(positions)
        while rows := list(itertools.islice(images, STEP_IMAGES)):
            yield jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    return stream


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
    """Both lenses, and log(mean answer of the model / mean answer by each)."""

    lenses: dict[str, TunedLens]
    biases: dict[str, Float[Array, "layer class"]]


def make_passes(context: Context, **keywords: Any) -> list[Pass]:
    """The sweep, once a lens of each block is fitted on other images."""
    options = LensOptions(**keywords)
    source, model = training_images(context, options), context.model
    images = Subset(context.source, range(context.images), context.source.id)

    def setup() -> Setup:
        lens = fit(model, context.batches, source, options, context.seed)
        lenses = {"projection": identity_lens(model.config), "lens": lens}
        mean = mean_over(context, images, functools.partial(sum_answers, lenses))
        tiny = np.finfo(np.float32).tiny
        answer, read = jax.tree.map(lambda leaf: jnp.log(leaf + tiny), mean)
        biases = {name: answer[None] - each for name, each in read.items()}
        return Setup(Carry(lenses, biases))

    def empty() -> Carry:
        lenses = dict.fromkeys(schema.LENSES, identity_lens(model.config))
        zeros = jnp.zeros((model.config.depth, model.num_classes))
        return Carry(lenses, dict.fromkeys(schema.LENSES, zeros))

    return [Pass(setup=setup, carry_shape=jax.eval_shape(empty))]


def training_images(context: Context, options: LensOptions) -> Subset:
    """The images to fit on."""
    source = open_training_data(context, "lens", options.train)
    return spread(source, options.train_images)


def describe(context: Context, **keywords: Any) -> dict[str, Any]:
    """Which images are fitted on."""
    source = training_images(context, LensOptions(**keywords))
    return describe_training(context, source)


@jax.jit
def sum_answers(lenses: dict[str, TunedLens], model: Model, batch: Batch) -> Any:
    """Probabilities of the model, and by each lens, summed over images."""
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
    model: Model, batch: Batch, carry: Carry, *, tokens: str, **options: Any
) -> dict[str, Array]:
    """Tuned lenses against the class projection: what each block would answer.

    Fits a lens of each block on other images, then one forward pass for each image.
    """
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
        rows[schema.BIAS_BY(name)] = jax.nn.softmax(logits) @ carry.biases[name].T
    return rows


LENS = Recipe(
    name="lens",
    **schema.rows(
        schema.PREDICTION, *schema.between(schema.KL_BY, schema.RANK_TOKENS_BY)
    ),
    step=measure,
    options=LensOptions(),
    previews=0,
    passes=make_passes,
    describe=describe,
)
