"""The ViT against the published outputs, an independent formula, and itself."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import tiny
from numpy_vit import layer_norm, reference

import vitjax
from vitjax.analysis.class_space import project
from vitjax.api import forward
from vitjax.models.heads import pool
from vitjax.models.layers import PatchEmbedding
from vitjax.models.vit import VisionTransformer
from vitjax.types import Config, Edits


@pytest.mark.parametrize("name", published.CONFIGS)
def test_logits_equal_the_published(name, oracle, published_trace):
    logits, _ = published_trace(name)
    expected = oracle(name)["base"]["logits"][: published.count(name)]
    np.testing.assert_allclose(logits, expected, atol=5e-4 if name == "setA" else 2e-5)


@pytest.mark.parametrize("name", tiny.KINDS)
def test_every_architecture_equals_an_independent_formula(name):
    model, images, logits, trace = tiny.traced(name)
    expected, stream = reference(model, images)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(trace.residual[-1], stream, atol=1e-4, rtol=1e-4)


def test_plain_flax_use_captures_stacked_arrays():
    model, images, ours, trace = tiny.traced("pooled")
    cfg = model.config
    apply = jax.jit(model.module.apply, static_argnames="capture_intermediates")
    logits, state = apply({"params": model.params}, images, capture_intermediates=True)
    np.testing.assert_allclose(logits, ours, atol=1e-5)
    block = state["intermediates"]["Transformer"]["encoderblock"]
    mha = block["MultiHeadDotProductAttention_0"]
    (weights,) = mha["attention_weights"]["__call__"]
    assert weights.shape == (cfg.depth, len(images), cfg.heads, cfg.tokens, cfg.tokens)
    np.testing.assert_allclose(weights, trace.attention_weights, atol=1e-6)
    (stream,) = block["residual"]["__call__"]
    np.testing.assert_allclose(stream, trace.residual, atol=1e-5)


def test_dropout_and_stochastic_depth_act_in_training_only():
    model, images, still, _ = tiny.traced("plain")
    module = VisionTransformer(model.config, 7, dropout=0.3, drop_path=0.5)

    def apply(seed, train):
        rngs = {"dropout": jax.random.key(seed)} if train else {}
        return module.apply({"params": model.params}, images, train=train, rngs=rngs)

    apply = jax.jit(apply, static_argnums=1)
    np.testing.assert_allclose(apply(0, False), still, atol=1e-5)
    np.testing.assert_array_equal(apply(0, True), apply(0, True))
    assert np.abs(apply(0, True) - apply(1, True)).max() > 1e-3


@pytest.mark.slow
def test_stochastic_depth_keeps_the_mean():
    config = Config(**tiny.SHAPE | {"depth": 2})
    model = tiny.make(config)
    images = np.repeat(tiny.images(config, 1), 512, axis=0)
    module = VisionTransformer(config, 7, drop_path=0.5)

    @functools.partial(jax.jit, static_argnums=1)
    def updates(rngs, train):
        _, state = module.apply(
            {"params": model.params},
            images,
            train=train,
            rngs=rngs,
            capture_intermediates=lambda m, _: m.name == "attention_update",
            mutable=["intermediates"],
        )
        block = state["intermediates"]["Transformer"]["encoderblock"]
        return block["attention_update"]["__call__"][0]

    still = updates({}, False)
    drawn = updates({"dropout": jax.random.key(0)}, True)
    np.testing.assert_allclose(drawn[0], still[0], atol=1e-5)  # is never dropped
    dropped = np.asarray((drawn[1] == 0).all((-1, -2)))
    assert 0.4 < dropped.mean() < 0.6
    assert np.abs(drawn[1][~dropped]).mean() > 1.5 * np.abs(still[1]).mean()


def test_half_precision_logits_are_the_projection_of_the_pooled_state():
    """Near those of full precision, and not rounded."""
    exact, images, expected, _ = tiny.traced("plain")
    model = exact.astype(jnp.bfloat16)
    logits, trace = forward(model, images, capture=("residual",))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=0.2)
    state = pool(trace.residual[-1], Edits(), model.config)
    np.testing.assert_allclose(logits, project(model.class_space, state), atol=1e-5)
    assert (logits != logits.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.5


@pytest.mark.parametrize("shape", [(2, 24, 16), (1, 8, 8), (2, 29, 23), (0, 16, 16)])
def test_the_patch_embedding_is_a_convolution_also_with_pixels_left_over(shape):
    images = np.random.default_rng(0).normal(size=(*shape, 3)).astype(np.float32)
    convolution = nn.Conv(5, (8, 8), (8, 8), "VALID")
    embedding = PatchEmbedding(8, 5)
    params = embedding.init(jax.random.key(0), np.zeros((1, 8, 8, 3)))
    expected = convolution.apply(params, images)
    patches = shape[1] // 8 * (shape[2] // 8)
    actual = embedding.apply(params, images)
    np.testing.assert_allclose(
        actual, expected.reshape(shape[0], patches, 5), atol=1e-5
    )


def test_refinement_equals_an_independent_formula():
    model, images, _, trace = tiny.traced("refinement")
    cfg = model.config
    logits = vitjax.refinement_logits(model, images)
    assert logits.shape == (cfg.depth - 1, 3, 7)
    tree = jax.tree.map(lambda x: np.asarray(x, np.float64), model.params)
    norm, head = tree["Transformer"]["encoder_norm"], tree["head"]
    for block in range(cfg.depth - 1):
        p = jax.tree.map(lambda leaf, b=block: leaf[b], tree["refinement"])
        x = np.asarray(trace.residual[block], np.float64)
        x = layer_norm(x, norm, cfg.epsilon)
        grid = x[:, 1:].reshape(3, *cfg.grid, cfg.dim)

        def layer(grid, p=p):
            rows, columns = cfg.grid
            wide = np.pad(grid, ((0, 0), (1, 1), (1, 1), (0, 0)))
            out = sum(
                wide[:, r : r + rows, c : c + columns] @ p["conv"]["kernel"][r, c]
                for r in range(3)
                for c in range(3)
            )
            out = (out - p["norm"]["mean"]) / np.sqrt(p["norm"]["var"] + 1e-5)
            return out * p["norm"]["scale"] + p["norm"]["bias"]

        y = np.maximum(layer(np.maximum(layer(grid), 0)) + grid, 0).mean((1, 2))
        y = y + x[:, 0] @ p["token"]["kernel"] + p["token"]["bias"]
        expected = y @ head["kernel"] + head["bias"]
        np.testing.assert_allclose(logits[block], expected, atol=2e-4, rtol=1e-4)


def test_refinement_needs_its_modules_and_every_patch():
    plain, model = (tiny.make(tiny.CONFIGS[n]) for n in ("plain", "refinement"))
    with pytest.raises(ValueError, match="vit_b16_refinement_heads"):
        vitjax.refinement_logits(plain, tiny.images(plain.config))
    edits = Edits(keep=np.ones((3, 16), bool))
    with pytest.raises(ValueError, match="every patch"):
        vitjax.refinement_logits(model, tiny.images(model.config), edits=edits)
