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


def test_every_device_takes_its_own_images():
    mesh = meshes.make_mesh()
    batch = meshes.shard({"x": np.arange(8.0).reshape(8, 1), "none": None}, mesh)
    seen = []

    def step(weights, batch, aux):
        seen.append(batch["x"].shape)
        return {"sum": batch["x"].sum(1) * weights + aux}

    rows = jax.jit(meshes.on_each_device(step, mesh))(np.float32(2), batch, 1.0)
    assert seen == [(2, 1)]
    assert [s.data.shape for s in rows["sum"].addressable_shards] == [(2,)] * 4
    np.testing.assert_array_equal(meshes.fetch(rows)["sum"], 2 * np.arange(8) + 1)
    assert meshes.share_of(8, mesh) == 8  # one process has all of them


def test_precision_goes_with_the_dtype():
    assert meshes.precision_of("float32") == "highest"
    assert meshes.precision_of("bfloat16") == "default"
    with pytest.raises(ValueError, match="float16.*choose one of"):
        meshes.precision_of("float16")
