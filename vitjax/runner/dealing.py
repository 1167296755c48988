"""Who does what: the chunks that are left, dealt out to processes; all take as many
steps.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

Span = tuple[int, int]
"""(start, stop) of images."""


class Deal(NamedTuple):
    """A process's part of a run.

    Args:
        spans: ranges of images that it computes and writes, in order.
        counts: of every step, the images of all processes together. The step is one
            program over the devices of all, so each takes it as often as the one with
            the most to do; those that are through hand over blank batches.
    """

    spans: list[Span]
    counts: list[int]


def deal(
    done: Bool[np.ndarray, " image"],
    *,
    images_per_chunk: int,
    share: int,
    process: int = 0,
    processes: int = 1,
) -> Deal:
    """Deal out what is left of a run.

    A chunk belongs to one process, or two would write it at the same time. Neighbouring
    chunks stay together, as many images for everyone as chunks allow. What is not
    marked done alone decides, so any number of processes can go on.

    Args:
        done: per image, whether its rows are on disk.
        images_per_chunk: of the arrays.
        share: images of a process in one step.
        process: whose part is wanted, from 0.
        processes: how many there are.
    """
    spans = dealt(done, images_per_chunk, share, processes)
    sizes = [batch_sizes(each, share) for each in spans]
    counts = [sum(step) for step in itertools.zip_longest(*sizes, fillvalue=0)]
    return Deal(spans[process], counts)


def dealt(
    done: Bool[np.ndarray, " image"], images_per_chunk: int, share: int, processes: int
) -> list[list[Span]]:
    """The spans of every process."""
    edges = np.arange(0, len(done), images_per_chunk)
    left = np.add.reduceat(~done, edges, dtype=np.int64)
    reached, total = left.cumsum(), max(1, int(left.sum()))
    middle = 2 * reached - left  # twice, to stay with integers
    owner = middle * processes // (2 * total)
    firsts = np.searchsorted(owner, np.arange(processes + 1)) * images_per_chunk
    return [
        [
            (at + first, to + first)
            for at, to in undone(done[first:last], batch_size=share)
        ]
        for first, last in itertools.pairwise(firsts.tolist())
    ]


def undone(done: Bool[np.ndarray, " image"], *, batch_size: int) -> list[Span]:
    """Ranges of images still to do, whole batches.

    Args:
        done: per image, whether its rows are on disk.
        batch_size: images per batch.

    Returns:
        (start, stop) in order; neighbouring batches joined.
    """
    spans: list[Span] = []
    for start in range(0, len(done), batch_size):
        stop = min(start + batch_size, len(done))
        if done[start:stop].all():
            continue
        if spans and spans[-1][1] == start:
            start = spans.pop()[0]
        spans.append((start, stop))
    return spans


def batch_sizes(spans: Sequence[Span], share: int) -> list[int]:
    """Images of every batch of some spans."""
    return [
        min(share, stop - at)
        for start, stop in spans
        for at in range(start, stop, share)
    ]
