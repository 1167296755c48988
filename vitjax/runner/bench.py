"""What analyses cost on this device, beside a plain forward pass."""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from vitjax.data.batches import batches
from vitjax.data.images import Preprocess
from vitjax.data.sources import open_source
from vitjax.maps.methods import check, explain
from vitjax.maps.relevancy import relevancy
from vitjax.maps.removal import removal_curve
from vitjax.models.model import Model
from vitjax.runner import mesh as meshes
from vitjax.runner.experiments import RECIPES
from vitjax.types import Batch, Config

LONG = 10
"""Plain forward passes; a program that takes more is called twice only."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """One compiled program.

    Args:
        images_per_second: at the median of the repetitions.
        seconds: median of one call.
        compile_seconds: tracing and compiling.
        temporary_bytes: of scratch memory per device, as the compiler planned it.
        peak_bytes: the same with arguments (weights, images) and results.
        device_peak_bytes: what the device's allocator saw at most in this process so
            far, or None where it does not count.
    """

    images_per_second: float
    seconds: float
    compile_seconds: float
    temporary_bytes: int
    peak_bytes: int
    device_peak_bytes: int | None


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A plain forward pass and analyses of the same images, measured in turns.

    Args:
        model: its name.
        batch_size: images per call over all devices.
        dtype: what the model computes in.
        matmul_precision: JAX's name for it.
        device: kind and number.
        repetitions: of each, interleaved.
        forward: class logits only, nothing captured.
        identifiability: ranks and logits of every block, token and stream.
        one_pass: all of sections 5 and 6 of the paper that needs no intervention.
        ratio: seconds of the identifiability step over those of the forward pass,
            medians.
        one_pass_ratio: the same of the other analysis.
        ratio_floor: either ratio in multiplications, with two projections onto the
            classes per block; what a device that only multiplies would reach.
        more: explanation methods by name, and "removal_curve" with every count of
            kept patches; empty unless they were asked for.
        more_ratios: the same in plain forward passes; of "removal_curve" per step.
    """

    model: str
    batch_size: int
    dtype: str
    matmul_precision: str
    device: str
    repetitions: int
    forward: Timing
    identifiability: Timing
    one_pass: Timing
    ratio: float
    one_pass_ratio: float
    ratio_floor: float
    more: dict[str, Timing] = dataclasses.field(default_factory=dict)
    more_ratios: dict[str, float] = dataclasses.field(default_factory=dict)


