import io
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from PIL import Image

from vitjax.report import figures
from vitjax.report.panels import panels
from vitjax.report.per_image import STREAMS


def test_the_legend_names_every_run_once(make_run, curves):
    rows = curves(make_run(), make_run(fields={"depth": 5}, classes=10))
    found = panels(rows, streams=["residual"], measure="identifiability")
    assert [entry["name"] for entry in figures.legend(found)] == ["a", "b"]
    assert figures.chance_text(found) == "chance 0.55, 0.6"


def test_what_is_drawn_is_what_the_rows_say(make_run, curves):
    from matplotlib.figure import Figure

    rows = curves(make_run(images=20))
    (panel,) = panels(rows, streams=["residual"], measure="identifiability")
    axes = Figure().subplots()
    handles = figures._draw(axes, panel, None)
    for series in panel.series:
        line = handles[series.name]
        np.testing.assert_array_equal(line.get_ydata(), series.column("mean"))
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    bands = [band.get_paths()[0].vertices[:, 1] for band in axes.collections]
    expected = [("q25", "q75"), ("low", "high")] * 2
    owners = [series for series in panel.series for _ in range(2)]
    for band, keys, series in zip(bands, expected, owners):
        np.testing.assert_allclose(band.min(), min(series.column(keys[0])))
        np.testing.assert_allclose(band.max(), max(series.column(keys[1])))
    np.testing.assert_array_equal(handles[None].get_ydata(), [0.6, 0.6])
    low, high = axes.get_ylim()
    assert low == 0 and 1 < high < 1.1


@pytest.mark.parametrize("depth", [1, 3, 30])
def test_png(make_run, depth, curves):
    rows = curves(make_run(fields={"depth": depth}, images=1 if depth == 1 else 9))
    found = panels(rows, streams=list(STREAMS), measure="identifiability")
    image = np.asarray(
        Image.open(io.BytesIO(figures.png(found, dpi=50))).convert("RGB")
    )
    assert image.shape[0] > 300 and (image[0, 0] == 255).all()
    blue = tuple(bytes.fromhex(figures.COLOURS[0][1:]))
    assert (np.abs(image.astype(int) - blue).sum(-1) < 40).any()


def test_names_are_text_and_not_markup(make_run, curves):
    rows = curves(make_run(), make_run())
    for row in rows:
        row["run"] = {"a": "$x_1 <b>&", "b": "$"}[row["run"]]
    found = panels(rows, streams=["residual"], measure="rate")
    assert figures.png(found, dpi=40)[1:4] == b"PNG"


def test_svg_follows_the_page(make_run, curves):
    found = panels(curves(make_run()), streams=["residual"], measure="rate")
    drawings = [figures.svg(p, key=f"rate{n}") for n, p in enumerate(found)]
    identifiers = []
    for drawing in drawings:
        tree = xml.etree.ElementTree.fromstring(drawing)
        assert tree.get("role") == "img" and "width" not in tree.attrib
        identifiers += re.findall(r' id="([^"]+)"', drawing)
        for reference in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', drawing):
            assert f'id="{"".join(reference)}"' in drawing
        assert "var(--ink)" in drawing and "var(--sans)" in drawing
        assert "<style" not in drawing and "<metadata" not in drawing
        # No colour of print is left that a dark page would swallow.
        assert set(re.findall(r"#[0-9a-f]{6}\b", drawing)) == set()
    assert "var(--series-0)" in drawings[0] and "var(--series-1)" in drawings[1]
    assert len(identifiers) == len(set(identifiers))


def test_many_runs_stay_apart(make_run, curves):
    rows = curves(*[make_run(images=2, pictures=0) for _ in range(10)])
    found = panels(rows, streams=["residual"], measure="rate")
    entries = figures.legend(found)
    assert len(entries) == 10
    lines = {(s.style < len(figures.COLOURS), s.style % 8) for s in found[0].series}
    assert len(lines) == 10
