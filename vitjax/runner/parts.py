"""Batches through a job: what each leaves behind, while the next is computed."""

import functools
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

import jax
import numpy as np

from vitjax.data.loader import ExampleError
from vitjax.runner.buffer import Part
from vitjax.runner.job import Job, OnError
from vitjax.runner.mesh import fetch
from vitjax.types import Batch

Item = TypeVar("Item")
Dispatch = tuple[Batch, list[ExampleError], dict[str, jax.Array]]


def computed(
    job: Job,
    spans: Iterable[tuple[int, int]],
    *,
    on_error: OnError,
    pictures: int,
    steps: int = 0,
) -> Generator[Part]:
    """What every batch of some ranges leaves behind, in order.

    Args:
        job: what to compute.
        spans: (start, stop) of images.
        on_error: "stop" or "skip".
        pictures: valid images before this one are kept as the model saw them.
        steps: how many to take at least; what is missing are blank batches.
    """
    finish = functools.partial(left_behind, job, pictures=pictures)
    # A map keeps nothing of a batch that is through, as a loop's variables would.
    yield from map(finish, one_behind(dispatched(job, spans, on_error, steps)))


def left_behind(job: Job, dispatch: Dispatch, *, pictures: int) -> Part:
    """What one batch leaves behind, once the devices are through with it."""
    batch, errors, outputs = dispatch
    rows = job.rows(batch, fetch(outputs))
    images = np.asarray(batch.images)
    kept = np.asarray(batch.valid) & (np.asarray(batch.index) < pictures)
    return Part(
        start=int(batch.index[0]),
        rows=rows,
        skipped=[
            {"index": error.index, "name": error.name, "reason": error.error}
            for error in errors
        ],
        pictures=[
            (int(batch.index[i]), job.preprocess.denormalize(images[i]))
            for i in np.flatnonzero(kept)
        ],
    )


def dispatched(
    job: Job, spans: Iterable[tuple[int, int]], on_error: OnError, steps: int
) -> Iterator[Dispatch]:
    """(batch, errors, outputs that the devices are still computing)."""
    taken = 0
    for start, stop in spans:
        for batch, errors in job.batches(start, stop, on_error=on_error):
            taken += 1
            yield batch, errors, job.step(batch)
    for _ in range(taken, steps):
        blank = job.blank()
        yield blank, [], job.step(blank)


def one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """Each item after the next was drawn, so that devices compute while the host
    writes; where drawing fails, the one before is still handed over.
    """
    waiting: list[Item] = []
    try:
        for item in items:
            yield from waiting
            waiting = [item]
    except Exception:
        yield from waiting
        raise
    yield from waiting
