"""What a run will take: memory as compiled, disk and time from its first batches.

memory per device   what lies there (weights, what the recipe prepared) and what the
compiler planned: for preparing, or for a step, where that is more,
with two batches and their results: while the host writes one, the
devices compute the next
memory of the host  images that were read for the next batches, and rows that wait to
be written; CPUs take theirs out of the same memory
disk                bytes of the first rows as they are stored, times the images
time                compiling, and the images at the rate of the first batches
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from vitjax.data.masks import MaskConvention, MaskRule
from vitjax.models.model import Model
from vitjax.recipes.recipe import Recipe
from vitjax.runner import mesh as meshes
from vitjax.runner.buffer import Part
from vitjax.runner.folder import images_per_chunk
from vitjax.runner.job import Job, make_job, preparation
from vitjax.runner.parts import computed
from vitjax.runner.progress import clock_time
from vitjax.runner.results import ArraySpec
from vitjax.runner.storage import ROWS
from vitjax.types import Config

CALIBRATION_SECONDS = 10.0
CALIBRATION_LAPS = 3
"""Batches after the first, which also fills the pipeline, that are timed at least."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Args:
        images: still to run.
        batch_size: images per step over all devices.
        device: number and kind.
        device_bytes: of memory on each device at the peak.
        device_limit: what one device has, None where it does not say; of CPUs, what
            the host leaves of the machine's, in equal parts.
        host_bytes: of the host's memory at the peak, for images and rows on their way:
            of one process with its workers, beside Python and its libraries.
        disk_bytes: of all rows.
        objects: files, or objects of a bucket.
        compile_seconds: tracing and compiling the step.
        images_per_second: of the first batches, from decoding to rows.
        seconds: from compiling to the last image.
    """

    images: int
    batch_size: int
    device: str
    device_bytes: int
    device_limit: int | None
    host_bytes: int
    disk_bytes: int
    objects: int
    compile_seconds: float
    images_per_second: float
    seconds: float

    def __str__(self) -> str:
        lines = [
            f"Estimated for {self.images:,} images in batches of {self.batch_size} on "
            f"{self.device}: {size(self.device_bytes)} of memory on each device and "
            f"{size(self.host_bytes)} of the host's, "
            f"{size(self.disk_bytes)} on disk in {self.objects:,} objects, "
            f"{clock_time(self.seconds)} ({self.images_per_second:,.1f} images/s, "
            f"{self.compile_seconds:.0f} s of it to compile)."
        ]
        if self.device_limit is not None and self.device_bytes > self.device_limit:
            lines += [
                f"That is more than the {size(self.device_limit)} there are: give a "
                "smaller --batch-size."
            ]
        return "\n".join(lines)


class Calibration:
    """Watches a run's first batches, and says what the whole will take.

    Args:
        job: what is run.
        images: still to run, by all processes.
        chunk: images per chunk of the rows.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        job: Job,
        *,
        images: int,
        chunk: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.job, self.images, self.chunk, self.clock = job, images, chunk, clock
        started = clock()
        self.device_bytes = planned_bytes(job)
        self.started = clock()
        self.compile_seconds = self.started - started

    def watch(
        self, parts: Iterable[Part], say: Callable[[Estimate], None]
    ) -> Iterator[Part]:
        """The same parts; as soon as the first few are there, what is left is said.

        Args:
            parts: what the batches leave behind.
            say: told once.
        """
        parts = iter(parts)
        first: list[Part] = []
        arrived: list[float] = []
        try:
            for part in parts:
                first.append(part)
                arrived.append(self.clock())
                laps, over = len(first) - 1, arrived[-1] - self.started
                if over > CALIBRATION_SECONDS and laps >= 1 or laps == CALIBRATION_LAPS:
                    break
        except Exception:
            yield from first  # what is computed is kept
            raise
        real = [part.stop > part.start for part in first]  # others are blank
        if any(real):
            chosen = [
                [one for one, kept in zip(ones, real) if kept]
                for ones in (first, arrived)
            ]
            say(self.conclude(*chosen))  # pyright: ignore
        yield from first
        yield from parts

    def conclude(self, parts: list[Part], arrived: list[float]) -> Estimate:
        """What these parts, and when they came, say about the whole."""
        mesh, processes = self.job.mesh, self.job.batch_size / self.job.share
        rate = rate_of(parts, arrived, self.started) * processes
        disk, objects = stored(self.job, parts, chunk=self.chunk)
        host = host_bytes(self.job, chunk=self.chunk)
        return Estimate(
            images=self.images,
            batch_size=self.job.batch_size,
            device=f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
            device_bytes=self.device_bytes,
            device_limit=memory_limit(mesh, host=host),
            host_bytes=host,
            disk_bytes=disk,
            objects=objects,
            compile_seconds=self.compile_seconds,
            images_per_second=rate,
            seconds=self.compile_seconds + self.images / rate,
        )


