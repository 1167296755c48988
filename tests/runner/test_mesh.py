"""Batches are split over the devices, parameters repeated."""

import jax
import numpy as np
import pytest

from vitjax.runner import mesh as meshes


def test_the_batch_is_rounded_up_to_the_devices():
    mesh = meshes.make_mesh()
    assert mesh.size == jax.device_count() == 4
    assert [meshes.fit_batch_size(n, mesh) for n in (1, 4, 5, 32)] == [4, 4, 8, 32]
    with pytest.raises(ValueError, match="at least 1"):
        meshes.fit_batch_size(0, mesh)


def test_shard_splits_and_fetch_joins():
    mesh = meshes.make_mesh()
    tree = {"a": np.arange(24.0).reshape(8, 3), "b": np.arange(8), "none": None}
    placed = meshes.shard(tree, mesh)
    shards = placed["a"].addressable_shards
    assert [shard.data.shape for shard in shards] == [(2, 3)] * 4
    assert len({shard.device for shard in shards}) == 4
    back = meshes.fetch(placed)
    np.testing.assert_array_equal(back["a"], tree["a"])
    assert isinstance(back["b"], np.ndarray) and back["none"] is None


def test_replicate_gives_every_device_all_of_it():
    placed = meshes.replicate({"w": np.arange(6.0)}, meshes.make_mesh())
    assert [s.data.shape for s in placed["w"].addressable_shards] == [(6,)] * 4


def test_precision_goes_with_the_dtype():
    assert meshes.precision_of("float32") == "highest"
    assert meshes.precision_of("bfloat16") == "default"
    with pytest.raises(ValueError, match="float16.*choose one of"):
        meshes.precision_of("float16")
