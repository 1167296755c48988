"""Explanations of every kind of head: read where the model reads its answer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy.special import log_softmax

import vitjax
from vitjax.analysis.class_space import take_label
from vitjax.models.backward_rules import Rules
from vitjax.models.forward import resume_forward
from vitjax.recipes.faithfulness import LRP
from vitjax.saliency import gradients, lrp
from vitjax.saliency.methods import METHODS
from vitjax.types import Edits

MODELS = {name: tiny.make(config) for name, config in tiny.ENCODERS.items()}
TARGET = np.array([1, 5, 2], np.int32)
KEEP = np.random.default_rng(0).random((3, 16)) < 0.6


@functools.cache
def traced(name):
    model = MODELS[name]
    images = tiny.images(model.config)
    capture = "residual", "mlp_update", "attention_weights"
    return model, images, *vitjax.forward(model, images, capture=capture)


def weights_of(name, edits=None):
    model, _, _, trace = traced(name)
    x = trace.residual[-1]
    return np.asarray(model.apply(x, edits or Edits(), method="token_weights"))


@pytest.mark.parametrize("name", tiny.slow_but(MODELS, *tiny.QUICK))
def test_contributions_add_up_to_the_logit(name):
    model, images, logits, _ = traced(name)
    for edits in (None, Edits(keep=KEEP)) if name in ("dinov2", "siglip") else (None,):
        parts = vitjax.logit_attribution(model, images, TARGET, edits=edits)
        total = sum(
            np.asarray(x if x.ndim == 1 else x.swapaxes(0, 1)).reshape(3, -1).sum(1)
            for x in parts.values()
        )
        if edits is not None:
            logits, _ = vitjax.forward(model, images, edits=edits)
        expected = np.asarray(logits)[np.arange(3), TARGET]
        np.testing.assert_allclose(total, expected, atol=1e-4 * np.abs(logits).max())
        assert ("head" in parts) == (model.config.pooling == "map")


@pytest.mark.parametrize("name", ("clip", "siglip", "dinov2", "mean_of_norms"))
def test_what_the_last_mlps_write_by_hand(name):
    """Centered, over each token's own sigma, through everything that is held."""
    model, images, logits, trace = traced(name)
    config, space = model.config, model.class_space
    p = jax.tree.map(lambda leaf: np.asarray(leaf, float), model.params)
    parts = vitjax.logit_attribution(model, images, TARGET)
    prefix = config.prefix

    def normal(written, state):
        sigma = np.sqrt(state.var(-1, keepdims=True) + config.epsilon)
        centered = written - written.mean(-1, keepdims=True)
        return centered / sigma * np.asarray(space.norm_scale, float)

    states = np.asarray(trace.residual, float)
    updates = np.asarray(trace.mlp_update, float)
    z, kernel = normal(updates[-1], states[-1]), p["head"]["kernel"][:, TARGET].T
    if name == "dinov2":
        patches = p["head_patches"]["kernel"][:, TARGET].T
        expected = (z[:, 0] * kernel).sum(-1)
        expected += (z[:, prefix:].mean(1) * patches).sum(-1)
        # The MLP of the block before writes into the [CLS] of two blocks.
        earlier = p["head_earlier"]["kernel"][-1][:, TARGET].T
        before = normal(updates[-2], states[-1])
        both = (before[:, 0] * kernel).sum(-1)
        both += (before[:, prefix:].mean(1) * patches).sum(-1)
        both += (normal(updates[-2], states[-2])[:, 0] * earlier).sum(-1)
        np.testing.assert_allclose(parts["mlp"][-2], both, atol=2e-5)
    else:
        if name == "siglip":
            final = space.normalize(states[-1].astype(np.float32))
            attention = model.apply(final, Edits(), method="head_attention")
            pool = p["MAPHead_0"]
            values = np.einsum("btd,dhk->bthk", z, pool["value"]["kernel"])
            mixed = np.einsum("bht,bthk->bhk", attention, values)
            f = np.einsum("bhk,hkd->bd", mixed, pool["out"]["kernel"])
        elif name == "clip":
            f = z[:, 0] @ p["projection"]["kernel"]
        else:
            f = z[:, prefix:].mean(1)
        length = np.linalg.norm(whole_embedding(model, states[-1]), axis=-1)
        expected = p["head"]["temperature"] * (f * kernel).sum(-1) / length
    np.testing.assert_allclose(parts["mlp"][-1], expected, atol=2e-5)


def whole_embedding(model, x):
    """The embedding with the MLP of attention pooling."""
    f = model.apply(jnp.asarray(x, jnp.float32), Edits(), method="embed_image")
    space = model.class_space
    return np.asarray(f if space.mlp is None else f + space.transform(f), float)