def bench(
    model: Model,
    *,
    batch_size: int = 32,
    dtype: str = "float32",
    repetitions: int = 7,
    devices: Sequence[Any] | None = None,
    explanations: Sequence[str] = (),
) -> Benchmark:
    """Measure a model on this machine.

    Args:
        model: with weights or random ones; speed does not depend on them.
        batch_size: images per call; rounded up to a multiple of the devices.
        dtype: "float32" or "bfloat16".
        repetitions: calls of each program, in turns; their median counts.
        devices: to measure on; by default all there are.
        explanations: also measure these methods of `explain`, and "removal_curve".
            What takes long is called twice only.

    Returns:
        Images per second, their ratios and the floor, compile time and memory.

    Raises:
        ValueError: an argument is out of its range.
    """
    if repetitions < 1:
        raise ValueError(f"repetitions is {repetitions}; it must be at least 1.")
    precision = meshes.precision_of(dtype)
    mesh = meshes.make_mesh(devices)
    first = mesh.devices.flat[0]
    batch_size = meshes.fit_batch_size(batch_size, mesh)
    recipes = [RECIPES[name] for name in ("identifiability", "one_pass")]
    batch = meshes.shard(noise(model, batch_size), mesh)
    placed = meshes.replicate(model.astype(dtype), mesh)
    sharding = meshes.along_batch(mesh)
    with jax.default_matmul_precision(precision):
        forward = jax.jit(plain_forward, out_shardings=sharding)
        programs = [Program(forward, placed, batch, device=first)]
        for recipe in recipes:
            step = jax.jit(recipe.rows, out_shardings=sharding)
            aux = meshes.replicate(
                jax.jit(recipe.make, static_argnums=1)(placed, 0).aux, mesh
            )
            programs.append(Program(step, placed, batch, aux, device=first))
        for name in explanations:
            function = jax.jit(explanation(name, model.config.patches))
            programs.append(Program(function, placed, batch, device=first))
        for turn in range(repetitions):
            for program in programs:
                if turn < 2 or program.seconds[0] < LONG * programs[0].seconds[0]:
                    program.measure()
    timings = [program.timing(batch_size) for program in programs]
    plain, identifiability, one_pass = timings[:3]
    more = dict(zip(explanations, timings[3:]))
    steps = {"removal_curve": model.config.patches}
    return Benchmark(
        model=model.provenance.name or "unnamed",
        batch_size=batch_size,
        dtype=dtype,
        matmul_precision=precision,
        device=f"{mesh.size} x {first.device_kind}",
        repetitions=repetitions,
        forward=plain,
        identifiability=identifiability,
        one_pass=one_pass,
        ratio=identifiability.seconds / plain.seconds,
        one_pass_ratio=one_pass.seconds / plain.seconds,
        ratio_floor=ratio_floor(model.config, classes=model.num_classes),
        more=more,
        more_ratios={
            name: timing.seconds / plain.seconds / steps.get(name, 1)
            for name, timing in more.items()
        },
    )


def explanation(name: str, patches: int) -> Callable[[Model, Batch], Any]:
    """A method of `explain`, or a removal curve of all counts, as a program.

    Args:
        name: of the method, or "removal_curve".
        patches: of the model.
    """
    if name == "removal_curve":
        counts = tuple(range(1, patches + 1))
        return lambda model, batch: removal_curve(
            *(model, batch.images, batch.label),
            jax.random.uniform(jax.random.key(0), (len(batch.label), patches)),
            keep_counts=counts,
        )
    check(name)
    # Every block and head by itself: what relevancy gives.
    if name == "relevancy":
        return lambda model, batch: relevancy(model, batch.images, batch.label)
    return lambda model, batch: explain(
        *(model, batch.images, batch.label),
        method=name,  # pyright: ignore
    )


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """How fast the host decodes and preprocesses.

    Args:
        data: the data set's id.
        images: that were read.
        threads: that read; of each worker one.
        workers: processes, 0 for threads of this one.
        images_per_second: at the median time between batches.
    """

    data: str
    images: int
    threads: int
    workers: int
    images_per_second: float


def bench_data(
    data: Any,
    model: Model,
    *,
    batch_size: int = 32,
    images: int = 512,
    workers: int = 0,
) -> Pipeline:
    """Measure reading, decoding and preprocessing alone, without any model pass.

    Args:
        data: what `open_source` takes.
        model: whose preprocessing counts.
        batch_size: images per batch.
        images: how many to read at most, from the first.
        workers: processes that decode; 0 for threads.

    Returns:
        Images per second once threads or workers run, and how they were read.

    Raises:
        ValueError: the data set cannot be opened, or is too short for a measurement.
    """
    source = open_source(data, classes=model.classes, class_ids=model.class_ids)
    stop = min(images, len(source))
    least = 2 * batch_size * max(1, workers)
    if stop < least:
        raise ValueError(
            f"{source!r} gives {stop} images; a measurement needs {least}, two batches "
            f"of {batch_size} from each process. Give a smaller --batch-size."
        )
    threads = min(16, os.cpu_count() or 1)
    arrived: list[float] = []
    for _ in batches(
        source,
        preprocess=model.preprocess or Preprocess(*model.config.shape),
        batch_size=batch_size,
        stop=stop,
        config=model.config,
        on_error="skip",
        threads=threads,
        workers=workers,
    ):
        arrived.append(time.perf_counter())
    return Pipeline(
        data=source.id,
        images=stop,
        threads=1 if workers else threads,
        workers=workers,
        images_per_second=median_rate(arrived, batch_size, together=max(1, workers)),
    )


