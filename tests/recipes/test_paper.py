"""The recipe `paper`: its rows equal what the public functions say, one by one."""

import functools

import jax
import numpy as np
import pytest
import tiny
from vitjax.runner.stream import run

import vitjax
from vitjax.analysis.top_k import argmax
from vitjax.data.textured_digits import TexturedDigits
from vitjax.recipes import paper
from vitjax.recipes.identifiability import IDENTIFIABILITY, STREAMS
from vitjax.types import Batch, Edits

K = 3


def case(name, *, masks=True, images=None, label=None, model=None):
    """A model, a batch, and the rows of the recipe."""
    model = tiny.make(tiny.CONFIGS[name]) if model is None else model
    images = tiny.images(model.config) if images is None else images
    count = len(images)
    draw = np.random.default_rng(1)
    kinds = draw.integers(-1, 2, (count, model.config.patches)).astype(np.int32)
    label = np.arange(count, dtype=np.int32) if label is None else label
    batch = Batch(
        images=images,
        label=label,
        valid=np.ones(count, bool),
        index=np.arange(count, dtype=np.int32),
        patch_label=kinds if masks else None,
    )
    return model, batch


@functools.cache
def compiled(k, interventions):
    """One program for all models of an architecture."""
    options = {**paper.PAPER.options, "k": k, "interventions": interventions}
    prepare = jax.jit(functools.partial(paper.prepare, seed=0, **options))
    return prepare, jax.jit(functools.partial(paper.step, **options))


def compute(model, batch, *, k=K, interventions=tuple(paper.INTERVENTIONS)):
    prepare, step = compiled(k, interventions)
    made = prepare(model)
    return {n: np.asarray(v) for n, v in step(model, batch, made.aux).items()}, made


def moved(array):
    return np.moveaxis(np.asarray(array), 0, 1)


@pytest.fixture(scope="module", params=("gap", "registers"))
def rows(request):
    model, batch = case(request.param)
    return model, batch, *compute(model, batch)


def test_the_identifiability_rows_are_those_of_its_own_recipe(rows):
    model, batch, found, _ = rows
    expected = jax.jit(lambda m, b: IDENTIFIABILITY.rows(m, b, ()))(model, batch)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-4, err_msg=name)


def test_sub_layer_rows_are_what_project_says(rows):
    model, batch, found, _ = rows
    _, trace = vitjax.forward(model, batch.images, capture=("embedding", *STREAMS))
    for name in STREAMS:
        top = moved(argmax(vitjax.project(model.class_space, getattr(trace, name))))
        assert (found[f"first_{name}"] == top).mean() > 0.999
    before = np.concatenate([trace.embedding[None], trace.residual[:-1]])
    for name, states in (
        ("logit_middle", before + trace.attention_update),
        ("logit_embedding", trace.embedding[None]),
    ):
        logits = np.asarray(vitjax.project(model.class_space, states))
        true = np.take_along_axis(logits, batch.label[None, :, None, None], -1)[..., 0]
        true = moved(true)
        true = true[:, 0] if name == "logit_embedding" else true
        np.testing.assert_allclose(found[name], true, atol=1e-4)


def test_memory_rows_are_what_the_public_functions_say(rows):
    model, batch, found, _ = rows
    capture = ("mixed_values", "mlp_hidden", "mlp_preactivation")
    _, trace = vitjax.forward(model, batch.images, capture=capture)
    values = vitjax.memory_values(model)
    for convention, code in (("paper", ""), ("vilas2023_code", "code_")):
        called = vitjax.memory_coefficients(trace, convention=convention)
        for system in paper.SYSTEMS:
            for layer in range(model.config.depth):
                hit = vitjax.key_value_agreement(
                    model.class_space,
                    called[system][layer],
                    values[system][layer],
                    batch.label[:, None],
                    k=K,
                    convention=convention,
                )
                ours = found[f"agreement_{code}{system}"][:, layer]
                np.testing.assert_array_equal(ours, hit)
                if not code:
                    says = vitjax.compositionality(
                        model.class_space,
                        called[system][layer],
                        values[system][layer],
                        found[f"first_{system}_update"][:, layer],
                        k=K,
                    )
                    ours = found[f"simple_{system}"][:, layer]
                    np.testing.assert_array_equal(ours, says)


