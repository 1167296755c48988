"""The recipe `faithfulness`: its rows are what the public functions say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vitjax
from vitjax.runner import faithfulness
from vitjax.runner.experiments import find_recipe
from vitjax.runner.stream import run
from vitjax.types import Batch

METHODS = ("chefer", "class_projection", "random")
OPTIONS = {"methods": METHODS, "steps": 3}


@pytest.fixture(scope="module")
def batch(tiny):
    rng = np.random.default_rng(5)
    return Batch(
        images=rng.normal(size=(4, 32, 32, 3)).astype(np.float32),
        label=np.array([0, 5, 2, -1], np.int32),
        valid=np.ones(4, bool),
        index=np.arange(4, dtype=np.int32),
        token_class=rng.integers(-1, 2, (4, 16)).astype(np.int32),
    )


@pytest.fixture(scope="module")
def rows(tiny, batch):
    recipe = find_recipe("faithfulness").asked(OPTIONS)
    step = jax.jit(recipe.rows)
    return jax.tree.map(np.asarray, step(tiny, batch, jnp.int32(0)))


def test_maps_and_curves_are_those_of_the_public_functions(tiny, batch, rows):
    label = np.maximum(batch.label, 0)
    counts = faithfulness.kept_counts(16, 3)
    assert counts == (5, 11)
    for method in METHODS:
        found = vitjax.explain(tiny, batch.images, label, method=method)
        np.testing.assert_allclose(rows[f"map_{method}"], found, atol=1e-6)
        for order in ("negative", "positive"):
            right = vitjax.removal_curve(
                *(tiny, batch.images, label, rows[f"map_{method}"]),
                keep_counts=counts,
                order=order,
            )
            np.testing.assert_array_equal(rows[f"removal_{order}_{method}"], right)


def test_segmentation_leaves_out_patches_that_are_neither(batch, rows):
    kind = batch.token_class
    found = vitjax.localisation(rows["map_chefer"], kind == 1, where=kind >= 0)
    for measure in faithfulness.MEASURES:
        # A last bit decides which of two near scores comes first.
        np.testing.assert_allclose(rows[f"{measure}_chefer"], found[measure], atol=5e-3)


@pytest.mark.parametrize("order, sign", (("negative", 1), ("positive", -1)))
def test_pixels_go_black_in_the_order_of_the_enlarged_map(
    tiny, batch, rows, order, sign
):
    grid = sign * rows["map_chefer"].reshape(4, 4, 4)
    enlarged = jax.image.resize(grid, (4, 32, 32), "bilinear").reshape(4, -1)
    first = np.argsort(np.asarray(enlarged), axis=1, kind="stable")
    images = batch.images.reshape(4, 1024, 3).copy()
    for level in range(1, 10):
        np.put_along_axis(images, first[:, : level * 1024 // 10, None], -1, axis=1)
        logits, _ = vitjax.forward(tiny, images.reshape(4, 32, 32, 3))
        right = np.argmax(logits, -1) == np.maximum(batch.label, 0)
        found = rows[f"pixels_{order}_chefer"][:, level - 1]
        np.testing.assert_array_equal(found, right)


def test_black_is_what_preprocessing_makes_of_it(tiny):
    preprocess = vitjax.Preprocess(32, 32, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    model = tiny.replace(preprocess=preprocess)
    found = faithfulness.black_level(model, np.float32)
    black = preprocess(np.zeros((32, 32, 3), np.uint8))
    np.testing.assert_allclose(found[0, 0, 0], black[0, 0], rtol=1e-6)


def test_a_run_measures_speeds_and_keeps_its_options(tiny, photos, tmp_path):
    options = {"methods": ("raw_attention",), "protocols": ("vilas_removal",)}
    ask = ("faithfulness", tiny, f"folder:{photos}", tmp_path / "run")
    found = run(*ask, batch_size=8, limit=8, options=options | {"steps": 2})
    assert list(found.manifest["recipe_options"]["methods"]) == ["raw_attention"]
    speeds = found.manifest["measured"]["images_per_second"]
    assert set(speeds) == {"forward", "raw_attention"} and min(speeds.values()) > 0
    np.testing.assert_array_equal(found["kept"][:], [8])
    assert found["removal_negative_raw_attention"].shape == (8, 1)
    assert "mean_iou_raw_attention" not in found  # no masks
    assert "rank_residual" in found  # a report has the rest from here
    with pytest.raises(ValueError, match="another run|steps"):
        run(*ask, batch_size=8, limit=8, options=options | {"steps": 4})


@pytest.mark.parametrize(
    "options, message",
    (
        ({"methods": ("chefr",)}, "Did you mean chefer"),
        ({"protocols": ("removal",)}, "vilas_removal"),
        ({"methods": ()}, "at least one method"),
        ({"steps": 1}, "at least 2"),
        ({"blocks": 1}, "no option blocks; it has methods"),
    ),
)
def test_options_that_do_not_exist_are_refused(
    tiny, photos, tmp_path, options, message
):
    with pytest.raises(ValueError, match=message):
        run("faithfulness", tiny, f"folder:{photos}", tmp_path / "run", options=options)
