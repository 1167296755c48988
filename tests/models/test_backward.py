"""The pass backward that recomputes blocks, against the one that stores them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vitjax import api
from vitjax.models.backward import scan_backward


def score(logits):
    return jnp.sin(logits).sum()


SLOW = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("post_cls", "registers_gap")
]


@pytest.mark.parametrize("name", ("plain", *SLOW))
def test_its_gradients_are_those_of_the_stored_pass(name):
    model = tiny.make(tiny.CONFIGS[name])
    images = tiny.images(model.config)
    edits = api.self_only(model, layers=[0], renormalize=True)

    def read(seen, found):
        return seen + 1, (found.weights, found.weights_gradient, found.stream_gradient)

    @jax.jit
    def back(images):
        return scan_backward(model, images, score, read, state=0, edits=edits)

    seen, (weights, gradients, streams) = back(images)
    assert seen == model.config.depth
    expected = api.attention_gradients(model, images, score, edits=edits)
    np.testing.assert_allclose(gradients, expected, atol=1e-5)
    _, trace = api.forward(model, images, capture=("attention_weights",), edits=edits)
    np.testing.assert_allclose(weights, trace.attention_weights, atol=1e-6)

    def of_patches(moved):  # the patch embedding's bias moves every patch alike
        params = dict(model.params)
        bias = params["embedding"]["bias"] + moved
        params["embedding"] = params["embedding"] | {"bias": bias}
        return score(api.forward(model.replace(params=params), images, edits=edits)[0])

    moved = jax.jit(jax.grad(of_patches))(jnp.zeros(model.config.dim))
    patches = streams[0][:, model.config.prefix :]
    np.testing.assert_allclose(patches.sum((0, 1)), moved, atol=1e-4)
