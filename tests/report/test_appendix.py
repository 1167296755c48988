"""Distributions: what is drawn is what the rows say; tests, in rows and in words."""

import numpy as np
import pytest
from fake_runs import fake_run

from vitjax.report import appendix
from vitjax.report.per_image import Run
from vitjax.statistics import (
    benjamini_hochberg,
    holm,
    sign_flip_test,
    vilas2023_accuracy_test,
    wilcoxon_test,
)


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


@pytest.fixture(scope="module")
def table(report, paper_results):
    return report(paper_results)[1]["tests"]


def test_tests_are_corrected_over_blocks(table):
    # Three streams; change rates, logit changes, agreements, class values, accuracy.
    quantities = table.data.groupby("quantity", sort=False)
    assert len(quantities) == 3 + 8 + 2 + 4 + 4 + 2 == len(table.shown)
    for _, rows in quantities:
        np.testing.assert_allclose(rows["p_holm"], holm(rows["p"].to_numpy()))
        expected = benjamini_hochberg(rows["p"].to_numpy())
        np.testing.assert_allclose(rows["p_bh"], expected)
    for _, _, words in table.shown.itertuples(index=False):
        assert words == "none" or set(words.split(", ")) <= {"0", "1"}


def test_every_quantity_is_tested_against_what_it_should_exceed(table, paper_run):
    rows = table.data.set_index(["quantity", "layer"])["difference"]
    change = paper_run.metric("change", compared="residual", tokens="image")
    name = "change rate of residual, image tokens, above 0.5"
    assert rows[name, 1] == pytest.approx(change[:, 1].mean() - 0.5, abs=1e-6)
    where = {"convention": "vilas2023", "system": "mlp"}
    above = paper_run.metric("agreement", **where)
    above = above - paper_run.metric("agreement_chance", **where)
    name = "mlp agreement (vilas2023) above permuted classes"
    assert rows[name, 0] == pytest.approx(above[:, 0].mean(), abs=1e-6)
    values = [
        paper_run.metric("class_value", system="mlp", weights=weights).T
        for weights in ("trained", "control")
    ]
    name = "mlp class-value agreement above control (Wilcoxon over classes)"
    p = table.data.set_index(["quantity", "layer"])["p"]
    assert p[name, 1] == pytest.approx(wilcoxon_test(*values)[1])


@pytest.mark.parametrize("kind", ["within_images", "vilas2023", "published"])
def test_tokens_as_units_are_an_option_that_names_its_subset(
    report, paper_results, kind
):
    rows = report(paper_results, tests=kind, subset=12)[1]["tests"].data
    words = kind.replace("_", " ").replace("published", "vilas2023")
    rows = rows[rows["quantity"].str.endswith(f"({words}, 12 images)")]
    assert len(rows) == 3 * 2 and rows["p"].between(0, 1).all()
    score = 1 - paper_results["rank_residual"].values[:12, 0, 1:] / 5
    patch_label = paper_results["patch_label"].values[:12]
    expected = score[patch_label == 1].mean() - score[patch_label == 0].mean()
    assert rows["difference"].iloc[0] == pytest.approx(expected)


def test_the_published_test_of_accuracy_reads_token_0(report, paper_results, paper_run):
    rows = report(paper_results, tests="vilas2023", subset=5)[1]["tests"].data
    name = "mlp agreement (vilas2023) at [CLS], right minus wrong images"
    rows = rows[rows["quantity"] == name]
    hits = paper_results["agreement_vilas2023_mlp"].values[:, :, 0].astype(float)
    right = paper_run.correct
    expected = hits[right].mean(0) - hits[~right].mean(0)
    np.testing.assert_allclose(rows["difference"], expected)
    np.testing.assert_array_equal(rows["p"], vilas2023_accuracy_test(hits, right))
    label = fake_run("one_pass")["label"].values
    all_right = Run(fake_run("one_pass", change={"prediction": label}))
    assert list(appendix.accuracy_tests(all_right)) == []


def test_a_trained_run_is_tested_against_its_random_control():
    ranks = np.random.default_rng(0).integers(1, 5, (9, 3, 17)).astype(np.int32)
    random = {"manifest": {"model": {"sha256": None}}}
    control = Run(fake_run(change={"rank_residual": ranks}, **random), "control")
    better = {"rank_residual": ranks - 1}
    trained = Run(fake_run(change=better, masks=True), "trained")
    rows = list(appendix.control_tests([control, trained]))
    assert len(rows) == 2  # kinds that both have
    assert all((each["difference"] > 0).all() for each in rows)
    assert all((each["run"] == "trained").all() for each in rows)
    assert (rows[0]["p"] < 0.01).all()
    others = [Run(fake_run(depth=2, **random)), Run(fake_run(classes=4, **random))]
    others[1].manifest["data"]["id"] = "other"
    for other in (trained, *others):
        assert list(appendix.control_tests([trained, other])) == []


def test_without_masks_and_paper_there_is_nothing_to_test(report):
    assert "tests" not in report(fake_run())[1]
