"""Products that add up: equal to projecting every stream by itself."""

import jax
import numpy as np
import published
import pytest
import tiny

from vitjax.analysis import fused_projection
from vitjax.analysis.class_space import project, project_tokens, rank, take_label
from vitjax.models.forward import forward


@pytest.mark.parametrize("name", ("plain", "gap", "layer_scale"))
def test_products_divided_by_sigma_are_the_projection(name):
    model = tiny.make(tiny.CONFIGS[name])
    states = np.random.default_rng(0).normal(2, 3, (2, 5, 16)).astype(np.float32)
    space = fused_projection.fold(model.class_space)
    products = fused_projection.product(space, states)
    logits = products * fused_projection.inverse_sigma(space, states)[..., None]
    expected = project(model.class_space, states)
    np.testing.assert_allclose(logits + space.beta[None, None], expected, atol=1e-4)


@pytest.mark.parametrize("name", tiny.ENCODERS)
def test_products_add_up_to_the_true_logits_of_every_kind(name):
    model = tiny.make(tiny.ENCODERS[name])
    rng, prefix = np.random.default_rng(0), model.config.prefix
    shape = 2, 2, model.config.tokens, 16
    x, y = rng.normal(2, 3, shape).astype(np.float32)
    space = fused_projection.fold(model.class_space, prefix)
    total = fused_projection.product(space, x) + fused_projection.product(space, y)
    logits = fused_projection.logits(space, total, x + y)
    expected = project_tokens(model, x + y)
    np.testing.assert_allclose(logits, expected, atol=2e-4)
    label = np.array([3, 6], np.int32)
    true = fused_projection.label_logit(space, total, x + y, label)
    np.testing.assert_allclose(true, take_label(logits, label[:, None]), atol=1e-5)


def test_the_stream_adds_up_on_real_weights(oracle, published_model):
    model, images = published_model("setA"), oracle("setA").images[:2]
    label = oracle("setA").label[:2]
    fields = ("embedding", "residual", "attention_update", "mlp_update")
    _, trace = jax.jit(forward, static_argnames="capture")(
        model, images, capture=fields
    )
    space = fused_projection.fold(model.class_space)
    total = fused_projection.product(space, trace.embedding)
    for layer in range(model.config.depth):
        total += fused_projection.product(space, trace.attention_update[layer])
        total += fused_projection.product(space, trace.mlp_update[layer])
    ranks, logits = fused_projection.rank_and_logit(
        space, total, trace.residual[-1], label
    )
    direct = project(model.class_space, trace.residual[-1])
    np.testing.assert_allclose(logits, take_label(direct, label[:, None]), atol=1e-4)
    difference = np.abs(np.asarray(ranks) - np.asarray(rank(direct, label[:, None])))
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.99
    assert published.CONFIGS["setA"] == model.config


def test_a_label_never_counts_against_itself():
    space = fused_projection.fold(tiny.make(tiny.CONFIGS["plain"]).class_space)
    states = np.random.default_rng(0).normal(size=(7, 4, 16)).astype(np.float32)
    products = fused_projection.product(space, states)
    ranks = [
        fused_projection.rank_and_logit(
            space, products, states, np.full(7, c, np.int32)
        )[0]
        for c in range(7)
    ]
    # Over all classes the ranks of a state are a permutation of 0 .. C-1.
    np.testing.assert_array_equal(
        np.sort(np.stack(ranks), axis=0),
        np.broadcast_to(np.arange(7)[:, None, None], (7, 7, 4)),
    )


@pytest.mark.parametrize("dtype", ("uint8", "int8", "int64"))
def test_labels_of_any_integers_and_classes_that_tie(dtype):
    """More classes than a byte holds; ranks of a head of zeros are at chance."""
    model = tiny.make(tiny.CONFIGS["plain"], classes=tuple(map(str, range(300))))
    space = fused_projection.fold(model.class_space)
    states = np.random.default_rng(0).normal(size=(3, 4, 16)).astype(np.float32)
    label = np.array([0, 100, 127], dtype)
    products = fused_projection.product(space, states)
    ranks, _ = fused_projection.rank_and_logit(space, products, states, label)
    direct = rank(project(model.class_space, states), label[:, None])
    assert np.abs(np.asarray(ranks) - np.asarray(direct)).max() <= 1
    empty = space._replace(weight=0 * space.weight, beta=0 * space.beta)
    ranks, _ = fused_projection.rank_and_logit(empty, 0 * products, states, label)
    assert (np.asarray(ranks) == 299 // 2).all()
