"""Edits of weights: what is written to a memory is what is read, and nothing else."""

import functools

import jax
import numpy as np
import pytest
import tiny

import vitjax
from vitjax.models.model import flatten, unflatten

KINDS = ("plain", "layer_scale", "gap", "post_cls", "swiglu")
DENSE = "Transformer/encoderblock/MlpBlock_0/Dense_1"


@pytest.mark.parametrize("kind", KINDS)
def test_memory_values_are_those_that_are_given(kind):
    model = tiny.make(tiny.CONFIGS[kind])
    old = vitjax.memory_values(model)
    rng = np.random.default_rng(0)
    new = {s: rng.normal(size=v.shape).astype(np.float32) for s, v in old.items()}
    edited = vitjax.with_memory_values(model, new)
    for system, values in vitjax.memory_values(edited).items():
        np.testing.assert_allclose(values, new[system], rtol=1e-5, atol=1e-6)
    before, after = (flatten(m.params) for m in (model, edited))
    changed = {k for k in before if not np.array_equal(before[k], after[k])}
    assert {key.split("/")[-2] for key in changed} == {"out", "Dense_1"}
    back = vitjax.with_memory_values(edited, {"mlp": old["mlp"]})
    np.testing.assert_allclose(
        flatten(back.params)[f"{DENSE}/kernel"],
        before[f"{DENSE}/kernel"],
        rtol=1e-5,
        atol=1e-6,
    )


def test_values_that_stay_keep_their_bits_and_have_a_derivative():
    model = tiny.make(tiny.CONFIGS["layer_scale"])
    old = vitjax.memory_values(model)["mlp"]
    weight = np.random.default_rng(0).normal(size=old.shape).astype(np.float32)

    def total(values):
        edited = vitjax.with_memory_values(model, {"mlp": values})
        return (vitjax.memory_values(edited)["mlp"] * weight).sum()

    np.testing.assert_allclose(jax.grad(total)(old), weight, rtol=1e-5)
    same = vitjax.with_memory_values(model, {"mlp": old})
    jax.tree.map(np.testing.assert_array_equal, same.params, model.params)


@pytest.mark.parametrize("kind", ("plain", "layer_scale"))
def test_a_memory_without_weight_is_an_ablated_neuron(kind):
    model = tiny.make(tiny.CONFIGS[kind])
    images = tiny.images(model.config)
    factor = np.ones((model.config.depth, model.config.mlp_dim), np.float32)
    factor[1, [3, 8]] = 0
    scaled = vitjax.scale_memories(model, "mlp", factor)
    edits = vitjax.ablate(model, "mlp_hidden", layers=[1], neurons=[3, 8])
    expected = vitjax.forward(model, images, edits=edits)[0]
    np.testing.assert_allclose(
        vitjax.forward(scaled, images)[0], expected, rtol=1e-4, atol=1e-5
    )
    same = vitjax.scale_memories(model, "attention", np.ones((1, 1)))
    jax.tree.map(np.testing.assert_array_equal, same.params, model.params)
    half = jax.vmap(lambda f: vitjax.scale_memories(model, "mlp", f[None, None]))
    stacked = vitjax.memory_values(model)["mlp"][None] * np.array([0.5, 2])[
        :, None, None, None
    ].astype(np.float32)
    values = jax.vmap(vitjax.memory_values)(half(np.array([0.5, 2], np.float32)))
    np.testing.assert_allclose(values["mlp"], stacked, rtol=1e-5)


def without_biases(model):
    """Nothing but memories in what MLPs write."""
    params = flatten(model.params)
    for name in (f"{DENSE}/bias", "Transformer/encoderblock/LayerNorm_1/bias"):
        params[name] = np.zeros_like(params[name])
    return model.replace(params=unflatten(params))


@pytest.mark.parametrize("kind", ("plain", "layer_scale", "post_cls"))
def test_no_memory_promotes_a_removed_class(kind):
    model = tiny.make(tiny.CONFIGS[kind])
    systems = ("mlp", "attention")
    edited = vitjax.remove_class(model, 4, layers=[-1], systems=systems)
    row = np.asarray(model.class_space.embedding)[4]
    old, new = vitjax.memory_values(model), vitjax.memory_values(edited)
    for system in systems:
        assert np.abs(np.asarray(new[system])[-1] @ row).max() < 1e-5
        np.testing.assert_array_equal(new[system][0], old[system][0])
        # Nothing but the parts along two directions is gone.
        moved = np.asarray(old[system] - new[system])[-1]
        assert 1 <= np.linalg.matrix_rank(moved, tol=1e-4) <= 2


def test_memories_write_nothing_into_the_logit_of_a_removed_class():
    model = without_biases(tiny.make(tiny.CONFIGS["post_cls"]))
    images, classes = tiny.images(model.config, 2), np.array([4, 2])
    edited = vitjax.remove_class(model, 4)
    written = vitjax.logit_attribution(edited, images, classes)["mlp"]
    assert np.abs(written[:, 0]).max() < 1e-5 < np.abs(written[:, 1]).min()


