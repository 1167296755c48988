"""The recipes `lens` and `errors`: rows against whole forward passes; resumed runs."""

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
from vitjax.runner import loop

LABELS = [CLASSES[index % 6] for index in range(20)]
OPTIONS = {"train": "train", "steps": 5, "learning_rate": 1e-2}


class Context(FakeContext):
    """The training images are others than those that are measured."""

    def open_data(self, spec):
        return super().open_data(Noise(LABELS, 1) if spec == "train" else spec)


@functools.cache
def rows_of(tokens):
    """(context, pixels, labels) of a run of the recipe."""
    model = tiny.make(tiny.CONFIGS["registers"], classes=CLASSES)
    context = Context(model, Noise(LABELS))
    context.run(LENS.with_options(OPTIONS | {"tokens": tokens}))
    batches = list(context.batches(context.source, 0, 20))
    images = np.concatenate([batch.images for batch in batches])[:20]
    return context, images, np.arange(20) % 6


def softmax(logits):
    return np.asarray(jax.nn.softmax(logits), np.float64)


@pytest.mark.parametrize("tokens", tiny.slow_but(lens_recipe.TOKENS, "all"))
def test_rows_of_the_lens_are_those_of_its_states(tokens):
    context, images, label = rows_of(tokens)
    model, rows = context.model, context.arrays
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
    context, *_ = rows_of("all")
    study = LENS.describe(context, **OPTIONS)
    assert study["train"] == {"id": "noise/1; 20 images", "images": 20}
    assert study["shared_images"] == 0
    with pytest.raises(ValueError, match="--train SOURCE"):
        LENS.passes(context)


def test_a_resumed_run_is_an_uninterrupted_one(tmp_path, monkeypatch):
    model = tiny.make(tiny.CONFIGS["registers"], classes=CLASSES)
    other = vitjax.open_data(Noise(LABELS, 1), model)
    monkeypatch.setattr(loop.Job, "open_data", lambda self, spec: other)
    monkeypatch.setattr("vitjax.runner.writer.CHUNK_BYTES", 1)
    data = Noise(LABELS)

    def run(out):
        options = {"batch_size": 8, "show_progress": False}
        return vitjax.run(
            "lens", model, data, tmp_path / out, options=OPTIONS, **options
        )

    step, calls = loop.Job.step, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Job, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("resumed")
    rows, expected = run("resumed"), run("whole")
    for name in expected.names:
        np.testing.assert_array_equal(rows[name].values, expected[name].values)


@pytest.mark.parametrize("kind", tiny.slow_but(tiny.KINDS, "mean_of_norms"))
def test_errors_follow_the_answer_over_the_blocks(kind):
    model = tiny.make(tiny.KINDS[kind], classes=CLASSES)
    images = tiny.images(model.config, 4)
    rows = ERRORS.with_options({"top": 2})
    rows = jax.jit(rows.run_step)(model, tiny.batch_of(images, [0] * 4), ())
    logits, _ = vitjax.forward(model, images)
    order = np.argsort(-np.asarray(logits), axis=-1)
    np.testing.assert_array_equal(rows["rivals"], order[:, :3])
    np.testing.assert_array_equal(rows["prediction"], order[:, 0])
    last = {name: np.asarray(rows[name])[:, -1] for name in rows if name in LAYERED}
    true = np.take_along_axis(np.asarray(logits), order[:, :3], 1)
    np.testing.assert_allclose(last["rival_logits"], true, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(last["top_classes"], order[:, :2])
    p = softmax(logits)
    np.testing.assert_allclose(last["entropy"], -(p * np.log(p)).sum(-1), atol=1e-4)
    np.testing.assert_allclose(
        last["energy"], np.log(np.exp(logits).sum(-1)), atol=1e-4, rtol=1e-4
    )


LAYERED = ("rival_logits", "top_classes", "entropy", "energy")
