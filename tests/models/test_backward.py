"""The backward pass that recomputes blocks, and the rules it may follow."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import vitjax
from vitjax.models.backward import block_inputs, scan_reverse
from vitjax.models.backward_rules import Rules, dense, keep_value
from vitjax.models.edits import split_edits
from vitjax.models.forward import apply_block
from vitjax.saliency.lrp import CHEFER, attention_aware
from vitjax.types import Edits, layer_norm

RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(2, 5, 16)).astype(np.float32)


@pytest.mark.parametrize(
    "name", tiny.slow_but(("one_block", "post_cls", "registers_gap"), "one_block")
)
def test_its_gradients_are_those_of_the_stored_pass(name):
    model = tiny.make(tiny.CONFIGS[name])
    images = tiny.images(model.config)
    edits = vitjax.self_only(model, layers=[0], renormalize=True)

    def score(logits):
        return jnp.sin(logits).sum()

    def read(count, grads):
        return count + 1, (grads.weights, grads.weights_gradient, grads.stream_gradient)

    @jax.jit
    def backward(images):
        start = lambda x, gradient: 0  # noqa: E731
        ends = block_inputs(model, images, edits)
        reads = scan_reverse(model, *ends, score, read, state=start, edits=edits)
        stored = vitjax.attention_gradients(model, images, score, edits=edits)
        return reads, stored

    (count, (weights, gradients, streams)), expected = backward(images)
    assert count == model.config.depth
    np.testing.assert_allclose(gradients, expected, atol=1e-5)
    _, trace = vitjax.forward(
        model, images, capture=("attention_weights",), edits=edits
    )
    np.testing.assert_allclose(weights, trace.attention_weights, atol=1e-6)

    def of_patches(moved):  # the patch embedding's bias moves every patch alike
        embedding = model.params["embedding"]
        embedding = embedding | {"bias": embedding["bias"] + moved}
        other = model.replace(params=model.params | {"embedding": embedding})
        return score(vitjax.forward(other, images, edits=edits)[0])

    moved = jax.jit(jax.grad(of_patches))(jnp.zeros(model.config.dim))
    patches = streams[0][:, model.config.prefix :]
    np.testing.assert_allclose(patches.sum((0, 1)), moved, atol=1e-4)


@pytest.mark.parametrize(
    "name", tiny.slow_but(tiny.CONFIGS, "plain", "gap", "layer_scale")
)
def test_values_of_a_block_are_ordinary_under_every_rule(name):
    model = tiny.make(tiny.CONFIGS[name])
    params = jax.tree.map(lambda leaf: leaf[0], model.block_params)
    tokens = model.config.tokens
    states = jnp.asarray(RNG.normal(size=(2, tokens, 16)), jnp.float32)
    scale = np.linspace(0.5, 1.5, tokens, dtype=np.float32)
    attend = np.where(np.arange(tokens) == 2, 0, 0.5).astype(np.float32)
    scale, attend = (x[None, None, None, None] for x in (scale, attend))
    masks = split_edits(Edits(scale=scale, attend=attend), model.config)

    @jax.jit
    def run(params, x):
        rules = Rules(), CHEFER, attention_aware(0.05)
        return [apply_block(model, params, x, masks, rules=each)[0] for each in rules]

    ordinary, *others = run(params, states)
    assert np.abs(ordinary - states).max() > 0.1
    for values in others:
        np.testing.assert_allclose(values, ordinary, atol=2e-5)


def test_the_norm_is_its_formula_in_float64():
    scale, bias = RNG.normal(size=(2, 16)).astype(np.float32)
    x = STATES + np.float32(100)  # the one-pass variance loses its digits here
    wide = x.astype(np.float64)
    mean, var = wide.mean(-1, keepdims=True), wide.var(-1, keepdims=True)
    expected = (wide - mean) / np.sqrt(var + 1e-6) * scale + bias
    actual = layer_norm(jnp.asarray(x), scale, bias, epsilon=1e-6)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
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
    params = {"kernel": RNG.normal(size=x.shape[2:] + outputs).astype(np.float32)}
    if use_bias:
        params["bias"] = RNG.normal(size=outputs).astype(np.float32)
    seen = []

    def rule(x, kernel, bias):
        seen.append((x.shape, kernel.shape, None if bias is None else bias.shape))
        return x @ kernel + (0 if bias is None else bias[None, None])

    def by(rules):
        call = nn.apply(lambda layer: dense(rules, layer, jnp.asarray(x)), layer)
        return call({"params": params})

    ordinary, ruled = by(Rules()), by(Rules(dense=rule))
    assert ordinary.shape == ruled.shape == (2, 5, *outputs)
    np.testing.assert_allclose(ruled, ordinary, atol=1e-5)
    assert seen == [((2, 5, 16), (16, 6), (6,) if use_bias else None)]


def test_by_default_derivatives_are_ordinary():
    x = jnp.asarray(STATES[0, 0])
    slope = jax.vjp(lambda x: keep_value(x, x**2), x)[1](jnp.ones(16))[0]
    np.testing.assert_allclose(slope, 2 * x, rtol=1e-6)
    assert Rules() == Rules()  # so that a program is compiled once
    assert hash(Rules()) == hash(Rules())
