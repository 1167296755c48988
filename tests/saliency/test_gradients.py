"""Each method against its formula, written another way."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import tiny

from vitjax import api
from vitjax.analysis.interventions import select_tokens
from vitjax.saliency import gradients

TARGET = np.array([1, 4, 2], np.int32)


def logit(logits):
    return logits[np.arange(3), TARGET].sum()


def made(name):
    model = tiny.make(tiny.CONFIGS[name])
    return model, tiny.images(model.config), model.config.prefix


def ask(method, model, images):
    """Compiled: op by op, each would be a program of its own."""
    return jax.jit(method)(model, images, TARGET)


def assert_close(found, expected, tolerance=1e-5):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("target", ("true", "other"))
@pytest.mark.parametrize("variant", (*published.SMALL_NAMES, "setA"))
def test_chefer_equals_the_published(variant, target, oracle, published_model):
    source = oracle(variant)
    images = source.images
    label = source.label if target == "true" else source["base"]["other_class"]
    label, data = label.astype(np.int32), source["chefer"]
    if variant == "setA":
        images, label = images[:8], label[:8]
    found = np.asarray(
        api.explain(published_model(variant), images, label, method="chefer")
    )
    gap = variant == "gap"  # the whole of R there
    theirs = data[f"R_{target}"].mean(1) if gap else data[f"relevance_{target}"]
    theirs = theirs[: len(found)]
    top = np.abs(theirs).max(-1, keepdims=True)
    assert (np.abs(found - theirs) <= 1e-4 * top).all()


@pytest.mark.parametrize(
    "name", ("registers", pytest.param("registers_gap", marks=pytest.mark.slow))
)
def test_chefer_is_its_matrix_recursion(name):
    model, images, prefix = made(name)
    gradients = np.asarray(api.attention_gradients(model, images, logit))
    _, trace = api.forward(model, images, capture=("attention_weights",))
    mixed = np.maximum(gradients * np.asarray(trace.attention_weights), 0).mean(2)
    relevance = np.broadcast_to(np.eye(mixed.shape[-1]), mixed.shape[1:])
    for block in mixed:
        relevance = relevance + block @ relevance
    rows = (
        relevance[:, 0] if model.config.class_token else relevance[:, prefix:].mean(1)
    )
    assert_close(ask(gradients.chefer, model, images), rows[:, prefix:])


@pytest.mark.slow
def test_gradcam_weighs_channels_by_their_mean_gradient():
    model, images, prefix = made("registers")
    depth, length, dim = 2, 20, 16
    _, trace = api.forward(model, images, capture=("residual",))

    def moved(zeros):
        entry = {"Transformer": {"encoderblock": {"residual": {"value": zeros}}}}
        variables = {"params": model.params, "perturbations": entry}
        return logit(model.module.apply(variables, images))

    gradient = jax.jit(jax.grad(moved))(jnp.zeros((depth, 3, length, dim)))[
        0, :, prefix:
    ]
    states = trace.residual[0, :, prefix:]
    expected = np.maximum((states * gradient.mean(1, keepdims=True)).sum(-1), 0)
    assert_close(ask(gradients.gradcam, model, images), expected)


def test_legrad_is_the_positive_part_of_each_blocks_own_gradient():
    model, images, prefix = made("plain")
    relevancy = api.relevancy(model, images, TARGET, loss="negative_logit")
    expected = np.maximum(relevancy[..., prefix:], 0) / 17
    assert_close(ask(gradients.legrad, model, images), expected)
    model, images, prefix = made("registers_gap")
    whole = api.attention_gradients(model, images, logit)[-1]
    expected = np.maximum(whole[:, :, prefix:], 0).sum(2)[..., prefix:] / 18
    assert_close(ask(gradients.legrad, model, images)[-1], expected)


@pytest.mark.parametrize(
    "name", ("plain", pytest.param("registers_gap", marks=pytest.mark.slow))
)
def test_integrated_gradients_are_complete(name):
    model, images, _ = made(name)
    whole = logit(api.forward(model, images)[0])
    nothing = logit(api.forward(model, 0 * images)[0])
    found = api.explain(model, images, TARGET, method="integrated_gradients", steps=48)
    np.testing.assert_allclose(found.sum(), whole - nothing, atol=2e-3)


def test_integrated_gradients_are_sums_over_pixels():
    model, images, _ = made("wide")  # 2 x 5 patches
    nodes, weights = np.polynomial.legendre.leggauss(3)

    def of_pixels(images):
        return logit(api.forward(model, images)[0])

    slope = jax.jit(jax.grad(of_pixels))
    total = sum(
        w / 2 * images * slope(images * np.float32((n + 1) / 2))
        for n, w in zip(nodes, weights)
    )
    expected = np.asarray(total).reshape(3, 2, 8, 5, 8, 3).sum((2, 4, 5))
    found = api.explain(model, images, TARGET, method="integrated_gradients", steps=3)
    assert_close(found, expected.reshape(3, 10), 1e-4)


@pytest.mark.parametrize("name", ("layer_scale", "registers_gap", "gap", "post_cls"))
def test_class_projection_is_what_each_token_writes(name):
    """Vectors written by token, through norms held fixed, in numpy."""
    model, images, prefix = made(name)
    cfg, space = model.config, model.class_space
    fields = ("attention_weights", "values", "attention_update", "residual")
    _, trace = api.forward(model, images, capture=fields)
    rows = slice(0, 1) if cfg.class_token else slice(prefix, None)
    block = jax.tree.map(np.asarray, model.block_params)
    kernel = block["MultiHeadDotProductAttention_0"]["out"]["kernel"]
    bias = block["MultiHeadDotProductAttention_0"]["out"]["bias"]
    vectors = np.einsum(
        "lbhqt,lbthk,lhkd->lbhqtd",
        *(trace.attention_weights[..., rows, :], trace.values, kernel),
    )
    written = vectors - 0
    constant = np.broadcast_to(bias[:, None, None], written.sum((2, 4)).shape)
    if cfg.norm == "residual_post":
        out = written.sum((2, 4)) + bias[:, None, None]
        sigma = np.sqrt(out.var(-1, keepdims=True) + cfg.epsilon)
        scale = block["LayerNorm_0"]["scale"]
        written = (written - written.mean(-1, keepdims=True)) * scale[
            :, None, None, None, None
        ]
        written = written / sigma[:, :, None, :, None]
        constant = (bias - bias.mean(-1, keepdims=True))[:, None, None]
        constant = constant * scale[:, None, None] / sigma
        constant = constant + block["LayerNorm_0"]["bias"][:, None, None]
    if cfg.layer_scale:
        gamma = block["LayerScale_0"]["gamma"]
        written = written * gamma[:, None, None, None, None]
        constant = constant * gamma[:, None, None]
    # The vectors and the constant are the update: nothing was forgotten.
    assert_close(written.sum((2, 4)) + constant, trace.attention_update[:, :, rows])
    state = np.asarray(trace.residual)[-1][:, rows].mean(1)
    sigma = np.sqrt(state.var(-1) + cfg.epsilon)
    read = np.asarray(space.embedding)[TARGET] * np.asarray(space.norm_scale)
    read = (read - read.mean(-1, keepdims=True)) / sigma[:, None]
    expected = np.einsum("lbhqtd,bd->lbht", written, read) / written.shape[3]
    found = ask(gradients.class_projection, model, images)
    assert_close(found, expected[..., prefix:])


@pytest.mark.parametrize("name", ("plain", "gap"))
def test_occlusion_is_the_model_without_the_token(name):
    model, images, _ = made(name)
    found = ask(gradients.occlusion, model, images)
    whole = api.forward(model, images)[0]
    for patch in (0, 7, 15):
        others = np.delete(np.arange(16, dtype=np.int32), patch)
        edits = select_tokens(np.tile(others, (3, 1)))
        rest = api.forward(model, images, edits=edits)[0]
        lost = (whole - rest)[np.arange(3), TARGET]
        np.testing.assert_allclose(found[:, patch], lost, atol=2e-5)


def test_random_maps_belong_to_the_picture():
    model, images, _ = made("plain")
    found = gradients.random(model, images, TARGET)
    np.testing.assert_array_equal(
        gradients.random(model, images[::-1], TARGET), found[::-1]
    )
    assert len(np.unique(found)) == found.size
    other = gradients.random(model, images, TARGET, seed=1)
    assert (np.asarray(other) != np.asarray(found)).all()
    assert abs(float(found.mean()) - 0.5) < 0.15


def test_no_step_is_refused():
    model, images, _ = made("plain")
    with pytest.raises(ValueError, match="at least 1"):
        gradients.integrated_gradients(model, images, TARGET, steps=0)
