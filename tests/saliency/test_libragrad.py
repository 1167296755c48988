"""LibraGrad: products of block 0 and all biases add up to what the head is given."""

import jax
import numpy as np
import pytest
import tiny

import vitjax
from vitjax.models.backward import block_inputs, scan_reverse, unembed
from vitjax.saliency import libragrad
from vitjax.saliency.passes import target_logit
from vitjax.types import Edits

TARGET = np.array([1, 4, 2], np.int32)
KINDS = ("plain", "layer_scale", "swiglu", "tanh", "pooled", "clip", "cls_mean")


@pytest.mark.parametrize("kind", tiny.slow_but(KINDS, "swiglu", "pooled", "clip"))
def test_products_and_biases_add_up(kind):
    model = tiny.make(tiny.KINDS[kind])
    images = tiny.images(model.config)

    @jax.jit
    def terms(model, images):
        """Products and biases of the blocks, and what reaches the last one's output."""
        edits, logit = Edits(), target_logit(TARGET)
        reader = libragrad.libragrad(model, TARGET, edits)
        x, inputs = block_inputs(model, images, edits)
        _, parts = scan_reverse(
            model,
            x,
            inputs,
            logit,
            reader.backward,
            state=reader.start,
            edits=edits,
            rules=reader.rules,
            fields=reader.fields,
        )
        slope = jax.grad(lambda x: logit(unembed(model, x, edits, libragrad.LIBRA)))(x)
        return *parts, (x * slope).sum((1, 2))

    products, biases, expected = map(np.asarray, terms(model, images))
    total = products[0].sum(1) + biases.sum((0, 2))
    scale = max(1, np.abs(expected).max())
    np.testing.assert_allclose(total, expected, atol=2e-6 * scale)
    assert np.abs(biases).max() > 1e-3  # they matter
    if kind == "pooled":
        maps = vitjax.explain(model, images, TARGET, method="libragrad")
        shown = (products.sum(0) + biases.sum(0))[:, model.config.prefix :]
        np.testing.assert_allclose(maps, shown, atol=1e-5 * scale)


def test_gradients_times_inputs_are_slopes():
    """Scaling what enters block 0 of one patch moves the logit by its entry."""
    model = tiny.make(tiny.CONFIGS["plain"])
    images, patch, step = tiny.images(model.config), 5, 1e-2
    maps = vitjax.explain(model, images, TARGET, method="input_x_gradient")
    token = np.zeros((1, model.config.tokens, 1), np.float32)
    token[0, patch + 1] = step
    below, above = (
        vitjax.forward(
            model,
            images,
            edits=vitjax.Edits(
                taps={"embedding": vitjax.TapEdit(scale=1 + sign * token)}
            ),
        )[0][np.arange(3), TARGET]
        for sign in (-1, 1)
    )
    slope = np.asarray(above - below) / (2 * step)
    np.testing.assert_allclose(maps[:, patch], slope, rtol=2e-2, atol=2e-3)
