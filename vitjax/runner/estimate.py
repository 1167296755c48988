"""Estimates of a run's memory, disk and time, before it or from its first batches.

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
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
import obstore.store
from jax.sharding import Mesh

from vitjax.checkpoints.loading import init
from vitjax.models.model import Model
from vitjax.recipes.recipe import Recipe
from vitjax.recipes.registry import find_recipe
from vitjax.runner import mesh as meshes
from vitjax.runner.options import PRECISION, RunOptions
from vitjax.runner.progress import clock_time
from vitjax.runner.store import ROWS, Folder
from vitjax.runner.writer import ArraySpec, RunWriter
from vitjax.types import Config

if TYPE_CHECKING:
    from vitjax.runner.loop import Job

LAPS, LAP_SECONDS = 3, 10.0
"""Batches after the first that are timed: so many, or as many as fit the time."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Args:
        images: still to run.
        batch_size: images per step over all devices.
        device: number and kind.
        device_bytes: of memory on each device at the peak.
        device_limit: what one device has, None where it does not say; of CPUs, what the
            host leaves of the machine's, in equal parts.
        host_bytes: of the host's memory at the peak, for images and rows: of one
            process with its workers, beside Python and its libraries.
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


class RunEstimator:
    """Watches the first batches of a run and estimates the whole.

    Args:
        job: what is run.
        images: still to run by this process.
        compile_seconds: of the step.
    """

    def __init__(self, job: "Job", *, images: int, compile_seconds: float):
        self.job, self.images, self.compile_seconds = job, images, compile_seconds
        self.started = time.monotonic()
        self.rows: list[Mapping[str, np.ndarray]] = []
        self.arrivals: list[float] = []
        self.estimated = False

    def observe(self, rows: Mapping[str, np.ndarray]) -> Estimate | None:
        """Take a batch's rows; the estimate once enough have come."""
        if self.estimated:
            return None
        self.rows.append(rows)
        self.arrivals.append(time.monotonic())
        laps, elapsed = len(self.rows) - 1, self.arrivals[-1] - self.started
        images = sum(map(count_images, self.rows))
        late = elapsed > LAP_SECONDS and laps >= 1
        if laps < LAPS and not late and images < self.images:
            return None
        self.estimated = True
        return self.estimate()

    def estimate(self) -> Estimate:
        """The whole run, from the batches so far."""
        job = self.job
        images = [count_images(rows) for rows in self.rows]
        if len(images) == 1:
            rate = images[0] / max(self.arrivals[0] - self.started, 1e-9)
        else:  # the first batch also fills the pipeline
            rate = sum(images[1:]) / max(self.arrivals[-1] - self.arrivals[0], 1e-9)
        chunk = job.writer.images_per_chunk if job.writer else job.choose_chunk(rate)
        disk, objects = stored(job.specs, self.rows, images=job.images, chunk=chunk)
        host = host_bytes(job, chunk=chunk)
        return Estimate(
            images=self.images,
            batch_size=job.batch_size,
            device=f"{job.mesh.size} x {job.mesh.devices.flat[0].device_kind}",
            device_bytes=planned_bytes(job),
            device_limit=memory_limit(job.mesh, host=host),
            host_bytes=host,
            disk_bytes=disk,
            objects=objects,
            compile_seconds=self.compile_seconds,
            images_per_second=rate,
            seconds=self.compile_seconds + self.images / rate,
        )


def count_images(rows: Mapping[str, np.ndarray]) -> int:
    """Images of a batch."""
    return len(next(iter(rows.values())))


def estimate(
    recipe: str | Recipe,
    model: str | Config | Model,
    data: Any,
    *,
    options: Any = None,
    **run_options: Any,
) -> Estimate:
    """Estimate what `run` with the same arguments would take; nothing is written.

    The first batches of the data are run, about ten seconds.

    Raises:
        ValueError: an argument is unknown or out of its range, or the recipe has more
            than one pass.
    """
    from vitjax.runner.loop import make_job, run_batches

    settings = RunOptions(**{"on_error": "skip", **run_options})
    job = make_job(recipe, model, data, recipe_options=options, options=settings)
    if job.recipe.passes is not None:
        raise ValueError(
            f"The recipe {job.recipe.name!r} runs several passes, whose time depends "
            "on what is fitted: run it, its progress tells the time left."
        )
    part = job.passes[0]
    seconds = job.compile(part, job.setup.carry)
    estimator = RunEstimator(job, images=job.images, compile_seconds=seconds)
    for result in run_batches(job, part, job.setup.carry, np.arange(job.images)):
        if estimated := estimator.observe(result.rows):
            return estimated
    return estimator.estimate()


