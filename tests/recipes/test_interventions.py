"""The recipes `ablation` and `patching`: rows against whole forward passes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from fake_context import FakeContext
from photos import CLASSES, Noise

import vitjax
from vitjax.recipes import interventions, schema
from vitjax.recipes.interventions import ABLATION, PARTS, PATCHING
from vitjax.types import Edits

CONFIGS = {"plain": tiny.CONFIGS["plain"], "pooled": tiny.POOLED}
OPTIONS = {"reference_images": 9, "order_images": 5, "draws": 2}
FORWARD = jax.jit(lambda m, x, e: vitjax.forward(m, x, edits=e)[0])
LABELS = [CLASSES[index % 4] for index in range(13)]
LABELS[3] = None
EACH = np.arange(13)


def fields_of(model, images):
    """Part -> its field of the trace."""
    fields = {part: field for part, (field, _) in PARTS.items()}
    _, trace = vitjax.forward(model, images, capture=tuple(fields.values()))
    return {part: np.asarray(getattr(trace, field)) for part, field in fields.items()}


def replaced(model, images, values, part=None, **where):
    """Class logits with entries of a part replaced, by one program for all parts."""
    config, edits = model.config, Edits()
    sizes = {"heads": (config.depth, config.heads), "layers": config.depth}
    sizes["tokens"] = config.tokens
    for name, value in values.items():
        field, axes = PARTS[name]
        axes = ("heads",) if "head" in axes else [f"{axis}s" for axis in axes]
        masks = {axis: np.zeros(sizes[axis], bool) for axis in axes}
        for axis, chosen in where.items() if name == part else ():
            masks[axis][chosen] = True
        edits &= vitjax.ablate(model, field, value=value, **masks)
    return np.asarray(FORWARD(model, images, edits))


@functools.cache
def swept(name="pooled"):
    """(context, pixels, labels, {ablation: what parts become}) of a run."""
    model = tiny.make(CONFIGS[name], classes=CLASSES)
    context = FakeContext(model, Noise(LABELS), others={"other": Noise(LABELS, 1)})
    context.run(ABLATION.with_options(OPTIONS))
    images, label = context.loaded
    fields = fields_of(model, images[[i * 13 // 9 for i in range(9)]])
    means = {part: values.mean(1, keepdims=True) for part, values in fields.items()}
    zeros = jax.tree.map(np.zeros_like, means)
    return context, images, label, {"zero": zeros, "mean": means}


@pytest.mark.parametrize("name", tiny.slow_but(CONFIGS, "pooled"))
def test_ablation_is_that_of_whole_passes(name):
    context, images, label, kinds = swept(name)
    rows, own = context.arrays, label >= 0  # one has none
    before = replaced(context.model, images, kinds["zero"])
    prediction = before.argmax(-1)
    np.testing.assert_array_equal(rows["prediction"], prediction)
    for part, index, where in (
        ("head", (0, 1), {"heads": (0, 1)}),
        ("head", (1, 0), {"heads": (1, 0)}),
        ("attention", (0,), {"layers": 0}),
        ("mlp", (1,), {"layers": 1}),
    ):
        for kind, values in kinds.items():
            after = replaced(context.model, images, values, part, **where)
            true, predicted, best = (
                rows[family(kind, part)][(slice(None), *index)]
                for family in (
                    schema.EFFECT,
                    schema.EFFECT_PREDICTED,
                    schema.PREDICTION_ABLATED,
                )
            )
            effect = np.where(own, (before - after)[EACH, label], np.nan)
            np.testing.assert_allclose(true, effect, atol=2e-5)
            assert np.nanmax(np.abs(effect)) > 1e-3
            effect = (before - after)[EACH, prediction]
            np.testing.assert_allclose(predicted, effect, atol=2e-5)
            np.testing.assert_array_equal(best, after.argmax(-1))


def test_sets_of_heads_are_the_most_important_and_random_ones():
    context, images, label, kinds = swept()
    rows, counts = context.arrays, interventions.head_counts(context.model.config)
    np.testing.assert_array_equal(context.static["ablated"], counts)
    assert counts == (1, 2)
    order_images = [i * 13 // 5 for i in range(5)]
    for kind, values in kinds.items():
        names = (f(kind, "head") for f in (schema.EFFECT, schema.EFFECT_PREDICTED))
        true, predicted = (rows[name][order_images] for name in names)
        effect = np.where(np.isnan(true), predicted, true).reshape(5, -1).mean(0)
        order = np.argsort(-effect)
        for place, count in enumerate(counts):
            heads = np.isin(np.arange(4), order[:count]).reshape(2, 2)
            after = replaced(context.model, images, values, "head", heads=heads)
            measured = rows[schema.CORRECT_TOP_HEADS(kind)][:, place]
            np.testing.assert_array_equal(measured, after.argmax(-1) == label)


def test_random_sets_are_nested_and_depend_on_the_seed_alone():
    config, seed = tiny.CONFIGS["registers"], np.array(7, np.int32)
    first, second = (
        np.asarray(interventions.head_sets(config, order, seed, (1, 2, 3), 5))
        for order in jnp.array([[2, 0, 3, 1], [0, 1, 2, 3]], jnp.int32)
    )
    first, second = first.reshape(6, 3, 4), second.reshape(6, 3, 4)
    assert (first.sum(-1) == [1, 2, 3]).all()
    assert (first[:, :-1] <= first[:, 1:]).all()
    np.testing.assert_array_equal(first[0, 1], [True, False, True, False])
    np.testing.assert_array_equal(first[1:], second[1:])
    assert len(np.unique(first[1:, 0], axis=0)) > 1


@pytest.mark.slow
def test_ablation_does_not_depend_on_the_batch_or_the_images_that_are_run():
    context, *_ = swept()
    other = FakeContext(context.model, Noise(LABELS), batch_size=3, limit=5)
    other.run(ABLATION.with_options(OPTIONS))
    for name, values in other.arrays.items():
        np.testing.assert_allclose(
            values, context.arrays[name][:5], atol=2e-5, err_msg=name
        )


def test_another_reference_and_no_control():
    context, *_ = swept()
    other = FakeContext(context.model, Noise(LABELS), limit=2, others=context.others)
    options = {"reference": "other", "reference_images": 4, "draws": 0}
    recipe = ABLATION.with_options({**options, "ablations": ("mean",)})
    study = recipe.describe(other, **recipe.keywords)
    assert study["reference"] == "noise/1; 4 images"
    rows = other.run(recipe)
    sets = {schema.CORRECT_TOP_HEADS("mean"), schema.CORRECT_RANDOM_HEADS("mean")}
    assert set(rows) == {n for n in ABLATION.dims if "zero" not in n} - sets
    same = context.arrays["effect_mean_mlp"][:2]
    assert np.abs(rows["effect_mean_mlp"] - same).max() > 1e-4


SORTED = [CLASSES[index // 4] for index in range(16)]


@functools.cache
def patched(name="pooled", tokens="grid"):
    """(context, pixels and labels of all images) of a run of nine."""
    model = tiny.make(CONFIGS[name], classes=CLASSES)
    context = FakeContext(model, Noise(SORTED), limit=9)
    context.run(PATCHING.with_options({"tokens": tokens, "partners": 12}))
    return context, *context.loaded


@pytest.mark.parametrize("name", tiny.slow_but(CONFIGS, "pooled"))
def test_patching_is_that_of_whole_passes(name):
    context, images, label = patched(name)
    rows, model = context.arrays, context.model
    partner, each = rows["partner"], EACH[:9]
    assert (label[partner] != label[:9]).all()
    group = context.static["token_group"].astype(int)
    values = fields_of(model, images[:9])

    def metric(images, *part, **where):
        logits = replaced(model, images, values, *part, **where)
        return logits[each, label[:9]] - logits[each, label[partner]]

    clean, corrupted = metric(images[:9]), metric(images[partner])
    np.testing.assert_allclose(rows["metric_clean"], clean, atol=2e-5)
    np.testing.assert_allclose(rows["metric_corrupted"], corrupted, atol=2e-5)
    for part, index, where in (
        ("residual", (0, 0), {"layers": 0, "tokens": group == 0}),
        ("residual", (0, -1), {"layers": 0, "tokens": group == group.max()}),
        ("head", (1, 1), {"heads": (1, 1)}),
        ("attention", (1,), {"layers": 1}),
        ("mlp", (0,), {"layers": 0}),
    ):
        restored = rows[schema.RESTORED(part)][(slice(None), *index)]
        change = metric(images[partner], part, **where) - corrupted
        np.testing.assert_allclose(restored * (clean - corrupted), change, atol=5e-5)


@pytest.mark.slow
def test_cls_is_a_group_of_its_own():
    context, *_ = patched("plain", tokens="cls")
    grid, *_ = patched("plain")
    rows = context.arrays["restored_residual"]
    expected = grid.arrays["restored_residual"][..., :1]
    np.testing.assert_allclose(rows, expected, rtol=1e-3, atol=1e-4)


def test_token_groups():
    config = vitjax.Config(96, 16, dim=8, depth=1, heads=1, mlp_dim=8, registers=1)
    group = interventions.token_groups(config, "grid")
    assert group[:2].tolist() == [0, 1]
    rows = group[2:].reshape(6, 6)
    assert rows[0].tolist() == [2, 2, 3, 4, 4, 5] and rows.max() == 17
    only = interventions.token_groups(config, "cls")
    assert only[0] == 0 and (only[1:] == -1).all()
    assert (interventions.token_groups(config, "all") == np.arange(38)).all()
    with pytest.raises(ValueError, match="tokens='cls'"):
        interventions.token_groups(tiny.CONFIGS["gap"], "cls")


def test_partners_are_of_another_class_and_a_function_of_the_image():
    label = np.array([0, 0, 1, -1, 2], np.int32)
    images = np.zeros((5, 1, 1, 3), np.float32)
    carry = interventions.PatchingCarry(
        images, label, np.arange(5, dtype=np.int32), np.int32(3)
    )
    index, own = np.arange(40, dtype=np.int32), np.tile([0, 1], 20).astype(np.int32)
    place, exists = interventions.draw_partner(carry, index, jnp.asarray(own))
    assert exists.all() and (label[place] != own).all() and (label[place] >= 0).all()
    assert set(np.asarray(place[own == 0]).tolist()) == {2, 4}
    again, _ = interventions.draw_partner(carry, index[7:9], jnp.asarray(own[7:9]))
    np.testing.assert_array_equal(again, place[7:9])
    alone = carry._replace(label=np.where(label == 1, 1, -1).astype(np.int32))
    _, exists = interventions.draw_partner(alone, index, jnp.asarray(own))
    np.testing.assert_array_equal(exists, own == 0)


def test_without_a_partner_or_a_difference_nothing_is_restored():
    """Every other image is its own partner, under another label."""
    context, images, _ = patched()
    ones = np.ones(12, np.int32)
    carry = context.carry._replace(images=images[:1].repeat(12, 0), label=ones)
    batch = tiny.batch_of(images[:1].repeat(8, 0), [0, 1] * 4)
    with jax.default_matmul_precision("highest"):
        rows = jax.jit(PATCHING.run_step)(context.model, batch, carry)
    exists = batch.label == 0
    np.testing.assert_array_equal(rows["partner"] >= 0, exists)
    np.testing.assert_array_equal(np.isfinite(rows["metric_clean"]), exists)
    for name in schema.RESTORED.names:
        assert np.isnan(rows[name]).all(), name
