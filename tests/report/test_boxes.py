"""Painters of distributions: what stands in the axes is what the rows say."""

import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from vitjax.report import boxes, figures, spreads
from vitjax.report.mechanism import mechanism
from vitjax.report.per_image import digest


@pytest.fixture(scope="module")
def panels(paper_run):
    """Name of the painter -> a panel."""
    data = digest(paper_run)
    found = spreads.spreads(data, mechanism(paper_run, data), run='<b>&"$')
    drawn = {panel.drawn: panel for figure in found[1:] for panel in figure.panels}
    middle = {"block": 1, "tick": "a", "mean": 0.9, "low": 0.8, "high": 0.95}
    middle |= {"chance": np.nan}
    rows = [middle, middle | {"block": 2, "tick": "b"}]
    named = spreads.panel_of("key", "t", "rate", "named", [('<b>&"$', 0, rows)])
    return drawn | {"named": named}


def paint(panel):
    axes = Figure().subplots()
    return axes, figures._draw(axes, panel, figures._shared_limits([panel]))


def test_boxes_span_the_quartiles(panels):
    panel = panels["boxes"]
    axes, handles = paint(panel)
    (series,) = panel.series
    assert len(axes.patches) == panel.depth
    for patch, row in zip(axes.patches, series.rows):
        y = patch.get_path().vertices[:, 1]
        assert (y.min(), y.max()) == (row["q25"], row["q75"])
    np.testing.assert_array_equal(handles[None].get_ydata(), series.column("chance"))
    stars = [place for place, row in enumerate(series.rows) if row["p_holm"] <= 0.05]
    assert [round(text.xy[0]) - 1 for text in axes.texts] == stars


def test_stars_and_blocks_without_values():
    rows = [
        {"block": 1, "median": np.nan, "p_holm": np.nan},
        {"block": 2, "p_holm": 0.05, **dict.fromkeys(("median", "q25", "q75"), 0.5)},
    ]
    rows[1] |= {"whisker_low": 0.1, "whisker_high": 0.9}
    panel = spreads.panel_of("key", "t", "identifiability", "boxes", [("a", 0, rows)])
    axes = Figure().subplots()
    assert boxes.boxes(axes, panel, panel.series[0], ()) is axes.patches[0]
    assert [text.get_text() for text in axes.texts] == ["*"] and len(axes.patches) == 1
    empty = spreads.panel_of("k", "t", "rate", "boxes", [("a", 0, rows[:1])])
    assert boxes.boxes(axes, empty, empty.series[0], ()) is None


def test_a_dot_for_every_class(panels):
    panel = panels["dots"]
    axes, handles = paint(panel)
    (series,) = panel.series
    cloud, mean = axes.lines[:2]
    values = np.concatenate([row["values"] for row in series.rows])
    np.testing.assert_array_equal(cloud.get_ydata(), values)
    assert (
        np.abs(cloud.get_xdata() - np.repeat([1, 2], len(values) // 2)) < 0.33
    ).all()
    assert len(set(cloud.get_xdata())) == len(values)
    np.testing.assert_array_equal(mean.get_ydata(), series.column("mean"))
    assert axes.get_ylim()[1] > values.max()


def test_many_dots_are_one_picture(panels):
    row = {**panels["dots"].series[0].rows[0], "values": [0.5] * (boxes.VECTOR + 1)}
    panel = spreads.panel_of("k", "t", "agreement", "dots", [("a", 0, [row])])
    drawing = figures.svg(panel, key="many")
    assert drawing.count("<use") < 100 and "data:image/png" in drawing


def test_histograms_reach_their_shares(panels):
    panel = panels["histogram"]
    axes, handles = paint(panel)
    (series,) = panel.series
    heights = [patch.get_height() for patch in axes.patches]
    np.testing.assert_array_equal(heights, series.column("mean"))
    assert axes.patches[3].get_x() == 2.5 and axes.get_xlim() == (-0.5, 16.5)
    assert handles[None].get_xdata() == [1.6, 1.6]


@pytest.mark.parametrize("drawn", boxes.PAINTERS)
def test_drawings_follow_the_page_and_escape_names(panels, drawn):
    panel = panels[drawn]
    named = spreads.panel_of(
        *("key", panel.title + ' <b>&"$', panel.measure, drawn),
        [(s.name, s.style, list(s.rows)) for s in panel.series],
        axis=panel.axis,
        chance_name=panel.chance_name,
    )
    drawing = figures.svg(named, key="k")
    assert "<b>" not in drawing and "&lt;b&gt;&amp;&quot;$" in drawing
    assert re.findall(r"#[0-9a-f]{6}\b", drawing) == []
    assert "var(--series-" in drawing and "var(--muted)" in drawing
    assert figures.png([named], dpi=30)[1:4] == b"PNG"
