"""Sections of tuned lenses and of errors foreseen, from rows made up."""

import numpy as np
import pytest
from fake_runs import STUDY, fake_run
from sklearn.metrics import average_precision_score

ANSWERS = np.array([[1, 2, 2], [2, 2, 0], [0, 1, 2]], np.int32)
"""Of three images by the lens of three blocks; the model answers 2, 0 and 3."""


@pytest.fixture(scope="module")
def lens_report(report):
    change = {
        "label": np.array([2, 2, 3], np.int32),
        "prediction": np.array([2, 0, 3], np.int32),
        "prediction_by_lens": ANSWERS,
    }
    probes = fake_run("probes", manifest={"study": STUDY})
    return report(fake_run("lens", images=3, change=change), probes)


def test_early_exit_by_hand(lens_report):
    _, tables, _ = lens_report
    rows = tables["lens"].data.query("series == 'tuned lens'")
    rows = rows[rows["panel"] == "pooled token"].set_index(["measure", "layer"])
    expected = {
        "agreement": [0, 1 / 3, 2 / 3],
        "settled": [0, 1 / 3, 2 / 3],
        # The first stops after block 2, the second after 1, the third never.
        "blocks": [8 / 9, 8 / 9, 1],
        # Right: the first and third of all; stopped, the second also.
        "change": [1 / 3, 1 / 3, 0],
    }
    for measure, means in expected.items():
        np.testing.assert_allclose(rows.loc[measure, "mean"], means, atol=1e-9)


def test_probes_of_the_same_model_stand_beside_lenses(lens_report):
    figures, _, sentences = lens_report
    series = figures["lens_identifiability"].data["series"].unique().tolist()
    assert series == ["class projection", "tuned lens", "linear probe"]
    assert set(figures["lens_kl"].data["series"]) == {"class projection", "tuned lens"}
    assert any("two blocks in a row agree" in line for line in sentences)


def test_errors_are_foreseen_where_the_course_says_so(report):
    rng, images = np.random.default_rng(0), 200
    label = rng.integers(5, size=images).astype(np.int32)
    wrong = rng.random(images) < 0.3
    logits = rng.normal(size=(images, 3, 5)).astype(np.float32)
    logits[:, 1, 0] += 4.0 * ~wrong  # the block in the middle tells
    change = {
        "label": label,
        "prediction": np.where(wrong, (label + 1) % 5, label).astype(np.int32),
        "rival_logits": logits,
        "energy": np.log(np.exp(logits).sum(-1)),
        "top_logits": -np.sort(-logits, axis=-1),
    }
    run = fake_run("errors", images=images, change=change)
    figures, tables, sentences = report(run)
    rows = tables["errors"].data.set_index("confidence")
    assert rows.loc["dynamics", "aucpr"] > 0.9 > rows.loc["probability", "aucpr"]
    assert rows.loc["dynamics", "aucpr_difference_low"] > 0
    assert rows.loc["dynamics", "aurc_difference_high"] < 0
    assert rows.loc["probability", "aucpr_difference_high"] == 0
    assert any("beats the maximum probability" in line for line in sentences)
    test = np.random.default_rng(0).permutation(images)[images // 2 :]
    sure = np.exp(logits[test, -1, 0]) / np.exp(logits[test, -1]).sum(-1)
    expected = average_precision_score(wrong[test], -sure)
    assert rows.loc["probability", "aucpr"] == pytest.approx(expected, rel=1e-5)
    curve = figures["risk_coverage"].data
    whole = curve[curve["x"] == 1]
    np.testing.assert_allclose(whole["mean"], wrong[test].mean())
    lead = figures["errors_lead"].data.query("series == 'right' and layer == 1")
    right = logits[~wrong, 1]
    expected = (right[:, 0] - right[:, 1:].max(-1)).mean()
    assert lead["mean"].item() == pytest.approx(expected, rel=1e-5)
