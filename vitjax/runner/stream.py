"""The loop: iterate, write, go on after a stop."""

import contextlib
import csv
import io
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from vitjax.data.images import ImageError
from vitjax.data.masks import MaskConvention, MaskRule
from vitjax.models.model import Model
from vitjax.recipes.recipe import Recipe
from vitjax.runner import manifest as manifests
from vitjax.runner.buffer import Buffer, Part
from vitjax.runner.content import check_content
from vitjax.runner.dealing import Deal, deal
from vitjax.runner.estimate import Calibration
from vitjax.runner.folder import Run, join_run, start_run
from vitjax.runner.job import Job, OnError, make_job
from vitjax.runner.lease import held
from vitjax.runner.mending import mend
from vitjax.runner.parts import computed
from vitjax.runner.processes import Group, together
from vitjax.runner.progress import Rate, progress
from vitjax.runner.results import Results
from vitjax.runner.storage import StorageError, write_bytes
from vitjax.types import Config

FINISHED = b"finished"
"""What process 0 says instead of what is done."""


def run(
    recipe: str | Recipe,
    model: str | Config | Model,
    data: Any,
    out: str | os.PathLike,
    *,
    batch_size: int = 32,
    limit: int | None = None,
    seed: int = 0,
    on_error: OnError = "stop",
    dtype: Literal["float32", "bfloat16"] = "float32",
    mask_convention: MaskConvention = "area",
    mask_threshold: float = 0.5,
    workers: int = 0,
    options: Mapping[str, Any] | None = None,
    show_progress: bool = True,
) -> Results:
    """Ask a question of every image of a data set, and keep the rows on disk.

    The step is compiled once; memory depends on the batch, not on the data set. Stopped
    at any moment, also by `kill -9`, the same call goes on where it was and ends with
    the same arrays, bit for bit; a finished run is returned at once. With other devices
    or processes it goes on as well; new rows may then differ in their last bits.

    Where this is one of several processes (`jax.distributed.initialize`), all of them
    make the same call: each reads its own images and writes its own chunks of rows to
    `out`, which they share. Where one stops or is gone, so do the others.

    Args:
        recipe: a name out of `vitjax.recipes.registry.RECIPES`, or one of your own.
        model: a model, or the name of one.
        data: a source such as "textured_digits" or "folder:photos", or a random-access
            source object.
        out: the run directory.
        batch_size: images per step over all devices of all processes; rounded up to a
            multiple of them.
        limit: run only the first so many images.
        seed: for recipes that draw random numbers.
        on_error: what to do with an image that cannot be read: stop with its name, or
            record it in the manifest and go on.
        dtype: what the model computes in.
        mask_convention: where a data set has masks, which tokens are of the class:
            "area" by the share of their pixels, through the model's own resize and
            crop; "vilas2023_code" as the published code, by one pixel.
        mask_threshold: that share, in (0, 1].
        workers: processes that decode and preprocess; 0 for threads of this one.
        options: of the recipe, to replace its own, such as methods=("chefer",).
        show_progress: a bar with images/s and time left, or plain lines where stderr is
            no terminal.

    Returns:
        The rows, and the manifest of what was run.

    Raises:
        ValueError: `out` holds another run, an image has changed since it was run, or
            an argument is out of its range.
        ImageError: an image cannot be read, with on_error="stop".
        StorageError: `out` cannot be written, what was written before being kept, or
            another process is writing a run there.
        PeerError: another process has stopped or is gone; rows are kept likewise.
    """
    with together(out) as group:
        job = make_job(
            *(recipe, model, data),
            batch_size=batch_size,
            dtype=dtype,
            limit=limit,
            labelling=MaskRule(mask_convention, mask_threshold),
            workers=workers,
            seed=seed,
            options=options,
        )
        show = show_progress and group.first
        say = print_to_stderr if show else ignore
        with held(out, say=say) if group.first else contextlib.nullcontext():
            target = open_target(job, out, group, say)
            go_on(job, target, group, on_error=on_error, show=show)
    return target.results()


def go_on(
    job: Job, target: Run, group: Group, *, on_error: OnError, show: bool
) -> None:
    """Do what is left of a run, if anything is."""
    begin(job, target, group, print_to_stderr if show else ignore)
    done = agree(target, group)
    if done is None:
        return
    part = deal(
        done,
        images_per_chunk=target.images_per_chunk,
        share=job.share,
        process=group.index,
        processes=group.count,
    )
    rate = Rate(int((~done).sum()))
    title = f"{job.recipe.name} · {target.manifest['model']['name']}"
    show = show and rate.total > 0
    with progress(rate, title=title, done=int(done.sum()), show=show) as tick:
        buffer = Buffer(target)
        parts = computed(
            *(job, part.spans),
            on_error=on_error,
            pictures=job.recipe.pictures,
            steps=len(part.counts),
        )
        if show:
            foretold = Calibration(
                job, images=rate.total, chunk=target.images_per_chunk
            )
            parts = foretold.watch(parts, lambda found: print_to_stderr(str(found)))
        write(parts, buffer, in_step(tick, part, group))
    with telling(target):  # another may be lost when this one has done its own part
        group.meet("written")
        finish(job, target, rate, group)


