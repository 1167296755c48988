"""Areas, removable shares and tests, by hand."""

import numpy as np
import pytest

from vitjax.report import document, faithfulness
from vitjax.report.faithfulness import Curves


@pytest.fixture
def run(make_run):
    """40 images, one of them unlabelled, with three methods of known quality."""
    rng = np.random.default_rng(0)
    images, methods = 40, ("chefer", "good", "random")
    right = rng.random((2, 3, images, 3)) < np.array([0.5, 0.95, 0.3])[:, None, None]
    more = {
        "prediction_empty": (("image",), np.full(images, 9, np.int32)),
        "kept": (("step",), np.array([4.0, 8.0, 12.0], np.float32)),
    }
    for place, name in enumerate(methods):
        axes = ("image", "step")
        more[f"removal_negative_{name}"] = (axes, right[0, place])
        more[f"removal_positive_{name}"] = (axes, ~right[1, place])
        score = (place == 1) * 0.4 + 0.5 * rng.random(images)
        more[f"mean_iou_{name}"] = (("image",), score.astype(np.float32))
    manifest = {"recipe": "faithfulness", "recipe_options": {"methods": list(methods)}}
    label = np.where(np.arange(images) == 39, -1, 0).astype(np.int32)
    return make_run(
        images=images, more=more, manifest=manifest, change={"label": label}
    )


def test_a_curve_has_both_ends_and_its_area(run):
    curve = faithfulness.curves(run, "removal", "negative", "good")
    np.testing.assert_allclose(curve.x, [0, 0.25, 0.5, 0.75, 1])
    intact = run["prediction"][:][:-1] == 0
    np.testing.assert_array_equal(curve.correct[:, 0], intact)
    np.testing.assert_array_equal(
        curve.correct[:, 1:4], run["removal_negative_good"][:][:-1, ::-1]
    )
    assert not curve.correct[:, 4].any()
    expected = np.trapezoid(curve.correct, curve.x, axis=1)
    np.testing.assert_allclose(curve.areas, expected)
    assert faithfulness.curves(run, "pixels", "negative", "good") is None


def test_the_published_area_of_a_full_curve_is_its_formula():
    accuracy = np.linspace(0.9, 0.1, 17)[None]  # none to all of 16 removed
    found = faithfulness.published_area(Curves(np.arange(17) / 16, accuracy), 16)
    kept = accuracy[0, 1:16]
    assert found == pytest.approx(kept.sum() / (kept.max() * 16))


def test_what_can_go_at_no_loss():
    x = np.array([0, 0.5, 1.0])
    always = np.tile([1.0, 1.0, 0.0], (8, 1))
    assert faithfulness.removable(Curves(x, always)) == (0.5, 0.5, 0.5)
    never = np.tile([1.0, 0.0, 1.0], (8, 1))  # a later recovery does not count
    assert faithfulness.removable(Curves(x, never)) == (0, 0, 0)
    mixed = np.array([[1.0, 1, 0], [1, 0, 0], [0, 1, 0]])
    value, low, high = faithfulness.removable(Curves(x, mixed))
    assert value == 0.5 and low == 0 and high >= 0.5


def test_the_table_compares_with_random_and_with_chefer(run):
    rows = faithfulness.table(run, name="run")
    cells = {(row["method"], row["column"]): row for row in rows}
    good = cells["good", "removal_negative"]
    own = faithfulness.curves(run, "removal", "negative", "good").areas
    assert good["value"] == pytest.approx(own.mean())
    assert good["low"] < good["value"] < good["high"] and good["images"] == 39
    assert good["p"] < 0.001 and good["p_chefer"] < 0.001
    assert np.isnan(cells["random", "removal_negative"]["p"])
    assert np.isnan(cells["chefer", "mean_iou"]["p_chefer"])
    assert cells["good", "mean_iou"]["p_chefer"] < 0.001
    assert ("good", "pixel_accuracy") not in cells


def test_curves_become_panels_of_both_orders(run):
    rows = faithfulness.curve_rows(run, "removal", name="run")
    drawn = faithfulness.panels(rows, "removal")
    assert [panel.title for panel in drawn] == list(faithfulness.ORDERS.values())
    assert [s.name for s in drawn[0].series] == ["chefer", "good", "random"]
    assert faithfulness.curve_rows(run, "pixels", name="run") == []


def test_a_page_has_figures_and_table_of_such_runs_alone(run, make_run, tmp_path):
    other = make_run()
    assert document._faithfulness(tmp_path, ["other"], [other]) is None
    part = document._faithfulness(tmp_path, ["other", "run"], [other, run])
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "faithfulness.csv",
        "faithfulness_removal.csv",
        "faithfulness_removal.png",
    }
    assert [line["method"] for line in part["lines"]] == ["chefer", "good", "random"]
    assert set(part["columns"]) == {
        *("removal_negative", "removal_positive", "removable", "mean_iou")
    }
    assert part["lines"][0]["speed"] is None  # not measured: the run goes on


def test_the_whole_page_shows_them(run, tmp_path):
    text = document.write_report([run], tmp_path / "page").read_text()
    for words in ("image tokens removed", "How faithful each method is", "good"):
        assert words in text
    assert "pixels blackened" not in text