def planned_bytes(job: "Job") -> int:
    """Peak memory on each device: of a step, or of the setup before it."""
    from vitjax.runner.loop import jitted_step

    with jax.default_matmul_precision(job.options.precision):
        preparing = job.setup_program.lower(job.model, seed=job.seed).compile()
        batch = meshes.shard(job.empty_batch(), job.mesh)
        program = jitted_step(job.passes[-1].step, job.mesh)
        stepping = program.lower(job.model, batch, job.setup.carry).compile()
    share = total_bytes(batch) // job.mesh.size
    peak = peak_bytes(preparing, stepping, batch=share, setup=total_bytes(job.setup))
    return weight_bytes(job.loaded_model, job.model) + peak


def weight_bytes(loaded: Model, model: Model) -> int:
    """Bytes of weights on the first device, which also holds those as they were loaded;
    of one dtype they share memory.
    """
    return total_bytes(model) + (
        0 if loaded.dtype == model.dtype else total_bytes(loaded)
    )


def peak_bytes(preparing: Any, stepping: Any, *, batch: int, setup: int) -> int:
    """Bytes on each device beside the weights, in the setup or in a step, of which two
    batches and their results are there at once.
    """

    def planned(compiled: Any, results: int) -> int:
        memory = compiled.memory_analysis()
        return memory.temp_size_in_bytes + results * memory.output_size_in_bytes

    return max(planned(preparing, 1), planned(stepping, 2) + setup + 2 * batch)


def total_bytes(tree: Any) -> int:
    """Of all arrays of a tree, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def host_bytes(job: "Job", *, chunk: int) -> int:
    """Peak memory of one process's host for images and rows.

    Two batches are always there: the one that the devices compute, and the next. Of
    what is read for the one after, threads hold the images of two batches and those
    that are being put together; a worker holds such images and their batch, and two
    finished batches on their way.
    """
    images = total_bytes(job.empty_batch())
    read = 4 * job.options.workers or 3
    specs = job.specs.values()
    rows = chunk * sum(spec.row_bytes for spec in specs if spec.dims[0] == "image")
    # A chunk is written while nothing is put together: its rows as they came, in one
    # array, and encoded.
    return max((read + 2) * images + rows, read * images + 3 * rows)


def memory_limit(mesh: Mesh, *, host: int) -> int | None:
    """Memory of each device; CPUs share what the host leaves of the machine's."""
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return max(whole - host, 0) // mesh.size
    return (device.memory_stats() or {}).get("bytes_limit")


