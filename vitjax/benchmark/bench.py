"""Benchmark of analyses on this device, relative to a plain forward pass."""

import dataclasses
import importlib.metadata
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from vitjax.benchmark import reference_vits
from vitjax.benchmark.macs import count_macs
from vitjax.messages import check_one_of, check_range
from vitjax.models.model import Model
from vitjax.recipes.registry import find_recipe
from vitjax.runner import mesh as meshes
from vitjax.runner.options import PRECISION, RunOptions
from vitjax.saliency.methods import METHODS, explain
from vitjax.saliency.removal import removal_curve
from vitjax.types import Batch

SLOW = 10
"""Forward passes; a program that takes more is called twice only."""

ANALYSES = ("identifiability", "one_pass")


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one program costs: medians of its calls, bytes per device.

    `passes` is the relative cost: seconds over those of a plain forward pass of the
    same images. `floor` is the same in multiply-accumulates (MACs), which a device that
    does nothing else would reach. Both are per count of kept patches of
    "removal_curve". `temporary_bytes` is scratch memory as the compiler planned it,
    `peak_bytes` the same with arguments and results, `device_peak_bytes` the most that
    the device's allocator saw in this process, None where it does not count.
    """

    images_per_second: float
    seconds: float
    passes: float
    floor: float
    compile_seconds: float
    temporary_bytes: int
    peak_bytes: int
    device_peak_bytes: int | None


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A plain forward pass and analyses of the same images, measured in turns."""

    model: str
    batch_size: int
    dtype: str
    matmul_precision: str
    device: str
    versions: dict[str, str]
    repetitions: int
    programs: dict[str, Timing]


@dataclasses.dataclass
class Program:
    """A function to call, what is known of it, and how long its calls took."""

    call: Callable[[], Any]
    macs: int = 0
    costs: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: list[float] = dataclasses.field(default_factory=list)


def bench(
    model: Model,
    *,
    batch_size: int = 32,
    dtype: str = "float32",
    repetitions: int = 7,
    devices: Sequence[Any] | None = None,
    explanations: Sequence[str] = (),
    recipes: Sequence[str] = (),
    against: Sequence[str] = (),
) -> Benchmark:
    """Measure a model, with weights or random ones, which are as fast.

    Programs are called in turns, those that take long twice only. `explanations` may
    hold "removal_curve", of every count of kept patches; `against` "flax.linen", the
    forward pass of its own layers. The batch size is over all devices and rounded up to
    a multiple of them.
    """
    check_range("repetitions", repetitions, 1)
    if "timm" in against:
        raise ValueError("against='timm' is gone: measure timm in PyTorch itself.")
    for name in against:
        check_one_of("against", name, ("flax.linen",))
    for name in explanations:
        check_one_of("method", name, (*METHODS, "removal_curve"))
    for name in recipes:
        if find_recipe(name).passes is not None:
            raise ValueError(
                f"recipes={name!r} has several passes, no step to measure."
            )
    if against and not reference_vits.is_plain(model.config):
        raise ValueError(
            "flax.linen has layers of plain ViTs only: with [CLS], pre-norm, without "
            "registers, LayerScale and refinement modules."
        )
    mesh = meshes.make_mesh(devices)
    batch_size = meshes.fit_batch_size(batch_size, mesh)
    batch = meshes.shard(noise(model, batch_size), mesh)
    with jax.default_matmul_precision(PRECISION[dtype]):
        placed = meshes.replicate(model.astype(dtype), mesh)
        programs = {"forward": compile_program(plain_forward, placed, batch, mesh=mesh)}
        for name in dict.fromkeys((*ANALYSES, *recipes)):
            programs[name] = recipe_program(name, placed, batch, mesh)
        for name in explanations:
            function = explanation(name, model.config.patches)
            programs[name] = compile_program(function, placed, batch, mesh=mesh)
        if "flax.linen" in against:
            forward, params = reference_vits.linen_forward(placed)
            programs["flax.linen"] = compile_program(forward, params, batch, mesh=mesh)
        measure(programs, repetitions)
    plain = programs["forward"]
    timings = {}
    for name, program in programs.items():
        seconds = statistics.median(program.seconds)
        counts = model.config.patches if name == "removal_curve" else 1
        timings[name] = Timing(
            images_per_second=batch_size / seconds,
            seconds=seconds,
            passes=seconds / statistics.median(plain.seconds) / counts,
            floor=program.macs / plain.macs / counts,
            **program.costs,
        )
    packages = "jax", "jaxlib", "flax"
    return Benchmark(
        model=model.provenance.name or "unnamed",
        batch_size=batch_size,
        dtype=dtype,
        matmul_precision=PRECISION[dtype],
        device=f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        versions={name: importlib.metadata.version(name) for name in packages},
        repetitions=repetitions,
        programs=timings,
    )


