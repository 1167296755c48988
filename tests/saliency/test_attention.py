"""Maps of attention alone, against captured weights and plain matrix products."""

import numpy as np
import pytest
import tiny

from vitjax import api
from vitjax.saliency import attention


def weights_of(model, images):
    _, trace = api.forward(model, images, capture=("attention_weights",))
    return np.asarray(trace.attention_weights)


@pytest.mark.parametrize("name", ("plain", "registers", "registers_gap"))
def test_raw_attention_is_the_answers_row(name):
    model = tiny.make(tiny.CONFIGS[name])
    images, prefix = tiny.images(model.config), model.config.prefix
    weights = weights_of(model, images)
    rows = weights[..., :1, :] if model.config.class_token else weights[..., prefix:, :]
    found = attention.raw_attention(model, images)
    assert found.shape == (2, 3, 2, 16)
    np.testing.assert_allclose(found, rows.mean(-2)[..., prefix:], atol=1e-6)


@pytest.mark.parametrize("name", ("plain", "registers", "gap"))
def test_rollout_is_the_product_of_matrices(name):
    model = tiny.make(tiny.CONFIGS[name])
    images, prefix = tiny.images(model.config), model.config.prefix
    mixed = weights_of(model, images).mean(2)
    product = np.eye(mixed.shape[-1])[None]
    for block in mixed:
        product = (block + np.eye(mixed.shape[-1])) / 2 @ product
    np.testing.assert_allclose(product.sum(-1), 1, atol=1e-5)
    row = product[:, 0] if model.config.class_token else product.mean(1)
    found = attention.rollout_row(model, images)
    np.testing.assert_allclose(found, row, atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(attention.rollout(model, images), found[:, prefix:])
