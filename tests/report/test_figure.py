"""Figures and tables: what is drawn and written is what the data say."""

import base64
import csv
import html
import io
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fake_runs import STUDY, fake_run
from matplotlib.figure import Figure as Canvas
from PIL import Image

from vitjax.recipes.registry import RECIPES
from vitjax.report.figure import (
    COLORS,
    DARK,
    GRID,
    INK,
    MANY_DOTS,
    MARKERS,
    MUTED,
    PAPER,
    VARIABLES,
    Table,
    number,
)

MARKS = {
    "line": "identifiability",
    "stacked": "composition",
    "boxes": "class_value_boxes",
    "dots": "agreement_classes",
    "histogram": "identifiable_tokens",
}
NASTY = 'a <b>&"$x'


@pytest.fixture(scope="module")
def figures(report, paper_results):
    return report(paper_results)[0]


def paint(figure):
    """(axes, handles, rows) of a figure's last panel."""
    rows = list(figure.panels().values())[-1]
    axes = Canvas().subplots()
    return axes, figure._draw(axes, rows), rows


def test_lines_have_their_bands_and_their_chance(figures):
    figure = figures["identifiability"]
    axes, handles, rows = paint(figure)
    lines = figure.series(rows)
    for name, line in lines.items():
        np.testing.assert_array_equal(handles[name].get_ydata(), line["mean"])
        assert handles[name].get_xdata().tolist() == [0, 1]
    for band, name in zip(axes.collections, lines):
        y = band.get_paths()[0].vertices[:, 1]
        bounds = lines[name]["low"].min(), lines[name]["high"].max()
        np.testing.assert_allclose([y.min(), y.max()], bounds)
    assert handles["chance 0.6"].get_ydata() == [0.6, 0.6]
    assert {0, 1} <= set(axes.get_xticks()) and axes.get_xlabel() == "block"


def test_a_single_block_has_vertical_lines_for_bands(report):
    figure = report(fake_run(depth=1))[0]["identifiability"]
    axes, handles, _ = paint(figure)
    assert [len(h.get_xdata()) for h in handles.values()] == [1, 1, 2]
    assert all(len(bar.get_segments()) == 1 for bar in axes.collections)


def test_bars_stand_on_each_other_beside_what_chance_gives(figures):
    axes, handles, rows = paint(figures["composition"])
    pale = [patch for patch in axes.patches if patch.get_linestyle() == "--"]
    heights = [patch.get_height() for patch in pale]
    np.testing.assert_allclose(heights, rows["chance"])
    bars = [patch for patch in axes.patches if patch.get_linestyle() != "--"]
    tops = [patch.get_y() + patch.get_height() for patch in bars]
    np.testing.assert_allclose(tops[-2:], 1)
    assert axes.get_ylim()[1] > 1 and "pale: by chance" in handles


def test_boxes_span_the_quartiles_and_stars_say_significant(figures):
    figure = figures["class_value_boxes"]
    rows = figure.data.assign(p_holm=[0.05, 0.06] * 2)
    rows.loc[3, ["median", "q25", "q75", "whisker_low", "whisker_high"]] = np.nan
    axes, handles, rows = paint(replace(figure, data=rows))
    (box,) = axes.patches
    y, row = box.get_path().vertices[:, 1], rows.iloc[0]
    assert (y.min(), y.max()) == (row["q25"], row["q75"])
    ((star, place),) = [(text.get_text(), text.xy[0]) for text in axes.texts]
    assert (star, place) == ("*", 0)
    chance = handles["random initialization, mean"].get_ydata()
    np.testing.assert_array_equal(chance, rows["chance"])
    nothing = replace(figure, data=figure.data.assign(median=np.nan))
    assert list(paint(nothing)[1]) == ["random initialization, mean"]


def test_a_dot_for_every_row_and_diamonds_at_the_means(figures):
    axes, handles, rows = paint(figures["agreement_classes"])
    cloud, mean = axes.lines[:2]
    np.testing.assert_array_equal(cloud.get_ydata(), rows["mean"])
    assert (np.abs(cloud.get_xdata() - rows["layer"]) < 0.33).all()
    assert len(set(cloud.get_xdata())) == len(rows)
    expected = rows.groupby("layer")["mean"].mean()
    np.testing.assert_allclose(mean.get_ydata(), expected)
    assert axes.get_ylim()[1] > rows["mean"].max()


def test_many_dots_are_one_image(figures):
    figure = figures["agreement_classes"]
    rows = figure.data[figure.data["panel"] == "MLP"].iloc[:1]
    rows = pd.concat([rows] * (MANY_DOTS + 1))
    drawing = replace(figure, data=rows).svg()
    assert drawing.count("<use") < 100 and "data:image/png" in drawing


def test_histograms_reach_their_shares(figures):
    axes, handles, rows = paint(figures["identifiable_tokens"])
    heights = [patch.get_height() for patch in axes.patches]
    np.testing.assert_array_equal(heights, rows["mean"])
    assert axes.patches[3].get_x() == 2.5 and axes.get_xlim() == (-0.5, 16.5)
    assert handles["chance 3.2"].get_xdata() == [3.2, 3.2]


