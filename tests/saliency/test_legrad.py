"""LeGrad against its authors' definition, by finite differences in numpy."""

import jax
import numpy as np
import pytest
import tiny
from numpy_vit import layer_norm, reference

import vitjax

TARGET = np.array([1, 4, 2], np.int32)


def logits_of_mean(model, space, images, layer, step):
    """The target's logit of the mean of all tokens after a block whose attention
    weights, of every image, are moved by a step.
    """
    means = []

    def edit(field, block, image, x):
        if (field, block) == ("residual", layer):
            means.append(x.mean(0))
        return x + step if (field, block) == ("attention_weights", layer) else x

    reference(model, images, edit)
    norm = {"scale": space.norm_scale, "bias": space.norm_shift}
    z = layer_norm(np.stack(means), norm, space.epsilon)
    return (z @ space.embedding.T + space.bias)[np.arange(3), TARGET]


@pytest.mark.parametrize(
    ("name", "layers"),
    (
        ("plain", None),
        pytest.param("registers_gap", (0, 1, 2), marks=pytest.mark.slow),
        ("layer_scale", [0]),
    ),
)
def test_legrad_is_the_authors(name, layers):
    """Sum over blocks of the mean over heads and rows of relu(dz/dA), patches only."""
    config = vitjax.Config(**vars(tiny.CONFIGS[name]) | {"depth": 3, "image_size": 16})
    model, images = tiny.make(config), tiny.images(config)
    actual = vitjax.explain(model, images, TARGET, method="legrad", layers=layers)
    model, space = jax.device_get((model, model.class_space))
    shape, expected = (config.heads, config.tokens, config.tokens), 0.0
    for layer in layers or (1, 2):
        steps = 1e-5 * np.eye(np.prod(shape)).reshape(-1, *shape)
        above, below = (
            [logits_of_mean(model, space, images, layer, s * x) for x in steps]
            for s in (1, -1)
        )
        slopes = np.subtract(above, below).T.reshape(3, *shape) / 2e-5
        expected = expected + np.maximum(slopes, 0).mean((1, 2))[:, config.prefix :]
    atol = 2e-4 * expected.max(1, keepdims=True)
    assert (np.abs(actual - expected) <= atol).all()
