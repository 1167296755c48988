"""What analyses cost on this device, beside a plain forward pass."""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from vitjax.benchmark import reference_vits
from vitjax.benchmark.macs import ratio_floor
from vitjax.benchmark.programs import Eager, Program, Timing
from vitjax.models.model import Model
from vitjax.recipes.registry import find_recipe
from vitjax.runner import mesh as meshes
from vitjax.saliency.methods import check_method, explain
from vitjax.saliency.relevancy import relevancy
from vitjax.saliency.removal import removal_curve
from vitjax.types import Batch

LONG = 10
"""Plain forward passes; a program that takes more is called twice only."""

ANALYSES = ("identifiability", "one_pass")
OTHERS = ("flax.linen", "timm")
UNSPLIT = ("relevancy", "removal_curve")
"""Whose results do not begin with the axis of images."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A plain forward pass and analyses of the same images, measured in turns.

    Args:
        model: its name.
        batch_size: images per call over all devices.
        dtype: what the model computes in.
        matmul_precision: JAX's name for it.
        device: kind and number.
        versions: of JAX and what is compared with.
        repetitions: of each, interleaved.
        forward: class logits only, nothing captured.
        identifiability: ranks and logits of every block, token and stream.
        one_pass: all of sections 5 and 6 of the paper that needs no intervention.
        ratio: seconds of the identifiability step over those of the forward pass,
            medians.
        one_pass_ratio: the same of the other analysis.
        ratio_floor: either ratio in multiplications, with two projections onto the
            classes per block; what a device that only multiplies would reach.
        more: what else was asked for, by name: other recipes, explanation methods,
            "removal_curve" with every count of kept patches, "flax.linen", "timm".
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
    """Measure a model on this machine.

    Args:
        model: with weights or random ones; speed does not depend on them.
        batch_size: images per call; rounded up to a multiple of the devices.
        dtype: "float32" or "bfloat16".
        repetitions: calls of each program, in turns; their median counts.
        devices: to measure on; by default all there are.
        explanations: also measure these methods of `explain`, and "removal_curve".
            What takes long is called twice only.
        recipes: also measure the steps of these recipes.
        against: also measure the plain forward pass as others build it: "flax.linen" of
            its own layers, "timm" in PyTorch on the CPU. Plain ViTs only.

    Returns:
        Images per second, their ratios and the floor, compile time and memory.

    Raises:
        ValueError: an argument is out of its range.
        ImportError: timm is asked for and not installed.
    """
    if repetitions < 1:
        raise ValueError(f"repetitions is {repetitions}; it must be at least 1.")
    check_others(against, model, dtype)
    precision = meshes.precision_of(dtype)
    mesh = meshes.make_mesh(devices)
    batch_size = meshes.fit_batch_size(batch_size, mesh)
    asked = [*ANALYSES, *(name for name in recipes if name not in ANALYSES)]
    with jax.default_matmul_precision(precision):
        functions = callables(model.astype(dtype), mesh, asked, explanations)
        programs = compile_all(functions, model, mesh, batch_size)
        programs |= others(against, model.astype(dtype), mesh, batch_size)
        measure(programs, repetitions)
    steps = {"removal_curve": model.config.patches}
    plain = programs["forward"]
    timings = {
        name: program.timing(batch_size, plain, steps.get(name, 1))
        for name, program in programs.items()
    }
    first = {name: timings.pop(name) for name in ("forward", *ANALYSES)}
    return Benchmark(
        model=model.provenance.name or "unnamed",
        batch_size=batch_size,
        dtype=dtype,
        matmul_precision=precision,
        device=f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        versions=versions(against),
        repetitions=repetitions,
        **first,
        ratio=first["identifiability"].passes,
        one_pass_ratio=first["one_pass"].passes,
        ratio_floor=ratio_floor(model.config, classes=model.num_classes),
        more=timings,
    )


def callables(
    model: Model, mesh: Mesh, recipes: Sequence[str], explanations: Sequence[str]
) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """What is measured: name to function and what it takes besides the batch."""
    placed = meshes.replicate(model, mesh)
    found: dict[str, Any] = {"forward": (plain_forward, (placed,))}
    for name in recipes:
        recipe = find_recipe(name)
        aux = jax.jit(recipe.make, static_argnums=1)(placed, 0).aux
        step = meshes.on_each_device(recipe.rows, mesh)  # as a run takes it
        found[name] = last(step), (placed, meshes.replicate(aux, mesh))
    for name in explanations:
        found[name] = explanation(name, model.config.patches), (placed,)
    return found


def last(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of (model, batch, aux), with the batch last."""
    return lambda model, aux, batch: function(model, batch, aux)


def compile_all(functions, model: Model, mesh: Mesh, batch_size: int):
    """Every function as a compiled program of one and the same batch."""
    batch = meshes.shard(noise(model, batch_size), mesh)
    device = mesh.devices.flat[0]
    sharding = meshes.along_batch(mesh)
    programs: dict[str, Any] = {}
    for name, (function, arguments) in functions.items():
        given = jax.jit(function, out_shardings=None if name in UNSPLIT else sharding)
        programs[name] = Program(given, *arguments, batch, device=device)
    return programs


def others(against: Sequence[str], model: Model, mesh: Mesh, batch_size: int):
    """The same forward pass as others build it."""
    found: dict[str, Any] = {}
    if "flax.linen" in against:
        forward, params = reference_vits.linen_forward(model)
        functions = {"flax.linen": (forward, (meshes.replicate(params, mesh),))}
        found |= compile_all(functions, model, mesh, batch_size)
    if "timm" in against:
        forward = reference_vits.timm_forward(
            model.config, classes=model.num_classes, batch_size=batch_size
        )
        found["timm"] = Eager(forward)
    return found


def check_others(against: Sequence[str], model: Model, dtype: str) -> None:
    """Refuse comparisons that would not compare."""
    if unknown := [name for name in against if name not in OTHERS]:
        raise ValueError(f"against={unknown} must be out of {', '.join(OTHERS)}.")
    if against and not reference_vits.is_plain(model.config):
        raise ValueError(
            "Others build plain ViTs only: with [CLS], pre-norm, without registers, "
            "LayerScale and refinement modules."
        )
    if "timm" in against and dtype != "float32":
        raise ValueError("timm is measured in float32.")


def measure(programs: dict[str, Any], repetitions: int) -> None:
    """Call all programs in turns; those that take long twice only."""
    for turn in range(repetitions):
        for program in programs.values():
            slow = turn >= 2 and program.seconds[0] >= LONG * first_seconds(programs)
            if not slow:
                program.measure()


def first_seconds(programs: dict[str, Any]) -> float:
    """What the first forward pass took."""
    return programs["forward"].seconds[0]


def versions(against: Sequence[str]) -> dict[str, str]:
    """Of JAX, and of what is compared with."""
    names = ["jax", "jaxlib", "flax"] + ["torch", "timm"] * ("timm" in against)
    return {name: importlib.metadata.version(name) for name in names}


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
    check_method(name)
    # Every block and head by itself: what relevancy gives.
    if name == "relevancy":
        return lambda model, batch: relevancy(model, batch.images, batch.label)
    return lambda model, batch: explain(
        *(model, batch.images, batch.label),
        method=name,  # pyright: ignore
    )


def plain_forward(model: Model, batch: Batch) -> Float[Array, "batch class"]:
    """Class logits straight from the Linen module."""
    images = model.check_images(batch.images)
    logits: Any = model.module.apply({"params": model.params}, images)
    return logits


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
