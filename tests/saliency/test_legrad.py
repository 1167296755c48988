"""LeGrad against its authors' definition, by finite differences in numpy."""

import jax
import numpy as np
import pytest
import tiny
from scipy.special import erf

import vitjax

TARGET = np.array([1, 4, 2], np.int32)


def in_float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def norm(x, scale, bias, epsilon):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale + bias


def logits_of_mean(model, layer, weights, values, stream_in):
    """Class logits of the mean of all tokens after a block with these weights."""
    cfg, space = model.config, in_float64(model.class_space)
    block = in_float64(jax.tree.map(lambda leaf: leaf[layer], model.block_params))
    gamma = [1.0, 1.0]
    if cfg.layer_scale:
        gamma = [block[f"LayerScale_{i}"]["gamma"] for i in (0, 1)]
    out = block["MultiHeadDotProductAttention_0"]["out"]
    mixed = np.einsum("...hqt,thk->...qhk", weights, values)
    update = np.einsum("...qhk,hkd->...qd", mixed, out["kernel"]) + out["bias"]
    x = stream_in + gamma[0] * update
    first, second = (block["MlpBlock_0"][f"Dense_{i}"] for i in (0, 1))
    hidden = norm(x, **block["LayerNorm_1"], epsilon=cfg.epsilon)
    hidden = hidden @ first["kernel"] + first["bias"]
    hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
    x = x + gamma[1] * (hidden @ second["kernel"] + second["bias"])
    pooled = norm(x.mean(-2), space.norm_scale, space.norm_shift, cfg.epsilon)
    return pooled @ space.embedding.T + space.bias


def authors_map(model, trace, image, target, layers):
    """Sum over blocks of the mean over heads and rows of relu(dz/dA), patches only."""
    total, streams = 0.0, [trace.embedding[image], *trace.residual[:, image]]
    for layer in layers:
        weights = trace.attention_weights[layer, image]
        values = trace.values[layer, image]
        step = 1e-5 * np.eye(weights.size).reshape(-1, *weights.shape)
        ends = [
            logits_of_mean(model, layer, weights + sign * step, values, streams[layer])
            for sign in (1, -1)
        ]
        slope = (ends[0] - ends[1])[:, target].reshape(weights.shape) / 2e-5
        total = total + np.maximum(slope, 0).mean((0, 1))[model.config.prefix :]
    return total


@pytest.mark.parametrize(
    ("name", "layers"),
    (("plain", None), ("registers_gap", (0, 1, 2)), ("layer_scale", [0])),
)
def test_legrad_is_the_authors(name, layers):
    config = vitjax.Config(**vars(tiny.CONFIGS[name]) | {"depth": 3, "image_size": 16})
    model = tiny.make(config)
    images = tiny.images(config)
    actual = vitjax.explain(model, images, TARGET, method="legrad", layers=layers)
    capture = ("attention_weights", "values", "residual", "embedding")
    trace = in_float64(vitjax.forward(model, images, capture=capture)[1])
    for image, (target, ours) in enumerate(zip(TARGET, np.asarray(actual))):
        expected = authors_map(model, trace, image, target, layers or (1, 2))
        np.testing.assert_allclose(ours, expected, atol=2e-4 * expected.max())
