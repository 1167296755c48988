"""Heads of encoders: class spaces, embeddings, classes given and missing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from numpy_vit import reference

import vitjax
from vitjax.analysis.class_space import take_label
from vitjax.types import Config, Edits

MODELS = {name: tiny.make(config) for name, config in tiny.ENCODERS.items()}


@jax.jit
def read_tokens(model, streams):
    """Every token read by itself, and states normed before the head."""
    return (
        vitjax.project_tokens(model, streams[-1]),
        model.class_space.normalize(jnp.asarray(streams)),
    )


QUICK = (*tiny.QUICK, "mean_of_norms")
CASES = [(name, False) for name in sorted({*tiny.CONFIGS} - {"distilled"})]
CASES += [("post_cls", True), ("pooled", True)]
CASES += [
    pytest.param(name, True, marks=() if name in QUICK else pytest.mark.slow)
    for name in MODELS
]


@pytest.mark.parametrize(("name", "kept"), CASES)
def test_the_last_block_read_where_the_model_reads_gives_the_logits(name, kept):
    """With patches kept, all of them in the first image."""
    model, _, logits, trace = tiny.traced(name, kept=kept)
    config, space, states = model.config, model.class_space, trace.residual
    keep = tiny.keep(config) if kept else np.ones((3, config.patches), bool)
    weights = np.float32(keep / keep.sum(1, keepdims=True))

    def mean(tokens):
        return np.einsum("bp,bpd->bd", weights, tokens[:, config.prefix :])

    if config.pooling == "cls":
        expected = vitjax.project(space, states[-1][:, 0])
    elif config.pooling == "mean" and config.pool_norm == "after":
        expected = vitjax.project(space, mean(states[-1]))
    elif config.pooling == "map":  # the head on one token alone, the only one there is
        x = states[-1][:, :1]
        unembed = jax.jit(lambda x: model.apply(x, Edits(), method="unembed"))
        logits, expected = unembed(x), jax.jit(vitjax.project_tokens)(model, x)[:, 0]
    else:
        tokens, z = jax.device_get(read_tokens(model, states))
        assert tokens.shape == (3, config.tokens, 7)
        if config.pooling == "mean":
            expected = space.read(jnp.asarray(mean(z[-1])))
        else:
            expected = tokens[:, 0] + mean(tokens)
        for block in range(2, config.head_blocks + 1):
            kernel = model.params["head_earlier"]["kernel"][1 - block]
            expected = expected + z[-block][:, 0] @ np.asarray(kernel)
    np.testing.assert_allclose(expected, logits, atol=3e-5, rtol=1e-5)


def test_ranks_need_no_normalization():
    space = MODELS["clip"].class_space
    states = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    plain = dataclasses.replace(space, temperature=None, class_embedding=None)

    @jax.jit
    def both(x):
        linear = space.normalize(jnp.asarray(x)) @ jnp.asarray(plain.embedding).T
        return vitjax.project(space, x) - space.bias[None], linear

    logits, linear = both(states)
    np.testing.assert_array_equal(np.argsort(logits), np.argsort(linear))


def test_zero_shot_compares_unit_rows_by_the_models_own_temperature():
    images = tiny.images(MODELS["clip"].config)
    rng = np.random.default_rng(1)
    names = ["x", "y", "z"]
    for kind in ("clip", "siglip"):
        model = MODELS[kind]
        empty = {
            "kernel": jnp.zeros((model.config.embed_dim, 0)),
            "bias": jnp.zeros(0),
        }
        params = model.params | {"head": model.params["head"] | empty}
        bare = model.replace(params=params, classes=(), class_ids=())
        f = np.asarray(vitjax.encode_image(bare, images))
        np.testing.assert_allclose(np.linalg.norm(f, axis=1), 1, atol=1e-6)
        embeddings = rng.normal(size=(3, model.config.embed_dim)).astype(np.float32)
        given = vitjax.zero_shot(bare, embeddings, classes=names)
        assert given.classes == given.class_ids == ("x", "y", "z")
        head = jax.device_get(model.params["head"])
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        expected = head["temperature"] * f @ unit.T + head.get("logit_bias", 0)
        logits, _ = vitjax.forward(given, images)
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        np.testing.assert_allclose(reference(given, images)[0], expected, atol=1e-4)
        other = vitjax.zero_shot(
            model, embeddings, classes=names, temperature=7.0, bias=-2.0
        )
        logits = np.asarray(vitjax.forward(other, images)[0])
        np.testing.assert_allclose(logits, 7 * f @ unit.T - 2, atol=1e-5)
        shares = other.class_space.probabilities(logits)
        sigmoid = 1 / (1 + np.exp(-logits))
        softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        expected = sigmoid if kind == "siglip" else softmax
        np.testing.assert_allclose(shares, expected, atol=1e-6)
        for wrong, text in (
            (dict(classes=names[:2]), "3 names"),
            (dict(classes=["x", "y", "x"]), "'x' is there twice"),
            (dict(embeddings=embeddings[:, :-1]), f"class {model.config.embed_dim}"),
        ):
            arguments = {"embeddings": embeddings, "classes": names} | wrong
            with pytest.raises(ValueError, match=text):
                vitjax.zero_shot(model, **arguments)
    with pytest.raises(ValueError, match="with_head"):
        vitjax.zero_shot(MODELS["cls_mean"], embeddings, classes=names)


@pytest.mark.parametrize("name", ("dinov2", "siglip", "distilled"))
def test_with_head_makes_the_scores_of_a_probe_the_logits(name):
    model = tiny.make(tiny.KINDS[name])
    images, labels = tiny.images(model.config), np.arange(3) % 2
    features = vitjax.encode_image(model, images)
    probe = vitjax.fit_ridge_probe(features, labels, classes=2)
    fitted = vitjax.with_head(model, probe, classes=("cat", "dog"))
    logits, _ = vitjax.forward(fitted, images)
    np.testing.assert_allclose(logits, probe.scores(features), atol=2e-5)
    np.testing.assert_allclose(reference(fitted, images)[0], logits, atol=1e-4)
    np.testing.assert_allclose(fitted.class_space.probabilities(logits).sum(1), 1, 1e-5)
    pair = (np.asarray(probe.weights), np.zeros(2, np.float32))
    assert vitjax.with_head(model, pair).classes == ("0", "1")
    with pytest.raises(ValueError, match="expected"):
        vitjax.with_head(model, (pair[0][:, 1:], pair[1]))


def test_an_encoder_without_classes_runs_and_asks_for_them():
    model = tiny.make(tiny.ENCODERS["siglip"], classes=())
    images = tiny.images(model.config)
    logits, trace = vitjax.forward(model, images, capture=("residual",))
    assert logits.shape == (3, 0) and trace.residual.shape == (2, 3, 16, 16)
    label = np.zeros(3, int)
    for call in (
        lambda: vitjax.explain(model, images, label),
        lambda: vitjax.project(model.class_space, trace.residual),
        lambda: vitjax.project_tokens(model, trace.residual),
        lambda: vitjax.rank(logits, label),
        lambda: vitjax.top_k(logits),
        lambda: vitjax.run("identifiability", model, "textured_digits", "nowhere"),
    ):
        with pytest.raises(ValueError, match="has no classes.*zero_shot"):
            call()


@pytest.mark.parametrize(
    ("name", "method"),
    (
        ("siglip", "class_projection"),
        pytest.param("clip", "relevancy", marks=pytest.mark.slow),
        pytest.param("dinov2", "chefer", marks=pytest.mark.slow),
    ),
)
def test_half_precision_is_near_full_precision(name, method):
    model, images, exact, _ = tiny.traced(name)
    half = model.astype(jnp.bfloat16)
    logits, trace = vitjax.forward(half, images, capture=("residual",))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, exact, atol=0.3)
    tokens = jax.eval_shape(vitjax.project_tokens, half, trace.residual)
    assert tokens.dtype == jnp.float32
    assert np.isfinite(vitjax.explain(half, images, 1, method=method)).all()


def test_a_map_over_no_token_reads_none():
    model = MODELS["siglip"]
    images = tiny.images(model.config)
    none = Edits(keep=np.zeros((1, 16), bool))
    logits, _ = vitjax.forward(model, images, edits=none)
    other, _ = vitjax.forward(model, images[::-1], edits=none)
    np.testing.assert_array_equal(logits, other)


def test_every_kind_of_head_trains():
    for config in (tiny.ENCODERS["siglip"], Config(**tiny.SHAPE, pool="cls_mean")):
        model = tiny.make(config)
        images = tiny.images(config)

        @jax.jit
        @jax.grad
        def slope(params, images=images, model=model):
            logits, _ = vitjax.forward(model.replace(params=params), images)
            return take_label(logits, np.arange(3)).sum()

        grads = slope(model.params)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
