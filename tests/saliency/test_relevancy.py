"""Relevancy against the published gradients and against the whole network's."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from scipy.special import softmax

import vitjax
from vitjax.saliency.relevancy import relevancy, shares

OPTIONS = {
    "double": dict(of="attention_update", loss="softmax_cross_entropy_of_probability"),
    "single": dict(of="attention_update", loss="cross_entropy"),
    "logit": dict(of="attention_update", loss="negative_logit"),
    "paper": dict(),
}
EVERYWHERE = ("plain", "deit")
"""Variants of one shape, so that all options are only four programs."""
CASES = [(variant, name) for variant in EVERYWHERE for name in OPTIONS]
CASES += [("miil", "double"), ("miil", "single"), ("gap", "paper"), ("gap", "logit")]


def assert_close(ours, raw, name):
    """Within a thousandth of each row's maximum; the oracle stores the raw sign."""
    ours = np.moveaxis(np.asarray(ours), 0, 1)
    # The published logit definition ascends the logit: its gradient is our relevancy.
    theirs = raw if name == "logit" else -raw
    assert ours.shape == theirs.shape
    top = np.abs(theirs).max(-1, keepdims=True)
    assert (np.abs(ours - theirs) <= 1e-3 * top + 1e-9).all()


@pytest.mark.parametrize("target", ("true", "other"))
@pytest.mark.parametrize(("variant", "name"), CASES)
def test_every_token_equals_the_published(
    variant, name, target, oracle, published_model
):
    source = oracle(variant)
    label = source.label if target == "true" else source["base"]["other_class"]
    actual = vitjax.relevancy(
        published_model(variant),
        source.images,
        np.asarray(label, np.int32),
        query="all",
        **OPTIONS[name],
    )
    assert_close(actual, source["gradients"][f"grad_{name}_{target}"], name)


@pytest.mark.parametrize("name", tiny.slow_but(OPTIONS, "paper", "double"))
def test_the_real_model_equals_the_published(name, oracle, published_model):
    source = oracle("setA")
    actual = vitjax.relevancy(
        published_model("setA"), source.images[:6], source.label[:6], **OPTIONS[name]
    )
    assert_close(actual, source["gradients"][f"grad_{name}_true"][:6], name)


LABEL = np.array([1, 4, 2], np.int32)


def assert_last_block_is_the_whole_networks_gradient(model, logits, actual):
    """There, the loss of the block's output is the loss of the model's answer."""
    # Slopes of the logarithm of the class's probability, summed over all queries.
    weights = np.float32(np.eye(7)[LABEL] - softmax(logits, axis=1))
    slopes = tiny.attention_slopes(model, tiny.images(model.config), weights)[-1]
    expected = np.asarray(slopes).sum(2)
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ("post_cls", "pooled", *tiny.QUICK))
def test_the_last_block_is_the_whole_networks_gradient(name):
    model, images, logits, _ = tiny.traced(name)
    actual = vitjax.relevancy(model, images, LABEL)[-1]
    assert_last_block_is_the_whole_networks_gradient(model, logits, actual)


@pytest.mark.slow
def test_an_earlier_block_is_the_last_one_of_a_shorter_network():
    model, images, *_ = tiny.traced("registers")
    encoder = model.params["Transformer"]
    first = jax.tree.map(lambda leaf: leaf[:1], encoder["encoderblock"])
    short = model.replace(
        params=model.params | {"Transformer": encoder | {"encoderblock": first}},
        config=dataclasses.replace(model.config, depth=1),
    )
    actual = vitjax.relevancy(model, images, LABEL)[0]
    logits, _ = vitjax.forward(short, images)
    assert_last_block_is_the_whole_networks_gradient(short, logits, actual)


@pytest.mark.parametrize(
    "options", ({"of": "mlp"}, {"loss": "hinge"}, {"query": "cls"})
)
def test_unknown_options_are_refused(options):
    model = tiny.make(tiny.CONFIGS["plain"])
    with pytest.raises((ValueError, TypeError)):
        relevancy(model, tiny.images(model.config), LABEL, **options)


@pytest.mark.parametrize("name", ("plain", "pooled"))
def test_what_is_neglected_is_a_difference_of_two_shares(name):
    model, images, _, trace = tiny.traced(name)
    prefix, weights = model.config.prefix, trace.attention_weights
    actual = np.asarray(vitjax.helpful_minus_attended(model, images, LABEL))
    assert actual.shape == (2, 3, 2, 16)
    assert np.abs(actual).max() <= 1
    helpful = np.maximum(vitjax.relevancy(model, images, LABEL)[..., prefix:], 0)
    helps = helpful.sum(-1) > 0
    assert helps.any()
    np.testing.assert_allclose(actual.sum(-1), np.where(helps, 0, -1), atol=1e-6)
    # Written another way: attention from the trace, relevancy by itself.
    rows = slice(0, 1) if model.config.class_token else slice(prefix, None)
    attended = weights[..., rows, prefix:].mean(3)
    attended = attended / attended.sum(-1, keepdims=True)
    total = np.where(helps, helpful.sum(-1), 1)[..., None]
    np.testing.assert_allclose(actual, helpful / total - attended, atol=1e-6)


def test_where_nothing_would_help_only_attention_is_left():
    values = np.array([[0, 0, 0], [1, 0, 3]], np.float32)
    actual = jax.jit(shares)(values)
    np.testing.assert_array_equal(actual, [[0, 0, 0], [0.25, 0, 0.75]])
    slopes = jax.jit(jax.jacobian(lambda x: shares(x[None])[0]))(values[0])
    assert np.isfinite(slopes).all()