def test_head_rows_are_those_of_each_heads_memories(rows):
    model, batch, found, _ = rows
    _, trace = vitjax.forward(model, batch.images, capture=("mixed_values",))
    cfg, values = model.config, vitjax.memory_values(model)["attention"]
    values = values.reshape(cfg.depth, cfg.heads, cfg.head_dim, cfg.dim)
    for layer, head in np.ndindex(cfg.depth, cfg.heads):
        called = trace.mixed_values[layer, :, :, head]
        own, label = values[layer, head], batch.label[:, None]
        hit = vitjax.key_value_agreement(model.class_space, called, own, label, k=K)
        ours = found["agreement_head"][:, layer, head]
        np.testing.assert_allclose(ours, np.asarray(hit).mean(1), atol=1e-6)
        top = found["first_attention_update"][:, layer]
        says = vitjax.compositionality(model.class_space, called, own, top, k=K)
        ours = found["simple_head"][:, layer, head]
        np.testing.assert_allclose(ours, np.asarray(says).mean(1), atol=1e-6)


ONE = pytest.mark.parametrize("rows", ("registers",), indirect=True)


@ONE
def test_chance_is_the_agreement_with_permuted_classes(rows):
    model, batch, found, made = rows
    names = [name for name in found if name.startswith("chance")]
    total = {name: 0.0 for name in names if "simple" not in name}
    for order in np.asarray(made.aux["permutations"]):
        assert sorted(order) == list(range(7))
        other = Batch(
            images=batch.images,
            label=order[batch.label].astype(np.int32),
            valid=batch.valid,
            index=batch.index,
        )
        permuted, _ = compute(model, other, interventions=())
        for name in total:
            hits = permuted[name.replace("chance", "agreement")]
            hits = hits if name == "chance_head" else hits.mean(-1)
            total[name] += hits / paper.PERMUTATIONS
    for name, expected in total.items():
        np.testing.assert_allclose(found[name], expected, atol=1e-5)


def test_interventions_are_forward_passes_under_edits(rows):
    model, batch, found, made = rows
    edits = {
        "self_only": vitjax.self_only(model),
        "self_only_renormalized": vitjax.self_only(model, renormalize=True),
        "self_only_code": vitjax.self_only(model, convention="vilas2023_code"),
        "without_context": Edits(keep=batch.patch_label == 1),
        "without_class": Edits(keep=batch.patch_label == 0),
    }
    if model.config.class_token:
        edits["no_cls"] = vitjax.no_cls(model)
        edits["no_cls_renormalized"] = vitjax.no_cls(model, renormalize=True)
    else:
        assert "rank_no_cls" not in found
    for name, edit in edits.items():
        logits, trace = vitjax.forward(
            model, batch.images, capture=("residual",), edits=edit
        )
        np.testing.assert_array_equal(found[f"prediction_{name}"], logits.argmax(-1))
        projected = vitjax.project(model.class_space, trace.residual[-1])
        expected = np.array(vitjax.rank(projected, batch.label[:, None]))
        if edit.keep is not None:
            expected[:, model.config.prefix :][~edit.keep] = -1
        np.testing.assert_array_equal(found[f"rank_{name}"], expected)


def test_random_keep_sets_are_as_large_and_depend_on_the_image_alone(rows):
    model, batch, found, made = rows
    for name, kind in (("random_as_class", 1), ("random_as_context", 0)):
        kept = found[f"rank_{name}"][:, model.config.prefix :] >= 0
        wanted = batch.patch_label == kind
        np.testing.assert_array_equal(kept.sum(1), wanted.sum(1))
        assert (kept != wanted).any()
    keep = paper.as_many_at_random(
        batch.patch_label[1:2] == 1, batch.index[1:2], made.aux["key"]
    )
    found = found["rank_random_as_class"][1:2, model.config.prefix :] >= 0
    np.testing.assert_array_equal(keep, found)


def test_without_masks_nothing_is_removed():
    model, batch = case("plain", masks=False)
    some = ("self_only", "without_context")
    found, _ = compute(model, batch, interventions=some)
    assert "rank_self_only" in found and "rank_without_context" not in found


