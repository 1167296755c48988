"""The figures of sections 5 and 6: what is drawn is what the rows say."""

import numpy as np
import pytest

from vitjax.report import sections
from vitjax.report.figures import legend, png, svg
from vitjax.report.mechanism import mechanism
from vitjax.report.per_image import digest


@pytest.fixture(scope="module")
def drawn(paper_run):
    """key -> (figure, rows, panels)."""
    found = {}
    for figure in sections.figures(mechanism(paper_run, digest(paper_run))):
        rows = sections.curve_rows(figure, run="a")
        found[figure.key] = figure, rows, sections.panels(figure, rows)
    return found


def test_every_figure_of_the_paper_is_there(drawn):
    assert list(drawn) == [
        *("change", "composition", "composition_published", "class_value", "heads"),
        *("agreement", "accuracy", "simple"),
    ]
    for figure, rows, panels in drawn.values():
        assert rows and panels and figure.caption.endswith(".")
        assert png(panels, dpi=30)[1:4] == b"PNG"
        assert "<svg" in svg(panels[0], key=figure.key)


def test_means_are_those_of_the_values(drawn):
    for figure, rows, _ in drawn.values():
        for curve in figure.curves:
            line = [
                row["mean"]
                for row in rows
                if (row["panel"], row["series"]) == (curve.panel, curve.series)
            ]
            expected = np.nanmean(curve.values.astype(float), axis=0)
            np.testing.assert_allclose(line, expected, atol=1e-6)


def test_exclusive_bars_reach_one_and_published_ones_may_exceed_it(drawn):
    _, _, (panel,) = drawn["composition"]
    sums = np.sum([series.column("mean") for series in panel.series], axis=0)
    np.testing.assert_allclose(sums, 1, atol=1e-6)
    assert {entry["sign"] for entry in legend([panel])} == {"■"}
    _, _, (panel,) = drawn["composition_published"]
    sums = np.sum([series.column("mean") for series in panel.series], axis=0)
    assert (sums >= 1 - 1e-6).all()


def test_bars_stand_beside_what_chance_gives(drawn, paper_run):
    from matplotlib.figure import Figure

    from vitjax.report import figures

    found = mechanism(paper_run, digest(paper_run))
    _, rows, (panel,) = drawn["composition"]
    for series in panel.series:
        names = {words: name for name, words in sections.CATEGORY_NAMES.items()}
        expected = found.composition_chance[names[series.name]].mean(0)
        np.testing.assert_allclose(series.column("chance"), expected)
    sums = np.sum([series.column("chance") for series in panel.series], axis=0)
    np.testing.assert_allclose(sums, 1)
    axes = Figure().subplots()
    figures._draw(axes, panel, None)
    pale = [patch for patch in axes.patches if patch.get_linestyle() == "--"]
    heights = [v for series in panel.series for v in series.column("chance")]
    np.testing.assert_allclose([patch.get_height() for patch in pale], heights)
    assert figures.chance_text([panel]) == "pale: by chance"


def test_several_runs_stand_side_by_side(paper_run):
    figure = sections.figures(mechanism(paper_run, digest(paper_run)))[0]
    rows = [r for run in "ab" for r in sections.curve_rows(figure, run=run)]
    titles = [panel.title for panel in sections.panels(figure, rows)]
    assert len(titles) == 8 and titles[0].endswith("(a)") and titles[-1].endswith("(b)")


def test_a_contrast_has_the_mean_of_the_difference():
    draw = np.random.default_rng(0)
    values, group = draw.normal(size=(40, 3)), draw.random(40) < 0.3
    found = sections.contrast(values, group)
    difference = values[group].mean(0) - values[~group].mean(0)
    np.testing.assert_allclose(found.mean(0), difference)
    spread = found.std(0) / np.sqrt(40)
    expected = [
        np.sqrt(sum(values[g, i].var() / g.sum() for g in (group, ~group)))
        for i in range(3)
    ]
    np.testing.assert_allclose(spread, expected, rtol=1e-6)


def test_heads_have_their_own_curves_and_a_common_chance(drawn, paper_run):
    _, rows, panels = drawn["heads"]
    assert [len(panel.series) for panel in panels] == [2, 2]
    for panel, name, chance in zip(
        panels,
        ("agreement_head", "simple_head"),
        ("chance_head", "chance_simple_head"),
    ):
        level = paper_run[chance][...].mean((0, 2))
        for head, series in enumerate(panel.series):
            values = paper_run[name][..., head]
            np.testing.assert_allclose(series.column("mean"), values.mean(0), atol=1e-6)
            np.testing.assert_allclose(series.column("chance"), level, atol=1e-6)
        assert panel.chance == () and "mean over heads" in panel.chance_name


def test_runs_of_older_versions_have_fewer_curves(paper_run):
    import dataclasses

    found = mechanism(paper_run, digest(paper_run))
    old = dataclasses.replace(found, heads={}, simple_chance={})
    assert sections.heads(old).curves == []
    assert [curve.series for curve in sections.simple(old).curves] == [
        *("attention", "MLP")
    ]
    assert len(sections.simple(found).curves) == 4