@contextlib.contextmanager
def telling(run: Run) -> Iterator[None]:
    """What ends this says what is kept."""
    try:
        yield
    except BaseException as error:
        error.add_note(progress_note(run))
        raise


def open_target(
    job: Job, out: str | os.PathLike, group: Group, say: Callable[[str], None]
) -> Run:
    """The folder of a job's run, new or to go on in; process 0 creates or mends it."""
    described = manifests.describe(job)
    if not group.first:
        group.meet("created")
        return join_run(out, described, job.specs, process=group.index)
    target = start_run(
        out,
        described,
        job.specs,
        coordinates=job.coordinates,
        batch_size=job.share,
        processes=group.count,
    )
    for found in mend(target):
        say(found)
    check_content(target, job.source)
    group.meet("created")
    return target


def begin(job: Job, target: Run, group: Group, say: Callable[[str], None]) -> None:
    """Note what is new in this session, and write what is written once."""
    if target.manifest["finished"]:
        return
    if job.batch_size != job.asked:
        say(f"Batches of {job.batch_size}, a multiple of {job.mesh.size} devices.")
    once = job.once  # by all: its program runs on the devices of all
    if not group.first:
        return
    target.collect_skipped()
    changes = manifests.note_resumption(target.manifest)
    if changes:
        target.save_manifest()  # now: this session may be stopped as well
    for change in changes:
        say(f"{change}; the last bits of new rows may differ from those of old ones.")
    if once:
        target.write({name: (..., values) for name, values in once.items()})


def agree(target: Run, group: Group) -> np.ndarray | None:
    """`done` as process 0 reads it, before anyone writes: all deal out the same.

    Returns:
        A flag per image; None if the run is finished.
    """
    content = FINISHED
    if group.first and not target.manifest["finished"]:
        content = zlib.compress(np.packbits(target.read("done")).tobytes())
    content = group.share(content)
    if content == FINISHED:
        return None
    bits = np.frombuffer(zlib.decompress(content), np.uint8)
    return np.unpackbits(bits, count=target.images).astype(bool)


def in_step(
    tick: Callable[[int], None], part: Deal, group: Group
) -> Callable[[int], None]:
    """Count the images of all processes step by step, and stop where one is lost."""
    counts = iter(part.counts)

    def advance(images: int) -> None:
        tick(next(counts))
        group.check()

    return advance


def write(parts: Iterable[Part], buffer: Buffer, tick: Callable[[int], None]) -> None:
    """Write parts as they come; whatever stops this, what is computed is kept."""
    try:
        for part in parts:
            buffer.add(part)
            tick(part.stop - part.start)
        buffer.flush()
    except BaseException as error:
        with contextlib.suppress(StorageError):
            buffer.flush()
        if isinstance(error, ImageError):
            error.add_note("Repair it, or go on without it: --on-error skip.")
        error.add_note(progress_note(buffer.run))
        raise


def progress_note(run: Run) -> str:
    """What a stopped run has, and how to go on."""
    try:
        done = run.read("done")
    except StorageError:
        return f"What was written to {run.path} is kept."
    return (
        f"{done.sum()} of {len(done)} images are done and kept in {run.path}; the same "
        "command goes on from there."
    )


def finish(job: Job, run: Run, rate: Rate, group: Group = Group()) -> None:
    """Write images.csv, name the images whose object vanished, mark it finished."""
    measured = None
    if job.recipe.measure is not None:
        measured = job.measured()  # by all: it runs on the devices of all
    if group.first:
        sum_up(job, run, rate, measured)
    group.meet("finished")


def sum_up(job: Job, run: Run, rate: Rate, measured: dict[str, Any] | None) -> None:
    """What process 0 writes once all rows are there."""
    run.collect_skipped()
    write_bytes(run.path, "images.csv", image_table(job, run).encode())
    if job.masks:
        run.manifest["vanished"] = vanished(job, run)
    if measured is not None:
        run.manifest["measured"] = measured
    run.manifest["finished"] = manifests.now()
    run.manifest["images_per_second"] = rate.images_per_second
    run.save_manifest()


def vanished(job: Job, run: Run) -> list[dict[str, Any]]:
    """Images that have a mask and no token of the class: too small, or cropped away."""
    kinds = run.read("patch_label")
    masked = (kinds >= 0).any(axis=1)
    found = np.flatnonzero(masked & ~(kinds == 1).any(axis=1)).tolist()
    return [{"index": index, "name": job.source.name(index)} for index in found]


def image_table(job: Job, run: Run) -> str:
    """index, name, label_name, label of every image, as CSV."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("index", "name", "label_name", "label"))
    for index, label in enumerate(run.read("label").tolist()):
        label_name = job.model.classes[label] if label >= 0 else ""
        table.writerow((index, job.source.name(index), label_name, label))
    return text.getvalue()


def print_to_stderr(message: str) -> None:
    """Say something that is no result."""
    print(message, file=sys.stderr)


def ignore(message: str) -> None:
    """Say nothing."""
