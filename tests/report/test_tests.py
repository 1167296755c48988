"""Tests of significance, in rows and in words."""

import numpy as np
import pytest
from fake_runs import fake_run

from vitjax.report import tests as room
from vitjax.report.per_image import Run
from vitjax.statistics import (
    benjamini_hochberg,
    holm,
    vilas2023_accuracy_test,
    wilcoxon_test,
)


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
    assert list(room.accuracy_tests(all_right)) == []


def test_a_trained_run_is_tested_against_its_random_control():
    ranks = np.random.default_rng(0).integers(1, 5, (9, 3, 17)).astype(np.int32)
    random = {"manifest": {"model": {"sha256": None}}}
    control = Run(fake_run(change={"rank_residual": ranks}, **random), "control")
    better = {"rank_residual": ranks - 1}
    trained = Run(fake_run(change=better, masks=True), "trained")
    rows = list(room.control_tests([control, trained]))
    assert len(rows) == 2  # kinds that both have
    assert all((each["difference"] > 0).all() for each in rows)
    assert all((each["run"] == "trained").all() for each in rows)
    assert (rows[0]["p"] < 0.01).all()
    others = [Run(fake_run(depth=2, **random)), Run(fake_run(classes=4, **random))]
    others[1].manifest["data"]["id"] = "other"
    for other in (trained, *others):
        assert list(room.control_tests([trained, other])) == []


def test_without_masks_and_paper_there_is_nothing_to_test(report):
    assert "tests" not in report(fake_run())[1]
