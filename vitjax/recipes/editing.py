"""Edits of memories: what the value vectors that promote a class do to its accuracy.

    vitjax run editing --model vit_ti16 --data folder:photos --out rows

For every chosen class, the k memories of the MLPs with the largest E_c.v
(`vitjax.memory_classes`) are edited in the weights: set to zero, freed of the class
(`vitjax.remove_class`) or strengthened; as the control, as many random memories of the
same blocks.

On all images that would be classes x edits x 6 counts x 11 sets of passes each: over a
thousand. So a class is evaluated on `images` of its own, of the classes that it is most
confused with, and of the rest, and every image meets `draws_per_image` of the random
sets in turn: the mean over images is one over all draws. A pass begins at the first
edited block, on average about half way. Passes of one image each, at most:

    3 images x classes x edits x counts x (1 + draws_per_image)
"""

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vitjax.analysis.class_space import take_label
from vitjax.analysis.memory import memory_logits
from vitjax.messages import check_range
from vitjax.models.forward import forward, resume_forward, scan_blocks
from vitjax.models.model import Model, memory_values
from vitjax.models.weight_edits import kernel_of, remove_class, replace_kernel
from vitjax.recipes import schema
from vitjax.recipes.interventions import read_stream
from vitjax.recipes.recipe import (
    Context,
    Pass,
    Recipe,
    Setup,
    evenly,
    labels_of,
    mean_over,
    subset,
)
from vitjax.types import ArrayLike, Batch, Config

COUNTS = (1, 2, 5, 10, 20, 50)
FACTORS = {"zero": 0.0, "times_1_5": 1.5, "times_2": 2.0}


class Carry(NamedTuple):
    """The classes, the images that each is evaluated on, -1 for none, and the memories
    that promote it most, then random ones: `layer * hidden + neuron`.
    """

    classes: Int[ArrayLike, " edited"]
    images: Int[ArrayLike, "edited role place"]
    memories: Int[ArrayLike, "edited set order"]


def make_passes(context: Context, **keywords: Any) -> list[Pass]:
    """The sweep, once the classes' images and memories are chosen."""
    options, config = EditingOptions(**keywords), context.model.config
    labels = itertools.islice(labels_of(context.source), context.images)
    label = np.fromiter(labels, np.int32)
    classes = choose_classes(label, options, context.model.num_classes)
    sets = 1 + options.draws, counts_of(config, options.layers)[-1]
    shapes = (), (len(schema.ROLES), options.images), sets

    def setup() -> Setup:
        images = choose_images(context, options, label, classes)
        memories = order_memories(context.model, classes, options, context.seed)
        return Setup(Carry(classes.astype(np.int32), images, memories))

    def empty() -> Carry:
        return Carry(*(jnp.zeros((len(classes), *s), jnp.int32) for s in shapes))

    return [Pass(setup=setup, carry_shape=jax.eval_shape(empty))]


def choose_classes(
    label: Int[np.ndarray, " image"], options: "EditingOptions", classes: int
) -> Int[np.ndarray, " edited"]:
    """The chosen classes, or those with the most images, first ones first."""
    check_range("chosen", options.chosen, 0, classes - 1)
    counts = np.bincount(label[label >= 0], minlength=classes)
    most = np.argsort(-counts, kind="stable")[: options.most]
    chosen = np.array(options.chosen, int) if options.chosen else most[counts[most] > 0]
    if not len(chosen):
        raise ValueError("Editing needs labeled images; there is none.")
    return chosen


def counts_of(config: Config, layers: tuple[int, ...]) -> tuple[int, ...]:
    """How many memories are edited together: `COUNTS`, as far as there are as many."""
    check_range("layers", layers, -config.depth, config.depth - 1)
    blocks = len({layer % config.depth for layer in layers}) or config.depth
    return tuple(count for count in COUNTS if count <= blocks * config.mlp_dim)


