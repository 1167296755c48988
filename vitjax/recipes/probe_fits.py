"""Linear probes of hidden states, fitted on batches of images as they stream by.

The sums of a ridge probe take some megabytes, and there are thousands of probes: those
of as many tokens as fit a given memory, on all streams of all blocks, are fitted by one
sweep over the training images.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
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


def stream_states(
    context: Context, source: Subset, streams: tuple[str, ...], tokens: range
) -> Examples:
    """States and labels of a source, batch by batch."""
    for batch in context.batches(source, 0, len(source)):
        labels = np.where(batch.valid, batch.label, -1).astype(np.int32)
        states = jitted_states(
            context.model,
            jnp.asarray(batch.images),
            jnp.int32(tokens.start),
            streams=streams,
            tokens=len(tokens),
        )
        yield states, labels


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