def stored(
    specs: Mapping[str, ArraySpec],
    batches: list[Mapping[str, np.ndarray]],
    *,
    images: int,
    chunk: int,
) -> tuple[int, int]:
    """Bytes and objects of a whole run, from its first rows as the writer stores them
    in memory.
    """
    done, chunks = sum(map(count_images, batches)), -(-images // chunk)
    rows = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    few = {
        name: dataclasses.replace(specs[name], shape=(done, *specs[name].shape[1:]))
        for name in [*rows, "done"]
    }
    manifest = {"data": {"images": done}, "images_per_chunk": done}
    writer = RunWriter(Folder(obstore.store.MemoryStore()), manifest, few)
    writer.create_arrays()
    writer.write_chunk(0, rows, region={})
    sizes = [len(writer.folder.read(key) or b"") for key in writer.folder.list(ROWS)]
    static = [spec for spec in specs.values() if spec.dims[0] != "image"]
    rest = sum(math.prod(s.shape) * np.dtype(s.dtype).itemsize for s in static)
    objects = 3 + len(specs) + chunks * len(few) + len(static)
    return round(sum(sizes) * images / done) + rest, objects


def size(count: int | float) -> str:
    """Bytes in a unit that a person reads."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if unit in ("B", "KiB") else f"{count:,.2f} {unit}"


# Ahead of time, for TPUs that need not be here.

LIBTPU_ENV = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Without these, libtpu looks for this machine's TPUs in the network, and wants them
for one process alone."""


@dataclasses.dataclass(frozen=True)
class TpuEstimate:
    """A step as it was compiled for a TPU topology; fields as those of `Estimate`."""

    recipe: str
    model: str
    topology: str
    device: str
    batch_size: int
    dtype: str
    device_bytes: int
    compile_seconds: float

    def __str__(self) -> str:
        return (
            f"Compiled for {self.device} ({self.topology}), {self.recipe} of "
            f"{self.model} in {self.dtype} and batches of {self.batch_size}: "
            f"{size(self.device_bytes)} of memory on each device "
            f"({self.compile_seconds:.0f} s to compile here). Time and disk need the "
            "devices and data."
        )


def estimate_tpu(
    recipe: str | Recipe,
    model: str | Config | Model,
    *,
    topology: str,
    batch_size: int = 32,
    dtype: Literal["float32", "bfloat16"] = "float32",
    masks: bool = True,
    options: Any = None,
) -> TpuEstimate:
    """Compile a recipe's step for TPUs that need not be here; nothing is run.

    Args:
        recipe: a recipe, or its name.
        model: a model, or what `vitjax.init` takes; its weights are not made.
        topology: JAX's name for the TPUs, kind and shape: "v5e:4x4", "v4:2x2x2".
        batch_size: images per step over all devices; rounded up to a multiple of them.
        dtype: what the model computes in.
        masks: whether the data set has masks, for which a recipe may do more.
        options: of the recipe.

    Raises:
        ValueError: an argument is unknown or out of its range.
        ImportError: libtpu, the compiler for TPUs, is not installed.
        MemoryError: the devices have less memory than the step needs.
    """
    from vitjax.runner.loop import empty_batch, jitted_setup, jitted_step

    recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
    recipe = recipe.with_options(options) if options else recipe
    mesh = find_topology(topology)
    device = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    batch_size = meshes.fit_batch_size(batch_size, mesh)

    def weights():
        made = model if isinstance(model, Model) else init(model)
        return made, made.astype(dtype)

    def place(sharding: Any, tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    whole, split = meshes.replicated(mesh), meshes.batch_sharding(mesh)
    loaded, shapes = jax.eval_shape(weights)
    started = time.perf_counter()
    prepare, step = jitted_setup(recipe, mesh), jitted_step(recipe.run_step, mesh)
    setup = prepare.eval_shape(shapes, seed=0)
    batch = jax.eval_shape(lambda: empty_batch(shapes.config, batch_size, masks=masks))
    arguments = place(whole, shapes), place(split, batch), place(whole, setup.carry)
    try:
        with jax.default_matmul_precision(PRECISION[dtype]):
            preparing = prepare.lower(arguments[0], seed=0).compile()
            stepping = step.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise MemoryError(
            f"The program does not fit {device} ({reason}). Give a smaller "
            "--batch-size, or more devices."
        ) from error
    share = total_bytes(batch) // mesh.size
    peak = peak_bytes(preparing, stepping, batch=share, setup=total_bytes(setup))
    return TpuEstimate(
        recipe=recipe.name,
        model=shapes.provenance.name or "unnamed",
        topology=topology,
        device=device,
        batch_size=batch_size,
        dtype=dtype,
        device_bytes=weight_bytes(loaded, shapes) + peak,
        compile_seconds=time.perf_counter() - started,
    )


def find_topology(name: str) -> Mesh:
    """The devices of a topology as a mesh to compile for."""
    from jax.experimental import topologies

    kind, _, shape = name.partition(":")
    chips: dict[str, Any] = {}
    if kind == "v4":  # else either core of a chip is a device with half its memory
        chips["chip_config_name"] = "megacore"
    if shape in ("1x1", "1x1x1"):  # else four chips to a host
        chips["chips_per_host_bounds"] = (1, 1, 1)
    added = {key: value for key, value in LIBTPU_ENV.items() if key not in os.environ}
    os.environ.update(added)
    try:
        topology = topologies.get_topology_desc(name, platform="tpu", **chips)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        if not reason.startswith(("INVALID_ARGUMENT", "NOT_FOUND")):
            raise
        raise ValueError(
            f"There is no topology {name!r} ({reason}). Name a kind of TPU and its "
            "shape in chips, such as v5e:4x4, v4:2x2x2 or v6e:2x2."
        ) from error
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"Compiling for {name} needs libtpu, JAX's compiler for TPUs, which is not "
            'here: pip install "vitjax[tpu]" on a Linux machine, or set '
            "TPU_LIBRARY_PATH to the file libtpu.so."
        ) from error
    finally:
        for key in added:
            os.environ.pop(key, None)
    return meshes.make_mesh(topology.devices)
