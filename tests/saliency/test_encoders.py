"""Explanations of every kind of head: read where the model reads its answer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import vitjax
from vitjax.models.backward import unembed
from vitjax.models.backward_rules import Rules
from vitjax.models.forward import resume_forward
from vitjax.recipes.faithfulness import LRP
from vitjax.saliency import lrp
from vitjax.saliency.methods import METHODS
from vitjax.types import Edits

TARGET = np.array([1, 5, 2], np.int32)
ROWS = np.arange(3), TARGET


@pytest.mark.parametrize("name", ("clip", "siglip", "dinov2", "mean_of_norms"))
def test_contributions_add_up_to_the_logit_and_the_last_mlps_is_by_hand(name):
    """Centered, over each token's own sigma, through everything that is held."""
    model, images, logits, trace = tiny.traced(name, kept=True)
    config, space = model.config, model.class_space
    keep = tiny.keep(config)
    edits, share = Edits(keep=keep), keep / keep.sum(1, keepdims=True)
    parts = vitjax.logit_attribution(model, images, TARGET, edits=edits)
    assert ("head" in parts) == (config.pooling == "map")
    np.testing.assert_allclose(tiny.total(parts), logits[ROWS], atol=2e-4)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, float), model.params)
    scale = np.asarray(space.norm_scale, float)

    def normal(written, state):
        sigma = np.sqrt(state.var(-1, keepdims=True) + config.epsilon)
        return (written - written.mean(-1, keepdims=True)) / sigma * scale

    def mean(z):
        return np.einsum("bp,bpd->bd", share, z[:, config.prefix :])

    states = np.asarray(trace.residual, float)
    updates = np.asarray(trace.mlp_update, float)
    z, kernel = normal(updates[-1], states[-1]), p["head"]["kernel"][:, TARGET].T
    if name == "dinov2":
        patches = p["head_patches"]["kernel"][:, TARGET].T
        expected = (z[:, 0] * kernel).sum(-1) + (mean(z) * patches).sum(-1)
        # The MLP of the block before writes into the [CLS] of two blocks.
        earlier = p["head_earlier"]["kernel"][-1][:, TARGET].T
        before = normal(updates[-2], states[-1])
        both = (before[:, 0] * kernel).sum(-1) + (mean(before) * patches).sum(-1)
        both += (normal(updates[-2], states[-2])[:, 0] * earlier).sum(-1)
        np.testing.assert_allclose(parts["mlp"][-2], both, atol=2e-5)
    else:
        read, whole = jax.jit(functools.partial(head_of, edits=edits))(
            model, trace.residual[-1]
        )
        if name == "siglip":
            pool = p["MAPHead_0"]
            values = np.einsum("btd,dhk->bthk", z, pool["value"]["kernel"])
            mixed = np.einsum("bht,bthk->bhk", read, values)
            f = np.einsum("bhk,hkd->bd", mixed, pool["out"]["kernel"])
        else:
            f = z[:, 0] @ p["projection"]["kernel"] if name == "clip" else mean(z)
        length = np.linalg.norm(whole, axis=-1)
        expected = p["head"]["temperature"] * (f * kernel).sum(-1) / length
    np.testing.assert_allclose(parts["mlp"][-1], expected, atol=2e-5)


def head_of(model, x, edits):
    """The head's attention, and the embedding with the MLP of attention pooling."""
    space, attention = model.class_space, None
    if model.config.pooling == "map":
        z = space.normalize(x)
        attention = model.apply(z, edits, method="head_attention")
    f = model.apply(jnp.asarray(x), edits, method="embed_image")
    return attention, f if space.mlp is None else f + space.transform(f)


@pytest.mark.parametrize(
    ("name", "method"),
    (
        ("siglip", "rollout"),
        ("dinov2", "chefer"),
        ("siglip", "raw_attention"),
        ("mean_with_cls", "raw_attention"),
    ),
)
def test_rows_of_attention_are_those_that_the_head_reads(name, method):
    model, images, logits, trace = tiny.traced(name)
    prefix, weights = model.config.prefix, trace.attention_weights
    if name == "siglip":
        apply = functools.partial(model.apply, method="token_weights")
        row = np.asarray(jax.jit(apply)(trace.residual[-1], Edits()))
        np.testing.assert_allclose(row.sum(1), 1, atol=1e-6)
    else:
        cls, patches = (1 / 2, 1 / 32) if name == "dinov2" else (0, 1 / 16)
        row = np.r_[cls, np.zeros(prefix - 1), np.full(16, patches)]
        row = np.tile(row, (3, 1))
    if method == "raw_attention":
        expected = np.einsum("bq,bhqt->bt", row, weights[-1])
    elif method == "rollout":
        expected = row
        for block in weights.mean(2)[::-1]:
            expected = (expected + np.einsum("bq,bqt->bt", expected, block)) / 2
    else:
        onehot = np.eye(7, dtype=np.float32)[TARGET]
        slopes = tiny.attention_slopes(model, images, onehot)
        expected = row
        for product in np.maximum(weights * slopes, 0).mean(2)[::-1]:
            expected = expected + np.einsum("bq,bqt->bt", expected, product)
    actual = vitjax.explain(model, images, TARGET, method=method)
    np.testing.assert_allclose(actual, expected[:, prefix:], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_every_method_explains_every_kind_or_says_why_not():
    """Methods and kinds in turn, since each pair takes a while to trace."""
    refused = "siglip", "map_linear", "dinov2"
    for number, method in enumerate((*METHODS, None)):
        names = list(tiny.ENCODERS)
        explain = functools.partial(vitjax.explain, method=method)
        if method in LRP:
            for name in refused:
                names.remove(name)
                model, images, *_ = tiny.traced(name)
                with pytest.raises(ValueError, match=r"pool='map'|head_blocks"):
                    explain(model, images, 1)
        for name in refused if method is None else [names[number % len(names)]]:
            model = tiny.make(tiny.ENCODERS[name])
            images = tiny.images(model.config)
            shape = jax.eval_shape(explain, model, images, TARGET).shape
            assert shape == (3, 16), (name, method)


def test_lrp_starts_from_the_models_own_head():
    rules = Rules(), lrp.CHEFER, lrp.attention_aware(0.05)

    @jax.jit
    def logits_of(model, x):
        return [unembed(model, x, Edits(), each) for each in rules]

    for name in ("clip", "cls_mean", "mean_of_norms", "mean_with_cls"):
        model, _, logits, trace = tiny.traced(name)
        for actual in logits_of(model, trace.residual[-1]):
            np.testing.assert_allclose(actual, logits, atol=2e-5, err_msg=name)


def test_a_resumed_pass_reads_the_blocks_before_it():
    model, images, _, trace = tiny.traced("dinov2")
    edits = vitjax.ablate(model, "mlp_update", layers=[3], tokens=[0])
    expected, _ = vitjax.forward(model, images, edits=edits)
    streams = np.concatenate([trace.embedding[None], trace.residual[:-1]])
    resume = jax.jit(resume_forward)
    for start in (1, 3):
        actual = resume(model, streams, start, edits=edits)
        np.testing.assert_allclose(actual, expected, atol=2e-5)
