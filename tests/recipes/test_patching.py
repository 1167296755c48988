"""The recipe `patching`: rows against `vitjax.patch` in whole forward passes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from fake_context import FakeContext
from photos import CLASSES

import vitjax
from vitjax.data.records import Record
from vitjax.models.forward import scan_blocks
from vitjax.recipes import patching, schema, sites
from vitjax.recipes.patching import PATCHING

NAMES = tiny.slow_but(("plain", "registers_gap", "post_cls"), "registers_gap")
FORWARD = jax.jit(lambda m, x, e: vitjax.forward(m, x, edits=e)[0])
CAPTURE = tuple(sites.AXES)


class Photos:
    """Noise of four classes, sorted by class."""

    id = "noise/1"

    def __len__(self):
        return 16

    def __getitem__(self, index):
        pixels = np.random.default_rng(index).integers(256, size=(32, 32, 3))
        label = CLASSES[index // 4]
        return Record(image=pixels.astype(np.uint8), label=label, name=str(index))


@functools.cache
def patched(name="plain", tokens="grid"):
    """(context, pixels and labels of all images) of a run of the recipe."""
    config = tiny.CONFIGS[name]
    context = FakeContext(tiny.make(config, classes=CLASSES), Photos(), limit=9)
    context.run(PATCHING.with_options({"tokens": tokens, "partners": 12}))
    batches = list(context.batches(context.source, 0, 16))
    images = np.concatenate([b.images for b in batches])[:16]
    return context, images, np.concatenate([b.label for b in batches])[:16]


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_those_of_whole_passes(name):
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


def test_all_is_one_and_nothing_is_zero():
    context, images, _ = patched("registers")
    model, everything = context.model, np.ones((1, 2, 20), bool)
    logits, trace = vitjax.forward(model, images[:3], capture=CAPTURE)
    values = {"residual": trace.residual}
    other, streams = scan_blocks(model, images[3:6], sites.read_stream)
    chosen = {"residual": np.concatenate([everything, ~everything])}
    both = jax.jit(sites.sweep, static_argnums=4)(
        model, streams, values, chosen, jnp.asarray
    )
    np.testing.assert_allclose(both, jnp.stack([logits, other]), atol=1e-5)


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
    group = patching.token_groups(config, "grid")
    assert group[:2].tolist() == [0, 1]
    rows = group[2:].reshape(6, 6)
    assert rows[0].tolist() == [2, 2, 3, 4, 4, 5] and rows.max() == 17
    only = patching.token_groups(config, "cls")
    assert only[0] == 0 and (only[1:] == -1).all()
    with pytest.raises(ValueError, match="tokens='cls'"):
        patching.token_groups(tiny.CONFIGS["gap"], "cls")


def test_partners_are_of_another_class_and_a_function_of_the_image():
    label = np.array([0, 0, 1, -1, 2], np.int32)
    images = np.zeros((5, 1, 1, 3), np.float32)
    carry = patching.Carry(images, label, np.arange(5, dtype=np.int32), np.int32(3))
    index, own = np.arange(40, dtype=np.int32), np.tile([0, 1], 20).astype(np.int32)
    place, exists = patching.draw_partner(carry, index, jnp.asarray(own))
    assert exists.all() and (label[place] != own).all() and (label[place] >= 0).all()
    assert set(np.asarray(place[own == 0]).tolist()) == {2, 4}
    again, _ = patching.draw_partner(carry, index[7:9], jnp.asarray(own[7:9]))
    np.testing.assert_array_equal(again, place[7:9])
    alone = carry._replace(label=np.where(label == 1, 1, -1).astype(np.int32))
    _, exists = patching.draw_partner(alone, index, jnp.asarray(own))
    np.testing.assert_array_equal(exists, own == 0)


def test_without_a_partner_or_a_difference_nothing_is_restored():
    context, images, _ = patched()
    step = patching.make_step("cls")
    batch = tiny.batch_of(images[:2], [0, 1])
    index = np.arange(2, dtype=np.int32)
    carry = patching.Carry(images[:1], np.ones(1, np.int32), index[:1], np.int32(0))
    rows = jax.jit(step)(context.model, batch, carry)
    assert rows["partner"].tolist() == [0, -1]
    # The first image is its own partner, under another label.
    for name in schema.RESTORED_RESIDUAL.names + schema.RESTORED.names:
        assert np.isnan(rows[name]).all(), name
    assert np.isfinite(rows["metric_clean"]).tolist() == [True, False]


def test_partners_have_to_be_some():
    with pytest.raises(ValueError, match="partners=0"):
        PATCHING.with_options({"partners": 0})
