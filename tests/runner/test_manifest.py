"""A run is known by what it depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vitjax.runner.job import make_job

from vitjax.runner import manifest as manifests


def test_the_hash_of_parameters_sees_values_shapes_dtypes_and_names():
    base = {"a": jnp.arange(6.0), "b": {"c": jnp.ones((2, 3))}}
    hashed = manifests.hash_parameters
    assert hashed(base) == hashed(jax.tree.map(np.asarray, base))
    others = [
        base | {"a": jnp.arange(6.0).at[3].add(1e-6)},
        base | {"a": jnp.arange(6.0).reshape(2, 3)},
        base | {"a": jnp.arange(6.0).astype(jnp.bfloat16)},
        {"x": base["a"], "b": base["b"]},
    ]
    assert len({hashed(tree) for tree in [base, *others]}) == 5


def test_a_model_is_described_without_its_weights(tiny):
    described = manifests.describe_model(tiny)
    assert described["name"] == "unnamed" and described["sha256"] is None
    assert described["config"]["depth"] == 2
    assert described["preprocess"] == tiny.preprocess.to_dict()
    assert len(described["parameters_sha256"]) == 64


def test_a_run_is_described_by_what_was_asked_of_its_job(tiny, photos):
    job = make_job(
        *("identifiability", tiny, f"folder:{photos}"),
        batch_size=6,
        dtype="float32",
        limit=9,
        seed=4,
        options={"top": 2},
    )
    told = manifests.describe(job)
    assert told["recipe"] == "identifiability" and told["recipe_options"] == {"top": 2}
    assert told["data"]["images"] == 9 and told["data"]["spec"] == f"folder:{photos}"
    asked = {"batch_size": 6, "dtype": "float32", "limit": 9, "seed": 4, "masks": None}
    assert {name: told[name] for name in asked} == asked
    assert job.batch_size == 8  # a multiple of the four devices
    with pytest.raises(ValueError, match="no option bottom"):
        make_job(
            *("identifiability", tiny, f"folder:{photos}"),
            batch_size=6,
            dtype="float32",
            limit=9,
            options={"bottom": 2},
        )


def test_only_changes_are_noted():
    manifest = {
        "versions": manifests.versions(),
        "devices": manifests.devices() | {"count": 1},
        "resumed": [],
    }
    assert manifests.note_resumption(manifest) == ["count was 1 and is 4"]
    assert len(manifest["resumed"]) == 1
    assert manifests.note_resumption(manifest) == []  # as the last session was
    assert len(manifest["resumed"]) == 1
