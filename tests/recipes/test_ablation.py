"""The recipe `ablation`: rows against `vitjax.ablate` in whole forward passes."""

import functools

import jax
import numpy as np
import pytest
import tiny
from fake_context import FakeContext
from photos import CLASSES

import vitjax
from vitjax.recipes import ablation, schema
from vitjax.recipes.ablation import ABLATION, FIELDS
from vitjax.types import Edits

NAMES = tiny.slow_but(("plain", "registers_gap", "post_cls"), "registers_gap")
OPTIONS = {"reference_images": 9, "order_images": 5, "draws": 2}
FORWARD = jax.jit(lambda m, x, e: vitjax.forward(m, x, edits=e)[0])


class Photos:
    """Noise of four classes; image 3 has no known one."""

    def __init__(self, seed=0):
        self.seed, self.id = seed, f"noise/{seed}"

    def __len__(self):
        return 13

    def __getitem__(self, index):
        pixels = np.random.default_rng([self.seed, index]).integers(
            256, size=(32, 32, 3)
        )
        label = None if index == 3 else CLASSES[index % 4]
        return vitjax.data.records.Record(
            image=pixels.astype(np.uint8), label=label, name=str(index)
        )


class Context(FakeContext):
    def open_data(self, spec):
        return super().open_data(Photos(1) if spec == "other" else spec)


@functools.cache
def swept(name="plain"):
    """(context, pixels, labels, means) of a run of the recipe."""
    config = tiny.CONFIGS[name]
    context = FakeContext(tiny.make(config, classes=CLASSES), Photos())
    context.run(ABLATION.with_options(OPTIONS))
    batches = list(context.batches(context.source, 0, 13))
    images = np.concatenate([b.images for b in batches])[:13]
    label = np.concatenate([b.label for b in batches])[:13]
    reference = [i * 13 // 9 for i in range(9)]
    _, trace = vitjax.forward(context.model, images[reference], capture=FIELDS)
    means = {f: np.asarray(getattr(trace, f)).mean(1, keepdims=True) for f in FIELDS}
    return context, images, label, means


def edited(context, images, edits):
    with jax.default_matmul_precision("highest"):
        return np.asarray(FORWARD(context.model, images, edits))


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_those_of_whole_passes(name):
    context, images, label, means = swept(name)
    rows, depth = context.arrays, context.model.config.depth
    before = edited(context, images, Edits())
    prediction, each = before.argmax(-1), np.arange(13)
    np.testing.assert_array_equal(rows["prediction"], prediction)
    parts = [("mixed_values", "head", (0, 1)), ("mixed_values", "head", (1, 0))]
    parts += [("attention_update", "attention", (0,))]
    parts += [("mlp_update", "mlp", (depth - 1,))]
    for field, part, (layer, *heads) in parts:
        for kind, value in (("zero", 0.0), ("mean", means[field])):
            where = {"layers": [layer], "heads": heads or None}
            edits = vitjax.ablate(context.model, field, value=value, **where)
            after = edited(context, images, edits)
            index = (slice(None), layer, *heads)
            own = label >= 0
            effect = (before - after)[each[own], label[own]]
            found = rows[f"effect_{kind}_{part}"][index]
            np.testing.assert_allclose(found[own], effect, atol=2e-5)
            assert np.isnan(found[~own]).all() and np.abs(effect).max() > 1e-3
            np.testing.assert_allclose(
                rows[f"effect_predicted_{kind}_{part}"][index],
                (before - after)[each, prediction],
                atol=2e-5,
            )
            predictions = rows[f"prediction_{kind}_{part}"][index]
            np.testing.assert_array_equal(predictions, after.argmax(-1))


def test_sets_of_heads_are_the_most_important_and_random_ones():
    context, images, label, means = swept()
    rows, config = context.arrays, context.model.config
    counts = ablation.head_counts(config)
    np.testing.assert_array_equal(context.static["ablated"], counts)
    assert counts == (1, 2)
    order_images = [i * 13 // 5 for i in range(5)]
    for kind, value in (("zero", 0.0), ("mean", means["mixed_values"])):
        names = schema.EFFECT_HEAD(kind), schema.EFFECT_PREDICTED_HEAD(kind)
        true, predicted = (rows[name][order_images] for name in names)
        effect = np.where(np.isnan(true), predicted, true).reshape(5, -1).mean(0)
        order = np.argsort(-effect)
        for place, count in enumerate(counts):
            heads = np.isin(np.arange(4), order[:count]).reshape(2, 2)
            edits = vitjax.ablate(config, "mixed_values", heads=heads, value=value)
            correct = edited(context, images, edits).argmax(-1) == label
            measured = rows[schema.CORRECT_TOP_HEADS(kind)][:, place]
            np.testing.assert_array_equal(measured, correct)


def test_random_sets_are_nested_and_depend_on_the_seed_alone():
    config = tiny.CONFIGS["registers"]
    orders = np.array([[2, 0, 3, 1], [0, 1, 2, 3]], np.int32)
    sets = [
        np.asarray(
            ablation.head_sets(config, order, np.array(7, np.int32), (1, 2, 3), 5)
        )
        for order in jax.numpy.asarray(orders)
    ]
    sets = [each.reshape(6, 3, 4) for each in sets]
    assert (sets[0].sum(-1) == [1, 2, 3]).all()
    assert (sets[0][:, :-1] <= sets[0][:, 1:]).all()
    np.testing.assert_array_equal(sets[0][0, 1], [True, False, True, False])
    np.testing.assert_array_equal(sets[0][1:], sets[1][1:])
    assert len(np.unique(sets[0][1:, 0], axis=0)) > 1


def test_rows_do_not_depend_on_the_batch_or_the_images_that_are_run():
    context, *_ = swept()
    other = FakeContext(context.model, Photos(), batch_size=3, limit=5)
    other.run(ABLATION.with_options(OPTIONS))
    for name, values in other.arrays.items():
        np.testing.assert_allclose(
            values, context.arrays[name][:5], atol=2e-5, err_msg=name
        )


def test_another_reference_and_no_control():
    context, *_ = swept()
    other = Context(context.model, Photos(), limit=2)
    options = {"reference": "other", "reference_images": 4, "draws": 0}
    recipe = ABLATION.with_options({**options, "ablations": ("mean",)})
    study = recipe.describe(other, **recipe.keywords)
    assert study["reference"] == "noise/1; 4 images"
    rows = other.run(recipe)
    assert set(rows) == {n for n in ABLATION.dims if "zero" not in n} - {
        "correct_top_mean",
        "correct_random_mean",
    }
    same = context.arrays["effect_mean_mlp"][:2]
    assert np.abs(rows["effect_mean_mlp"] - same).max() > 1e-4


@pytest.mark.parametrize(
    "options",
    [{"ablations": ()}, {"ablations": ("median",)}, {"order_images": 0}, {"draws": -1}],
)
def test_options_out_of_range(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        ABLATION.with_options(options)
