"""Records become batches: shard, preprocess in threads, pad with a mask, prefetch."""

import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from vitjax.data.images import ImageError, Preprocess
from vitjax.data.masks import MaskRule, patch_label
from vitjax.data.records import SourceError
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
    labelling: MaskRule = MaskRule(),
    threads: int = 2,
    workers: int = 0,
) -> Iterator[tuple[Batch, list[RecordError]]]:
    """Batches of a source, in order, all of one shape.

    The same call gives the same batches, whatever the number of threads and workers. A
    later `start` gives what is left of them and reads nothing before it.

    Args:
        source: as `open_source` returns it: labels are numbers.
        preprocess: the model's.
        batch_size: pictures per batch over all processes.
        start: first picture.
        stop: picture to stop before; None is the end.
        config: the model's, for its patch grid; without it masks are not read.
        shard: (this process, number of processes): each takes its part of every batch,
            `batch_size / processes` neighbours.
        on_error: "stop" raises at the first picture that cannot be read; "skip" reports
            it and leaves its row invalid.
        labelling: how masks decide on tokens.
        threads: that decode and preprocess; 0 does it all in the caller's.
        workers: processes that make whole batches instead, one thread each. Threads
            share Python's lock, which Pillow leaves most of the time: processes pay
            where there are many cores. 0 does it in this process.

    Yields:
        A batch with this process's pictures, and what in it could not be read.

    Raises:
        ImageError: a picture cannot be read, with on_error="stop".
        ValueError: the number of processes does not fit the batch size.
    """
    process, processes = shard
    if batch_size % processes:
        raise ValueError(
            f"The batch size {batch_size} must be a multiple of the number of "
            f"processes {processes}."
        )
    stop = len(source) if stop is None else min(stop, len(source))
    share = batch_size // processes
    count = -(-max(stop - start, 0) // batch_size)
    read = functools.partial(
        read_place,
        source=source,
        preprocess=preprocess,
        config=config,
        labelling=labelling,
        places=(start, stop, batch_size, process, share),
    )
    if workers:
        made = in_processes(read, count, share, preprocess, workers=workers)
    else:
        items = in_threads(read, count * share, threads=threads, ahead=2 * share)
        made = gather(items, count, share, preprocess)
    with contextlib.closing(made):  # also where a picture cannot be read
        for batch, failed in made:
            yield batch, failures(failed, on_error)


def gather(
    items: Iterator[Item], count: int, share: int, preprocess: Preprocess
) -> Generator[tuple[Batch, list[Item]]]:
    """Items as batches, each with those of its items that failed."""
    for _ in range(count):
        # Made elsewhere, so that rows of one batch are gone before the next is read.
        yield gathered(list(itertools.islice(items, share)), preprocess)


def gathered(rows: list[Item], preprocess: Preprocess) -> tuple[Batch, list[Item]]:
    """Items as one batch, and those of them that failed."""
    return collate(rows, preprocess), [row for row in rows if row.error is not None]


def in_threads(
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


def in_processes(
    read: Callable[[int], Item],
    count: int,
    share: int,
    preprocess: Preprocess,
    *,
    workers: int,
) -> Generator[tuple[Any, list[Item]]]:
    """The batches of `gather`, each made as a whole in another process."""
    import grain

    parse_flags()
    wanted = tempfile.mkdtemp(prefix="vitjax-workers-")
    make = functools.partial(
        make_batch, read=read, share=share, preprocess=preprocess, wanted=wanted
    )
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    dataset = grain.MapDataset.range(count).map(make).to_iter_dataset(options)
    processes = grain.MultiprocessingOptions(workers, per_worker_buffer_size=1)
    begin = functools.partial(follow, wanted=wanted)
    made = iter(dataset.mp_prefetch(processes, worker_init_fn=begin))
    try:
        with deaf_children():
            first = list(itertools.islice(made, 1))  # this starts them
        for each in itertools.chain(first, made):
            os.utime(wanted)  # who tidies away what is old leaves it
            yield each.batch, each.failed
    except (TypeError, pickle.PicklingError) as error:
        if "pickle" not in str(error):
            raise
        raise ValueError(
            f"This data set cannot be sent to other processes ({str(error)[:80]}); "
            "leave out workers: threads read it as well."
        ) from error
    finally:
        shutil.rmtree(wanted, ignore_errors=True)
        made.close()


@dataclasses.dataclass(frozen=True)
class Made:
    """A batch on its way between processes, and its items that failed.

    No tree of arrays to grain, which would hand them over in shared memory and, at the
    end of a program, be too late to take it back. (That is a third faster.)

    Args:
        batch: of one process.
        failed: items of it.
        wanted: a folder that is there as long as batches are. After that they travel
            empty: one that is more than a pipe holds would never leave its process,
            which then would not end.
    """

    batch: Batch | None
    failed: list[Item]
    wanted: str

    def __reduce__(self) -> Any:
        if not os.path.exists(self.wanted):
            return Made, (None, [], "")
        return Made, (self.batch, self.failed, self.wanted)


def make_batch(
    number: int,
    *,
    read: Callable[[int], Item],
    share: int,
    preprocess: Preprocess,
    wanted: str,
) -> Made:
    """One of the batches of `gather`."""
    items = map(read, range(number * share, (number + 1) * share))
    ((batch, failed),) = gather(items, 1, share, preprocess)
    return Made(batch, failed, wanted)


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that are started meanwhile never hear Ctrl-C, which a terminal sends to
    all: it is this process that stops, and stops them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # no terminal of that kind
        yield
        return
    # Else the first of them brings a helper along, whose start takes the mask back.
    multiprocessing.get_context("spawn").Lock()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow(worker: int, workers: int, *, wanted: str) -> None:
    """Let this process, which makes batches, end with its parent and not before.

    SIGTERM, which schedulers send to all, would end it amid a batch that the parent is
    reading; so it counts from when no batch is wanted. Of a parent's end by `kill -9`
    nobody tells.
    """
    parent: Any = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        with contextlib.suppress(OSError):
            os.rmdir(wanted)
        os._exit(1)

    def stop(number, frame) -> None:
        if not os.path.exists(wanted):
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    signal.signal(signal.SIGTERM, stop)


def parse_flags() -> None:
    """Grain's processes read absl's flags, which only absl's own programs parse."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def read_place(
    position: int,
    *,
    source: Any,
    preprocess: Preprocess,
    config: Config | None,
    labelling: MaskRule,
    places: tuple[int, int, int, int, int],
) -> Item:
    """The picture at a position in this process's part of all batches."""
    start, stop, batch_size, process, share = places
    batch, row = divmod(position, share)
    index = start + batch * batch_size + process * share + row
    if index >= stop:
        return Item(index)
    return read_item(
        source, index, preprocess=preprocess, config=config, labelling=labelling
    )


def read_item(
    source: Any,
    index: int,
    *,
    preprocess: Preprocess,
    config: Config | None,
    labelling: MaskRule,
) -> Item:
    """One picture, decoded and preprocessed; what fails travels along as a value, so
    that errors come up in the order of the pictures and not of the threads.
    """
    name = ""
    try:
        record = source[index]
        name = record.name
        mask, tokens = record.mask, None
        if mask is not None and config is not None:
            tokens = patch_label(
                mask, preprocess=preprocess, grid=config.grid, labelling=labelling
            )
        return Item(index, record.label, preprocess(record.image), tokens)
    except ImageError as error:  # preprocessing knows the picture, not its name
        return Item(index, error=ImageError(name or error.name, error.reason))
    except SourceError as error:
        return Item(index, error=error)


def failures(items: list[Item], on_error: str) -> list[RecordError]:
    """What could not be read, or the first of them raised."""
    found = []
    for item in items:
        error: Any = item.error
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
        patch_label=tokens,
    )