def estimate(
    recipe: str | Recipe,
    model: str | Config | Model,
    data: Any,
    *,
    batch_size: int = 32,
    limit: int | None = None,
    seed: int = 0,
    dtype: Literal["float32", "bfloat16"] = "float32",
    mask_convention: MaskConvention = "area",
    mask_threshold: float = 0.5,
    workers: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Estimate:
    """What `run` with the same arguments would take; nothing is written.

    Args:
        recipe: as for `run`, like all that follow.
        model: a model, or the name of one.
        data: a source.
        batch_size: images per step over all devices.
        limit: only the first so many images.
        seed: for recipes that draw random numbers.
        dtype: what the model computes in.
        mask_convention: which tokens are of the class.
        mask_threshold: share of their pixels.
        workers: processes that decode and preprocess.
        options: of the recipe.

    Returns:
        Memory, disk and time. The first batches of the data are run, about ten seconds.

    Raises:
        ValueError: an argument is unknown or out of its range, or no image of the first
            batches can be read.
    """
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
    chunk = images_per_chunk(job.specs.values(), batch_size=job.share)
    calibration = Calibration(job, images=job.images, chunk=chunk)
    found: list[Estimate] = []
    parts = computed(job, [(0, job.images)], on_error="skip", pictures=0)
    for _ in calibration.watch(parts, found.append):
        break
    parts.close()
    return found[0]


def rate_of(parts: list[Part], arrived: list[float], started: float) -> float:
    """Images per second; the first batch counts only where it is the only one.

    Args:
        parts: the first batches.
        arrived: when each came, in seconds.
        started: when the first was begun.
    """
    images = [part.stop - part.start for part in parts]
    if len(parts) == 1:
        return images[0] / max(arrived[0] - started, 1e-9)
    return sum(images[1:]) / max(arrived[-1] - arrived[0], 1e-9)


def planned_bytes(job: Job) -> int:
    """Peak memory on each device: of a step, or of what the recipe prepares before.

    Compiles both, as their first calls would.
    """
    with jax.default_matmul_precision(job.precision):
        make = preparation(job.recipe, job.mesh)
        preparing = make.lower(job.placed, seed=job.seed).compile()
        batch = meshes.shard(job.blank(), job.mesh)
        stepping = job.program.lower(job.placed, batch, job.prepared.aux).compile()
    held = total_bytes(batch) // job.mesh.size
    peak = at_peak(preparing, stepping, batch=held, prepared=total_bytes(job.prepared))
    return weight_bytes(job.model, job.placed) + peak


def weight_bytes(loaded: Model, placed: Model) -> int:
    """Bytes of weights on the first device, which has most of them.

    Args:
        loaded: the model as it was loaded, there.
        placed: the same in the dtype it computes in; of one dtype they share memory.
    """
    shared = loaded.dtype == placed.dtype
    return total_bytes(placed) + (0 if shared else total_bytes(loaded))


def at_peak(preparing: Any, stepping: Any, *, batch: int, prepared: int) -> int:
    """Bytes on each device beside the weights, while preparing or in a step.

    Args:
        preparing: the compiled program that makes what the recipe prepares.
        stepping: the compiled step; two batches and their results are there at once.
        batch: bytes of a device's share of a batch.
        prepared: bytes of what the recipe prepared.
    """
    step = planned(stepping, results=2) + prepared + 2 * batch
    return max(planned(preparing, results=1), step)


def planned(compiled: Any, *, results: int) -> int:
    """Bytes of scratch on each device, and of so many results of a program."""
    memory = compiled.memory_analysis()
    return memory.temp_size_in_bytes + results * memory.output_size_in_bytes


def total_bytes(tree: Any) -> int:
    """Of all arrays of a tree, or of those that it describes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def host_bytes(job: Job, *, chunk: int) -> int:
    """Peak memory of one process's host for images and rows.

    Two batches are always there: the one that the devices compute, and the next. Of
    what is read for the one after, threads hold the images of two batches and those
    that are being put together; a worker holds such images and their batch, and two
    finished batches on their way.

    Args:
        job: what is run.
        chunk: images per chunk of the rows.
    """
    images = total_bytes(job.blank())
    read = 4 * job.workers or 3
    rows = chunk * sum(
        math.prod(spec.shape[1:]) * np.dtype(spec.dtype).itemsize
        for spec in job.specs.values()
        if spec.dims[0] == "image"
    )
    # A chunk is written while nothing is put together: its rows as they came, in one
    # array, and encoded.
    return max((read + 2) * images + rows, read * images + 3 * rows)


def memory_limit(mesh: Mesh, *, host: int) -> int | None:
    """Memory of each device; CPUs share what the host leaves of the machine's.

    Args:
        mesh: the devices.
        host: bytes that the host takes.
    """
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return max(whole - host, 0) // len(mesh.local_devices)
    return (device.memory_stats() or {}).get("bytes_limit")


def stored(job: Job, parts: list[Part], *, chunk: int) -> tuple[int, int]:
    """Bytes and objects of a whole run, from the rows of its first batches."""
    chunks, done = (
        -(-job.images // chunk),
        sum(part.stop - part.start for part in parts),
    )
    total, objects = 0, 2  # the manifest and images.csv, which are small
    for name, spec in job.specs.items():
        if spec.dims[0] != "image":
            shape, pieces = list(spec.shape), 1
            if spec.dims[0] == "shown":
                shape[0] = min(shape[0], job.images)
                pieces = -(-shape[0] // chunk)
            total += math.prod(shape) * np.dtype(spec.dtype).itemsize
            objects += 1 + pieces
            continue
        rows = np.concatenate([part.rows[name] for part in parts])
        total += round(encoded_bytes(spec, rows) * job.images / done)
        objects += 1 + chunks
    return total, objects + 1 + chunks  # `done`


def encoded_bytes(spec: ArraySpec, rows: np.ndarray) -> int:
    """What rows take on disk, by the same codecs and in memory."""
    import tensorstore as ts

    context = ts.Context()
    few = dataclasses.replace(spec, shape=rows.shape)
    where = {"driver": "memory", "path": f"{ROWS}/"}
    store = ts.open(
        {
            "driver": "zarr3",
            "kvstore": where,
            "metadata": few.metadata(images_per_chunk=len(rows)),
            "create": True,
        },
        context=context,
    ).result()
    store.write(rows).result()
    kept = ts.KvStore.open(where, context=context).result()
    keys = [key for key in kept.list().result() if not key.endswith(b"zarr.json")]
    return sum(len(kept.read(key).result().value) for key in keys)


def size(count: int | float) -> str:
    """Bytes for a person."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if unit in ("B", "KiB") else f"{count:,.2f} {unit}"
