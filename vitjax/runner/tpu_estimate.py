"""What TPUs that are not here would need: a step, compiled for them on any machine.

JAX's compiler for TPUs is a library of its own, `libtpu`, which runs without any.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from vitjax.checkpoints.loading import init
from vitjax.models.model import Model
from vitjax.recipes.recipe import Recipe
from vitjax.recipes.registry import find_recipe
from vitjax.runner import mesh as meshes
from vitjax.runner.estimate import at_peak, size, total_bytes, weight_bytes
from vitjax.runner.job import blank_batch, compiled, preparation
from vitjax.types import Batch, Config

EXAMPLE = "v5e:4x4"
ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Without these, the library looks for this machine's TPUs in the network, and wants
them for one process alone.
"""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A step as it was compiled for a topology.

    Args:
        recipe: its name.
        model: its name.
        topology: as it was asked for.
        device: number and kind.
        batch_size: images per step over all devices.
        dtype: what the model computes in.
        device_bytes: of memory on each device at the peak, as `Estimate` has it.
        compile_seconds: tracing and compiling here.
    """

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


def plan(
    recipe: str | Recipe,
    model: str | Config | Model,
    *,
    topology: str,
    batch_size: int = 32,
    dtype: Literal["float32", "bfloat16"] = "float32",
    masks: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Plan:
    """Compile a recipe's step for TPUs that are not here; nothing is run.

    Args:
        recipe: a recipe, or its name.
        model: a model, or what `vitjax.init` takes; its weights are not made.
        topology: JAX's name for the TPUs, kind and shape: "v5e:4x4", "v4:2x2x2".
        batch_size: images per step over all devices; rounded up to a multiple of them.
        dtype: what the model computes in.
        masks: whether the data set has masks, for which a recipe may do more.
        options: of the recipe.

    Returns:
        The compiler's plan.

    Raises:
        ValueError: an argument is unknown or out of its range.
        ImportError: there is no compiler for TPUs here.
        MemoryError: the devices have less memory than the step needs.
    """
    recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
    recipe = recipe.asked(options) if options else recipe
    precision = meshes.precision_of(dtype)
    mesh = find_topology(topology)
    batch_size = meshes.fit_batch_size(batch_size, mesh)

    def weights():
        made = model if isinstance(model, Model) else init(model)
        return made, made.astype(dtype)

    loaded, shapes = jax.eval_shape(weights)
    started = time.perf_counter()
    with jax.default_matmul_precision(precision):
        lying, batch, aux = placed(recipe, shapes, mesh, batch_size, masks)
        preparing = compile_for(mesh, preparation(recipe, mesh), lying, seed=0)
        stepping = compile_for(mesh, compiled(recipe, mesh), lying, batch, aux)
    held, prepared = total_bytes(batch) // mesh.size, total_bytes(aux)
    peak = at_peak(preparing, stepping, batch=held, prepared=prepared)
    return Plan(
        recipe=recipe.name,
        model=shapes.provenance.name or "unnamed",
        topology=topology,
        device=f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        batch_size=batch_size,
        dtype=dtype,
        device_bytes=weight_bytes(loaded, shapes) + peak,
        compile_seconds=time.perf_counter() - started,
    )


def find_topology(name: str) -> Mesh:
    """The devices of a topology as a mesh to compile for.

    Args:
        name: JAX's name for it.

    Raises:
        ValueError: there is no such topology.
        ImportError: there is no compiler for TPUs here.
    """
    from jax.experimental import topologies

    try:
        with surroundings(ALONE):
            chips = chip_options(name)
            found = topologies.get_topology_desc(name, platform="tpu", **chips)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        if not reason.startswith(("INVALID_ARGUMENT", "NOT_FOUND")):
            raise
        raise ValueError(
            f"There is no topology {name!r} ({reason}). Name a kind of TPU and its "
            f"shape in chips, such as {EXAMPLE}, v4:2x2x2 or v6e:2x2."
        ) from error
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"Compiling for {name} needs libtpu, JAX's compiler for TPUs, which is not "
            'here: pip install "vitjax[tpu]" on a Linux machine, or set '
            "TPU_LIBRARY_PATH to the file libtpu.so."
        ) from error
    return meshes.make_mesh(found.devices)


def chip_options(name: str) -> dict[str, Any]:
    """What a topology's name leaves open, as JAX has it where the TPUs are.

    Args:
        name: of the topology.
    """
    kind, _, shape = name.partition(":")
    options: dict[str, Any] = {}
    if kind == "v4":  # else either core of a chip is a device with half its memory
        options["chip_config_name"] = "megacore"
    if shape in ("1x1", "1x1x1"):  # else four chips to a host
        options["chips_per_host_bounds"] = (1, 1, 1)
    return options


@contextlib.contextmanager
def surroundings(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables, for a while; those that are set stay as they are."""
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def placed(
    recipe: Recipe, model: Model, mesh: Mesh, batch_size: int, masks: bool
) -> tuple[Model, Batch, Any]:
    """What a step is called with, as shapes that know where they lie."""
    split, whole = meshes.along_batch(mesh), meshes.everywhere(mesh)

    def blank():
        return blank_batch(model.config, batch_size, index=0, masks=masks)

    def lying(sharding, tree):
        def place(leaf):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(place, tree)

    aux = jax.eval_shape(lambda model: recipe.make(model, 0).aux, model)
    batch = jax.eval_shape(blank)
    return lying(whole, model), lying(split, batch), lying(whole, aux)


def compile_for(mesh: Mesh, step: Any, *arguments: Any, **options: Any) -> Any:
    """A jitted function compiled for a mesh of devices.

    Raises:
        MemoryError: they have too little memory.
    """
    try:
        return step.lower(*arguments, **options).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise MemoryError(
            "The program does not fit "
            f"{mesh.size} x {mesh.devices.flat[0].device_kind} ({reason}). Give a "
            "smaller --batch-size, or more devices."
        ) from error
