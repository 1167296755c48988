"""Key-value memories, against the published outputs and against plain loops."""

import jax
import numpy as np
import published
import pytest
import tiny

import vitjax
from vitjax.analysis import memory
from vitjax.analysis.memory import (
    MemoryClasses,
    class_value_agreement,
    compositionality,
    key_value_agreement,
    memory_classes,
    memory_coefficients,
)
from vitjax.analysis.top_k import fast_top_k_indices
from vitjax.types import Trace

RNG = np.random.default_rng(0)
SYSTEMS = {"attention": "attn", "mlp": "mlp"}
# Op by op, each would be a dozen programs.
agreement_of = jax.jit(key_value_agreement, static_argnames=("k", "convention"))
classes_of = jax.jit(memory_classes, static_argnames="k")
score_of = jax.jit(class_value_agreement)


@jax.jit
def hits(space, call, values, label, predicted):
    """By the paper, by its code, and alone; and the memories that were called."""
    known = memory_classes(space, values)
    paper = key_value_agreement(space, call, known, label)
    code = key_value_agreement(space, call, known, label, convention="vilas2023_code")
    alone = compositionality(space, call, known, predicted)
    return paper, code, alone, fast_top_k_indices(call, 5)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", published.CONFIGS)
def test_hits_equal_the_published(
    name, system, oracle, published_model, published_trace
):
    model, source, key = published_model(name), oracle(name), SYSTEMS[system]
    _, trace = published_trace(name)
    before_gelu = memory_coefficients(trace, convention="vilas2023_code")
    coefficients = np.asarray(before_gelu[system])
    images = coefficients.shape[1]
    stored = {k: v[:images] for k, v in source["memories"].items() if v.ndim > 2}
    values = np.asarray(vitjax.memory_values(model)[system])
    label = source.label[:images, None]
    predicted = source["projections"][f"top5_{key}"][:images, ..., 0]
    gap = stored[f"mem_gap56_{key}"].astype(np.float32)
    for layer in range(model.config.depth):
        call = coefficients[layer]
        clear = gap[:, layer] > 1e-4
        whole = source["memories"]
        # Where the top five of a memory, or of a class, are not clear, a hit is not.
        certain = whole[f"mem_class_gap56_min_{key}"][layer] > 1e-4
        paper, code, alone, strongest = jax.device_get(
            hits(model.class_space, call, values[layer], label, predicted[:, layer])
        )
        top = np.sort(stored[f"mem_top5_{key}"][:, layer], -1)
        np.testing.assert_array_equal(np.sort(strongest, -1)[clear], top[clear])
        sure = clear & certain[strongest].all(-1)
        np.testing.assert_array_equal(
            paper[sure], stored[f"kv_hit_paper_{key}"][:, layer][sure]
        )
        of_class = whole[f"class_mem_gap56_{key}"][layer][label[:, 0]] > 1e-4
        sure = clear & of_class[:, None]
        np.testing.assert_array_equal(
            code[sure], stored[f"kv_hit_{key}"][:, layer][sure]
        )
        np.testing.assert_array_equal(
            alone[clear], stored[f"comp_hit_{key}"][:, layer][clear]
        )


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", published.CONFIGS)
def test_class_value_scores_equal_the_published(name, system, oracle, published_model):
    model = published_model(name)
    values = vitjax.memory_values(model)[system]
    actual = score_of(model.class_space, values)
    expected = oracle(name)["class_value"][f"cva_{SYSTEMS[system]}"]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_each_head_has_its_own_agreement():
    model = tiny.make(tiny.CONFIGS["plain"])
    cfg = model.config
    values = vitjax.memory_values(model)["attention"]
    by_head = values.reshape(cfg.depth, cfg.heads, cfg.head_dim, cfg.dim)
    actual = score_of(model.class_space, by_head)
    assert actual.shape == (cfg.depth, cfg.heads, 7)
    whole = score_of(model.class_space, values)
    np.testing.assert_allclose(actual.max(1), whole, atol=1e-6)
    assert (np.abs(actual) <= 1 + 1e-6).all()


def random_case(memories=11, classes=7, k=3):
    space = tiny.make(tiny.CONFIGS["plain"]).class_space
    values = RNG.normal(size=(memories, 16)).astype(np.float32)
    coefficients = RNG.normal(size=(2, 4, memories)).astype(np.float32)
    return space, values, coefficients, RNG.integers(classes, size=2)


