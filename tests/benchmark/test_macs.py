"""Multiplications: counted in a traced program, and by hand."""

import jax
import jax.numpy as jnp
import pytest

import vitjax
from vitjax.benchmark.bench import noise, plain_forward
from vitjax.benchmark.macs import (
    forward_multiplications,
    multiplications,
    ratio_floor,
)
from vitjax.recipes.registry import RECIPES


@pytest.mark.parametrize("class_token", [True, False])
def test_those_of_a_model_are_those_of_its_layers(class_token):
    config = vitjax.Config(
        32, 8, dim=16, depth=3, heads=2, mlp_dim=48, class_token=class_token
    )
    model = vitjax.init(config, classes=50)
    batch = noise(model, 1)
    plain = multiplications(plain_forward, model, batch)
    assert plain == forward_multiplications(config, classes=50)
    step = multiplications(RECIPES["identifiability"].step, model, batch)
    shift = config.dim * 50  # the norm's shift through the head, once per batch
    assert (step - shift) / plain == pytest.approx(ratio_floor(config, classes=50))


def test_the_floor_of_b32_is_what_two_projections_add():
    config = vitjax.checkpoints.registry.VARIANTS["vit_b32"].config
    # 4.4 G multiplications forward (published); 50 tokens x 768 x 1000 per projection
    forward = forward_multiplications(config, classes=1000)
    assert forward == pytest.approx(4.4e9, rel=0.01)
    added = 25 * 50 * 768 * 1000
    assert ratio_floor(config, classes=1000) == pytest.approx(1 + added / forward)


def test_loops_branches_and_nested_programs_are_followed():
    a, b = jnp.ones((2, 3, 4)), jnp.ones((2, 4, 5))
    one = 2 * 3 * 4 * 5  # batch, rows, contracted, columns

    def product(a, b):
        return jnp.einsum("bij,bjk->bik", a, b)

    def scanned(a, b):
        return jax.lax.scan(lambda c, _: (c + product(a, b).sum(), None), 0.0, length=7)

    def branched(a, b):
        several = (lambda: product(a, b), lambda: product(a, b) + product(a, b))
        return jax.lax.cond(a.sum() > 0, *several)

    def repeated(a, b):
        def body(state):
            return state[0] + 1, state[1] + product(a, b)

        return jax.lax.while_loop(lambda s: s[0] < 9, body, (0, jnp.zeros((2, 3, 5))))

    assert multiplications(product, a, b) == one
    assert multiplications(jax.jit(jax.checkpoint(product)), a, b) == one
    assert multiplications(scanned, a, b) == 7 * one
    assert multiplications(branched, a, b) == 2 * one
    assert multiplications(repeated, a, b) == one
    gradient = jax.grad(lambda a, b: product(a, b).sum(), (0, 1))
    assert multiplications(gradient, a, b) == 3 * one


def test_convolutions_count_the_inputs_of_a_group():
    image, kernel = jnp.ones((1, 8, 8, 6)), jnp.ones((3, 3, 2, 12))

    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(
            *(image, kernel, (1, 1), "VALID"),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=3,
        )

    assert multiplications(convolve, image, kernel) == 6 * 6 * 12 * 3 * 3 * 2