def choose_images(
    context: Context,
    options: "EditingOptions",
    label: Int[np.ndarray, " image"],
    classes: Int[np.ndarray, " edited"],
) -> Int[np.ndarray, "edited role place"]:
    """The images of every class: its own, of the classes of the largest mean softmax on
    these, and of the rest; -1 where there are fewer.
    """

    def pick(group: Int[np.ndarray, " image"]) -> Int[np.ndarray, " picked"]:
        return group[evenly(len(group), options.images)]

    def sum_shares(model: Model, batch: Batch):
        member = (classes[:, None] == np.asarray(batch.label)) & np.asarray(batch.valid)
        shares = np.asarray(class_shares(model, batch.images))
        return (member @ shares).astype(np.float64)

    own = [pick(np.flatnonzero(label == c)) for c in classes]
    source = subset(context.source, np.concatenate(own), "images of the edited classes")
    chances = mean_over(context, source, sum_shares)
    chances[:, np.setdiff1d(np.arange(context.model.num_classes), label)] = -1
    chances[np.arange(len(classes)), classes] = -1
    images = np.full((len(classes), len(schema.ROLES), options.images), -1, np.int32)
    for place, class_ in enumerate(classes):
        confusions = np.argsort(-chances[place], kind="stable")[: options.confusions]
        confused = np.isin(label, confusions) & (label != class_)
        rest = (label >= 0) & (label != class_) & ~confused
        groups = own[place], *(pick(np.flatnonzero(each)) for each in (confused, rest))
        for role, group in enumerate(groups):
            images[place, role, : len(group)] = group
    return images


@jax.jit
def class_shares(model: Model, images) -> Float[Array, "batch class"]:
    """Shares of a softmax, also where probabilities are sigmoids."""
    return jax.nn.softmax(forward(model, images)[0])


def order_memories(
    model: Model, classes: Int[np.ndarray, " edited"], options: Any, seed: int
) -> Int[np.ndarray, "edited set place"]:
    """The memories that promote each class most, then draws of as many random ones of
    the same blocks. The first k of a longer set are the set of k.
    """
    config, values = model.config, memory_values(model)["mlp"]
    flat = values.reshape(-1, config.dim)
    promoted = np.array(memory_logits(model.class_space, flat))[classes]
    promoted = promoted.reshape(len(classes), config.depth, -1)
    edited = np.arange(config.depth)[list(options.layers) or slice(None)]
    promoted[:, np.setdiff1d(np.arange(config.depth), edited)] = -np.inf
    size = counts_of(config, options.layers)[-1]
    draw, orders = np.random.default_rng(seed), []
    for logits in promoted:
        best = np.argsort(-logits.ravel(), kind="stable")[:size]
        layer = best // config.mlp_dim
        place = np.array([(layer[:n] == b).sum() for n, b in enumerate(layer)])
        neurons = np.arange(config.mlp_dim)
        shuffled = np.tile(neurons, (options.draws, config.depth, 1))
        shuffled = draw.permuted(shuffled, axis=-1)
        random = layer * config.mlp_dim + shuffled[:, layer, place]
        orders.append(np.concatenate([best[None], random]))
    return np.stack(orders).astype(np.int32)


