"""Linear probes of hidden states, fitted on batches of images as they stream by.

The sums of a ridge probe take some megabytes, and there are thousands of probes: they
are fitted in groups that fit a given memory, with one sweep over the training images
for each.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from vitjax.analysis import probes
from vitjax.analysis.probes import Probe, fit_softmax_probe
from vitjax.data.images import ImageError
from vitjax.models.forward import scan_blocks
from vitjax.models.model import Model
from vitjax.recipes.recipe import Context, Subset
from vitjax.types import ArrayLike

Kind = Literal["ridge", "softmax"]

NOMINAL_BATCH = 256
"""Images whose states are budgeted for. Not the run's batch size: a run that goes on
with another one must find the same groups."""


class Group(NamedTuple):
    """Probes that are fitted in one sweep: `streams` are names of `Trace` fields."""

    streams: tuple[str, ...]
    layers: range
    tokens: range

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of streams, blocks and tokens."""
        return len(self.streams), len(self.layers), len(self.tokens)

    @property
    def first(self) -> tuple[Int[Array, ""], Int[Array, ""]]:
        """The first block and token, as arrays: groups of one size share a program."""
        return jnp.int32(self.layers.start), jnp.int32(self.tokens.start)

    @property
    def region(self) -> dict[str, tuple[int, int]]:
        """Where its ranks stand in arrays [image layer token]."""
        layers, tokens = self.layers, self.tokens
        return {
            "layer": (layers.start, layers.stop),
            "token": (tokens.start, tokens.stop),
        }


def make_groups(
    streams: Sequence[str], *, depth: int, tokens: int, limit: int
) -> list[Group]:
    """All probes of a model in groups of at most `limit`, on a regular grid.

    Tokens are split first, since a sweep computes all blocks anyway; streams last.
    """
    size = min(len(streams), limit)
    return [
        Group(tuple(streams[cut.start : cut.stop]), layer_range, token_range)
        for cut in split_range(len(streams), size)
        for layer_range in split_range(depth, limit // size)
        for token_range in split_range(tokens, limit // (size * depth))
    ]


def split_range(count: int, limit: int) -> list[range]:
    """0 to count - 1 in as few ranges as can be, of one size <= limit but the last."""
    parts = -(-count // max(1, limit))
    size = -(-count // parts)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


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
    choice = f"{source.id}; first {shots} of each class, {len(indices)} images"
    return Subset(source, tuple(indices), choice)


def labels_of(source: Any) -> Iterator[int]:
    """The label of every image; decodes only where the source has no list of them."""
    names = getattr(source.source, "label_names", ())
    if len(names) == len(source):
        yield from map(source.number, names)
        return
    for index in range(len(source)):
        try:
            yield source[index].label
        except ImageError:  # left out; a run stops or goes on by its own images
            yield -1


Examples = Iterable[tuple[Array, np.ndarray]]
"""States [batch *probe dim] and labels, -1 to leave out."""


def stream_states(context: Context, source: Subset, group: Group) -> Examples:
    """States and labels of a source, batch by batch."""
    sharding = NamedSharding(context.mesh, PartitionSpec(*context.mesh.axis_names))
    for batch in context.batches(source, 0, len(source)):
        images = jax.device_put(batch.images, sharding)
        labels = np.where(batch.valid, batch.label, -1).astype(np.int32)
        states = jitted_states(
            context.model,
            images,
            group.first,
            streams=group.streams,
            layers=len(group.layers),
            tokens=len(group.tokens),
        )
        yield states, labels


def read_states(
    model: Model,
    images: Float[Array, "batch height width channel"],
    first: tuple[Int[ArrayLike, ""], Int[ArrayLike, ""]],
    *,
    streams: tuple[str, ...],
    layers: int,
    tokens: int,
) -> Float[Array, "batch stream layer token dim"]:
    """The states that a group of probes reads; others are not kept.

    `first` are the first block and token; their numbers, `layers` and `tokens`, are
    static.
    """

    def read(params, stream_in, trace):
        states = jnp.stack([getattr(trace, name) for name in streams])
        return jax.lax.dynamic_slice_in_dim(states, first[1], tokens, axis=2)

    _, reads = scan_blocks(model, images, read)
    reads = jax.lax.dynamic_slice_in_dim(reads, first[0], layers, axis=0)
    return reads.transpose(2, 1, 0, 3, 4).astype(jnp.float32)


jitted_states = jax.jit(read_states, static_argnames=("streams", "layers", "tokens"))
batch_mean = jax.jit(probes.batch_mean)
batch_sums = jax.jit(probes.batch_sums)


def fit_ridge(examples: Examples, *, classes: int, alpha: float) -> Probe:
    """Add up the sums of all batches and solve; states are not kept."""
    statistics = None
    for states, labels in examples:
        if statistics is None:
            offset = np.asarray(batch_mean(states, labels))
            statistics = probes.empty_statistics(offset, classes=classes)
        sums = batch_sums(states, labels, statistics.offset)
        probes.add_batch(statistics, sums, labels)
    assert statistics is not None  # `first_of_each_class` chose at least one image
    return probes.solve_ridge(statistics, alpha=alpha)


def fit_softmax(examples: Examples, *, classes: int, seed: int) -> Probe:
    """Keep all states, and train one probe after the other."""
    kept = [
        (np.asarray(states)[labels >= 0], labels[labels >= 0])
        for states, labels in examples
    ]
    states, labels = (np.concatenate(arrays) for arrays in zip(*kept))
    return fit_softmax_probe(states, labels, classes=classes, seed=seed)