def median_rate(arrived: Sequence[float], batch_size: int, *, together: int) -> float:
    """Images per second at the median time between batches, after the first few.

    Args:
        arrived: when each batch came, in seconds.
        batch_size: images per batch.
        together: batches that come at once, one from each process.
    """
    laps = np.diff(np.asarray(arrived)[:: max(1, together)])
    return together * batch_size / float(np.median(laps[len(laps) // 4 :]))


def plain_forward(model: Model, batch: Batch) -> Float[Array, "batch class"]:
    """Class logits straight from the Linen module."""
    images = model.check_images(batch.images)
    logits: Any = model.module.apply({"params": model.params}, images)
    return logits


class Program:
    """A compiled function and what its calls took.

    Args:
        function: jitted; called once more than it is measured.
        arguments: what to call it with.
        device: whose memory to watch.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, device: Any):
        start = time.perf_counter()
        self.compiled = function.lower(*arguments).compile()  # pyright: ignore
        self.compile_seconds = time.perf_counter() - start
        self.arguments = arguments
        self.seconds: list[float] = []
        jax.block_until_ready(self.compiled(*arguments))
        self.device_peak_bytes = peak_bytes(device)

    def measure(self) -> None:
        """Call it once and keep the time."""
        start = time.perf_counter()
        jax.block_until_ready(self.compiled(*self.arguments))
        self.seconds.append(time.perf_counter() - start)

    def timing(self, images: int) -> Timing:
        """What the calls so far say."""
        seconds = statistics.median(self.seconds)
        memory = self.compiled.memory_analysis()
        return Timing(
            images_per_second=images / seconds,
            seconds=seconds,
            compile_seconds=self.compile_seconds,
            temporary_bytes=memory.temp_size_in_bytes,
            peak_bytes=memory.temp_size_in_bytes
            + memory.argument_size_in_bytes
            + memory.output_size_in_bytes,
            device_peak_bytes=self.device_peak_bytes,
        )


def noise(model: Model, batch_size: int) -> Batch:
    """A batch of random pictures and labels."""
    rng = np.random.default_rng(0)
    shape = (batch_size, *model.config.shape, 3)
    return Batch(
        images=rng.standard_normal(shape, np.float32),
        label=rng.integers(model.num_classes, size=batch_size).astype(np.int32),
        valid=np.ones(batch_size, bool),
        index=np.arange(batch_size, dtype=np.int32),
    )


def peak_bytes(device: Any) -> int | None:
    """Peak of a device's allocator; None on backends that do not count."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def forward_multiplications(config: Config, *, classes: int) -> int:
    """Multiplications in the matrix products of one image's forward pass.

    Args:
        config: the architecture.
        classes: rows of the head.

    Returns:
        Patch embedding, every block's projections, attention and MLP, and the head.
    """
    tokens, dim = config.tokens, config.dim
    embed = config.patches * 3 * config.patch_size**2 * dim
    projections = tokens * dim * (4 * dim + 2 * config.mlp_dim)
    attention = 2 * tokens**2 * dim
    return embed + config.depth * (projections + attention) + dim * classes


def ratio_floor(config: Config, *, classes: int) -> float:
    """Multiplications of an analysis of all streams over those of a forward pass.

    Class logits are linear in the stream before the LayerNorm's division, so that each
    block needs two projections for its three streams, and block 0 one for its input.

    Args:
        config: the architecture.
        classes: rows of the head.

    Returns:
        Above 1.
    """
    projection = config.tokens * config.dim * classes
    added = (2 * config.depth + 1) * projection
    return 1 + added / forward_multiplications(config, classes=classes)
