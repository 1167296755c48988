"""The recipe `faithfulness`: rows against the functions that they are made of."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vitjax
from vitjax.analysis.faithfulness import localisation
from vitjax.checkpoints.loading import init
from vitjax.data.records import Record
from vitjax.recipes import faithfulness
from vitjax.recipes.registry import find_recipe
from vitjax.runner.results import open_results
from vitjax.runner.stream import run
from vitjax.saliency.removal import removal_curve

CLASSES = ("ant", "bee", "cat", "dog")
TINY = vitjax.Config(16, 4, dim=8, depth=1, heads=2, mlp_dim=8)
METHODS = ("chefer", "class_projection", "random")
OPTIONS = {"methods": METHODS, "steps": 3}
UNLABELLED, UNMASKED = 5, 2


class Shapes:
    """Twelve pictures with objects, one without a mask and one without a label."""

    id = "shapes/1"

    def __len__(self):
        return 12

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        pixels = rng.integers(256, size=(16, 16, 3)).astype(np.uint8)
        mask = np.zeros((16, 16), np.uint8)
        mask[: 4 + 4 * (index % 3), :8] = 1
        mask[12:] = 255  # neither
        return Record(
            image=pixels,
            label=None if index == UNLABELLED else index % 4,
            name=str(index),
            mask=None if index == UNMASKED else mask,
        )


@pytest.fixture(scope="module")
def model():
    made = init(TINY, classes=CLASSES, seed=1)
    # Larger weights, for answers that differ between images.
    return made.replace(params=jax.tree.map(lambda leaf: 6 * leaf, made.params))


@pytest.fixture(scope="module")
def small_run(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("faithfulness")
    return go(model, out, options=OPTIONS), out


def go(model, out, **options):
    plain = {"batch_size": 12, "show_progress": False, "seed": 3}
    return run("faithfulness", model, Shapes(), out, **plain, **options)


@pytest.fixture(scope="module")
def inputs(model):
    images = np.stack([model.preprocess(Shapes()[i].image) for i in range(12)])
    return images, np.array([i % 4 for i in range(12)], np.int32)


LABELLED = np.arange(12) != UNLABELLED


def test_maps_are_those_of_explain(small_run, model, inputs):
    found, _ = small_run
    for name in METHODS:
        expected = vitjax.explain(model, *inputs, method=name, seed=3)
        rows = found[f"map_{name}"][:]
        np.testing.assert_allclose(
            rows[LABELLED], np.asarray(expected)[LABELLED], rtol=1e-4, atol=1e-6
        )
        assert np.isnan(rows[UNLABELLED]).all()


@pytest.mark.parametrize("order", faithfulness.ORDERS)
def test_removal_is_that_of_removal_curve(small_run, model, inputs, order):
    found, _ = small_run
    counts = faithfulness.kept_counts(16, 3)
    np.testing.assert_array_equal(found["kept"][:], counts)
    images, label = inputs
    importance = np.nan_to_num(found["map_chefer"][:])
    expected = removal_curve(
        model, images, label, importance, keep_counts=counts, order=order
    )
    rows = found[f"removal_{order}_chefer"][:]
    np.testing.assert_array_equal(rows[LABELLED], np.asarray(expected)[LABELLED])
    assert not rows[UNLABELLED].any()  # what was never written
    assert 0 < rows.mean() < 1


def test_without_any_patch_every_picture_is_the_same(small_run):
    found, _ = small_run
    assert len(set(found["prediction_empty"][:])) == 1
    assert 0 <= found["prediction_empty"][0] < len(CLASSES)


def test_segmentation_is_localisation_where_there_is_a_mask(small_run):
    found, _ = small_run
    kinds = found["patch_label"][:]
    assert {-1, 0, 1} <= set(np.unique(kinds))
    maps = found["map_class_projection"][:]
    expected = localisation(maps, kinds == 1, where=kinds >= 0)
    for measure in faithfulness.MEASURES:
        rows = found[f"{measure}_class_projection"][:]
        np.testing.assert_allclose(
            rows[LABELLED], np.asarray(expected[measure])[LABELLED], rtol=1e-5
        )
        assert np.isnan(rows[UNLABELLED])
    # Tokens that are neither count nowhere: 4 of 16 patches lie on them.
    sums = sum(found[f"{name}_chefer"][:] for name in faithfulness.MEASURES[4:])
    masked = LABELLED & (np.arange(12) != UNMASKED)
    np.testing.assert_array_equal(sums[masked], 12)
    assert np.isnan(found["mean_iou_chefer"][UNMASKED])


def test_pixels_are_blackened_in_the_order_of_the_map(small_run, model, inputs):
    """Against a plain forward of pictures that numpy blackened."""
    found, _ = small_run
    images, label = inputs
    maps = found["map_class_projection"][:][LABELLED]
    black = np.full(3, (0 - 0.5) / 0.5, np.float32)
    for sign, order in ((1, "negative"), (-1, "positive")):
        enlarged = enlarge(sign * maps, factor=4).reshape(len(maps), -1)
        for level in (1, 7):
            count = level * 256 // 10
            pictures = images[LABELLED].copy().reshape(len(maps), 256, 3)
            for picture, values in zip(pictures, enlarged):
                picture[np.argsort(values, kind="stable")[:count]] = black
            logits, _ = vitjax.forward(model, pictures.reshape(-1, 16, 16, 3))
            right = np.asarray(logits).argmax(-1) == label[LABELLED]
            rows = found[f"pixels_{order}_class_projection"][:][LABELLED]
            # A near tie of two pixels may fall either way in the last bit.
            assert (rows[:, level - 1] == right).mean() > 0.9


def enlarge(values, *, factor):
    """Bilinear with centres of pixels aligned, edges repeated; by hand."""
    rows = values.reshape(-1, 4, 4)
    at = np.clip((np.arange(4 * factor) + 0.5) / factor - 0.5, 0, 3)
    low = np.minimum(at.astype(int), 2)
    part = at - low
    rows = rows[:, low] * (1 - part)[:, None] + rows[:, low + 1] * part[:, None]
    return rows[..., low] * (1 - part) + rows[..., low + 1] * part


def test_pixel_order_is_a_permutation_by_the_enlarged_map():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 16)).astype(np.float32)
    place = faithfulness.pixel_order(jnp.asarray(values), (4, 4), (16, 16))
    place = np.asarray(place)
    for one, expected in zip(place, enlarge(values, factor=4)):
        assert sorted(one.ravel()) == list(range(256))
        for level in range(1, 10):
            assert (one < level * 256 // 10).sum() == level * 256 // 10
        along = expected.ravel()[np.argsort(one.ravel())]
        assert (np.diff(along) > -1e-5).all()
    flat = faithfulness.pixel_order(jnp.zeros((1, 16)), (4, 4), (16, 16))
    np.testing.assert_array_equal(np.asarray(flat).ravel(), np.arange(256))


def test_black_is_zero_after_normalisation(model):
    shown = model.preprocess(np.zeros((16, 16, 3), np.uint8))
    other = dataclasses.replace(
        model.preprocess, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.5)
    )
    for preprocess, expected in ((model.preprocess, shown[0, 0]), (None, [-1] * 3)):
        level = faithfulness.black_level(
            model.replace(preprocess=preprocess), jnp.float32
        )
        np.testing.assert_allclose(level[0, 0, 0], expected)
    level = faithfulness.black_level(model.replace(preprocess=other), jnp.float32)
    np.testing.assert_allclose(level[0, 0, 0], [-2, -5 / 3, -1.2], rtol=1e-6)


def test_the_manifest_has_options_and_speeds(small_run):
    manifest = open_results(small_run[1]).manifest
    told = manifest["recipe_options"]
    assert told["methods"] == list(METHODS) and told["steps"] == 3
    assert told["protocols"] == list(faithfulness.PROTOCOLS)
    assert told["target"] == "label"
    speeds = manifest["measured"]["images_per_second"]
    assert set(speeds) == {"forward", *METHODS}
    assert all(speed > 0 for speed in speeds.values())


@pytest.mark.parametrize(
    "changed", [{"steps": 4}, {"methods": METHODS[:2]}, {"target": "predicted"}]
)
def test_other_options_are_another_run(small_run, model, changed):
    _, out = small_run
    name = next(iter(changed))
    with pytest.raises(ValueError, match=f"recipe_options.{name}"):
        go(model, out, options=OPTIONS | changed)


def shapes_of(model, *, patch_label=None, **options):
    """Names and shapes of the step's rows; nothing is computed."""
    recipe = find_recipe("faithfulness").asked(OPTIONS | options)
    batch = vitjax.types.Batch(
        images=np.zeros((2, 16, 16, 3), np.float32),
        label=np.array([1, -1], np.int32),
        valid=np.ones(2, bool),
        index=np.arange(2, dtype=np.int32),
        patch_label=patch_label,
    )
    return jax.eval_shape(recipe.rows, model, batch, jnp.int32(0))


