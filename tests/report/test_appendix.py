"""Distributions: what is drawn is what the rows say."""

import numpy as np
import pytest
from fake_runs import fake_run
from matplotlib.cbook import boxplot_stats

from vitjax.statistics import holm, sign_flip_test, wilcoxon_test


@pytest.fixture(scope="module")
def figures(report, paper_results):
    return report(paper_results)[0]


@pytest.mark.parametrize(
    "key, kinds, alternative",
    [
        ("identifiability_boxes", ("cls", "image"), "two-sided"),
        ("context_boxes", ("context", "object"), "less"),
    ],
)
def test_boxes_of_kinds(figures, paper_run, key, kinds, alternative):
    data = figures[key].data
    first, second = data.groupby("series", sort=False)
    values = [paper_run.curve(kind) for kind in kinds]
    for (_, rows), each in zip((first, second), values):
        np.testing.assert_allclose(rows["median"], np.nanmedian(each, axis=0))
        assert rows["images"].tolist() == np.isfinite(each).sum(0).tolist()
    difference = (values[0] - values[1]).astype(float)
    p = holm(sign_flip_test(difference, alternative=alternative))
    np.testing.assert_array_equal(first[1]["p_holm"], p)
    assert second[1]["p_holm"].isna().all()
    assert (data["chance"] == paper_run.chance("identifiability")).all()


def test_a_box_is_what_matplotlib_says(figures, paper_run):
    rows = figures["identifiability_boxes"].data
    rows = rows[rows["series"] == "image tokens"]
    for row, column in zip(rows.to_dict("records"), paper_run.curve("image").T):
        (expected,) = boxplot_stats(column.astype(float))
        for name, key in (
            ("median", "med"),
            ("q25", "q1"),
            ("q75", "q3"),
            ("whisker_low", "whislo"),
            ("whisker_high", "whishi"),
        ):
            assert row[name] == pytest.approx(expected[key])
        assert row["low"] <= row["mean"] <= row["high"]


def test_class_values_lie_beside_their_control(figures, paper_results):
    for panel, system in (("attention", "attention"), ("MLP", "mlp")):
        rows = figures["class_value_boxes"].panels()[panel]
        values = paper_results[f"class_value_{system}"].values
        control = paper_results[f"class_value_{system}_control"].values
        np.testing.assert_allclose(rows["mean"], values.mean(-1), rtol=1e-5)
        np.testing.assert_allclose(rows["chance"], control.mean(-1), rtol=1e-5)
        p = holm(wilcoxon_test(values.T, control.T))
        np.testing.assert_array_equal(rows["p_holm"], p)


def test_a_dot_for_every_class_that_has_an_image(report):
    label = np.array([0, 2, 2, 4, 4, 4, 0, 2, 4], np.int32)
    results = fake_run("paper", change={"label": label})
    rows = report(results)[0]["agreement_classes"].panels()["MLP"]
    hits = results["agreement_mlp"].values
    assert rows["class"].unique().tolist() == ["kind 0", "kind 2", "kind 4"]
    for number in (0, 2, 4):
        own = rows[rows["class"] == f"kind {number}"]
        expected = hits[label == number].mean((0, 2))
        np.testing.assert_allclose(own["mean"], expected, atol=1e-6)
        assert (own["images"] == (label == number).sum()).all()
    means = rows.groupby("layer")[["mean", "average"]].mean()
    np.testing.assert_allclose(means["mean"], means["average"])


def test_histograms_count_every_image_once(figures, paper_results):
    rows = figures["identifiable_tokens"].data
    counts = (paper_results["rank_residual"].values[:, -1, 1:] == 0).sum(-1)
    assert rows["images"].tolist() == np.bincount(counts, minlength=17).tolist()
    assert rows["mean"].sum() == pytest.approx(1)
    assert (rows["mean_number"] == counts.mean()).all()
    np.testing.assert_allclose(rows["chance_number"], 16 / 5)


def test_wide_histograms_have_wide_bars(report):
    ranks = np.ones((5, 3, 197), np.int32)
    for image, number in enumerate((0, 3, 4, 195, 196)):
        ranks[image, :, 1 : number + 1] = 0
    size = {"image_size": 56, "previews": 0}
    results = fake_run(images=5, change={"rank_residual": ranks}, **size)
    rows = report(results)[0]["identifiable_tokens"].data
    assert len(rows) == 50
    assert rows["tick"].iloc[[0, -1]].tolist() == ["0–3", "196"]
    assert rows["images"].iloc[[0, 1, 48, 49]].tolist() == [2, 1, 1, 1]


def test_without_cls_and_masks_image_tokens_are_alone(report):
    results = fake_run(class_token=False, depth=1, images=1, classes=1)
    figures, _, _ = report(results)
    assert not {"context_boxes", "agreement_classes"} & set(figures)
    rows = figures["identifiability_boxes"].data
    assert rows["series"].tolist() == ["image tokens"]
    assert rows["p_holm"].isna().all()
