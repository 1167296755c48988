"""Data loading: examples are decoded ahead, in threads or processes, and batched.

Order, shapes and values do not depend on the number of threads and workers. Batches are
of one shape: in rows of padding and of images that cannot be read, `valid` is False,
`label` and `patch_label` are -1, pixels and digest are 0; padding has indices from
`stop` on.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
import pathlib
import pickle
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt64

from vitjax.data.images import ImageError, Preprocess, content_digest, image_errors
from vitjax.data.masks import MaskRule, align_mask, label_patches
from vitjax.data.records import Record
from vitjax.types import Batch, Config


@dataclasses.dataclass(frozen=True)
class ExampleError:
    """An image that could not be read: its index, its name, and the reason."""

    index: int
    name: str
    error: str


class Loaded(NamedTuple):
    """A batch, its images that could not be read, and the content digest of each."""

    batch: Batch
    errors: list[ExampleError]
    digest: UInt64[np.ndarray, " batch"]


def batches(
    source: Any,
    *,
    preprocess: Preprocess,
    local_batch_size: int,
    start: int = 0,
    stop: int | None = None,
    config: Config | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    mask_rule: MaskRule = MaskRule(),
    threads: int = 16,
    workers: int = 0,
) -> Iterator[Loaded]:
    """Batches of the images from `start` to before `stop`, in order, padded at the end.

    `source` has numbers as labels, as `open_data` returns it; without `config`, which
    has the patch grid, masks are not used. `threads` decode and preprocess; 0 does it
    in the caller's. `workers` are processes that make whole batches instead, one thread
    each: they pay where there are many cores, since Pillow mostly releases Python's
    lock. An image that cannot be read raises `ImageError` or, with on_error="skip",
    is reported with its batch; a killed worker raises `ChildProcessError`.
    """
    stop = len(source) if stop is None else min(stop, len(source))
    loader = Loader(
        source, preprocess, config, mask_rule, on_error, local_batch_size, stop
    )
    starts = range(start, stop, local_batch_size)
    if workers:
        return load_in_workers(loader, starts, workers)
    return load_in_threads(loader, starts, threads)


@dataclasses.dataclass(frozen=True)
class Loader:
    """Reads examples and batches them; pickled once for all workers."""

    source: Any
    preprocess: Preprocess
    config: Config | None
    mask_rule: MaskRule
    on_error: str
    local_batch_size: int
    stop: int

    def read(self, index: int) -> dict[str, Any] | ExampleError:
        """Array name -> row of the image at an index, or why there are none."""
        try:
            record = self.source[index]
            with image_errors(record.name):  # Pillow cannot convert every mode
                return self.rows(record)
        except ImageError as error:
            if self.on_error == "stop":
                raise
            return ExampleError(index, error.name, error.reason)

    def rows(self, record: Record) -> dict[str, Any]:
        """Array name -> row of a record."""
        pixels = self.preprocess(record.image)
        rows = {"images": pixels, "label": record.label, "valid": True}
        rows["digest"] = record.digest
        if record.digest is None:
            arrays = [a for a in (record.image, record.mask) if a is not None]
            rows["digest"] = content_digest(*(np.asarray(a).tobytes() for a in arrays))
        if record.mask is not None and self.config is not None:
            orient = self.preprocess.orient
            rows["patch_label"] = label_patches(
                align_mask(record.mask, record.image, orient=orient),
                preprocess=self.preprocess,
                grid=self.config.grid,
                mask_rule=self.mask_rule,
            )
        return rows

    def collate(self, first: int, examples: Iterable[Any]) -> Loaded:
        """The batch of the images from index `first` on."""
        size, preprocess = self.local_batch_size, self.preprocess
        shape = (size, preprocess.height, preprocess.width, 3)
        arrays = {
            "images": np.zeros(shape, np.float32),
            "label": np.full(size, -1, np.int32),
            "valid": np.zeros(size, bool),
            "digest": np.zeros(size, np.uint64),
        }
        if self.config is not None:
            patches = (size, self.config.patches)
            arrays["patch_label"] = np.full(patches, -1, np.int32)
        errors = []
        for row, example in enumerate(examples):
            if isinstance(example, ExampleError):
                errors.append(example)
                continue
            for name, values in example.items():
                arrays[name][row] = values
        digest = arrays.pop("digest")
        index = np.arange(first, first + size, dtype=np.int32)
        return Loaded(Batch(index=index, **arrays), errors, digest)


def run_ahead(
    submit: Callable[[int], Future], arguments: range, ahead: int
) -> Iterator[Any]:
    """Results in the order of the arguments; up to `ahead` more are being computed."""
    pending: collections.deque[Future] = collections.deque()
    for argument in arguments:
        pending.append(submit(argument))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def load_in_threads(loader: Loader, starts: range, threads: int) -> Iterator[Loaded]:
    """The batches that begin at these indices; images of two more are read ahead."""
    size, indices = loader.local_batch_size, range(starts.start, loader.stop)
    pool = ThreadPoolExecutor(max(threads, 1))
    examples = map(loader.read, indices)
    if threads:
        submit = functools.partial(pool.submit, loader.read)
        examples = run_ahead(submit, indices, 2 * size)
    try:
        for first in starts:
            yield loader.collate(first, itertools.islice(examples, size))
    finally:
        pool.shutdown(cancel_futures=True)


def load_in_workers(loader: Loader, starts: range, workers: int) -> Iterator[Loaded]:
    """The batches that begin at these indices, each made as a whole by a worker.

    A worker writes its batch to a file and sends only the file's name: a killed writer
    of more than a pipe takes at once would leave the reader waiting for the rest.
    """
    try:
        content = pickle.dumps(loader)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise ValueError(
            f"The data set cannot be sent to worker processes ({str(error)[:80]}); "
            "leave out workers: threads read it as well."
        ) from error
    context = multiprocessing.get_context("spawn")
    stopped, stop = context.Pipe(duplex=False)
    folder = tempfile.mkdtemp(prefix="vitjax-batches-")
    pool = ProcessPoolExecutor(workers, context, exit_with_parent, (stopped, folder))

    def submit(first: int) -> Future:
        with block_signals():  # this may start a worker
            return pool.submit(save_batch, folder, first)

    try:
        pathlib.Path(folder, "loader").write_bytes(content)
        for path in run_ahead(submit, starts, 2 * workers):
            with open(path, "rb") as file:
                loaded = pickle.load(file)
            os.unlink(path)
            yield loaded
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "A worker process was killed, perhaps for want of memory, or could not "
            "start: a script that uses workers needs `if __name__ == '__main__':`. "
            "Use fewer workers, or none."
        ) from error
    finally:
        stop.close()  # ends all workers, also amid a batch
        pool.shutdown()
        stopped.close()
        shutil.rmtree(folder, ignore_errors=True)


@functools.lru_cache(maxsize=1)
def read_loader(folder: str) -> Loader:
    """The loader, read once by each worker: it may be too large for every task."""
    return pickle.loads(pathlib.Path(folder, "loader").read_bytes())


def save_batch(folder: str, first: int) -> str:
    """Make the batch that begins at an index, in a worker; the path of its file."""
    loader = read_loader(folder)
    indices = range(first, min(first + loader.local_batch_size, loader.stop))
    path = os.path.join(folder, str(first))
    with open(path, "wb") as file:
        pickle.dump(loader.collate(first, map(loader.read, indices)), file, protocol=5)
    return path


@contextlib.contextmanager
def block_signals() -> Iterator[None]:
    """Workers started meanwhile ignore SIGINT and SIGTERM; the parent stops them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_with_parent(stopped: Any, folder: str) -> None:
    """Make this worker exit once the parent closes its end of a pipe, or is killed."""

    def watch() -> None:
        stopped.poll(None)  # nothing is ever sent: this returns at the end of the pipe
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