@pytest.mark.parametrize("mark", MARKS)
def test_drawings_follow_the_page_and_escape_names(figures, mark):
    figure = figures[MARKS[mark]]
    assert figure.mark == mark
    rows = figure.data.assign(
        panel=figure.data["panel"] + NASTY, series=figure.data["series"] + NASTY
    )
    nasty = replace(figure, data=rows, title=NASTY, caption=NASTY)
    text = nasty.html()
    assert "<b>" not in text and "&lt;b&gt;" in text
    assert "&lt;b&gt;&amp;" in text
    titles = re.findall('<svg role="img" aria-label="([^"]*)"', text)
    assert len(titles) == len(nasty.panels())
    assert all(html.escape(NASTY) in title for title in titles)
    assert text.count('<svg class="key"') == text.count("<li>") > 0
    assert re.findall(r"#[0-9a-f]{6}\b", nasty.svg()) == []
    assert "var(--series-" in text and "var(--sans)" in text
    identifiers = re.findall(r'\bid="([^"]*)"', text)
    assert len(identifiers) == len(set(identifiers))
    with Image.open(io.BytesIO(nasty.png(dpi=30))) as image:
        assert min(image.size) > 60


def test_a_csv_holds_what_is_drawn_and_nothing_of_its_style(figures):
    figure = figures["identifiability"]
    rows = list(csv.DictReader(io.StringIO(figure.csv())))
    assert len(rows) == len(figure.data) and "style" not in rows[0]
    assert float(rows[3]["mean"]) == pytest.approx(figure.data["mean"].iloc[3])
    names = {"run", "stream", "tokens", "measure", "layer", "chance"}
    assert names < set(rows[0])


def test_a_notebook_shows_a_figure(figures):
    figure = figures["simple"]
    text = figure._repr_html_()
    png = base64.b64decode(re.search('base64,([^"]+)"', text)[1])
    width = Image.open(io.BytesIO(png)).width * 96 // 144
    assert f"width:{width}px" in text and repr(figure).startswith("Figure('simple'")


def test_tables_escape_and_leave_out_what_is_missing():
    data = pd.DataFrame({"run": [NASTY] * 2, "value": [1 / 3, np.nan], "n": [7, 8]})
    table = Table(key="key", title="t", caption=NASTY, data=data)
    first, second = csv.DictReader(io.StringIO(table.csv()))
    assert first == {"run": NASTY, "value": "0.33333333", "n": "7"}
    assert second["value"] == ""
    text = table.html()
    assert "<b>" not in text and 'download="key.csv"' in text
    assert "<td>0.333</td>" in text and "<td>–</td>" in text
    assert "<th>run</th>" not in text  # there is one
    several = Table(key="k", title="", caption="", data=data.assign(run=["a", "b"]))
    assert "<th>run</th>" in several.html()


def test_number():
    values = 0.5, 0.0, 1.0, 0.001, 0.9996, -0.25, float("nan")
    words = "0.500", "0.000", "1.000", "0.0010", "0.9996", "−0.250", "–"
    assert tuple(map(number, values)) == words


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_figure_and_table_of_every_recipe(report, recipe):
    """Of a single image; test_page has several with masks."""
    options = {"images": 1, "class_token": False, "manifest": {"study": STUDY}}
    figures, tables, sentences = report(fake_run(recipe, **options))
    assert sentences and not any("nan" in line for line in sentences)
    expected = {"identifiability", "updates", "rate", "maps"}
    expected |= {"gallery"} if recipe == "faithfulness" else set()
    ranked = "rank_residual" in RECIPES[recipe].dims
    if not ranked:
        kinds = {"editing": [""], "lens": ["_kl", "_exit"], "errors": ["_lead"]}
        kinds = kinds.get(recipe, ["_heads", "_blocks", "_images"])
        expected = {recipe + kind for kind in kinds}
    assert expected <= set(figures)
    assert ("summary" in tables) == ranked
    common = {"updates", "rate", "maps", *MARKS.values()}  # drawn once is enough
    for key, figure in figures.items():
        assert figure.title and figure.caption.endswith(".") and len(figure.data)
        assert figure.see.endswith(".")
        if recipe == "paper" or (key not in common and recipe != "one_pass"):
            assert figure.png(dpi=20)[1:4] == b"PNG"
    for table in tables.values():
        assert len(table.data) and table.data["run"].nunique() == 1


def luminance(color):
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))


@pytest.mark.parametrize("colors, page", [(COLORS, "#ffffff"), (DARK, "#14171b")])
def test_series_are_legible_on_their_page(colors, page):
    for color in colors:
        light, dark = sorted((luminance(color), luminance(page)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_every_color_of_print_has_a_variable():
    used = {*COLORS, INK, MUTED, GRID, PAPER}
    assert used == set(VARIABLES)
    assert len(set(VARIABLES.values())) == len(VARIABLES)
    assert len(MARKERS) == len(COLORS)
