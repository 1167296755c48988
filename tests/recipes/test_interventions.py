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
from vitjax.models.forward import scan_blocks
from vitjax.recipes import interventions, schema
from vitjax.recipes.interventions import ABLATION, PATCHING
from vitjax.types import Edits

FIELDS = ("mixed_values", "attention_update", "mlp_update")
CONFIGS = tiny.CONFIGS | {"pooled": tiny.POOLED}
OPTIONS = {"reference_images": 9, "order_images": 5, "draws": 2}
FORWARD = jax.jit(lambda m, x, e: vitjax.forward(m, x, edits=e)[0])


LABELS = [CLASSES[index % 4] for index in range(13)]
LABELS[3] = None


class Context(FakeContext):
    def open_data(self, spec):
        return super().open_data(Noise(LABELS, 1) if spec == "other" else spec)


@functools.cache
def swept(name="pooled"):
    """(context, pixels, labels, means) of a run of the recipe."""
    config = CONFIGS[name]
    context = FakeContext(tiny.make(config, classes=CLASSES), Noise(LABELS))
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


@pytest.mark.parametrize("name", tiny.slow_but(("plain", "pooled"), "pooled"))
def test_ablation_is_that_of_whole_passes(name):
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
    counts = interventions.head_counts(config)
    np.testing.assert_array_equal(context.static["ablated"], counts)
    assert counts == (1, 2)
    order_images = [i * 13 // 5 for i in range(5)]
    for kind, value in (("zero", 0.0), ("mean", means["mixed_values"])):
        names = (f(kind, "head") for f in (schema.EFFECT, schema.EFFECT_PREDICTED))
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
            interventions.head_sets(config, order, np.array(7, np.int32), (1, 2, 3), 5)
        )
        for order in jax.numpy.asarray(orders)
    ]
    sets = [each.reshape(6, 3, 4) for each in sets]
    assert (sets[0].sum(-1) == [1, 2, 3]).all()
    assert (sets[0][:, :-1] <= sets[0][:, 1:]).all()
    np.testing.assert_array_equal(sets[0][0, 1], [True, False, True, False])
    np.testing.assert_array_equal(sets[0][1:], sets[1][1:])
    assert len(np.unique(sets[0][1:, 0], axis=0)) > 1


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
    other = Context(context.model, Noise(LABELS), limit=2)
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
def test_options_of_ablation_out_of_range(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        ABLATION.with_options(options)


CAPTURE = tuple(field for field, _ in interventions.PARTS.values())


SORTED = [CLASSES[index // 4] for index in range(16)]


@functools.cache
def patched(name="plain", tokens="grid"):
    """(context, pixels and labels of all images) of a run of the recipe."""
    config = CONFIGS[name]
    context = FakeContext(tiny.make(config, classes=CLASSES), Noise(SORTED), limit=9)
    context.run(PATCHING.with_options({"tokens": tokens, "partners": 12}))
    batches = list(context.batches(context.source, 0, 16))
    images = np.concatenate([b.images for b in batches])[:16]
    return context, images, np.concatenate([b.label for b in batches])[:16]


@pytest.mark.parametrize("name", tiny.slow_but(("plain", "pooled"), "plain"))
def test_patching_is_that_of_whole_passes(name):
    context, images, label = patched(name)
    rows, model = context.arrays, context.model
    partner, clean_images = rows["partner"], images[:9]
    assert (label[partner] != label[:9]).all()
    group = context.static["token_group"].astype(int)

    @jax.default_matmul_precision("highest")
    def metric(edits=vitjax.Edits(), images=images[partner]):
        logits, each = np.asarray(FORWARD(model, images, edits)), np.arange(9)
        return logits[each, label[:9]] - logits[each, label[partner]]

    clean, corrupted = metric(images=clean_images), metric()
    np.testing.assert_allclose(rows["metric_clean"], clean, atol=2e-5)
    np.testing.assert_allclose(rows["metric_corrupted"], corrupted, atol=2e-5)
    with jax.default_matmul_precision("highest"):
        _, trace = vitjax.forward(model, clean_images, capture=CAPTURE)
    last = {"layers": [1]}
    checks = {
        "restored_residual": [
            ((0, g), "residual", {"layers": [0], "tokens": group == g})
            for g in (0, group.max())
        ],
        "restored_head": [((1, 1), "mixed_values", {**last, "heads": [1]})],
        "restored_attention": [((1,), "attention_update", last)],
        "restored_mlp": [((0,), "mlp_update", {"layers": [0]})],
    }
    for row, places in checks.items():
        for place, field, where in places:
            edits = vitjax.patch(model, trace, field, **where)
            change = rows[row][(slice(None), *place)] * (clean - corrupted)
            np.testing.assert_allclose(change, metric(edits) - corrupted, atol=5e-5)


@pytest.mark.slow
def test_all_is_one_and_nothing_is_zero():
    context, images, _ = patched()
    model, everything = context.model, np.ones((1, 2, 17), bool)
    logits, trace = vitjax.forward(model, images[:3], capture=CAPTURE)
    values = {"residual": trace.residual}
    other, streams = scan_blocks(model, images[3:6], interventions.read_stream)
    chosen = {"residual": np.concatenate([everything, ~everything])}
    both = jax.jit(interventions.sweep, static_argnums=4)(
        model, streams, values, chosen, jnp.asarray
    )
    np.testing.assert_allclose(both, jnp.stack([logits, other]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ("cls", "all"))
def test_other_groups_of_tokens(tokens):
    context, *_ = patched(tokens=tokens)
    grid, *_ = patched()  # on 4 x 4 patches, each is a cell of its own
    rows = context.arrays["restored_residual"]
    assert rows.shape == (9, 2, 1 if tokens == "cls" else 17)
    expected = grid.arrays["restored_residual"][..., : rows.shape[-1]]
    np.testing.assert_allclose(rows, expected, rtol=1e-3, atol=1e-4)


def test_token_groups():
    config = vitjax.Config(96, 16, dim=8, depth=1, heads=1, mlp_dim=8, registers=1)
    group = interventions.token_groups(config, "grid")
    assert group[:2].tolist() == [0, 1]
    rows = group[2:].reshape(6, 6)
    assert rows[0].tolist() == [2, 2, 3, 4, 4, 5] and rows.max() == 17
    only = interventions.token_groups(config, "cls")
    assert only[0] == 0 and (only[1:] == -1).all()
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
    context, images, _ = patched()
    step = interventions.patching_step("cls")
    batch = tiny.batch_of(images[:2], [0, 1])
    index = np.arange(2, dtype=np.int32)
    carry = interventions.PatchingCarry(
        images[:1], np.ones(1, np.int32), index[:1], np.int32(0)
    )
    rows = jax.jit(step)(context.model, batch, carry)
    assert rows["partner"].tolist() == [0, -1]
    # The first image is its own partner, under another label.
    for name in schema.RESTORED.names:
        assert np.isnan(rows[name]).all(), name
    assert np.isfinite(rows["metric_clean"]).tolist() == [True, False]


def test_partners_have_to_be_some():
    with pytest.raises(ValueError, match="partners=0"):
        PATCHING.with_options({"partners": 0})