@ONE
def test_what_is_written_once(rows):
    model, _, _, made = rows
    values = vitjax.memory_values(model)
    control = vitjax.init(model.config, seed=0, classes=7)
    for system in paper.SYSTEMS:
        once = {k: np.asarray(made.once[f"class_value_{system}{k}"]) for k in CONTROLS}
        expected = vitjax.class_value_agreement(model.class_space, values[system])
        np.testing.assert_allclose(once[""], expected, atol=1e-6)
        expected = vitjax.class_value_agreement(
            control.class_space, vitjax.memory_values(control)[system]
        )
        np.testing.assert_allclose(once["_control"], expected, atol=1e-6)
        assert once["_shuffled"].shape == (2, 7)
        assert (np.abs(once["_shuffled"] - once[""]) > 1e-3).any()
    assert made.once["class_value_head"].shape == (2, 2, 7)


CONTROLS = ("", "_control", "_shuffled")


def test_published_rows_of_the_real_model(oracle, published_model):
    """Hits and perturbed ranks of set A, through the recipe."""
    source, count = oracle("setA"), 4
    model, batch = case(
        "setA",
        images=source.images[:count],
        label=source.label[:count],
        model=published_model("setA"),
        masks=False,
    )
    found, _ = compute(model, batch, k=5, interventions=("self_only_code", "no_cls"))
    stored = source["memories"]
    for system, key in (("attention", "attn"), ("mlp", "mlp")):
        clear = stored[f"mem_gap56_{key}"][:count].astype(np.float32) > 1e-3
        for code, theirs in (("code_", "kv_hit"), ("", "kv_hit_paper")):
            ours = found[f"agreement_{code}{system}"]
            expected = stored[f"{theirs}_{key}"][:count]
            assert (ours == expected)[clear].mean() > 0.9995
    stored = source["perturbation"]
    for ours, theirs in (("self_only_code", "self_only"), ("no_cls", "no_cls")):
        expected = stored[f"{theirs}_rank"][:count]
        assert np.abs(found[f"rank_{ours}"] - expected).max() <= 1
        assert (found[f"rank_{ours}"] == expected).mean() > 0.995
        right = found[f"prediction_{ours}"] == source.label[:count]
        np.testing.assert_array_equal(right, stored[f"{theirs}_acc"][:count])


def test_a_run_goes_on_and_writes_what_needs_no_image(tmp_path, monkeypatch):
    from vitjax.runner import stream

    config = vitjax.Config(64, 16, dim=16, depth=2, heads=2, mlp_dim=24)
    model = vitjax.init(config, classes=vitjax.load("textured_digits").classes)
    source = TexturedDigits(length=20)
    options = dict(batch_size=8, show_progress=False)
    whole = run("paper", model, source, tmp_path / "whole", **options)
    monkeypatch.setattr(stream, "finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("paper", model, source, tmp_path / "stopped", **options)
    monkeypatch.undo()
    again = run("paper", model, source, tmp_path / "stopped", **options)
    assert whole.names == again.names
    for name in whole.names:
        np.testing.assert_array_equal(whole[name][...], again[name][...])
    assert whole["class_value_mlp"].dims == ("layer", "class")
    assert np.isfinite(whole["class_value_head"][...]).all()
    assert whole.manifest["recipe_options"]["interventions"][0] == "self_only"


@pytest.mark.slow
def test_the_known_truth_of_the_embedded_data_is_found(tmp_path):
    """Class tokens are more identifiable than context tokens, and removing context
    hurts the class tokens more the more the context tells.
    """
    from vitjax.report.mechanism import mechanism

    from vitjax.report.per_image import digest
    from vitjax.statistics import sign_flip_test

    model, harm = vitjax.load("textured_digits"), {}
    for correlation in ("0", "1"):
        results = run(
            *("paper", model, f"textured_digits:test_{correlation}"),
            tmp_path / correlation,
            batch_size=50,
            limit=400,
            show_progress=False,
        )
        data = digest(results)
        found = mechanism(results, data).interventions["without_context"]
        harm[correlation] = found.before - found.after
        score = [
            data.of("residual", "identifiability", k) for k in ("class", "context")
        ]
        difference = (score[0] - score[1])[:, -1:].astype(float)
        assert difference.mean() > 0.02
        assert sign_flip_test(difference)[0] < 0.001
    # The same digits at the same places, picture by picture.
    more = (harm["1"] - harm["0"])[:, None]
    assert more.mean() > 0.01 and sign_flip_test(more)[0] < 0.05
