"""Integrated presence: complete, and the derivative of the model's own masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vitjax import api
from vitjax.saliency import integrated_presence
from vitjax.types import Edits

TARGET = np.array([1, 4, 2], np.int32)


def score(model, images, edits=None):
    logits, _ = api.forward(model, images, edits=edits)
    return jax.nn.log_softmax(logits)[np.arange(3), TARGET]


@pytest.mark.parametrize("name", ("plain", "registers_gap", "gap"))
def test_it_adds_up_to_what_all_patches_bring(name):
    model = tiny.make(tiny.CONFIGS[name])
    images = tiny.images(model.config)
    ask = functools.partial(
        integrated_presence.integrated_presence, steps=96, score="log_probability"
    )
    found = jax.jit(ask)(model, images, TARGET)
    whole = score(model, images)
    # Almost nothing: without any patch, the mean that GAP reads is not defined.
    few = np.ones((1, 1, 1, 1, model.config.tokens), np.float32)
    few[..., model.config.prefix :] = 1e-7
    nothing = score(model, images, Edits(attend=few))
    if name == "plain":
        none = np.zeros((3, 16), bool)
        removed = score(model, images, api.interventions.keep_tokens(none))
        np.testing.assert_allclose(nothing, removed, atol=1e-4)
    np.testing.assert_allclose(found.sum(1), whole - nothing, atol=2e-3)


def test_it_is_the_derivative_of_the_mask():
    model = tiny.make(tiny.CONFIGS["registers"])
    images, prefix = tiny.images(model.config), 4

    def of_mask(mask):
        attend = jnp.concatenate([jnp.ones((3, prefix)), mask], 1)
        return score(model, images, Edits(attend=attend[None, :, None, None])).sum()

    mask = jnp.full((3, 16), 0.4)
    expected = 0.4 * jax.jit(jax.grad(of_mask))(mask)
    attend = jnp.concatenate([jnp.ones((3, prefix)), mask], 1)
    edits = Edits(attend=attend[None, :, None, None])
    found = integrated_presence.presence_gradient(
        model, images, TARGET, "log_probability", edits
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_does_not_exist_is_refused():
    model = tiny.make(tiny.CONFIGS["plain"])
    images = tiny.images(model.config)
    with pytest.raises(ValueError, match="at least 1"):
        integrated_presence.integrated_presence(model, images, TARGET, steps=0)
