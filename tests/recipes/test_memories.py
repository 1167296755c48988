"""Memory rows of every head: what the public functions say of a head's own memories."""

import functools

import jax
import numpy as np
import pytest
import tiny

import vitjax
from vitjax.recipes import memories
from vitjax.recipes.paper import ONE_PASS, PAPER

CLASSES, ORDERS = 7, 3


@functools.cache
def case(k, heads=2, key=8):
    """One layer's memories, what tokens call, and the rows."""
    draw = np.random.default_rng(k)
    space = tiny.make(tiny.CONFIGS["plain"]).class_space
    values = draw.normal(size=(heads * key, 16)).astype(np.float32)
    mixed = draw.normal(size=(3, 17, heads, key)).astype(np.float32)
    label = np.array([0, 3, 6], np.int32)
    top = draw.integers(CLASSES, size=(3, 17), dtype=np.int32)
    orders = np.stack([draw.permutation(CLASSES) for _ in range(ORDERS)])
    known = vitjax.memory_classes(space, values, k=k)
    rows = jax.jit(functools.partial(memories.head_rows, k=k))(
        known, mixed, label, top, orders.astype(np.int32)
    )
    return space, values, mixed, label, top, orders, rows


@pytest.mark.parametrize("head", (0, 1))
def test_a_head_is_a_layer_of_its_own_memories(head):
    space, values, mixed, label, top, orders, rows = case(3)
    own, called = values[8 * head : 8 * (head + 1)], mixed[:, :, head]

    def agree(label):
        hits = vitjax.key_value_agreement(space, called, own, label[:, None], k=3)
        return np.asarray(hits).mean(1)

    def says(top):
        return np.asarray(vitjax.compositionality(space, called, own, top, k=3)).mean(1)

    for name, of, classes in (("agreement", agree, label), ("simple", says, top)):
        found = rows[f"{name}_head"][:, head]
        np.testing.assert_allclose(found, of(classes), atol=1e-6)
        name = "chance_head" if name == "agreement" else "chance_simple_head"
        expected = np.mean([of(order[classes]) for order in orders], axis=0)
        np.testing.assert_allclose(rows[name][:, head], expected, atol=1e-6)
        assert 0 < expected.mean() < 1


def test_a_head_of_few_memories_calls_all_of_them():
    """With k = 5 and 4 memories every token of an image says the same."""
    space, values, _, label, *_, rows = case(5, heads=4, key=4)
    logits = np.asarray(space.embedding) @ values.T
    for head in range(4):
        best = np.argsort(-logits[:, 4 * head : 4 * (head + 1)], axis=0)[:5]
        expected = [float(number in best) for number in label]
        np.testing.assert_array_equal(rows["agreement_head"][:, head], expected)


def test_heads_are_rows_of_the_whole_recipe_alone():
    names = {"agreement_head", "chance_head", "simple_head", "chance_simple_head"}
    assert names <= set(PAPER.dims) and not names & set(ONE_PASS.dims)
    assert PAPER.options["heads"] and not ONE_PASS.options["heads"]
    assert {"agreement_head", "chance_head"} <= set(PAPER.labelled)
    assert not names & set(ONE_PASS.labelled)