@pytest.mark.parametrize("name", tiny.slow_but(MODELS, *tiny.QUICK))
def test_relevancy_of_the_last_block_is_the_slope_of_the_models_loss(name):
    model, images, logits, _ = traced(name)
    maps = vitjax.relevancy(model, images, TARGET)

    def loss(logits):
        return -take_label(jax.nn.log_softmax(logits), TARGET).sum()

    slope = jax.jit(lambda m, x: vitjax.attention_gradients(m, x, loss)[-1])
    expected = -np.asarray(slope(model, images)).sum(2)
    np.testing.assert_allclose(maps[-1], expected, atol=2e-5)
    if model.config.pooling == "cls_mean":
        every = np.asarray(vitjax.relevancy(model, images, TARGET, query="all"))
        assert every.shape == (*maps.shape[:3], *maps.shape[-1:] * 2)
        assert np.isfinite(log_softmax(logits)).all() and np.abs(every).max() > 0


@pytest.mark.parametrize("name", ("siglip", "dinov2", "mean_with_cls"))
def test_rows_of_attention_are_those_that_the_head_reads(name):
    model, images, _, trace = traced(name)
    row, prefix = weights_of(name), model.config.prefix
    np.testing.assert_allclose(row.sum(1), 1, atol=1e-6)
    if name == "mean_with_cls":
        np.testing.assert_allclose(row[:, :prefix], 0)
        np.testing.assert_allclose(row[:, prefix:], 1 / 16)
    if name == "dinov2":
        np.testing.assert_allclose(row[:, 0], 1 / 2)
        np.testing.assert_allclose(row[:, prefix:], 1 / 32)
    weights = np.asarray(trace.attention_weights)
    raw = vitjax.explain(model, images, TARGET, method="raw_attention")
    expected = np.einsum("bq,bhqt->bt", row, weights[-1])[:, prefix:]
    np.testing.assert_allclose(raw, expected, atol=1e-5)
    mixing, chefer = row, row
    logit = lambda logits: take_label(logits, TARGET).sum()  # noqa: E731
    slope = jax.jit(lambda m, x: vitjax.attention_gradients(m, x, logit))
    positive = np.maximum(weights * slope(model, images), 0).mean(2)
    for block, product in zip(weights.mean(2)[::-1], positive[::-1]):
        mixing = (mixing + np.einsum("bq,bqt->bt", mixing, block)) / 2
        chefer = chefer + np.einsum("bq,bqt->bt", chefer, product)
    for method, expected in (("rollout", mixing), ("chefer", chefer)):
        actual = vitjax.explain(model, images, TARGET, method=method)
        np.testing.assert_allclose(actual, expected[:, prefix:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ("siglip", "map_linear"))
def test_integrated_presence_is_complete(name):
    """Without prefix tokens presence counts only against that of other patches."""
    model, images, logits, _ = traced(name)
    maps = vitjax.explain(model, images, TARGET, method="integrated_presence", steps=32)
    expected = np.zeros(3)
    if name == "map_linear":
        none = Edits(keep=np.zeros((1, 16), bool))
        without, _ = vitjax.forward(model, images, edits=none)
        expected = np.asarray(logits - without)[np.arange(3), TARGET]
    assert np.abs(maps).max() > 0
    np.testing.assert_allclose(maps.sum(1), expected, atol=5e-3 * np.abs(maps).max())


def test_integrated_gradients_are_complete_through_heads_of_several_blocks():
    model, images, logits, _ = traced("dinov2")
    nothing, _ = vitjax.forward(model, 0 * images)
    maps = gradients.integrated_gradients(model, images, TARGET, steps=48)
    expected = np.asarray(logits - nothing)[np.arange(3), TARGET]
    np.testing.assert_allclose(maps.sum(1), expected, atol=5e-3 * np.abs(logits).max())


def test_every_method_explains_every_kind_or_says_why_not():
    for name, model in MODELS.items():
        images = tiny.images(model.config)
        for method in (*METHODS, None):
            if method in LRP and name in ("siglip", "map_linear", "dinov2"):
                with pytest.raises(ValueError, match=r"pool='map'|head_blocks"):
                    vitjax.explain(model, images, 1, method=method)
                continue
            explain = functools.partial(vitjax.explain, method=method)
            shape = jax.eval_shape(explain, model, images, TARGET).shape
            assert shape == (3, 16), (name, method)


def test_lrp_starts_from_the_models_own_head():
    for name in MODELS:
        model, _, logits, trace = traced(name)
        if lrp.no_rules(model.config):
            continue
        for rules in (Rules(), lrp.CHEFER, lrp.attention_aware(0.05)):
            actual = lrp.unembed(model, trace.residual[-1], Edits(), rules)
            np.testing.assert_allclose(actual, logits, atol=2e-5, err_msg=name)


def test_a_resumed_pass_reads_the_blocks_before_it():
    model, images, _, _ = traced("dinov2")
    edits = vitjax.ablate(model, "mlp_update", layers=[3], tokens=[0])
    expected, _ = vitjax.forward(model, images, edits=edits)
    read = lambda params, stream_in, trace: stream_in  # noqa: E731
    _, streams = vitjax.scan_blocks(model, images, read)
    for start in (1, 3):
        actual = jax.jit(resume_forward)(model, streams, start, edits=edits)
        np.testing.assert_allclose(actual, expected, atol=2e-5)
