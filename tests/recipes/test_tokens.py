"""Token rows against the public functions and the published code."""

import jax
import numpy as np
import pytest
import tiny

import vitjax
from vitjax.recipes.identifiability import identifiability
from vitjax.recipes.tokens import TOKENS

step, plain_step = jax.jit(TOKENS.run_step), jax.jit(identifiability)
LABELS = np.array([1, 6, -1], np.int32)


@pytest.fixture(scope="module", params=("plain", "registers_gap"))
def case(request):
    """(model, batch whose last image has no label, its rows)."""
    model = tiny.make(tiny.CONFIGS[request.param])
    batch = tiny.batch_of(tiny.images(model.config), LABELS)
    return model, batch, step(model, batch, ())


def test_every_tokens_classes_and_their_probabilities(case):
    model, batch, rows = case
    _, trace = vitjax.forward(model, batch.images, capture=("residual",))
    logits = vitjax.project(model.class_space, trace.residual)
    expected = np.moveaxis(np.asarray(jax.nn.softmax(logits)), 0, 1)
    order = np.argsort(-expected, axis=-1, kind="stable")[..., :5]
    np.testing.assert_array_equal(rows["token_classes"], order)
    shares = np.take_along_axis(expected, order, -1)
    np.testing.assert_allclose(rows["token_probabilities"], shares, atol=1e-6)


def test_what_is_attended_and_what_would_help(case):
    model, batch, rows = case
    _, trace = vitjax.forward(model, batch.images, capture=("attention_weights",))
    prefix, weights = model.config.prefix, np.asarray(trace.attention_weights)
    if model.config.class_token:
        read = weights[..., 0, prefix:]
    else:
        read = weights[..., prefix:, prefix:].mean(-2)
    np.testing.assert_allclose(rows["attended"], np.moveaxis(read, 0, 1), atol=1e-6)
    target = np.where(LABELS >= 0, LABELS, np.asarray(rows["prediction"]))
    found = vitjax.relevancy(model, batch.images, target)[..., prefix:]
    np.testing.assert_allclose(rows["helpful"], np.moveaxis(found, 0, 1), atol=1e-6)


def test_the_rest_is_identifiability(case):
    model, batch, rows = case
    plain = plain_step(model, batch)
    assert set(plain) < set(rows) < set(TOKENS.dims)
    for name, values in plain.items():
        np.testing.assert_allclose(rows[name], values, atol=1e-5)


def test_fewer_classes_than_are_kept():
    model = tiny.make(tiny.CONFIGS["one_block"], classes=("a", "b"))
    rows = step(model, tiny.batch_of(tiny.images(model.config, 1), [0]), ())
    assert rows["token_classes"].shape == (1, 1, 17, 2)
    np.testing.assert_allclose(rows["token_probabilities"].sum(-1), 1, atol=1e-5)


def test_published_classes_of_every_token(oracle, published_model):
    source, stored = oracle("setA"), oracle("setA")["projections"]
    batch = tiny.batch_of(source.images[:8], source.label[:8])
    rows = step(published_model("setA"), batch, ())
    clear = stored["top5gap_hs"][:8].astype(np.float32) > 1e-3
    found = np.asarray(rows["token_classes"])
    np.testing.assert_array_equal(found[clear], stored["top5_hs"][:8][clear])
    assert clear.mean() > 0.9
