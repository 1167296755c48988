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
from vitjax.runner.options import PRECISION
from vitjax.saliency.methods import METHODS, explain
from vitjax.saliency.relevancy import relevancy
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
    the device's allocator saw in this process. None is what was not counted.
    """

    images_per_second: float
    seconds: float
    passes: float
    floor: float | None = None
    compile_seconds: float | None = None
    temporary_bytes: int | None = None
    peak_bytes: int | None = None
    device_peak_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A plain forward pass and analyses of the same images, measured in turns.

    `ratio` and `one_pass_ratio` are the relative costs of the steps `identifiability`
    and `one_pass`; `ratio_floor` is the MAC ratio of the former, which projects onto
    the classes twice per block. `more` holds other programs by name.
    """

    model: str
    batch_size: int
    dtype: str
    matmul_precision: str
    device: str
    versions: dict[str, str]
    repetitions: int
    forward: Timing
    identifiability: Timing
    one_pass: Timing
    ratio: float
    one_pass_ratio: float
    ratio_floor: float
    more: dict[str, Timing] = dataclasses.field(default_factory=dict)

    @property
    def programs(self) -> dict[str, Timing]:
        """Every program by name."""
        first = {name: getattr(self, name) for name in ("forward", *ANALYSES)}
        return first | self.more


@dataclasses.dataclass
class Program:
    """A function to call, what is known of it, and how long its calls took."""

    call: Callable[[], Any]
    macs: int | None = None
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
    forward pass of its own layers, and "timm" in PyTorch on the CPU. The batch size is
    over all devices and rounded up to a multiple of them.
    """
    check_range("repetitions", repetitions, 1)
    for name in against:
        check_one_of("against", name, ("flax.linen", "timm"))
    for name in explanations:
        check_one_of("method", name, (*METHODS, "removal_curve"))
    for name in recipes:
        if find_recipe(name).step is None:
            raise ValueError(
                f"recipes={name!r} has several passes, no step to measure."
            )
    if against and not reference_vits.is_plain(model.config):
        raise ValueError(
            "Others build plain ViTs only: with [CLS], pre-norm, without registers, "
            "LayerScale and refinement modules."
        )
    if "timm" in against and dtype != "float32":
        raise ValueError(f"dtype={dtype!r}: timm is measured in float32.")
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
            images_first = name not in ("relevancy", "removal_curve")
            programs[name] = compile_program(
                function, placed, batch, mesh=mesh, images_first=images_first
            )
        if "flax.linen" in against:
            forward, params = reference_vits.linen_forward(placed)
            programs["flax.linen"] = compile_program(forward, params, batch, mesh=mesh)
        if "timm" in against:
            forward = reference_vits.timm_forward(
                model.config, classes=model.num_classes, batch_size=batch_size
            )
            programs["timm"] = Program(forward)
            forward()
        measure(programs, repetitions)
    plain = programs["forward"]
    timings = {}
    for name, program in programs.items():
        seconds = statistics.median(program.seconds)
        counts = model.config.patches if name == "removal_curve" else 1
        macs = program.macs and program.macs / (plain.macs or 1)
        timings[name] = Timing(
            images_per_second=batch_size / seconds,
            seconds=seconds,
            passes=seconds / statistics.median(plain.seconds) / counts,
            floor=macs and macs / counts,
            **program.costs,
        )
    first = {name: timings.pop(name) for name in ("forward", *ANALYSES)}
    packages = ["jax", "jaxlib", "flax"] + ["torch", "timm"] * ("timm" in against)
    return Benchmark(
        model=model.provenance.name or "unnamed",
        batch_size=batch_size,
        dtype=dtype,
        matmul_precision=PRECISION[dtype],
        device=f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        versions={name: importlib.metadata.version(name) for name in packages},
        repetitions=repetitions,
        **first,
        ratio=first["identifiability"].passes,
        one_pass_ratio=first["one_pass"].passes,
        ratio_floor=first["identifiability"].floor,
        more=timings,
    )


def compile_program(
    function: Callable[..., Any], *arguments: Any, mesh: Mesh, images_first: bool = True
) -> Program:
    """Compile a function, call it once, and note what the compiler planned."""
    sharding = meshes.batch_sharding(mesh) if images_first else None
    macs = count_macs(function, *arguments)
    start = time.perf_counter()
    jitted = jax.jit(function, out_shardings=sharding)
    compiled = jitted.lower(*arguments).compile()
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


def explanation(name: str, patches: int) -> Callable[[Model, Batch], Any]:
    """A method of `explain`, or a removal curve of all counts, as a program."""

    def curve(model, batch):
        order = jax.random.uniform(jax.random.key(0), (len(batch.label), patches))
        counts = tuple(range(1, patches + 1))
        return removal_curve(
            model, batch.images, batch.label, order, keep_counts=counts
        )

    def every_head(model, batch):  # what relevancy gives before it is summed
        return relevancy(model, batch.images, batch.label)

    def summed(model, batch):
        return explain(model, batch.images, batch.label, method=name)  # pyright: ignore

    return {"removal_curve": curve, "relevancy": every_head}.get(name, summed)


def plain_forward(model: Model, batch: Batch) -> Float[Array, "batch class"]:
    """Class logits straight from the Linen module."""
    images = model.check_images(batch.images)
    logits: Any = model.module.apply({"params": model.params}, images)
    return logits


def noise(model: Model, batch_size: int) -> Batch:
    """A batch of random images and labels."""
    rng = np.random.default_rng(0)
    shape = (batch_size, *model.config.shape, 3)
    return Batch(
        images=rng.standard_normal(shape, np.float32),
        label=rng.integers(model.num_classes, size=batch_size).astype(np.int32),
        valid=np.ones(batch_size, bool),
        index=np.arange(batch_size, dtype=np.int32),
    )
