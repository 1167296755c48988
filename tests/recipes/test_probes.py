"""The recipe `probes`: against scikit-learn and plain forward passes, in groups."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from fake_context import FakeContext
from photos import CLASSES, Noise
from sklearn.linear_model import Ridge

import vitjax
from vitjax.data.datasets import open_data
from vitjax.recipes import probes, schema
from vitjax.recipes.probes import PROBES, first_of_each_class, token_ranges
from vitjax.recipes.recipe import image_noise

STREAMS = tuple(schema.STREAMS)
PHOTOS = [CLASSES[index % 6] for index in range(29)]
"""At batch size 8, the last batch holds five."""


def configured(**options):
    return PROBES.with_options({"train": "train", "shots": 3, "steps": 3, **options})


@pytest.fixture(scope="module")
def context():
    """A run that fits all probes at once, on some of the images that it measures."""
    model = tiny.make(tiny.CONFIGS["registers"], classes=CLASSES)
    context = FakeContext(model, Noise(PHOTOS), others={"train": Noise(PHOTOS)})
    context.run(configured())
    return context


@pytest.fixture(scope="module")
def states(context):
    """[image stream layer token dim], of all images."""
    _, trace = vitjax.forward(context.model, context.loaded[0], capture=STREAMS)
    stacked = np.stack([np.asarray(getattr(trace, name)) for name in STREAMS])
    return stacked.transpose(2, 0, 1, 3, 4)


def test_ranks_are_those_of_scikit_learns_probes(context, states):
    labels = context.loaded[1]
    targets = np.where(labels[:18, None] == np.arange(6), 1.0, -1.0)
    assert {*schema.RANK.names, *schema.CORRECT.names} < {*context.arrays}
    assert {*context.arrays} <= {*PROBES.dims}
    for place, name in enumerate(STREAMS):
        ranks = context.arrays[schema.RANK_PROBE(name)]
        for layer, token in ((0, 7), (1, 0), (1, 19)):
            one = states[:, place, layer, token].astype(np.float64)
            scores = Ridge(alpha=1.0).fit(one[:18], targets).predict(one)
            true = np.take_along_axis(scores, labels[:, None], 1)
            gap = np.abs(np.where(scores == true, np.inf, scores - true)).min(1)
            sure = gap > 1e-4
            assert sure.mean() > 0.9
            expected = (scores > true).sum(1)
            np.testing.assert_array_equal(ranks[sure, layer, token], expected[sure])


def test_the_projection_is_there_to_compare(context, states):
    logits = vitjax.project(context.model.class_space, states)
    expected = vitjax.rank(logits, context.loaded[1][:, None, None, None])
    for place, name in enumerate(STREAMS):
        equal = context.arrays[schema.RANK(name)] == expected[:, place]
        assert equal.mean() > 0.999


@pytest.mark.slow
def test_rows_keep_the_patches_that_probes_and_gradients_point_at(context):
    images, labels = context.loaded
    model, prefix = context.model, context.model.config.prefix
    ranks = context.arrays["rank_probe_residual"][:, :, prefix:].sum(1)
    relevancy = vitjax.relevancy(model, images, labels).sum((0, 2))
    relevancy = np.asarray(relevancy)[:, prefix:]
    orders = {
        ("negative", "probe"): np.argsort(ranks, kind="stable"),
        ("positive", "probe"): np.argsort(-ranks, kind="stable"),
        ("negative", "gradient"): np.argsort(-relevancy),
        ("positive", "gradient"): np.argsort(relevancy),
    }
    counts = PROBES.with_options({"steps": 3}).run_setup(model, 0).static["kept"]
    assert counts.tolist() == [1, 8, 15]
    for key, order in orders.items():
        for step, count in enumerate((1, 8, 15)):
            kept = vitjax.select_tokens(order[:, :count])
            logits, _ = vitjax.forward(model, images, edits=kept)
            correct = np.asarray(logits.argmax(-1)) == labels
            equal = context.arrays[schema.CORRECT(*key)][:, step] == correct
            assert equal.mean() > 0.95, key  # near ties of logits or relevancies


def test_the_study_is_described(context):
    study = PROBES.describe(context, **configured().keywords)
    assert study["train"] == {
        "id": "noise/0; first 3 of each class, 18 images",
        "images": 18,
    }
    assert (study["shared_images"], study["probes"]) == (18, 3 * 2 * 20)
    assert study["group"] == {"stream": 3, "layer": 2, "token": 20}
    assert study["bytes"]["states"] == 4 * 16 * 120 * 18
    assert json.loads(json.dumps(study)) == study


@pytest.mark.slow
@pytest.mark.parametrize("memory", ("1.6MB", "400kB"))
def test_groups_change_nothing_and_share_programs(context, memory):
    recipe = configured(max_memory=memory)
    other = dataclasses.replace(context)
    *fits, removal = recipe.passes(other, **recipe.keywords)
    *again, last = recipe.passes(other, **recipe.keywords)
    assert [one.step for one in (*fits, removal)] == [
        one.step for one in (*again, last)
    ]
    assert len({one.step for one in fits}) == 1 < len(fits)
    carry = fits[0].setup().carry
    shapes = [leaf.shape for leaf in jax.tree.leaves(fits[0].carry_shape)]
    assert [leaf.shape for leaf in jax.tree.leaves(carry)] == shapes
    rows = other.run(recipe)
    for name in map(schema.RANK_PROBE, STREAMS):
        expected = context.arrays[name]
        assert (rows[name] == expected).mean() > 0.995  # last bits of sums may differ
        assert np.abs(rows[name] - expected).max() <= 1


def test_images_that_cannot_be_read_are_left_out(context):
    recipe = configured(streams=("residual",))
    broken = Noise([*PHOTOS[:4], "broken", *PHOTOS[5:]])
    other = dataclasses.replace(
        context, data=broken, others={"train": broken}, on_error="skip"
    )
    rows = other.run(recipe)
    assert PROBES.describe(other, **recipe.keywords)["train"]["images"] == 18
    ranks = rows["rank_probe_residual"]
    assert (ranks[4] == -1).all() and (np.delete(ranks, 4, 0) >= 0).all()
    assert "rank_probe_mlp_update" not in rows


def test_softmax_probes_are_trained_on_all_states():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(24, 2, 4)).astype(np.float32)
    labels = rng.integers(-1, 3, size=24).astype(np.int32)
    batches = [(jnp.asarray(states[s]), labels[s]) for s in np.split(np.arange(24), 3)]
    probe = probes.fit_softmax(batches, classes=3, seed=1)
    expected = vitjax.fit_softmax_probe(states, labels, classes=3, seed=1)
    np.testing.assert_array_equal(probe.weights, expected.weights)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 19, 20, 1000])
def test_ranges_hold_every_token_once_and_are_of_one_size(limit):
    ranges = token_ranges(20, limit)
    assert sum(map(list, ranges), []) == list(range(20))
    sizes = [len(tokens) for tokens in ranges]
    assert max(sizes) <= limit and len(ranges) == -(-20 // max(sizes))
    assert set(sizes[:-1]) <= {sizes[0]} and sizes[-1] <= sizes[0]


def test_softmax_keeps_states_and_ridge_sums():
    sizes = {"dim": 768, "classes": 1000}
    ridge, softmax = (
        [probes.bytes_per_probe(kind, examples=n, **sizes) for n in (10, 9090)]
        for kind in ("ridge", "softmax")
    )
    assert ridge[0] == ridge[1] > 8 * 768 * 1768
    assert softmax[1] - softmax[0] == 2 * 4 * 9080 * 768


def test_kept_patches_are_evenly_spaced_and_never_all():
    keep_counts = probes.keep_counts
    assert keep_counts(49, steps=48) == keep_counts(49, steps=1000)
    assert keep_counts(49, steps=48) == tuple(range(1, 49))
    assert keep_counts(196, steps=6) == (1, 40, 79, 117, 156, 195)
    assert keep_counts(17, steps=1) == (8,)
    assert keep_counts(2, steps=5) == keep_counts(1, steps=5) == (1,)


def test_small_ranks_in_any_block_are_important():
    ranks = np.array([[[0, 5, 2], [0, 1, 2]]], np.int32)
    importance = probes.importance_of(ranks)
    np.testing.assert_array_equal(np.argsort(-importance[0]), [0, 2, 1])
    huge = np.full((1, 24, 1), 21_000, np.int16)
    assert probes.importance_of(huge)[0, 0] == -24 * 21_000


def test_noise_depends_on_key_and_image_alone():
    key, other = jax.random.key(7), jax.random.key(8)
    together = image_noise(key, np.arange(6, dtype=np.int32), 16)
    later = image_noise(key, np.arange(3, 6, dtype=np.int32), 16)
    np.testing.assert_array_equal(together[3:], later)
    assert len(np.unique(together, axis=0)) == 6
    assert not np.array_equal(image_noise(other, jnp.arange(6), 16), together)


def test_the_first_of_each_class_are_chosen():
    data = Noise(["a", "a", "b", "a", None, "b", "broken", "b", "c", "a"])
    source = open_data(data, classes=("a", "b", "c"))
    chosen = first_of_each_class(source, shots=2, classes=3)
    assert chosen.indices == (0, 1, 2, 5, 8) and len(chosen) == 5
    assert (chosen[3].label, chosen[3].name) == (1, "image 5")
    assert chosen.id != first_of_each_class(source, shots=1, classes=3).id
    with pytest.raises(ValueError, match="no labeled image"):
        first_of_each_class(open_data(Noise([None])), shots=1, classes=1)


@pytest.mark.parametrize("named", (False, True))
def test_nothing_is_decoded_that_need_not_be(named):
    data = Noise(["a", "b", "a", "b"])
    if named:
        data.label_names = tuple(data.labels)
    source = open_data(data, classes=("a", "b"))
    assert first_of_each_class(source, shots=1, classes=2).indices == (0, 1)
    assert data.read == ([] if named else [0, 1])


def test_amounts_of_memory():
    sizes = {"2GiB": 2**31, "500MB": 5 * 10**8, "1.5k": 1500, 77: 77, "3 Mi": 3 * 2**20}
    assert {size: probes.parse_bytes(size) for size in sizes} == sizes
    for wrong in ("", "much", "0", "-1GB", "1.2.3", "2XiB"):
        with pytest.raises(ValueError, match="max_memory="):
            probes.parse_bytes(wrong)


def test_options_that_do_not_fit_the_run(context):
    streams = configured(streams=("mlp_update", "residual")).keywords["streams"]
    assert streams == ("residual", "mlp_update")
    for recipe, message in (
        (PROBES, "--train SOURCE"),
        (configured(max_memory="1kB"), "max_memory='1kB' is too small"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe.passes(context, **recipe.keywords)
