"""What a run of probes fits, on which images, in which groups, and what that takes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vitjax.data.datasets import open_source
from vitjax.recipes.identifiability import STREAMS
from vitjax.runner.groups import (
    Group,
    Kind,
    bytes_per_probe,
    first_of_each_class,
    make_groups,
)
from vitjax.runner.job import Job
from vitjax.runner.probe_removal import removal_recipe
from vitjax.runner.probing import Fit, RidgeFit, SoftmaxFit
from vitjax.runner.results import ArraySpec


@dataclasses.dataclass(frozen=True)
class Study:
    """What is fitted, on what, and measured on what.

    Args:
        projection: the job of the images to measure on, of the projection.
        training: the job of the images to fit on.
        kind: of probe.
        options: of the probes; part of what tells one run from another.
        counts: how many patches stay, step by step.
        groups: which probes are fitted at once.
        memory: that they may take, bytes.
        shared: images that are both fitted and measured on.
    """

    projection: Job
    training: Job
    kind: Kind
    options: dict[str, Any]
    counts: tuple[int, ...]
    groups: tuple[Group, ...]
    memory: int
    shared: int

    @property
    def specs(self) -> dict[str, ArraySpec]:
        """Every array of the run."""
        job, config = self.projection, self.projection.model.config
        last = dataclasses.replace(job, recipe=removal_recipe(self.counts))
        names, sizes = self.options["streams"], (config.depth, config.tokens)
        found = {**last.specs, **job.specs}
        for name in names:
            ranks = job.per_image(("layer", "token"), sizes, np.int32)
            found[f"rank_probe_{name}"] = ranks
        axes = ("stream", "layer", "token")
        found["fitted"] = ArraySpec(axes, (len(names), *sizes), "bool")
        return found

    def place(self, group: Group) -> tuple[slice, slice, slice]:
        """Where a group stands in arrays [stream layer token]."""
        first = self.options["streams"].index(group.streams[0])
        return slice(first, first + len(group.streams)), *group.place

    def new_fit(self) -> Fit:
        """An empty fit of the kind."""
        classes = self.projection.model.num_classes
        if self.kind == "softmax":
            return SoftmaxFit(classes=classes, seed=self.projection.seed)
        return RidgeFit(classes=classes, alpha=self.options["alpha"])


def make_study(
    projection: Job,
    train: Any,
    *,
    kind: Kind,
    options: dict[str, Any],
    counts: tuple[int, ...],
    memory: int,
) -> Study:
    """Choose the images to fit on, and split the probes into groups."""
    model = projection.model
    if not 0 < options["alpha"] < np.inf:
        raise ValueError(f"alpha is {options['alpha']}; it must be above 0, finite.")
    whole = open_source(train, classes=model.classes, class_ids=model.class_ids)
    chosen = first_of_each_class(
        whole, shots=options["shots"], classes=model.num_classes
    )
    each = bytes_per_probe(
        kind,
        dim=model.config.dim,
        classes=model.num_classes,
        batch_size=projection.batch_size,
        examples=len(chosen),
    )
    if memory < each:
        raise ValueError(
            f"One probe takes {each / 2**20:.1f} MiB, which is more than the memory "
            f"that it may take, {memory / 2**20:.1f} MiB; give more."
        )
    same = whole.id == projection.source.id
    unused = {} if kind == "ridge" else {"alpha": None}
    return Study(
        projection=projection,
        training=dataclasses.replace(
            projection, source=chosen, images=len(chosen), masks=False
        ),
        kind=kind,
        options={"probe": kind, **options, **unused, "train": chosen.id},
        counts=counts,
        groups=tuple(
            make_groups(
                options["streams"],
                depth=model.config.depth,
                tokens=model.config.tokens,
                most=memory // each,
            )
        ),
        memory=memory,
        shared=same * sum(index < projection.images for index in chosen.indices),
    )


def check_streams(streams: Sequence[str]) -> tuple[str, ...]:
    """The streams in our order.

    Raises:
        ValueError: one is unknown, or the residual stream is missing.
    """
    if unknown := set(streams) - set(STREAMS):
        raise ValueError(f"Unknown streams {sorted(unknown)}; known: {STREAMS}.")
    if "residual" not in streams:
        raise ValueError('streams must hold "residual", whose ranks order the tokens.')
    return tuple(name for name in STREAMS if name in streams)


def keep_counts(patches: int, *, steps: int) -> tuple[int, ...]:
    """How many patches stay, from 1 to one less than there are; evenly spaced.

    Args:
        patches: how many there are.
        steps: at most so many; `patches - 1` or more is every number, as published.

    Raises:
        ValueError: `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1.")
    last = max(1, patches - 1)
    points = np.linspace(1, last, min(steps, last)) if steps > 1 else [last / 2]
    return tuple(sorted({max(1, round(float(point))) for point in points}))


def recipe_options(study: Study) -> dict[str, Any]:
    """What must be equal for a run to go on."""
    streams = list(study.options["streams"])
    return {**study.options, "streams": streams, "keep_counts": list(study.counts)}


def costs(study: Study) -> dict[str, Any]:
    """What the manifest tells of probes; seconds are filled in as they pass."""
    config, job = study.projection.model.config, study.training
    classes, dim = job.model.num_classes, config.dim
    count = len(study.options["streams"]) * config.depth * config.tokens
    return {
        "probes": count,
        "groups": len(study.groups),
        "memory": study.memory,
        "train": {"id": job.source.id, "images": job.images, "skipped": []},
        "shared_images": study.shared,
        "bytes": {
            "states": 4 * dim * count * job.images,  # what is never kept
            "sums": 8 * dim * (dim + classes) * count,
            "weights": 4 * (classes * (dim + 1) + dim) * count,
            "class_embedding": 4 * classes * (dim + 1),
        },
        "seconds": {"fit": 0.0, "solve": 0.0, "test": 0.0, "projection": 0.0},
        "projected": False,
    }
