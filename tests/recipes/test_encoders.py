"""Every recipe on encoders of other kinds, from images to the page of the report."""

import jax
import numpy as np
import photos
import pytest
import tiny

import vitjax
from vitjax.recipes.registry import RECIPES

OPTIONS = {
    "paper": {"interventions": ("self_only",)},
    "faithfulness": {"methods": ("relevancy", "lrp"), "steps": 3},
    "ablation": {"draws": 1, "reference_images": 4, "order_images": 4},
    "tokens": {"top": 6},
    "probes": {"shots": 1, "steps": 3},
    "editing": {"images": 2, "confusions": 1, "draws": 1, "draws_per_image": 1},
    "lens": {"steps": 2},
}
KINDS = {
    "identifiability": "siglip",
    "one_pass": "clip",
    "paper": "siglip",
    "faithfulness": "dinov2",
    "probes": "clip",
    "tokens": "siglip",
    "ablation": "dinov2",
    "patching": "mean_with_cls",
    "editing": "siglip",
    "lens": "clip",
    "errors": "dinov2",
}
"""Every recipe meets a head that does not read [CLS] alone, or not in `dim` axes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return photos.make_photos(tmp_path_factory.mktemp("photos"))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_and_its_report(recipe, folder, tmp_path):
    model = tiny.make(tiny.ENCODERS[KINDS[recipe]], classes=photos.CLASSES)
    options = OPTIONS.get(recipe, {})
    if recipe in ("probes", "lens"):
        options = options | {"train": f"folder:{folder}"}
    rows = vitjax.run(
        recipe,
        model,
        f"folder:{folder}",
        tmp_path / "rows",
        options=options,
        batch_size=photos.BATCH,
        limit=2 * photos.BATCH,
        show_progress=False,
    )
    assert np.isin(rows["prediction"][:], range(len(photos.CLASSES))).all()
    assert "map_lrp" not in rows  # it has no rules for the head of DINOv2
    if "token_probabilities" in rows:  # of all classes, each its own sigmoid
        total = rows["token_probabilities"].values.sum(-1)
        assert (np.abs(total - 1) > 1e-5).any()
    vitjax.write_report([rows], tmp_path / "report")
    assert (tmp_path / "report" / "report.html").exists()


def test_a_recipe_that_has_no_rules_for_a_head_says_so():
    model = tiny.make(tiny.ENCODERS["siglip"])
    batch = tiny.batch_of(tiny.images(model.config), [1, 2, 3])
    recipe = RECIPES["faithfulness"].with_options({"methods": ("lrp",)})
    with pytest.raises(ValueError, match="pool='map'"):
        jax.eval_shape(recipe.run_step, model, batch, np.int32(0))