def editing(
    model: Model,
    batch: Batch,
    carry: Carry,
    *,
    edits: tuple[str, ...],
    layers: tuple[int, ...],
    draws: int,
    draws_per_image: int,
    **options: Any,
) -> dict[str, Array]:
    """Edit the memories that promote a class: zero them, free them of it, strengthen.

    Keeps whether the prediction of images of the class, of its confusions and of others
    is right, and the effect on the logit of their own class, beside those of as many
    random memories.
    """
    batch, carry = jax.tree.map(jnp.asarray, (batch, carry))
    config, label, counts = model.config, batch.label, counts_of(model.config, layers)
    logits, streams = scan_blocks(model, batch.images, read_stream)
    known = batch.valid & (label >= 0)
    member = carry.images[None] == batch.index[:, None, None, None]
    member = member.any(-1) & known[:, None, None]
    role = jnp.where(member.any(-1), member.argmax(-1), -1).astype(jnp.int32)
    pairs = jnp.flatnonzero(role.ravel() >= 0, size=role.size, fill_value=0)
    shape = len(edits), 1 + draws_per_image, len(counts)
    kernel = kernel_of(model, "mlp")

    def of_pair(number, rows):
        image, place = jnp.divmod(pairs[number], role.shape[1])
        turns = jnp.arange(draws_per_image, dtype=jnp.int32)
        turns = batch.index[image] * draws_per_image + turns
        sets = jnp.pad(1 + turns % draws, (1, 0))  # first the class's own
        memories = carry.memories[place, sets]
        stream = jax.lax.dynamic_slice_in_dim(streams, image, 1, axis=1)
        freed = kernel_of(remove_class(model, carry.classes[place]), "mlp")
        whole = jnp.stack(  # all memories edited; of a set, its rows are taken
            [kernel * FACTORS[edit] if edit in FACTORS else freed for edit in edits]
        )

        def of_edit(numbers):
            edit, order, count = numbers
            inside = jnp.arange(memories.shape[1]) < count
            chosen = jnp.zeros(config.depth * config.mlp_dim, bool)
            chosen = chosen.at[memories[order]].set(inside)
            chosen = chosen.reshape(config.depth, config.mlp_dim)
            rows = jnp.where(chosen[..., None], whole[edit], kernel)
            edited = replace_kernel(model, "mlp", rows)
            return resume_forward(edited, stream, jnp.argmax(chosen.any(1)))[0]

        edit, order, count = np.indices(shape).reshape(3, -1)
        logits = jax.lax.map(of_edit, (edit, order, np.array(counts)[count]))
        logits = logits.reshape(*shape, -1)  # by every edited model
        right = jnp.argmax(logits, -1) == label[image]
        both = right.astype(jnp.float32), logits[..., label[image]]
        return [each.at[pairs[number]].set(own) for each, own in zip(rows, both)]

    empty = jnp.full((role.size, *shape), jnp.nan)
    rows = jax.lax.fori_loop(0, (role >= 0).sum(), of_pair, [empty, empty])
    right, after = (each.reshape(*role.shape, *shape) for each in rows)
    before = take_label(logits, jnp.maximum(label, 0))
    effect = before.astype(after.dtype).reshape(-1, 1, 1, 1, 1) - after
    out = {
        schema.PREDICTION(): jnp.argmax(logits, -1).astype(jnp.int32),
        schema.EDITED_ROLE(): role,
    }
    for family, values in (
        (schema.EDITED_CORRECT, right),
        (schema.EDITED_EFFECT, effect),
    ):
        for place, edit in enumerate(edits):
            out[family("promoting", edit)] = values[:, :, place, 0]
            out[family("random", edit)] = values[:, :, place, 1:].mean(2)
    return out


@dataclasses.dataclass(frozen=True)
class EditingOptions:
    """Options of `editing`.

    Args:
        edits: what memories become: zero, freed of the class, 1.5 or 2 times as strong.
        chosen: numbers of the classes; by default those with the most images.
        most: how many classes, where they are not chosen.
        layers: blocks whose MLPs are edited, negative ones from the end; all by
            default.
        images: how many images of the class, of its confusions and of the rest it is
            evaluated on, of each at most so many, spread evenly.
        confusions: how many classes of the data set count as a class's confusions: the
            most probable ones on its images.
        draws: random sets of memories of each class.
        draws_per_image: how many of them an image meets.
    """

    edits: tuple[schema.MemoryEdit, ...] = tuple(schema.MEMORY_EDITS)
    chosen: tuple[int, ...] = ()
    most: int = 20
    layers: tuple[int, ...] = ()
    images: int = 20
    confusions: int = 3
    draws: int = 10
    draws_per_image: int = 2

    def __post_init__(self):
        if not self.edits:
            raise ValueError(f"edits={self.edits} must hold at least one name.")
        for name in ("most", "images", "confusions", "draws"):
            check_range(name, getattr(self, name), 1)
        check_range("draws_per_image", self.draws_per_image, 1, self.draws)


def setup(model: Model, *, seed: int, layers: tuple[int, ...], **options: Any) -> Setup:
    """How many memories are edited together."""
    counts = counts_of(model.config, layers)
    return Setup(static={schema.EDITED(): jnp.asarray(counts, jnp.float32)})


EDITING = Recipe(
    name="editing",
    **schema.rows(
        schema.PREDICTION, *schema.between(schema.EDITED_ROLE, schema.EDITED)
    ),
    step=editing,
    options=EditingOptions(),
    previews=0,
    setup=setup,
    passes=make_passes,
    many_passes=True,
)
