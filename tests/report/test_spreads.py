"""Distributions of the appendix: what is drawn is what the rows say."""

import numpy as np
import pytest

from vitjax.report import spreads
from vitjax.report.mechanism import mechanism
from vitjax.report.per_image import digest
from vitjax.statistics import holm, sign_flip_test


@pytest.fixture(scope="module")
def drawn(paper_run):
    """(digest, mechanism, key -> figure)."""
    data = digest(paper_run)
    found = mechanism(paper_run, data)
    figures = spreads.spreads(data, found, run="a")
    return data, found, {figure.key: figure for figure in figures}


def test_what_there_is(drawn, masked_run):
    data, _, figures = drawn
    both = ("identifiability_boxes", "context_boxes")
    paper = ("class_value_boxes", "agreement_classes")
    assert tuple(figures) == (*both, *paper, "identifiable_tokens")
    fewer = spreads.spreads(digest(masked_run), None, run="b", several=True)
    assert tuple(figure.key for figure in fewer) == (*both, "identifiable_tokens")
    assert all(panel.title.endswith("(b)") for each in fewer for panel in each.panels)
    for figure in figures.values():
        assert figure.caption.endswith(".") and figure.table[0]["run"] == "a"
        assert {"chance", "chance_number"} & set(figure.table[0])


@pytest.mark.parametrize(
    "key, kinds, alternative",
    [
        ("identifiability_boxes", ("cls", "image"), "two-sided"),
        ("context_boxes", ("context", "class"), "less"),
    ],
)
def test_boxes_of_kinds(drawn, key, kinds, alternative):
    data, _, figures = drawn
    (panel,) = figures[key].panels
    values = [data.of("residual", "identifiability", kind) for kind in kinds]
    for series, each in zip(panel.series, values):
        expected = np.nanmedian(each, axis=0)
        np.testing.assert_allclose(series.column("median"), expected, rtol=1e-6)
        assert series.rows[0]["images"] == np.isfinite(each[:, 0]).sum()
    difference = (values[0] - values[1]).astype(float)
    p = holm(sign_flip_test(difference, alternative=alternative))
    np.testing.assert_array_equal(panel.series[0].column("p_holm"), p)
    assert np.isnan(panel.series[1].column("p_holm")).all()
    assert panel.chance == (data.chance("identifiability"),)


def test_a_box_is_what_scipy_and_matplotlib_say(drawn):
    from matplotlib.cbook import boxplot_stats

    values = np.random.default_rng(0).standard_t(2, (41, 3))
    values[3, 1] = np.nan
    nothing = np.full(3, np.nan)
    rows = spreads.box_rows(values, chance=nothing, p=nothing)
    for row, column in zip(rows, values.T):
        (expected,) = boxplot_stats(column[np.isfinite(column)])
        found = [row[k] for k in ("median", "q25", "q75", "whisker_low")]
        keys = ("med", "q1", "q3", "whislo")
        np.testing.assert_allclose(found, [expected[key] for key in keys])
        assert row["whisker_high"] == expected["whishi"]
        assert row["low"] < row["mean"] < row["high"]
    (row,) = spreads.box_rows(nothing[:1, None], chance=nothing[:1], p=nothing[:1])
    assert row["images"] == 0 and np.isnan(row["median"])


def test_class_values_lie_beside_their_control(drawn):
    _, found, figures = drawn
    for panel, system in zip(figures["class_value_boxes"].panels, ("attention", "mlp")):
        (series,) = panel.series
        means = found.class_value[system].mean(-1)
        np.testing.assert_allclose(series.column("mean"), means, rtol=1e-5)
        control = found.class_value[f"{system}_control"].mean(-1)
        np.testing.assert_allclose(series.column("chance"), control, rtol=1e-5)
        assert panel.chance == () and "random" in panel.chance_name


def test_a_dot_per_class(drawn, paper_run):
    data, _, figures = drawn
    hits, label = paper_run["agreement_mlp"][...], paper_run["label"][:]
    figure = figures["agreement_classes"]
    rows = {(r["panel"], r["class"], r["layer"]): r for r in figure.table}
    for number, name in enumerate(data.classes):
        row = rows["MLP", name, 1]
        assert row["images"] == (label == number).sum()
        assert row["mean"] == pytest.approx(hits[label == number, 1].mean(), abs=1e-6)
    (series,) = figure.panels[1].series
    values = [rows["MLP", name, 1]["mean"] for name in data.classes]
    assert series.rows[1]["values"] == values
    assert series.rows[1]["mean"] == pytest.approx(np.mean(values))


def test_classes_without_an_image_have_no_dot():
    values, label = np.arange(8.0).reshape(4, 2), np.array([5, 2, 5, 2])
    np.testing.assert_array_equal(spreads.class_means(values, label), [[4, 5], [2, 3]])


def test_histograms_count_every_image_once(drawn, paper_run):
    data, _, figures = drawn
    (panel,) = figures["identifiable_tokens"].panels
    (series,) = panel.series
    counts = (paper_run["rank_residual"][:, -1][:, 1:] == 0).sum(-1)
    expected = np.bincount(counts, minlength=17)
    np.testing.assert_array_equal(series.column("images"), expected)
    assert sum(series.column("mean")) == pytest.approx(1)
    assert series.rows[0]["centre"] == pytest.approx(counts.mean())
    assert panel.chance == (pytest.approx(16 / 10),)


def test_wide_histograms_have_wide_bars():
    numbers = np.array([0, 3, 4, 195, 196])
    rows = spreads.bin_rows(numbers, total=196, chance=0.196)
    assert len(rows) == 50 and rows[0]["tick"] == "0–3" and rows[-1]["tick"] == "196"
    assert [rows[place]["images"] for place in (0, 1, 48, 49)] == [2, 1, 1, 1]


def test_mean_pooling_has_image_tokens_alone(make_run):
    run = make_run(fields={"class_token": False, "depth": 1}, images=1, classes=1)
    first, last = spreads.spreads(digest(run), None, run="a")
    (panel,) = first.panels
    assert [series.name for series in panel.series] == ["image tokens"]
    assert np.isnan(panel.series[0].column("p_holm")).all()
    assert last.key == "identifiable_tokens"


def test_nothing_usable_has_no_figure(make_run):
    run = make_run(change={"valid": np.zeros(9, bool)})
    assert spreads.spreads(digest(run), None, run="a") == []
