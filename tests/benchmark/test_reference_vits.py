"""The forward pass as others build it is the same function."""

import dataclasses

import jax
import numpy as np
import pytest

import vitjax
from vitjax.benchmark.bench import noise, plain_forward
from vitjax.benchmark.reference_vits import is_plain, linen_forward, timm_forward

CONFIG = vitjax.Config(32, 8, dim=16, depth=2, heads=2, mlp_dim=48)


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
def test_flax_linens_layers_give_the_same_logits(gelu):
    model = vitjax.init(dataclasses.replace(CONFIG, gelu=gelu), classes=5)
    batch = noise(model, 2)
    forward, params = linen_forward(model)
    found = jax.jit(forward)(params, batch)
    np.testing.assert_allclose(found, jax.jit(plain_forward)(model, batch), atol=1e-6)


def test_only_plain_models_are_compared():
    others = {"class_token": False}, {"registers": 1}, {"norm": "residual_post"}
    others += {"qkv_bias": False}, {"layer_scale": True}
    assert is_plain(CONFIG)
    assert not any(is_plain(dataclasses.replace(CONFIG, **other)) for other in others)


def test_timm_is_called_where_it_is_installed():
    pytest.importorskip("torch")
    pytest.importorskip("timm", exc_type=ImportError)
    forward = timm_forward(CONFIG, classes=5, batch_size=2)
    assert forward() is None
