"""Records become batches: shard, preprocess in threads, pad with a mask, prefetch."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from vitjax.data.images import ImageError, Preprocess
from vitjax.data.masks import token_class
from vitjax.data.sources import SourceError
from vitjax.types import Batch, Config


@dataclasses.dataclass(frozen=True)
class RecordError:
    """A picture that could not be read.

    Args:
        index: position in the data set.
        name: as the data set calls it.
        reason: what went wrong.
    """

    index: int
    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Item:
    """One picture on its way into a batch; without pixels it is padding or broken."""

    index: int
    label: int = -1
    pixels: Float[np.ndarray, "height width 3"] | None = None
    tokens: Int[np.ndarray, " patch"] | None = None
    error: Exception | None = None


def batches(
    source: Any,
    *,
    preprocess: Preprocess,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
    config: Config | None = None,
    shard: tuple[int, int] = (0, 1),
    on_error: Literal["stop", "skip"] = "stop",
    threads: int = 2,
) -> Iterator[tuple[Batch, list[RecordError]]]:
    """Batches of a source, in order, all of one shape.

    The same call gives the same batches, whatever the number of threads. A later
    `start` gives what is left of them and reads nothing before it.

    Args:
        source: as `open_source` returns it: labels are numbers.
        preprocess: the model's.
        batch_size: pictures per batch over all processes.
        start: first picture, a multiple of the batch size.
        stop: picture to stop before; None is the end.
        config: the model's, for its patch grid; without it masks are not read.
        shard: (this process, number of processes): each takes its part of every batch,
            `batch_size / processes` neighbours.
        on_error: "stop" raises at the first picture that cannot be read; "skip" reports
            it and leaves its row invalid.
        threads: that decode and preprocess; 0 does it all in the caller's.

    Yields:
        A batch with this process's pictures, and what in it could not be read.

    Raises:
        ImageError: a picture cannot be read, with on_error="stop".
        ValueError: `start` or the number of processes does not fit the batch size.
    """
    process, processes = shard
    if start % batch_size or batch_size % processes:
        raise ValueError(
            f"start {start} must be a multiple of the batch size {batch_size}, and the "
            f"batch size of the number of processes {processes}."
        )
    stop = len(source) if stop is None else min(stop, len(source))
    share = batch_size // processes
    count = -(-max(stop - start, 0) // batch_size) * share

    def read(position: int) -> Item:
        batch, row = divmod(position, share)
        index = start + batch * batch_size + process * share + row
        if index >= stop:
            return Item(index)
        return read_item(source, index, preprocess=preprocess, config=config)

    items = stream(read, count, threads=threads, ahead=2 * share)
    for _ in range(count // share):
        rows = list(itertools.islice(items, share))
        yield collate(rows, preprocess), failures(rows, on_error)


def stream(
    read: Callable[[int], Item], count: int, *, threads: int, ahead: int
) -> Iterator[Item]:
    """`read` of 0 to count - 1, in order, some of them ahead in threads."""
    if threads == 0:
        yield from map(read, range(count))
        return
    import grain

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    items = iter(grain.MapDataset.range(count).map(read).to_iter_dataset(options))
    try:
        yield from items
    finally:
        items.close()


def read_item(
    source: Any, index: int, *, preprocess: Preprocess, config: Config | None
) -> Item:
    """One picture, decoded and preprocessed; what fails travels along as a value, so
    that errors come up in the order of the pictures and not of the threads.
    """
    try:
        record = source[index]
        mask, tokens = record.mask, None
        if mask is not None and config is not None:
            tokens = token_class(mask, preprocess=preprocess, grid=config.grid)
        return Item(index, record.label, preprocess(record.image), tokens)
    except (ImageError, SourceError) as error:
        return Item(index, error=error)


def failures(items: list[Item], on_error: str) -> list[RecordError]:
    """What could not be read, or the first of them raised."""
    found = []
    for item in items:
        error = item.error
        if error is None:
            continue
        if on_error == "stop" or not isinstance(error, ImageError):
            raise error
        found.append(RecordError(item.index, error.name, error.reason))
    return found


def collate(items: list[Item], preprocess: Preprocess) -> Batch:
    """Items as one batch; rows without pixels are zero and not valid."""
    blank = np.zeros((preprocess.height, preprocess.width, 3), np.float32)
    known = [item.tokens for item in items if item.tokens is not None]
    tokens = None
    if known:
        neither = np.full_like(known[0], -1)
        rows = [neither if x.tokens is None else x.tokens for x in items]
        tokens = np.stack(rows).astype(np.int32)
    return Batch(
        images=np.stack([blank if x.pixels is None else x.pixels for x in items]),
        label=np.array([item.label for item in items], np.int32),
        valid=np.array([item.pixels is not None for item in items]),
        index=np.array([item.index for item in items], np.int32),
        token_class=tokens,
    )
