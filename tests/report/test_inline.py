"""Figures and tables that a notebook shows by itself."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from vitjax.report import inline
from vitjax.report.reduction import summary


def text_of(table):
    """Cells of a table as it is shown."""
    lines = re.findall(r"<tr>(.*?)</tr>", table._repr_html_())
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", line) for line in lines]


def test_pictures_show_themselves_and_are_drawn_once(masked_run, monkeypatch):
    shown = inline.pictures(masked_run)
    assert {"identifiability", "rate", "context_boxes", "maps"} <= set(shown)
    picture, drawn = shown["identifiability"], []
    draw = inline.figures.png
    monkeypatch.setattr(
        inline.figures, "png", lambda *a, **k: drawn.append(1) or draw(*a, **k)
    )
    page, png = picture._repr_html_(), picture._repr_png_()
    assert drawn == [1]
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(data) == png
    image = Image.open(io.BytesIO(png))
    assert f"width:{image.width * 96 // 144}px" in page
    assert "1 - rank/C" in page
    assert (
        repr(picture) == "Picture('identifiability': Identifiability over the blocks)"
    )


def test_maps_are_a_picture_too(masked_run):
    image = Image.open(io.BytesIO(inline.pictures(masked_run)["maps"].png))
    assert min(image.size) > 100


def test_pictures_without_labels_have_no_maps(make_run):
    run = make_run(change={"label": np.full(9, -1, np.int32)})
    assert "maps" not in inline.pictures(run)


def test_summary_is_that_of_the_report(masked_run):
    table = inline.tables(masked_run)["summary"]
    expected = summary(masked_run)
    assert [row["value"] for row in table.rows] == [row["value"] for row in expected]
    head, first, *_ = text_of(table)
    assert head == ["", "mean", "chance"]
    assert first[0] == "top-1 accuracy"
    value, low, high = (float(x) for x in re.findall(r"[\d.]+", first[1]))
    assert value == pytest.approx(expected[0]["value"], abs=6e-4)
    assert (low, high) == pytest.approx(
        (expected[0]["low"], expected[0]["high"]), abs=6e-4
    )


def test_tables_of_the_paper(paper_run):
    found = inline.tables(paper_run)
    assert list(found) == ["summary", "edits", "tests"]
    edits = text_of(found["edits"])
    assert edits[0][1:4] == ["before", "after", "change"]
    assert len(edits) == 1 + len(found["edits"].rows)
    assert "Table('edits'" in repr(found["edits"])
    assert all(row["blocks"] for row in found["tests"].rows)


def test_several_runs_are_told_apart(make_run):
    table = inline.tables(make_run(seed=1), make_run(seed=2))["summary"]
    head, *lines = text_of(table)
    assert head[0] == "run"
    assert len({line[0] for line in lines}) == 2


def test_no_run_is_an_error():
    for function in (inline.pictures, inline.tables):
        with pytest.raises(ValueError, match="at least one run"):
            function()


@pytest.mark.parametrize(
    ("row", "key", "text"),
    [
        ({"value": 0.5, "low": 0.25, "high": 0.75}, "value", "0.500 [0.250, 0.750]"),
        ({"value": 0.5, "low": float("nan"), "high": 1.0}, "value", "0.500"),
        ({"before": 0.5, "low": 0.1, "high": 1.0}, "before", "0.500"),
        ({"value": float("nan")}, "value", "–"),
        ({"probes": 1170.0}, "probes", "1,170"),
        ({"chance": None}, "chance", ""),
        (
            {"x": {"value": -0.25, "low": -0.5, "high": 0.0}},
            "x",
            "−0.250 [−0.500, 0.000]",
        ),
        ({"name": "<a>"}, "name", "<a>"),
    ],
)
def test_cells(row, key, text):
    assert inline.cell(row, key) == text


def test_texts_are_escaped(masked_run):
    name = masked_run.manifest["model"]["name"]
    try:
        masked_run.manifest["model"]["name"] = "<script>"
        both = inline.tables(masked_run, masked_run)["summary"]
        assert "<script>" not in both._repr_html_()
        assert "&lt;script&gt;" in both._repr_html_()
    finally:
        masked_run.manifest["model"]["name"] = name


def test_a_sheet_of_maps_scales_each_by_itself():
    images = [np.full((8, 8, 3), shade, np.uint8) for shade in (10, 200)]
    maps = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    picture = inline.sheet(images, ["a", "b"], {"one": maps, "two": -maps}, title="T")
    image = Image.open(io.BytesIO(picture.png))
    assert image.width > image.height
    assert "<b>T</b>" in picture._repr_html_()
