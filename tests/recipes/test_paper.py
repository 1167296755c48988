"""The recipe `paper`: its rows equal what the public functions say, one by one."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny
from fake_context import FakeContext

import vitjax
from vitjax.analysis.top_k import argmax
from vitjax.recipes import paper, schema
from vitjax.recipes.identifiability import IDENTIFIABILITY
from vitjax.statistics import sign_flip_test
from vitjax.types import Edits

K = 3


@functools.cache
def compiled(k=K, interventions=tuple(schema.INTERVENTIONS)):
    """(setup, step) of the recipe: one program for all models of an architecture."""
    recipe = paper.PAPER.with_options({"k": k, "interventions": interventions})
    setup = jax.jit(functools.partial(recipe.run_setup, seed=0))
    return setup, jax.jit(recipe.run_step)


def images_first(array):
    return np.moveaxis(np.asarray(array), 0, 1)


CAPTURE = ("embedding", *schema.STREAMS)
CAPTURE += ("mixed_values", "mlp_hidden", "mlp_preactivation")


@pytest.fixture(scope="module", params=tiny.slow_but(("gap", "registers"), "registers"))
def study(request):
    """(model, batch, rows, trace, setup)."""
    model = tiny.make(tiny.CONFIGS[request.param])
    kinds = np.random.default_rng(1).integers(-1, 2, (3, model.config.patches))
    images, kinds = tiny.images(model.config), kinds.astype(np.int32)
    batch = tiny.batch_of(images, np.arange(3), kinds)
    setup, step = compiled()
    made = setup(model)
    rows = jax.device_get(step(model, batch, made.carry))
    _, trace = vitjax.forward(model, batch.images, capture=CAPTURE)
    return model, batch, rows, trace, made


def test_the_identifiability_rows_are_those_of_its_own_recipe(study):
    model, batch, rows, *_ = study
    expected = jax.jit(IDENTIFIABILITY.run_step)(model, batch, ())
    for name, values in expected.items():
        np.testing.assert_allclose(rows[name], values, atol=1e-4, err_msg=name)


def test_sub_layer_rows_are_what_project_says(study):
    model, batch, rows, trace, _ = study
    for name in schema.STREAMS:
        top = argmax(vitjax.project(model.class_space, getattr(trace, name)))
        assert (rows[schema.FIRST(name)] == images_first(top)).mean() > 0.999
    before = np.concatenate([trace.embedding[None], trace.residual[:-1]])
    for name, states in (
        ("logit_middle", before + trace.attention_update),
        ("logit_embedding", trace.embedding[None]),
    ):
        logits = np.asarray(vitjax.project(model.class_space, states))
        true = np.take_along_axis(logits, batch.label[None, :, None, None], -1)[..., 0]
        true = images_first(true)
        true = true[:, 0] if name == "logit_embedding" else true
        np.testing.assert_allclose(rows[name], true, atol=1e-4)


def test_memory_rows_are_what_the_public_functions_say(study):
    model, batch, rows, trace, _ = study
    space, label = model.class_space, batch.label[:, None]
    for system, values in vitjax.memory_values(model).items():
        for convention, family in (
            ("paper", schema.AGREEMENT),
            ("vilas2023_code", schema.AGREEMENT_VILAS2023),
        ):
            called = vitjax.memory_coefficients(trace, convention=convention)[system]
            agree = functools.partial(
                vitjax.key_value_agreement, k=K, convention=convention
            )
            for layer in range(model.config.depth):
                hits = agree(space, called[layer], values[layer], label)
                np.testing.assert_array_equal(rows[family(system)][:, layer], hits)
        called = vitjax.memory_coefficients(trace)[system]
        for layer in range(model.config.depth):
            top = rows[schema.FIRST(system + "_update")][:, layer]
            simple = vitjax.compositionality(
                space, called[layer], values[layer], top, k=K
            )
            np.testing.assert_array_equal(rows[schema.SIMPLE(system)][:, layer], simple)


def test_head_rows_are_those_of_each_heads_memories(study):
    model, batch, rows, trace, setup = study
    cfg, values = model.config, vitjax.memory_values(model)["attention"]
    values = values.reshape(cfg.depth, cfg.heads, cfg.head_dim, cfg.dim)
    orders = np.asarray(setup.carry.permutations)
    for layer, head in np.ndindex(cfg.depth, cfg.heads):
        called, own = trace.mixed_values[layer, :, :, head], values[layer, head]
        top = rows["first_attention_update"][:, layer]
        for name, chance, function, classes in (
            ("agreement", "chance", vitjax.key_value_agreement, batch.label[:, None]),
            ("simple", "chance_simple", vitjax.compositionality, top),
        ):
            hits = [
                np.asarray(function(model.class_space, called, own, one, k=K)).mean(1)
                for one in (classes, *(order[classes] for order in orders))
            ]
            row = rows[f"{name}_head"][:, layer, head]
            np.testing.assert_allclose(row, hits[0], atol=1e-6)
            row, expected = rows[f"{chance}_head"][:, layer, head], hits[1:]
            np.testing.assert_allclose(row, np.mean(expected, axis=0), atol=1e-6)


def test_a_head_of_few_memories_calls_all_of_them():
    """With k = 5 and 4 memories every token of an image says the same."""
    draw = np.random.default_rng(0)
    space = tiny.make(tiny.CONFIGS["plain"]).class_space
    values = draw.normal(size=(16, 16)).astype(np.float32)
    head_rows = jax.jit(paper.head_rows, static_argnames="k")
    rows = head_rows(
        vitjax.memory_classes(space, values, k=5),
        jax.numpy.asarray(draw.normal(size=(3, 17, 4, 4)).astype(np.float32)),
        jax.numpy.asarray([0, 3, 6], np.int32),
        jax.numpy.zeros((3, 17), np.int32),
        jax.numpy.arange(7, dtype=np.int32)[None],
        k=5,
    )
    logits = np.asarray(space.embedding) @ values.T
    for head in range(4):
        best = np.argsort(-logits[:, 4 * head : 4 * (head + 1)], axis=0)[:5]
        expected = [float(number in best) for number in (0, 3, 6)]
        np.testing.assert_array_equal(rows["agreement_head"][:, head], expected)


def test_chance_is_the_agreement_with_permuted_classes(study):
    model, batch, rows, _, setup = study
    orders = np.asarray(setup.carry.permutations)
    assert len(orders) == paper.PERMUTATIONS
    total: dict[str, float] = dict.fromkeys(
        (*schema.CHANCE.names, *schema.CHANCE_VILAS2023.names), 0.0
    )
    for order in orders:
        assert sorted(order) == list(range(7))
        other = dataclasses.replace(batch, label=order[batch.label].astype(np.int32))
        permuted = jax.device_get(compiled()[1](model, other, setup.carry))
        for name in total:
            hits = permuted[name.replace("chance", "agreement")]
            total[name] += hits.mean(-1) / paper.PERMUTATIONS
    for name, expected in total.items():
        np.testing.assert_allclose(rows[name], expected, atol=1e-5)


def test_interventions_are_forward_passes_under_edits(study):
    model, batch, rows, *_ = study
    edits = {
        "self_only": vitjax.self_only(model),
        "self_only_renormalized": vitjax.self_only(model, renormalize=True),
        "self_only_vilas2023": vitjax.self_only(model, convention="vilas2023_code"),
        "without_context": Edits(keep=batch.patch_label == 1),
        "without_class": Edits(keep=batch.patch_label == 0),
    }
    if model.config.class_token:
        edits["no_cls"] = vitjax.no_cls(model)
        edits["no_cls_renormalized"] = vitjax.no_cls(model, renormalize=True)
    else:
        assert "rank_no_cls" not in rows
    for name, edit in edits.items():
        logits, trace = vitjax.forward(
            model, batch.images, capture=("residual",), edits=edit
        )
        prediction = rows[schema.PREDICTION_EDITED(name)]
        np.testing.assert_array_equal(prediction, logits.argmax(-1))
        projected = vitjax.project(model.class_space, trace.residual[-1])
        expected = np.array(vitjax.rank(projected, batch.label[:, None]))
        if edit.keep is not None:
            expected[:, model.config.prefix :][~edit.keep] = -1
        np.testing.assert_array_equal(rows[schema.RANK_EDITED(name)], expected)


def test_random_keep_sets_are_as_large_and_depend_on_the_image_alone(study):
    model, batch, rows, _, setup = study
    for name, kind in (("random_as_class", 1), ("random_as_context", 0)):
        kept = rows[schema.RANK_EDITED(name)][:, model.config.prefix :] >= 0
        np.testing.assert_array_equal(kept.sum(1), (batch.patch_label == kind).sum(1))
        assert (kept != (batch.patch_label == kind)).any()
    alone = jax.tree.map(lambda leaf: leaf[1:2], batch)
    edits = paper.make_edits("random_as_class", model, alone, setup.carry.key)
    kept = rows["rank_random_as_class"][1:2, model.config.prefix :] >= 0
    np.testing.assert_array_equal(edits.keep, kept)


def test_without_masks_nothing_is_removed(study):
    model, batch, *_, setup = study
    batch = dataclasses.replace(batch, patch_label=None)
    rows = jax.eval_shape(compiled()[1], model, batch, setup.carry)
    assert "rank_self_only" in rows and "rank_without_context" not in rows


def test_static_arrays_are_class_value_agreement(study):
    model, *_, setup = study
    values = vitjax.memory_values(model)
    control = vitjax.init(model.config, seed=0, classes=7)
    static = jax.device_get(setup.static)
    for system in schema.SYSTEMS:
        trained = static[schema.CLASS_VALUE(system)]
        expected = vitjax.class_value_agreement(model.class_space, values[system])
        np.testing.assert_allclose(trained, expected, atol=1e-6)
        expected = vitjax.class_value_agreement(
            control.class_space, vitjax.memory_values(control)[system]
        )
        random_init = static[schema.CLASS_VALUE_CONTROL(system, "control")]
        np.testing.assert_allclose(random_init, expected, atol=1e-6)
        shuffled = static[schema.CLASS_VALUE_CONTROL(system, "shuffled")]
        assert shuffled.shape == (2, 7) and (np.abs(shuffled - trained) > 1e-3).any()
    assert static["class_value_head"].shape == (2, 2, 7)


@pytest.mark.slow
def test_published_rows_of_the_real_model(oracle, published_model):
    """Hits and perturbed ranks of set A, through the recipe."""
    source, count = oracle("setA"), 4
    model, label = published_model("setA"), source.label[:count]
    batch = tiny.batch_of(source.images[:count], label)
    names = ("self_only_vilas2023", "no_cls")
    setup, step = compiled(5, names)
    rows = jax.device_get(step(model, batch, setup(model).carry))
    stored = source["memories"]
    for system, key in (("attention", "attn"), ("mlp", "mlp")):
        clear = stored[f"mem_gap56_{key}"][:count].astype(np.float32) > 1e-3
        for family, theirs in (
            (schema.AGREEMENT_VILAS2023, "kv_hit"),
            (schema.AGREEMENT, "kv_hit_paper"),
        ):
            equal = rows[family(system)] == stored[f"{theirs}_{key}"][:count]
            assert equal[clear].mean() > 0.9995
    stored = source["perturbation"]
    for name, theirs in zip(names, ("self_only", "no_cls")):
        ranks, expected = rows[f"rank_{name}"], stored[f"{theirs}_rank"][:count]
        assert np.abs(ranks - expected).max() <= 1
        assert (ranks == expected).mean() > 0.995
        right = rows[f"prediction_{name}"] == label
        np.testing.assert_array_equal(right, stored[f"{theirs}_acc"][:count])


@pytest.mark.slow
def test_the_known_truth_of_the_embedded_data_is_found():
    """Object tokens are more identifiable than context tokens, and removing context
    hurts the object tokens more the more the context tells.
    """
    model, harm = vitjax.load("textured_digits"), {}

    @jax.jit
    def hits(model, batch, keep):
        """Whether tokens of the last block say the label."""
        edits = Edits(keep=keep)
        _, trace = vitjax.forward(
            model, batch.images, capture=("residual",), edits=edits
        )
        logits = vitjax.project(model.class_space, trace.residual[-1, :, 1:])
        return vitjax.rank(logits, batch.label[:, None]) == 0

    for correlation in (0, 1):
        data = f"textured_digits:test_{correlation}"
        context = FakeContext(model, data, batch_size=100, masks=True)
        loaded = list(context.batches(context.source, 0, 300))
        labels = np.concatenate([batch.patch_label for batch in loaded])
        before, after = (
            np.concatenate([hits(model, b, b.patch_label >= least) for b in loaded])
            for least in (-1, 1)
        )
        on_object, on_context = (
            np.where(labels == kind, before, np.nan) for kind in (1, 0)
        )
        difference = np.nanmean(on_object, 1) - np.nanmean(on_context, 1)
        assert difference.mean() > 0.02
        assert sign_flip_test(difference[:, None])[0] < 0.001
        after = np.where(labels == 1, after, np.nan)
        harm[correlation] = np.nanmean(on_object, 1) - np.nanmean(after, 1)
    # The same digits at the same places, image by image.
    more = (harm[1] - harm[0])[:, None]
    assert more.mean() > 0.01 and sign_flip_test(more)[0] < 0.05
