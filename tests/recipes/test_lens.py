"""The recipes `lens` and `errors`: rows against whole forward passes."""

import functools

import jax
import numpy as np
import pytest
import tiny
from fake_context import FakeContext
from photos import CLASSES, Noise

import vitjax
from vitjax.recipes import lens as lens_recipe
from vitjax.recipes.errors import ERRORS
from vitjax.recipes.lens import LENS

LABELS = [CLASSES[index % 6] for index in range(20)]
OPTIONS = {"train": "train", "steps": 5, "learning_rate": 1e-2}


@functools.cache
def context_of(tokens):
    """A run of the recipe, fitted on other images than those that are measured."""
    model = tiny.make(tiny.CONFIGS["registers"], classes=CLASSES)
    context = FakeContext(model, Noise(LABELS), others={"train": Noise(LABELS, 1)})
    context.run(LENS.with_options(OPTIONS | {"tokens": tokens}))
    return context


def softmax(logits):
    return np.asarray(jax.nn.softmax(logits), np.float64)


@pytest.mark.parametrize("tokens", tiny.slow_but(lens_recipe.TOKENS, "all"))
def test_rows_of_the_lens_are_those_of_its_states(tokens):
    context = context_of(tokens)
    model, rows, (images, label) = context.model, context.arrays, context.loaded
    options = OPTIONS | {"tokens": tokens, "batch_size": 8}
    options.pop("train")
    lens = vitjax.fit_tuned_lens(model, Noise(LABELS, 1), **options)
    logits, trace = vitjax.forward(model, images, capture=("residual",))
    p = softmax(logits)
    states = {"projection": trace.residual}
    states["lens"] = vitjax.apply_lens(lens, trace.residual)
    for name, each in states.items():
        read = np.moveaxis(vitjax.project_tokens(model, each), 0, 1)
        q = softmax(read[:, :, 0])
        kl = (p[:, None] * np.log(p[:, None] / q)).sum(-1)
        np.testing.assert_allclose(rows[f"kl_by_{name}"], kl, atol=2e-5)
        ranks = vitjax.rank(read, label[:, None, None])
        np.testing.assert_array_equal(rows[f"rank_by_{name}"], ranks[..., 0])
        np.testing.assert_array_equal(rows[f"prediction_by_{name}"], q.argmax(-1))
        assert (f"rank_tokens_by_{name}" in rows) == (tokens == "all")
        if tokens == "all":
            equal = rows[f"rank_tokens_by_{name}"] == ranks
            assert equal.mean() > 0.99
        mean = p.mean(0)
        bias = (mean * np.log(mean / q.mean(0))).sum(-1)
        np.testing.assert_allclose(rows[f"bias_by_{name}"].mean(0), bias, atol=2e-5)
    assert (rows["kl_by_projection"][:, -1] < 1e-6).all()
    assert tokens == "all" or (rows["kl_by_lens"][:, -1] < 1e-6).all()
    assert set(rows) <= set(LENS.dims)


def test_a_lens_is_fitted_on_other_images():
    context = context_of("all")
    study = LENS.describe(context, **OPTIONS)
    assert study["train"] == {"id": "noise/1; 20 images", "images": 20}
    assert study["shared_images"] == 0
    with pytest.raises(ValueError, match="--train SOURCE"):
        LENS.passes(context)


def test_a_lens_is_the_same_again_so_that_a_resumed_run_is_an_uninterrupted_one():
    context = context_of("all")
    (again,) = LENS.passes(context, **OPTIONS, tokens="all")
    with jax.default_matmul_precision("highest"):
        carry = again.setup().carry
    assert carry.lenses["lens"].weights.any()
    jax.tree.map(np.testing.assert_array_equal, carry, context.carry)


@pytest.mark.parametrize("name", tiny.slow_but(tiny.HEADS, "mean_of_norms"))
def test_errors_follow_the_answer_over_the_blocks(name):
    model = tiny.make(tiny.HEADS[name], classes=CLASSES)
    images = tiny.images(model.config, 4)
    rows = ERRORS.with_options({"top": 2})
    rows = jax.jit(rows.run_step)(model, tiny.batch_of(images, [0] * 4), ())
    logits, _ = vitjax.forward(model, images)
    order = np.argsort(-np.asarray(logits), axis=-1)
    np.testing.assert_array_equal(rows["rivals"], order[:, :3])
    np.testing.assert_array_equal(rows["prediction"], order[:, 0])
    layered = [name for name, axes in ERRORS.dims.items() if "layer" in axes]
    last = {name: np.asarray(rows[name])[:, -1] for name in layered}
    true = np.take_along_axis(np.asarray(logits), order[:, :3], 1)
    np.testing.assert_allclose(last["rival_logits"], true, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(last["top_classes"], order[:, :2])
    p = softmax(logits)
    np.testing.assert_allclose(last["entropy"], -(p * np.log(p)).sum(-1), atol=1e-4)
    np.testing.assert_allclose(
        last["energy"], np.log(np.exp(logits).sum(-1)), atol=1e-4, rtol=1e-4
    )