def test_every_definition_is_its_loop():
    space, values, coefficients, label = random_case()
    logits = np.asarray(space.embedding) @ values.T
    paper, code, alone = np.zeros((3, 2, 4), bool)
    predicted = RNG.integers(7, size=(2, 4))
    for b in range(2):
        for t in range(4):
            strongest = np.argsort(-coefficients[b, t])[:3]
            for m in strongest:
                paper[b, t] |= label[b] in np.argsort(-logits[:, m])[:3]
                code[b, t] |= m in np.argsort(-logits[label[b]])[:3]
                alone[b, t] |= logits[:, m].argmax() == predicted[b, t]
    actual = agreement_of(space, coefficients, values, label[:, None], k=3)
    np.testing.assert_array_equal(actual, paper)
    actual = agreement_of(
        space, coefficients, values, label[:, None], k=3, convention="vilas2023_code"
    )
    np.testing.assert_array_equal(actual, code)
    actual = jax.jit(compositionality, static_argnames="k")(
        space, coefficients, values, predicted, k=3
    )
    np.testing.assert_array_equal(actual, alone)
    rows = np.asarray(space.embedding)
    norms = np.outer(np.linalg.norm(rows, axis=1), np.linalg.norm(values, axis=1))
    np.testing.assert_allclose(score_of(space, values), (logits / norms).max(1), 1e-5)
    assert paper.any() and not paper.all() and code.any() and alone.any()


def test_what_is_computed_once_gives_the_same_and_serves_smaller_k():
    space, values, coefficients, label = random_case()
    known = classes_of(space, values, k=5)
    for k in (2, 5):
        np.testing.assert_array_equal(
            agreement_of(space, coefficients, known, label[:, None], k=k),
            agreement_of(space, coefficients, values, label[:, None], k=k),
        )
    with pytest.raises(ValueError, match="hold 5 of each, not 6"):
        agreement_of(space, coefficients, known, label[:, None], k=6)
    layers = classes_of(space, np.stack([values, 2 * values]), k=5)
    one = jax.tree.map(lambda leaf: leaf[1], layers)
    assert isinstance(one, MemoryClasses) and layers.classes.shape == (2, 11, 5)
    np.testing.assert_array_equal(one.classes, known.classes)


def test_coefficients_of_both_conventions():
    *_, trace = tiny.traced("plain")
    ours = memory_coefficients(trace)
    theirs = memory_coefficients(trace, convention="vilas2023_code")
    np.testing.assert_array_equal(ours["mlp"], trace.mlp_hidden)
    np.testing.assert_array_equal(theirs["mlp"], trace.mlp_preactivation)
    np.testing.assert_array_equal(ours["attention"], theirs["attention"])
    np.testing.assert_array_equal(
        ours["attention"][..., 8:], trace.mixed_values[..., 1, :]
    )
    with pytest.raises(ValueError, match="capture="):
        memory_coefficients(Trace())


def test_memories_that_are_zero_agree_with_nothing():
    space = tiny.make(tiny.CONFIGS["plain"]).class_space
    actual = score_of(space, np.zeros((3, 16), np.float32))
    np.testing.assert_array_equal(actual, 0)
    assert memory.memory_logits(space, np.ones((3, 16), np.float32)).shape == (7, 3)


def test_half_precision_works_under_strict_promotion():
    model = tiny.make(tiny.CONFIGS["plain"])
    low = model.astype("bfloat16")
    values = vitjax.memory_values(low)["mlp"]
    actual = score_of(low.class_space, values)
    expected = score_of(model.class_space, vitjax.memory_values(model)["mlp"])
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=0.02)
    assert classes_of(low.class_space, values, k=3).classes.shape == (2, 24, 3)


def test_coefficients_of_other_memories_are_refused():
    space, values, coefficients, label = random_case()
    with pytest.raises(ValueError, match="11 memories do not fit"):
        fewer = classes_of(space, values[:9], k=3)
        agreement_of(space, coefficients, fewer, label[:, None], k=3)
    stacked = classes_of(space, np.stack([values, values]), k=3)
    with pytest.raises(ValueError, match="one layer's"):
        compositionality(space, coefficients, stacked, 3, k=3)