def compile_program(
    function: Callable[..., Any], *arguments: Any, mesh: Mesh
) -> Program:
    """Compile a function, call it once, and note what the compiler planned."""
    macs = count_macs(function, *arguments)
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(compiled(*arguments))
    memory: Any = compiled.memory_analysis()
    allocator = mesh.devices.flat[0].memory_stats() or {}
    costs = {
        "compile_seconds": compile_seconds,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes,
        "device_peak_bytes": allocator.get("peak_bytes_in_use"),
    }
    return Program(lambda: compiled(*arguments), macs, costs)


def recipe_program(name: str, model: Model, batch: Batch, mesh: Mesh) -> Program:
    """The step of a recipe, as a run takes it."""
    recipe = find_recipe(name)
    carry = jax.jit(recipe.run_setup, static_argnums=1)(model, 0).carry
    step = meshes.data_parallel(recipe.run_step, mesh)
    return compile_program(step, model, batch, meshes.replicate(carry, mesh), mesh=mesh)


def measure(programs: dict[str, Program], repetitions: int) -> None:
    """Call all programs in turns; slow ones twice only."""
    for turn in range(repetitions):
        for program in programs.values():
            limit = SLOW * programs["forward"].seconds[0] if turn >= 2 else math.inf
            if not program.seconds or program.seconds[0] < limit:
                start = time.perf_counter()
                jax.block_until_ready(program.call())
                program.seconds.append(time.perf_counter() - start)


def measure_input(
    data: Any, model: Model, *, batch_size: int, workers: int = 0
) -> dict[str, Any]:
    """How fast the host reads, decodes and preprocesses images, as for a run."""
    from vitjax.runner.loop import make_job  # which imports Zarr

    options = RunOptions(
        batch_size=batch_size, limit=512, on_error="skip", workers=workers
    )
    job = make_job("identifiability", model, data, options=options)
    processes = max(1, workers)
    least = 2 * batch_size * processes
    if job.images < least:
        raise ValueError(
            f"{job.source.id} gives {job.images} images; a measurement needs {least}, "
            f"two batches of {batch_size} from each process: a smaller --batch-size?"
        )
    loaded = job.load(job.source, 0, job.images, masks=job.has_masks)
    arrivals = [time.perf_counter() for _ in loaded]
    # Workers hand over a batch each at once; the first of each also starts it.
    first = processes * (len(arrivals) // (4 * processes))
    images = job.batch_size * (len(arrivals) - 1 - first)
    return {
        "data": job.source.id,
        "images": job.images,
        "workers": workers,
        "images_per_second": images / (arrivals[-1] - arrivals[first]),
    }


def explanation(name: str, patches: int) -> Callable[[Model, Batch], Any]:
    """A method of `explain`, or a removal curve of all counts, as a program."""

    def curve(model, batch):
        order = jax.random.uniform(jax.random.key(0), (len(batch.label), patches))
        counts = tuple(range(1, patches + 1))
        return removal_curve(
            model, batch.images, batch.label, order, keep_counts=counts
        )

    def explained(model, batch):
        return explain(model, batch.images, batch.label, method=name)  # pyright: ignore

    return curve if name == "removal_curve" else explained


def plain_forward(model: Model, batch: Batch) -> Float[Array, "batch class"]:
    """Class logits straight from the Linen module."""
    images = model.check_images(batch.images)
    logits: Any = model.module.apply({"params": model.params}, images)
    return logits


def noise(model: Model, batch_size: int) -> Batch:
    """A batch of random images and labels."""
    rng = np.random.default_rng(0)
    shape = (batch_size, *model.config.shape, model.config.channels)
    return Batch(
        images=rng.standard_normal(shape, np.float32),
        label=rng.integers(model.num_classes, size=batch_size).astype(np.int32),
        valid=np.ones(batch_size, bool),
        index=np.arange(batch_size, dtype=np.int32),
    )
