"""The seams of a block: ordinary values under every rule."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vitjax.models.backward_rules import Rules, dense, layer_norm, second
from vitjax.models.edits import split_edits
from vitjax.models.forward import apply_block
from vitjax.saliency.lrp import CHEFER, attention_aware
from vitjax.types import Edits

ALL = {"default": Rules(), "chefer": CHEFER, "attention_aware": attention_aware(0.05)}
FEW = ("plain", "gap", "layer_scale")
RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(2, 5, 16)).astype(np.float32)


@pytest.mark.parametrize(
    "name",
    [
        name if name in FEW else pytest.param(name, marks=pytest.mark.slow)
        for name in tiny.CONFIGS
    ],
)
def test_values_of_a_block_are_ordinary_under_every_rule(name):
    model = tiny.make(tiny.CONFIGS[name])
    params = jax.tree.map(lambda leaf: leaf[0], model.block_params)
    tokens = model.config.tokens
    states = jnp.asarray(RNG.normal(size=(2, tokens, 16)), jnp.float32)
    scale = np.linspace(0.5, 1.5, tokens, dtype=np.float32)[None, None, None, None]
    attend = np.where(np.arange(tokens) == 2, 0, 0.5).astype(np.float32)
    attend = attend[None, None, None, None]
    links = split_edits(Edits(scale=scale, attend=attend), model.config)
    links = (links[0], jax.tree.map(lambda leaf: leaf[0], links[1]))

    @jax.jit
    def run(params, x):
        return {
            key: apply_block(model, params, x, links, fields=(), rules=rules)[0]
            for key, rules in ALL.items()
        }

    found = run(params, states)
    ordinary, _ = apply_block(model, params, states, links)
    assert np.abs(ordinary - states).max() > 0.1
    for key, value in found.items():
        np.testing.assert_allclose(value, ordinary, atol=2e-5, err_msg=key)


def test_the_norm_is_its_formula_in_float64():
    scale, bias = RNG.normal(size=(2, 16)).astype(np.float32)
    x = STATES + np.float32(100)  # the one-pass variance loses its digits here
    wide = x.astype(np.float64)
    mean, var = wide.mean(-1, keepdims=True), wide.var(-1, keepdims=True)
    expected = (wide - mean) / np.sqrt(var + 1e-6) * scale + bias
    found = layer_norm(jnp.asarray(x), scale, bias, epsilon=1e-6)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    low = layer_norm(jnp.asarray(STATES, jnp.bfloat16), scale, bias, epsilon=1e-6)
    assert low.dtype == jnp.bfloat16
    flat = layer_norm(jnp.ones((1, 16)), scale, bias, epsilon=1e-6)
    np.testing.assert_array_equal(flat, bias[None])  # and no division by 0


@pytest.mark.parametrize("features", (6, (2, 3)))
@pytest.mark.parametrize("axis", (-1, (-2, -1)))
@pytest.mark.parametrize("use_bias", (True, False))
def test_a_dense_rule_sees_matrices(features, axis, use_bias):
    layer = nn.DenseGeneral(features, axis=axis, use_bias=use_bias)
    x = STATES.reshape(2, 5, 2, 8) if axis != -1 else STATES
    outputs = (6,) if features == 6 else features
    inputs = x.shape[2:]
    params = {"kernel": RNG.normal(size=inputs + outputs).astype(np.float32)}
    if use_bias:
        params["bias"] = RNG.normal(size=outputs).astype(np.float32)
    seen = []

    def rule(x, kernel, bias):
        seen.append((x.shape, kernel.shape, None if bias is None else bias.shape))
        return x @ kernel + (0 if bias is None else bias[None, None])

    def by(rules):
        return nn.apply(lambda layer: dense(rules, layer, jnp.asarray(x)), layer)(
            {"params": params}
        )

    ordinary, ruled = by(Rules()), by(Rules(dense=rule))
    assert ordinary.shape == ruled.shape == (2, 5, *outputs)
    np.testing.assert_allclose(ruled, ordinary, atol=1e-5)
    assert seen == [((2, 5, 16), (16, 6), (6,) if use_bias else None)]


def test_by_default_derivatives_are_ordinary():
    x = jnp.asarray(STATES[0, 0])
    slope = jax.vjp(lambda x: second(x, x**2), x)[1](jnp.ones(16))[0]
    np.testing.assert_allclose(slope, 2 * x, rtol=1e-6)
    assert Rules() == Rules()  # so that a program is compiled once
    assert hash(Rules()) == hash(Rules())
