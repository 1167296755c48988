"""Rules of relevance one by one, and what they conserve."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import vitjax
from vitjax.saliency import lrp
from vitjax.saliency.passes import read_map
from vitjax.types import Edits, layer_norm

TARGET = np.array([1, 4, 2], np.int32)


@pytest.fixture
def draw():
    """Numbers that do not depend on which tests ran before."""
    rng = np.random.default_rng(0)
    return lambda *shape: rng.normal(size=shape).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def pull_back(function, inputs, cotangent):
    """The value at the inputs and their cotangents, in one program."""
    value, back = jax.vjp(function, *inputs)
    return value, back(cotangent)


def test_positive_contributions_get_all_the_relevance(draw):
    """z+ (Chefer et al. 2021, equation 5), written out."""
    x, kernel, bias, relevance = draw(2, 5), draw(5, 4), draw(4), draw(2, 4)
    parts = np.maximum(x[:, :, None] * kernel, 0)
    expected = (parts / parts.sum(1, keepdims=True) * relevance[:, None]).sum(-1)
    rule = lambda x: lrp.positive_dense(x, kernel, bias)  # noqa: E731
    y, (actual,) = pull_back(rule, [x], relevance)
    np.testing.assert_allclose(y, x @ kernel + bias, rtol=1e-5)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(actual.sum(), relevance.sum(), rtol=1e-4)


def test_the_factors_of_a_product_get_half_each(draw):
    left, right, relevance = draw(3, 4), draw(4, 2), draw(3, 2)
    product = functools.partial(lrp.shared_product, "ij,jk->ik")
    y, shares = pull_back(product, [left, right], relevance)
    parts = left[:, :, None] * right[None] / y[:, None] * relevance[:, None]
    np.testing.assert_allclose(shares[0], parts.sum(2) / 2, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(shares[1], parts.sum(0) / 2, rtol=1e-3, atol=1e-5)
    halves = [share.sum() for share in shares]
    np.testing.assert_allclose(halves, relevance.sum() / 2, rtol=1e-3)


def test_an_addition_keeps_the_total(draw):
    x, update, relevance = draw(2, 3, 4), draw(2, 3, 4), draw(2, 3, 4)
    _, parts = pull_back(lrp.normalized_add, [x, update], relevance)
    assert all(np.isfinite(part).all() for part in parts)
    total = sum(part.sum((1, 2)) for part in parts)
    np.testing.assert_allclose(total, relevance.sum((1, 2)), rtol=1e-3, atol=1e-4)


def test_what_only_scales_hands_relevance_on(draw):
    x, relevance = draw(2, 4), draw(2, 4)
    rule = lambda x: lrp.unchanged(x, jax.nn.gelu(x))  # noqa: E731
    _, (actual,) = pull_back(rule, [x], relevance)
    np.testing.assert_array_equal(actual, relevance)


def test_rules_that_are_derivatives_of_something_frozen(draw):
    """AttnLRP: relevance over value is the cotangent (Achtibat et al. 2024)."""
    x, cotangent = draw(2, 6), draw(2, 6)
    scale, bias = draw(6), draw(6)
    norm = lrp.attention_aware(0.0).norm
    rule = lambda x: norm(x, scale, bias, epsilon=1e-6)  # noqa: E731
    y, (actual,) = pull_back(rule, [x], cotangent)
    ordinary = jax.jit(functools.partial(layer_norm, epsilon=1e-6))(x, scale, bias)
    np.testing.assert_allclose(y, ordinary, rtol=1e-5, atol=1e-6)
    sigma = np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    through = scale * cotangent / sigma
    expected = through - through.mean(-1, keepdims=True)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    rule = lambda x: lrp.proportional(x, jax.nn.gelu(x))  # noqa: E731
    y, (actual,) = pull_back(rule, [x], cotangent)
    np.testing.assert_allclose(y, jax.nn.gelu(x), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(actual * x, cotangent * y, rtol=1e-4, atol=1e-6)
    product = functools.partial(lrp.attention_aware(0.0).product, "ij,jk->ik")
    left, right = draw(3, 4), draw(4, 2)
    y, gradients = pull_back(product, [left, right], jnp.ones((3, 2)))
    for factor, gradient in zip((left, right), gradients):
        np.testing.assert_allclose((factor * gradient).sum(), y.sum() / 2, rtol=1e-3)


def test_the_gamma_rule_favors_contributions_of_the_outputs_sign(draw):
    x, kernel, bias, cotangent = draw(2, 5), draw(5, 4), draw(4), draw(2, 4)
    gamma = 0.3
    y = x @ kernel + bias
    parts = np.concatenate(
        [x[:, :, None] * kernel, np.broadcast_to(bias, (2, 1, 4))], axis=1
    )
    same = np.where(np.sign(parts) == np.sign(y)[:, None], parts, 0)
    weighed = parts + gamma * same
    share = weighed / weighed.sum(1, keepdims=True)
    expected = (share * (cotangent * y)[:, None]).sum(-1)[:, :5]
    rule = lambda x: lrp.gamma_dense(gamma, x, kernel, bias)  # noqa: E731
    _, (actual,) = pull_back(rule, [x], cotangent)
    np.testing.assert_allclose(actual * x, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", tiny.slow_but(("registers", "gap"), "gap"))
def test_attnlrp_conserves_the_logit(name):
    """Exactly, through stream, norms, MLP and head; softmax would absorb some."""
    model = without_biases_and_values(tiny.make(tiny.CONFIGS[name]))
    images = tiny.images(model.config)
    logits = vitjax.forward(model, images)[0][np.arange(3), TARGET]

    def total(model, target, edits):
        """Sums over tokens, the last one over all: a map has no prefix tokens."""
        finish = lambda reads: jnp.cumsum(reads.state, axis=1)  # noqa: E731
        return lrp.attnlrp(model, target, edits, gamma=0.0)._replace(finish=finish)

    maps = jax.jit(functools.partial(read_map, total))(model, images, TARGET, Edits())
    np.testing.assert_allclose(maps[:, -1], logits, rtol=1e-3, atol=1e-4)


def without_biases_and_values(model):
    """Only the residual stream, norms and the MLP without biases are left."""

    def drop(path, leaf):
        names = [key.key for key in path]
        dropped = names[-1] == "bias" or "out" in names
        return np.zeros_like(leaf) if dropped else leaf

    params = jax.tree_util.tree_map_with_path(drop, model.params)
    return model.replace(params=params)


def test_a_negative_gamma_is_refused():
    model = tiny.make(tiny.CONFIGS["plain"])
    with pytest.raises(ValueError, match="gamma"):
        lrp.attnlrp(model, TARGET, Edits(), gamma=-1.0)
