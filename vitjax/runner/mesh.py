"""The devices of this process: batches are split over them, parameters replicated.

Nothing crosses processes: each computes on its own devices only.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")


def make_mesh(devices: Any = None) -> Mesh:
    """Devices along one axis, `batch`; by default all of this process."""
    return Mesh(
        np.asarray(jax.local_devices() if devices is None else devices), ("batch",)
    )


def fit_batch_size(batch_size: int, mesh: Mesh) -> int:
    """The batch size rounded up to a multiple of the devices."""
    return -(-batch_size // mesh.size) * mesh.size


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("batch"))


def replicated(mesh: Mesh) -> NamedSharding:
    """All of an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """A copy of every array on every device."""
    return jax.device_put(tree, replicated(mesh))


def shard(tree: Tree, mesh: Mesh) -> Tree:
    """Arrays with a leading batch axis, split over the devices."""
    return jax.device_put(tree, batch_sharding(mesh))


def data_parallel(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A `step(model, batch, carry)` that every device takes on its own images.

    Left to split the program by itself, XLA gathers the states of all images on every
    device wherever it meets a `top_k`.
    """
    batch, whole = PartitionSpec("batch"), PartitionSpec()
    return jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(whole, batch, whole),
        out_specs=batch,
        check_vma=False,
    )
