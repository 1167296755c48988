"""The recipe `editing`: rows against whole passes of models edited by hand."""

import functools

import jax
import numpy as np
import pytest
import tiny
from fake_context import FakeContext
from photos import CLASSES, Noise

import vitjax
from vitjax.recipes import editing, schema
from vitjax.recipes.editing import EDITING, EditingOptions

LABELS = [CLASSES[index % 4] for index in range(14)]
LABELS[3] = None
OPTIONS = {"images": 3, "confusions": 1, "draws": 3, "layers": (-1,)}
FORWARD = jax.jit(lambda model, images: vitjax.forward(model, images)[0])


@functools.cache
def edited():
    """(context, pixels, labels, carry) of a run; classes a, b, c, d are 0 to 3."""
    model = tiny.make(tiny.POOLED, classes=CLASSES)
    context = FakeContext(model, Noise(LABELS))
    context.run(EDITING.with_options(OPTIONS))
    return context, *context.loaded, context.carry


def by_hand(model, class_, memories, edit):
    """The edited model, by public functions, from `layer * hidden + neuron`."""
    values = vitjax.memory_values(model)["mlp"]
    chosen = np.zeros(values.shape[0] * values.shape[1], bool)
    chosen[memories] = True
    chosen = chosen.reshape(values.shape[:2])
    if edit == "project":
        freed = vitjax.memory_values(vitjax.remove_class(model, class_))["mlp"]
        values = np.where(chosen[..., None], freed, values)
        return vitjax.with_memory_values(model, {"mlp": values})
    return vitjax.scale_memories(model, "mlp", np.where(chosen, FACTORS[edit], 1))


FACTORS = {"zero": 0, "times_1_5": 1.5, "times_2": 2}


def test_rows_are_those_of_edited_models():
    context, images, label, carry = edited()
    rows, model = context.arrays, context.model
    counts = context.static["edited_memories"].astype(int)
    assert counts.tolist() == [1, 2, 5, 10, 20]
    role, each = rows["edited_role"], np.arange(14)
    plain = np.asarray(FORWARD(model, images))
    np.testing.assert_array_equal(rows["prediction"], plain.argmax(-1))
    for edit in schema.MEMORY_EDITS:
        for place, count in ((0, 2), (2, 4)):
            memories = carry.memories[place, :, : counts[count]]
            logits = [
                np.asarray(FORWARD(by_hand(model, place, own, edit), images))
                for own in memories
            ]
            fall = [(plain - after)[each, label] for after in logits]
            right = [after.argmax(-1) == label for after in logits]
            use = role[:, place] >= 0
            turns = 1 + (2 * each[:, None] + np.arange(2)) % 3  # of three draws, two
            for family, values in (
                (schema.EDITED_EFFECT, np.stack(fall, 1)),
                (schema.EDITED_CORRECT, np.stack(right, 1).astype(float)),
            ):
                random = np.take_along_axis(values, turns, 1).mean(1)
                for name, own in ("promoting", values[:, 0]), ("random", random):
                    row = rows[family(name, edit)][:, place, count]
                    np.testing.assert_allclose(row[use], own[use], atol=2e-5)
                    assert np.isnan(row[~use]).all()
        assert np.nanmax(np.abs(rows[schema.EDITED_EFFECT("random", edit)])) > 1e-3


def test_each_class_has_images_of_its_own_of_its_confusions_and_of_the_rest():
    context, images, label, _ = edited()
    role = context.arrays["edited_role"]
    assert (role[label < 0] == -1).all()
    logits = np.asarray(FORWARD(context.model, images))
    shares = np.asarray(jax.nn.softmax(logits))
    for class_ in range(4):
        own = np.flatnonzero(label == class_)
        chosen = np.flatnonzero(role[:, class_] == 0)
        assert set(chosen) <= set(own) and len(chosen) == min(3, len(own))
        others = [c for c in range(4) if c != class_]
        mean = shares[chosen].mean(0)
        confusion = max(others, key=lambda c: mean[c])
        assert (label[role[:, class_] == 1] == confusion).all()
        rest = label[role[:, class_] == 2]
        assert len(rest) == 3 and not np.isin(rest, [class_, confusion, -1]).any()


def test_memories_are_those_that_promote_the_class_and_random_ones_of_their_blocks():
    model = tiny.make(tiny.CONFIGS["plain"])
    classes, hidden = np.array([5, 1]), model.config.mlp_dim
    options = EditingOptions(draws=4)
    orders = editing.order_memories(model, classes, options, 7)
    assert orders.shape == (2, 5, 20)
    values = vitjax.memory_values(model)["mlp"].reshape(1, -1, model.config.dim)
    top = vitjax.memory_classes(model.class_space, values, k=7).memories[0, classes]
    np.testing.assert_array_equal(orders[:, 0, :7], top)
    blocks = orders // hidden
    assert (blocks == blocks[:, :1]).all() and len(np.unique(blocks)) == 2
    assert all(len(set(order)) == 20 for order in orders.reshape(-1, 20).tolist())
    np.testing.assert_array_equal(
        orders, editing.order_memories(model, classes, options, 7)
    )
    other = editing.order_memories(model, classes, options, 8)
    assert (orders[:, 0] == other[:, 0]).all() and (orders != other)[:, 1:].any()
    first = editing.order_memories(model, classes, EditingOptions(layers=(0,)), 7)
    assert first.max() < hidden


def test_classes_are_chosen_or_those_with_the_most_images():
    label = np.array([2, -1, 2, 4, 4, 4, 0, -1])
    choose = functools.partial(editing.choose_classes, label, classes=5)
    assert choose(EditingOptions(most=2)).tolist() == [4, 2]
    assert choose(EditingOptions()).tolist() == [4, 2, 0]
    assert choose(EditingOptions(chosen=(3, 0))).tolist() == [3, 0]
    with pytest.raises(ValueError, match="chosen"):
        choose(EditingOptions(chosen=(5,)))
    with pytest.raises(ValueError, match="labeled"):
        editing.choose_classes(label[:0], EditingOptions(), 5)
    with pytest.raises(ValueError, match="layers"):
        editing.counts_of(tiny.CONFIGS["plain"], (2,))