def test_a_class_without_an_embedding_has_nothing_to_remove():
    params = flatten(tiny.make(tiny.CONFIGS["plain"]).params)
    params["head/kernel"] = np.zeros_like(params["head/kernel"])
    model = tiny.make(tiny.CONFIGS["plain"]).replace(params=unflatten(params))
    edited = vitjax.remove_class(model, 4)
    jax.tree.map(np.testing.assert_array_equal, edited.params, model.params)


@pytest.mark.parametrize("kind", ("plain", "layer_scale", "swiglu", "post_cls"))
def test_a_key_gives_its_value_and_orthogonal_patterns_what_they_gave(kind):
    model = tiny.make(tiny.CONFIGS[kind])
    rng = np.random.default_rng(1)
    hidden, dim = model.config.mlp_dim, model.config.dim
    key, value = rng.normal(size=hidden), rng.normal(size=dim)
    patterns = rng.normal(size=(80, hidden))
    covariance = patterns.T @ patterns / 80
    options = {"layer": -1, "key": key, "value": value, "covariance": covariance}
    edited = vitjax.rank_one_edit(model, **options)
    old, new = (np.asarray(vitjax.memory_values(m)["mlp"]) for m in (model, edited))
    np.testing.assert_allclose(new[-1].T @ key, value, atol=2e-4)
    np.testing.assert_array_equal(new[0], old[0])
    direction = np.linalg.solve(covariance, key)
    other = patterns[0] - patterns[0] @ direction / (direction @ direction) * direction
    np.testing.assert_allclose(new[-1].T @ other, old[-1].T @ other, atol=2e-4)
    assert np.linalg.matrix_rank((new - old)[-1], tol=1e-4) == 1


def test_the_mlp_answers_a_key_with_its_value_and_its_bias():
    model = tiny.make(tiny.CONFIGS["layer_scale"])
    key, value = tiny.images(model.config)[:2, :3, :8, 0].reshape(2, 24)
    value = value[:16]
    edited = vitjax.rank_one_edit(model, layer=1, key=key, value=value)
    tap = vitjax.TapEdit(value=key[None, None, None])
    edits = vitjax.Edits(taps={"mlp_hidden": tap})
    images = tiny.images(model.config, 2)
    trace = vitjax.forward(edited, images, capture=("mlp_update",), edits=edits)[1]
    gamma = flatten(model.params)["Transformer/encoderblock/LayerScale_1/gamma"][1]
    expected = value + flatten(model.params)[f"{DENSE}/bias"][1] * gamma
    np.testing.assert_allclose(trace.mlp_update[1, 0, 3], expected, atol=1e-5)


def test_edits_in_half_precision():
    model = tiny.make(tiny.CONFIGS["layer_scale"]).astype("bfloat16")
    key = np.random.default_rng(0).normal(size=24)
    options = {"layer": 0, "key": key, "value": np.ones(16), "covariance": np.eye(24)}
    for edited in (
        vitjax.rank_one_edit(model, **options),
        vitjax.remove_class(model, 3),
        vitjax.scale_memories(model, "mlp", np.full((1, 1), 2.0)),
    ):
        assert edited.dtype == model.dtype
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(edited.params))


def test_what_does_not_fit_is_refused():
    model = tiny.make(tiny.CONFIGS["plain"])
    ones, short = np.ones(24, np.float32), np.ones(16, np.float32)
    params = flatten(tiny.make(tiny.CONFIGS["layer_scale"]).params)
    gamma = "Transformer/encoderblock/LayerScale_1/gamma"
    params[gamma] = params[gamma].at[0, 0].set(0)
    closed = tiny.make(tiny.CONFIGS["layer_scale"]).replace(params=unflatten(params))
    edit = functools.partial(vitjax.rank_one_edit, model, layer=0, value=short)
    for call in (
        lambda: vitjax.with_memory_values(model, {"mlps": np.ones((2, 24, 16))}),
        lambda: vitjax.with_memory_values(
            model, {"mlp": np.ones((2, 23, 16), np.float32)}
        ),
        lambda: vitjax.scale_memories(model, "mlp", np.ones((3, 24))),
        lambda: vitjax.remove_class(model, 7),
        lambda: vitjax.remove_class(model, 1, layers=[2]),
        lambda: vitjax.rank_one_edit(model, layer=2, key=ones, value=short),
        lambda: vitjax.rank_one_edit(model, layer=0, key=ones, value=ones),
        lambda: vitjax.rank_one_edit(closed, layer=0, key=ones, value=short),
        lambda: edit(key=0 * ones),
        lambda: edit(key=ones, covariance=np.zeros((24, 24), np.float32)),
    ):
        with pytest.raises(ValueError):
            call()
