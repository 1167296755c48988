"""Probes of a model's states, a group at a time: a pass to fit them, one to rank."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vitjax.analysis import probes
from vitjax.analysis.probes import Probe, SufficientStatistics, fit_softmax_probe
from vitjax.data.loader import RecordError
from vitjax.models.forward import scan_blocks
from vitjax.models.model import Model
from vitjax.runner import mesh as meshes
from vitjax.runner.groups import Group
from vitjax.runner.job import Job, OnError


@functools.partial(jax.jit, static_argnames=("streams", "layers", "tokens"))
def states_of(
    model: Model,
    images: Float[Array, "batch height width channel"],
    starts: tuple[Int[Array, ""], Int[Array, ""]],
    *,
    streams: tuple[str, ...],
    layers: int,
    tokens: int,
) -> Float[Array, "batch stream layer token dim"]:
    """The states that a group of probes reads; others are not kept.

    Args:
        model: the model.
        images: preprocessed pixels.
        starts: first block and first token; the numbers of both are static.
        streams: names of `Trace`.
        layers: how many blocks.
        tokens: how many tokens.
    """

    def read(params, stream_in, trace):
        found = jnp.stack([getattr(trace, name) for name in streams])
        return jax.lax.dynamic_slice_in_dim(found, starts[1], tokens, axis=2)

    _, reads = scan_blocks(model, images, read)
    reads = jax.lax.dynamic_slice_in_dim(reads, starts[0], layers, axis=0)
    return reads.transpose(2, 1, 0, 3, 4).astype(jnp.float32)


batch_mean = jax.jit(probes.batch_mean)
batch_sums = jax.jit(probes.batch_sums)


@jax.jit
def ranks_of(
    probe: Probe, states: Float[Array, "batch *probe dim"], label: Int[Array, " batch"]
) -> Int[Array, " batch *probe"]:
    """Rank of each image's class among a group's scores."""
    return probe.rank(states, jnp.maximum(label, 0))


class RidgeFit:
    """Adds up sums; keeps no states.

    Args:
        classes: how many there are.
        alpha: see `vitjax.fit_ridge_probe`.
    """

    def __init__(self, *, classes: int, alpha: float):
        self.classes, self.alpha = classes, alpha
        self.statistics: SufficientStatistics | None = None

    def add(self, states: Array, labels: np.ndarray) -> None:
        """Take a batch; labels below 0 are left out."""
        if self.statistics is None:
            offset = np.asarray(batch_mean(states, labels))
            self.statistics = probes.empty_statistics(offset, classes=self.classes)
        sums = batch_sums(states, labels, self.statistics.offset)
        probes.add_batch(self.statistics, sums, labels)

    def probe(self) -> Probe:
        if self.statistics is None:
            raise ValueError("A probe needs at least one batch.")
        return probes.solve_ridge(self.statistics, alpha=self.alpha)


class SoftmaxFit:
    """Keeps the states of a group, and trains one probe after the other.

    Args:
        classes: how many there are.
        seed: of `vitjax.fit_softmax_probe`.
    """

    def __init__(self, *, classes: int, seed: int):
        self.classes, self.seed = classes, seed
        self.kept: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, states: Array, labels: np.ndarray) -> None:
        known = labels >= 0
        self.kept.append((np.asarray(states)[known], labels[known]))

    def probe(self) -> Probe:
        states, labels = (np.concatenate(parts) for parts in zip(*self.kept))
        return fit_softmax_probe(states, labels, classes=self.classes, seed=self.seed)


Fit = RidgeFit | SoftmaxFit
"""What turns batches of states into probes."""


@dataclasses.dataclass(frozen=True)
class Prober:
    """What fits groups of probes and ranks classes with them.

    Args:
        training: the job of the images to fit on.
        testing: the job of the images to rank.
        fit: makes an empty `Fit`.
        on_error: what to do with an image that cannot be read.
    """

    training: Job
    testing: Job
    fit: Callable[[], Fit]
    on_error: OnError

    def states(self, images: Any, group: Group) -> Array:
        """States [batch stream layer token dim] of a group."""
        starts = jnp.int32(group.layers.start), jnp.int32(group.tokens.start)
        job, (_, layers, tokens) = self.testing, group.shape
        with jax.default_matmul_precision(job.precision):
            return states_of(
                job.placed,
                meshes.shard(images, job.mesh),
                starts,
                streams=group.streams,
                layers=layers,
                tokens=tokens,
            )

    def warm_up(self, group: Group) -> None:
        """Compile all programs of a group, so that seconds are those of the work."""
        blank = self.testing.blank()
        states = self.states(blank.images, group)
        label = np.full(len(blank.label), -1, np.int32)
        fit = self.fit()
        if isinstance(fit, RidgeFit):
            fit.add(states, label)
        classes, dim = self.testing.model.num_classes, states.shape[-1]
        nothing = Probe(
            weights=np.zeros((*group.shape, classes, dim), np.float32),
            bias=np.zeros((*group.shape, classes), np.float32),
            centre=np.zeros((*group.shape, dim), np.float32),
        )
        placed = meshes.replicate(nothing, self.testing.mesh)
        jax.block_until_ready(ranks_of(placed, states, label))

    def fitted(
        self, group: Group, seconds: dict[str, float], tick: Callable[[int], None]
    ) -> tuple[Probe, list[RecordError]]:
        """A group's probes, after one pass over the training images.

        Args:
            group: which.
            seconds: "fit" grows by the pass, "solve" by what follows it.
            tick: called with the number of images just done.

        Returns:
            The probes, and which images could not be read.
        """
        fit, errors, started = self.fit(), [], time.monotonic()
        job = self.training
        for batch, failed in job.batches(0, job.images, on_error=self.on_error):
            labels = np.where(batch.valid, batch.label, -1).astype(np.int32)
            fit.add(self.states(batch.images, group), labels)
            errors += failed
            tick(int((np.asarray(batch.index) < job.images).sum()))
        seconds["fit"] += (passed := time.monotonic()) - started
        probe = fit.probe()
        seconds["solve"] += time.monotonic() - passed
        return probe, errors

    def ranked(
        self, group: Group, probe: Probe
    ) -> Iterator[tuple[int, Int[np.ndarray, "image stream layer token"]]]:
        """Ranks of batches of the images to rank, each with its first image's index;
        -1 where there is no image or no label.
        """
        job = self.testing
        placed = meshes.replicate(probe, job.mesh)
        for batch, _ in job.batches(0, job.images, on_error=self.on_error):
            label = np.where(batch.valid, batch.label, -1).astype(np.int32)
            ranks = ranks_of(placed, self.states(batch.images, group), label)
            ranks = np.array(meshes.fetch_array(ranks), np.int32)
            ranks[label < 0] = -1
            there = np.asarray(batch.index) < job.images
            yield int(np.asarray(batch.index)[0]), ranks[there]