def test_without_masks_there_is_no_segmentation(model):
    rows = shapes_of(model)
    assert not any(name.startswith(faithfulness.MEASURES) for name in rows)
    assert rows["pixels_positive_random"].shape == (2, 9)
    kinds = np.zeros((2, 16), np.int32)
    assert "mean_iou_chefer" in shapes_of(model, patch_label=kinds)


def test_only_the_protocols_that_were_asked_for(model):
    rows = shapes_of(model, protocols=("chefer_perturbation",))
    assert any(name.startswith("pixels_") for name in rows)
    assert not any(name.startswith(("removal_", "prediction_empty")) for name in rows)


@pytest.mark.slow
def test_the_predicted_class_is_another_target(model, inputs):
    images, label = inputs
    batch = vitjax.types.Batch(
        images=images,
        label=label,
        valid=np.ones(12, bool),
        index=np.arange(12, dtype=np.int32),
    )
    options = dict(methods=("class_projection",), protocols=("segmentation",), steps=3)
    step = jax.jit(
        lambda model, batch, **more: faithfulness.faithfulness(
            model, batch, jnp.int32(0), **options, target="predicted"
        )
    )
    rows = step(model, batch)
    answer = np.asarray(rows["prediction"])
    assert (answer != label).any()
    expected = vitjax.explain(model, images, answer, method="class_projection")
    found = rows["map_class_projection"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_what_does_not_exist_is_refused(model):
    with pytest.raises(ValueError, match="has no option step; it has methods, proto"):
        find_recipe("faithfulness").asked({"step": 3})
    with pytest.raises(ValueError, match="'identifiability' has no option steps"):
        find_recipe("identifiability").asked({"steps": 3})
    check = faithfulness.check_names
    with pytest.raises(ValueError, match="Did you mean 'chefer'"):
        check(("cheffer",), faithfulness.PROTOCOLS)
    for methods, protocols in ((METHODS, ("removal",)), ((), ("segmentation",))):
        with pytest.raises(ValueError, match="must be out of vilas_removal.*at least"):
            check(methods, protocols)
    with pytest.raises(ValueError, match="must be out of"):
        shapes_of(model, protocols=())
    with pytest.raises(ValueError, match="steps is 1; a curve needs at least 2"):
        shapes_of(model, steps=1)


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
    with pytest.raises(ValueError, match="at least 2"):
        kept(16, 1)


def test_asking_changes_only_what_was_asked():
    recipe = find_recipe("faithfulness")
    asked = recipe.asked({"steps": 5})
    assert asked.options == {**recipe.options, "steps": 5}
    assert recipe.options["steps"] == faithfulness.STEPS
    assert asked.step is recipe.step and asked.measure is recipe.measure
