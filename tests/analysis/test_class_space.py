"""Projection, rank, identifiability, top-k: formulas and properties."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vitjax.analysis.class_space import (
    identifiability,
    project,
    rank,
    take_label,
    top_k,
)

RNG = np.random.default_rng(0)


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


def test_permuting_classes_permutes_nothing_that_counts():
    logits = RNG.normal(size=(6, 9)).astype(np.float32)
    label, order = RNG.integers(0, 9, 6), RNG.permutation(9)
    where = np.argsort(order)
    moved = rank(logits[:, order], where[label])
    np.testing.assert_array_equal(moved, rank(logits, label))


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
