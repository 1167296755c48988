"""Interventions, tests and published numbers."""

import copy
import dataclasses

import numpy as np
import pytest

from vitjax.report import tables
from vitjax.report.mechanism import mechanism
from vitjax.report.per_image import digest
from vitjax.report.reduction import summary_table


def test_interventions_in_rows(paper_run):
    found = mechanism(paper_run, digest(paper_run))
    rows = {row["intervention"]: row for row in tables.intervention_table(found)}
    assert set(rows) == set(found.interventions) <= set(tables.EDIT_NAMES)
    for name, row in rows.items():
        one = found.interventions[name]
        there = np.isfinite(one.after)
        assert row["images"] == there.sum()
        assert row["before"] == pytest.approx(one.before[there].mean())
        change = (one.after - one.before)[there].mean()
        assert row["change"] == pytest.approx(change)
        assert row["low"] <= row["change"] <= row["high"] and 0 < row["p"] <= 1
        assert row["accuracy_after"] == pytest.approx(one.correct_after[there].mean())


def test_tests_are_corrected_over_blocks(paper_run):
    data = digest(paper_run)
    rows = tables.test_table(data, mechanism(paper_run, data))
    names = list(dict.fromkeys(row["quantity"] for row in rows))
    # Three streams; change rates, logit changes, agreements, class values, accuracy.
    assert len(names) == 3 + 8 + 2 + 4 + 4 + 2
    for name in names:
        p = np.array([row["p"] for row in rows if row["quantity"] == name])
        for key, correct in (
            ("p_holm", tables.holm),
            ("p_bh", tables.benjamini_hochberg),
        ):
            found = [row[key] for row in rows if row["quantity"] == name]
            np.testing.assert_allclose(found, correct(p))
    words = tables.significant(rows)
    assert [line["quantity"] for line in words] == names
    assert tables.test_table(digest(paper_run), None)[0] == rows[0]


def test_published_numbers_only_where_model_and_data_are_the_papers(paper_run):
    data = digest(paper_run)
    found, summary = mechanism(paper_run, data), summary_table(data)
    edits = tables.intervention_table(found)
    manifest = copy.deepcopy(paper_run.manifest)
    show = lambda digest=data: tables.published(manifest, digest, summary, edits)  # noqa: E731
    assert show() is None
    manifest["model"] |= {"name": "vit_b32", "sha256": "abc"}
    assert show() is None
    whole = "imagenet_s919/validation:4550 files,5 per class by seed 0,abc"
    for name in (whole, "tfds/imagenet_s/paper/1.0.0:validation,4550 records"):
        manifest["data"]["id"] = name
        values = {row["quantity"]: row for row in show()["rows"]}
        assert len(values) == 9
    rate = values["image tokens that are identifiable, last block"]
    assert (rate["theirs"], rate["ours"]) == (0.60726, summary[1]["value"])
    cut = values[tables.EDIT_NAMES["no_cls"]]
    assert cut["theirs"] == pytest.approx(0.607134)
    assert show(dataclasses.replace(data, done=3)) is None
    manifest["limit"] = 10
    assert show() is None
    manifest |= {"limit": None, "model": manifest["model"] | {"sha256": None}}
    random = {row["quantity"]: row["theirs"] for row in show()["rows"]}
    assert random["images with an identifiable token, last block"] == 0.01275


@pytest.mark.parametrize("kind", ("within_images", "published"))
def test_tokens_as_units_are_an_option_that_names_its_subset(paper_run, kind):
    data = digest(paper_run)
    rows = tables.token_tests(paper_run, data, kind=kind, subset=12)
    assert len(rows) == 3 * data.config.depth
    assert f"({kind.replace('_', ' ')}, 12 images)" in rows[0]["quantity"]
    ranks = paper_run["rank_residual"][:12, 0][:, 1:]
    kinds = paper_run["patch_label"][:12]
    score = 1 - ranks / 10
    expected = score[kinds == 1].mean() - score[kinds == 0].mean()
    assert rows[0]["difference"] == pytest.approx(expected)
    assert all(0 <= row["p"] <= 1 for row in rows)


def test_the_published_test_of_accuracy_reads_token_0(paper_run):
    data = digest(paper_run)
    rows = tables.accuracy_tests(paper_run, data)
    assert len(rows) == 2 * data.config.depth
    hits = paper_run["agreement_code_mlp"][...][:, :, 0].astype(float)
    expected = hits[data.correct].mean(0) - hits[~data.correct].mean(0)
    found = [row["difference"] for row in rows if row["quantity"].startswith("mlp")]
    np.testing.assert_allclose(found, expected)
    assert "[CLS]" in rows[0]["quantity"] and "published" in rows[0]["quantity"]
    p = tables.vilas2023_accuracy_test(hits, data.correct)
    assert [r["p"] for r in rows if r["quantity"].startswith("mlp")] == p.tolist()
    same = dataclasses.replace(data, correct=np.ones_like(data.correct))
    assert tables.accuracy_tests(paper_run, same) == []


def test_every_quantity_is_tested_against_what_it_should_exceed(paper_run):
    data = digest(paper_run)
    found = mechanism(paper_run, data)
    rows = {(r["quantity"], r["layer"]): r for r in tables.test_table(data, found)}
    change = found.change["residual"]["image"] - 0.5
    row = rows["change rate of residual, image tokens, above 0.5", 1]
    assert row["difference"] == pytest.approx(change[:, 1].mean(), abs=1e-6)
    above = found.agreement["code"]["mlp"] - found.chance["code"]["mlp"]
    row = rows["mlp agreement (code) above permuted classes", 0]
    assert row["difference"] == pytest.approx(above[:, 0].mean(), abs=1e-6)
    expected = tables.wilcoxon_test(
        found.class_value["mlp"].T, found.class_value["mlp_control"].T
    )
    name = "mlp class-value agreement above control (Wilcoxon over classes)"
    assert rows[name, 1]["p"] == pytest.approx(expected[1])


def test_a_trained_run_is_tested_against_its_random_control(paper_run):
    data = digest(paper_run)
    manifest = copy.deepcopy(paper_run.manifest)
    manifest["model"]["sha256"] = "abc"
    better = {k: np.minimum(v + 0.1, 1) for k, v in data.curves.items()}
    trained = dataclasses.replace(data, manifest=manifest, curves=better)
    ((place, rows),) = tables.control_tests([data, trained])
    assert place == 1 and all(row["difference"] > 0 for row in rows)
    assert rows[0]["p"] < 0.01 and tables.control_tests([data, data]) == []
    # Another order of images is the same comparison.
    order = np.arange(len(data.image))[::-1]
    turned = {k: v[order] for k, v in data.curves.items()}
    control = dataclasses.replace(data, image=data.image[order], curves=turned)
    assert tables.control_tests([control, trained]) == [(1, rows)]
