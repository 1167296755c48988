"""Estimates of a run's memory, disk and time, from its first batches.

memory per device   what is there (weights, the recipe's carry) and what the compiler
                    planned, for the setup or for a step, whichever is more, with two
                    batches and their results: while the host writes one, the devices
                    compute the next
memory of the host  images read for the next batches, and rows that wait to be written;
                    CPUs take theirs out of the same memory
disk                bytes of the first rows as they are stored, times the images
time                compiling, and the images at the rate of the first batches
"""

import dataclasses
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from numcodecs.zstd import compress

from vitjax.models.model import Model
from vitjax.recipes.recipe import Recipe
from vitjax.runner import loop
from vitjax.runner import mesh as meshes
from vitjax.runner.options import RunOptions
from vitjax.runner.progress import Progress, clock_time
from vitjax.runner.writer import images_per_chunk
from vitjax.types import Config

BATCHES, SECONDS = 4, 10.0
"""Batches that are timed: so many, or as many as fit the time."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run will take.

    `device_limit` is the memory that one device has, None where it does not say; of
    CPUs, what the host leaves of the machine's, in equal parts. `host_bytes` are of one
    process with its workers, beside Python and its libraries; `objects` are files, or
    objects of a bucket; `seconds` go from compiling to the last image.
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
        text = (
            f"Estimated for {self.images:,} images in batches of {self.batch_size} on "
            f"{self.device}: {size(self.device_bytes)} of memory on each device and "
            f"{size(self.host_bytes)} of the host's, "
            f"{size(self.disk_bytes)} on disk in {self.objects:,} objects, "
            f"{clock_time(self.seconds)} ({self.images_per_second:,.1f} images/s, "
            f"{self.compile_seconds:.0f} s of it to compile)."
        )
        if self.device_limit is not None and self.device_bytes > self.device_limit:
            text += (
                f"\nThat is more than the {size(self.device_limit)} there are: give a "
                "smaller --batch-size."
            )
        return text


def estimate(
    recipe: str | Recipe,
    model: str | Config | Model,
    data: Any,
    *,
    options: Any = None,
    **run_options: Any,
) -> Estimate:
    """Estimate what `run` with the same arguments would take; nothing is written.

    The first batches of the data are run, about ten seconds. ValueError if an argument
    is unknown or out of its range, or the recipe has more than one pass.
    """
    settings = RunOptions(**{"on_error": "skip", **run_options})
    job = loop.make_job(recipe, model, data, recipe_options=options, options=settings)
    *others, part = job.passes
    if others:
        raise ValueError(
            f"The recipe {job.recipe.name!r} runs several passes, whose time depends "
            "on what is fitted: run it, its progress tells the time left."
        )
    with jax.default_matmul_precision(settings.precision):
        carry = meshes.replicate(part.setup().carry, job.mesh)
        started = time.monotonic()
        job.compile(part, carry)
        compiled, batches, progress = time.monotonic(), [], Progress(job.images)
        indices = loop.batch_indices(0, job.images, job.batch_size)
        for rows, _ in loop.run_batches(job, part, carry, indices, progress):
            batches.append(rows)
            progress.advance(min(job.batch_size, job.images - progress.done))
            if len(batches) == BATCHES or progress.seconds > SECONDS:
                break
        device_bytes, host = planned_bytes(job, carry), host_bytes(job)
        disk, objects = stored(job, batches)
    rate = progress.images_per_second or math.inf
    return Estimate(
        images=job.images,
        batch_size=job.batch_size,
        device=f"{job.mesh.size} x {job.mesh.devices.flat[0].device_kind}",
        device_bytes=device_bytes,
        device_limit=memory_limit(job.mesh, host=host),
        host_bytes=host,
        disk_bytes=disk,
        objects=objects,
        compile_seconds=compiled - started,
        images_per_second=rate,
        seconds=compiled - started + job.images / rate,
    )


def planned_bytes(job: loop.Job, carry: Any) -> int:
    """Peak memory on each device: weights, also as they were loaded where the dtype
    differs, and the setup, or the carry and a step with two batches and their results.
    """
    setup = loop.jitted_setup(job.recipe, job.mesh).lower(job.model, seed=job.seed)
    preparing = setup.compile().memory_analysis()
    stepping = job.compile(job.passes[-1], carry).memory_analysis()
    batch = total_bytes(job.empty_batch()) // job.mesh.size
    step = stepping.temp_size_in_bytes + 2 * (stepping.output_size_in_bytes + batch)
    weights = total_bytes(job.model)
    if job.loaded_model.dtype != job.model.dtype:
        weights += total_bytes(job.loaded_model)
    return weights + max(
        preparing.temp_size_in_bytes + preparing.output_size_in_bytes,
        step + total_bytes((carry, job.setup_shape.static)),
    )


def total_bytes(tree: Any) -> int:
    """Of all arrays of a tree, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def host_bytes(job: loop.Job) -> int:
    """Peak memory of one process's host for images and rows.

    Batches: the one that the devices compute, the next, and those that threads read, or
    that each worker reads, assembles and sends. A chunk's rows: as they came, in one
    array, and encoded.
    """
    batches = 2 + (4 * job.options.workers or 3)
    chunk = images_per_chunk(job.specs, job.images, job.batch_size)
    row = sum(spec.row_bytes for spec in job.specs.values() if spec.axis == "image")
    return batches * total_bytes(job.empty_batch()) + 3 * chunk * row


def memory_limit(mesh: Mesh, *, host: int) -> int | None:
    """Memory of each device; CPUs share what the host leaves of the machine's."""
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return max(whole - host, 0) // mesh.size
    return (device.memory_stats() or {}).get("bytes_limit")


def stored(job: loop.Job, batches: list[Mapping[str, np.ndarray]]) -> tuple[int, int]:
    """Bytes and objects of a whole run, from its first rows as Zarr compresses them."""
    specs, images = job.specs, len(batches) * job.batch_size
    rows = [name for name, spec in specs.items() if spec.axis == "image"]
    others = [spec for spec in specs.values() if spec.axis != "image"]
    values = (np.concatenate([b[n] for b in batches]) for n in rows if n in batches[0])
    size = sum(len(compress(array, 3)) for array in values)
    rest = sum(math.prod(s.shape) * np.dtype(s.dtype).itemsize for s in others)
    chunks = -(-job.images // images_per_chunk(specs, job.images, job.batch_size))
    # The manifest, images.csv, two groups, arrays, their chunks.
    objects = 4 + len(specs) + chunks * len(rows) + len(others)
    return round(size * job.images / images) + rest, objects


def size(count: int | float) -> str:
    """Bytes in a unit that a person reads."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if unit in ("B", "KiB") else f"{count:,.2f} {unit}"
