"""Hidden states in class space, fused projection, and the largest entries."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import tiny

from vitjax.analysis import class_space, fused_projection
from vitjax.analysis.top_k import (
    GROUP,
    ROUNDS,
    argmax,
    argmax_reduced,
    argmax_two_pass,
    fast_top_k_indices,
    maxima,
    top_k_indices,
)

RNG = np.random.default_rng(0)
# Op by op, each would be a dozen programs.
identifiability = jax.jit(class_space.identifiability)
project = jax.jit(class_space.project)
rank = jax.jit(class_space.rank)
take_label = jax.jit(class_space.take_label)
top_k = jax.jit(class_space.top_k, static_argnames="k")


def test_project_is_the_formula():
    space = tiny.make(tiny.CONFIGS["plain"]).class_space
    states = RNG.normal(3, 2, (2, 5, 16)).astype(np.float32)
    x = states.astype(np.float64)
    sigma = np.sqrt(x.var(-1, keepdims=True) + space.epsilon)
    x = (x - x.mean(-1, keepdims=True)) / sigma
    x = x * np.asarray(space.norm_scale) + np.asarray(space.norm_shift)
    expected = x @ np.asarray(space.embedding).T + np.asarray(space.bias)
    np.testing.assert_allclose(project(space, states), expected, atol=1e-5)
    np.testing.assert_allclose(project(space, states[0, 0]), expected[0, 0], atol=1e-5)
    with pytest.raises(ValueError, match="width 15"):
        project(space, states[..., :15])


def test_rank_counts_larger_logits():
    logits = RNG.normal(size=(4, 6, 9)).astype(np.float32)
    label = RNG.integers(0, 9, 4)
    expected = [
        [sorted(row, reverse=True).index(row[label[b]]) for row in image]
        for b, image in enumerate(logits)
    ]
    np.testing.assert_array_equal(rank(logits, label[:, None]), expected)
    score = identifiability(logits, label[:, None])
    np.testing.assert_allclose(score, 1 - np.array(expected) / 9, rtol=1e-6)


def test_rank_at_the_extremes():
    logits = np.arange(5, dtype=np.float32)
    assert rank(logits, np.int32(4)) == 0
    assert rank(logits, np.int32(0)) == 4
    assert identifiability(logits, np.int32(0)) == pytest.approx(1 / 5)
    assert rank(np.array([1, np.nan, 3], np.float32), np.int32(1)) == 2  # NaN is last
    assert rank(np.array([1, np.nan, 3], np.float32), np.int32(2)) == 0
    assert rank(np.ones(1, np.float32), np.int32(0)) == 0  # one class


def test_ties_share_their_ranks():
    """Half of the equal ones count: a head of zeros is at chance."""
    logits = np.array([2, 0, 2, 2, 1, 2], np.float32)
    expected = [1, 5, 1, 1, 4, 1]
    ranks = rank(np.tile(logits, (6, 1)), np.arange(6))
    np.testing.assert_array_equal(ranks, expected)
    for classes in (2, 5, 1000):
        score = identifiability(np.zeros((3, classes), np.float32), np.arange(3) % 2)
        chance = (classes + 1) / (2 * classes)
        np.testing.assert_allclose(score, chance, atol=0.5 / classes + 1e-6)


def test_labels_broadcast_by_numpys_rules():
    logits = RNG.normal(size=(3, 2, 4, 7)).astype(np.float32)
    columns = np.arange(2)[:, None]
    for label in (np.int32(2), np.arange(4), columns, np.zeros((3, 1, 1), int)):
        full = np.broadcast_to(label, (3, 2, 4))
        expected = np.take_along_axis(logits, full[..., None], -1)[..., 0]
        np.testing.assert_array_equal(take_label(logits, label), expected)
        np.testing.assert_array_equal(rank(logits, label), rank(logits, full))
    with pytest.raises(ValueError, match="more axes"):
        rank(logits[0, 0, 0], np.zeros((1, 1), int))


def test_top_k_equals_a_stable_sort():
    logits = RNG.integers(0, 6, (3, 4, 20)).astype(np.float32)
    best = top_k(logits, k=5)
    order = np.argsort(-logits, axis=-1, kind="stable")[..., :5]
    np.testing.assert_array_equal(best.classes, order)
    np.testing.assert_array_equal(best.logits, np.take_along_axis(logits, order, -1))
    with pytest.raises(ValueError, match="k=21"):
        top_k(logits, k=21)


def test_class_logits_of_half_precision_are_float32():
    space = tiny.make(tiny.CONFIGS["plain"]).class_space
    states = jnp.asarray(RNG.normal(size=(3, 5, 16)), jnp.bfloat16)
    assert project(space, states).dtype == jnp.float32


@pytest.mark.parametrize("name", ("plain", *tiny.ENCODERS))
def test_products_add_up_to_the_true_logits_of_every_kind(name):
    model = tiny.make(tiny.KINDS[name])
    shape = 2, 2, model.config.tokens, 16
    x, y = np.random.default_rng(0).normal(2, 3, shape).astype(np.float32)
    label = np.array([3, 6], np.int32)

    @jax.jit
    def run(model, x, y):
        space = fused_projection.fold(model.class_space, model.config.prefix)
        total = fused_projection.product(space, x) + fused_projection.product(space, y)
        logits = fused_projection.logits(space, total, x + y)
        true = fused_projection.label_logit(space, total, x + y, label)
        return logits, true, class_space.project_tokens(model, x + y)

    logits, true, expected = map(np.asarray, run(model, x, y))
    np.testing.assert_allclose(logits, expected, atol=2e-4)
    of_label = logits[np.arange(2), :, label]
    np.testing.assert_allclose(true, of_label, atol=1e-5)


@pytest.mark.slow
def test_the_stream_adds_up_on_real_weights(oracle, published_model, published_trace):
    model, label = published_model("setA"), oracle("setA").label[:2]
    _, trace = published_trace("setA")
    updates = np.concatenate([trace.attention_update, trace.mlp_update])[:, :2]
    embedding, final = trace.embedding[:2], trace.residual[-1, :2]

    @jax.jit
    def run(model, states, final):
        space = fused_projection.fold(model.class_space)
        total = fused_projection.product(space, states).sum(0)
        direct = class_space.project(model.class_space, final)
        return fused_projection.rank_and_logit(space, total, final, label), direct

    states = np.concatenate([embedding[None], updates])
    (ranks, logits), direct = run(model, states, final)
    np.testing.assert_allclose(logits, take_label(direct, label[:, None]), atol=1e-4)
    difference = np.abs(np.asarray(ranks) - np.asarray(rank(direct, label[:, None])))
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.99
    assert published.CONFIGS["setA"] == model.config


def test_a_label_never_counts_against_itself():
    space = fused_projection.fold(tiny.make(tiny.CONFIGS["plain"]).class_space)
    states = np.random.default_rng(0).normal(size=(7, 4, 16)).astype(np.float32)

    @jax.jit
    def ranks_of(label):
        products = fused_projection.product(space, states)
        return fused_projection.rank_and_logit(space, products, states, label)[0]

    ranks = [ranks_of(np.full(7, c, np.int32)) for c in range(7)]
    # Over all classes the ranks of a state are a permutation of 0 .. C-1.
    np.testing.assert_array_equal(
        np.sort(np.stack(ranks), axis=0),
        np.broadcast_to(np.arange(7)[:, None, None], (7, 7, 4)),
    )


def test_labels_of_any_integers_and_classes_that_tie():
    """More classes than a byte holds; ranks of a head of zeros are at chance."""
    model = tiny.make(tiny.CONFIGS["plain"], classes=tuple(map(str, range(300))))
    states = np.random.default_rng(0).normal(size=(3, 4, 16)).astype(np.float32)

    label = np.array([0, 100, 127])

    @jax.jit
    def ranks_of(model, labels):
        space = fused_projection.fold(model.class_space)
        products = fused_projection.product(space, states)
        direct = class_space.project(model.class_space, states)
        empty = space._replace(weight=0 * space.weight, beta=0 * space.beta)
        read = fused_projection.rank_and_logit
        ranks = [read(space, products, states, each)[0] for each in labels]
        tied = [read(empty, 0 * products, states, each)[0] for each in labels]
        return ranks, tied, class_space.rank(direct, label[:, None])

    dtypes = ("uint8", "int8", "int64")
    ranks, tied, direct = ranks_of(model, [*map(label.astype, dtypes)])
    assert all(np.abs(each - direct).max() <= 1 for each in ranks)
    assert (np.array(tied) == 299 // 2).all()


def test_largest_is_what_a_sort_puts_first():
    shapes = [(3, 4, entries) for entries in (5, 63, 320, 768, 1000)]
    arrays = [RNG.normal(size=shape).astype(np.float32) for shape in shapes]

    @jax.jit
    def run(arrays):
        return [(fast_top_k_indices(x, 1), fast_top_k_indices(x, 5)) for x in arrays]

    for x, (first, five) in zip(arrays, run(arrays)):
        expected = np.argsort(-x, axis=-1)
        np.testing.assert_array_equal(first, expected[..., :1])
        np.testing.assert_array_equal(five, expected[..., :5])


def test_equal_entries_have_the_values_of_the_largest():
    x = RNG.integers(3, size=(7, 900)).astype(np.float32)
    places, first = jax.jit(lambda x: (fast_top_k_indices(x, 5), argmax(x)))(x)
    assert all(len(set(row)) == 5 for row in places.tolist())
    np.testing.assert_array_equal(np.take_along_axis(x, np.asarray(places), -1), 2)
    np.testing.assert_array_equal(first, x.argmax(-1))


SPECIAL = (np.nan, np.inf, -np.inf, 0.0, 1.0)


def test_descending_is_a_stable_sort_also_of_what_is_equal_infinite_or_nan():
    x = RNG.choice(SPECIAL, size=(6, 5, 20)).astype(np.float32)
    x[0] = -np.inf
    x[1] = np.nan
    expected = np.lexsort((-np.nan_to_num(x, nan=0.0), ~np.isnan(x)), axis=-1)
    sizes = 1, 5, ROUNDS, ROUNDS + 1, 20

    @jax.jit
    def run(x):
        return [(top_k_indices(x, k), maxima(x, k)) for k in sizes]

    for k, ways in zip(sizes, run(x)):
        for actual in ways:
            np.testing.assert_array_equal(actual, expected[..., :k])


def test_the_first_of_what_is_equal_infinite_or_nan():
    x = RNG.choice(SPECIAL, size=(60, 7)).astype(np.float32)
    x[0] = -np.inf
    expected = np.where(np.isnan(x).any(-1), 0, np.nan_to_num(x, nan=-9).argmax(-1))
    ways = argmax, argmax_reduced, argmax_two_pass
    run = jax.jit(lambda x: [(way(x), jax.vmap(way)(x)) for way in ways])
    for actual in jax.tree.leaves(run(x)):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_few_largest_are_found_without_a_sort_where_sorts_are_slow(platform):
    def program(function):
        traced = jax.jit(function).trace(np.zeros((2, 900), np.float32))
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert "top_k" in program(lambda x: jax.lax.top_k(x, 5)[1])
    for few in (lambda x: fast_top_k_indices(x, 5), argmax):
        text = program(few)
        assert "top_k" not in text and "stablehlo.sort" not in text


def test_where_nothing_equals_the_maximum_the_largest_is_found_all_the_same(
    monkeypatch,
):
    x = RNG.normal(size=(3, 9)).astype(np.float32)
    calls, where = [], jnp.where

    def mistaken(condition, *values):
        calls.append(condition)
        return where(condition & (len(calls) > 1), *values)

    monkeypatch.setattr(jnp, "where", mistaken)
    np.testing.assert_array_equal(jax.jit(argmax_two_pass)(x), x.argmax(-1))
    assert len(calls) == 4


def test_padding_is_never_found():
    arrays = {}
    for k in (1, 2, 5):
        x = np.full((3, 4 * k * GROUP + 1), -np.inf, np.float32)
        x[0, -1], x[1, :2] = 1, 1  # in the group that is filled up, elsewhere, nowhere
        arrays[k] = x
    run = jax.jit(
        lambda arrays: {k: fast_top_k_indices(x, k) for k, x in arrays.items()}
    )
    for k, indices in jax.device_get(run(arrays)).items():
        x = arrays[k]
        assert indices.max() < x.shape[1]
        assert all(len(set(row)) == k for row in indices.tolist())
        largest = np.take_along_axis(x, indices, -1)
        np.testing.assert_array_equal(largest, -np.sort(-x, -1)[:, :k])


def test_k_out_of_range():
    with pytest.raises(ValueError, match="k=4"):
        fast_top_k_indices(np.zeros((2, 3), np.float32), 4)
