"""The recipe `faithfulness`: rows against the functions that they are made of."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy.special import softmax

import vitjax
from vitjax.analysis.faithfulness import localisation, saco, salience_groups
from vitjax.recipes import faithfulness, schema
from vitjax.recipes.faithfulness import FAITHFULNESS
from vitjax.saliency.methods import READERS, explain_by_all
from vitjax.saliency.removal import removal_curve

CONFIG = vitjax.Config(16, 4, dim=8, depth=1, heads=2, mlp_dim=8)
METHODS = ("chefer", "class_projection", "random")
RECIPE = FAITHFULNESS.with_options({"methods": METHODS, "steps": 3})
SEED, UNMASKED = 3, 2
LABEL = np.arange(12, dtype=np.int32) % 4


@pytest.fixture(scope="module")
def model():
    return tiny.make(CONFIG, classes=("ant", "bee", "cat", "dog"))


@pytest.fixture(scope="module")
def batch():
    """Twelve images with objects, one without a mask; 4 of 16 patches are neither."""
    labels = np.zeros((12, 4, 4), np.int32)
    for index in range(12):
        labels[index, : 1 + index % 3, :2] = 1
    labels[:, 3] = -1
    labels[UNMASKED] = -1
    return tiny.batch_of(tiny.images(CONFIG, 12), LABEL, labels.reshape(12, 16))


@pytest.fixture(scope="module")
def setup(model):
    return RECIPE.run_setup(model, SEED)


@pytest.fixture(scope="module")
def rows(model, batch, setup):
    return jax.device_get(jax.jit(RECIPE.run_step)(model, batch, setup.carry))


@pytest.mark.slow
def test_maps_are_those_of_explain(rows, model, batch):
    maps = {name: rows[schema.MAP(name)] for name in METHODS}
    images, names = batch.images[:3], tuple(READERS)
    shared = jax.jit(explain_by_all, static_argnames="methods")
    maps |= shared(model, images, LABEL[:3], methods=names)
    for name, values in maps.items():
        seed = {"seed": SEED} if name == "random" else {}
        images, label = batch.images[: len(values)], LABEL[: len(values)]
        expected = vitjax.explain(model, images, label, method=name, **seed)
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("order", schema.ORDERS)
def test_removal_is_that_of_removal_curve(rows, setup, model, batch, order):
    counts = faithfulness.kept_counts(16, 3)
    np.testing.assert_array_equal(setup.static["kept"], counts)
    expected = removal_curve(
        model,
        batch.images,
        LABEL,
        rows["map_chefer"],
        keep_counts=counts,
        order=order,
    )
    correct = rows[schema.REMOVAL(order, "chefer")]
    np.testing.assert_array_equal(correct, expected)
    assert 0 < correct.mean() < 1
    shares = rows[schema.PROBABILITY(order, "chefer")]
    assert (shares[correct] > 1 / 4).all() and (shares[~correct] <= 1 / 2).all()
    sign = 1 if order == "positive" else -1
    kept = np.argsort(sign * rows["map_chefer"], axis=1, kind="stable")
    edits = vitjax.select_tokens(kept[:, : counts[0]].astype(np.int32))
    logits, _ = vitjax.forward(model, batch.images, edits=edits)
    expected = softmax(np.asarray(logits), axis=1)[np.arange(12), LABEL]
    np.testing.assert_allclose(shares[:, 0], expected, atol=1e-5)


def test_without_any_patch_every_image_is_the_same(rows):
    assert len(set(rows["prediction_empty"])) == 1
    assert 0 <= rows["prediction_empty"][0] < 4
    assert len(np.unique(rows["probability_empty"])) == 4  # of the labels


def test_saco_replaces_groups_by_the_mean_color(rows, model, batch):
    maps, image = rows["map_chefer"][:1], batch.images[0]
    group = np.asarray(salience_groups(maps, 10))[0]
    edited = np.tile(image, (11, 1, 1, 1))
    for number in range(10):
        gone = np.kron((group == number).reshape(4, 4), np.ones((4, 4))) > 0
        edited[number][gone] = image.mean((0, 1))
    logits, _ = vitjax.forward(model, edited)
    shares = softmax(np.asarray(logits), axis=1)[:, LABEL[0]]
    salience = [maps[0][group == number].mean() for number in range(10)]
    expected = saco(np.array(salience), shares[10] - shares[:10])
    np.testing.assert_allclose(rows["saco_chefer"][0], expected, atol=1e-4)


def test_segmentation_is_localisation_where_there_is_a_mask(rows, batch):
    kinds = batch.patch_label
    expected = localisation(rows["map_class_projection"], kinds == 1, where=kinds >= 0)
    for measure in schema.MEASURES:
        measured = rows[schema.SEGMENTATION(measure, "class_projection")]
        np.testing.assert_allclose(measured, expected[measure], rtol=1e-5)
    counted = [name for name in schema.MEASURES if name.endswith("tives")]
    total = sum(rows[schema.SEGMENTATION(name, "chefer")] for name in counted)
    np.testing.assert_array_equal(np.delete(total, UNMASKED), 12)
    assert np.isnan(rows["mean_iou_chefer"][UNMASKED])


def test_pixels_are_blackened_in_the_order_of_the_map(rows, model, batch):
    """Against a plain forward pass of images that numpy blackened."""
    maps, black = rows["map_class_projection"], np.full(3, -1, np.float32)
    for sign, order in ((1, "negative"), (-1, "positive")):
        enlarged = enlarge(sign * maps, factor=4).reshape(12, -1)
        for level in (1, 7):
            count = level * 256 // 10
            images = batch.images.copy().reshape(12, 256, 3)
            for image, values in zip(images, enlarged):
                image[np.argsort(values, kind="stable")[:count]] = black
            logits, _ = vitjax.forward(model, images.reshape(-1, 16, 16, 3))
            expected = np.asarray(logits).argmax(-1) == LABEL
            correct = rows[schema.PIXELS(order, "class_projection")][:, level - 1]
            # A near tie of two pixels may fall either way in the last bit.
            assert (correct == expected).mean() > 0.9


def enlarge(values, *, factor):
    """Bilinear with centers of pixels aligned, edges repeated; by hand."""
    rows = values.reshape(-1, 4, 4)
    at = np.clip((np.arange(4 * factor) + 0.5) / factor - 0.5, 0, 3)
    low = np.minimum(at.astype(int), 2)
    part = at - low
    rows = rows[:, low] * (1 - part)[:, None] + rows[:, low + 1] * part[:, None]
    return rows[..., low] * (1 - part) + rows[..., low + 1] * part


def test_pixel_order_is_a_permutation_by_the_enlarged_map():
    values = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    place = faithfulness.pixel_order(jnp.asarray(values), (4, 4), (16, 16))
    for one, expected in zip(np.asarray(place), enlarge(values, factor=4)):
        assert sorted(one.ravel()) == list(range(256))
        assert (np.diff(expected.ravel()[np.argsort(one.ravel())]) > -1e-5).all()
    flat = faithfulness.pixel_order(jnp.zeros((1, 16)), (4, 4), (16, 16))
    np.testing.assert_array_equal(np.asarray(flat).ravel(), np.arange(256))


def test_black_is_zero_after_normalization(model):
    preprocess = vitjax.Preprocess(16, 16)
    other = dataclasses.replace(preprocess, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.5))
    black = preprocess(np.zeros((16, 16, 3), np.uint8))[0, 0]
    for known, expected in (
        (None, [-1, -1, -1]),
        (preprocess, black),
        (other, [-2, -5 / 3, -1.2]),
    ):
        level = faithfulness.black_level(model.replace(preprocess=known), jnp.float32)
        np.testing.assert_allclose(level[0, 0, 0], expected, rtol=1e-6)


def test_speeds_of_every_method_are_measured(model, batch):
    options = RECIPE.with_options({"methods": ("raw_attention", "random")}).keywords
    measured = faithfulness.benchmark(model, batch, **options)
    speeds, passes = measured["images_per_second"], measured["passes"]
    assert set(speeds) == {"forward", "raw_attention", "random"}
    assert min(speeds.values()) > 0 and passes["forward"] == 1
    assert passes["random"] == speeds["forward"] / speeds["random"]


def test_only_the_chosen_protocols_run_and_segmentation_needs_masks(model, batch):
    recipe = RECIPE.with_options({"protocols": ("segmentation",)})
    plain = dataclasses.replace(batch, patch_label=None)
    masked, unmasked = (
        jax.eval_shape(recipe.run_step, model, one, jnp.int32(0))
        for one in (batch, plain)
    )
    measures = {
        schema.SEGMENTATION(m, name) for m in schema.MEASURES for name in METHODS
    }
    assert set(masked) - set(unmasked) == measures
    others = ("removal", "probability", "pixels", "saco", "prediction_empty")
    assert not any(name.startswith(others) for name in masked)


@pytest.mark.slow
def test_the_predicted_class_is_another_target(model, batch):
    options = {
        "methods": ("class_projection",),
        "protocols": ("segmentation",),
        "target": "predicted",
    }
    recipe = RECIPE.with_options(options)
    rows = jax.jit(recipe.run_step)(model, batch, jnp.int32(0))
    prediction = np.asarray(rows["prediction"])
    assert (prediction != LABEL).any()
    explain = functools.partial(vitjax.explain, model, batch.images)
    expected = explain(prediction, method="class_projection")
    np.testing.assert_allclose(
        rows["map_class_projection"], expected, rtol=1e-4, atol=1e-6
    )


def test_kept_counts():
    kept = faithfulness.kept_counts
    assert kept(16, 4) == (4, 8, 12)
    assert kept(16, 3) == (5, 11)
    assert kept(16, 16) == kept(16, 1000) == tuple(range(1, 16))
    assert kept(2, 20) == (1,)
    assert kept(1, 2) == ()
    for steps in (2, 7, 20):
        counts = kept(196, steps)
        assert len(counts) == steps - 1 and sorted(set(counts)) == list(counts)
