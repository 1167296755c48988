"""Where a batch lives: devices, shardings, precision, local and global arrays."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")

PRECISION = {"float32": "highest", "bfloat16": "default"}
"""Matmul precision by dtype. JAX's own default rounds float32 factors to TF32 on GPUs
and to bfloat16 on TPUs, which moves ranks."""


def make_mesh(devices: Any = None) -> Mesh:
    """All devices of all processes along one axis, `batch`, process after process.

    Args:
        devices: which ones; by default all there are.

    Returns:
        A mesh; batches are split along it, parameters repeated.
    """
    devices = jax.devices() if devices is None else devices
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(ordered), ("batch",))


def fit_batch_size(batch_size: int, mesh: Mesh) -> int:
    """The batch size rounded up to a multiple of the devices.

    Args:
        batch_size: images per step over all devices, at least 1.
        mesh: the devices.

    Returns:
        The smallest multiple that is not below it.

    Raises:
        ValueError: it is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
    return -(-batch_size // mesh.size) * mesh.size


def share_of(batch_size: int, mesh: Mesh) -> int:
    """How many images of a batch are this process's: as its part of the devices.

    Args:
        batch_size: images per step over all devices, a multiple of them.
        mesh: the devices.
    """
    return batch_size // mesh.size * len(mesh.local_devices)


def precision_of(dtype: str) -> str:
    """The matmul precision that goes with a dtype.

    Raises:
        ValueError: the dtype is not one that runs offer.
    """
    if dtype not in PRECISION:
        raise ValueError(f"dtype is {dtype!r}; choose one of {tuple(PRECISION)}.")
    return PRECISION[dtype]


def along_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("batch"))


def everywhere(mesh: Mesh) -> NamedSharding:
    """All of an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """A copy of every array on every device.

    Args:
        tree: arrays, equal in all processes.
        mesh: the devices.
    """
    sharding = everywhere(mesh)
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def place(array: Any) -> jax.Array:  # device_put would have processes compare it
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda i: host[i])

    return jax.tree.map(place, tree)


def on_each_device(
    step: Callable[[Any, Any, Any], Any], mesh: Mesh
) -> Callable[[Any, Any, Any], Any]:
    """A step that every device takes on its own images, without a word to the others.

    Left to split the program by itself, XLA gathers the states of all images on every
    device wherever it meets a `top_k`.

    Args:
        step: of a model, a batch and what every step is handed; its results have a
            leading batch axis, and an image's do not depend on the others.
        mesh: the devices.
    """
    batch, whole = PartitionSpec("batch"), PartitionSpec()
    return jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(whole, batch, whole),
        out_specs=batch,
        check_vma=False,
    )


def shard(tree: Tree, mesh: Mesh) -> Tree:
    """Global arrays from this process's share of a batch.

    Args:
        tree: numpy arrays with a leading batch axis, `share_of` the batch long.
        mesh: the devices.

    Returns:
        The same tree of arrays, split along the batch.
    """
    sharding = along_batch(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def fetch(tree: Any) -> Any:
    """The share of global arrays that this process holds; the inverse of `shard`."""
    return jax.tree.map(fetch_array, tree)


def fetch_array(array: jax.Array) -> np.ndarray:
    """One array's addressable part, in order."""
    if array.is_fully_addressable:
        return np.asarray(array)
    parts = {
        shard.index[0].start or 0: shard.data for shard in array.addressable_shards
    }
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
